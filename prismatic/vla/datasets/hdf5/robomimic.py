"""One file per task, in the layout of LIBERO and robomimic -> its demonstrations, images as the data sets that hold them. Letters: T steps.

    /data/demo_0/actions           [T, A]
    /data/demo_0/obs/<name>        numbers [T, ...], or images uint8 [T, H, W, 3]
    /data attribute problem_info   LIBERO: JSON with language_instruction

LIBERO stores images as OpenGL renders them, upside down. Policies see them rotated by 180 degrees, so the frames read here are
rotated. Other robomimic files are upright already.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.episodes import Trajectory
from prismatic.vla.datasets.hdf5.instructions import folder_instruction, instruction_of_name, problem_instruction


def is_upside_down(file: Any) -> bool:
    """True for LIBERO's files, whose images are as OpenGL renders them."""
    if "problem_info" in file["data"].attrs:
        return True
    return any("agentview_rgb" in demo.get("obs", {}) for _, demo in zip(range(1), file["data"].values(), strict=False))


def demo_numbers(file: Any) -> list[int]:
    """The numbers of /data/demo_<number>, ascending."""
    numbers = []
    for name in file["data"]:
        if not re.fullmatch(r"demo_\d+", name):
            raise ValueError(f"/data/{name} is not called demo_<number>, as robomimic calls episodes")
        numbers.append(int(name.removeprefix("demo_")))
    return sorted(numbers)


def camera_names(file: Any) -> tuple[str, ...]:
    """The cameras of the first demonstration.

    Raises:
        ValueError: there is none.
    """
    demos = demo_numbers(file)
    if not demos:
        raise ValueError("/data holds no demo_<number>; record the task again")
    observations = file[f"data/demo_{demos[0]}"].get("obs", {})
    return tuple(name for name, item in observations.items() if item.ndim == 4)


def read_demo(demo: Any) -> Trajectory:
    """ "action" and "observation" of one demonstration, without its images.

    Raises:
        ValueError: a part is missing.
    """
    for part in ("actions", "obs"):
        if part not in demo:
            raise ValueError(f"{demo.name}/{part} is missing; found {sorted(demo)}")
    observation: Trajectory = {name: item[()] for name, item in demo["obs"].items() if item.ndim < 4}
    if {"ee_states", "gripper_states"} <= observation.keys():
        observation.setdefault("state", np.concatenate([observation["ee_states"], observation["gripper_states"]], axis=1))
    return {"action": demo["actions"][()], "observation": observation}


def libero_instruction(file: Any, path: Path) -> str:
    """LIBERO's instruction: from problem_info, else, as its files are called after the task, from the name."""
    text = problem_instruction(file["data"])
    if text is not None:
        return text
    beside = folder_instruction(path)
    return beside or (instruction_of_name(path) if is_upside_down(file) else "")
