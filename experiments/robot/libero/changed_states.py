"""Initial states of LIBERO with the robot or the objects that a task is not about displaced.

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
    """float64 [D]: `state` with the `changes` of the axes robot and distractor."""
    state = state.copy()
    if robot := size_of(changes, "robot"):
        joints = 1 + np.asarray(robosuite.robots[0]._ref_joint_pos_indexes)  # the time comes first
        state[joints] += robot.joint_shift * direction(robot.rng(episode), len(joints))
    if distractor := size_of(changes, "distractor"):
        _displace(robosuite, state, distractor, distractor.rng(episode))
    return state


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
