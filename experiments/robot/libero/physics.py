"""LIBERO's physics without the work that robosuite does twice and three times, to the bit.

robosuite computes everything of a state twice before each physics step (`sim.forward`, then again for the controller), and MuJoCo's step
computes it a third time. Positions, contacts and velocities, most of it, are the same all three times. Only the constraint solver goes
on from where it stopped, so only what follows the velocities is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SharedPhysics:
    """Stands in for `forward` and `step` of a robosuite simulation; outside `control_step` and `draws` they do what they always did."""

    def __init__(self, sim: Any) -> None:
        import mujoco  # late: what draws is chosen before

        self._mujoco, self._model, self._data = mujoco, sim.model._model, sim.data._data
        self._shares = self._only_draws = False
        self._is_known = False  # whether what follows from positions and velocities is that of the present state
        sim.forward, sim.step = self._forward, self._step

    @contextmanager
    def control_step(self) -> Iterator[None]:
        """Within, nothing but a physics step moves anything."""
        self._shares = True
        try:
            yield
        finally:
            self._shares = self._is_known = False

    @contextmanager
    def draws(self) -> Iterator[None]:
        """Within, resets are made for the random numbers that they draw: nothing is computed."""
        self._only_draws = True
        try:
            yield
        finally:
            self._only_draws = False

    def _forward(self) -> None:
        if self._only_draws:
            return
        if self._is_known:
            self._mujoco.mj_forwardSkip(self._model, self._data, self._mujoco.mjtStage.mjSTAGE_VEL, 0)
        else:
            self._mujoco.mj_forward(self._model, self._data)
            self._is_known = self._shares

    def _step(self, with_udd: bool = True) -> None:
        advance = self._mujoco.mj_step2 if self._is_known else self._mujoco.mj_step
        advance(self._model, self._data)
        self._is_known = False
