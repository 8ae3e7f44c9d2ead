"""gym-aloha's bimanual tasks behind the Environment and Expert protocols. Letters: S image side.

Action and proprio [14]: per arm (left, right) six absolute joint angles [rad] and the gripper, 0 closed to 1 open, at 25 Hz.
Cameras: `primary` looks down on the table (ALOHA's cam_high), `left_wrist` and `right_wrist` ride on the grippers. The physics, the
objects, their random starts and what counts as success are gym-aloha's; its own environment runs at 50 Hz and draws three large
pictures at every step, which is why its tasks are driven directly here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from experiments.robot.aloha.experts import AlohaExpert
from experiments.robot.aloha.tasks import CONTROL_HZ, AlohaTask, get_aloha_task
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Environment
from experiments.robot.simulators.perturbations import Perturbation, direction, size_of
from experiments.robot.simulators.rendering import CameraPose, OffscreenRenderer, configure_rendering, place_camera
from experiments.robot.simulators.scene_look import SceneLook
from prismatic.vla.cameras import TWO_ARMS
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.types import Observation

if TYPE_CHECKING:
    import mujoco

logger = logging.getLogger(__name__)

VIDEO_SIZE = 256
CAMERAS = TWO_ARMS
_CHECKS_PER_STEP = 2  # of success: at 50 Hz, as gym-aloha does
_SOLVED = 4  # gym-aloha's highest reward

# Slot -> camera of gym-aloha's scene. Its own wrist cameras show mostly the other arm's base, so they are moved.
_SCENE_CAMERAS = {"primary": "top", "left_wrist": "left_wrist", "right_wrist": "right_wrist", "video": "angle"}
_TOP_DISTANCE = 0.8  # [m] from the top camera to the table
_JOINTS_OF_ARM, _ARM_JOINTS = 6, (slice(0, 6), slice(8, 14))  # of the positions and of the commands; the others are fingers
# The wrist cameras in the frame of gripper_link (x to the finger tips, z up), and the nearest distance that is drawn [m].
_WRIST_POSE, _NEAREST = CameraPose(position=(0.05, 0.0, 0.13), lookat=(0.15, 0.0, 0.0), fov=75.0), 0.01


@dataclass(frozen=True)
class AlohaSimulator:
    """gym-aloha as a Simulator."""

    name: ClassVar[str] = "gym-aloha"
    scene_axes: ClassVar[tuple[str, ...]] = ("camera", "robot", "light")  # its scenes hold nothing that a task is not about

    image_size: int = 256  # S, pixels, rendered at this size
    fast_rendering: bool = True  # no anti-aliasing, shadows or reflections; must be the same for demonstrations and evaluation

    has_reactive_expert = False  # they follow a plan that they make at the start

    def make_environment(self, task: str) -> AlohaEnvironment:
        return AlohaEnvironment(get_aloha_task(task), self.image_size, self.fast_rendering)

    def make_expert(self, environment: Environment) -> AlohaExpert:
        assert isinstance(environment, AlohaEnvironment)
        return AlohaExpert(environment.task.name, environment.physics, environment.proprio())

    def check_expert(self) -> None:
        """Every task has one."""

    def instruction(self, task: str) -> str:
        return get_aloha_task(task).instruction


class AlohaEnvironment:
    """One task; nothing is rendered before the first `observe` or `render`."""

    control_hz = CONTROL_HZ
    platform = ROBOT_PLATFORMS["ALOHA"]

    def __init__(self, task: AlohaTask, image_size: int, fast_rendering: bool) -> None:
        configure_rendering()
        try:
            import mujoco
            from dm_control import mujoco as dm_mujoco
            from dm_control.rl.control import PhysicsError
            from gym_aloha.constants import ASSETS_DIR
            from gym_aloha.tasks import sim
        except ModuleNotFoundError as error:
            raise ValueError(f"the package {error.name} is missing; pip install 'openvla-oft-robot[aloha]'") from error
        self.task, self.instruction, self.max_steps = task, task.instruction, task.max_steps
        self.image_size, self.fast_rendering = image_size, fast_rendering
        self.physics: Any = dm_mujoco.Physics.from_xml_path(str(ASSETS_DIR / f"bimanual_viperx_{task.name}.xml"))
        self._mujoco, self._sim, self._physics_error = mujoco, sim, PhysicsError
        self._is_unstable = False  # until the next reset
        self._rules: Any = {"transfer_cube": sim.TransferCubeTask, "insertion": sim.InsertionTask}[task.name]()
        self._substeps = round(1 / CONTROL_HZ / self.physics.timestep() / _CHECKS_PER_STEP)
        self._renderer: OffscreenRenderer | None = None
        self._cameras = {slot: self._camera(name) for slot, name in _SCENE_CAMERAS.items()}
        self._option = mujoco.MjvOption()
        self._look = SceneLook(self.physics.model.ptr, self._cameras["primary"], _TOP_DISTANCE)

    def _camera(self, name: str) -> mujoco.MjvCamera:
        mj, model = self._mujoco, self.physics.model.ptr
        camera = mj.MjvCamera()
        camera.type, camera.fixedcamid = mj.mjtCamera.mjCAMERA_FIXED, model.camera(name).id
        if name.endswith("wrist"):
            place_camera(model, camera.fixedcamid, _WRIST_POSE)
        return camera

    def reset(self, episode: EpisodeSpec, changes: tuple[Perturbation, ...] = ()) -> None:
        """Both arms at ALOHA's start, the objects where gym-aloha's own sampling puts them for this episode's seed."""
        from gym_aloha.utils import sample_box_pose, sample_insertion_pose

        seed = int(episode.rng().integers(2**31))
        pose = sample_box_pose(seed) if self.task.name == "transfer_cube" else np.concatenate(sample_insertion_pose(seed))
        self._sim.BOX_POSE[0] = pose
        self._is_unstable = False
        self._look.apply(episode, changes)
        self._rules.initialize_episode(self.physics)
        if robot := size_of(changes, "robot"):
            rng = robot.rng(episode)
            for joints in _ARM_JOINTS:
                shift = robot.joint_shift * direction(rng, _JOINTS_OF_ARM)
                self.physics.data.qpos[joints] += shift
                self.physics.data.ctrl[joints] += shift
            self.physics.forward()

    def proprio(self) -> np.ndarray:
        return self._rules.get_qpos(self.physics).astype(np.float32)

    def position(self) -> np.ndarray:
        return self.proprio().astype(np.float64)

    def observe(self) -> Observation:
        images = {slot: self._picture(slot, self.image_size) for slot in CAMERAS}
        return Observation(images=images, instruction=self.instruction, proprio=self.proprio())

    def step(self, action: np.ndarray) -> bool:
        self._rules.before_step(np.asarray(action, np.float64), self.physics)
        if self._is_unstable:
            return False
        for _ in range(_CHECKS_PER_STEP):
            try:
                self.physics.step(self._substeps)
            except self._physics_error as error:
                logger.warning("%s: the episode has failed, since its physics became unstable: %s", self.task.name, error)
                self._is_unstable = True
                return False
            if self._rules.get_reward(self.physics) == _SOLVED:
                return True
        return False

    def render(self, size: int = VIDEO_SIZE) -> np.ndarray:
        return self._picture("video", size)

    def _picture(self, slot: str, size: int) -> np.ndarray:
        model = self.physics.model.ptr
        if self._renderer is None:
            model.vis.map.znear = _NEAREST / model.stat.extent
            self._renderer = OffscreenRenderer(model, max(VIDEO_SIZE, self.image_size), self.fast_rendering)
        return self._renderer.render(self.physics.data.ptr, self._cameras[slot], self._option, size)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
