"""How far a policy's predictions are from recorded actions, episode by episode. Letters: H chunk, A action dim."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from prismatic.policy.policy import Policy
from prismatic.vla.datasets.episodes import FrameError
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.normalization import normalize
from prismatic.vla.types import Observation

_NUM_STEPS = 8  # of an episode, evenly spread


def episode_disagreement(policy: Policy, index: EpisodeIndex, episodes: np.ndarray) -> dict[int, float]:
    """Episode -> mean L1 distance, normalised, of the chunks predicted at a few of its steps from what was recorded there and after.

    Episodes whose pictures cannot be decoded, or that have no instruction, are left out.
    """
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
        chunks = policy.predict(seen, list(range(len(seen))))
        found[episode] = float(
            np.mean([_distance(policy, chunk.actions, index, step, end) for chunk, step in zip(chunks, steps, strict=True)])
        )
    return found


def _observation(index: EpisodeIndex, step: int) -> Observation:
    images = {camera: index.frame(step, column) for column, camera in enumerate(index.cameras)}
    text = index.instructions[int(index.instruction_ids[step])]
    return Observation(images=images, instruction=text, proprio=np.asarray(index.proprio[step]))


def _distance(policy: Policy, predicted: np.ndarray, index: EpisodeIndex, step: int, end: int) -> float:
    """Of a chunk [H, A] from the recorded actions, as far as these go."""
    recorded = np.asarray(index.actions[step : min(step + len(predicted), end)])
    one, other = (normalize(np.asarray(rows, np.float32), policy.action_bounds) for rows in (predicted[: len(recorded)], recorded))
    return float(np.abs(one - other).mean())
