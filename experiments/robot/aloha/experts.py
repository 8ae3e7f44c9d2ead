"""Scripted experts of gym-aloha's tasks: poses of the two grippers, one after the other, turned into joint angles by inverse kinematics.

A pose is where the finger tips are [m, world], how far the gripper points down (pitch [rad]) and how it is turned about its own axis
(roll [rad]). A gripper points away from its arm's base, as the waist turns it, so the forearm need not roll: solutions never flip. What
lies askew on the table is turned by the closing fingers, and is straight where the grippers meet, midway between the bases.

A script begins where the scene is: an expert that takes over from a policy carries on with what the grippers hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.robot.aloha.tasks import CONTROL_HZ

_TIPS = np.array([0.145, 0.0, 0.0])  # between the finger tips, in the frame of gripper_link [m]
_ITERATIONS, _DAMPING, _PRECISION = 30, 1e-4, 1e-4  # of the inverse kinematics; precision in m and rad
_DOWN = math.radians(60)  # pitch of a gripper that picks something up
_OPEN, _CLOSED = 1.0, 0.0
_MEET = np.array([0.0, 0.5, 0.25])  # where the grippers meet [m]
_ABOVE = np.array([0.0, 0.0, 0.09])  # what is picked up, at first [m]
# Insertion [m]: where the socket is held, and how far the middle of the peg is from its middle: at first, and when the peg touches the pin.
_SOCKET, _APART, _TOUCHING = np.array([-0.06, 0.5, 0.2]), 0.15, 0.10
_LOST = 0.06  # a part that lies so far from the finger tips has been dropped [m]
_LIFTED = 0.06  # height of the middle of a part that does not lie on the table [m]; at a reset they fall from 0.042
_RAISED = 0.035  # the same of a part between closed fingers
_CLOSING = 0.9  # opening of a gripper, below which it closes or is closed
_NUM_PUSHES, _PUSH_SECONDS = 8, 0.32
_SPEED, _TURNING, _SHORTEST = 0.25, 1.5, 0.1  # of who joins, in m/s and rad/s, and the seconds of its shortest phase
_THERE, _LEVEL = 0.03, 0.1  # m and rad: a gripper, or a part, is where the script wants it


@dataclass(frozen=True)
class Pose:
    """Where a gripper is to be, and how far open."""

    tips: np.ndarray  # [3]
    pitch: float
    roll: float
    gripper: float  # 0 closed to 1 open

    def towards(self, goal: Pose, part: float) -> Pose:
        """The pose a `part` (0 to 1) of the way to `goal`; the gripper is commanded at once."""
        own = 1 - part
        return Pose(
            tips=own * self.tips + part * goal.tips,
            pitch=own * self.pitch + part * goal.pitch,
            roll=own * self.roll + part * goal.roll,
            gripper=goal.gripper,
        )


@dataclass(frozen=True)
class Phase:
    """A piece of the script: both grippers move to their goals in that time."""

    seconds: float
    left: Pose
    right: Pose

    @property
    def num_steps(self) -> int:
        return max(1, round(self.seconds * CONTROL_HZ))


class _Arm:
    """Poses -> joint angles of one arm."""

    def __init__(self, physics: Any, side: str) -> None:
        import mujoco

        self._mujoco, self._model = mujoco, physics.model.ptr
        self._data: Any = mujoco.MjData(self._model)
        self._live: Any = physics.data.ptr
        self._body = self._model.body(f"vx300s_{side}/gripper_link").id
        self._base = np.array(self._live.xpos[self._model.body(f"vx300s_{side}").id])
        first = self._model.joint(f"vx300s_{side}/waist").qposadr[0]  # the arms' coordinates come first, so positions and velocities agree
        self._joints = first + np.arange(6)
        self._moving = first + np.array([0, 1, 2, 4, 5])  # all but the forearm's roll
        self._range = self._model.jnt_range[self._moving]
        self._facing = 1.0 if side == "left" else -1.0
        self._solution = np.array(self._live.qpos[self._joints])

    def tips(self) -> np.ndarray:
        """Where the finger tips are now [m]."""
        return self._live.xpos[self._body] + self._live.xmat[self._body].reshape(3, 3) @ _TIPS

    def pose(self, gripper: float) -> Pose:
        """The present pose."""
        down, aside, up = self._live.xmat[self._body][6:]
        return Pose(self.tips(), math.asin(-down), math.atan2(aside, up), gripper)

    def solve(self, pose: Pose) -> np.ndarray:
        """Joint angles [6] for `pose`: damped least squares from the angles before."""
        mj, model, data = self._mujoco, self._model, self._data
        reach = self._facing * (pose.tips - self._base)
        goal = _about_z(math.atan2(reach[1], reach[0])) @ _about_y(pose.pitch) @ _about_x(pose.roll)
        goal = np.diag([self._facing, self._facing, 1.0]) @ goal
        data.qpos[:] = self._live.qpos
        data.qpos[self._joints] = self._solution
        jacobian = np.zeros((2, 3, model.nv))
        for _ in range(_ITERATIONS):
            mj.mj_kinematics(model, data)
            mj.mj_comPos(model, data)
            rotation = data.xmat[self._body].reshape(3, 3)
            tips = data.xpos[self._body] + rotation @ _TIPS
            turn = 0.5 * sum(np.cross(rotation[:, axis], goal[:, axis]) for axis in range(3))
            error = np.concatenate([pose.tips - tips, turn])
            if np.abs(error).max() < _PRECISION:
                break
            mj.mj_jac(model, data, jacobian[0], jacobian[1], tips, self._body)
            columns = jacobian[:, :, self._moving].reshape(6, -1)
            change = columns.T @ np.linalg.solve(columns @ columns.T + _DAMPING * np.eye(6), error)
            data.qpos[self._moving] = np.clip(data.qpos[self._moving] + change, self._range[:, 0], self._range[:, 1])
        self._solution = np.array(data.qpos[self._joints])
        return self._solution


def _is_over(now: Pose, grasp: Pose) -> bool:
    """The gripper comes down on what it is to take, or is there."""
    beside = now.tips - grasp.tips
    is_turned = max(abs(now.pitch - grasp.pitch), abs(now.roll - grasp.roll)) < _LEVEL
    return bool(is_turned and np.linalg.norm(beside[:2]) < _THERE and beside[2] < _ABOVE[2])


def _about_x(angle: float) -> np.ndarray:
    sine, cosine = math.sin(angle), math.cos(angle)
    return np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])


def _about_y(angle: float) -> np.ndarray:
    sine, cosine = math.sin(angle), math.cos(angle)
    return np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])


def _about_z(angle: float) -> np.ndarray:
    sine, cosine = math.sin(angle), math.cos(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


class AlohaExpert:
    """The script of a task from the present state on."""

    def __init__(self, task: str, physics: Any, proprio: np.ndarray) -> None:
        """`physics` is dm_control's, `proprio` [14] where the arms are."""
        self._physics = physics
        self._left, self._right = _Arm(physics, "left"), _Arm(physics, "right")
        scripts: dict[str, Callable[[], Iterator[Phase]]] = {"transfer_cube": self._transfer, "insertion": self._insertion}
        grippers = proprio[[6, 13]]
        self._start = Phase(0.0, self._left.pose(float(grippers[0])), self._right.pose(float(grippers[1])))
        self._phases = scripts[task]()
        self._phase, self._step = next(self._phases), 0

    def act(self) -> np.ndarray:
        """float32 [14], absolute joint angles and grippers."""
        if self._step == self._phase.num_steps:
            self._start, self._step = self._phase, 0
            self._phase = next(self._phases, self._phase)
        self._step += 1
        part = self._step / self._phase.num_steps
        left, right = self._start.left.towards(self._phase.left, part), self._start.right.towards(self._phase.right, part)
        arms = [np.append(self._left.solve(left), left.gripper), np.append(self._right.solve(right), right.gripper)]
        return np.concatenate(arms).astype(np.float32)

    def _object(self, name: str) -> np.ndarray:
        """Where an object is [m]."""
        return np.array(self._physics.named.data.xpos[name])

    def _is_gripped(self, name: str, pose: Pose) -> bool:
        """The part is between the fingers of the gripper at `pose`, which close or are closed."""
        return bool(pose.gripper < _CLOSING and np.linalg.norm(pose.tips - self._object(name)) < _THERE)

    def _is_carried(self, name: str, pose: Pose) -> bool:
        """The part is off the table, in the gripper at `pose`."""
        part = self._object(name)
        height = _RAISED if self._is_gripped(name, pose) else _LIFTED
        return bool(part[2] > height and np.linalg.norm(pose.tips - part) < _LOST)

    def _joined(self, left: Pose, right: Pose) -> Phase:
        """A phase from wherever the arms are, in the time that it takes."""
        pairs = ((self._start.left, left), (self._start.right, right))
        metres = max(float(np.linalg.norm(goal.tips - now.tips)) for now, goal in pairs)
        turns = max(max(abs(goal.pitch - now.pitch), abs(goal.roll - now.roll)) for now, goal in pairs)
        return Phase(max(metres / _SPEED, turns / _TURNING, _SHORTEST), left, right)

    def _transfer(self) -> Iterator[Phase]:
        """The right arm picks the cube up and holds it out, the left one takes it from the other side."""
        waiting = Pose(_MEET - [0.12, 0, 0], 0.0, math.pi / 2, _OPEN)
        around = replace(waiting, tips=_MEET - [0.005, 0, 0])
        if self._is_carried("box", self._start.right):
            lifted = replace(self._start.right, tips=_MEET, gripper=_CLOSED)
            beside = self._start.left.tips - _MEET  # of the left gripper, which comes along x
            is_turned = abs(self._start.left.roll - waiting.roll) < 2 * _LEVEL
            is_in_line = is_turned and np.linalg.norm(beside[1:]) < _THERE and beside[0] < _THERE
            if not (is_in_line and np.linalg.norm(self._start.right.tips - _MEET) < _THERE):
                yield self._joined(waiting, lifted)
            if not (is_in_line and np.linalg.norm(beside) < _THERE):
                yield self._joined(around, lifted) if is_in_line else Phase(0.8, around, lifted)
            yield Phase(0.8, replace(around, gripper=_CLOSED), lifted)
            return
        cube = self._object("box") * [1, 1, 0] + [0, 0, 0.018]  # on the table
        above = Pose(cube + _ABOVE, _DOWN, 0.0, _OPEN)
        grasp = replace(above, tips=cube, gripper=_CLOSED if self._is_gripped("box", self._start.right) else _OPEN)
        if _is_over(self._start.right, grasp):
            yield self._joined(waiting, grasp)
        else:
            yield Phase(1.2, waiting, above)
            yield Phase(0.6, waiting, grasp)
        held = replace(grasp, gripper=_CLOSED)
        yield Phase(0.5, waiting, held)
        lifted = replace(held, tips=_MEET)
        yield Phase(1.4, waiting, lifted)
        yield Phase(0.8, around, lifted)
        yield Phase(0.8, replace(around, gripper=_CLOSED), lifted)

    def _insertion(self) -> Iterator[Phase]:
        """Each arm picks up its part; they are lined up in the air, and the peg is pushed into the socket."""
        socket, peg = self._object("socket") * [1, 1, 0] + [-0.02, 0, 0.022], self._object("peg") * [1, 1, 0] + [0.02, 0, 0.012]
        starts = self._start.left, self._start.right
        names = ("socket", "peg")
        carried = [self._is_carried(name, now) for name, now in zip(names, starts, strict=True)]
        grippers = [_CLOSED if self._is_gripped(name, now) else _OPEN for name, now in zip(names, starts, strict=True)]
        grasps = [
            replace(now, gripper=_CLOSED) if held else Pose(part, _DOWN, 0.0, gripper)
            for now, held, part, gripper in zip(starts, carried, (socket, peg), grippers, strict=True)
        ]
        left, right = (replace(grasp, gripper=_CLOSED) for grasp in grasps)
        if not all(carried):
            if all(held or _is_over(now, grasp) for now, held, grasp in zip(starts, carried, grasps, strict=True)):
                yield self._joined(*grasps)
            else:
                above = (replace(grasp, tips=grasp.tips + (0 if held else 1) * _ABOVE) for grasp, held in zip(grasps, carried, strict=True))
                yield Phase(1.2, *above)
                yield Phase(0.6, *grasps)
            yield Phase(0.5, left, right)
        distances = [_APART, _APART, *np.linspace(_APART, _TOUCHING - 0.02, _NUM_PUSHES)]
        if self._are_lined_up():
            apart = float(np.linalg.norm(self._object("peg") - self._object("socket")))
            distances = [distance for distance in distances[2:] if distance < apart] or distances[-1:]
        else:
            left, right = self._lined_up(left, right, _SOCKET, _APART)
            yield self._joined(left, right) if all(carried) else Phase(1.4, left, right)
        for distance in distances:
            left, right = self._lined_up(left, right, self._object("socket"), distance)
            yield Phase(_PUSH_SECONDS, left, right)

    def _are_lined_up(self) -> bool:
        """Both parts are carried, level, the peg in front of the socket or in it."""
        offset = self._object("peg") - self._object("socket")
        tilts = [abs(float(self._physics.named.data.xmat[part, "zx"])) for part in ("socket", "peg")]
        is_carried = self._is_carried("socket", self._start.left) and self._is_carried("peg", self._start.right)
        return bool(is_carried and np.linalg.norm(offset[1:]) < 0.01 and max(tilts) < _LEVEL)

    def _lined_up(self, left: Pose, right: Pose, target: np.ndarray, distance: float) -> tuple[Pose, Pose]:
        """Poses that put the socket at its place and the peg `distance` beside `target`, both level, from how the grippers hold them."""
        xmat = self._physics.named.data.xmat
        left_tilt, right_tilt = float(xmat["socket", "zx"]), -float(xmat["peg", "zx"])  # of the ends that point to each other
        lying = (self._left.tips() - self._object("socket"), self._right.tips() - self._object("peg"))  # in the grippers
        if max(np.linalg.norm(offset) for offset in lying) > _LOST:
            return left, right
        peg_goal = target + np.array([distance, 0, 0])
        return (
            replace(left, tips=_SOCKET + lying[0], pitch=left.pitch + left_tilt),
            replace(right, tips=peg_goal + lying[1], pitch=right.pitch + right_tilt),
        )
