"""Plays a policy in a simulator and records its rollouts as data to train on, with success, seed, checkpoint and instruction.

python scripts/collect.py --pretrained_checkpoint runs/demo/train/demo --simulator metaworld --output_dir runs/round_1 --num_envs 8

Episodes are played as the evaluation scripts play them, from starts that neither demonstrations nor evaluations draw (of LIBERO: never one
of the 50 fixed states). They land in <output_dir>/recordings, and <output_dir>/manifest.json names them: pass it to training as
--dataset_name, with --episode_weights success for the successes alone (docs/rollouts.md). An interrupted collection goes on.
--expert_help relabel, or takeover, has the scripted expert say what the policy should have done; then all of it is to be trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.actors import NO_HELP, TAKEOVER
from experiments.robot.evaluation.benchmarks import check_simulator, make_evaluation
from experiments.robot.evaluation.collecting import collect, count_episodes, dataset_of
from experiments.robot.evaluation.report import HELPED_TITLE
from prismatic.cli import run_script


@dataclass(frozen=True)
class CollectConfig:
    """Flags of a collection."""

    # Policy
    pretrained_checkpoint: str = ""  # folder or Hub id
    policy: str = "checkpoint"  # or expert: the simulator's scripted experts
    expert_help: str = "none"  # relabel: what the expert would do is recorded; takeover: the expert acts where the policy drifts
    num_open_loop_steps: int | None = None  # actions executed per query; all that the policy predicts by default
    batch_size: int = 1  # observations per policy call
    engine: str = "auto"  # see prismatic/policy/inference/engine.py
    unnorm_key: str | None = None  # aloha, libero: whose statistics count

    # Episodes
    simulator: str = ""  # metaworld, aloha, libero
    task_names: list[str] = field(default_factory=list)  # those of the simulator's evaluation script by default
    task_suite_name: str | None = None  # libero: libero_spatial by default
    num_episodes: int = 50  # per task
    seed: int = 7  # of the starts; another one draws others
    num_envs: int = 2  # simulator processes
    image_size: int | None = None  # pixels; as in the simulator's evaluation by default, and in the demonstrations
    fast_rendering: bool | None = None  # likewise

    # Data
    output_dir: Path = Path("runs/collected")  # recordings/, manifest.json, and the report of an evaluation
    dataset_name: str | None = None  # registry entry that reads them; that of the policy's training by default
    restart: bool = False  # forget the episodes that output_dir holds

    def __post_init__(self) -> None:
        check_simulator(self.simulator, {"task_suite_name": self.task_suite_name, "unnorm_key": self.unnorm_key})
        if self.num_episodes < 1:
            raise ValueError(f"--num_episodes is {self.num_episodes}, must be at least 1")

    def evaluation_flags(self) -> dict[str, Any]:
        """What the simulator's evaluation script is told; what is not said keeps its default there."""
        said = {
            "task_names": self.task_names or None,
            "task_suite_name": self.task_suite_name,
            "unnorm_key": self.unnorm_key,
            "image_size": self.image_size,
            "fast_rendering": self.fast_rendering,
        }
        same = ("pretrained_checkpoint", "policy", "num_open_loop_steps", "batch_size", "engine", "seed", "num_envs", "restart")
        fixed = {"num_trials_per_task": self.num_episodes, "local_log_dir": self.output_dir, "num_pictures": 0, "record": True}
        return {name: getattr(self, name) for name in same} | fixed | {name: value for name, value in said.items() if value is not None}


def main(config: CollectConfig) -> None:
    flags, benchmark, usual = make_evaluation(config.simulator, config.evaluation_flags(), in_place=True)
    dataset = config.dataset_name or dataset_of(flags.pretrained_checkpoint, usual)
    manifest = collect(flags, benchmark, dataset, config.expert_help)
    print("\n".join(summary(config.expert_help, *count_episodes(flags, benchmark), dataset, manifest)))


def summary(expert_help: str, num_episodes: int, num_successes: int, dataset: str, manifest: Path) -> list[str]:
    """What was collected, and what it is good for, a line each."""
    solved = HELPED_TITLE if expert_help == TAKEOVER else "successes"
    lines = [f"{num_episodes} episodes, {num_successes} of them {solved}, to be read as {dataset}: {manifest}"]
    if expert_help != NO_HELP:
        return [*lines, f"train on what the expert says with: --dataset_name {manifest}"]
    if num_successes:
        return [*lines, f"train on the successes with: --dataset_name {manifest} --episode_weights success"]
    return [*lines, "without a success there is nothing to learn from; --expert_help takeover has the expert end what the policy begins"]


if __name__ == "__main__":
    run_script(main, CollectConfig)
