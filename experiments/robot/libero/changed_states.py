"""LIBERO's scenes at the start of an episode with the robot, or the objects that a task is not about, displaced.

Objects are displaced in the initial state, before they settle. The arm is displaced after that: while objects settle its controller
would bring it back (of 0.1, 0.2, 0.4 rad there were 0.07, 0.14, 0.30 left when the policy first looked).

Letters: D numbers in a simulator state (time, positions, velocities), O objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.perturbations import Perturbation, direction, size_of

_NEAR = 0.08  # [m] an object so near to one that the task is about may carry it, and stays
_CLEARANCE = 0.10  # [m] between the middles of displaced objects and of all others, where there is such a place
_NUM_TRIES = 24


def change_state(robosuite: Any, state: np.ndarray, episode: EpisodeSpec, changes: Sequence[Perturbation]) -> np.ndarray:
    """float64 [D]: `state` with the `changes` of the axis distractor."""
    state = state.copy()
    if distractor := size_of(changes, "distractor"):
        _displace(robosuite, state, distractor, distractor.rng(episode))
    return state


def displace_robot(robosuite: Any, change: Perturbation, rng: np.random.Generator) -> None:
    """Puts the arm where it stands displaced, at rest and held there, touching nothing that it did not touch before.

    The direction is the first of some draws in which it touches nothing; without one, the first.
    """
    robot, data = robosuite.robots[0], robosuite.sim.data
    joints, touched = list(robot._ref_joint_pos_indexes), _touched_by_robot(robosuite)
    start, tries = np.array(data.qpos[joints]), [direction(rng, len(joints)) for _ in range(_NUM_TRIES)]
    for way in (*tries, tries[0]):
        data.qpos[joints] = start + change.joint_shift * way
        robosuite.sim.forward()
        if _touched_by_robot(robosuite) <= touched:
            break
    data.qvel[list(robot._ref_joint_vel_indexes)] = 0
    robot.controller.update(force=True)
    robot.controller.reset_goal()


def _touched_by_robot(robosuite: Any) -> set[tuple[int, int]]:
    """Pairs of geoms in contact, one of them at least the robot's."""
    model, data = robosuite.sim.model._model, robosuite.sim.data._data
    root = model.body_rootid[model.body(robosuite.robots[0].robot_model.root_body).id]
    pairs = {(int(a), int(b)) for a, b in data.contact.geom[: data.ncon]}
    return {pair for pair in pairs if root in model.body_rootid[model.geom_bodyid[list(pair)]]}


def _displace(robosuite: Any, state: np.ndarray, change: Perturbation, rng: np.random.Generator) -> None:
    """Moves each object that the task is not about on its support, to the roomiest of some places at the wanted distance."""
    addresses = {name: 1 + robosuite.sim.model.get_joint_qpos_addr(item.joints[0])[0] for name, item in robosuite.objects_dict.items()}
    wanted = set(robosuite.obj_of_interest)
    for name in sorted(addresses.keys() - wanted):
        place = state[addresses[name] : addresses[name] + 2].copy()
        others = {other: state[at : at + 2] for other, at in addresses.items() if other != name}
        if any(np.linalg.norm(at - place) < _NEAR for other, at in others.items() if other in wanted):
            continue
        tries = [place + change.size / 100 * direction(rng, 2) for _ in range(_NUM_TRIES)]
        room = [min((float(np.linalg.norm(at - there)) for at in others.values()), default=np.inf) for there in tries]
        fits = [number for number, space in enumerate(room) if space >= _CLEARANCE]
        state[addresses[name] : addresses[name] + 2] = tries[fits[0] if fits else int(np.argmax(room))]
