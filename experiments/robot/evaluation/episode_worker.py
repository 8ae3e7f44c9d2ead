"""The process that plays episodes: one environment, no policy, no torch, no TensorFlow. Letters: H chunk, A action dim.

parent -> worker   EpisodeRequest | actions float64 [H, A] | None (stop)
worker -> parent   Observation (what to do next?) | EpisodeOutcome | WorkerFailure
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robot.evaluation.stepping import ActingOptions, Motions, SteppedActor
from experiments.robot.evaluation.video import write_mp4
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Environment, Simulator
from experiments.robot.simulators.workers import EnvironmentSlot
from prismatic.acting.recorder import EpisodeRecorder, RecordedStep
from prismatic.vla.rollout_record import Commander
from prismatic.vla.types import Observation

VIDEO_SIZE = 256
PICTURE_SIZE = 128
NUM_FAILURE_FRAMES = 6


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to play and what to bring back besides its outcome."""

    spec: EpisodeSpec
    use_expert: bool = False  # the scripted expert acts, in the worker; the parent is asked nothing
    video: Path | None = None  # where an MP4 goes
    video_of_failure_only: bool = False
    video_hz: float = 20.0
    pictures: bool = False  # bring the first and the last frame
    failure_frames: bool = False  # if it fails, bring what the policy saw on the way
    recording: Path | None = None  # where every step goes, as a recording
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the recording says beside what the worker knows
    acting: ActingOptions = field(default_factory=ActingOptions)  # not of the expert, which acts without delay


@dataclass(frozen=True)
class EpisodeOutcome:
    """How an episode ended."""

    success: bool
    num_steps: int
    instruction: str
    wall_s: float
    video: Path | None = None
    recording: Path | None = None
    pictures: tuple[np.ndarray, ...] = ()  # uint8 [PICTURE_SIZE, PICTURE_SIZE, 3]
    failure_frames: tuple[np.ndarray, ...] = ()  # NUM_FAILURE_FRAMES pictures of that size; none after a success
    motions: Motions = field(default_factory=Motions)  # of the policy


@dataclass(frozen=True)
class WorkerFailure:
    """The worker could not go on and ends."""

    traceback: str


@dataclass
class _EpisodeVideo:
    """Frames of the running episode."""

    request: EpisodeRequest
    environment: Environment
    frames: list[np.ndarray] = field(default_factory=list)

    @property
    def stride(self) -> int:
        return max(1, round(self.environment.control_hz / self.request.video_hz))

    def record_frame(self, step: int, force: bool = False) -> None:
        if self.request.video is not None and (force or step % self.stride == 0):
            self.frames.append(self.environment.render(VIDEO_SIZE))

    def write(self, success: bool) -> Path | None:
        if self.request.video is None or (success and self.request.video_of_failure_only):
            return None
        path = self.request.video.with_name(f"{self.request.video.stem}_{'success' if success else 'failure'}.mp4")
        write_mp4(path, self.frames, self.environment.control_hz / self.stride)
        return path


class _EpisodeRecording:
    """The recording of the running episode, where one is wanted; without `close` nothing is left of it."""

    def __init__(self, request: EpisodeRequest, environment: Environment) -> None:
        self._environment = environment
        self._by = Commander.EXPERT if request.use_expert else Commander.POLICY
        self.recorder: EpisodeRecorder | None = None
        if request.recording is not None:
            spec = request.spec
            known = {"task": spec.task, "episode": spec.index, "seed": spec.seed, "control_hz": environment.control_hz}
            self.recorder = EpisodeRecorder(request.recording, environment.instruction, {**known, **request.facts})

    def add(self, observation: Observation | None, action: np.ndarray, chunk: int = 0, delay_s: float = np.nan) -> None:
        """One action before it is executed, of the chunk with that number and delay; `observation` spares rendering again."""
        if self.recorder is not None:
            seen = self._environment.observe() if observation is None else observation
            self.recorder.add(RecordedStep(seen, action, self._by, chunk=chunk, delay_s=delay_s))

    def close(self, success: bool) -> Path | None:
        if self.recorder is None:
            return None
        return self.recorder.close({"success": success, "ending": "solved" if success else "out of steps"})


