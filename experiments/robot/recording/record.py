"""Records demonstrations of scripted experts, from any Simulator, in worker processes.

What is executed is the expert's action plus noise, what is stored is the expert's action: the recordings then show how
to come back from states beside the expert's path (DART, Laskey et al. 2017, with fixed noise). Noise that lasts for several
steps moves a position-controlled arm aside, where noise drawn afresh at each step only shakes it. Only episodes that succeed
are kept; a failed one is tried again from another start.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Environment, Simulator
from experiments.robot.simulators.workers import EnvironmentSlot, end_with_parent, single_threaded_children
from prismatic.vla.datasets.hdf5.layout import open_h5
from prismatic.vla.datasets.hdf5.recording import Recording, write_recording
from prismatic.vla.types import Observation, check_side

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 10  # an expert that fails so often in a row does not know the task
_SIZE_FLAGS = {"image_size", "env_img_res"}  # of RecordingOptions.pictures; recordings of earlier versions show it all the same
_FEWEST_PER_JOB, _MOST_PER_JOB = 2, 10  # a finished job moves the progress bar; a new one may have to load another task's scene


@dataclass(frozen=True)
class RecordingOptions:
    """How demonstrations are made."""

    output_dir: Path  # episodes land in output_dir/<task>/episode_<number>.hdf5
    num_episodes: int = 50  # per task
    seed: int = 0
    noise_scale: float = 0.4  # standard deviation of the noise on executed actions, in action units
    noise_correlation: float = 0.0  # of the noise at a step with that of the step before; 0 draws it afresh
    noise_dims: tuple[int, ...] = (0, 1, 2)  # which action dimensions get noise; a gripper must not
    num_workers: int = 2
    perturb: str = ""  # what the scene's changes are called in the recordings; the simulator makes them
    pictures: Mapping[str, Any] = field(default_factory=dict)  # flag -> value: what else decides how an episode looks; stored as attributes

    def __post_init__(self) -> None:
        for name, smallest in (("num_episodes", 1), ("num_workers", 1), ("noise_scale", 0)):
            if getattr(self, name) < smallest:
                raise ValueError(f"--{name} is {getattr(self, name)}, must be at least {smallest}")
        for name in _SIZE_FLAGS & self.pictures.keys():
            check_side(f"--{name}", self.pictures[name])
        if not 0 <= self.noise_correlation < 1:
            raise ValueError(f"--noise_correlation is {self.noise_correlation}, must be at least 0 and below 1")

    def path(self, task: str, index: int) -> Path:
        return self.output_dir / task / f"episode_{index:06d}.hdf5"


def record_demonstrations(simulator: Simulator, tasks: list[str], options: RecordingOptions) -> Iterator[Path]:
    """Yields the path of each new recording as it is finished; episodes that are there already are skipped.

    Raises:
        ValueError: what is there was recorded in another way.
        RuntimeError: an expert failed `_MAX_ATTEMPTS` times in a row.
    """
    _check_recorded(tasks, options)
    context = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(options.num_workers, mp_context=context, initializer=end_with_parent)
    with single_threaded_children(), workers as pool:
        futures = [pool.submit(_record_job, simulator, task, indices, options) for task, indices in missing_episodes(tasks, options)]
        try:
            for future in as_completed(futures):
                yield from future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_recorded(tasks: list[str], options: RecordingOptions) -> None:
    """Accepts episodes that are there already if the first of each task was recorded as the others will be."""
    wanted = {name: getattr(options, name) for name in ("seed", "noise_scale", "noise_correlation", "perturb")}
    for task in tasks:
        path = next((path for index in range(options.num_episodes) if (path := options.path(task, index)).exists()), None)
        if path is None:
            continue
        with open_h5(path) as file:
            found = {name: file.attrs.get(name, getattr(RecordingOptions, name)) for name in wanted}  # earlier versions did not say all
            found |= {name: file.attrs.get(name, value) for name, value in options.pictures.items()}
            found |= {name: size for name in options.pictures.keys() & _SIZE_FLAGS if (size := _picture_size(file))}
        wanted_here = wanted | dict(options.pictures)
        if other := [name for name, value in wanted_here.items() if found[name] != value]:
            listed = "; ".join(f"--{name} was {found[name]}, is {wanted_here[name]}" for name in other)
            raise ValueError(f"{path} was recorded in another way ({listed}); choose another --output_dir, or remove {options.output_dir}")


def _picture_size(file: Any) -> int | None:
    """Height [pixels] of the pictures of the first camera of an open recording; None where it has none."""
    cameras = list(file.get("observations/images", {}).values())
    return int(cameras[0].shape[1]) if cameras and cameras[0].ndim == 4 else None


def missing_episodes(tasks: list[str], options: RecordingOptions) -> list[tuple[str, list[int]]]:
    """(task, episode numbers) of what is still to be recorded, in small groups, task after task."""
    missing = {task: [index for index in range(options.num_episodes) if not options.path(task, index).exists()] for task in tasks}
    total = sum(len(indices) for indices in missing.values())
    size = min(_MOST_PER_JOB, max(_FEWEST_PER_JOB, total // (2 * options.num_workers)))  # so that no worker waits long for the last
    return [(task, indices[start : start + size]) for task, indices in missing.items() for start in range(0, len(indices), size)]


_slot = EnvironmentSlot()  # of this worker process


def _record_job(simulator: Simulator, task: str, indices: list[int], options: RecordingOptions) -> list[Path]:
    environment = _slot.get(simulator, task)
    paths = []
    for index in indices:
        recording = record_success(simulator, environment, EpisodeSpec(task, index, options.seed, "demonstration"), options)
        paths.append(options.path(task, index))
        write_recording(paths[-1], recording)
    return paths


def record_success(simulator: Simulator, environment: Environment, episode: EpisodeSpec, options: RecordingOptions) -> Recording:
    """The first successful demonstration of this episode number.

    Raises:
        RuntimeError: the expert failed `_MAX_ATTEMPTS` times in a row.
    """
    for attempt in range(_MAX_ATTEMPTS):
        spec = EpisodeSpec(episode.task, episode.index, episode.seed, episode.split, attempt)
        recording = record_episode(simulator, environment, spec, options)
        if recording.attributes["success"]:
            return recording
        logger.warning("expert failed: %s", spec)
    raise RuntimeError(
        f"the expert of {episode.task} failed {_MAX_ATTEMPTS} times in a row (episode {episode.index}, seed {episode.seed}, "
        f"noise {options.noise_scale}); lower --noise_scale or choose another task"
    )


def record_episode(simulator: Simulator, environment: Environment, episode: EpisodeSpec, options: RecordingOptions) -> Recording:
    """One demonstration, successful or not (attribute `success`)."""
    environment.reset(episode)
    expert, noises = simulator.make_expert(environment), correlated_noise(options, episode.rng("noise"))
    observations: list[Observation] = []
    actions: list[np.ndarray] = []
    success = False
    while not success and len(actions) < environment.max_steps:
        observations.append(environment.observe())
        actions.append(expert.act())
        executed = np.array(actions[-1])
        executed[list(options.noise_dims)] += next(noises)
        success = environment.step(executed)
    noise_attributes = {"noise_scale": options.noise_scale, "noise_correlation": options.noise_correlation}
    changes = {"perturb": options.perturb} if options.perturb else {}
    attributes = {"task": episode.task, "seed": episode.seed, "episode": episode.index, "attempt": episode.attempt, "success": success}
    proprio = [observation.proprio for observation in observations]
    return Recording(
        actions=np.asarray(actions, np.float32),
        proprio=np.asarray(proprio, np.float32),
        images={name: np.stack([observation.images[name] for observation in observations]) for name in observations[0].images},
        instruction=environment.instruction,
        attributes=attributes | noise_attributes | changes | dict(options.pictures),
    )


def correlated_noise(options: RecordingOptions, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Gaussian noise [len(noise_dims)], step after step: autoregressive of first order, with the same scale at every step."""
    fresh = math.sqrt(1 - options.noise_correlation**2)
    noise = rng.normal(0.0, options.noise_scale, len(options.noise_dims))
    while True:
        yield noise
        noise = options.noise_correlation * noise + fresh * rng.normal(0.0, options.noise_scale, len(options.noise_dims))
