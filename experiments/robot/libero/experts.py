"""Scripted pick-and-place for LIBERO: reads poses from the simulator, acts through the same OSC controller as a policy.

    above the object -> down -> close -> up -> above the target -> down -> open -> up (-> again, if it fell beside the target)

An object that fits between the fingers is taken across its narrowest side; a wider one, such as a bowl, by its rim. A grasp that comes
up empty is tried once more, then another way. The expert looks where everything is at each step, so noise on its actions does not lead
it astray. One that takes over from a policy goes on with the phase that the scene is in, as the expert of the whole episode would from
there: what it does is taught beside that expert's demonstrations, and must not contradict them. Letters: V vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from experiments.robot.libero.scene import Scene, Start

# Suites whose goals are one pick and one place; LIBERO.md lists the success of the experts by task.
EXPERT_SUITES = ("libero_object", "libero_spatial")

_OPEN, _CLOSE = -1.0, 1.0
# Action per metre and per radian: the controller aims at the goal itself (5 cm, 0.5 rad at 1). Far out that leaves the hand 2 cm beside it,
# and a phase that ends by patience there is one that a policy, which has no memory, never leaves. So the last centimetre counts twice.
_GAIN, _ROTATION_GAIN, _LAST = 20.0, 2.0, 0.01
_WIDEST_GRASP = 0.072  # m, between the open fingers
_HOVER, _CARRY = 0.10, 0.24  # m above the grasp; above the target while carrying
_FINGER_DEPTH = 0.03  # m, how far below the top of an object its sides are held
_RIM_DEPTH = 0.02  # m, the same for a rim
_LOWEST = 0.012  # m, the point between the fingertips above what the object stands on: the tips reach 1.1 cm further
_SAME_WIDTH = 0.004  # m
_ROOM, _AMPLE_ROOM = 0.003, 0.01  # m beside an open hand: enough; enough to have the rim in its middle
_INWARD = 0.015  # m, how far further in it stays otherwise
_ATTEMPTS = 2  # at a grasp, before another one is tried
_APART = 0.06  # m, between grasps on the rim that are tried one after the other
_NEAR, _PRECISE, _REACHED, _CLOSE_BY = 0.02, 0.008, 0.006, 0.05  # m
_BESIDE, _TALL = 0.012, 0.03  # m beside a grasp, where the fingers may close; above where the hand waits, from where it may go down
_BEYOND = 0.008  # m: it aims lower than it has to come
_ABOVE_TARGET = 0.012  # m beside it, where lowering begins
_LIFT, _CARRY_LIFT = 0.15, 0.12  # m above where the object stood: the hand after lifting, and while carrying
_RELEASE_HEIGHT, _RELEASED = 0.05, 0.01  # m above the target; above that, where the fingers open
_STEPS_TO_CLOSE, _STEPS_TO_OPEN, _STEPS_TO_LEAVE = 12, 6, 15
_PROGRESS, _STUCK_STEPS = 0.001, 6  # m; steps without it
_STRAIGHT, _UPRIGHT = 0.15, 0.3  # rad: where the hand may go down, and how far it turns while it does (grasps on a rim are 0.5 apart)
_OPEN_GAP, _THIN_GAP, _EMPTY_GAP = 0.075, 0.0125, 0.0025  # m between the fingers: open; around a rim; around nothing
# Closing around nothing: m between the fingers after each step, of which the first two hardly move.
_CLOSING = (0.0771, 0.0735, 0.0671, 0.0591, 0.0502, 0.0409, 0.0312, 0.0214, 0.0131, 0.0082, 0.0055, 0.0040)
_MAX_PHASE_STEPS = 60  # a phase that does not reach its target goes on anyhow
_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # the hand, pointing down, as every episode begins


@dataclass(frozen=True, eq=False)
class Grasp:
    """Where the fingertips close, relative to the object's body, and how the hand is turned."""

    offset: np.ndarray  # [3], m, in world axes
    yaw: float  # rad, from the initial orientation; the fingers close along the y axis turned by it
    room: float = np.inf  # m beside the open hand

    @property
    def has_room(self) -> bool:
        return self.room > _ROOM

    @property
    def beside(self) -> float:
        """m beside it, from where the hand may go down."""
        return float(np.clip(self.room / 2, _PRECISE, _NEAR))


