"""Samples that cannot be decoded: the data set replaces them (`VLADataset`), a run counts them, names each once and stops at too many.

Each is a row of metrics.jsonl, {"step", "seconds", "data/bad_sample": where, "data/episode", "data/reason"}; a resumed run reads them back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prismatic.training.distributed import Ranks, gather_objects, raise_together
from prismatic.vla.types import BadSample

_WHERE, _EPISODE, _REASON = "data/bad_sample", "data/episode", "data/reason"
_SHARE, _LEAST = 0.001, 10
_MOST_EPISODES = 10  # in a message


def bad_samples_allowed(max_bad_samples: int | None, num_samples_per_epoch: int) -> int:
    """How many a run takes: as --max_bad_samples says, else a thousandth of an epoch, and ten at least."""
    return max_bad_samples if max_bad_samples is not None else max(_LEAST, math.ceil(_SHARE * num_samples_per_epoch))


def as_row(bad: BadSample) -> dict[str, str]:
    """The values of its row in metrics.jsonl."""
    return {_WHERE: bad.where, _EPISODE: bad.episode, _REASON: bad.reason}


class TooManyBadSamplesError(ValueError):
    """More samples cannot be decoded than a run takes."""


class BadSampleWatch:
    """The bad samples that the processes of one run have met; each counts once."""

    def __init__(self, num_allowed: int, ranks: Ranks) -> None:
        self._num_allowed, self._ranks = num_allowed, ranks
        self._known: dict[str, str] = {}  # where -> episode
        self._met: dict[str, BadSample] = {}  # by this process, since the last look
        self._has_new = False  # since this part of the run began

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Knows those of an earlier part of the run, from its rows in metrics.jsonl. Every process must call it, with the same rows."""
        self._known |= {row[_WHERE]: row[_EPISODE] for row in rows if _WHERE in row}

    def add(self, met: Sequence[BadSample]) -> None:
        """Notes what this process has met."""
        self._met |= {bad.where: bad for bad in met if bad.where not in self._known}

    def look(self) -> list[BadSample]:
        """Those that any process met first since the last look, the same on every process. Every process must call it."""
        new: dict[str, BadSample] = {}
        for own in gather_objects(list(self._met.values()), self._ranks):
            new |= {bad.where: bad for bad in own if bad.where not in self._known}
        self._met, self._has_new = {}, self._has_new or bool(new)
        self._known |= {where: bad.episode for where, bad in new.items()}
        return list(new.values())

    def check(self) -> None:
        """Returns if no more are known than the run takes. Every process must call it.

        Those of an earlier part of the run count, but stop nothing by themselves: their files may have been repaired since.

        Raises:
            TooManyBadSamplesError: there are; the message says how to go on.
        """
        if not self._has_new or len(self._known) <= self._num_allowed:
            return
        counts: dict[str, int] = {}
        for episode in self._known.values():
            counts[episode] = counts.get(episode, 0) + 1
        worst = sorted(counts, key=lambda episode: -counts[episode])[:_MOST_EPISODES]
        error = TooManyBadSamplesError(
            f"{len(self._known)} samples cannot be decoded, more than --max_bad_samples {self._num_allowed}; metrics.jsonl names each with "
            "the reason. Repair the files and go on with --resume True; or leave their episodes out, in a new run that continues this one "
            f"(--vla_path CHECKPOINT, another --run_id_override): the lines for --exclude_episodes begin with {'; '.join(worst)}"
        )
        raise_together(error, self._ranks)
