"""data_root_dir and a name -> the folder of a data set; a folder -> the source that reads it, by what the folder holds.

dataset_info.json, features.json        RLDS, written by tensorflow-datasets; in a version folder such as 1.0.0
meta/info.json                          LeRobot v2.1 or v3
*.hdf5, *.h5 (at any depth)             raw recordings: ALOHA (ACT), LIBERO, robomimic, Isaac Lab, RoboCasa
a file .json in place of a folder       a list of such folders (`manifest`)
"""

from __future__ import annotations

import re
from pathlib import Path

from prismatic.vla.datasets.description import SAME_HZ, Description
from prismatic.vla.datasets.episodes import EpisodeSource
from prismatic.vla.datasets.hdf5.layout import SUFFIXES, files_below
from prismatic.vla.datasets.manifest import Part, is_manifest, read_manifest
from prismatic.vla.datasets.merged import MergedSource
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.rates import recorded_hz
from prismatic.vla.datasets.rlds.recorded_names import RecordedNames
from prismatic.vla.datasets.rlds.source import RldsSource

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_RLDS_FILE, _LEROBOT_FILE = "dataset_info.json", "meta/info.json"


def find_dataset_folder(data_root_dir: Path, name: str) -> Path:
    """The folder of data set `name`; of its newest version, or of `name:version`, where there are version folders.

    TFDS lower-cases names, so both spellings are tried. me/so101_pick, as LeRobot names data sets, is in me/so101_pick or so101_pick.

    Raises:
        ValueError: no such folder or version, or nothing in it that a source reads; the message lists what is there.
    """
    data_root_dir = Path(data_root_dir).expanduser()
    version = ""
    if not (data_root_dir / name).is_dir():  # a time in a name has colons, too
        name, _, version = name.partition(":")
    if not data_root_dir.is_dir():
        raise ValueError(f"--data_root_dir {data_root_dir} is not a folder; it must hold one folder per data set")
    short = name.rpartition("/")[2]
    spellings = (name, name.lower(), short, short.lower())
    folder = next((data_root_dir / spelling for spelling in spellings if (data_root_dir / spelling).is_dir()), None)
    if folder is None:
        raise ValueError(f"data set {name!r} has no folder {data_root_dir / name.lower()}; {_where_else(data_root_dir, short)}")
    versions = {path.name: path for path in folder.iterdir() if _VERSION.fullmatch(path.name) and _is_rlds(path)}
    if version:
        if version not in versions:
            raise ValueError(f"data set {name!r} has no version {version} in {folder}; found: {', '.join(sorted(versions)) or 'none'}")
        return versions[version]
    if versions:
        return versions[max(versions, key=lambda text: tuple(map(int, text.split("."))))]
    source_kind(folder)
    return folder


