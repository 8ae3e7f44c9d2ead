"""Which episode a simulator process plays next."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.robot.simulators.episodes import EpisodeSpec


@dataclass(frozen=True)
class PlannedEpisode:
    """An episode and the run that it belongs to: "none", the name of a control, or "expert"."""

    spec: EpisodeSpec
    run: str


class Backlog:
    """The episodes that nobody plays yet. A process keeps to its task as long as it can: another one costs a new environment.

    So that the processes' questions still fill the policy's batches, which hold one instruction each, only `num_tasks` are played at a
    time; a process whose task has no more episodes opens the next one, or joins the one with most to do for each process.
    """

    def __init__(self, episodes: Sequence[PlannedEpisode], num_tasks: int) -> None:
        self._num_tasks = num_tasks
        self._waiting: dict[str, deque[PlannedEpisode]] = {}
        for episode in episodes:
            self._waiting.setdefault(episode.spec.task, deque()).append(episode)

    def take(self, task: str | None, playing: Iterable[str]) -> PlannedEpisode | None:
        """The next episode for a process with the environment of `task`, while the others are `playing` these; None: all are taken."""
        if task not in self._waiting:
            players = Counter(playing)
            begun = [name for name in self._waiting if players[name]]
            untouched = [name for name in self._waiting if not players[name]]
            if untouched and len(begun) < self._num_tasks:
                task = untouched[0]
            else:
                task = max(begun, key=lambda name: len(self._waiting[name]) / players[name], default=None)
        if task is None:
            return None
        episode = self._waiting[task].popleft()
        if not self._waiting[task]:
            del self._waiting[task]
        return episode
