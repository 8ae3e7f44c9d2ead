"""What LIBERO's scripted experts know of a scene: poses, contacts and surfaces, read from the simulator. Letters: V vertices, B bodies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# The Panda's upper arm is 0.316 m long, its forearm 0.384 m, both offset by 0.0825 m: from shoulder to wrist it is longest, 0.719 m, with
# the fourth joint at -atan(0.0825 / 0.316) - atan(0.0825 / 0.384) = -0.467 rad. Beyond that the elbow bends the other way, up to -0.07 rad,
# and the hand comes to rest beside where it is sent.
_STRETCHED, _EASY_REACH = -0.55, 0.68  # rad; m
_WRIST_ABOVE, _WRIST_BEHIND = 0.204, 0.088  # m, from between the fingertips of a hand that points down
_CLOSING_SPEED = 0.01  # m/s, less than that of fingers which are told to close and find nothing yet


@dataclass(frozen=True, eq=False)
class Start:
    """What an episode began with, for experts that join it later."""

    bodies: np.ndarray  # [B, 3], m
    hand_height: float  # m


def start_of(robosuite: Any) -> Start:
    """Of a robosuite environment that has just been reset."""
    return Start(np.array(robosuite.sim.data.body_xpos), float(robosuite.sim.data.site_xpos[robosuite.robots[0].eef_site_id][2]))


class Scene:
    """Privileged state: where the hand, the object and the target are."""

    def __init__(self, robosuite: Any) -> None:
        self._env = robosuite
        (goal,) = robosuite.parsed_problem["goal_state"]
        _, self.object_name, self.target_name = goal

    @property
    def hand(self) -> np.ndarray:
        """[3], m: the point between the fingertips."""
        return np.array(self._env.sim.data.site_xpos[self._env.robots[0].eef_site_id])

    @property
    def hand_orientation(self) -> np.ndarray:
        """[3, 3]."""
        return np.array(self._env.sim.data.site_xmat[self._env.robots[0].eef_site_id]).reshape(3, 3)

    @property
    def is_stretched_through(self) -> bool:
        """The arm is stretched as far as it goes, or its elbow bends the other way already."""
        return bool(self._env.sim.data.qpos[self._env.robots[0]._ref_joint_pos_indexes[3]] > _STRETCHED)

    def is_within_easy_reach(self, point: np.ndarray) -> bool:
        """The fingertips of a hand that points down come to `point` [3] without stretching the arm."""
        shoulder = np.array(self._env.sim.data.body_xpos[self._env.sim.model.body_name2id("robot0_link2")])
        across, up = float(np.linalg.norm((point - shoulder)[:2])) - _WRIST_BEHIND, point[2] + _WRIST_ABOVE - shoulder[2]
        return bool(np.hypot(across, up) < _EASY_REACH)

    @property
    def is_grasped(self) -> bool:
        """Both fingers touch the object."""
        return bool(self._env._check_grasp(gripper=self._env.robots[0].gripper, object_geoms=self._env.objects_dict[self.object_name]))

    @property
    def finger_gap(self) -> float:
        """m between the fingers."""
        left, right = self._env.sim.data.qpos[self._env.robots[0]._ref_gripper_joint_pos_indexes]
        return float(left - right)

    @property
    def are_fingers_closing(self) -> bool:
        left, right = self._env.sim.data.qvel[self._env.robots[0]._ref_gripper_joint_vel_indexes]
        return bool(left - right < -_CLOSING_SPEED)

    @property
    def is_robot_touching(self) -> bool:
        """Whether any part of the robot touches anything else."""
        model, data = self._env.sim.model._model, self._env.sim.data._data
        bodies = model.geom_bodyid[data.contact.geom[: data.ncon]]
        return any(_is_robot(model, int(one)) != _is_robot(model, int(two)) for one, two in bodies)

    def touching(self) -> tuple[bool, bool]:
        """Whether the robot touches the object, and whether anything else does."""
        model, data = self._env.sim.model._model, self._env.sim.data._data
        own = set(self._bodies(self.object_name))
        bodies = model.geom_bodyid[data.contact.geom[: data.ncon]]
        others = {int(two if one in own else one) for one, two in bodies if (one in own) != (two in own)}
        by_robot = {body for body in others if _is_robot(model, body)}
        return bool(by_robot), others != by_robot

    @property
    def object(self) -> np.ndarray:
        """[3], m."""
        return self.position(self.object_name)

    @property
    def object_id(self) -> int:
        """Of its body."""
        return int(self._env.obj_body_id[self.object_name])

    @property
    def target(self) -> np.ndarray:
        """[3], m."""
        sim = self._env.sim
        if self.target_name in self._env.object_sites_dict:
            return np.array(sim.data.site_xpos[sim.model.site_name2id(self.target_name)])
        return self.position(self.target_name)

    def position(self, name: str) -> np.ndarray:
        """[3], m: the body of an object."""
        return np.array(self._env.sim.data.body_xpos[self._env.obj_body_id[name]])

    def vertices(self, name: str) -> np.ndarray:
        """[V, 3], m: the surface of an object in the world."""
        model, data = self._env.sim.model._model, self._env.sim.data._data
        points = []
        for geom in np.flatnonzero(np.isin(model.geom_bodyid, self._bodies(name))):
            mesh = model.geom_dataid[geom]
            if mesh >= 0:
                first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
                local = model.mesh_vert[first : first + count]
                points.append(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
        return np.concatenate(points)

    def _bodies(self, name: str) -> list[int]:
        """The bodies of an object."""
        model = self._env.sim.model._model
        bodies = {self._env.obj_body_id[name]}
        for body in range(model.nbody):  # parents come before children
            if model.body_parentid[body] in bodies:
                bodies.add(body)
        return sorted(bodies)

    def obstacles(self) -> np.ndarray:
        """[V, 3], m: points on everything around the object that a finger can hit."""
        model, data = self._env.sim.model._model, self._env.sim.data._data
        robot = [body for body in range(model.nbody) if _is_robot(model, body)]
        own = [body for body in range(model.nbody) if model.body(body).name.startswith(self.object_name)]
        solid = (model.geom_contype > 0) & ~np.isin(model.geom_bodyid, robot + own)
        near = np.linalg.norm(data.geom_xpos - self.object, axis=1) < model.geom_rbound + 0.15
        points = [_surface(model, data, int(geom)) for geom in np.flatnonzero(solid & near & (model.geom_rbound > 0))]
        return np.concatenate([*points, np.zeros((0, 3))])


def _is_robot(model: Any, body: int) -> bool:
    return model.body(body).name.startswith(("robot0", "gripper0"))


def _surface(model: Any, data: Any, geom: int) -> np.ndarray:
    """[V, 3], m: points about 1 cm apart on the sides of a box, or of the box around another shape."""
    half = model.geom_aabb[geom, 3:]
    axes = [np.linspace(-size, size, int(np.clip(size / 0.005, 2, 60))) for size in half]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    outside = grid[(np.abs(grid) >= half - 1e-9).any(axis=1)] + model.geom_aabb[geom, :3]
    return outside @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
