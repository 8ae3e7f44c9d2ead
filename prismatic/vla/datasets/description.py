"""What recordings say of themselves, apart from their values: rate, robot, columns with the names of their dimensions, cameras."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from prismatic.vla.cameras import looks_like_colour
from prismatic.vla.constants import ActionKind

SAME_HZ = 0.1  # rates that differ by less than this share are one

# What the names of columns say, in lower case.
BASE = re.compile(r"base|wheel|chassis|odom")
CHANGE = re.compile(r"delta|rel(ative)?([_./]|$)|displacement|diff|world_vector")
VELOCITY = re.compile(r"vel|twist|speed")
_POSE = re.compile(r"pos|tool|reached")
_ARM = re.compile(r"joint|qvel|arm|gripper|eef|ee_")


@dataclass(frozen=True)
class Dimension:
    """One number of a column."""

    name: str  # as recorded: "shoulder_pan.pos"
    unit: str = ""  # "rad", "deg", "0-100", "m/s", ...; "": nobody says
    kind: ActionKind | None = None  # what a command of this name is; None: the name does not say

    @property
    def label(self) -> str:
        """The name with its unit, as robot platforms write it."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


@dataclass(frozen=True)
class Column:
    """One stored column of numbers."""

    key: str  # as entries name it
    width: int
    dimensions: tuple[Dimension, ...] = ()  # one per number, or none where the recordings do not name them

    @property
    def kind(self) -> ActionKind | None:
        """The kind that all dimensions have, if they have one."""
        kinds = {dimension.kind for dimension in self.dimensions}
        return kinds.pop() if len(kinds) == 1 else None


def said_by_column(key: str, width: int) -> tuple[Dimension, ...]:
    """`width` dimensions that nobody names, of the kind that their column's name says: "base_action" drives, "delta_pose" moves."""
    drives = BASE.search(key.lower()) and not _POSE.search(key.lower())
    kind = ActionKind.MOTION if CHANGE.search(key) else ActionKind.VELOCITY if drives else None
    kind = ActionKind.VELOCITY if VELOCITY.search(key) else kind
    is_base = kind is ActionKind.VELOCITY and (drives or not _ARM.search(key.lower()))
    return tuple(Dimension(base_name(number, width) if is_base else "", "", kind) for number in range(width))


def base_name(number: int, width: int) -> str:
    """What a base's velocity is called, that of `number` of `width` (Mobile ALOHA's has two: linear and angular)."""
    names = {2: ("linear", "angular"), 3: ("x", "y", "theta")}.get(width, tuple(str(place) for place in range(1, width + 1)))
    return f"base_{names[number]}_velocity"


@dataclass(frozen=True)
class RecordedCamera:
    """One camera that the recordings declare."""

    key: str  # as entries name it
    num_files: int  # files that should hold its frames
    num_present: int  # of them, those that are there and are no pointers
    is_depth: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether it shows colours in every episode."""
        return not self.is_depth and self.num_present == self.num_files


@dataclass(frozen=True)
class Description:
    """What is known before an episode is read."""

    hz: float | None = None  # steps per second
    robot: str = ""  # the type that the recorder wrote down
    columns: tuple[Column, ...] = ()  # actions, states and other numbers
    cameras: tuple[RecordedCamera, ...] = ()
    stride: int = 1  # steps of the recorder per step, where a conversion left some out
    is_rollout: bool = False  # recorded while a policy or a person acted through this project, at the policy's rate
    corrected_order: str = "rgb"  # colour order of the recordings, where a conversion made RGB of it

    def complete_cameras(self, folder: Path) -> list[str]:
        """The keys of the cameras that have all their files; of these, such as are called like colours, if there are any.

        Raises:
            ValueError: there are cameras, and none has; the message names `folder` and the cameras.
        """
        colour = [camera for camera in self.cameras if not camera.is_depth]
        complete = [camera.key for camera in colour if camera.is_complete]
        if colour and not complete:
            files = ", ".join(f"{camera.key} ({camera.num_present} of {camera.num_files} files)" for camera in colour)
            raise ValueError(f"{folder}: no camera has all its videos here: {files}; download them")
        return [key for key in complete if looks_like_colour(key)] or complete

    def dimensions(self, keys: tuple[str | None, ...]) -> tuple[Dimension, ...]:
        """Those of `keys` joined (None is a column of zeros); none if a column is unknown or does not name its own."""
        by_key = {column.key: column for column in self.columns}
        found: list[Dimension] = []
        for key in keys:
            if key is None:
                found.append(Dimension("zero"))
            elif key not in by_key or not by_key[key].dimensions:
                return ()
            else:
                found += by_key[key].dimensions
        return tuple(found)
