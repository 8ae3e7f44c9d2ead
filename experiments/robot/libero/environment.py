"""LIBERO tasks behind the Environment protocol. Letters: S image side, H chunk, A action dim.

Action [7]: end-effector motion in [-1, 1] (1 = 5 cm, 0.5 rad), gripper -1 open, +1 close; proprio [8]: end-effector position [m],
its axis-angle [rad], two finger positions [m].

What the policy sees is what LIBERO's own OffScreenRenderEnv returns, to the bit (tests/smoke/test_libero.py), for a fraction of the
work: robosuite senses at one physics step within each control step, a little before its end. That moment is kept as a snapshot, a few
small arrays, and drawn only if the policy is asked. Images are rotated by 180 degrees, as published; since the raw ones are upside
down, policies see a mirror image. The environment is built once per task and reset without loading its model again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from experiments.robot.libero.changed_states import change_state, displace_robot
from experiments.robot.libero.physics import SharedPhysics
from experiments.robot.libero.replay import NO_OP, axis_angle
from experiments.robot.libero.scene import start_of
from experiments.robot.libero.tasks import MAX_STEPS, LiberoTask, load_initial_states, original_suite, prepare_libero
from experiments.robot.simulators.episodes import NO_END, EpisodeSpec
from experiments.robot.simulators.interfaces import Environment, Expert
from experiments.robot.simulators.perturbations import SCENE_AXES, Perturbation, size_of
from experiments.robot.simulators.rendering import OffscreenRenderer, configure_rendering
from experiments.robot.simulators.scene_look import SceneLook
from prismatic.vla.constants import ROBOT_PLATFORMS, near_names
from prismatic.vla.types import Observation

if TYPE_CHECKING:
    import mujoco

VIDEO_SIZE = 256
_AGENTVIEW_DISTANCE = 1.1  # [m] from the primary camera to the middle of the table
CAMERAS = {"primary": "agentview", "wrist": "robot0_eye_in_hand"}

# What drawing and proprio read of mujoco.MjData.
_SENSED = (
    *("qpos", "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)


@dataclass(frozen=True)
class LiberoSimulator:
    """One suite of the LIBERO benchmark as a Simulator."""

    name: ClassVar[str] = "LIBERO"
    scene_axes: ClassVar[tuple[str, ...]] = SCENE_AXES

    suite: str
    tasks: tuple[LiberoTask, ...]
    image_size: int = 256  # S, pixels
    fast_rendering: bool = False  # no anti-aliasing, shadows or reflections; the same for demonstrations and evaluation
    num_steps_wait: int = 10  # no-op steps first, while objects fall onto the table
    initial_states_path: Path | None = None  # metainfo.json; None: the benchmark's 50 fixed states
    max_steps: int | None = None  # None: as published for the suite
    allow_newer_mujoco: bool = False

    def task(self, name: str) -> LiberoTask:
        by_name = {task.name: task for task in self.tasks}
        if name not in by_name:
            raise ValueError(f"suite {self.suite} has no task {name!r}; {near_names(name, by_name)}")
        return by_name[name]

    has_reactive_expert = False  # they go through phases

    def make_environment(self, task: str) -> LiberoEnvironment:
        return LiberoEnvironment(self.task(task), self)

    def make_expert(self, environment: Environment) -> Expert:
        from experiments.robot.libero.experts import make_expert

        assert isinstance(environment, LiberoEnvironment)
        return make_expert(self.suite, environment.robosuite, environment.start)

    def check_expert(self) -> None:
        from experiments.robot.libero.experts import check_suite_with_expert

        check_suite_with_expert(self.suite)

    def instruction(self, task: str) -> str:
        return self.task(task).language


class LiberoEnvironment:
    """One LIBERO task; nothing is rendered before the first `observe` or `render`."""

    control_hz = 20.0  # 25 physics steps of 2 ms
    platform = ROBOT_PLATFORMS["LIBERO"]

    def __init__(self, task: LiberoTask, simulator: LiberoSimulator) -> None:
        configure_rendering()
        prepare_libero(simulator.allow_newer_mujoco)
        import mujoco
        from libero.libero.envs.env_wrapper import ControlEnv

        self.task, self.instruction, self.simulator = task, task.language, simulator
        self.max_steps = simulator.max_steps or MAX_STEPS[original_suite(simulator.suite)]
        self._mujoco = mujoco
        self._states = load_initial_states(task, simulator.initial_states_path)
        self._wrapper: Any = ControlEnv(
            bddl_file_name=str(task.bddl_file), use_camera_obs=False, has_offscreen_renderer=False, hard_reset=False, horizon=NO_END
        )
        self._robot: Any = self.robosuite.robots[0]
        self._physics = SharedPhysics(self.robosuite.sim)
        self._sensed = mujoco.MjData(self._model)
        self._renderer: OffscreenRenderer | None = None
        self._loaded_places = self._read_loaded_places()
        self._replace_sensors()
        self._look = SceneLook(self._model, self._view(CAMERAS["primary"]), _AGENTVIEW_DISTANCE)

    @property
    def robosuite(self) -> Any:
        """The robosuite environment, with all that is privileged."""
        return self._wrapper.env

    @property
    def _model(self) -> mujoco.MjModel:
        return self.robosuite.sim.model._model

    def _replace_sensors(self) -> None:
        """Switches robosuite's sensors off and adds one, due at the same moment as they were, that keeps the snapshot."""
        from robosuite.utils.observables import Observable, sensor

        @sensor(modality="snapshot")
        def snapshot(cache: dict[str, np.ndarray]) -> np.ndarray:
            self._keep_snapshot()
            return np.zeros(1)

        for observable in self.robosuite._observables.values():
            observable.set_enabled(False)
        self.robosuite.add_observable(Observable("snapshot", snapshot, sampling_rate=self.control_hz))

    def _keep_snapshot(self) -> None:
        live = self.robosuite.sim.data._data
        for name in _SENSED:
            getattr(self._sensed, name)[:] = getattr(live, name)

    def reset(self, episode: EpisodeSpec, changes: tuple[Perturbation, ...] = ()) -> None:
        """Evaluation: the fixed initial state of the episode's number. Else: objects where the episode's generator puts them."""
        if episode.split == "evaluation":
            state = self._reset_to_fixed(episode.index)
        else:
            np.random.seed(episode.rng().integers(2**32))  # robosuite draws from numpy's global generator
            self._reset_once()
            state = self._wrapper.get_sim_state()
            self._reset_once()  # fixtures of another draw than the objects, as with the fixed states
        self._look.apply(episode, changes)
        self._wrapper.set_init_state(change_state(self.robosuite, state, episode, changes))
        for _ in range(self.simulator.num_steps_wait):
            self.step(np.asarray(NO_OP))
        if robot := size_of(changes, "robot"):
            displace_robot(self.robosuite, robot, robot.rng(episode))
            self._keep_snapshot()
        self.start = start_of(self.robosuite)

    def _reset_to_fixed(self, number: int) -> np.ndarray:
        """Draws what the published evaluation has drawn by this episode: a state does not tell where cabinets and stoves stand.

        Published: env.seed(0) once per task, one reset per episode.
        """
        if number not in self._states:
            source = self.simulator.initial_states_path or "LIBERO"
            raise ValueError(f"{source} has {len(self._states)} initial states for {self.task.name}, none with number {number}")
        initial = self._states[number]
        np.random.seed(0)
        with self._physics.draws():
            for _ in range(initial.num_resets_before):
                self._as_loaded()
                self.robosuite.sim.reset()
                self.robosuite._reset_internal()
        self._reset_once()
        return initial.state

    def _reset_once(self) -> None:
        self._as_loaded()
        self._wrapper.reset()

    def _read_loaded_places(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Body -> position [3] and quaternion [4] of each fixture in the model's file, before any reset."""
        places = {}
        for fixture in self.robosuite.fixtures_dict.values():
            element = self.robosuite.model.root.find(f".//body[@name='{fixture.root_body}']")
            texts = element.get("pos", "0 0 0"), element.get("quat", "1 0 0 0")
            position, quaternion = (np.array(text.split(), np.float64) for text in texts)
            places[self._model.body(fixture.root_body).id] = position, quaternion
        return places

    def _as_loaded(self) -> None:
        """Puts back what a reset relies on and leaves changed: it expects fixtures where a newly loaded model has them."""
        for body, (position, quaternion) in self._loaded_places.items():
            self._model.body_pos[body], self._model.body_quat[body] = position, quaternion
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)

    def proprio(self) -> np.ndarray:
        robot, data = self._robot, self._sensed
        w, x, y, z = data.xquat[self.robosuite.sim.model.body_name2id(robot.robot_model.eef_name)]
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        position = data.site_xpos[robot.eef_site_id]
        return np.concatenate([position, axis_angle(np.array([x, y, z, w])), fingers]).astype(np.float32)

    def position(self) -> np.ndarray:
        return np.asarray(NO_OP, np.float64)

    def observe(self) -> Observation:
        images = {slot: self._picture(camera, self.simulator.image_size) for slot, camera in CAMERAS.items()}
        return Observation(images=images, instruction=self.instruction, proprio=self.proprio())

    def step(self, action: np.ndarray) -> bool:
        with self._physics.control_step():
            _, _, done, _ = self._wrapper.step(np.asarray(action, np.float64).tolist())
        return bool(done)

    def render(self, size: int = VIDEO_SIZE) -> np.ndarray:
        return self._picture(CAMERAS["primary"], size)

    def _picture(self, camera: str, size: int) -> np.ndarray:
        """uint8 [size, size, 3], as the policy sees it."""
        mj = self._mujoco
        if self._renderer is None:
            self._renderer = OffscreenRenderer(self._model, max(VIDEO_SIZE, self.simulator.image_size), self.simulator.fast_rendering)
        option = mj.MjvOption()
        option.geomgroup[0] = 0  # collision shapes
        return np.ascontiguousarray(self._renderer.render(self._sensed, self._view(camera), option, size)[:, ::-1])

    def _view(self, camera: str) -> mujoco.MjvCamera:
        view = self._mujoco.MjvCamera()
        view.type, view.fixedcamid = self._mujoco.mjtCamera.mjCAMERA_FIXED, self.robosuite.sim.model.camera_name2id(camera)
        return view

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._wrapper is not None:
            self._wrapper.close()
            self._wrapper = None
