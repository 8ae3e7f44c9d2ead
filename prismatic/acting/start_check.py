"""A robot against the policy that is to drive it, before anything moves: names, units, cameras, and where the demonstrations began.

Letters: A action dim, P proprio dim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from prismatic.acting.limits import ActionLimits
from prismatic.acting.robot import Robot
from prismatic.vla.constants import near_names
from prismatic.vla.types import Observation
from prismatic.wire.policy_info import CHANGE_PREFIX, PolicyInfo

_UNIT = re.compile(r"(.*) \[(.*)\]")
_BEYOND = 0.5  # of the width of the first states, at either end; or ...
_BEYOND_RANGE = 0.1  # ... of the range of the actions of the same name: less is how people place a robot
# What a state may have been multiplied with, what that looks like, and the units that training's dimension may have then.
_FACTORS = (
    (180 / np.pi, "degrees where training had radians", ("rad",)),
    (np.pi / 180, "radians where training had degrees", ("deg",)),
    (100.0, "0..100 where training had 0..1", ("0-1", "0..1")),
    (0.01, "0..1 where training had 0..100", ("0-100", "0..100", "%")),
)


def check_names(robot: Robot, info: PolicyInfo) -> None:
    """Accepts a robot whose dimensions are those of the policy, in its order and its units.

    Raises:
        ValueError: they are not; names what differs.
    """
    if not hasattr(robot, "action_names"):
        raise ValueError(
            f"{type(robot).__name__} does not say what its actions are; write into the class what the policy calls them: "
            f"action_names = {info.action_names!r}"
        )
    for what, own, wanted in (("action", robot.action_names, info.action_names), ("state", robot.state_names, info.proprio_names)):
        if what == "state" and not (own and info.needs_state):
            continue
        if tuple(own) == tuple(wanted):
            continue
        if what == "action" and (changes := _changes_of(own, wanted)):
            raise ValueError(
                f"the policy's actions are changes ({', '.join(changes)}), the robot takes targets and would go to such small angles: give "
                f"its class the policy's names, {', '.join(wanted)}, and let its send() add each change to the target before, at first to "
                "where the arm stands (as RelativeTargets of experiments/robot/aloha/robots.py does); or, if the actions are targets after "
                "all, start the server without --use_relative_actions"
            )
        if sorted(own) == sorted(wanted):
            raise ValueError(f"the robot's {what}_names are in another order than the policy's; it needs {', '.join(wanted)}")
        units = [_describe_unit(one, other) for one, other in zip(own, wanted, strict=False) if _name(one) == _name(other) and one != other]
        if len(own) == len(wanted) and units:
            raise ValueError(
                f"the robot's {what}s have other units than the policy's: {', '.join(units)}; convert them in the robot's class"
            )
        odd = [name for name in own if name not in wanted]
        raise ValueError(
            f"the robot has {len(own)} {what} dimensions ({', '.join(own)}), the policy was made for {len(wanted)} ({', '.join(wanted)})"
            + (f"; {odd[0]}: {near_names(odd[0], wanted)}" if odd else "")
        )


def check_observation(observation: Observation, info: PolicyInfo) -> None:
    """Accepts an observation that has what the policy needs.

    Raises:
        ValueError: a camera or the state is missing, or the state has another width; or it is no observation at all.
    """
    if not isinstance(observation, Observation):
        raise ValueError(f"the robot's observe() returns {type(observation).__name__}, expected prismatic.vla.types.Observation")
    missing = [slot for slot in info.cameras if slot not in observation.images]
    if missing:
        called = [
            f"{slot} (called {info.demonstrated.cameras[slot]!r} in the data)" for slot in missing if slot in info.demonstrated.cameras
        ]
        found = ", ".join(observation.images) or "none"
        raise ValueError(
            f"the robot lacks the camera {', '.join(called or missing)}; the policy needs {', '.join(info.cameras)}, found {found}"
        )
    num_needed = len(info.proprio_names)
    if info.needs_state and (observation.proprio is None or len(observation.proprio) != num_needed):
        found = "none" if observation.proprio is None else f"{len(observation.proprio)} numbers"
        raise ValueError(f"the policy needs a state of {num_needed} numbers ({', '.join(info.proprio_names)}), the robot gives {found}")


def check_start(state: np.ndarray | None, info: PolicyInfo) -> list[str]:
    """A sentence for each dimension of the first state [P] that is not where the demonstrations began, with what may explain it."""
    seen = info.demonstrated
    if state is None or len(seen.start_low) != len(state) or len(state) != len(info.proprio_names):
        return []
    low, high = np.asarray(seen.start_low), np.asarray(seen.start_high)
    ranges = np.array([_action_range(name, info) for name in info.proprio_names])
    beyond = np.maximum(_BEYOND * (high - low), _BEYOND_RANGE * ranges)
    low, high = low - beyond, high + beyond
    return [
        f"{info.proprio_names[dim]} is {state[dim]:.4g} before the start; the demonstrations began between {seen.start_low[dim]:.4g} and "
        f"{seen.start_high[dim]:.4g}. {_explain(state[dim], low[dim], high[dim], info.proprio_names[dim])}"
        for dim in np.flatnonzero((state < low) | (state > high))
    ]


def check_range(position: np.ndarray, limits: ActionLimits, names: Sequence[str]) -> list[str]:
    """A sentence for each target whose position [A] is well beyond its limits, into which the robot would walk whatever the policy says."""
    if np.shape(position) != limits.low.shape:
        return []
    beyond = _BEYOND_RANGE * (limits.high - limits.low)
    outside = limits.is_target & ((position < limits.low - beyond) | (position > limits.high + beyond))
    return [
        f"{names[dim]} is at {position[dim]:.4g} before the start; its limits are {limits.low[dim]:.4g} and {limits.high[dim]:.4g}, and it "
        "walks into them. Are they in its unit? See --limits, or bring the robot to where the demonstrations began."
        for dim in np.flatnonzero(outside).tolist()
    ]


def _explain(value: float, low: float, high: float, name: str) -> str:
    """A name with a unit rules out what training had otherwise."""
    found = _UNIT.fullmatch(name)
    fitting = [text for factor, text, units in _FACTORS if low <= value / factor <= high and (found is None or found[2] in units)]
    fitting += ["the opposite sign"] if low <= -value <= high else []
    return (
        f"It looks like {fitting[0]}."
        if fitting
        else "Check its unit, sign and zero; or bring the robot to where the demonstrations began."
    )


def _action_range(name: str, info: PolicyInfo) -> float:
    """Of the action that has the state's name; 0 where there is none."""
    if name not in info.action_names:
        return 0.0
    dim = info.action_names.index(name)
    return float(info.demonstrated.action_high[dim] - info.demonstrated.action_low[dim])


def _changes_of(own: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Those of the policy's dimensions that are changes of what the robot takes as a target of the same name, in whatever unit."""
    targets = {_name(name) for name in own}
    named = {dimension: _name(dimension).replace(CHANGE_PREFIX, "", 1) for dimension in wanted if CHANGE_PREFIX in dimension}
    return [dimension for dimension, target in named.items() if target in targets and _name(dimension) not in targets]


def _name(dimension: str) -> str:
    found = _UNIT.fullmatch(dimension)
    return found[1] if found else dimension


def _describe_unit(own: str, wanted: str) -> str:
    units = [found[2] if (found := _UNIT.fullmatch(name)) else "no unit" for name in (own, wanted)]
    return f"{_name(own)} in {units[0]}, trained in {units[1]}"
