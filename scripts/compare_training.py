"""Two ways to train, the same seeds and data: one table of their losses and a verdict whether they learn alike.

python scripts/compare_training.py --output_dir runs/fp8_verdict --dataset_name metaworld_demo --data_root_dir runs/demo/rlds \
  --vla_path assets/tiny_base --second "{quantize_base: fp8}" --flags "{use_proprio: 'True', num_images_in_input: '2'}"

Every run is `finetune` with the flags of its side, one after the other; what is trained already is not trained again. A side's loss is
the mean over the last tenth of the steps, of a validation set the last one, and the verdict is on the mean over the seeds. Whether the
policies act alike is another question: play episodes with both and compare them in pairs (scripts/compare_runs.py).
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.robot.improvement.phases import flag_words
from prismatic.cli import parse_flags, run_script
from prismatic.cli_sections import plain_values
from prismatic.training.config import FinetuneConfig

SIDES = ("first", "second")
# Flags of this script, or of its way to train; as a training flag they would mix up its runs.
_OWN = (
    "vla_path", "data_root_dir", "dataset_name", "seed", "max_steps", "run_root_dir", "run_id_override", "run_id_note", "resume",
    "auto_resume", "resume_step", "save_latest_checkpoint_only", "keep_checkpoints",
)  # fmt: skip
# Flags that decide what a loss is: with others on one side, its losses are errors of another kind, in other units or on other episodes.
_OF_THE_LOSS = ("use_l1_regression", "use_diffusion", "robot_platform", "stride", "published_statistics", "use_val_set", "val_fraction")
_MAY_CHANGE = (*_OWN, "save_freq", "wandb_log_freq", "num_workers")  # between the parts of one run


@dataclass(frozen=True)
class CompareTrainingConfig:
    """The flags."""

    vla_path: str  # the model that every run starts from
    data_root_dir: Path  # folder of the data set
    dataset_name: str  # what is trained on
    output_dir: Path  # runs, comparison.md and comparison.json
    first: dict[str, Any] = field(default_factory=dict)  # training flags of one side, as plain fine-tuning by default
    second: dict[str, Any] = field(default_factory=dict)  # of the other, for instance {quantize_base: fp8}
    flags: dict[str, Any] = field(default_factory=dict)  # of both
    seeds: list[int] = field(default_factory=lambda: [7, 8, 9])  # of data order, adapters and augmentation; one run a side each
    max_steps: int = 2000  # optimizer steps
    tolerance: float = 0.01  # by which share the mean loss of the second side may be higher

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise ValueError(f"--first and --second are both {self.first}; let them differ in what is to be compared")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds is {self.seeds}; name at least one, none twice")
        if self.max_steps < 1 or self.tolerance <= 0:
            raise ValueError(f"--max_steps is {self.max_steps}, --tolerance {self.tolerance}; both must be above 0")

        for name in ("first", "second", "flags"):
            if own := [flag for flag in getattr(self, name) if flag in _OWN]:
                raise ValueError(f"--{name} holds {own[0]}, which is the same in all runs, or follows from --seeds; leave it out there")

    def run_name(self, side: str, seed: int) -> str:
        return f"{side}-{seed}"


def training_flags(config: CompareTrainingConfig, side: str, seed: int) -> dict[str, Any]:
    """What `finetune` gets for one run."""
    return {
        "vla_path": config.vla_path,
        "data_root_dir": str(config.data_root_dir),
        "dataset_name": config.dataset_name,
        "run_root_dir": str(config.output_dir),
        "run_id_override": config.run_name(side, seed),
        "seed": seed,
        "max_steps": config.max_steps,
        "save_freq": config.max_steps,
        "save_latest_checkpoint_only": True,
        "auto_resume": True,
        "wandb_log_freq": max(1, config.max_steps // 100),
        **config.flags,
        **getattr(config, side),
    }


def main(config: CompareTrainingConfig) -> None:
    """Trains what is not there yet, and prints the table."""
    from prismatic.training.in_use import IN_USE_FILE
    from prismatic.training.loop import finetune

    # Read as on a command line, so that '2' and 2 are the same; all flags are checked before the first run.
    words = {(side, seed): flag_words(training_flags(config, side, seed)) for seed in config.seeds for side in SIDES}
    runs = [(side, seed, parse_flags(FinetuneConfig, given)) for (side, seed), given in words.items()]
    check_one_loss(*(next(run for side, _, run in runs if side == wanted) for wanted in SIDES))
    for _, _, run in runs:
        check_earlier(run)
    for side, seed, run in runs:
        print(f"=== {side}, seed {seed}: {getattr(config, side) or 'no further flags'}", flush=True)
        finetune(run)
    found = {side: [read_losses(config.output_dir / config.run_name(side, seed)) for seed in config.seeds] for side in SIDES}
    content = compare(config, found)
    paths = {side: config.output_dir / config.run_name(side, config.seeds[0]) / IN_USE_FILE for side in SIDES}
    content["in_use"] = {side: json.loads(path.read_text()) for side, path in paths.items()}
    (config.output_dir / "comparison.json").write_text(json.dumps(content, indent=1) + "\n")
    (config.output_dir / "comparison.md").write_text(table(config, found, content) + "\n" + describe_ways(**content["in_use"]))
    print((config.output_dir / "comparison.md").read_text())


def check_one_loss(first: FinetuneConfig, second: FinetuneConfig) -> None:
    """Returns if both sides are judged by the same loss.

    Raises:
        ValueError: they are not, and a verdict on their losses would say nothing.
    """
    one, other = plain_values(first), plain_values(second)
    odd = [f"--{name} {one[name]} and {other[name]}" for name in _OF_THE_LOSS if one[name] != other[name]]
    if odd:
        raise ValueError(
            f"--first and --second have {', '.join(odd)}: their losses are not errors of one kind on the same episodes, and cannot be "
            "compared. Give both sides the same in --flags; or train each by itself, and compare their success with scripts/compare_runs.py"
        )


def check_earlier(run: FinetuneConfig) -> None:
    """Returns if what there is of a run was trained with its flags.

    Raises:
        ValueError: it was not, so that its losses would be told of other flags than those that it had.
    """
    from prismatic.training.run_folder import read_checkpoint

    found = read_checkpoint(run.run_dir)
    if found is None:
        return
    then, now = found.state.flags, plain_values(run)
    odd = [
        f"--{name} {then[name]}, not {now[name]}" for name in now if name not in _MAY_CHANGE and name in then and then[name] != now[name]
    ]
    odd += [f"{found.state.step} steps, not {now['max_steps']}"] if found.state.step > run.optimization.max_steps else []
    if odd:
        raise ValueError(f"{run.run_dir} was trained with {', '.join(odd)}; choose another --output_dir, or remove that folder")


def describe_ways(first: dict[str, Any], second: dict[str, Any]) -> str:
    """How what computed the two sides' steps (in_use.json) differs, a line each; a setting may ask for a way that was not gone."""
    names = [name for name in first | second if name != "passes" and first.get(name) != second.get(name)]
    lines = [f"In use, {name}: first {json.dumps(first.get(name))}, second {json.dumps(second.get(name))}." for name in names]
    return "\n".join(lines or ["In use: the same on both sides (in_use.json); only what the flags themselves say differs."]) + "\n"


