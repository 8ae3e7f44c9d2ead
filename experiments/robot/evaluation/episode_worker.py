"""The process that plays episodes: one environment, no policy, no torch, no TensorFlow. Letters: H chunk, A action dim.

parent -> worker   EpisodeRequest | actions float64 [H, A] | None (stop)
worker -> parent   Observation (what to do next?) | EpisodeOutcome | WorkerFailure
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robot.evaluation.actors import (
    NO_HELP,
    RELABEL,
    Actor,
    AssistedActor,
    Command,
    ExpertActor,
    PolicyActor,
    RelabelledActor,
)
from experiments.robot.evaluation.stepping import ActingOptions, Motions, SteppedActor
from experiments.robot.evaluation.video import write_mp4
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Environment, Simulator
from experiments.robot.simulators.workers import EnvironmentSlot
from prismatic.acting.recorder import EpisodeRecorder, RecordedStep
from prismatic.vla.rollout_record import ACTING, INTERVENTION, RELABELLED
from prismatic.vla.types import Observation

VIDEO_SIZE = 256
PICTURE_SIZE = 128
NUM_FAILURE_FRAMES = 6


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to play and what to bring back besides its outcome."""

    spec: EpisodeSpec
    use_expert: bool = False  # the scripted expert acts, in the worker; the parent is asked nothing
    expert_help: str = NO_HELP  # what the expert does while the policy acts (`actors.HELP`)
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
        self.recorder: EpisodeRecorder | None = None
        if request.recording is not None:
            spec = request.spec
            known = {"task": spec.task, "episode": spec.index, "seed": spec.seed, "control_hz": environment.control_hz}
            self.recorder = EpisodeRecorder(request.recording, environment.instruction, {**known, **request.facts})

    def add(self, command: Command) -> None:
        """One step before it is executed, unless the robot is held; an observation of its spares rendering again."""
        if self.recorder is None or command.is_held:
            return
        seen = self._environment.observe() if command.observation is None else command.observation
        is_relabelled = command.recorded is not None
        mode = RELABELLED if is_relabelled else INTERVENTION if command.is_intervention else ACTING
        self.recorder.add(
            RecordedStep(
                observation=seen,
                action=command.executed if command.recorded is None else command.recorded,
                by=command.by,
                mode=mode,
                chunk=command.chunk,
                delay_s=command.delay_s,
                executed=command.executed if is_relabelled else None,
            )
        )

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
        with suppress(ConnectionError):  # the parent may have gone meanwhile
            connection.send(WorkerFailure(traceback.format_exc()))
    finally:
        slot.close()


def play_episode(simulator: Simulator, environment: Environment, request: EpisodeRequest, connection: Connection) -> EpisodeOutcome:
    """Resets the environment and plays until the task is solved or the steps are used up, those of holding included."""
    started = time.perf_counter()
    environment.reset(request.spec)
    actor, policy = _make_actor(simulator, environment, request, connection)
    video, recording = _EpisodeVideo(request, environment), _EpisodeRecording(request, environment)
    pictures = [environment.render(PICTURE_SIZE)] if request.pictures else []
    success, num_steps = False, 0
    with recording.recorder or nullcontext():
        while not success and num_steps < actor.max_steps:
            video.record_frame(num_steps)
            command = actor.next()
            recording.add(command)
            success = environment.step(command.executed)
            num_steps += 1
        video.record_frame(num_steps, force=True)
        if request.pictures:
            pictures.append(environment.render(PICTURE_SIZE))
        if request.failure_frames and not success:
            policy.seen.append(environment.render(VIDEO_SIZE))
        wall_s = time.perf_counter() - started
        frames = spread_frames(policy.seen) if request.failure_frames and not success else ()
        files = (video.write(success), recording.close(success))
    motions = policy.stepped.motions
    return EpisodeOutcome(success, num_steps, environment.instruction, wall_s, *files, tuple(pictures), frames, motions)


def _make_actor(
    simulator: Simulator, environment: Environment, request: EpisodeRequest, connection: Connection
) -> tuple[Actor, PolicyActor]:
    """(who acts in an episode that has been reset, the policy in it, which is never asked where the expert acts alone)."""

    def ask(observation: Observation) -> np.ndarray:
        if request.failure_frames:
            policy.seen.append(next(iter(observation.images.values())))
        connection.send(observation)
        return connection.recv()

    stepped = SteppedActor(request.acting, environment.platform, environment.position(), request.spec, ask)
    policy = PolicyActor(stepped, environment)
    if request.use_expert:
        return ExpertActor(simulator.make_expert(environment), environment.max_steps), policy
    if request.expert_help == NO_HELP:
        return policy, policy
    if request.expert_help == RELABEL:
        return RelabelledActor(policy, simulator.make_expert(environment)), policy
    can_compare = simulator.has_reactive_expert
    return AssistedActor(policy, lambda: simulator.make_expert(environment), request.spec, can_compare), policy


def spread_frames(seen: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """NUM_FAILURE_FRAMES of `seen`, evenly spread, the first and the last among them, as uint8 [PICTURE_SIZE, PICTURE_SIZE, 3]."""
    from PIL import Image

    if not seen:
        return ()
    chosen = np.linspace(0, len(seen) - 1, NUM_FAILURE_FRAMES).round().astype(int)
    size = (PICTURE_SIZE, PICTURE_SIZE)
    return tuple(np.asarray(Image.fromarray(seen[number]).resize(size, Image.Resampling.BILINEAR)) for number in chosen)
