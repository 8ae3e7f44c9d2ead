"""Do the scores of episodes find spoiled demonstrations, and does training without what they find reach training without the spoil?

python benchmarks/spoiled.py --output_dir runs/spoiled

MetaWorld's three tasks of the demo; of their demonstrations 30 % are spoiled: a third of these is told another task, a third stops
half-way, a third has noise on its actions. For each seed three policies: trained without the spoiled ones (`clean`), with them
(`spoiled`), and with them under the weights that `inspect_dataset.py --checkpoint` finds with the help of the second policy (`scored`).
They are compared in pairs over the same starts. What is there is not made again. Made for one GPU and 16 cores.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from paired_runs import command_line, describe_pair, run, train_flags

from experiments.robot.evaluation.comparison import compare
from experiments.robot.improvement.phases import journal_folder, write_json
from experiments.robot.metaworld.tasks import DEMO_TASKS, get_metaworld_task
from prismatic.cli import run_script
from prismatic.stages import keep_settings
from prismatic.vla.datasets.hdf5.recording import Recording, read_recording, write_recording

VARIANTS = ("clean", "spoiled", "scored")
_COUNTS = ("num_demonstrations", "num_steps", "num_trials", "num_envs", "num_parallel")


@dataclass(frozen=True)
class SpoiledBenchmarkConfig:
    """What is compared."""

    output_dir: Path = Path("runs/spoiled")  # recordings/, a folder per seed, spoiled.md, spoiled.json
    seeds: list[int] = field(default_factory=lambda: [7, 8, 9])  # of what is spoiled, of training and of evaluation
    share: float = 0.3  # of the demonstrations that are spoiled
    noise_scale: float = 0.5  # standard deviation on the actions of the noisy ones, whose range is -1 to 1
    num_demonstrations: int = 50  # per task
    num_steps: int = 820  # optimizer steps of each policy
    num_trials: int = 40  # evaluation episodes per task
    num_envs: int = 2  # simulator processes of each evaluation
    num_parallel: int = 6  # runs beside each other

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not self.seeds:
            raise ValueError(f"--share is {self.share}, between 0 and 1, and --seeds needs one")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def root(self) -> Path:
        return Path(os.path.abspath(self.output_dir))

    def folder(self, seed: int) -> Path:
        return self.root / f"seed_{seed}"


def another_task(recording: Recording, rng: np.random.Generator, config: SpoiledBenchmarkConfig) -> Recording:
    """Told the instruction of another of the tasks."""
    others = [get_metaworld_task(name).instruction for name in DEMO_TASKS]
    return replace(recording, instruction=str(rng.choice([text for text in others if text != recording.instruction])))


def half_way(recording: Recording, rng: np.random.Generator, config: SpoiledBenchmarkConfig) -> Recording:
    """Ends after half of its steps."""
    length = recording.num_steps // 2
    images = {name: frames[:length] for name, frames in recording.images.items()}
    return replace(recording, actions=recording.actions[:length], proprio=recording.proprio[:length], images=images)


def noisy(recording: Recording, rng: np.random.Generator, config: SpoiledBenchmarkConfig) -> Recording:
    """Gaussian noise on the motion of every action."""
    actions = recording.actions.copy()
    actions[:, :3] = np.clip(actions[:, :3] + rng.normal(0, config.noise_scale, actions[:, :3].shape), -1, 1)
    return replace(recording, actions=actions)


KINDS: dict[str, Callable[[Recording, np.random.Generator, SpoiledBenchmarkConfig], Recording]] = {
    "another task": another_task,
    "half-way": half_way,
    "noisy": noisy,
}


def spoil(config: SpoiledBenchmarkConfig, seed: int) -> dict[str, str]:
    """Writes the spoiled demonstrations and the two manifests of a seed; returns file name -> kind."""
    folder = config.folder(seed)
    kinds: dict[str, str] = {}
    for task_number, task in enumerate(DEMO_TASKS):
        files = sorted((config.root / "recordings" / task).glob("*.hdf5"))[: config.num_demonstrations]
        chosen = np.random.default_rng([seed, task_number]).permutation(len(files))[: round(config.share * len(files))]
        for place, number in enumerate(chosen):
            kind = list(KINDS)[place % len(KINDS)]
            name = f"{task}_{files[number].name}"
            kinds[name] = kind
            if not (path := folder / "recordings" / name).exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng([seed, task_number, int(number)])
                write_recording(path, KINDS[kind](read_recording(files[number]), rng, config))
    clean = [
        {"path": str(file)}
        for task in DEMO_TASKS
        for file in sorted((config.root / "recordings" / task).glob("*.hdf5"))[: config.num_demonstrations]
        if f"{task}_{file.name}" not in kinds
    ]
    write_json(folder / "clean.json", {"dataset": "metaworld_demo", "recordings": clean})
    write_json(folder / "all.json", {"dataset": "metaworld_demo", "recordings": [*clean, {"path": str(folder / "recordings")}]})
    return kinds


def train_command(config: SpoiledBenchmarkConfig, seed: int, variant: str) -> list[str]:
    """One policy, as scripts/demo.py trains its own."""
    folder = config.folder(seed)
    manifest = folder / ("clean.json" if variant == "clean" else "all.json")
    flags = train_flags(manifest, folder / variant, config.num_steps, seed)
    if variant == "scored":
        flags["episode_weights"] = folder / "scores.weights.json"
    return command_line("vla-scripts/finetune.py", flags)


def evaluate_command(config: SpoiledBenchmarkConfig, seed: int, variant: str) -> list[str]:
    """Fresh starts, the same for all three."""
    flags = {
        "pretrained_checkpoint": config.folder(seed) / variant,
        "num_trials_per_task": config.num_trials,
        "num_envs": config.num_envs,
        "num_pictures": 1,
        "local_log_dir": config.folder(seed) / f"{variant}_eval",
        "seed": seed,
    }
    return command_line("experiments/robot/metaworld/run_metaworld_eval.py", flags)


def score_command(config: SpoiledBenchmarkConfig, seed: int) -> list[str]:
    """What finds the doubtful episodes."""
    folder = config.folder(seed)
    flags = {"dataset_name": folder / "all.json", "checkpoint": folder / "spoiled", "output": folder / "scores.html"}
    return command_line("scripts/inspect_dataset.py", flags)


def found_by_kind(config: SpoiledBenchmarkConfig, seed: int, kinds: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Kind -> how many of its episodes the scores leave out, of how many; "none" are those that nothing is wrong with."""
    written = json.loads((config.folder(seed) / "scores.weights.json").read_text())
    doubtful = [name for weights in written.values() for name in weights]
    total = len(DEMO_TASKS) * config.num_demonstrations
    counts = {}
    for kind in KINDS:
        own = [name for name, other in kinds.items() if other == kind]
        counts[kind] = (sum(any(name in line for line in doubtful) for name in own), len(own))
    counts["none"] = (len(doubtful) - sum(found for found, _ in counts.values()), total - len(kinds))
    return counts


