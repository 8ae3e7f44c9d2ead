"""Samples per second of fine-tuning on one process and on all that torchrun started: the 7B shape, random weights, the real data loader.

    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py --work_dir /dev/shm/scaling --batch_size 8 --json scaling.json

Both go through `prepare_run` and `Trainer`, as fine-tuning does: first the main process alone, while the others wait, then all together
with the same batch each. The base model (15 GB) is written to `work_dir`, best a memory file system, and deleted again: one machine only.
With --strategy fsdp the frozen base is sharded; with --use_lora False every weight is trained, which takes more than 120 GB on one process
(--alone False leaves that out).
"""

from __future__ import annotations

import gc
import json
import shutil
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prismatic.cli import run_script
from prismatic.models.base import build_tokenizer, random_weights, write_base, write_tiny_base
from prismatic.models.configuration import TinySizes, openvla_7b
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import Ranks, on_main, process_group
from prismatic.training.loop import Trainer
from prismatic.training.setup import prepare_run

DATA = Path(__file__).parents[1] / "tests" / "golden" / "data" / "rlds"
SHAPES = {
    "libero": {"dataset_name": "libero_spatial_no_noops", "num_images_in_input": 2},
    "aloha_film": {"dataset_name": "aloha1_put_X_into_pot_300_demos", "num_images_in_input": 3, "use_film": True},
}
PRESETS = ("7b", "tiny")


@dataclass
class ScalingConfig:
    """The flags."""

    work_dir: Path  # receives the base model; a memory file system is quickest
    preset: str = "7b"  # size of the model: 7b, or tiny to try the script on a CPU
    shape: str = "libero"  # libero or aloha_film
    batch_size: int = 8  # samples per process
    strategy: str = "ddp"  # ddp or fsdp
    use_lora: bool = True  # False trains every weight
    alone: bool = True  # also measure one process, to compare with
    num_workers: int = 8  # processes that load data, per training process
    num_steps: int = 20  # timed ones
    warmup_steps: int = 12  # compilation and caches, not counted
    flags: dict[str, Any] = field(default_factory=dict)  # more training flags, for instance {gradient_checkpointing: true}
    json: Path | None = None  # also write the figures here

    def __post_init__(self) -> None:
        if self.preset not in PRESETS or self.shape not in SHAPES:
            raise ValueError(f"--preset is {self.preset!r}, --shape {self.shape!r}; known: {', '.join(PRESETS)}; {', '.join(SHAPES)}")


def main(config: ScalingConfig) -> None:
    """Entry point."""
    with process_group() as ranks:
        on_main(lambda: _write_base(config, ranks.device), ranks)
        figures: dict[str, Any] = {"device": _device_name(ranks.device), "torch": torch.__version__, "flags": _plain(config)}
        if config.alone:
            figures["1"] = on_main(lambda: _show(1, measure(config, Ranks(0, 1, ranks.device))), ranks)
        figures[str(ranks.world_size)] = measure(config, ranks)
        if config.alone:
            figures["scaling"] = round(figures[str(ranks.world_size)]["samples_per_second"] / figures["1"]["samples_per_second"], 3)
        if ranks.is_main:
            print(json.dumps(figures, indent=2))
            if config.json is not None:
                config.json.write_text(json.dumps(figures, indent=2) + "\n")
            shutil.rmtree(config.work_dir / config.preset)


def measure(config: ScalingConfig, ranks: Ranks) -> dict[str, Any]:
    """The figures of training on `ranks`."""
    started = time.perf_counter()
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(prepare_run(_training_flags(config), ranks))
    load_seconds = time.perf_counter() - started
    trainer.model.train()
    batches = trainer.batches()
    warmup = [_timed_step(trainer, batches) for _ in range(config.warmup_steps)]
    started = time.perf_counter()
    steps = [_timed_step(trainer, batches) for _ in range(config.num_steps)]
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**30 if ranks.device.type == "cuda" else None
    in_use = trainer.in_use
    del trainer, batches
    gc.collect()
    torch.cuda.empty_cache()
    return {
        "samples_per_second": round(config.batch_size * ranks.world_size * config.num_steps / seconds, 2),
        "median_step_ms": round(statistics.median(steps) * 1e3, 1),
        "peak_gib": None if peak is None else round(peak, 2),  # of the main process
        "load_s": round(load_seconds, 1),
        "in_use": in_use,
        "warmup_s": [round(value, 1) for value in warmup],
    }


def _show(count: int, figures: dict[str, Any]) -> dict[str, Any]:
    print(f"{count} process: {json.dumps(figures)}", flush=True)
    return figures


def _timed_step(trainer: Trainer, batches: Any) -> float:
    started = time.perf_counter()
    trainer.optimizer_step(batches)
    trainer.step += 1
    if trainer.ranks.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _training_flags(config: ScalingConfig) -> FinetuneConfig:
    return FinetuneConfig.from_flags(
        vla_path=str(config.work_dir / config.preset),
        data_root_dir=DATA,
        run_root_dir=config.work_dir / "runs",
        batch_size=config.batch_size,
        strategy=config.strategy,
        use_lora=config.use_lora,
        use_proprio=True,
        num_workers=config.num_workers,
        device_augmentation=True,
        **{**SHAPES[config.shape], **config.flags},  # type: ignore[arg-type]
    )


def _write_base(config: ScalingConfig, device: torch.device) -> None:
    folder = config.work_dir / config.preset
    if folder.exists():  # left by a run that was interrupted
        return
    if config.preset == "tiny":
        write_tiny_base(folder, TinySizes(), seed=7)
        return
    sizes = openvla_7b()
    write_base(folder, sizes, random_weights(sizes, 7, device), build_tokenizer(sizes.token_ids))
    torch.cuda.empty_cache()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _plain(config: ScalingConfig) -> dict[str, Any]:
    return {name: value if isinstance(value, int | dict) else str(value) for name, value in vars(config).items()}


if __name__ == "__main__":
    run_script(main, ScalingConfig)
