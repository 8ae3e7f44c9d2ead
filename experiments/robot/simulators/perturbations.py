"""Changed scenes: what may differ from the demonstrations, and by how much. `--perturb camera:2,light:1` names axis and severity.
`camera:2@1` is a change that stays, as of a camera that was moved once: its direction is draw number 1 in every episode.

    axis         by whom              what changes
    camera       scene                where the primary camera stands, and its field of view
    robot        scene                how the robot stands at the start
    light        scene                strength, colour and direction of the light
    distractor   scene                where objects lie that the task is not about
    noise        pictures             noise of the sensor
    blur         pictures             sharpness
    brightness   pictures             exposure
    jpeg         pictures             quality of the compression
    language     instruction          the words of the instruction

How large a change is follows from the severity, its direction is drawn for each episode (or once, `@`); neither touches what else is
drawn, so an episode has the same initial state with and without. Changes of pictures are made in the order of a camera, whatever the
order in which they are named (`CAMERA_ORDER`). The axes are those of LIBERO-Plus (arXiv:2510.13626) that need no assets.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from prismatic.vla.constants import near_names

SEVERITIES = (1, 2, 3)
SCENE_AXES = ("camera", "robot", "light", "distractor")
PICTURE_AXES = ("noise", "blur", "brightness", "jpeg")
CAMERA_ORDER = ("blur", "brightness", "noise", "jpeg")  # in which changes of pictures are made: lens, exposure, sensor, compression
LANGUAGE_AXIS = "language"
AXES = (*SCENE_AXES, *PICTURE_AXES, LANGUAGE_AXIS)

# Axis -> size at each severity; the unit is that of its text.
_SIZES: dict[str, tuple[float, float, float]] = {
    "camera": (4, 8, 16),
    "robot": (1, 2, 4),
    "light": (0.3, 0.7, 1.4),
    "distractor": (2, 4, 8),
    "noise": (8, 20, 40),
    "blur": (0.5, 1, 2),
    "brightness": (0.3, 0.6, 1.0),
    "jpeg": (30, 15, 6),
    "language": (1, 2, 3),
}
_SPELLING = re.compile(r"(?P<axis>\w+)\s*:\s*(?P<severity>\d+)(?:@(?P<draw>\d+))?")
_TEXTS = {
    "camera": "the primary camera turned by {0:g} degrees about what it looks at, {0:g} % nearer or further, field of view {0:g} % changed",
    "robot": "the robot's start displaced: joints by {1:g} rad in all, or where the arm follows a hand, the hand by {2:g} cm",
    "light": "lights {0:g} octaves stronger or weaker, tinted by {3:.0f} %, shining from {3:.0f} degrees beside",
    "distractor": "objects that the task is not about displaced by {0:g} cm",
    "noise": "noise of {0:g} levels (standard deviation) on every pixel",
    "blur": "pictures blurred by {0:g} % of their side (standard deviation)",
    "brightness": "pictures {0:g} octaves brighter or darker",
    "jpeg": "pictures compressed as JPEG of quality {0:g}",
    "language": "other words, distance {0:g} of 3 from the task's own",
}


@dataclass(frozen=True)
class Perturbation:
    """One axis at one severity."""

    axis: str
    severity: int  # of SEVERITIES
    draw: int | None = None  # the number of the one draw that all episodes share; None: each has its own

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(f"--perturb names the axis {self.axis!r}; {near_names(self.axis, AXES)}")
        if self.severity not in SEVERITIES:
            raise ValueError(f"--perturb {self.axis}:{self.severity}: the severity must be 1, 2 or 3")

    def __str__(self) -> str:
        return f"{self.axis}:{self.severity}" + ("" if self.draw is None else f"@{self.draw}")

    @property
    def size(self) -> float:
        """In the unit of the axis (`_TEXTS`)."""
        return _SIZES[self.axis][self.severity - 1]

    @property
    def joint_shift(self) -> float:
        """[rad], norm over the joints of an arm; of the axis robot."""
        return 0.1 * self.size

    @property
    def hand_shift(self) -> float:
        """[m]; of the axis robot."""
        return 0.02 * self.size

    def describe(self) -> str:
        """What it does, in words."""
        text = _TEXTS[self.axis].format(self.size, self.joint_shift, 100 * self.hand_shift, 15 * self.size)
        return f"{self}: {text}" + ("" if self.draw is None else ", alike in every episode")

    def rng(self, episode: EpisodeSpec, more: str = "") -> np.random.Generator:
        """What its direction is drawn from; the same at every severity, so that severities differ in size alone."""
        purpose = f"perturb {self.axis}{more}"
        return episode.rng(purpose) if self.draw is None else np.random.default_rng([self.draw, zlib.crc32(purpose.encode())])


def parse_perturbations(text: str) -> tuple[Perturbation, ...]:
    """What `--perturb` names; () if nothing.

    Raises:
        ValueError: an unknown axis or severity, or an axis twice.
    """
    found = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        said = _SPELLING.fullmatch(part)
        if said is None:
            raise ValueError(f"--perturb has {part!r}; expected axis:severity, such as camera:2, or camera:2@1 for one that stays")
        found.append(Perturbation(said["axis"], int(said["severity"]), None if said["draw"] is None else int(said["draw"])))
    axes = [item.axis for item in found]
    if len(set(axes)) < len(axes):
        raise ValueError(f"--perturb {text} names an axis twice; choose one severity of each")
    return tuple(found)


def changes_version(changes: Sequence[Perturbation]) -> int:
    """What episodes with these changes share only with others of the same number.

    1: as first published. 2: a steep camera turns by the whole angle, LIBERO's arm stands displaced when the policy first looks; several
    changes of pictures are made in one order.
    """
    num_of_pictures = sum(item.axis in PICTURE_AXES for item in changes)
    return 2 if num_of_pictures > 1 or any(item.axis in ("camera", "robot") for item in changes) else 1


def size_of(changes: Sequence[Perturbation], axis: str) -> Perturbation | None:
    """The change along `axis`, if there is one."""
    return next((item for item in changes if item.axis == axis), None)


def direction(rng: np.random.Generator, num_dims: int) -> np.ndarray:
    """float64 [num_dims] of length 1, every direction as likely."""
    drawn = rng.normal(size=num_dims)
    return drawn / np.linalg.norm(drawn)
