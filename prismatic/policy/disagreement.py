"""How far a policy's predictions are from recorded actions, episode by episode, and whether another instruction would bring them nearer.

Letters: H chunk, A action dim.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tqdm import tqdm

from prismatic.policy.policy import Policy
from prismatic.vla.datasets.episodes import FrameError
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.inspection.scores import DISAGREEMENT, INSTRUCTION
from prismatic.vla.normalization import normalize
from prismatic.vla.types import Observation

_NUM_STEPS = 16  # of an episode, evenly spread
_NUM_TEXTS = 10  # that an episode is tried with, at most
_TINY = 1e-6


def episode_disagreement(policy: Policy, index: EpisodeIndex, episodes: np.ndarray) -> dict[int, dict[str, float]]:
    """Episode -> measure -> value, at a few of its steps.

    `disagreement`: mean L1 distance, normalised, of the predicted chunks from what was recorded there and after. `instruction`: that
    distance over the smallest that any other instruction of these episodes leaves, so above 1 where another one fits better; of at most
    ten, the most frequent. Episodes whose pictures cannot be decoded, or that have no instruction, are left out.
    """
    counts = np.bincount(_instructions_of(index, episodes), minlength=len(index.instructions))
    texts = [index.instructions[number] for number in np.argsort(-counts, kind="stable")[:_NUM_TEXTS] if counts[number]]
    found = {}
    for episode in tqdm(episodes.tolist(), desc="asking the policy", unit="episode", delay=2):
        first, end = int(index.episode_starts[episode]), int(index.episode_starts[episode + 1])
        if end == first or index.instruction_ids[first] < 0:
            continue
        steps = first + np.unique(np.linspace(0, end - first - 1, _NUM_STEPS).astype(int))
        try:
            seen = [_observation(index, int(step)) for step in steps]
        except FrameError:
            continue
        own = _mean_distance(policy, index, seen, steps, end)
        others = [text for text in texts if text != seen[0].instruction]
        told = [[replace(observation, instruction=text) for observation in seen] for text in others]
        found[episode] = {DISAGREEMENT: own}
        if told:
            nearest = min(_mean_distance(policy, index, observations, steps, end) for observations in told)
            found[episode][INSTRUCTION] = own / max(nearest, _TINY)
    return found


def _instructions_of(index: EpisodeIndex, episodes: np.ndarray) -> np.ndarray:
    """Numbers of the instructions that those episodes have which have one."""
    numbers = np.asarray(index.instruction_ids)[index.episode_starts[episodes[index.lengths[episodes] > 0]]]
    return numbers[numbers >= 0]


def _mean_distance(policy: Policy, index: EpisodeIndex, seen: list[Observation], steps: np.ndarray, end: int) -> float:
    """Of the chunks that are predicted from what was seen at `steps` of an episode that ends before `end`."""
    chunks = policy.predict(seen, list(range(len(seen))))
    return float(np.mean([_distance(policy, chunk.actions, index, step, end) for chunk, step in zip(chunks, steps, strict=True)]))


def _observation(index: EpisodeIndex, step: int) -> Observation:
    images = {camera: index.frame(step, column) for column, camera in enumerate(index.cameras)}
    text = index.instructions[int(index.instruction_ids[step])]
    return Observation(images=images, instruction=text, proprio=np.asarray(index.proprio[step]))


def _distance(policy: Policy, predicted: np.ndarray, index: EpisodeIndex, step: int, end: int) -> float:
    """Of a chunk [H, A] from the recorded actions, as far as these go."""
    recorded = np.asarray(index.actions[step : min(step + len(predicted), end)])
    one, other = (normalize(np.asarray(rows, np.float32), policy.action_bounds) for rows in (predicted[: len(recorded)], recorded))
    return float(np.abs(one - other).mean())
