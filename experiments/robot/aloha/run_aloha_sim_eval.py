"""Evaluates a checkpoint (or the scripted experts) in gym-aloha's simulation: many environments, one policy in this process, no server.

python experiments/robot/aloha/run_aloha_sim_eval.py --pretrained_checkpoint runs/transfer_cube--10000_chkpt --num_envs 16 --batch_size 8

Starts are drawn as gym-aloha does, elsewhere than in any demonstration. Results land in local_log_dir: episodes.jsonl, report.json,
report.html, failures.png, videos/; an interrupted evaluation goes on. The simulation waits for the policy unless --delay_steps says for
how many steps it does not; how a server and a 25 Hz clock affect it is measured by run_aloha_eval.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.robot.aloha.environment import CAMERAS, AlohaSimulator
from experiments.robot.aloha.tasks import get_aloha_task
from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags
from experiments.robot.evaluation.policies import choose_unnorm_key, load_policy
from experiments.robot.evaluation.report import Report
from experiments.robot.evaluation.rollout import ChunkPolicy
from experiments.robot.evaluation.run import print_report, run_evaluation
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script
from prismatic.vla.types import check_side


@dataclass(frozen=True)
class EvalConfig(EvaluationFlags):
    """Flags of the evaluation."""

    # gym-aloha
    task_names: list[str] = field(default_factory=lambda: ["transfer_cube"])  # transfer_cube, insertion
    image_size: int = 256  # pixels; as in the demonstrations
    fast_rendering: bool = True  # no anti-aliasing, shadows or reflections; as in the demonstrations
    unnorm_key: str | None = None  # whose statistics count; those of the one task's scripted set by default
    engine: str = "auto"  # see prismatic/policy/inference/engine.py
    local_log_dir: Path = Path("runs/aloha_sim_eval")  # receives everything

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.task_names:
            raise ValueError("--task_names is empty; pass at least one task, such as [transfer_cube]")
        for name in self.task_names:
            get_aloha_task(name)
        check_side("--image_size", self.image_size)


def evaluate(config: EvalConfig) -> Report:
    """Plays what has not been played yet and writes the report."""
    return run_evaluation(config, make_benchmark(config))


def make_benchmark(config: EvalConfig) -> Benchmark:
    """The tasks, and the checkpoint's policy on them."""
    configure_rendering()
    simulator = AlohaSimulator(config.image_size, config.fast_rendering)
    tasks = list(dict.fromkeys(config.task_names))
    rendering = {"fast_rendering": config.fast_rendering, "image_size": config.image_size}
    return Benchmark("ALOHA simulation", "ALOHA", simulator, tasks, lambda: _load_policy(config, tasks), config.image_size, rendering)


def _load_policy(config: EvalConfig, tasks: Sequence[str]) -> ChunkPolicy:
    sets = [f"aloha_sim_{task}_scripted" for task in tasks]
    key = choose_unnorm_key(config.pretrained_checkpoint, config.unnorm_key, sets if len(sets) == 1 else [])
    return load_policy(config.pretrained_checkpoint, config.engine, config.quantization, "ALOHA", CAMERAS, key)


def main(config: EvalConfig) -> None:
    print_report(evaluate(config), config)


def run() -> None:
    """Entry point."""
    run_script(main, EvalConfig)


if __name__ == "__main__":
    run()
