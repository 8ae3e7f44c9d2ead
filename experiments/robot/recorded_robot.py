"""A robot that is played by its own recordings: policy, server and control loop are rehearsed before a motor turns.

python scripts/run_robot.py --robot recorded:data/my_robot --server ws://127.0.0.1:8777 --unattended True

Rollout by rollout it takes the next episode of the data set (of the split `val` where there is one). Its arms are where they were told to
be; cameras and state show what was recorded, one step further with each command that moves it (the walk to the first target included), and
the same while it is held. So the policy always sees real observations, and its commands can be compared with what was done then. Whether
the task would have been solved, recordings cannot say. The data set needs its entry, as in training; `--robot_args` takes "stride" and
"robot_platform", like its flags.

Letters: T steps of the episode, A action dim, P proprio dim.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from prismatic.acting.robot import Robot
from prismatic.vla.constants import ActionKind, near_names
from prismatic.vla.datasets.manifest import is_manifest
from prismatic.vla.datasets.opening import open_index
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.types import Observation

logger = logging.getLogger(__name__)


class RecordedRobot(Robot):
    """The robot of a data set, as its episodes show it."""

    is_rehearsal = True

    def __init__(self, folder: str, stride: int | str | None = None, robot_platform: str | None = None) -> None:
        """`folder`: of the data set, which has an entry in the registry; `stride`, `robot_platform`: as in training.

        Raises:
            ValueError: there is no such data set, or it cannot be read as its entry says.
        """
        path = Path(folder).expanduser()
        bare = path.with_name(path.name.partition(":")[0])  # without a version
        if not bare.exists():
            near = near_names(bare.name, [other.name for other in bare.parent.iterdir()]) if bare.parent.is_dir() else "nor is its parent"
            raise ValueError(f"--robot recorded:{folder}: {bare} is not there; {near}")
        if path.is_file() and not is_manifest(path.name):
            raise ValueError(f"--robot recorded:{folder}: {path} is a file; pass the folder of the data set, recorded:{path.parent}")
        spec = resolve_datasets(path.name, path.parent, robot_platform, stride=None if stride is None else str(stride))[0]
        self._index = index = open_index(spec)
        self._episodes = index.episodes_of("val" if "val" in index.splits else next(iter(index.splits)))
        if not len(self._episodes):
            index.check_refused()  # says why
            raise ValueError(f"{path} has no episode that could play the robot")
        spec.check_widths(index.actions.shape[1], index.proprio.shape[1])
        self.action_names, self.state_names = spec.platform.action_names, spec.platform.proprio_names
        self._is_target = np.array([kind is ActionKind.TARGET for kind in spec.platform.action_kinds])
        self._range = np.maximum(np.ptp(np.asarray(index.actions), axis=0), 1e-9)  # [A]
        self._gaps: list[np.ndarray] = []  # [A] per command that moved: its distance from the recorded one
        self.reset(0)

    def reset(self, rollout: int) -> None:
        """Goes to the first step of the next episode; says how the commands of the last one compare with the recorded ones."""
        self._tell()
        self._episode = int(self._episodes[rollout % len(self._episodes)])
        self._first = int(self._index.episode_starts[self._episode])
        self.max_steps = int(self._index.lengths[self._episode])
        self._step, self._num_looks = 0, 0
        text = self._index.instruction_ids[self._first]
        self.instruction = self._index.instructions[text] if text >= 0 else ""
        self._start = self._position = self._where_it_began()

    def _where_it_began(self) -> np.ndarray:
        """float64 [A]: targets by the state of the same name, or as first commanded; 0 for motions and velocities."""
        measured = dict(zip(self.state_names, self._index.proprio[self._first], strict=True))
        commanded = zip(self.action_names, self._index.actions[self._first], strict=True)
        return np.where(self._is_target, [float(measured.get(name, value)) for name, value in commanded], 0.0)

    def connect(self) -> None:
        logger.info("no robot moves: recorded episodes play its part (%d), and no rollout counts", len(self._episodes))

    def position(self) -> np.ndarray:
        return self._position

    def observe(self, instruction: str) -> Observation:
        row = self._first + min(self._step, self.max_steps - 1)
        images = {camera: self._index.frame(row, column) for column, camera in enumerate(self._index.cameras)}
        self._num_looks += 1
        for name, picture in images.items():  # as a camera's, no two pictures are the same; one that were would be taken to hang
            images[name] = picture = picture.copy()
            picture[0, 0, 0] ^= self._num_looks & 1
        return Observation(images, instruction, np.asarray(self._index.proprio[row]))

    def send(self, action: np.ndarray) -> None:
        """Moves to the targets; the episode goes on where anything moves."""
        moves = np.where(self._is_target, action != self._position, action != 0).any()
        if moves and self._step < self.max_steps:
            self._gaps.append(np.abs(action - self._index.actions[self._first + self._step]))
            self._step += 1
            if self._step == self.max_steps:
                self._tell()
        self._position = np.where(self._is_target, action, 0.0)

    def disconnect(self) -> None:
        self._tell()

    def _tell(self) -> None:
        """How far the commands of this rollout were from the recorded ones, beside a robot that had stayed where it began."""
        if not self._gaps:
            return
        share = np.mean(self._gaps, axis=0) / self._range
        recorded = self._index.actions[self._first : self._first + len(self._gaps)]
        still = (np.abs(recorded - self._start).mean(axis=0) / self._range).mean()
        worst = int(share.argmax())
        logger.info(
            "episode %s: %d commands, on average %.1f %% of a dimension's range from the recorded ones (staying at the start: %.1f %%); "
            "farthest in %s: %.1f %%",
            *(self._index.label_of(self._episode), len(self._gaps), 100 * share.mean(), 100 * still),
            *(self.action_names[worst], 100 * share[worst]),
        )
        self._gaps = []
