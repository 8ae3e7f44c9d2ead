"""Which sample comes next: one endless global order for all processes, exactly resumable.

An epoch shows w * n samples of a data set of size n and weight w (the published size-balanced shares), in one global random order
that follows from (seed, epoch) alone. A data set with w = 1 is shown exactly once per epoch. Each data set is walked through along
its own permutations, a new one per pass, so that small or down-weighted sets neither repeat in a fixed order nor leave samples out.

Samples may have shares of their own (`episode_weights`): a pass over their data set is then as long as all shares together and shows a
sample of share 2 twice, one of share 0.5 in every other pass, one of share 0 never. Which passes those are follows from systematic sampling
along a fixed shuffled order, whose starting point moves by the golden ratio from pass to pass.

The stream of all epochs, end to end, is dealt out to R processes like cards: process r takes positions r, r + R, r + 2R, ...
A position in the stream is therefore all there is to save, and with the same global batch another number of processes may resume.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

_BLOCK = 4096
_GOLDEN = (5**0.5 - 1) / 2


class _Shares:
    """How often each sample of a data set of n is shown in a pass."""

    def __init__(self, shares: np.ndarray, seed: int, part: int) -> None:
        """`shares` [n], not negative, not all 0."""
        self._whole = np.floor(shares).astype(np.int64)  # exactly so often
        rest = shares - self._whole
        self._num_drawn = round(float(rest.sum())) or int(not self._whole.any())  # of the rest, in a pass
        self._order = np.random.default_rng((seed, part, 0, 1)).permutation(len(shares))
        ends = np.cumsum(rest[self._order], dtype=np.float64)
        self._ends = ends * (self._num_drawn / max(float(ends[-1]), 1e-12))
        self.length = int(self._whole.sum()) + self._num_drawn  # of a pass
        self.most_in_a_pass = int(self._whole.max()) + 2  # drawn twice at most, where few are drawn
        self.checksum = zlib.crc32(np.ascontiguousarray(shares, np.float64).tobytes())

    def of_pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(samples, how often each has been shown in this pass before), int64 [length] each, not shuffled."""
        points = np.arange(self._num_drawn) + number * _GOLDEN % 1.0
        drawn = self._order[np.minimum(np.searchsorted(self._ends, points, side="right"), len(self._ends) - 1)]
        samples = np.sort(np.concatenate((np.repeat(np.arange(len(self._whole)), self._whole), drawn)))
        is_first = np.concatenate(([True], samples[1:] != samples[:-1]))
        place = np.arange(self.length)
        return samples, place - np.maximum.accumulate(np.where(is_first, place, 0))


class SampleKey(NamedTuple):
    """What the sampler hands to the data set: a sample and the number of this showing of it, which keys its augmentation."""

    sample: int
    num_earlier_passes: int


class MixtureSampler(Sampler[SampleKey]):
    """Endless stream of one process's share; iterating starts at `position` and does not move it (see `advance`)."""

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shares: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        """`sizes`, `weights` and `shares` list the data sets in the order of their samples in the concatenated data set.

        `shares` [size] of one say how often a pass shows each of its samples; None: once. Raises:
            ValueError: no samples, or a weight that is not above 0.
        """
        if not sizes or min(sizes) < 1:
            raise ValueError(f"every data set of a mixture needs at least one sample, found sizes {list(sizes)}")
        if len(sizes) != len(weights) or min(weights) <= 0:
            raise ValueError(f"every data set of a mixture needs a weight above 0, found {list(weights)} for {len(sizes)} data sets")
        assert 0 <= rank < world_size
        self.sizes, self.seed, self.rank, self.world_size = list(sizes), seed, rank, world_size
        self._given_shares = list(shares or [None] * len(sizes))
        self._share_out()
        self.counts = [max(1, round(length * weight)) for length, weight in zip(self._lengths, weights, strict=True)]  # per epoch
        self.position = 0  # samples that all processes together have consumed

    def _share_out(self) -> None:
        """What follows from shares and seed."""
        numbered = enumerate(self._given_shares)
        self._shares = [None if given is None else _Shares(given, self.seed, part) for part, given in numbered]
        self._lengths = [size if found is None else found.length for size, found in zip(self.sizes, self._shares, strict=True)]

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
        """(samples, number of the showing), int64 [num_samples_per_epoch] each, in the global order of `epoch`."""
        samples, passes = [], []
        first_sample = 0
        for part, (size, length, count) in enumerate(zip(self.sizes, self._lengths, self.counts, strict=True)):
            start, end = epoch * count, (epoch + 1) * count
            for number in range(start // length, (end - 1) // length + 1):  # the passes over this data set that the epoch touches
                order, showings = self._pass_order(part, number)
                touched = slice(max(start - number * length, 0), min(end - number * length, length))
                samples.append(first_sample + order[touched])
                passes.append(showings[touched])
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
        order, showings = self._pass_order(part, key.num_earlier_passes // self._most_in_a_pass(part))
        place = int(np.flatnonzero((order == key.sample - first_sample) & (showings == key.num_earlier_passes))[0])
        for sample in np.roll(order, -place)[1:]:
            yield first_sample + int(sample)

    def _most_in_a_pass(self, part: int) -> int:
        shares = self._shares[part]
        return 1 if shares is None else shares.most_in_a_pass

    def _pass_order(self, part: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(samples of a data set in the order of one pass over it, number of this showing of each), int64 [length of a pass] each."""
        rng, shares = np.random.default_rng((self.seed, part, number)), self._shares[part]
        if shares is None:
            return rng.permutation(self.sizes[part]), np.full(self.sizes[part], number)
        samples, earlier = shares.of_pass(number)
        shuffled = rng.permutation(len(samples))
        return samples[shuffled], number * shares.most_in_a_pass + earlier[shuffled]

    def advance(self, num_samples: int) -> None:
        """Moves the position by samples that all processes together have consumed; what workers fetched ahead does not count."""
        self.position += num_samples

    def state_dict(self) -> dict[str, Any]:
        """Position, and what it is a position in."""
        return {"position": self.position, "seed": self.seed, "sizes": self.sizes, "counts": self.counts, "shares": self._checksums}

    @property
    def _checksums(self) -> list[int | None]:
        """What tells other shares."""
        return [None if shares is None else shares.checksum for shares in self._shares]

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
        if list(state.get("shares", [None] * len(self.sizes))) != self._checksums:
            raise ValueError(
                "the checkpoint was trained with other weights of the episodes: the position in the data cannot be resumed. Give the "
                "manifest or --episode_weights as they were; or begin a new run that continues the policy: without --resume, with "
                "--vla_path CHECKPOINT and another --run_id_override"
            )
        self.position, self.seed = int(state["position"]), int(state["seed"])
        self._share_out()
