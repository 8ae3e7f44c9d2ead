"""Help of an expert against filtered imitation on the same number of rollouts, in MetaWorld: paired over the same starts, several seeds.

python benchmarks/improvement.py --output_dir runs/improvement

For each seed a weak policy is trained on few demonstrations; each method then improves it by rounds of scripts/improve.py, beside the
others. What is compared is the policy after the last round, on starts by which nothing was chosen: every method plays all rounds, unless
one makes it surely worse. The tables of the seeds are added up for McNemar's exact test. What is there is not made again. Made for one GPU
and 16 cores.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

from paired_runs import command_line, describe_pair, run, train_flags

from experiments.robot.evaluation.comparison import Comparison, compare
from experiments.robot.improvement.config import METHODS
from experiments.robot.improvement.phases import journal_folder, write_json
from prismatic.cli import run_script
from prismatic.stages import keep_settings
from prismatic.vla.constants import near_names

_COUNTS = ("num_rounds", "num_demonstrations", "num_rollouts", "num_trials", "start_steps", "max_steps", "num_envs", "num_parallel")


@dataclass(frozen=True)
class ImprovementBenchmarkConfig:
    """What is compared."""

    output_dir: Path = Path("runs/improvement")  # recordings/, a folder per seed and method, improvement.md, improvement.json
    seeds: list[int] = field(default_factory=lambda: [7, 8, 9])  # of training, rollouts and evaluation
    methods: list[str] = field(default_factory=lambda: ["takeover", "filtered"])  # of scripts/improve.py; the first against each other one
    num_demonstrations: int = 10  # per task, of the policy at the start
    start_steps: int = 500  # optimizer steps of its training
    num_rounds: int = 2
    num_rollouts: int = 15  # per task and round
    max_steps: int = 200  # optimizer steps of a round
    num_trials: int = 40  # evaluation episodes per task
    num_envs: int = 2  # simulator processes of each run
    num_parallel: int = 6  # runs beside each other

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"--methods names {name!r}; {near_names(name, METHODS)}")
        if len(self.methods) < 2 or not self.seeds:
            raise ValueError("--methods needs two to compare, and --seeds one")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def recordings(self) -> Path:
        return Path(os.path.abspath(self.output_dir)) / "recordings"

    def folder(self, seed: int, method: str) -> Path:
        return self.recordings.parent / f"seed_{seed}" / method


def record_command(config: ImprovementBenchmarkConfig) -> list[str]:
    """The demonstrations of every policy at the start."""
    command = ["experiments/robot/metaworld/record_demos.py", "--output_dir", str(config.recordings)]
    return [*command, "--num_episodes", str(config.num_demonstrations), "--num_workers", str(config.num_parallel * config.num_envs)]


def start_command(config: ImprovementBenchmarkConfig, seed: int, manifest: Path) -> list[str]:
    """Trains the policy of a seed at the start."""
    return command_line("vla-scripts/finetune.py", train_flags(manifest, config.folder(seed, "start"), config.start_steps, seed))


def improve_command(config: ImprovementBenchmarkConfig, seed: int, method: str) -> list[str]:
    """All rounds of a method from the policy of a seed."""
    flags = {
        "pretrained_checkpoint": config.folder(seed, "start"),
        "demonstrations": [str(config.recordings)],
        "method": method,
        "output_dir": config.folder(seed, method),
        "num_rounds": config.num_rounds,
        "patience": config.num_rounds + 1,
        "num_rollouts": config.num_rollouts,
        "num_trials": config.num_trials,
        "num_final_trials": 1,
        "num_envs": config.num_envs,
        "max_steps": config.max_steps,
        "seed": seed,
    }
    return command_line("scripts/improve.py", flags)


def main(config: ImprovementBenchmarkConfig) -> None:
    started, logs = time.monotonic(), config.recordings.parent / "logs"
    fixed = {name: getattr(config, name) for name in ("num_demonstrations", "start_steps")}  # improve.py keeps its own
    folder = config.recordings.parent
    keep_settings(folder / "settings.json", fixed, f"choose another --output_dir, or remove {folder}")
    run(record_command(config), logs / "record.log")
    manifest = config.recordings.parent / "demonstrations.json"
    write_json(manifest, {"dataset": "metaworld_demo", "recordings": [{"path": str(config.recordings)}]})
    with ThreadPoolExecutor(config.num_parallel) as pool:
        list(pool.map(lambda seed: run(start_command(config, seed, manifest), logs / f"start_{seed}.log"), config.seeds))
        runs = [(seed, method) for seed in config.seeds for method in config.methods]
        list(pool.map(lambda item: run(improve_command(config, *item), logs / f"{item[1]}_{item[0]}.log"), runs))
    table = write_results(config, time.monotonic() - started)
    print(f"\n{table}\n{config.output_dir / 'improvement.md'}")


def write_results(config: ImprovementBenchmarkConfig, seconds: float) -> str:
    """improvement.md and improvement.json; returns the table."""
    first, rows = config.methods[0], []
    pairs = {(method, seed): _against(config, seed, first, method) for method in ("start", *config.methods[1:]) for seed in config.seeds}
    for method in ("start", *config.methods[1:]):
        rows += [describe_pair(f"{first} - {method}, seed {seed}", [pairs[method, seed]]) for seed in config.seeds]
        rows.append(describe_pair(f"{first} - {method}, all", [pairs[method, seed] for seed in config.seeds]))
    header = ["| compared | first | other | difference | p (McNemar) |", "|---|---|---|---|---|"]
    title = f"MetaWorld, {config.num_rounds} rounds of {config.num_rollouts} rollouts a task, {config.num_trials} episodes a task and seed"
    text = "\n".join([f"{title}; {seconds:.0f} s", "", *header, *(row["line"] for row in rows)]) + "\n"
    settings = {item.name: getattr(config, item.name) for item in fields(config)}
    write_json(config.recordings.parent / "improvement.json", {"settings": settings, "seconds": seconds, "rows": rows})
    (config.recordings.parent / "improvement.md").write_text(text, encoding="utf-8")
    return text


def _against(config: ImprovementBenchmarkConfig, seed: int, method: str, other: str) -> Comparison:
    """The policies after the last round of two methods, or the one at the start, over the starts that both played."""
    if other == "start":
        return compare(_last_evaluation(config, seed, method), journal_folder(config.folder(seed, method) / "start" / "eval"))
    return compare(_last_evaluation(config, seed, method), _last_evaluation(config, seed, other))


def _last_evaluation(config: ImprovementBenchmarkConfig, seed: int, method: str) -> Path:
    played = [number for number in range(1, config.num_rounds + 1) if (config.folder(seed, method) / f"round_{number}" / "eval").is_dir()]
    return journal_folder(config.folder(seed, method) / f"round_{max(played)}" / "eval")


if __name__ == "__main__":
    run_script(main, ImprovementBenchmarkConfig)
