"""Normalised actions <-> the 256 token ids at the end of the base vocabulary.

[-1, 1] is cut by 256 equidistant edges into 255 bins; -1 becomes the last id, +1 the first action id. Decoding gives bin
centres, so the two ids nearest to +1 decode to the same value (RT-2, Brohan et al. 2023; OpenVLA, Kim et al. 2024).
"""

from __future__ import annotations

import numpy as np

from prismatic.vla.constants import NUM_ACTION_BINS, TokenIds


class ActionTokenizer:
    """Both directions for one vocabulary."""

    def __init__(self, token_ids: TokenIds) -> None:
        self.token_ids = token_ids
        self.bins = np.linspace(-1, 1, NUM_ACTION_BINS)  # float64 [256], edges
        self.bin_centers = (self.bins[:-1] + self.bins[1:]) / 2  # float64 [255]

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Token ids, int64 of the same shape as `actions`, which are clipped to [-1, 1]."""
        return self.token_ids.base_vocab_size - np.digitize(np.clip(actions, -1, 1), self.bins)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Bin centres, float64 of the same shape as `ids`; ids that stand for no action give the value of the nearest end."""
        index = self.token_ids.base_vocab_size - np.asarray(ids, np.int64) - 1
        return self.bin_centers[np.clip(index, 0, len(self.bin_centers) - 1)]
