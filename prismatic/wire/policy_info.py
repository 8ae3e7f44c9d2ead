"""What a server says of its policy, so that the robot's computer need not guess: written by the server, read by the client.

Letters: H chunk, A action dim, P proprio dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from prismatic.vla.constants import ActionKind, as_action_kinds
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.stated_limits import StatedLimits

ROBOT_UNITS = "robot"  # actions as the demonstrations have them
ROBOSUITE_UNITS = "robosuite"  # the gripper as LIBERO's simulator takes it: -1 open, +1 closed

CHANGE_PREFIX = "delta_"  # of the name of an action that says how far to go, not where to be


@dataclass(frozen=True)
class PolicyInfo:
    """One policy, in the units of one data set."""

    platform: str
    cameras: tuple[str, ...]  # slots, in the policy's order
    num_actions_chunk: int  # H
    action_names: tuple[str, ...]  # [A], with units
    action_kinds: tuple[ActionKind, ...]  # [A]
    proprio_names: tuple[str, ...]  # [P], with units
    control_hz: float
    needs_state: bool
    center_crop: bool
    jpeg_round_trip: bool  # its pictures go through JPEG in any case, so that they may travel as JPEG
    unnorm_key: str  # the data set
    demonstrated: Demonstrated  # what that data set's robot did
    limits: StatedLimits | None = None  # of its platform
    action_units: str = ROBOT_UNITS  # of this connection
    checkpoint: str = ""  # the run and its step; "": the checkpoint does not say

    def check(self) -> None:
        """Accepts what a robot can be driven by.

        Raises:
            ValueError: a rate that is none, or a value too few, which would count for all dimensions.
        """
        if not 0 < self.control_hz < math.inf or self.num_actions_chunk < 1:
            raise ValueError(f"the policy {self.unnorm_key} says {self.num_actions_chunk} actions a query at {self.control_hz:g} Hz")
        limits = self.action_names if self.limits is None else self.limits.low
        for name, values in (("action_kinds", self.action_kinds), ("limits", limits)):
            if len(values) != self.action_dim:
                raise ValueError(f"the policy {self.unnorm_key} has {len(values)} {name} for {self.action_dim} actions")
        self.demonstrated.check(self.action_dim, len(self.proprio_names))

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    def as_changes(self) -> PolicyInfo:
        """The same, where no action is a motion: all of them understood as such (delta joint angles) and called so, delta_joint_1 [rad] for
        joint_1 [rad], that no robot takes them for targets."""
        if ActionKind.MOTION in self.action_kinds:
            return self
        names = tuple(name if name.startswith(CHANGE_PREFIX) else CHANGE_PREFIX + name for name in self.action_names)
        return replace(self, action_names=names, action_kinds=(ActionKind.MOTION,) * self.action_dim, platform="", limits=None)

    def content(self) -> dict[str, Any]:
        """Plain values, for JSON and msgpack."""
        return {**asdict(self), "action_kinds": [kind.value for kind in self.action_kinds], "action_dim": self.action_dim}

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> PolicyInfo:
        """The inverse of `content`; what else there is does not matter.

        Raises:
            ValueError: a field is missing or is something else.
        """
        try:
            info = cls(
                platform=str(content["platform"]),
                cameras=tuple(content["cameras"]),
                num_actions_chunk=int(content["num_actions_chunk"]),
                action_names=tuple(content["action_names"]),
                action_kinds=as_action_kinds(content["action_kinds"]),
                proprio_names=tuple(content["proprio_names"]),
                control_hz=float(content["control_hz"]),
                needs_state=bool(content["needs_state"]),
                center_crop=bool(content["center_crop"]),
                jpeg_round_trip=bool(content["jpeg_round_trip"]),
                unnorm_key=str(content["unnorm_key"]),
                demonstrated=Demonstrated.parse(content["demonstrated"]),
                limits=StatedLimits.parse(content["limits"]),
                action_units=str(content["action_units"]),
                checkpoint=str(content.get("checkpoint", "")),
            )
            info.check()
            return info
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the policy is not described as this version does it ({error!r})") from error
