"""Evaluates a checkpoint (or the scripted experts) in closed loop in gym-aloha, many episodes at a time and not in real time.

python experiments/robot/aloha/run_aloha_sim_eval.py --pretrained_checkpoint runs/transfer_cube --task_names "[transfer_cube]"

Objects start where no demonstration has them. run_aloha_eval.py is the rehearsal of the robot: one episode at a time, at 25 Hz.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from experiments.robot.aloha.robots import ACTION_DIM
from experiments.robot.aloha.simulation import ALOHA_TASKS, AlohaSimulator, get_aloha_task
from experiments.robot.evaluation import Benchmark, EvaluationFlags, SeededPolicy, print_report, run_evaluation
from experiments.robot.rendering import configure_rendering
from experiments.robot.report import Report
from experiments.robot.rollout import ChunkPolicy
from prismatic.cli import run_script


@dataclass
class EvalConfig(EvaluationFlags):
    """Flags of the evaluation."""

    # gym-aloha
    task_names: list[str] = field(default_factory=lambda: list(ALOHA_TASKS))  # transfer_cube, insertion
    image_size: int = 256  # pixels; as in the demonstrations
    fast_rendering: bool = True  # as in the demonstrations
    engine: str = "auto"  # see prismatic/policy/engine.py
    local_log_dir: Path = Path("runs/aloha_sim_eval")  # receives everything


def evaluate(config: EvalConfig) -> Report:
    """Plays what has not been played yet and writes the report."""
    configure_rendering()
    tasks = [get_aloha_task(name).name for name in config.task_names]
    simulator = AlohaSimulator(config.image_size, config.fast_rendering)
    return run_evaluation(config, Benchmark("gym-aloha", simulator, tasks, lambda: _load_policy(config)))


def _load_policy(config: EvalConfig) -> ChunkPolicy:
    """The checkpoint's policy.

    Raises:
        ValueError: it drives another robot.
    """
    from prismatic.policy.loading import LoadOptions
    from prismatic.policy.policy import Policy  # imports torch and transformers

    policy = Policy.from_pretrained(config.pretrained_checkpoint, options=LoadOptions(engine=config.engine))
    platform = policy.spec.platform
    if platform.action_dim != ACTION_DIM:
        raise ValueError(
            f"{config.pretrained_checkpoint} drives {platform.name} ({platform.action_dim} action dimensions), ALOHA has {ACTION_DIM}; "
            "pass a checkpoint that was trained on ALOHA"
        )
    return SeededPolicy(policy)


def main(config: EvalConfig) -> None:
    print_report(evaluate(config), config)


if __name__ == "__main__":
    run_script(main, EvalConfig)
