"""The predictions that are known: which action they give for a step. Letters: H chunk, A action dim."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Plan(Protocol):
    """What the policy has said."""

    def add(self, step: int, actions: np.ndarray, now_step: int) -> None:
        """Takes in a chunk whose action 0 is meant for `step`; the robot is at `now_step`."""

    def at(self, step: int) -> np.ndarray | None:
        """The action [A] for `step`; None: no prediction reaches so far."""


class BlendedPlan:
    """The newest chunk; its first steps are mixed with what the plan said before."""

    def __init__(self, num_blend_steps: int) -> None:
        self._num_blend_steps = num_blend_steps
        self._start = 0
        self._actions: np.ndarray | None = None  # [n, A], from step _start on

    def add(self, step: int, actions: np.ndarray, now_step: int) -> None:
        fresh = actions[now_step - step :].copy()
        if self._actions is not None and self._num_blend_steps:
            old = self._actions[now_step - self._start :][: min(self._num_blend_steps, len(fresh))]
            weight = (np.arange(len(old))[:, None] + 1) / (self._num_blend_steps + 1)
            fresh[: len(old)] = (1 - weight) * old + weight * fresh[: len(old)]
        self._start, self._actions = now_step, fresh

    def at(self, step: int) -> np.ndarray | None:
        index = step - self._start
        return self._actions[index] if self._actions is not None and index < len(self._actions) else None


class EnsembledPlan:
    """All chunks that reach the present step, averaged. Source: Zhao et al. 2023 (arXiv:2304.13705), algorithm 2: w_i = exp(-m i)."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._chunks: list[tuple[int, np.ndarray]] = []  # (step of action 0, [H, A]), oldest first

    def add(self, step: int, actions: np.ndarray, now_step: int) -> None:
        self._chunks = [(start, chunk) for start, chunk in self._chunks if start + len(chunk) > now_step]
        self._chunks.append((step, actions))

    def at(self, step: int) -> np.ndarray | None:
        predictions = [chunk[step - start] for start, chunk in self._chunks if step - start < len(chunk)]
        if not predictions:
            return None
        ages = np.arange(len(predictions))
        ranks = ages if self._decay >= 0 else ages[::-1]  # from the one that counts most: no weight is beyond all numbers
        return np.average(predictions, axis=0, weights=np.exp(-abs(self._decay) * ranks))


def make_plan(num_blend_steps: int, ensemble_decay: float | None) -> Plan:
    """An empty plan of the kind that the options say."""
    return BlendedPlan(num_blend_steps) if ensemble_decay is None else EnsembledPlan(ensemble_decay)
