"""Pretrains the small base that `make demo` fine-tunes: demonstrations of many MetaWorld tasks -> every weight trained -> a base folder.

python scripts/pretrain_base.py

A thin driver like scripts/demo.py: each stage is a command that could be typed by itself. Recordings that are complete are not made
again, so a machine without a simulator trains on recordings that were copied there. As with openvla-7b, the result is the
vision-language model alone: a fine-tuning begins with a new action head and new projectors.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

from experiments.robot.metaworld.tasks import BASE_TASKS, get_metaworld_task
from prismatic.cli import run_script
from prismatic.models.sizes import TinySizes
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.stages import run_stage, seen_from_root
from prismatic.training.curves import METRICS_FILE
from prismatic.training.rows import read_rows

_DATASET, _RUN = "metaworld_base", "run"


@dataclass(frozen=True)
class PretrainConfig(TinySizes):
    """The sizes of the base, and how it is made. The defaults are those of the base in assets/tiny_base."""

    # How the base is made
    output_dir: Path = Path("runs/pretraining/base")  # a folder that does not exist yet
    work_dir: Path = Path("runs/pretraining")  # recordings, the random start and the run
    num_demonstrations: int = 40  # per task
    max_steps: int = 1500  # optimizer steps
    batch_size: int = 256  # samples per step
    learning_rate: float = 5e-4  # of AdamW
    num_workers: int = 4  # processes that record, then processes that load data
    seed: int = 7  # of everything

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_demonstrations", "max_steps", "batch_size", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        if self.output_dir.exists():
            raise ValueError(f"--output_dir {self.output_dir} exists already; choose another folder, or delete it first")

    @property
    def run_dir(self) -> Path:
        """The trained policy: the base and the head that it was trained with."""
        return self.work_dir / "train" / _RUN


def pretraining_commands(config: PretrainConfig) -> dict[str, list[str]]:
    """Stage -> command, in order."""
    start, seed, workers = str(config.work_dir / "random-base"), str(config.seed), str(config.num_workers)
    sizes = [text for size in fields(TinySizes) for text in (f"--{size.name}", str(getattr(config, size.name)))]
    return {
        "record demonstrations": [
            *("python", "experiments/robot/metaworld/record_demos.py", "--output_dir", str(config.work_dir / "data" / _DATASET)),
            *("--task_names", f"[{','.join(BASE_TASKS)}]", "--num_episodes", str(config.num_demonstrations)),
            *("--num_workers", workers, "--seed", seed),
        ],
        "make a random base": ["python", "scripts/make_base.py", "--output_dir", start, "--seed", seed, *sizes],
        "train": [
            *("python", "vla-scripts/finetune.py", "--vla_path", start, "--data_root_dir", str(config.work_dir / "data")),
            *("--dataset_name", _DATASET, "--run_root_dir", str(config.work_dir / "train"), "--run_id_override", _RUN),
            *("--use_l1_regression", "True", "--use_lora", "False", "--image_aug", "False", "--save_latest_checkpoint_only", "True"),
            *("--num_images_in_input", "2", "--use_proprio", "True", "--use_val_set", "True", "--val_freq", "1000"),
            *("--batch_size", str(config.batch_size), "--learning_rate", str(config.learning_rate), "--lr_warmup_steps", "100"),
            *("--max_grad_norm", "1.0", "--max_steps", str(config.max_steps), "--seed", seed, "--num_workers", workers),
            *("--num_steps_before_decay", str(config.max_steps * 5 // 6), "--device_augmentation", "True"),
            *("--frame_cache_dir", str(config.work_dir / "frames")),
        ],
        "keep the base": [
            *("python", "scripts/make_base.py", "--output_dir", str(config.output_dir), "--sizes_from", str(config.run_dir)),
            *("--weights", str(config.run_dir / "model.safetensors")),
        ],
    }


def main(config: PretrainConfig) -> None:
    """Runs every stage; stops at the first that fails."""
    config = replace(config, output_dir=seen_from_root(config.output_dir), work_dir=seen_from_root(config.work_dir))
    commands = pretraining_commands(config)
    seconds = {stage: run_stage(stage, command) for stage, command in commands.items()}
    (config.output_dir / "README.md").write_text(_card(config, commands, seconds), encoding="utf-8")
    print(f"\nwrote {config.output_dir}, its card is README.md in it")


def _card(config: PretrainConfig, commands: dict[str, list[str]], seconds: dict[str, float]) -> str:
    """The model card of the new base."""
    import jinja2
    import torch
    from safetensors import safe_open

    weights = config.output_dir / "model.safetensors"
    with safe_open(weights, "pt") as file:
        num_parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    rows = read_rows(config.run_dir / METRICS_FILE)
    template = jinja2.Template((Path(__file__).parent / "base_card.md.j2").read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined)
    return template.render(
        config=config,
        commands=[shlex.join(command) for command in commands.values()],
        tasks=[get_metaworld_task(name) for name in BASE_TASKS],
        statistics=json.loads((config.run_dir / "dataset_statistics.json").read_text())[_DATASET],
        num_parameters=num_parameters,
        num_bytes=weights.stat().st_size,
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        losses={name: next(row[f"{name}/loss"] for row in reversed(rows) if f"{name}/loss" in row) for name in ("train", "val")},
        versions=PolicySpec.load(config.run_dir).provenance["versions"],
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        seconds=seconds["train"],
    )


if __name__ == "__main__":
    run_script(main, PretrainConfig)
