"""The flags that every conversion to RLDS has, and how they name cameras and state columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prismatic.conversion.rlds_writer import RldsSpec
from prismatic.vla.cameras import CAMERA_ORDER, assign_cameras, recorded_slot
from prismatic.vla.constants import ActionKind, as_action_kinds, near_names
from prismatic.vla.datasets.rlds.oxe.configs import CHANNEL_ORDERS, ActionEncoding, DatasetEntry
from prismatic.vla.datasets.split_names import VAL_FRACTION


@dataclass
class RldsFlags:
    """Flags of a conversion; a script adds nothing but other defaults."""

    # From where to where
    input_dir: Path  # the recordings; HDF5 files are searched for at any depth
    dataset_name: str  # name in TFDS and in the registry
    data_root_dir: Path  # the data set lands in data_root_dir/dataset_name/version
    version: str = "1.0.0"  # of the data set
    overwrite: bool = False  # replace an existing data set of this name and version

    # What is written
    val_fraction: float = VAL_FRACTION  # share of the episodes that become the val split, where the recordings have none; 0: none do
    image_size: int | None = None  # pixels; images become squares of this side (256 as in the published data sets); None keeps their size
    cameras: str = ""  # primary=top,wrist=hand: which recorded camera is which; "": by the usual names
    image_channel_order: str = "rgb"  # bgr: red and blue were exchanged by the recorder, and are exchanged back
    state: str = "state"  # recorded columns that make up the state, joined in this order, separated by commas
    action: str = "action"  # recorded columns that make up the action, likewise
    action_encoding: str = "JOINT_POS"  # tells motions from targets, for --filter_noops and --stride only
    action_kinds: str = ""  # for robots that no encoding describes, instead of it: target*14,velocity*2
    stride: int = 1  # write every n-th step: targets are kept, motions in between added up, velocities averaged
    instruction: str | None = None  # for the whole folder, instead of what the recordings say
    instructions_file: Path | None = None  # JSON {file name, stem, "file, episode" or "*": text}, instead of what was recorded
    filter_noops: bool = False  # leave out steps in which nothing moves

    def __post_init__(self) -> None:
        if self.action_encoding not in ActionEncoding.__members__:
            names = near_names(self.action_encoding, ActionEncoding.__members__)
            raise ValueError(f"--action_encoding is {self.action_encoding!r}; {names}")
        if (order := self.image_channel_order) not in CHANNEL_ORDERS:
            raise ValueError(f"--image_channel_order is {order!r}; {near_names(order, CHANNEL_ORDERS)}")
        if self.stride < 1:
            raise ValueError(f"--stride is {self.stride}; it must be at least 1")
        _parse_kinds(self.action_kinds)
        self.spec()  # which refuses others, before recordings are looked through

    def spec(self) -> RldsSpec:
        """What the writer needs."""
        return RldsSpec(
            dataset_name=self.dataset_name,
            data_root_dir=self.data_root_dir,
            version=self.version,
            val_fraction=self.val_fraction,
            instruction=self.instruction,
            instructions_file=self.instructions_file,
            image_size=self.image_size,
            filter_noops=self.filter_noops,
            overwrite=self.overwrite,
        )

    def entry(self, recorded_cameras: Iterable[str]) -> DatasetEntry:
        """Which recorded cameras and columns are written.

        Raises:
            ValueError: the cameras are not called as usual and --cameras does not say which is which.
        """
        cameras = _parse_cameras(self.cameras) if self.cameras else guess_cameras(recorded_cameras)
        return DatasetEntry(
            image_obs_keys=cameras,
            state_obs_keys=_parse_columns(self.state),
            action_keys=_parse_columns(self.action),
            action_encoding=ActionEncoding[self.action_encoding],
            action_kinds=_parse_kinds(self.action_kinds),
            stride=self.stride,
            image_channel_order=self.image_channel_order,
        )


def _parse_columns(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _parse_kinds(text: str) -> tuple[ActionKind, ...]:
    kinds: list[ActionKind] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, count = part.partition("*")
        if count and not count.isdigit():
            raise ValueError(f"--action_kinds is {text!r}, expected kinds with their numbers of dimensions, such as target*14,velocity*2")
        kinds += as_action_kinds([name]) * int(count or 1)
    return tuple(kinds)


def guess_cameras(recorded: Iterable[str]) -> dict[str, str]:
    """Camera slot -> recorded name, for names that are usual; the only camera is the primary one.

    Raises:
        ValueError: a name is none of the usual ones.
    """
    recorded = tuple(recorded)
    found: dict[str, str] = {}
    for name in recorded:
        slot = recorded_slot(name)
        if slot is None or slot in found:
            if len(recorded) == 1:
                return {"primary": name}
            likely = ",".join(f"{slot}={name}" for slot, name in assign_cameras(recorded, two_arms=True)[0].items())
            raise ValueError(
                f"which camera is {name!r}? Say it for each that is to be written, such as --cameras {likely}; "
                f"slots: {', '.join(CAMERA_ORDER)}; recorded cameras: {', '.join(recorded)}"
            )
        found[slot] = name
    if "primary" not in found:
        raise ValueError(f"which camera is the primary one? Pass --cameras primary=NAME; recorded cameras: {', '.join(recorded) or 'none'}")
    return found


def _parse_cameras(text: str) -> Mapping[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    for slot, equals, name in pairs:
        if not (equals and name.strip()) or slot.strip() not in CAMERA_ORDER:
            raise ValueError(f"--cameras is {text!r}, expected pairs such as primary=top,wrist=hand; slots: {', '.join(CAMERA_ORDER)}")
    slots = [slot.strip() for slot, _, _ in pairs]
    if twice := next((slot for slot in slots if slots.count(slot) > 1), None):
        raise ValueError(f"--cameras is {text!r}, which names {twice} twice; slots: {', '.join(CAMERA_ORDER)}")
    return {slot.strip(): name.strip() for slot, _, name in pairs}
