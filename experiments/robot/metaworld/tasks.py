"""The MetaWorld tasks that have an instruction and a scripted expert here, one line each.

`reset_low` / `reset_high` widen MetaWorld's own range of object positions [m] where that range is so narrow that a
policy can solve the task without looking. faucet-open and faucet-close start from the same picture: only the
instruction tells them apart. In a task whose name ends in `-moving` a body slides to and fro within that range while the robot acts:
such a scene does not wait for a policy that thinks.
"""

from __future__ import annotations

from dataclasses import dataclass

from prismatic.vla.constants import near_names

# What `make demo` trains and evaluates: two tasks that only the instruction tells apart, one that needs a second skill.
DEMO_TASKS = ("faucet-open", "faucet-close", "button-press-topdown")
# What the small base was pretrained on (scripts/pretrain_base.py): none of the above, nor another task that shows a button from above.
BASE_TASKS = (
    "button-press", "button-press-wall", "coffee-button", "dial-turn", "door-close", "door-lock", "door-open", "door-unlock",
    "drawer-close", "drawer-open", "hammer", "handle-press", "handle-press-side", "handle-pull", "handle-pull-side", "lever-pull",
    "peg-unplug-side", "plate-slide", "plate-slide-side", "soccer", "sweep", "sweep-into", "window-close", "window-open",
)  # fmt: skip


@dataclass(frozen=True)
class MetaWorldTask:
    """One task: MetaWorld's environment of the name `<base_name>-v3`, and what differs from it."""

    name: str
    instruction: str
    reset_low: tuple[float, ...] | None = None  # object (and goal) position [m]; None: MetaWorld's own range
    reset_high: tuple[float, ...] | None = None
    max_steps: int = 150  # the experts need 40-120 steps
    moving_body: str = ""  # of MuJoCo's model; slides along x between reset_low and reset_high
    speed: float = 0.0  # [m/s], of that body; the side that it starts to is drawn for each episode

    @property
    def base_name(self) -> str:
        """MetaWorld's name, without its `-v3`."""
        return self.name.removesuffix("-moving")

    @property
    def travel(self) -> tuple[float, float]:
        """x [m] between which the moving body slides.

        Raises:
            ValueError: a task that does not say its range.
        """
        if self.reset_low is None or self.reset_high is None:
            raise ValueError(f"task {self.name}: {self.moving_body} moves between reset_low and reset_high; give both")
        return self.reset_low[0], self.reset_high[0]

    @property
    def expert_class(self) -> str:
        """Name of the scripted policy in `metaworld.policies`."""
        words = {"peg-insert-side": "peg-insertion-side"}.get(self.base_name, self.base_name)
        return "Sawyer" + "".join(word.capitalize() for word in words.split("-")) + "V3Policy"


METAWORLD_TASKS: dict[str, MetaWorldTask] = {
    task.name: task
    for task in (
        MetaWorldTask("button-press", "press the button on the front", (-0.20, 0.78, 0.115), (0.20, 0.90, 0.115)),
        MetaWorldTask("button-press-topdown", "press the button from above", (-0.22, 0.70, 0.115), (0.22, 0.88, 0.115), 120),
        MetaWorldTask(
            "button-press-topdown-moving",
            "press the button from above",
            (-0.22, 0.70, 0.115),
            (0.22, 0.88, 0.115),
            200,
            moving_body="box",
            speed=0.2,
        ),
        MetaWorldTask("button-press-wall", "press the button behind the wall"),
        MetaWorldTask("coffee-button", "press the button of the coffee machine", (-0.20, 0.75, 0.0), (0.20, 0.90, 0.0)),
        MetaWorldTask("dial-turn", "turn the dial", (-0.20, 0.65, 0.0), (0.20, 0.85, 0.0), 200),
        MetaWorldTask("door-close", "close the door", (-0.05, 0.80, 0.15), (0.15, 0.95, 0.15)),
        MetaWorldTask("door-lock", "lock the door", (-0.20, 0.75, 0.15), (0.20, 0.88, 0.15), 200),
        MetaWorldTask("door-open", "open the door", (0.0, 0.85, 0.15), (0.15, 0.95, 0.15), 200),
        MetaWorldTask("door-unlock", "unlock the door", (-0.20, 0.75, 0.15), (0.20, 0.88, 0.15)),
        MetaWorldTask("drawer-close", "close the drawer", (-0.20, 0.85, 0.0), (0.20, 0.92, 0.0)),
        MetaWorldTask("drawer-open", "open the drawer", (-0.20, 0.85, 0.0), (0.20, 0.92, 0.0)),
        MetaWorldTask("faucet-close", "turn the faucet left", (-0.22, 0.70, 0.0), (0.22, 0.88, 0.0), 120),
        MetaWorldTask("faucet-open", "turn the faucet right", (-0.22, 0.70, 0.0), (0.22, 0.88, 0.0), 120),
        MetaWorldTask("hammer", "push the nail in with the hammer", (-0.15, 0.40, 0.0), (0.15, 0.52, 0.0)),
        MetaWorldTask("handle-press", "press the handle down", (-0.20, 0.75, 0.0), (0.20, 0.90, 0.0)),
        MetaWorldTask("handle-press-side", "press the handle at the side down", (-0.35, 0.60, 0.0), (-0.15, 0.80, 0.0)),
        MetaWorldTask("handle-pull", "pull the handle up", (-0.20, 0.75, 0.0), (0.20, 0.90, 0.0), 200),
        MetaWorldTask("handle-pull-side", "pull the handle at the side up", (-0.35, 0.60, 0.0), (-0.15, 0.80, 0.0), 200),
        MetaWorldTask("lever-pull", "pull the lever up", (-0.20, 0.65, 0.0), (0.20, 0.85, 0.0)),
        MetaWorldTask("peg-unplug-side", "unplug the peg", (-0.25, 0.58, 0.0), (-0.12, 0.80, 0.0), 200),
        MetaWorldTask(
            "plate-slide", "slide the plate into the goal", (-0.10, 0.58, 0.0, -0.15, 0.82, 0.0), (0.10, 0.62, 0.0, 0.15, 0.90, 0.0)
        ),
        MetaWorldTask(
            "plate-slide-side",
            "slide the plate to the left into the goal",
            (0.0, 0.55, 0.0, -0.30, 0.54, 0.0),
            (0.10, 0.70, 0.0, -0.20, 0.66, 0.0),
        ),
        MetaWorldTask("soccer", "push the ball into the goal", (-0.12, 0.58, 0.03, -0.12, 0.78, 0.0), (0.12, 0.70, 0.03, 0.12, 0.90, 0.0)),
        MetaWorldTask("sweep", "sweep the cube off the table", (-0.15, 0.55, 0.02), (0.15, 0.75, 0.02), 200),
        MetaWorldTask(
            "sweep-into",
            "sweep the cube into the hole",
            (-0.15, 0.55, 0.02, -0.001, 0.8399, 0.0199),
            (0.15, 0.72, 0.02, 0.001, 0.8401, 0.0201),
        ),
        MetaWorldTask("window-close", "close the window", (-0.10, 0.70, 0.20), (0.12, 0.90, 0.20)),
        MetaWorldTask("window-open", "open the window", (-0.15, 0.65, 0.16), (0.15, 0.90, 0.16)),
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
