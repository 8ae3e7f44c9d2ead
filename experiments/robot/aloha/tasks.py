"""The tasks of gym-aloha."""

from __future__ import annotations

from dataclasses import dataclass

from prismatic.vla.constants import near_names

CONTROL_HZ = 25.0


@dataclass(frozen=True)
class AlohaTask:
    """One task of gym-aloha."""

    name: str
    instruction: str
    max_steps: int  # 8 s, as gym-aloha's 400 steps at 50 Hz


ALOHA_TASKS = {
    task.name: task
    for task in (
        AlohaTask("transfer_cube", "pick up the cube with the right arm and transfer it to the left arm", 200),
        AlohaTask("insertion", "insert the peg into the socket", 200),
    )
}


def get_aloha_task(name: str) -> AlohaTask:
    """The task called `name`.

    Raises:
        ValueError: no such task; the message lists near names.
    """
    task = ALOHA_TASKS.get(name)
    if task is None:
        raise ValueError(f"ALOHA task {name!r} is not simulated; {near_names(name, ALOHA_TASKS)}")
    return task