def read_losses(run_dir: Path) -> dict[str, float]:
    """Training loss over the last tenth of the logged steps, the last validation's L1 error if there was one, and seconds a step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "train/loss" in row]
    late = [row for row in trained if row["step"] > 0.9 * trained[-1]["step"]]
    losses = {"training loss": statistics.fmean(row["train/loss"] for row in late)}
    if validated := [row["val/action_l1_loss"] for row in rows if "val/action_l1_loss" in row]:
        losses["validation L1"] = validated[-1]
    return {**losses, "seconds a step": statistics.median(row["train/step_seconds"] for row in late)}


def compare(config: CompareTrainingConfig, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Ratios of the second side's means to the first's, and whether every loss is within the tolerance."""
    means = {side: {name: statistics.fmean(run[name] for run in found[side]) for name in found[side][0]} for side in SIDES}
    ratios = {name: means["second"][name] / means["first"][name] for name in means["first"]}
    losses = [name for name in ratios if name != "seconds a step"]
    return {
        "first": config.first,
        "second": config.second,
        "seeds": config.seeds,
        "runs": found,
        "means": means,
        "ratios": ratios,
        "learns_as_well": all(ratios[name] <= 1 + config.tolerance for name in losses),
    }


def table(config: CompareTrainingConfig, found: dict[str, list[dict[str, float]]], content: dict[str, Any]) -> str:
    """Markdown: a row per seed and one of the means, the verdict, and what to do next."""
    lines = ["| | seed | first | second | second / first |", "|---|---|---|---|---|"]
    for name, ratio in content["ratios"].items():
        for seed, one, other in zip(config.seeds, found["first"], found["second"], strict=True):
            lines.append(f"| {name} | {seed} | {one[name]:.4f} | {other[name]:.4f} | {other[name] / one[name]:.3f} |")
        mean = content["means"]
        lines.append(f"| {name} | mean | {mean['first'][name]:.4f} | {mean['second'][name]:.4f} | **{ratio:.3f}** |")
    verdict = "learns as well" if content["learns_as_well"] else "does NOT learn as well"
    folders = " and ".join(str(config.output_dir / config.run_name(side, config.seeds[0])) for side in SIDES)
    return "\n".join(
        [
            f"first: {config.first or 'no further flags'}; second: {config.second or 'no further flags'}; {config.max_steps} steps",
            "",
            *lines,
            "",
            f"The second {verdict}: its losses may be {config.tolerance:.0%} higher, means over {len(config.seeds)} seeds.",
            f"Success: evaluate {folders} (and the other seeds) with the same episodes, then scripts/compare_runs.py on the two folders.",
            "",
        ]
    )


if __name__ == "__main__":
    run_script(main, CompareTrainingConfig)