def check_suite_with_expert(suite: str) -> None:
    """Raises ValueError where the suite has no expert."""
    if suite not in EXPERT_SUITES:
        raise ValueError(f"{suite} has no scripted expert; those with one: {', '.join(EXPERT_SUITES)}")


def make_expert(suite: str, robosuite: Any, start: Start) -> PickAndPlace:
    """The expert of a task of `suite`, whose robosuite environment began its episode with `start`.

    Raises:
        ValueError: the suite has none.
    """
    check_suite_with_expert(suite)
    return PickAndPlace(Scene(robosuite), start)


def plan_grasps(scene: Scene) -> list[Grasp]:
    """Ways to take the object, the most promising first."""
    points = scene.vertices(scene.object_name)
    low, high = points.min(axis=0), points.max(axis=0)
    centre = (low + high) / 2
    width, angle = narrowest_side(points[:, :2])
    if width <= _WIDEST_GRASP:
        height = max(high[2] - _FINGER_DEPTH, (low[2] + high[2]) / 2, low[2] + _LOWEST)
        height = min(height, high[2] - 0.004)
        offset = np.array([*centre[:2], height]) - scene.object
        yaws = [_turn(angle), _turn(angle + np.pi / 2)]
        lower = _raised(offset, -0.01)
        return [Grasp(offset, yaws[0]), Grasp(lower, yaws[0]), Grasp(offset, yaws[1])]
    return _rim_grasps(scene, centre, points)


def _rim_grasps(scene: Scene, centre: np.ndarray, points: np.ndarray) -> list[Grasp]:
    """Around the rim, those first that have room, by how little they turn the hand.

    Where a wall is close to the rim the hand stays further in, so that the rim is beside the outer finger and the wall beyond it: in a
    drawer almost every bowl can then be taken in one and the same way, which is easier to learn than one that depends on a few millimetres.
    """
    obstacles = scene.obstacles()
    top = points[:, 2].max()
    rim = points[points[:, 2] > top - 0.01]
    radius = float(np.median(np.linalg.norm(rim[:, :2] - centre[:2], axis=1)))
    found = []
    for angle in np.arange(0, 2 * np.pi, np.pi / 6):
        for inward in (0.0, _INWARD):
            point = np.array([*(centre[:2] + (radius - inward) * np.array([np.cos(angle), np.sin(angle)])), top - _RIM_DEPTH])
            room = room_for_hand(obstacles - point, angle)
            if room > _AMPLE_ROOM:
                break
        grasp = Grasp(point - scene.object, _turn(angle), room)
        found.append(((0.0, round(abs(grasp.yaw), 3)) if grasp.has_room else (1.0, -room), grasp))
    return _spread([grasp for _, grasp in sorted(found, key=lambda pair: pair[0])])


def room_for_hand(points: np.ndarray, angle: float) -> float:
    """m between an open hand whose fingers close along `angle` and the nearest of `points` [V, 3], seen from between its fingertips.

    Negative where one is in the way of the fingers, of the palm, or between the fingers, where it would be held with the object.
    """
    along = np.abs(points @ [np.cos(angle), np.sin(angle), 0.0])
    across = np.abs(points @ [-np.sin(angle), np.cos(angle), 0.0])
    height = points[:, 2]
    fingers = np.maximum(along - 0.056, across - 0.011)[(height > -0.011) & (height < 0.06)]
    palm = np.maximum(along - 0.102, across - 0.032)[(height >= 0.06) & (height < 0.18)]
    return float(min(fingers.min(initial=np.inf), palm.min(initial=np.inf)))


