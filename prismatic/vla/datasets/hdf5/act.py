"""One episode per file, in the layout of ACT / ALOHA -> what is in it, images as the data sets that hold them. Letters: T steps, A, P dims.

    /action                        [T, A]      what was commanded at each step
    /observations/qpos, qvel ...   [T, P]      the state before that action
    /observations/images/<camera>  see `images`
    /compress_len                  [cameras, T]

/compress_len is not needed, see `images`; it does not say which of its rows belongs to which camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismatic.vla.datasets.episodes import Trajectory
from prismatic.vla.datasets.hdf5.instructions import act_instruction

OBSERVATIONS = "observations"
IMAGES = f"{OBSERVATIONS}/images"


@dataclass(frozen=True)
class ActEpisode:
    """One file, open; the arrays are read, the images are not."""

    trajectory: Trajectory  # "action", "observation" -> numbers, "language_instruction"
    images: Mapping[str, Any]  # camera -> its data set


def read_act_episode(file: Any, path: Path) -> ActEpisode:
    """What the open file `path` holds."""
    observations = file[OBSERVATIONS]
    observation: Trajectory = {name: item[()] for name, item in observations.items() if hasattr(item, "shape")}
    observation.setdefault("state", observation["qpos"])
    trajectory = {"action": file["action"][()], "observation": observation, "language_instruction": act_instruction(file, path)}
    return ActEpisode(trajectory, dict(file[IMAGES].items()))
