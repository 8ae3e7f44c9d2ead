"""How fast a data set was recorded, how fast its robot will be commanded, which steps are therefore used, what a conversion did already."""

from __future__ import annotations

import logging
from dataclasses import replace

from prismatic.vla.constants import RobotPlatform
from prismatic.vla.datasets.description import SAME_HZ, Description
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE, DatasetEntry
from prismatic.vla.datasets.striding import whole_factor

logger = logging.getLogger(__name__)

AUTO = "auto"


def check_stride(stride: str) -> None:
    """Accepts a number of steps, or "auto".

    Raises:
        ValueError: anything else.
    """
    if stride != AUTO and not (stride.isdigit() and int(stride) >= 1):
        raise ValueError(f"--stride is {stride!r}; it is the number of recorded steps per step of the robot, such as 2, or auto")


def recorded_hz(entry: DatasetEntry, said: Description) -> float | None:
    """Steps per second of the files that say `said`, as the entry or they themselves say; None if neither does.

    Rollouts of ours know their rate, whatever that of the demonstrations for which the entry was written.
    """
    return entry.fps / said.stride if entry.fps and not _knows_better(said) else said.hz


def _knows_better(said: Description) -> bool:
    return said.is_rollout and said.hz is not None


def for_form(name: str, entry: DatasetEntry, said: Description) -> DatasetEntry:
    """The entry, written for the recordings, for files that say `said`: what a conversion has done already is not done again, and of
    rollouts, which were recorded at the policy's own rate, every step is used.

    Raises:
        ValueError: the conversion took every n-th step, and the entry wants another n.
    """
    if entry.stride > 1 and entry.stride % said.stride:
        raise ValueError(
            f"data set {name!r} was converted with --stride {said.stride}, its entry in {CONFIGS_FILE} says stride={entry.stride}; convert "
            "it again, or correct the entry"
        )
    order = "rgb" if entry.image_channel_order == said.corrected_order else entry.image_channel_order
    stride = 1 if _knows_better(said) else max(1, entry.stride // said.stride)
    return replace(entry, stride=stride, image_channel_order=order)


def with_stride(entry: DatasetEntry, stride: str | None) -> DatasetEntry:
    """The entry with the number that --stride gives; "auto" is decided later, None leaves it as it is."""
    return entry if stride is None else replace(entry, stride=1 if stride == AUTO else int(stride))


def with_automatic_stride(name: str, entry: DatasetEntry, platform: RobotPlatform, hz: float | None) -> DatasetEntry:
    """The entry with as many recorded steps per step as make the platform's rate.

    Raises:
        ValueError: the rate is unknown or no multiple of the platform's.
    """
    if hz is None:
        raise ValueError(
            f"--stride auto: nothing says how fast data set {name!r} was recorded; add fps to its entry in {CONFIGS_FILE}, or give a number"
        )
    factor = whole_factor(hz, platform.control_hz)
    if factor is None:
        raise ValueError(
            f"--stride auto: data set {name!r} was recorded at {hz:g} Hz, which is no multiple of the {platform.control_hz:g} Hz of robot "
            f"platform {platform.name}; choose a platform whose control_hz is {hz:g} or a whole part of it"
        )
    return replace(entry, stride=factor)


def tell_rates(name: str, entry: DatasetEntry, platform: RobotPlatform, hz: float | None) -> None:
    """One line where steps are left out, and one where the policy would move slower or faster than its demonstrations."""
    if entry.stride > 1:
        logger.info("data set %s: one step in %d is used%s", name, entry.stride, f", {hz / entry.stride:g} Hz of {hz:g}" if hz else "")
    if hz is None or abs(platform.control_hz * entry.stride / hz - 1) <= SAME_HZ:
        return
    speed = platform.control_hz * entry.stride / hz
    factor = whole_factor(hz, platform.control_hz)
    remedy = f"--stride {factor}, or stride={factor} in its entry," if factor else f"a platform with control_hz={hz:g}"
    logger.warning(
        "data set %s was recorded at %g Hz, robot platform %s acts at %g Hz: the policy would move at %.2g times the recorded speed; "
        "%s mends that",
        *(name, hz, platform.name, platform.control_hz, speed, remedy),
    )
