"""The MetaWorld tasks that have an instruction and a scripted expert here, one line each.

`reset_low` / `reset_high` widen MetaWorld's own range of object positions [m] where that range is so narrow that a
policy can solve the task without looking. faucet-open and faucet-close start from the same picture: only the
instruction tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from prismatic.vla.constants import near_names

# What `make demo` trains and evaluates: two tasks that only the instruction tells apart, one that needs a second skill.
DEMO_TASKS = ("faucet-open", "faucet-close", "button-press-topdown")


@dataclass(frozen=True)
class MetaWorldTask:
    """One task: MetaWorld's environment of the name `<name>-v3`, and what differs from it."""

    name: str
    instruction: str
    reset_low: tuple[float, ...] | None = None  # object (and goal) position [m]; None: MetaWorld's own range
    reset_high: tuple[float, ...] | None = None
    max_steps: int = 150  # the experts need 40-120 steps

    @property
    def expert_class(self) -> str:
        """Name of the scripted policy in `metaworld.policies`."""
        words = {"peg-insert-side": "peg-insertion-side"}.get(self.name, self.name)
        return "Sawyer" + "".join(word.capitalize() for word in words.split("-")) + "V3Policy"


METAWORLD_TASKS: dict[str, MetaWorldTask] = {
    task.name: task
    for task in (
        MetaWorldTask("button-press", "press the button on the front"),
        MetaWorldTask("button-press-topdown", "press the button from above", (-0.22, 0.70, 0.115), (0.22, 0.88, 0.115), 120),
        MetaWorldTask("coffee-button", "press the button of the coffee machine"),
        MetaWorldTask("dial-turn", "turn the dial"),
        MetaWorldTask("door-lock", "lock the door"),
        MetaWorldTask("door-open", "open the door"),
        MetaWorldTask("door-unlock", "unlock the door"),
        MetaWorldTask("drawer-close", "close the drawer"),
        MetaWorldTask("drawer-open", "open the drawer"),
        MetaWorldTask("faucet-close", "turn the faucet left", (-0.22, 0.70, 0.0), (0.22, 0.88, 0.0), 120),
        MetaWorldTask("faucet-open", "turn the faucet right", (-0.22, 0.70, 0.0), (0.22, 0.88, 0.0), 120),
        MetaWorldTask("handle-press", "press the handle down"),
        MetaWorldTask("handle-press-side", "press the handle at the side down"),
        MetaWorldTask("handle-pull", "pull the handle up"),
        MetaWorldTask("plate-slide", "slide the plate into the goal"),
        MetaWorldTask("window-close", "close the window"),
        MetaWorldTask("window-open", "open the window"),
    )
}


def get_metaworld_task(name: str) -> MetaWorldTask:
    """The task called `name` (MetaWorld's `-v3` ending may be given).

    Raises:
        ValueError: no such task; the message lists near names.
    """
    task = METAWORLD_TASKS.get(name.removesuffix("-v3"))
    if task is None:
        raise ValueError(
            f"MetaWorld task {name!r} is not in the table of experiments/robot/metaworld/tasks.py; {near_names(name, METAWORLD_TASKS)}"
        )
    return task