def _spread(grasps: list[Grasp]) -> list[Grasp]:
    """The same grasps, each next one the first of the list that is away from those tried last: what blocks one blocks its neighbours."""
    left, ordered = list(grasps), list[Grasp]()
    while left:
        recent = [grasp.offset[:2] for grasp in ordered[-2:]]
        apart = [grasp for grasp in left if all(np.linalg.norm(grasp.offset[:2] - other) > _APART for other in recent)]
        ordered.append((apart or left)[0])
        left.remove(ordered[-1])
    return ordered


def narrowest_side(points: np.ndarray) -> tuple[float, float]:
    """Width [m] of points [V, 2] along the direction in which it is smallest, and that direction's angle [rad].

    Of directions that differ by less than _SAME_WIDTH the one counts that needs the least turning: a can has no narrowest side.
    """
    turns = np.deg2rad(np.arange(-90, 90, 3))
    angles = turns + np.pi / 2
    widths = np.ptp(points @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    candidates = np.flatnonzero(widths < widths.min() + _SAME_WIDTH)
    best = candidates[np.argmin(np.abs(turns[candidates]))]
    return float(widths[best]), float(angles[best])


def _turn(angle: float) -> float:
    """The smallest turn of the hand [rad] after which its fingers close along `angle`; they close along y (pi / 2) without."""
    return float((angle - np.pi / 2 + np.pi / 2) % np.pi - np.pi / 2)


def _raised(point: np.ndarray, height: float) -> np.ndarray:
    """[3]: `height` [m] above `point`."""
    return np.add(point, (0.0, 0.0, height))


class PickAndPlace:
    """The phases above, one action at a time."""

    def __init__(self, scene: Scene, start: Start) -> None:
        self._scene = scene
        self._grasps = plan_grasps(scene)
        self._num_failed = 0  # attempts at the grasps, _ATTEMPTS at each
        self._start = start.bodies[scene.object_id]  # where the object stood
        self._travel_height = start.hand_height
        phase, steps = self._join()
        self._enter(phase)
        self._steps = steps

    def _join(self) -> tuple[str, int]:
        """Where the expert of the whole episode would be by now, and for how many steps; above at its start."""
        if self._holds():
            self._num_failed = _ATTEMPTS * min(range(len(self._grasps)), key=self._turn_left)  # the hand stays as it is turned
            return self._phase_of_holding(), 0
        scene = self._scene
        self._start = scene.object
        is_placed = np.linalg.norm((scene.object - scene.target)[:2]) < 3 * _NEAR and scene.object[2] < scene.target[2] + _RELEASE_HEIGHT
        if is_placed and self._error(scene.object) < 2 * _CLOSE_BY:
            return ("release" if scene.finger_gap < _OPEN_GAP else "leave"), 0
        for number, grasp in enumerate(self._grasps):
            if not grasp.has_room:
                continue
            goal = self._at_object(0, number)
            height, beside = scene.hand[2] - goal[2], np.linalg.norm((goal - scene.hand)[:2])
            if height > _HOVER - _NEAR:
                is_at_grasp = height < _HOVER + _TALL and beside < grasp.beside and self._turn_left(number) < _STRAIGHT
            else:
                is_at_grasp = beside < 2 * grasp.beside and self._turn_left(number) < _UPRIGHT
            if is_at_grasp:
                self._num_failed = _ATTEMPTS * number
                steps = self._closed_for(goal)
                return ("down", 0) if steps is None else ("close", steps)
        return "above", 0

    def _holds(self) -> bool:
        """The object is between the fingers, also where for a moment one of them does not touch it."""
        gap = self._scene.finger_gap
        if self._scene.is_grasped:
            return True
        by_robot, by_others = self._scene.touching()
        is_carried = by_robot and not by_others and gap < _OPEN_GAP
        return is_carried or (by_robot and _EMPTY_GAP < gap < _THIN_GAP)

    def _phase_of_holding(self) -> str:
        scene = self._scene
        beside = np.linalg.norm((scene.object - scene.target)[:2])
        if self._is_down_at(self._held_over_target(_RELEASE_HEIGHT), _RELEASED, _NEAR):
            return "release"
        if beside < _ABOVE_TARGET or (beside < 2 * _NEAR and scene.hand[2] < self._carry_height() - _NEAR):
            return "lower"
        is_at_its_place = np.linalg.norm((scene.object - self._start)[:2]) < _CLOSE_BY
        return "up" if scene.touching()[1] or (is_at_its_place and scene.hand[2] < self._lifted_height() - _NEAR) else "carry"

    def _closed_for(self, goal: np.ndarray) -> int | None:
        """Steps for which the fingers have been closing around the grasp at `goal`; None: it is not time."""
        gap = self._scene.finger_gap
        if self._error(goal) < 2 * _NEAR and _EMPTY_GAP < gap < _OPEN_GAP and self._scene.are_fingers_closing:
            return int(np.count_nonzero(gap < np.array(_CLOSING)))
        return 0 if self._is_down_at(goal, _REACHED, _BESIDE) else None

    @property
    def _grasp(self) -> Grasp:
        return self._grasps[self._number]

    @property
    def _number(self) -> int:
        """Of the grasp being tried."""
        return self._num_failed // _ATTEMPTS % len(self._grasps)

    def act(self) -> np.ndarray:
        """float32 [7], the next action."""
        if self._phase in ("carry", "lower") and self._is_empty():
            self._try_again()
        if self._phase == "down" and self._is_wrong_for_down():
            self._enter("above")
        goal, gripper, is_done = getattr(self, f"_{self._phase}")()
        self._note_progress(self._error(goal))
        orientation = Rotation.from_euler("z", self._grasp.yaw).as_matrix() @ _DOWN
        turn = Rotation.from_matrix(orientation @ self._scene.hand_orientation.T).as_rotvec()
        error = goal - self._scene.hand
        last = np.append(np.clip(error[:2], -_LAST, _LAST), 0.0)
        motion = np.concatenate([_GAIN * (error + last), _ROTATION_GAIN * turn])
        self._steps += 1
        if is_done or self._steps >= _MAX_PHASE_STEPS:
            self._advance()
        return np.append(np.clip(motion, -1, 1), gripper).astype(np.float32)

    def _advance(self) -> None:
        order = ("above", "down", "close", "up", "carry", "lower", "release", "leave")
        following = order[(order.index(self._phase) + 1) % len(order)]
        if self._phase == "up" and not self._is_held():
            self._try_again()
            return
        if following == "above":
            self._replan()
        self._enter(following)

    def _try_again(self) -> None:
        """The fingers have closed around nothing, or lost what they held."""
        self._num_failed += 1
        self._replan()
        self._enter("above")

    def _enter(self, phase: str) -> None:
        self._phase, self._steps = phase, 0
        self._entered_at = self._scene.hand
        self._best_error, self._best_step = np.inf, 0

    def _note_progress(self, error: float) -> None:
        if error < self._best_error - _PROGRESS:
            self._best_error, self._best_step = error, self._steps

    @property
    def _is_stuck(self) -> bool:
        """The hand comes no closer to its goal: it stands on something, or cannot reach further."""
        return self._steps - self._best_step >= _STUCK_STEPS

    def _replan(self) -> None:
        """The object may lie elsewhere now."""
        self._grasps, self._start = plan_grasps(self._scene), self._scene.object

    def _is_held(self) -> bool:
        return self._scene.object[2] > self._start[2] + 0.04

    def _at_object(self, height: float, number: int | None = None) -> np.ndarray:
        grasp = self._grasp if number is None else self._grasps[number]
        return _raised(self._scene.object + grasp.offset, height)

    def _error(self, goal: np.ndarray) -> float:
        return float(np.linalg.norm(goal - self._scene.hand))

    def _above(self) -> tuple[np.ndarray, float, bool]:
        goal = self._at_object(_HOVER)
        if self._is_stretched_too_far():
            return _raised(self._scene.hand, _HOVER), _OPEN, False  # straight up the elbow comes back
        if np.linalg.norm((goal - self._scene.hand)[:2]) > _CLOSE_BY:
            goal[2] = max(goal[2], self._travel_height)  # over whatever stands in between
        return goal, _OPEN, self._is_down_at(goal, _TALL, self._grasp.beside) and self._turn_left(self._number) < _STRAIGHT

    def _turn_left(self, number: int) -> float:
        """rad by which the hand has to turn for a grasp."""
        orientation = Rotation.from_euler("z", self._grasps[number].yaw).as_matrix() @ _DOWN
        return float(Rotation.from_matrix(orientation @ self._scene.hand_orientation.T).magnitude())

    def _down(self) -> tuple[np.ndarray, float, bool]:
        goal = self._at_object(0)
        # One that is stuck beside it swings, and comes nearer by and by.
        is_blocked = self._is_stuck and (self._error(goal) < 2 * _REACHED or self._scene.is_robot_touching)
        return _raised(goal, -_BEYOND), _OPEN, self._is_down_at(goal, _REACHED, _BESIDE) or is_blocked

    def _is_wrong_for_down(self) -> bool:
        """The hand is so far beside the grasp that a wall would stop it, or it will not come there with such an arm."""
        beside = np.linalg.norm((self._at_object(0) - self._scene.hand)[:2])
        return bool(beside > 2 * self._grasp.beside) or self._is_stretched_too_far()

    def _is_stretched_too_far(self) -> bool:
        return self._scene.is_stretched_through and self._scene.is_within_easy_reach(self._at_object(_HOVER))

    def _is_down_at(self, goal: np.ndarray, above: float, beside: float) -> bool:
        """No more than that [m] above `goal` and beside it."""
        x, y, z = goal - self._scene.hand
        return bool(z > -above and np.hypot(x, y) < beside)

    def _close(self) -> tuple[np.ndarray, float, bool]:
        return self._entered_at, _CLOSE, self._steps >= _STEPS_TO_CLOSE

    def _up(self) -> tuple[np.ndarray, float, bool]:
        hand, top = self._scene.hand, self._lifted_height()
        return np.array([*hand[:2], top]), _CLOSE, self._is_empty() or bool(hand[2] > top - _NEAR)

    def _is_empty(self) -> bool:
        return self._scene.finger_gap < _EMPTY_GAP and not self._scene.touching()[0]

    def _lifted_height(self) -> float:
        return max(self._start[2] + _LIFT, self._scene.target[2] + _CARRY)

    def _carry_height(self) -> float:
        return max(self._start[2] + _CARRY_LIFT, self._scene.target[2] + _CARRY)

    def _held_over_target(self, height: float) -> np.ndarray:
        """The hand's place when the object is `height` above the target."""
        return _raised(self._scene.target + self._scene.hand - self._scene.object, height)

    def _carry(self) -> tuple[np.ndarray, float, bool]:
        goal = self._held_over_target(0)
        goal[2] = self._carry_height()
        beside = float(np.linalg.norm((goal - self._scene.hand)[:2]))
        is_done = beside < _ABOVE_TARGET or (beside < _NEAR and self._is_stuck)  # at the end of its reach it stays a little beside
        return goal, _CLOSE, is_done

    def _lower(self) -> tuple[np.ndarray, float, bool]:
        goal = self._held_over_target(_RELEASE_HEIGHT)
        is_done = self._is_down_at(goal, _RELEASED, _NEAR) or (self._error(goal) < 2 * _NEAR and self._is_stuck)
        return _raised(goal, -2 * _BEYOND), _CLOSE, is_done

    def _release(self) -> tuple[np.ndarray, float, bool]:
        return self._entered_at, _OPEN, self._steps >= _STEPS_TO_OPEN

    def _leave(self) -> tuple[np.ndarray, float, bool]:
        return _raised(self._entered_at, 0.1), _OPEN, self._steps >= _STEPS_TO_LEAVE
