"""Which sample comes next: one endless global order for all processes, exactly resumable.

An epoch shows w * n samples of a data set of size n and weight w (the published size-balanced shares), in one global random order
that follows from (seed, epoch) alone. A data set with w = 1 is shown exactly once per epoch. Each data set is walked through along
its own permutations, a new one per pass, so that small or down-weighted sets neither repeat in a fixed order nor leave samples out.

The stream of all epochs, end to end, is dealt out to R processes like cards: process r takes positions r, r + R, r + 2R, ...
A position in the stream is therefore all there is to save, and with the same global batch another number of processes may resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

_BLOCK = 4096


class SampleKey(NamedTuple):
    """What the sampler hands to the data set: a sample and how often it has been shown before, which keys its augmentation."""

    sample: int
    num_earlier_passes: int


class MixtureSampler(Sampler[SampleKey]):
    """Endless stream of one process's share; iterating starts at `position` and does not move it (see `advance`)."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, rank: int = 0, world_size: int = 1) -> None:
        """`sizes` and `weights` list the data sets in the order of their samples in the concatenated data set.

        Raises:
            ValueError: no samples, or a weight that is not above 0.
        """
        if not sizes or min(sizes) < 1:
            raise ValueError(f"every data set of a mixture needs at least one sample, found sizes {list(sizes)}")
        if len(sizes) != len(weights) or min(weights) <= 0:
            raise ValueError(f"every data set of a mixture needs a weight above 0, found {list(weights)} for {len(sizes)} data sets")
        assert 0 <= rank < world_size
        self.sizes, self.seed, self.rank, self.world_size = list(sizes), seed, rank, world_size
        self.counts = [max(1, round(size * weight)) for size, weight in zip(sizes, weights, strict=True)]  # per epoch
        self.position = 0  # samples that all processes together have consumed

    @property
    def num_samples_per_epoch(self) -> int:
        """Over all processes."""
        return sum(self.counts)

    def __iter__(self) -> Iterator[SampleKey]:
        position = self.position + self.rank
        epoch, offset = divmod(position, self.num_samples_per_epoch)
        while True:
            own = [order[offset :: self.world_size] for order in self.epoch_order(epoch)]
            for start in range(0, len(own[0]), _BLOCK):  # lists of Python numbers take five times the memory of the arrays
                for sample, num_earlier in zip(*(order[start : start + _BLOCK].tolist() for order in own), strict=True):
                    yield SampleKey(sample, num_earlier)
                    position += self.world_size
            epoch, offset = divmod(position, self.num_samples_per_epoch)

    def epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(samples, earlier passes), int64 [num_samples_per_epoch] each, in the global order of `epoch`."""
        samples, passes = [], []
        first_sample = 0
        for part, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            start, end = epoch * count, (epoch + 1) * count
            for number in range(start // size, (end - 1) // size + 1):  # the passes over this data set that the epoch touches
                order = self._pass_order(part, number)
                chosen = order[max(start - number * size, 0) : min(end - number * size, size)]
                samples.append(first_sample + chosen)
                passes.append(np.full(len(chosen), number))
            first_sample += size
        mixed = np.random.default_rng((self.seed, len(self.sizes), epoch)).permutation(self.num_samples_per_epoch)
        return np.concatenate(samples)[mixed], np.concatenate(passes)[mixed]

    def following(self, key: SampleKey) -> Iterator[int]:
        """The other samples of the key's data set, in the order of the pass that it belongs to: what is shown where it cannot be.

        The same for any number of processes, and after resuming.
        """
        ends = np.cumsum(self.sizes)
        part = int(np.searchsorted(ends, key.sample, side="right"))
        first_sample = int(ends[part]) - self.sizes[part]
        order = self._pass_order(part, key.num_earlier_passes)
        place = int(np.flatnonzero(order == key.sample - first_sample)[0])
        for sample in np.roll(order, -place)[1:]:
            yield first_sample + int(sample)

    def _pass_order(self, part: int, number: int) -> np.ndarray:
        """int64 [size]: the samples of a data set in the order of one pass over it."""
        return np.random.default_rng((self.seed, part, number)).permutation(self.sizes[part])

    def advance(self, num_samples: int) -> None:
        """Moves the position by samples that all processes together have consumed; what workers fetched ahead does not count."""
        self.position += num_samples

    def state_dict(self) -> dict[str, Any]:
        """Position, and what it is a position in."""
        return {"position": self.position, "seed": self.seed, "sizes": self.sizes, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved position; takes over its seed.

        Raises:
            ValueError: the data have changed since, so that the position means something else.
        """
        for name, now in (("sizes", self.sizes), ("counts", self.counts)):
            if list(state[name]) != now:
                raise ValueError(
                    f"the checkpoint was trained on data sets with {name} {list(state[name])}, now they have {now}: the position in the "
                    "data cannot be resumed. Restore the data; or, if data were added, begin a new run that continues the policy: without "
                    "--resume, with --vla_path CHECKPOINT (heads and statistics are taken over) and another --run_id_override"
                )
        self.position, self.seed = int(state["position"]), int(state["seed"])