def learn(config: SpoiledBenchmarkConfig, seed: int, variant: str) -> None:
    """Trains and plays one policy of a seed; of a scored one the scores come first."""
    logs, folder = config.root / "logs", config.folder(seed)
    if variant == "scored" and not (folder / "scores.weights.json").exists():
        run(score_command(config, seed), logs / f"score_{seed}.log")
    run(train_command(config, seed, variant), logs / f"train_{variant}_{seed}.log")
    run(evaluate_command(config, seed, variant), logs / f"eval_{variant}_{seed}.log")


def main(config: SpoiledBenchmarkConfig) -> None:
    started = time.monotonic()
    fixed = {name: getattr(config, name) for name in ("share", "noise_scale", "num_demonstrations", "num_steps")}
    keep_settings(config.root / "settings.json", fixed, f"choose another --output_dir, or remove {config.root}")
    record = {"output_dir": config.root / "recordings", "num_episodes": config.num_demonstrations, "num_workers": config.num_parallel}
    run(command_line("experiments/robot/metaworld/record_demos.py", record), config.root / "logs" / "record.log")
    kinds = {seed: spoil(config, seed) for seed in config.seeds}

    def side(item: tuple[int, str]) -> None:
        for variant in ("spoiled", "scored") if item[1] == "spoiled" else ("clean",):
            learn(config, item[0], variant)

    with ThreadPoolExecutor(config.num_parallel) as pool:
        list(pool.map(side, [(seed, variant) for variant in ("spoiled", "clean") for seed in config.seeds]))
    print(f"\n{write_results(config, kinds, time.monotonic() - started)}\n{config.output_dir / 'spoiled.md'}")


def write_results(config: SpoiledBenchmarkConfig, kinds: dict[int, dict[str, str]], seconds: float) -> str:
    """spoiled.md and spoiled.json; returns the tables."""
    rows = []
    for other in ("clean", "spoiled"):
        pairs = [compare(_journal(config, seed, "scored"), _journal(config, seed, other)) for seed in config.seeds]
        rows += [describe_pair(f"scored - {other}, seed {seed}", [pair]) for seed, pair in zip(config.seeds, pairs, strict=True)]
        rows.append(describe_pair(f"scored - {other}, all", pairs))
    found = {seed: found_by_kind(config, seed, kinds[seed]) for seed in config.seeds}
    names = [*KINDS, "none"]
    total = len(DEMO_TASKS) * config.num_demonstrations
    text = f"MetaWorld, {100 * config.share:.0f} % of {total} demonstrations spoiled, {seconds:.0f} s\n\n"
    text += "| compared | first | other | difference | p (McNemar) |\n|---|---|---|---|---|\n" + "\n".join(row["line"] for row in rows)
    text += f"\n\n| seed | {' | '.join(f'left out of: {name}' for name in names)} |\n|{'---|' * (1 + len(names))}\n"
    for seed, counts in found.items():
        text += f"| {seed} | {' | '.join(f'{counts[name][0]} of {counts[name][1]}' for name in names)} |\n"
    settings = {item.name: getattr(config, item.name) for item in fields(config)}
    write_json(config.root / "spoiled.json", {"settings": settings, "seconds": seconds, "rows": rows, "left_out": found})
    (config.root / "spoiled.md").write_text(text, encoding="utf-8")
    return text


def _journal(config: SpoiledBenchmarkConfig, seed: int, variant: str) -> Path:
    return journal_folder(config.folder(seed) / f"{variant}_eval")


if __name__ == "__main__":
    run_script(main, SpoiledBenchmarkConfig)
