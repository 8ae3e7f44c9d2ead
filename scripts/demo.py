"""The main job, end to end, on a CPU: demonstrations -> RLDS -> fine-tuning -> closed-loop success rate.

A thin driver: it prints and runs commands that could be typed one by one. The last one writes report.json, report.html and videos
into the output folder; the page shows all commands with the time that each took.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

from prismatic.cli import run_script
from prismatic.models.sizes import BACKBONES
from prismatic.stages import empty_folder, run_stage, seen_from_root

STAGES_FILE = "stages.json"
FROM_SCRATCH = "82 % (99/120; --from_scratch True, seed 7, 2026-11-25)"
PRETRAINED_BASE = "assets/tiny_base"  # made by scripts/pretrain_base.py, which saw none of these tasks


@dataclass
class DemoConfig:
    """What `make demo` does."""

    output_dir: Path = Path("runs/demo")  # emptied first
    num_demonstrations: int = 50  # per task
    from_scratch: bool = False  # train every one of random weights, instead of LoRA on the pretrained ones in assets/tiny_base
    backbone: str = "llama"  # form of the language model: llama, or qwen, which needs --from_scratch True
    max_steps: int | None = None  # optimizer steps; None: 820 of LoRA, or 1050 from scratch, which take as long
    num_trials_per_task: int = 40  # evaluation episodes per task, on object positions that no demonstration has
    num_control_trials_per_task: int = 15  # evaluation episodes per task with grey images, and with a wrong instruction
    num_envs: int = 2  # simulator processes
    seed: int = 7  # of everything

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"--backbone is {self.backbone!r}; choose one of {', '.join(BACKBONES)}")
        if self.backbone != "llama" and not self.from_scratch:
            raise ValueError(f"--backbone {self.backbone}: {PRETRAINED_BASE} is of Llama's form; pass --from_scratch True")
        for name in ("num_demonstrations", "max_steps", "num_trials_per_task", "num_control_trials_per_task", "num_envs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")


def demo_commands(config: DemoConfig) -> dict[str, list[str]]:
    """Stage -> command, in order."""
    out, seed = config.output_dir, str(config.seed)
    recordings, rlds, train = (str(out / name) for name in ("recordings", "rlds", "train"))
    base = str(out / "tiny-base") if config.from_scratch else PRETRAINED_BASE
    make_base = {
        "make a tiny base": ["python", "scripts/make_base.py", "--output_dir", base, "--backbone", config.backbone, "--seed", seed]
    }
    return {
        "record demonstrations": [
            *("python", "experiments/robot/metaworld/record_demos.py", "--output_dir", recordings),
            *("--num_episodes", str(config.num_demonstrations), "--num_workers", str(config.num_envs), "--seed", seed),
        ],
        "write RLDS": [
            *("python", "scripts/convert/aloha_hdf5_to_rlds.py", "--input_dir", recordings),
            *("--dataset_name", "metaworld_demo", "--data_root_dir", rlds),
        ],
        **(make_base if config.from_scratch else {}),
        "fine-tune": [
            *("torchrun", "--standalone", "--nnodes", "1", "--nproc-per-node", "1", "vla-scripts/finetune.py"),
            *("--vla_path", base, "--data_root_dir", rlds, "--dataset_name", "metaworld_demo"),
            *("--run_root_dir", train, "--run_id_override", "demo", "--save_latest_checkpoint_only", "True"),
            # A fixed simulated camera needs no augmentation.
            *("--use_l1_regression", "True", "--image_aug", "False", *_learning_flags(config)),
            *("--num_images_in_input", "2", "--use_proprio", "True", "--use_val_set", "True", "--num_workers", "0"),
            *("--batch_size", "16", "--lr_warmup_steps", "20", "--max_grad_norm", "1.0", "--seed", seed),
        ],
        "evaluate": [
            *("python", "experiments/robot/metaworld/run_metaworld_eval.py", "--pretrained_checkpoint", f"{train}/demo"),
            *("--num_trials_per_task", str(config.num_trials_per_task), "--control", "none,grey,wrong_instruction"),
            *("--num_control_trials_per_task", str(config.num_control_trials_per_task), "--with_expert", "True"),
            *("--num_envs", str(config.num_envs), "--save_video", "first_2", "--seed", seed),
            *("--stages_file", str(out / STAGES_FILE), "--local_log_dir", str(out)),
        ],
    }


def _learning_flags(config: DemoConfig) -> list[str]:
    """What is trained, how fast and how long: adapters of the pretrained base, or every one of the random weights."""
    if config.from_scratch:
        steps = config.max_steps or 1050
        decay, learns = steps * 6 // 7, ["--use_lora", "False", "--learning_rate", "2.5e-4"]
    else:
        steps = config.max_steps or 820
        decay, learns = steps * 4 // 5, ["--use_lora", "True", "--lora_rank", "32", "--learning_rate", "1e-3"]
    return [*learns, "--max_steps", str(steps), "--num_steps_before_decay", str(decay)]


def main(config: DemoConfig) -> None:
    """Runs every stage; stops at the first that fails."""
    config = replace(config, output_dir=seen_from_root(config.output_dir))
    empty_folder(config.output_dir, STAGES_FILE)
    config.output_dir.mkdir(parents=True)
    stages: list[dict[str, str | float]] = []
    started = time.monotonic()
    for stage, command in demo_commands(config).items():
        (config.output_dir / STAGES_FILE).write_text(json.dumps(stages, indent=1) + "\n")
        seconds = run_stage(stage, command)
        stages.append({"stage": stage, "command": shlex.join(command), "seconds": seconds})
    (config.output_dir / STAGES_FILE).write_text(json.dumps(stages, indent=1) + "\n")
    print()
    for entry in stages:
        print(f"{entry['stage']:24}{entry['seconds']:7.1f} s")
    print(f"{'in all':24}{time.monotonic() - started:7.1f} s")
    if not config.from_scratch:
        print(f"\nmean success from random weights, for comparison: {FROM_SCRATCH}")
    print(f"\nopen {config.output_dir / 'report.html'}")


if __name__ == "__main__":
    run_script(main, DemoConfig)
