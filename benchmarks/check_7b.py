"""The real 7B shape with random weights, end to end on one GPU: base checkpoint, one LoRA step, saved, loaded again, bf16 against float32.

    python benchmarks/check_7b.py --work_dir DIR [--json FILE]

Takes the small recorded data sets of the tests: LIBERO (2 images, proprio, L1) and ALOHA (3 images, proprio, L1, FiLM). Needs a GPU with
60 GB, 50 GB of disk. Random weights are the hardest case for rounding: nothing in them was trained to be robust.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prismatic.cli import run_script
from prismatic.conversion.merging import sample_observation
from prismatic.models.base import build_tokenizer, random_weights, write_base
from prismatic.models.configuration import openvla_7b
from prismatic.policy.checkpoint.loading import LoadOptions
from prismatic.policy.policy import Policy
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune

DATA = Path(__file__).parents[1] / "tests" / "golden" / "data" / "rlds"
SHAPES = {
    "LIBERO": {"dataset_name": "libero_spatial_no_noops", "num_images_in_input": 2, "batch_size": 4},
    "ALOHA+FiLM": {"dataset_name": "aloha1_put_X_into_pot_300_demos", "num_images_in_input": 3, "batch_size": 2, "use_film": True},
}
QUANTIZATIONS = ("int8", "nf4", "int8_weight_only", "fp8_weight_only")


@dataclass
class CheckConfig:
    """The flags."""

    work_dir: Path  # receives the base and the checkpoints, which are deleted again
    json: Path | None = None  # also write the figures here


def main(config: CheckConfig) -> None:
    """Entry point."""
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device; the 7B check needs a GPU with 60 GB")
    figures: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    base = config.work_dir / "base_7b"
    start = time.monotonic()
    sizes = openvla_7b()
    weights = random_weights(sizes, seed=7, device=torch.device("cuda"))
    figures["parameters"] = sum(value.numel() for value in weights.values())
    write_base(base, sizes, weights, build_tokenizer(sizes.token_ids))
    del weights
    _free()
    figures["write_base_s"] = round(time.monotonic() - start, 1)
    print(figures, flush=True)
    for name, flags in SHAPES.items():
        figures[name] = _check_shape(config.work_dir, base, flags)
        print(name, json.dumps(figures[name]), flush=True)
        if config.json is not None:
            config.json.write_text(json.dumps(figures, indent=2) + "\n")
    shutil.rmtree(base)


def _check_shape(work_dir: Path, base: Path, flags: dict[str, object]) -> dict[str, object]:
    torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    run = FinetuneConfig.from_flags(
        vla_path=str(base),
        data_root_dir=DATA,
        run_root_dir=work_dir / "runs",
        run_id_override="check",
        use_proprio=True,
        max_steps=1,
        save_freq=1,
        wandb_log_freq=1,
        num_workers=0,
        **flags,  # type: ignore[arg-type]
    )
    finetune(run)
    row = json.loads((work_dir / "runs" / "check" / "metrics.jsonl").read_text().splitlines()[0])
    found: dict[str, object] = {"train_loss": row["train/loss"], "train_peak_gib": _peak()}
    found["train_and_save_s"] = round(time.monotonic() - start, 1)
    checkpoint = work_dir / "runs" / "check--1_chkpt"
    actions, found["load_s"], found["predict_ms"], found["bf16_peak_gib"] = _act(checkpoint, torch.bfloat16, LoadOptions())
    exact, *_ = _act(checkpoint, torch.float32, LoadOptions())
    found["action_rms"] = _rms(exact)
    found["bf16_error"] = _rms(actions - exact) / _rms(exact)
    for kind in QUANTIZATIONS:
        try:
            quantized, _, _, peak = _act(checkpoint, torch.bfloat16, LoadOptions(quantization=kind))
        except (ValueError, RuntimeError, ImportError) as error:
            found[kind] = f"{type(error).__name__}: {error}"[:200]
            continue
        found[kind] = {"error_against_bf16": _rms(quantized - actions) / _rms(actions), "peak_gib": peak}
    shutil.rmtree(work_dir / "runs")
    return found


def _act(checkpoint: Path, dtype: torch.dtype, options: LoadOptions) -> tuple[np.ndarray, float, float, float]:
    """(normalised actions [B, H, A] of two prompts, seconds to load, milliseconds for one prediction of one observation, peak GiB)."""
    _free()
    torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    policy = Policy.from_pretrained(checkpoint, dtype=dtype, options=options)
    loaded = time.monotonic() - start
    sample = sample_observation(policy.parts)
    policy.predict([sample])
    torch.cuda.synchronize()
    start = time.monotonic()
    for _ in range(5):
        chunk = policy.predict([sample])[0].actions
    milliseconds = (time.monotonic() - start) / 5 * 1000
    low, high = policy.action_bounds.low, policy.action_bounds.high
    peak = _peak()
    del policy
    return 2 * (chunk - low) / (high - low + 1e-8) - 1, round(loaded, 1), round(milliseconds, 1), peak


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _peak() -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    run_script(main, CheckConfig)
