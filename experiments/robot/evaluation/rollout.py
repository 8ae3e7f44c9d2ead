"""Closed-loop evaluation: environments in worker processes, one policy here. Letters: H chunk, A action dim.

    worker 1 --Observation-->              --actions [H, A]--> worker 1
    worker 2 --Observation-->  one policy  --actions [H, A]--> worker 2
    worker 3 (executing actions, see `stepping`, then asks again)

Every random draw of an episode follows from its EpisodeSpec, also a diffusion policy's noise, and the policy always sees batches of
the same size with prompts of the same length, so results do not depend on the number of workers. A worker that dies is replaced and
its episode played once more.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from experiments.robot.evaluation.actors import NO_HELP
from experiments.robot.evaluation.backlog import Backlog, PlannedEpisode
from experiments.robot.evaluation.controls import Control
from experiments.robot.evaluation.episode_worker import EpisodeOutcome, EpisodeRequest, WorkerFailure, worker_main
from experiments.robot.evaluation.stepping import ActingOptions
from experiments.robot.simulators.interfaces import Simulator
from experiments.robot.simulators.workers import single_threaded_children
from prismatic.vla.rollout_record import Commander
from prismatic.vla.types import ActionChunk, Observation

logger = logging.getLogger(__name__)

_MAX_CRASHES_IN_A_ROW = 6  # more is no accident
_PATIENCE_S = 5.0  # with processes that are to end


class ChunkPolicy(Protocol):
    """What acts: prismatic.policy's Policy, or anything with this method."""

    def predict(self, observations: list[Observation], seeds: list[int]) -> list[ActionChunk]:
        """One chunk per observation, in the simulator's units; whatever is random in it follows from the observation's seed."""


EXPERT_RUN = "expert"  # the run in which the scripted expert acts
_RECORDED_RUNS = {"none": Commander.POLICY.value, EXPERT_RUN: Commander.EXPERT.value}  # -> folder; what controls show is no data


@dataclass(frozen=True)
class RolloutOptions:
    """How episodes are played."""

    num_envs: int = 2  # worker processes
    acting: ActingOptions = field(default_factory=ActingOptions)  # how the policy's chunks become commands
    batch_size: int = 1  # observations per policy call; fewer are padded by repetition, so that kernels and rounding stay the same
    save_video: str = "none"  # none, failures, all or first_<number per task>
    video_dir: Path | None = None
    num_pictures: int = 0  # episodes per task that bring their first and last frame
    failure_frames: bool = False  # failed episodes bring what the policy saw on the way
    filmed_run: str = "none"  # videos and pictures are taken of this run only
    recording_dir: Path | None = None  # episodes become recordings: <this>/<policy or expert>/<task>/<episode>.hdf5; not those of controls
    facts: Mapping[str, Any] = field(default_factory=dict)  # what each of them says of policy and robot
    expert_help: str = NO_HELP  # what the scripted expert does while the policy acts (`actors.HELP`)
    worker_timeout_s: float = 300.0  # silence after which a worker counts as dead

    def __post_init__(self) -> None:
        for name in ("num_envs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, must be at least 1")
        self.num_first_videos  # noqa: B018  (checks the spelling of save_video)
        if self.save_video != "none" and self.video_dir is None:
            raise ValueError(f"--save_video {self.save_video} needs a folder for the videos (video_dir)")

    @property
    def num_first_videos(self) -> int:
        """How many episodes of each task are filmed whatever their outcome."""
        fixed = {"none": 0, "failures": 0, "all": 10**9}
        if self.save_video in fixed:
            return fixed[self.save_video]
        prefix, _, number = self.save_video.partition("_")
        if prefix != "first" or not number.isdecimal():
            raise ValueError(f"--save_video is {self.save_video!r}, expected none, failures, all or first_<number>, such as first_3")
        return int(number)

    def request(self, planned: PlannedEpisode) -> EpisodeRequest:
        spec, filmed_run = planned.spec, planned.run == self.filmed_run
        facts = self.facts if planned.run != EXPERT_RUN else {name: fact for name, fact in self.facts.items() if "checkpoint" not in name}
        filmed = filmed_run and (self.save_video == "failures" or spec.index < self.num_first_videos)
        return EpisodeRequest(
            spec,
            use_expert=planned.run == EXPERT_RUN,
            expert_help=self.expert_help if planned.run == "none" else NO_HELP,
            video=self.video_dir / spec.task / f"episode_{spec.index:03d}_seed_{spec.seed}" if filmed and self.video_dir else None,
            video_of_failure_only=self.save_video == "failures",
            pictures=filmed_run and spec.index < self.num_pictures,
            failure_frames=filmed_run and self.failure_frames,
            recording=self.recording(planned),
            facts=facts,
            acting=self.acting,
        )

    def recording(self, planned: PlannedEpisode) -> Path | None:
        """Where the recording of an episode goes; None: it is not recorded."""
        spec, folder = planned.spec, _RECORDED_RUNS.get(planned.run)
        if self.recording_dir is None or folder is None:
            return None
        return self.recording_dir / folder / spec.task / f"episode_{spec.index:06d}_seed_{spec.seed}.hdf5"


