"""Constants that every room shares: token ids, normalization kinds and the table of robot platforms.

To add a robot with new dimensions, add one entry to `ROBOT_PLATFORMS`; a data set names its platform in
`prismatic/vla/datasets/rlds/oxe/configs.py`. What the published code holds in constants of the one robot that it was started for
(NUM_ACTIONS_CHUNK, ACTION_DIM, ...) are fields of a platform; importing such a name says which.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import NoReturn

from prismatic.vla.stated_limits import StatedLimits

# Labels with this value take no part in a cross-entropy (torch's default ignore_index).
IGNORE_INDEX = -100

# Number of bins that an action dimension is cut into, and the number of token ids that stand for them.
NUM_ACTION_BINS = 256

# What the base models were trained with; part of policy.json, so that a checkpoint made with another one is noticed.
PROMPT_TEMPLATE = "In: What action should the robot take to {instruction}?\nOut:"
# Qwen's chat, as MiniVLA (github.com/Stanford-ILIAD/openvla-mini) has it.
QWEN_PROMPT_TEMPLATE = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat action should the robot take to {instruction}?<|im_end|>\n<|im_start|>assistant\n"
)
PROMPT_TEMPLATES = (PROMPT_TEMPLATE, QWEN_PROMPT_TEMPLATE)


@dataclass(frozen=True)
class TokenIds:
    """The prompt and the token ids that the layout of a sample relies on; the defaults are Llama-2's as OpenVLA uses them.

    The last `NUM_ACTION_BINS` ids of the base vocabulary (before padding rows) stand for actions.
    """

    base_vocab_size: int = 32000
    bos: int = 1  # first token of a sample, which the image tokens follow: <s>; Qwen: <|im_start|>
    stop: int = 2  # ends the actions of every training sample: </s>; Qwen: <|im_end|>
    empty: int = 29871  # stands before the actions: the lone space of Llama's tokenizer; Qwen: the line break that ends the prompt
    pad: int = 32000
    prompt_template: str = PROMPT_TEMPLATE

    @property
    def action_token_begin_idx(self) -> int:
        """Ids above this one (and below `base_vocab_size`) are action tokens: 31743 for Llama-2."""
        return self.base_vocab_size - NUM_ACTION_BINS - 1


class NormalizationType(str, Enum):
    """How raw values map to [-1, 1]; see `prismatic.vla.normalization`."""

    BOUNDS = "bounds"  # min -> -1, max -> +1
    BOUNDS_Q99 = "bounds_q99"  # 1st percentile -> -1, 99th percentile -> +1, the rest is clipped


class ActionKind(str, Enum):
    """What a dimension of an action is, and so how it is held still: a target is repeated, a motion or a velocity becomes 0."""

    TARGET = "target"  # where to be: an angle, a position, a gripper's opening
    MOTION = "motion"  # how far to go within this step
    VELOCITY = "velocity"  # how fast to go on, until the next command


def near_names(name: str, names: Iterable[str]) -> str:
    """A sentence part that suggests the closest known names, or lists all of them when none is close."""
    known = sorted(names)
    lowered = {candidate.lower(): candidate for candidate in known}
    close = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"


def file_part(name: str) -> str:
    """The name of a data set as part of a file name: me/so101_pick is me_so101_pick."""
    return name.replace("/", "_")


def as_action_kinds(kinds: Iterable[ActionKind | str]) -> tuple[ActionKind, ...]:
    """The kinds, also of their names in any case.

    Raises:
        ValueError: a name is none of target, motion, velocity.
    """
    known = {kind.value: kind for kind in ActionKind}
    names = [getattr(kind, "value", str(kind)).lower() for kind in ((kinds,) if isinstance(kinds, str) else kinds)]
    for name in names:
        if name not in known:
            raise ValueError(f"action_kinds names {name!r}, which is no kind of action; {near_names(name, known)}")
    return tuple(known[name] for name in names)


# Names of action dimensions that are motions or velocities.
_MOTION = re.compile(r"((left|right)_)?(d(x|y|z|roll|pitch|yaw)|delta_\w+)( \[.*\])?")
_VELOCITY = re.compile(r".*([._]vel|velocity\w*)( \[.*\])?|.* \[\w+/s\]")


@dataclass(frozen=True)
class RobotPlatform:
    """What a robot's actions and proprioception are; heads and data are checked against it."""

    name: str
    num_actions_chunk: int  # actions predicted per query, executed open loop
    action_dim: int
    proprio_dim: int
    normalization: NormalizationType
    control_hz: float  # actions per second
    action_names: tuple[str, ...]  # one per action dimension, with its unit where it has one
    proprio_names: tuple[str, ...]
    action_kinds: tuple[
        ActionKind, ...
    ] = ()  # one per action dimension; left out: by its name, so base.x.vel and base_x [m/s] are velocities
    limits: StatedLimits | None = None  # of its actions; where nothing is stated, a robot keeps to what the demonstrations did

    def __post_init__(self) -> None:
        self._check_types()
        kinds = as_action_kinds(self.action_kinds) or tuple(_kind_of(name) for name in self.action_names)
        object.__setattr__(self, "action_kinds", kinds)
        for field, items, size in (
            ("action_names", self.action_names, self.action_dim),
            ("proprio_names", self.proprio_names, self.proprio_dim),
            ("action_kinds", self.action_kinds, self.action_dim),
        ):
            if len(items) != size:
                raise ValueError(f"robot platform {self.name}: {field} lists {len(items)} items for {size} dimensions")
        if self.limits is not None and len(self.limits.low) != self.action_dim:
            raise ValueError(f"robot platform {self.name}: limits have {len(self.limits.low)} values for {self.action_dim} dimensions")
        if self.num_actions_chunk < 1:
            raise ValueError(f"robot platform {self.name}: num_actions_chunk is {self.num_actions_chunk}, must be at least 1")

    def _check_types(self) -> None:
        """Returns if what was written into the table are numbers, names and a kind of normalization, not texts that look like them.

        Raises:
            ValueError: the message names the field and what to write.
        """
        for field in ("num_actions_chunk", "action_dim", "proprio_dim"):
            if not isinstance(value := getattr(self, field), Integral):
                raise ValueError(f"robot platform {self.name}: {field} is {value!r}; write a whole number, such as 7")
        if not isinstance(self.control_hz, Real) or not 0 < self.control_hz < math.inf:
            raise ValueError(f"robot platform {self.name}: control_hz is {self.control_hz!r}; write a number above 0, such as 25")
        if not isinstance(self.normalization, NormalizationType):
            known = " or ".join(map(str, NormalizationType))
            raise ValueError(f"robot platform {self.name}: normalization is {self.normalization!r}; write {known}")
        for field in ("action_names", "proprio_names"):
            if isinstance(value := getattr(self, field), str):
                raise ValueError(f'robot platform {self.name}: {field} is the text {value!r}; a single name needs a comma: ("{value}",)')


