"""The text that each step was recorded for, from whichever place the recorder put it into. Letters: T steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prismatic.vla.datasets.lerobot.layout import EpisodePlace
from prismatic.vla.datasets.repairs import Repairs

# Columns with a text per step, or with a number of meta/tasks; the last two are GR00T's.
_COLUMNS = (
    "task_index",
    "task",
    "language_instruction",
    "instruction",
    "language_raw",
    "annotation.human.action.task_description",
    "annotation.human.task_description",
)


def find_instructions(
    place: EpisodePlace, name: str, tasks: Mapping[int, str], values: Mapping[str, np.ndarray], length: int, repairs: Repairs
) -> np.ndarray | None:
    """Texts object [T]; None if there are none.

    A number per step is looked up in `tasks` (meta/tasks), a text per step is taken as it is; else the episode's own task counts.
    """
    for column in _COLUMNS:
        array = values.get(column)
        if array is None or array.size != length:
            continue
        if array.dtype == object:
            if any(text.strip() for text in array.ravel()):
                return array.reshape(length)
        elif tasks:
            return _looked_up(place, name, array.reshape(length), tasks, repairs)
    if len(set(place.tasks)) > 1:  # which step belongs to which?
        repairs.note("episodes with several tasks, and none said per step, have no instruction", f"{name}: {list(place.tasks)}")
        return np.full(length, "", dtype=object)
    return np.full(length, place.tasks[0], dtype=object) if place.tasks else None


def _looked_up(place: EpisodePlace, name: str, numbers: np.ndarray, tasks: Mapping[int, str], repairs: Repairs) -> np.ndarray:
    """The text of each number; a number without text takes the episode's only task, or none."""
    own = place.tasks[0] if len(set(place.tasks)) == 1 else ""
    listed = [-1 if number != number else int(number) for number in numbers.tolist()]
    unknown = [step for step, number in enumerate(listed) if number not in tasks]
    if unknown:
        found = f"{name}: step {unknown[0]} has the number {listed[unknown[0]]}, meta/ lists {len(tasks)} tasks"
        repairs.note(
            f"steps whose task meta/ does not list {'take the task of their episode' if own else 'have no instruction'}",
            found,
            len(unknown),
        )
    odd = next((number for number in dict.fromkeys(listed) if number in tasks and tasks[number] not in place.tasks), None)
    if odd is not None and place.tasks:
        repairs.note(
            "episodes whose number of a task stands for another text than meta/ lists for the episode take the number's",
            f"{name}: {odd} is {tasks[odd]!r}, the episode's tasks are {list(place.tasks)}",
        )
    return np.array([tasks.get(number, own) for number in listed], dtype=object)