@dataclass(frozen=True)
class EpisodeResult:
    """One row of the report."""

    run: str  # "none", the name of a control, or "expert"
    task: str
    index: int  # number of the episode within its task; of the initial state, where a benchmark has fixed ones
    seed: int
    instruction: str  # what the policy was told
    success: bool
    num_steps: int
    num_queries: int
    latency_ms: float | None  # mean time of the policy per query; None for the expert
    wall_s: float
    video: str | None = None
    recording: str | None = None
    error: str | None = None  # the episode crashed twice; counted as a failure
    num_held_steps: int = 0  # without a command of the policy
    seam_changes: tuple[float, ...] = field(default=(), repr=False)  # of the command, where a chunk or holding begins or ends
    inner_changes: tuple[float, ...] = field(default=(), repr=False)  # of the command, within a chunk
    pictures: tuple[np.ndarray, ...] = field(default=(), compare=False, repr=False)
    failure_frames: tuple[np.ndarray, ...] = field(default=(), compare=False, repr=False)


class _Worker:
    """One process and the episode it plays."""

    def __init__(self, simulator: Simulator) -> None:
        self.connection: Connection
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        with single_threaded_children():
            self.process: BaseProcess = context.Process(target=worker_main, args=(child, simulator), daemon=True)
            self.process.start()
        child.close()
        self.planned: PlannedEpisode | None = None
        self.task: str | None = None  # of the environment that it has open
        self.instruction = ""
        self.latencies_ms: list[float] = []
        self.heard_at = time.monotonic()

    def start(self, planned: PlannedEpisode, request: EpisodeRequest) -> None:
        self.planned, self.instruction, self.latencies_ms, self.heard_at = planned, "", [], time.monotonic()
        self.task = planned.spec.task
        self._send(request)

    def _send(self, message: EpisodeRequest | np.ndarray) -> None:
        """A process that has died meanwhile is noticed, and replaced, by the next `receive`."""
        try:
            self.connection.send(message)
        except OSError:
            logger.warning("a simulator process died before it could be sent its work")

    def act(self, actions: np.ndarray, latency_ms: float) -> None:
        """Sends the answer [H, A]."""
        self.latencies_ms.append(latency_ms)
        self.heard_at = time.monotonic()
        self._send(actions)

    def receive(self) -> Observation | EpisodeOutcome | WorkerFailure:
        """The next message; a dead process is a failure, too."""
        self.heard_at = time.monotonic()
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join(timeout=5)
            return WorkerFailure(f"the simulator process died with exit code {self.process.exitcode}")

    def query_seed(self) -> int:
        """For what is random in the policy's next answer."""
        assert self.planned is not None
        return int(self.planned.spec.rng(f"query {len(self.latencies_ms)}").integers(2**31))

    def result(self, outcome: EpisodeOutcome) -> EpisodeResult:
        assert self.planned is not None
        spec = self.planned.spec
        return EpisodeResult(
            run=self.planned.run,
            task=spec.task,
            index=spec.index,
            seed=spec.seed,
            instruction=self.instruction or outcome.instruction,
            success=outcome.success,
            num_steps=outcome.num_steps,
            num_queries=len(self.latencies_ms),
            latency_ms=float(np.mean(self.latencies_ms)) if self.latencies_ms else None,
            wall_s=outcome.wall_s,
            video=str(outcome.video) if outcome.video else None,
            recording=str(outcome.recording) if outcome.recording else None,
            num_held_steps=outcome.motions.held,
            seam_changes=tuple(outcome.motions.seams),
            inner_changes=tuple(outcome.motions.inner),
            pictures=outcome.pictures,
            failure_frames=outcome.failure_frames,
        )

    def ask_to_end(self) -> None:
        try:
            self.connection.send(None)
        except OSError:
            logger.debug("worker had ended already")

    def close(self, patience_s: float) -> None:
        """Waits so long for the process to end, then makes it."""
        self.process.join(timeout=patience_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def _close(workers: Sequence[_Worker]) -> None:
    """Ends all processes beside each other: tearing a simulator down takes a second."""
    for worker in workers:
        worker.ask_to_end()
    latest = time.monotonic() + _PATIENCE_S
    for worker in workers:
        worker.close(max(0.0, latest - time.monotonic()))


def _same_prompt(asking: list[tuple[_Worker, Observation]]) -> list[list[tuple[_Worker, Observation]]]:
    """Groups of observations with the same instruction: padding to a longer prompt would change the rounding."""
    groups: dict[str, list[tuple[_Worker, Observation]]] = {}
    for worker, observation in asking:
        groups.setdefault(observation.instruction, []).append((worker, observation))
    return list(groups.values())


class Rollout:
    """Plays episodes with one policy, under the control of each episode's run, or with the scripted expert."""

    def __init__(self, simulator: Simulator, policy: ChunkPolicy | None, controls: Mapping[str, Control], options: RolloutOptions) -> None:
        self.simulator, self.policy, self.controls, self.options = simulator, policy, controls, options
        self._workers: list[_Worker] = []
        self._backlog = Backlog((), 1)
        self._crashed: set[PlannedEpisode] = set()
        self._crashes_in_a_row = 0
        self.num_rows = self.num_padded_rows = 0  # observations in the policy's calls, and how many of them fill up a batch

    def run(self, episodes: Sequence[PlannedEpisode], load_policy: Callable[[], ChunkPolicy] | None = None) -> Iterator[EpisodeResult]:
        """Yields a result as each episode ends. `load_policy`: called while the simulators start, for a policy that is not there yet.

        Raises:
            RuntimeError: one simulator process after the other dies, with the traceback of the last.
        """
        self._backlog = Backlog(episodes, max(1, self.options.num_envs // self.options.batch_size))
        try:
            for _ in range(min(self.options.num_envs, len(episodes))):
                self._workers.append(_Worker(self.simulator))
                self._assign(self._workers[-1])
            if load_policy is not None:
                self.policy = load_policy()
            while busy := [worker for worker in self._workers if worker.planned is not None]:
                yield from self._serve(busy)
        finally:
            _close(self._workers)
            self._workers = []

    def _assign(self, worker: _Worker) -> None:
        worker.planned = None
        playing = [other.planned.spec.task for other in self._workers if other.planned is not None]
        if planned := self._backlog.take(worker.task, playing):
            worker.start(planned, self.options.request(planned))

    def _serve(self, busy: list[_Worker]) -> Iterator[EpisodeResult]:
        """Answers everything that has arrived: results first, then one batch after the other."""
        ready = set(wait([worker.connection for worker in busy], timeout=1.0))
        asking: list[tuple[_Worker, Observation]] = []
        for worker in busy:
            if worker.connection in ready:
                message = worker.receive()
            elif time.monotonic() - worker.heard_at > self.options.worker_timeout_s:
                message = WorkerFailure(f"the simulator process was silent for {self.options.worker_timeout_s:.0f} s")
            else:
                continue
            if isinstance(message, Observation):
                asking.append((worker, self._controlled(worker, message)))
            elif isinstance(message, EpisodeOutcome):
                self._crashes_in_a_row = 0
                yield worker.result(message)
                self._assign(worker)
            else:
                yield from self._replace(worker, message)
        for alike in _same_prompt(asking):
            for start in range(0, len(alike), self.options.batch_size):
                self._answer(alike[start : start + self.options.batch_size])

    def _answer(self, asking: list[tuple[_Worker, Observation]]) -> None:
        """Sends every asking worker its next actions."""
        assert self.policy is not None
        num_missing = self.options.batch_size - len(asking)
        padded = asking + [asking[-1]] * num_missing
        self.num_rows, self.num_padded_rows = self.num_rows + len(padded), self.num_padded_rows + num_missing
        seeds = [worker.query_seed() for worker, _ in padded]
        started = time.perf_counter()
        chunks = self.policy.predict([observation for _, observation in padded], seeds)
        latency_ms = (time.perf_counter() - started) * 1e3
        assert len(chunks) == len(padded), (len(chunks), len(padded))
        for (worker, _), chunk in zip(asking, chunks, strict=False):  # the padding gets no answer
            worker.act(self._checked(chunk), latency_ms)

    def _controlled(self, worker: _Worker, observation: Observation) -> Observation:
        """What the policy is shown instead, in the worker's run."""
        assert worker.planned is not None
        shown = self.controls[worker.planned.run](worker.planned.spec.task, observation)
        worker.instruction = shown.instruction
        return shown

    def _checked(self, chunk: ActionChunk) -> np.ndarray:
        """The actions [H, A], finite and as many as the options need."""
        self.options.acting.execution(len(chunk.actions))
        if not np.isfinite(chunk.actions).all():
            raise ValueError("the policy predicted actions that are not finite; the checkpoint is damaged or training diverged")
        return chunk.actions

    def _replace(self, worker: _Worker, failure: WorkerFailure) -> Iterator[EpisodeResult]:
        """Starts a new process; the episode is repeated once, then given up."""
        planned = worker.planned
        assert planned is not None
        worker.process.kill()
        self._crashes_in_a_row += 1
        if self._crashes_in_a_row >= _MAX_CRASHES_IN_A_ROW:
            raise RuntimeError(
                f"{self._crashes_in_a_row} simulator processes died one after the other; the last one said:\n{failure.traceback}"
            )
        worker.close(_PATIENCE_S)
        fresh = self._workers[self._workers.index(worker)] = _Worker(self.simulator)
        spec = planned.spec
        if planned not in self._crashed:
            logger.warning("%s episode %d crashed and is repeated:\n%s", spec.task, spec.index, failure.traceback)
            self._crashed.add(planned)
            fresh.start(planned, self.options.request(planned))
            return
        logger.error("%s episode %d crashed twice, counted as failed:\n%s", spec.task, spec.index, failure.traceback)
        yield EpisodeResult(
            run=planned.run,
            task=spec.task,
            index=spec.index,
            seed=spec.seed,
            instruction=self.simulator.instruction(spec.task),
            success=False,
            num_steps=0,
            num_queries=0,
            latency_ms=None,
            wall_s=0.0,
            error=failure.traceback,
        )
        self._assign(fresh)
