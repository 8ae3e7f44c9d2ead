"""A raw LIBERO demonstration -> the same demonstration rendered again, without idle steps.

Letters: T steps.

The raw actions are executed from the raw initial state; what the robot then senses and sees is recorded anew. Images are stored as the
simulator renders them, upside down, as in the raw files; whoever reads them rotates them by 180 degrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from prismatic.conversion.noops import moving_steps
from prismatic.vla.constants import ActionKind

NO_OP = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
NUM_STEPS_TO_SETTLE = 10  # objects fall onto the table first
_KINDS = (*(ActionKind.MOTION,) * 6, ActionKind.TARGET)  # of an action: motion of the end effector, gripper command


class ReplayEnvironment(Protocol):
    """What a replay needs of LIBERO's OffScreenRenderEnv."""

    def reset(self) -> Any: ...

    def set_init_state(self, init_state: np.ndarray) -> Mapping[str, np.ndarray]: ...

    def step(self, action: list[float]) -> tuple[Mapping[str, np.ndarray], float, bool, Any]: ...

    def get_sim_state(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Replay:
    """What was recorded while the actions were executed."""

    success: bool  # after the last step
    arrays: Mapping[str, np.ndarray]  # path below demo_<number> -> [T, ...]
    num_idle: int  # steps left out


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """float64 [3]: rotation axis times angle [rad] of a quaternion x, y, z, w.

    w is clipped to [-1, 1]; the sign is not made canonical, as in the published data: angles go up to 2 pi.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if sine < 1e-8:
        return np.zeros(3)
    return np.asarray(quaternion[:3], np.float64) * (2.0 * np.arccos(w) / sine)


def replay(environment: ReplayEnvironment, initial_state: np.ndarray, actions: np.ndarray) -> Replay:
    """Executes `actions` [T, 7] (gripper -1 open, +1 close) from `initial_state`, leaving out idle ones.

    Raises:
        ValueError: the actions have another width.
    """
    if actions.ndim != 2 or actions.shape[1] != len(NO_OP):
        raise ValueError(f"actions have shape {list(actions.shape)}, expected [steps, {len(NO_OP)}]")
    environment.reset()
    observation = environment.set_init_state(initial_state)
    for _ in range(NUM_STEPS_TO_SETTLE):
        observation, _, _, _ = environment.step(list(NO_OP))
    moving = moving_steps(actions, _KINDS)
    rows: list[dict[str, np.ndarray]] = []
    success = False
    for action in actions[moving]:
        state = np.asarray(initial_state) if not rows else np.array(environment.get_sim_state())
        rows.append({"actions": np.array(action), "states": state, **_sensed(observation)})
        observation, _, success, _ = environment.step(action.tolist())
    arrays = {name: np.stack([row[name] for row in rows]) for name in (rows[0] if rows else {})}
    last = (np.arange(len(rows)) == len(rows) - 1).astype(np.uint8)
    return Replay(bool(success), arrays | {"rewards": last, "dones": last}, int((~moving).sum()))


def _sensed(observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One step of the arrays that LIBERO's files have."""
    position, quaternion = observation["robot0_eef_pos"], observation["robot0_eef_quat"]
    gripper, orientation = observation["robot0_gripper_qpos"], axis_angle(quaternion)
    return {
        "robot_states": np.concatenate([gripper, position, quaternion]),
        "obs/gripper_states": np.array(gripper),
        "obs/joint_states": np.array(observation["robot0_joint_pos"]),
        "obs/ee_states": np.concatenate([position, orientation]),
        "obs/ee_pos": np.array(position),
        "obs/ee_ori": orientation,
        "obs/agentview_rgb": np.array(observation["agentview_image"]),
        "obs/eye_in_hand_rgb": np.array(observation["robot0_eye_in_hand_image"]),
    }