def _kind_of(name: str) -> ActionKind:
    if _VELOCITY.fullmatch(name):
        return ActionKind.VELOCITY
    return ActionKind.MOTION if _MOTION.fullmatch(name) else ActionKind.TARGET


def _by_name(platforms: Iterable[RobotPlatform]) -> dict[str, RobotPlatform]:
    """The table.

    Raises:
        ValueError: a name would never be found: another platform has it, too, or it is not in capitals, as names are looked up.
    """
    table: dict[str, RobotPlatform] = {}
    for platform in platforms:
        if platform.name != platform.name.upper():
            raise ValueError(f"ROBOT_PLATFORMS of prismatic/vla/constants.py has {platform.name!r}; write {platform.name.upper()!r}")
        if table.setdefault(platform.name, platform) is not platform:
            raise ValueError(f"ROBOT_PLATFORMS of prismatic/vla/constants.py has {platform.name} twice; give one another name")
    return table


def _both_arms(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{side}_{name}" for side in ("left", "right") for name in names)


_EEF_DELTA = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
_EEF_POSE = ("x [m]", "y [m]", "z [m]", "roll [rad]", "pitch [rad]", "yaw [rad]", "gripper")
_SEVEN_JOINTS = (*(f"joint_{number} [rad]" for number in range(1, 8)), "gripper")
_ALOHA_ARM = ("waist [rad]", "shoulder [rad]", "elbow [rad]", "forearm_roll [rad]", "wrist_angle [rad]", "wrist_rotate [rad]", "gripper")
_ALOHA_JOINTS = _both_arms(_ALOHA_ARM)
# Ranges of the ViperX 300 S; a leader's gripper goes a little beyond [0, 1]. Its joints can do 3.14 rad/s.
_ALOHA_LIMITS = StatedLimits(
    low=(-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, -0.2) * 2,
    high=(3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1.2) * 2,
    max_speed=(*(2.0,) * 6, 5.0) * 2,
)

# Facts of the published system (openvla-oft 213c5ff); METAWORLD is ours. Control rates: LIBERO 20 Hz (robosuite),
# ALOHA 25 Hz, BridgeData V2 5 Hz, MetaWorld 80 Hz (5 physics steps of 2.5 ms).
ROBOT_PLATFORMS: dict[str, RobotPlatform] = _by_name(
    (
        RobotPlatform(
            name="LIBERO",
            num_actions_chunk=8,
            action_dim=7,
            proprio_dim=8,
            normalization=NormalizationType.BOUNDS_Q99,
            control_hz=20,
            action_names=_EEF_DELTA,
            proprio_names=("x [m]", "y [m]", "z [m]", "ax [rad]", "ay [rad]", "az [rad]", "finger_left [m]", "finger_right [m]"),
        ),
        RobotPlatform(
            name="ALOHA",
            num_actions_chunk=25,
            action_dim=14,
            proprio_dim=14,
            normalization=NormalizationType.BOUNDS,
            control_hz=25,
            action_names=_ALOHA_JOINTS,
            proprio_names=_ALOHA_JOINTS,
            limits=_ALOHA_LIMITS,
        ),
        RobotPlatform(
            name="BRIDGE",
            num_actions_chunk=5,
            action_dim=7,
            proprio_dim=7,
            normalization=NormalizationType.BOUNDS_Q99,
            control_hz=5,
            action_names=_EEF_DELTA,
            proprio_names=_EEF_POSE,
        ),
        RobotPlatform(
            name="METAWORLD",
            num_actions_chunk=8,
            action_dim=4,
            proprio_dim=4,
            normalization=NormalizationType.BOUNDS_Q99,
            control_hz=80,
            action_names=("dx", "dy", "dz", "gripper"),
            proprio_names=("x [m]", "y [m]", "z [m]", "gripper"),
        ),
        # Templates for your own robot, see the *_task_sample entries of configs.py: one or two arms, joints or end effector.
        RobotPlatform(
            name="SINGLE_JOINT",
            num_actions_chunk=25,
            action_dim=8,
            proprio_dim=8,
            normalization=NormalizationType.BOUNDS,
            control_hz=25,
            action_names=_SEVEN_JOINTS,
            proprio_names=_SEVEN_JOINTS,
        ),
        RobotPlatform(
            name="SINGLE_EEF",
            num_actions_chunk=25,
            action_dim=7,
            proprio_dim=7,
            normalization=NormalizationType.BOUNDS_Q99,
            control_hz=25,
            action_names=_EEF_DELTA,
            proprio_names=_EEF_POSE,
        ),
        RobotPlatform(
            name="DUAL_JOINT",
            num_actions_chunk=25,
            action_dim=16,
            proprio_dim=16,
            normalization=NormalizationType.BOUNDS,
            control_hz=25,
            action_names=_both_arms(_SEVEN_JOINTS),
            proprio_names=_both_arms(_SEVEN_JOINTS),
        ),
        RobotPlatform(
            name="DUAL_EEF",
            num_actions_chunk=25,
            action_dim=14,
            proprio_dim=14,
            normalization=NormalizationType.BOUNDS_Q99,
            control_hz=25,
            action_names=_both_arms(_EEF_DELTA),
            proprio_names=_both_arms(_EEF_POSE),
        ),
    )
)


# The robots of published data sets; the others are templates, or somebody's own.
PUBLISHED_ROBOTS = ("LIBERO", "ALOHA", "BRIDGE", "METAWORLD")


def get_robot_platform(name: str) -> RobotPlatform:
    """The platform called `name`, in any case.

    Raises:
        ValueError: no such platform; the message lists near names.
    """
    platform = ROBOT_PLATFORMS.get(name.upper())
    if platform is None:
        raise ValueError(
            f"robot platform {name!r} is not in ROBOT_PLATFORMS of prismatic/vla/constants.py; {near_names(name, ROBOT_PLATFORMS)}"
        )
    return platform


# Names of the published module -> what they are here, for ALOHA as an example.
_PUBLISHED_NAMES = {
    "NUM_ACTIONS_CHUNK": 'get_robot_platform("ALOHA").num_actions_chunk',
    "ACTION_DIM": 'get_robot_platform("ALOHA").action_dim',
    "PROPRIO_DIM": 'get_robot_platform("ALOHA").proprio_dim',
    "ACTION_PROPRIO_NORMALIZATION_TYPE": 'get_robot_platform("ALOHA").normalization',
    "ROBOT_PLATFORM": 'get_robot_platform("ALOHA"), or --robot_platform ALOHA; no program guesses it from its command line',
    **{f"{name}_CONSTANTS": f'get_robot_platform("{name}")' for name in ("LIBERO", "ALOHA", "BRIDGE")},
    "ACTION_TOKEN_BEGIN_IDX": "TokenIds().action_token_begin_idx",
    "STOP_INDEX": "TokenIds().stop",
}


def __getattr__(name: str) -> NoReturn:
    """Raises for every name that is not here; ImportError (which `from ... import` passes on) for those of the published module."""
    if name not in _PUBLISHED_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise ImportError(
        f"{name} of the published code depends on the robot (or the tokenizer) and is no constant here: write {_PUBLISHED_NAMES[name]}. "
        "A data set's platform is resolve_datasets(name, folder)[0].platform, a policy's is policy.spec.platform; robots are defined in "
        "ROBOT_PLATFORMS of prismatic/vla/constants.py",
        name=__name__,
    )
