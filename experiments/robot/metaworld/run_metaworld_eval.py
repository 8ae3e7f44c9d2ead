"""Evaluates a checkpoint (or the scripted expert) in closed loop on MetaWorld tasks, on object positions that no demonstration has seen.

python experiments/robot/metaworld/run_metaworld_eval.py --pretrained_checkpoint runs/demo/train/demo --num_trials_per_task 40
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags
from experiments.robot.evaluation.policies import load_policy
from experiments.robot.evaluation.report import Report
from experiments.robot.evaluation.run import print_report, run_evaluation
from experiments.robot.metaworld.environment import CAMERAS, MetaWorldSimulator
from experiments.robot.metaworld.tasks import DEMO_TASKS, get_metaworld_task
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script
from prismatic.vla.types import check_side


@dataclass(frozen=True)
class EvalConfig(EvaluationFlags):
    """Plays MetaWorld with a checkpoint."""

    # MetaWorld
    task_names: list[str] = field(default_factory=lambda: list(DEMO_TASKS))  # see experiments/robot/metaworld/tasks.py
    num_trials_per_task: int = 40  # episodes
    image_size: int = 64  # pixels; as in the demonstrations
    fast_rendering: bool = True  # as in the demonstrations
    max_steps: int | None = None  # per episode, for instance more where a delay holds the robot; 120 to 200 by the task by default
    engine: str = "auto"  # see prismatic/policy/inference/engine.py
    local_log_dir: Path = Path("runs/metaworld_eval")  # receives everything

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.task_names:
            raise ValueError(f"--task_names is empty; pass at least one task, such as [{DEMO_TASKS[0]}]")
        check_side("--image_size", self.image_size)
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"--max_steps is {self.max_steps}; it must be at least 1")


def evaluate(config: EvalConfig) -> Report:
    """Plays what has not been played yet and writes the report."""
    return run_evaluation(config, make_benchmark(config))


def make_benchmark(config: EvalConfig) -> Benchmark:
    """The tasks, and the checkpoint's policy on them."""
    configure_rendering()
    tasks = list(dict.fromkeys(get_metaworld_task(name).name for name in config.task_names))
    simulator = MetaWorldSimulator(config.image_size, config.fast_rendering, config.max_steps)
    load = partial(load_policy, config.pretrained_checkpoint, config.engine, config.quantization, "METAWORLD", CAMERAS)
    rendering = {"fast_rendering": config.fast_rendering, "image_size": config.image_size}
    return Benchmark("MetaWorld", "METAWORLD", simulator, tasks, load, config.image_size, rendering)


def main(config: EvalConfig) -> None:
    print_report(evaluate(config), config)


def run() -> None:
    """Entry point."""
    run_script(main, EvalConfig)


if __name__ == "__main__":
    run()
