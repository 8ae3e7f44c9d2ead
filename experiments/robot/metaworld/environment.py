"""MetaWorld tasks behind the Environment and Expert protocols. Letters: S image side.

Action [4]: hand displacement in [-1, 1] (1 = 1 cm) and gripper effort; proprio [4]: hand position [m] and gripper opening.
Cameras: `primary` looks at the robot and down on the table from the front, `wrist` rides behind the
fingers. Goal markers are never drawn, since
they would give the answer away.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from experiments.robot.metaworld.tasks import MetaWorldTask, get_metaworld_task
from experiments.robot.simulators.episodes import NO_END, EpisodeSpec
from experiments.robot.simulators.interfaces import Environment
from experiments.robot.simulators.perturbations import Perturbation, direction, size_of
from experiments.robot.simulators.rendering import CameraPose, OffscreenRenderer, configure_rendering, place_camera
from experiments.robot.simulators.scene_look import SceneLook
from prismatic.vla.cameras import ONE_ARM
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.types import Observation

if TYPE_CHECKING:
    import mujoco

VIDEO_SIZE = 256
CAMERAS = ONE_ARM

# The primary camera: what it looks at [m], from how far [m], from where [degrees].
_PRIMARY_LOOKAT, _PRIMARY_DISTANCE, _PRIMARY_AZIMUTH, _PRIMARY_ELEVATION = (0.0, 0.68, 0.08), 1.0, 270.0, -58.0
# The wrist camera in the frame of the hand turned to the world's axes (x right, y forward, z up).
_WRIST_POSE = CameraPose(position=(0.0, -0.12, 0.02), lookat=(0.0, 0.03, -0.15), fov=75.0)
# The mocap body holds the hand at this orientation in every MetaWorld task.
_HAND_QUATERNION = np.array([1.0, 0.0, 1.0, 0.0]) / np.sqrt(2)
_OPEN_HAND = np.array([0.0, 0.0, 0.0, -1.0])  # the gripper effort of MetaWorld's reset
# Meshes of the robot that no camera here shows, or only at the edge of the picture. Drawing them costs more than all
# the rest together (68,000 triangles), so fast rendering leaves them out.
_UNSEEN_MESHES = frozenset({"pedestal", "base", "head", "l0", "l1", "l2", "l3"})
_ARM_MESHES = frozenset({"l4", "l5", "l6", "eGripperBase"})  # behind the wrist camera
_UNSEEN_GROUP, _ARM_GROUP = 5, 3


@dataclass(frozen=True)
class MetaWorldSimulator:
    """The MetaWorld benchmark as a Simulator."""

    name: ClassVar[str] = "MetaWorld"
    scene_axes: ClassVar[tuple[str, ...]] = ("camera", "robot", "light")  # its scenes hold nothing that a task is not about

    image_size: int = 64  # S, pixels, rendered at this size
    fast_rendering: bool = True  # no anti-aliasing, shadows or reflections; must be the same for demonstrations and evaluation
    max_steps: int | None = None  # of an episode; None: the task's

    has_reactive_expert = True

    def make_environment(self, task: str) -> MetaWorldEnvironment:
        found = get_metaworld_task(task)
        if self.max_steps is not None:
            found = replace(found, max_steps=self.max_steps)
        return MetaWorldEnvironment(found, self.image_size, self.fast_rendering)

    def make_expert(self, environment: Environment) -> MetaWorldExpert:
        assert isinstance(environment, MetaWorldEnvironment)
        return MetaWorldExpert(environment)

    def check_expert(self) -> None:
        """Every task has one."""

    def instruction(self, task: str) -> str:
        return get_metaworld_task(task).instruction


class MetaWorldEnvironment:
    """One MetaWorld task; nothing is rendered before the first `observe` or `render`."""

    control_hz = 80.0  # 5 physics steps of 2.5 ms
    platform = ROBOT_PLATFORMS["METAWORLD"]

    def __init__(self, task: MetaWorldTask, image_size: int, fast_rendering: bool) -> None:
        configure_rendering()
        import mujoco
        from metaworld.env_dict import ENV_CLS_MAP

        self.task, self.instruction, self.max_steps = task, task.instruction, task.max_steps
        self.image_size, self.fast_rendering = image_size, fast_rendering
        self._mujoco = mujoco
        self._env: Any = ENV_CLS_MAP[f"{task.base_name}-v3"]()
        self._env.max_path_length = NO_END  # MetaWorld's own, which raises
        self._renderer: OffscreenRenderer | None = None
        self._cameras, self._options = self._make_cameras()
        self._look = SceneLook(self._env.model, self._cameras["primary"], _PRIMARY_DISTANCE)
        self._hand_start = np.array(self._env.hand_init_pos, np.float64)
        self._velocity = 0.0  # [m/s] along x, of the task's moving body
        self.state = np.zeros(39)  # MetaWorld's privileged state: hand, gripper, objects, the same one step before, goal
        _prepare_task(self._env, task)

    def _make_cameras(self) -> tuple[dict[str, mujoco.MjvCamera], dict[str, mujoco.MjvOption]]:
        """Cameras and drawing options by slot name, and "video" for people; moves the model's gripper camera to where ours is."""
        mj, model = self._mujoco, self._env.model
        primary = mj.MjvCamera()
        primary.type = mj.mjtCamera.mjCAMERA_FREE
        primary.lookat[:] = _PRIMARY_LOOKAT
        primary.distance, primary.azimuth, primary.elevation = _PRIMARY_DISTANCE, _PRIMARY_AZIMUTH, _PRIMARY_ELEVATION
        wrist = mj.MjvCamera()
        wrist.type, wrist.fixedcamid = mj.mjtCamera.mjCAMERA_FIXED, model.camera("gripperPOV").id
        hand = np.zeros(9)
        mj.mju_quat2Mat(hand, _HAND_QUATERNION)
        place_camera(model, wrist.fixedcamid, _WRIST_POSE, body_axes=hand.reshape(3, 3))
        options = {}
        for slot in ("primary", "wrist", "video"):
            options[slot] = mj.MjvOption()
            options[slot].sitegroup[:] = 0  # goal markers
            options[slot].geomgroup[_ARM_GROUP] = slot != "wrist" or not self.fast_rendering
            options[slot].geomgroup[_UNSEEN_GROUP] = slot == "video" or not self.fast_rendering
        for geom in range(model.ngeom):
            mesh = model.mesh(model.geom_dataid[geom]).name if model.geom_type[geom] == mj.mjtGeom.mjGEOM_MESH else ""
            if mesh in _UNSEEN_MESHES | _ARM_MESHES:
                model.geom_group[geom] = _UNSEEN_GROUP if mesh in _UNSEEN_MESHES else _ARM_GROUP
            elif model.geom_group[geom] in (_UNSEEN_GROUP, _ARM_GROUP):
                model.geom_group[geom] = 4  # collision shapes, never drawn
        return {"primary": primary, "wrist": wrist, "video": primary}, options

    def reset(self, episode: EpisodeSpec, changes: tuple[Perturbation, ...] = ()) -> None:
        """Draws object positions from the episode's generator and moves the hand to its start.

        MetaWorld's reset computes some quantities before it moves the objects, so a single call would use positions of
        the episode before. The first pass moves the objects (without simulating), the second one starts from there.
        """
        env = self._env
        self._look.apply(episode, changes)
        env.hand_init_pos = self._hand_start.copy()
        if robot := size_of(changes, "robot"):  # the arm follows the hand
            env.hand_init_pos += robot.hand_shift * direction(robot.rng(episode), 3)
        env.np_random, env.seeded_rand_vec, env._freeze_rand_vec = episode.rng(), True, False
        simulate, env.do_simulation = env.do_simulation, lambda *_: None
        try:
            self._reset_model()
        finally:
            env.do_simulation = simulate
        env._freeze_rand_vec = True
        self._reset_model()
        self._mujoco.mj_forward(env.model, env.data)
        self._velocity = self.task.speed * episode.rng("motion").choice((-1, 1))
        env.curr_path_length = 0
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self.state = env._get_obs()

    def _reset_model(self) -> None:
        self._mujoco.mj_resetData(self._env.model, self._env.data)
        self._mujoco.mj_forward(self._env.model, self._env.data)
        self._env.reset_model()

    def proprio(self) -> np.ndarray:
        return self.state[:4].astype(np.float32)

    def position(self) -> np.ndarray:
        return _OPEN_HAND

    def observe(self) -> Observation:
        images = {slot: self._picture(slot, self.image_size) for slot in CAMERAS}
        return Observation(images=images, instruction=self.instruction, proprio=self.proprio())

    def step(self, action: np.ndarray) -> bool:
        if self.task.moving_body:
            self._slide()
        state, _, _, _, info = self._env.step(np.clip(action, -1, 1).astype(np.float32))
        self.state = state
        return bool(info["success"])

    def _slide(self) -> None:
        """Moves the task's body on by one control step; it turns round at the ends of its range."""
        low, high = self.task.travel
        position = self._env.model.body(self.task.moving_body).pos  # a view
        if not low < position[0] + self._velocity / self.control_hz < high:
            self._velocity = -self._velocity
        position[0] += self._velocity / self.control_hz

    def render(self, size: int = VIDEO_SIZE) -> np.ndarray:
        return self._picture("video", size)

    def _picture(self, slot: str, size: int) -> np.ndarray:
        if self._renderer is None:
            self._renderer = OffscreenRenderer(self._env.model, max(VIDEO_SIZE, self.image_size), self.fast_rendering)
        return self._renderer.render(self._env.data, self._cameras[slot], self._options[slot], size)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _prepare_task(env: Any, task: MetaWorldTask) -> None:
    """Shows the expert the goal and sets the range of object positions (MetaWorld does both through pickled tasks)."""
    env._set_task_called, env._partially_observable = True, False
    env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal hidden
    if task.reset_low is None or task.reset_high is None:
        return
    from gymnasium.spaces import Box

    low, high = (np.asarray(bound, np.float64) for bound in (task.reset_low, task.reset_high))
    expected = env._random_reset_space.shape
    if low.shape != expected or high.shape != expected:
        raise ValueError(f"task {task.name}: reset range has shapes {low.shape} and {high.shape}, MetaWorld expects {expected}")
    env._random_reset_space = Box(low, high, dtype=np.float64)


class MetaWorldExpert:
    """MetaWorld's scripted policy of the task, its actions clipped to what the environment executes."""

    def __init__(self, environment: MetaWorldEnvironment) -> None:
        import metaworld.policies

        self._environment = environment
        self._policy = getattr(metaworld.policies, environment.task.expert_class)()

    def act(self) -> np.ndarray:
        """float32 [4] in [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": the clip below is what MetaWorld does, too
            action = self._policy.get_action(self._environment.state)
        return np.clip(action, -1, 1).astype(np.float32)