def worker_main(connection: Connection, simulator: Simulator) -> None:
    """Plays requested episodes until None arrives; what goes wrong is sent to the parent."""
    slot = EnvironmentSlot()
    try:
        while (request := connection.recv()) is not None:
            assert isinstance(request, EpisodeRequest)
            connection.send(play_episode(simulator, slot.get(simulator, request.spec.task), request, connection))
    except (EOFError, KeyboardInterrupt):
        pass  # the parent has gone, and nobody is left to tell
    except Exception:  # whatever a simulator raises has to reach the parent
        connection.send(WorkerFailure(traceback.format_exc()))
    finally:
        slot.close()


class _Player:
    """Whoever acts in an episode: the scripted expert, or the policy behind the connection."""

    def __init__(self, simulator: Simulator, environment: Environment, request: EpisodeRequest, connection: Connection) -> None:
        """After the reset."""
        self._environment, self._connection, self._keeps = environment, connection, request.failure_frames
        self._recording = _EpisodeRecording(request, environment)
        self._expert = simulator.make_expert(environment) if request.use_expert else None
        self._actor = SteppedActor(request.acting, environment.platform, environment.position(), request.spec, self._ask)
        self.seen: list[np.ndarray] = []  # primary images of the queries; costs no rendering
        self.recorder, self.close = self._recording.recorder, self._recording.close

    @property
    def motions(self) -> Motions:
        return self._actor.motions

    def act(self, step: int) -> np.ndarray:
        """The action [A] of a step."""
        if self._expert is not None:
            observation = self._environment.observe() if self.recorder is not None else None
            action = self._expert.act()
            self._recording.add(observation, action)
            return action
        command = self._actor.tick(step, self._environment.observe)
        if command.by is not None:  # nobody wants the robot to be held
            self._recording.add(self._actor.observation, command.action, self._actor.num_chunks, self._actor.delay_s)
        return command.action

    def _ask(self, observation: Observation) -> np.ndarray:
        if self._keeps:
            self.seen.append(next(iter(observation.images.values())))
        self._connection.send(observation)
        return self._connection.recv()


def play_episode(simulator: Simulator, environment: Environment, request: EpisodeRequest, connection: Connection) -> EpisodeOutcome:
    """Resets the environment and plays until the task is solved or the steps are used up, those of holding included."""
    started = time.perf_counter()
    environment.reset(request.spec)
    player, video = _Player(simulator, environment, request, connection), _EpisodeVideo(request, environment)
    pictures = [environment.render(PICTURE_SIZE)] if request.pictures else []
    success, num_steps = False, 0
    with player.recorder or nullcontext():
        while not success and num_steps < environment.max_steps:
            video.record_frame(num_steps)
            success = environment.step(player.act(num_steps))
            num_steps += 1
        video.record_frame(num_steps, force=True)
        if request.pictures:
            pictures.append(environment.render(PICTURE_SIZE))
        if request.failure_frames and not success:
            player.seen.append(environment.render(VIDEO_SIZE))
        wall_s = time.perf_counter() - started
        frames = () if success else spread_frames(player.seen)
        files = (video.write(success), player.close(success))
    return EpisodeOutcome(success, num_steps, environment.instruction, wall_s, *files, tuple(pictures), frames, player.motions)


def spread_frames(seen: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """NUM_FAILURE_FRAMES of `seen`, evenly spread, the first and the last among them, as uint8 [PICTURE_SIZE, PICTURE_SIZE, 3]."""
    from PIL import Image

    if not seen:
        return ()
    chosen = np.linspace(0, len(seen) - 1, NUM_FAILURE_FRAMES).round().astype(int)
    size = (PICTURE_SIZE, PICTURE_SIZE)
    return tuple(np.asarray(Image.fromarray(seen[number]).resize(size, Image.Resampling.BILINEAR)) for number in chosen)