def _where_else(data_root_dir: Path, name: str) -> str:
    """Where a data set that is not in `data_root_dir` may be: further down, or around it."""
    nested = sorted(str(path.relative_to(data_root_dir)) for path in data_root_dir.glob(f"*/{name}") if path.is_dir())
    if nested:
        return f"did you mean {' or '.join(nested)}?"
    whole = data_root_dir.absolute()
    if around := next((folder for folder in (whole, whole.parent) if folder.name.lower() == name.lower()), None):
        return f"--data_root_dir is the folder above the data sets: pass --data_root_dir {around.parent}"
    present = sorted(path.name for path in data_root_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    return f"--data_root_dir holds: {_some(present)}"


def _is_rlds(folder: Path) -> bool:
    """Whether tensorflow-datasets wrote it; a folder that is called after a day, 2026.11.30, is no version."""
    return any((folder / name).is_file() for name in (_RLDS_FILE, "features.json"))


def open_source(folder: Path, entry: DatasetEntry, only: str = "") -> EpisodeSource:
    """The episodes of `folder`, or of `only` one HDF5 file in it; `entry` tells which columns and cameras to read.

    Raises:
        ValueError: the folder holds no recordings that a source reads, or they are incomplete; the message names what was found.
    """
    kind = _kind_of(folder, only)
    if kind == "rlds":
        return RldsSource(folder, entry)
    if kind == "manifest":
        _check_rates(folder, entry)
        return MergedSource(folder, [open_source(part, entry, file) for part, file in _part_folders(folder)])
    if kind == "lerobot":
        from prismatic.vla.datasets.lerobot.source import LeRobotSource

        return LeRobotSource(folder, entry)
    from prismatic.vla.datasets.hdf5.source import Hdf5Source

    return Hdf5Source(folder, entry, only)


def describe_recordings(folder: Path, only: str = "") -> Description:
    """What the recordings in `folder`, or `only` one HDF5 file in it, say of themselves, before an episode is read; some say nothing.

    Raises:
        ValueError: none that a source reads, or their description is damaged.
    """
    kind = _kind_of(folder, only)
    if kind == "manifest":
        return _common_description(folder)
    if kind == "rlds" and (recorded := RecordedNames.load(folder)) is not None:
        return recorded.description()
    if kind == "hdf5":
        from prismatic.vla.datasets.hdf5.rate import describe_hdf5

        return describe_hdf5(folder, only)
    if kind != "lerobot":
        return Description()
    from prismatic.vla.datasets.lerobot.source import describe_lerobot

    return describe_lerobot(folder)


def _kind_of(folder: Path, only: str) -> str:
    return "hdf5" if only else source_kind(folder)  # which looks through the folder


def source_kind(folder: Path) -> str:
    """What the recordings in `folder` are: "rlds", "lerobot" or "hdf5"; "manifest": a file that lists others.

    Raises:
        ValueError: none of these; the message lists what is there.
    """
    if folder.is_file() and is_manifest(folder.name):
        return "manifest"
    if (folder / _RLDS_FILE).is_file():
        return "rlds"
    if (folder / _LEROBOT_FILE).is_file():
        return "lerobot"
    if any(path.suffix.lower() in SUFFIXES and not path.name.startswith(".") for path in files_below(folder)):
        return "hdf5"
    raise ValueError(
        f"{folder} holds no recordings: expected a version folder such as 1.0.0 with {_RLDS_FILE} (RLDS, written by tensorflow-datasets), "
        f"{_LEROBOT_FILE} (LeRobot), or .hdf5 files; found: {_some(sorted(path.name for path in folder.iterdir()))}"
    )


def instruction_remedy(folder: Path) -> str:
    """What to do where recordings in `folder` do not say what the robot was told, as a sentence without its full stop."""
    if source_kind(folder) == "hdf5":
        where = f"Write the text of the task into {folder / 'instruction.txt'}"
    else:
        where = "Store the text of the task as language_instruction in every step"
    return f"{where}, or pass --default_instruction in training"


def _part_folders(path: Path) -> list[tuple[Path, str]]:
    """The folders of a manifest's parts, of a data set with versions the newest, with the file that is meant; "": all."""
    return [_folder_of(part) for part in read_manifest(path).parts]


def _folder_of(part: Part) -> tuple[Path, str]:
    return part.path if part.file else find_dataset_folder(part.path.parent, part.path.name), part.file


def _common_description(path: Path) -> Description:
    """What the parts of a manifest say of themselves.

    Raises:
        ValueError: conversions of some changed what others have as recorded.
    """
    parts = _part_folders(path)
    folders = [folder for folder, _ in parts]
    said = [describe_recordings(folder, file) for folder, file in parts]
    for folder, other in zip(folders, said, strict=True):
        if (other.stride, other.corrected_order) != (said[0].stride, said[0].corrected_order):
            raise ValueError(
                f"{path}: {folder} was converted with stride {other.stride} and colours from {other.corrected_order}, {folders[0]} with "
                f"stride {said[0].stride} and {said[0].corrected_order}; one data set needs one form: convert all alike"
            )
    demonstrations_first = sorted(said, key=lambda item: item.is_rollout)  # the entry was written for these
    return Description(
        hz=next((item.hz for item in demonstrations_first if item.hz is not None), None),
        stride=said[0].stride,
        is_rollout=all(other.is_rollout for other in said),
        corrected_order=said[0].corrected_order,
    )


def _check_rates(path: Path, entry: DatasetEntry) -> None:
    """Accepts parts of a manifest whose steps are equally long once `entry` has been taken into account, as far as anybody says.

    Raises:
        ValueError: they are of several rates, or every n-th step would be taken of rollouts, which are at the policy's rate already.
    """
    shown = [part for part in read_manifest(path).parts if part.weight]
    said = [(part, describe_recordings(*_folder_of(part))) for part in shown]
    rates = {part.where: hz for part, item in said if (hz := recorded_hz(entry, item)) is not None}
    if rates and max(rates.values()) / min(rates.values()) - 1 > SAME_HZ:
        slow, fast = min(rates, key=lambda where: rates[where]), max(rates, key=lambda where: rates[where])
        raise ValueError(
            f"{path} joins recordings of {rates[slow]:g} Hz ({slow}) and {rates[fast]:g} Hz ({fast}); one data set has one rate: make two "
            "of it"
        )
    rollouts, others = ([part.where for part, item in said if item.is_rollout is kind] for kind in (True, False))
    if entry.stride > 1 and rollouts and any(where not in rates for where in others):
        raise ValueError(
            f"{path} joins rollouts ({rollouts[0]}), which are at the policy's rate, with demonstrations of which one step in "
            f"{entry.stride} is used and nobody says the rate; say it in fps of the entry, or make two data sets of it"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") or "nothing"
