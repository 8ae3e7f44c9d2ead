"""Controls: what remains of the success when the policy cannot see, or is told something else.

A policy that uses vision and language fails both. One that still succeeds has learnt a motion by heart.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from experiments.robot.simulators.interfaces import Simulator
from prismatic.vla.types import Observation

CONTROLS = ("none", "grey", "wrong_instruction")
_GREY = 128

# (task, observation) -> what the policy is shown instead
Control = Callable[[str, Observation], Observation]


def check_control(name: str) -> None:
    """Raises ValueError where there is no such control."""
    if name not in CONTROLS:
        raise ValueError(f"--control is {name!r}, expected one of {list(CONTROLS)}")


def make_control(name: str, simulator: Simulator, tasks: Sequence[str]) -> Control:
    """The control called `name` for an evaluation of `tasks`.

    Raises:
        ValueError: unknown name, or no task with another instruction to borrow.
    """
    check_control(name)
    if name == "none":
        return lambda task, observation: observation
    if name == "grey":
        return lambda task, observation: replace(
            observation, images={camera: np.full_like(image, _GREY) for camera, image in observation.images.items()}
        )
    wrong = borrowed_instructions(name, simulator, tasks)
    return lambda task, observation: replace(observation, instruction=wrong[task])


def borrowed_instructions(name: str, simulator: Simulator, tasks: Sequence[str]) -> dict[str, str]:
    """Task -> what the control called `name` tells the policy in place of the task's own words; {} where it leaves them.

    The more tasks are evaluated, the more alike the words may be: an episode that was told others is another episode.

    Raises:
        ValueError: no task with another instruction to borrow.
    """
    if name != "wrong_instruction":
        return {}
    return wrong_instructions({task: simulator.instruction(task) for task in tasks})


def wrong_instructions(instructions: dict[str, str]) -> dict[str, str]:
    """Task -> the instruction, of another task, that reads most like its own (the hardest to confuse fairly).

    Raises:
        ValueError: all tasks have the same instruction.
    """
    wrong = {}
    for task, own in instructions.items():
        others = sorted({text for text in instructions.values() if text != own})
        if not others:
            raise ValueError("--control wrong_instruction needs at least two tasks with different instructions in --task_names")
        wrong[task] = max(others, key=lambda text: difflib.SequenceMatcher(None, own, text).ratio())
    return wrong
