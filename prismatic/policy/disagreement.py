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
_FEWEST_EPISODES = 5  # of an instruction; of rarer ones, such as paraphrases, a policy knows little
_TOLD_APART = 0.3  # of the disagreement: predictions under two instructions that are nearer to each other mean the same
_TINY = 1e-6


def episode_disagreement(policy: Policy, index: EpisodeIndex, episodes: np.ndarray) -> dict[int, dict[str, float]]:
    """Episode -> measure -> value, at a few of its steps.

    `disagreement`: mean L1 distance, normalised, of the predicted chunks from what was recorded there and after. `instruction`: that
    distance over the smallest that another instruction leaves, so above 1 where another one fits better. Only instructions count that
    training knew and five of the episodes have, of these the ten most frequent; two that the policy hardly tells apart are one. Episodes
    whose pictures cannot be decoded, or that have no instruction, are left out.
    """
    usual = _usual_instructions(policy, index, episodes)
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
        recorded = [_normalized(policy, index.actions[step:end]) for step in steps]
        predicted = _predict(policy, seen)
        own = _distance(predicted, recorded)
        found[episode] = {DISAGREEMENT: own}
        told = seen[0].instruction
        if len(usual) < 2 or told not in usual:
            continue
        ratios = []
        for text in usual[:_NUM_TEXTS]:
            if text == told:
                continue
            other = _predict(policy, [replace(item, instruction=text) for item in seen], is_watched=True)
            if _distance(predicted, other) > _TOLD_APART * own:
                ratios.append(own / max(_distance(other, recorded), _TINY))
        found[episode][INSTRUCTION] = max(ratios, default=1.0)
    return found


def _usual_instructions(policy: Policy, index: EpisodeIndex, episodes: np.ndarray) -> list[str]:
    """The instructions that can be compared, the most frequent first."""
    numbers = np.asarray(index.instruction_ids)[index.episode_starts[episodes[index.lengths[episodes] > 0]]]
    counts = np.bincount(numbers[numbers >= 0], minlength=len(index.instructions))
    usual = [number for number in np.argsort(-counts, kind="stable") if counts[number] >= _FEWEST_EPISODES]
    return [text for number in usual if policy.knows(text := index.instructions[number])]


def _predict(policy: Policy, seen: list[Observation], is_watched: bool = False) -> list[np.ndarray]:
    """Chunks [H, A], normalised."""
    chunks = policy.predict(seen, list(range(len(seen))), is_watched=is_watched)
    return [_normalized(policy, chunk.actions) for chunk in chunks]


def _normalized(policy: Policy, rows: np.ndarray) -> np.ndarray:
    return normalize(np.asarray(rows, np.float32), policy.action_bounds)


def _distance(predicted: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Mean L1 distance of chunks [H, A] from others, as far as both go."""
    pairs = ((one[: len(other)], other[: len(one)]) for one, other in zip(predicted, others, strict=True))
    return float(np.mean([np.abs(one - other).mean() for one, other in pairs]))


def _observation(index: EpisodeIndex, step: int) -> Observation:
    images = {camera: index.frame(step, column) for column, camera in enumerate(index.cameras)}
    text = index.instructions[int(index.instruction_ids[step])]
    return Observation(images=images, instruction=text, proprio=np.asarray(index.proprio[step]))
