"""The commands of a round: each could be typed by itself, goes on where it was interrupted, and is not run again once it is done."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.benchmarks import SIMULATORS
from experiments.robot.evaluation.collecting import MANIFEST_FILE
from experiments.robot.evaluation.journal import JOURNAL_FILE
from experiments.robot.improvement.config import METHODS, ImproveConfig
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.stages import read_note, run_stage
from prismatic.vla.datasets.manifest import Part, check_moved, is_manifest, read_manifest, write_manifest

DONE_FILE = "done.json"
_DECAYED = 0.8  # of the steps, after which the learning rate falls tenfold
_WARM = 0.05  # of the steps, over which it rises: the optimizer starts anew


def run_phase(stage: str, command: list[str], folder: Path, must_match: Sequence[str] = ()) -> float:
    """Runs a command unless `folder` says that it is done; seconds that it took, of the last call where it was interrupted.

    `must_match`: flags that may change between calls, with whose value it must have been done. Raises:
        ValueError: it failed, or what says that it is done is damaged.
    """
    done = folder / DONE_FILE
    if done.is_file():
        said, seconds = _read_done(done)
        if _is_same(shlex.split(said), command, must_match):
            return seconds
    seconds = run_stage(stage, command)
    write_json(done, {"command": shlex.join(command), "seconds": seconds})
    return seconds


def _read_done(path: Path) -> tuple[str, float]:
    """The command that was done, and the seconds that it took."""
    remedy = "delete it, and the phase goes on with what is there"
    content = read_note(path, remedy)
    try:
        return str(content["command"]), float(content["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged (it says {content}, expected command and seconds); {remedy}") from error


def _is_same(command: list[str], other: list[str], flags: Sequence[str]) -> bool:
    return all(command[command.index(flag) + 1] == other[other.index(flag) + 1] for flag in flags)


def evaluate_command(config: ImproveConfig, checkpoint: str, folder: Path, seed: int, num_trials: int) -> list[str]:
    """Plays `num_trials` episodes per task with a policy."""
    entry, given = SIMULATORS[config.simulator], config.simulator_flags()
    if "image_size" in given:
        given[entry.size_flag] = given.pop("image_size")
    given |= {"pretrained_checkpoint": checkpoint, "num_trials_per_task": num_trials, "seed": seed, "num_pictures": 0}
    return ["python", entry.script, *flag_words(given | {"local_log_dir": folder})]


def collect_command(config: ImproveConfig, number: int) -> list[str]:
    """Plays and records the policy before round `number`, from starts of this round alone."""
    given = config.simulator_flags() | {"simulator": config.simulator, "pretrained_checkpoint": config.checkpoint(number - 1)}
    given |= {"expert_help": config.expert_help, "num_episodes": config.num_rollouts, "seed": config.seed + number}
    return ["python", "scripts/collect.py", *flag_words(given | {"output_dir": config.round_folder(number) / "collected"})]


def train_flags(config: ImproveConfig, number: int, manifest: Path, spec: PolicySpec) -> dict[str, Any]:
    """Continues the policy before round `number` (whose `spec` is the start's) on `manifest`."""
    heads = spec.heads
    given: dict[str, Any] = {
        "vla_path": config.checkpoint(number - 1),
        "dataset_name": manifest,
        "run_root_dir": config.round_folder(number),
        "run_id_override": "train",
        "save_latest_checkpoint_only": True,
        "auto_resume": True,
        "use_l1_regression": heads.action_head == "l1",
        "use_diffusion": heads.action_head == "diffusion",
        "use_film": heads.use_film,
        "use_proprio": heads.use_proprio,
        "num_images_in_input": len(spec.cameras),
        "image_aug": spec.image.center_crop,
        "max_steps": config.max_steps,
        "save_freq": max(1, config.max_steps // 3),
        "num_steps_before_decay": max(1, int(_DECAYED * config.max_steps)),
        "lr_warmup_steps": max(1, int(_WARM * config.max_steps)),
        "learning_rate": config.learning_rate,
        "max_grad_norm": 1.0,
        "batch_size": config.batch_size,
        "num_workers": 0,
        "seed": config.seed + number,
    }
    if heads.num_diffusion_steps_train is not None:
        given["num_diffusion_steps_train"] = heads.num_diffusion_steps_train
    if spec.lora is not None:
        given["lora_rank"] = spec.lora.rank
    return given | config.own_finetune_flags()


def train_command(config: ImproveConfig, number: int, manifest: Path, spec: PolicySpec) -> list[str]:
    """The same as a command."""
    return ["python", "vla-scripts/finetune.py", *flag_words(train_flags(config, number, manifest, spec))]


def merge(config: ImproveConfig, number: int, dataset: str) -> Path:
    """The manifest of round `number`: demonstrations, and the rollouts of all rounds up to it as the method takes them.

    Raises:
        ValueError: a manifest among the demonstrations is of another data set.
    """
    extra = METHODS[config.method][1]
    parts: list[Part] = []
    for path in (Path(os.path.abspath(os.path.expanduser(name))) for name in config.demonstrations):
        listed = _parts(path, dataset)
        if parts:
            check_moved(listed, path, "--demonstrations")
        parts += listed
    for earlier in range(1, number + 1):
        collected = only_file(config.round_folder(earlier) / "collected", MANIFEST_FILE)
        parts += [replace(part, weights={**part.weights, **extra}) for part in read_manifest(collected).parts]
    path = config.round_folder(number) / MANIFEST_FILE
    write_manifest(path, dataset, parts)
    return path


def _parts(path: Path, dataset: str) -> list[Part]:
    if not is_manifest(path.name):
        return [Part(path)]
    manifest = read_manifest(path)
    if manifest.dataset != dataset:
        raise ValueError(f"--demonstrations: {path} is of the data set {manifest.dataset!r}, the policy was trained on {dataset!r}")
    return list(manifest.parts)


def journal_folder(folder: Path) -> Path:
    """The folder, in that of an evaluation or a collection, that holds its journal: LIBERO's scripts make one of their own."""
    return only_file(folder, JOURNAL_FILE).parent


def only_file(folder: Path, name: str) -> Path:
    """The file called `name` below `folder`.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} files {name}, expected one; remove the folder, and the same command makes it again")
    return found[0]


def write_json(path: Path, content: Any) -> None:
    """Writes a file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def flag_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as they are typed; lists as JSON."""
    return [word for name, value in flags.items() for word in (f"--{name}", json.dumps(value) if isinstance(value, list) else str(value))]
