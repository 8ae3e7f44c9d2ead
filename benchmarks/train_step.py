"""Speed and memory of a training step with a real shape (7B; qwen-*: 0.5B), random weights and the real data loader, on one GPU.

    python benchmarks/train_step.py --work_dir /dev/shm/train_step --json train_step.json

Every case runs in a process of its own through `prepare_run` and `Trainer`, as fine-tuning does: read, decode, augment, forward, backward,
AdamW. The first steps (compilation, recording) are timed one by one; then the clock runs until the GPU is through a row of steps, for
which, as in a run, the processor does not wait one by one. A case with a cap may use no more memory than that, as on a smaller card,
and also saves and merges. A case that does not run the way it names (compiled, recorded, with its quantized layers) fails.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from prismatic.cli import run_script
from prismatic.models.base import build_tokenizer_for, random_weights, write_base
from prismatic.models.configuration import openvla_7b, prismatic_qwen25_0_5b
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import Ranks
from prismatic.training.loop import Trainer
from prismatic.training.setup import prepare_run
from prismatic.vla.types import Batch

DATA = Path(__file__).parents[1] / "tests" / "golden" / "data" / "rlds"
PEAK_TFLOPS = 790  # what a large bf16 matrix product reaches on an H100 or H200
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One configuration to measure."""

    flags: dict[str, Any]
    goal: str
    cap_gib: float | None = None
    base: str = "openvla-7b"  # of PRESETS


PRESETS = {"openvla-7b": openvla_7b, "prismatic-qwen25-0.5b": prismatic_qwen25_0_5b}
QWEN = "prismatic-qwen25-0.5b"
LIBERO = {"dataset_name": "libero_spatial_no_noops", "num_images_in_input": 2}
ALOHA = {"dataset_name": "aloha1_put_X_into_pot_300_demos", "num_images_in_input": 3, "use_film": True}
SMALL = {"batch_size": 1, "quantize_base": "nf4", "gradient_checkpointing": True}
CASES = {
    "libero-b8": Case({**LIBERO, "batch_size": 8}, "24 samples/s, 40 GiB"),
    "libero-b24": Case({**LIBERO, "batch_size": 24, "activation_memory_budget": 1.0}, "28 samples/s"),
    "aloha-film-b4": Case({**ALOHA, "batch_size": 4}, "11.5 samples/s"),
    "libero-b8-fp8": Case({**LIBERO, "batch_size": 8, "quantize_base": "fp8"}, "38 samples/s"),
    "libero-b24-fp8": Case({**LIBERO, "batch_size": 24, "activation_memory_budget": 1.0, "quantize_base": "fp8"}, "41 samples/s"),
    "aloha-film-b4-fp8": Case({**ALOHA, "batch_size": 4, "quantize_base": "fp8"}, "16 samples/s"),
    "libero-b1": Case({**LIBERO, "batch_size": 1, "gradient_checkpointing": True}, "20 GiB", cap_gib=22),
    "libero-b1-nf4": Case({**LIBERO, **SMALL}, "12 GiB", cap_gib=22),
    "aloha-film-b1-nf4": Case({**ALOHA, **SMALL, "optimizer": "adamw_8bit"}, "16 GiB", cap_gib=22),
    "qwen-b1": Case({**LIBERO, "batch_size": 1}, "6 GiB, also when it is merged", cap_gib=7.5, base=QWEN),
    "qwen-b8": Case({**LIBERO, "batch_size": 8}, "16 GiB", cap_gib=22, base=QWEN),
    "qwen-b32": Case({**LIBERO, "batch_size": 32, "activation_memory_budget": 1.0}, "150 samples/s", base=QWEN),
}


@dataclass
class TrainStepConfig:
    """The flags."""

    work_dir: Path  # receives the base models (15 and 2.5 GB), which are deleted again; a memory file system is quickest
    cases: list[str] = field(default_factory=lambda: list(CASES))  # which to run
    flags: dict[str, Any] = field(default_factory=dict)  # training flags for all of them, for instance {compile: "False"}
    num_workers: int = 8
    warmup_steps: int = 12
    num_steps: int = 20  # timed ones
    profile: bool = False  # also print where the time of three steps goes
    keep_base: bool = False  # leave the base model for another run
    json: Path | None = None  # also write the figures here


def main(config: TrainStepConfig) -> None:
    """Entry point."""
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device; this benchmark trains models of 0.5B and 7B")
    bases = {name: config.work_dir / name for name in {CASES[case].base for case in config.cases}}
    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for preset, base in bases.items():
            processes.submit(ensure_base, preset, base).result()
        for name in config.cases:
            try:
                figures[name] = processes.submit(measure, name, bases[CASES[name].base], config).result()
            except RuntimeError as error:  # out of memory, or left the way that it names: the other cases still count
                figures[name] = {"error": str(error).splitlines()[0]}
            print(name, json.dumps({**figures[name], "goal": CASES[name].goal}), flush=True)
            if config.json is not None:
                config.json.write_text(json.dumps(figures, indent=2) + "\n")
    for base in () if config.keep_base else bases.values():
        shutil.rmtree(base)
    if failed := [name for name in config.cases if "error" in figures[name]]:
        raise ValueError(f"these cases have no figures: {', '.join(failed)}; their errors are above")


def ensure_base(preset: str, folder: Path) -> None:
    """Writes a base of random weights, unless there is one."""
    if not folder.exists():
        sizes = PRESETS[preset]()
        write_base(folder, sizes, random_weights(sizes, 7, torch.device("cuda")), build_tokenizer_for(sizes))


def measure(name: str, base: Path, config: TrainStepConfig) -> dict[str, Any]:
    """The figures of one case; prints them as they come, since a case takes minutes."""
    case, total = CASES[name], torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if case.cap_gib is None else case.cap_gib * GIB / total)
    trainer, load_seconds = _timed(lambda: build_trainer(case, base, config))
    print(f"  {name}: loaded after {load_seconds:.0f} s", flush=True)
    with contextlib.closing(trainer.batches()) as batches:
        found = {"load_s": round(load_seconds, 1), **_measure_steps(trainer, batches, config)}
        found["in_use"] = check_way(trainer, {**case.flags, **config.flags})
        print(f"  {name}: {json.dumps(found)}", flush=True)
        if case.cap_gib is None:
            tflops = count_flops(trainer, next(batches)) * 1e3 / found["step_ms"] / 1e12
            found |= {"tflops": round(tflops, 1), "share_of_peak": round(tflops / PEAK_TFLOPS, 3)}
        else:
            found["save_and_merge_s"] = round(_timed(lambda: trainer.save(merge=True))[1], 1)
            found["peak_gib_with_saving"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
            shutil.rmtree(config.work_dir / "runs")
        if config.profile:
            _profile(trainer, batches)
    return found


def check_way(trainer: Trainer, flags: dict[str, Any]) -> dict[str, Any]:
    """What was in use.

    Raises:
        RuntimeError: not what `flags` name: blocks compiled and steps recorded unless they say otherwise, layers quantized if they say so.
    """
    in_use, passes = trainer.in_use, {} if trainer.captured is None else trainer.captured.counts
    for name, flag in (("compiled", "compile"), ("recorded", "cuda_graphs")):
        if str(flags.get(flag, "auto")) != "False" and not in_use[name]:
            raise RuntimeError(f"steps are not {name}: {in_use['left'].get(name)}")
    if passes.get("plain", 0) > passes.get("recorded", 0):
        raise RuntimeError(f"most passes ran plainly: {passes}")
    if (flags.get("quantize_base", "none") != "none") != bool(in_use["quantized_layers"]):
        raise RuntimeError(f"--quantize_base {flags.get('quantize_base')}, but quantized layers are {in_use['quantized_layers']}")
    return {**in_use, "passes": dict(passes)}


def _measure_steps(trainer: Trainer, batches: Any, config: TrainStepConfig) -> dict[str, Any]:
    """Speed and memory of the case's steps, after those that warm up."""
    warmup = [_timed(lambda: _steps(trainer, batches, 1))[1] for _ in range(config.warmup_steps)]
    trainer.meter.restart()
    seconds = _timed(lambda: _steps(trainer, batches, config.num_steps))[1]
    rates = trainer.meter.report(trainer.config.optimization.batch_size)[1]
    return {
        "samples_per_second": round(rates["samples_per_second"], 2),
        "data_wait": round(rates["data_wait"], 4),
        "step_ms": round(seconds / config.num_steps * 1e3, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "warmup_s": [round(value, 1) for value in warmup],
    }


def build_trainer(case: Case, base: Path, config: TrainStepConfig) -> Trainer:
    """The case's trainer, ready for its first step."""
    flags = FinetuneConfig.from_flags(
        vla_path=str(base),
        data_root_dir=DATA,
        run_root_dir=config.work_dir / "runs",
        use_proprio=True,
        num_workers=config.num_workers,
        device_augmentation=True,
        **{**case.flags, **config.flags},
    )
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(prepare_run(flags, Ranks(0, 1, torch.device("cuda", 0))))
    trainer.model.train()
    return trainer


def count_flops(trainer: Trainer, batch: Batch) -> int:
    """Floating-point operations of `batch`, forward and backward, counted while its first sample runs uncompiled."""
    from torch.utils.flop_counter import FlopCounterMode

    values = {item.name: getattr(batch, item.name) for item in fields(batch)}
    first = replace(batch, **{name: value[:1] for name, value in values.items() if value is not None})  # all would not fit beside a graph
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        trainer.accumulate(first)
    return counter.get_total_flops() * len(batch.input_ids)


def _steps(trainer: Trainer, batches: Any, count: int) -> None:
    """`count` steps, until the GPU has done them."""
    for _ in range(count):
        trainer.meter.add(trainer.optimizer_step(batches))
        trainer.step += 1
    torch.cuda.synchronize()


def _timed(call: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _profile(trainer: Trainer, batches: Any) -> None:
    """Prints the kernels that take the most time, milliseconds a step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        _steps(trainer, batches, 3)
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_time:
            times[event.name[:110]] += event.device_time / 3e3
            calls[event.name[:110]] += 1
    print(f"  all kernels {sum(times.values()):.1f} ms a step")
    for name, milliseconds in times.most_common(28):
        print(f"  {milliseconds:7.2f} ms {calls[name] // 3:5d} x {name}")


if __name__ == "__main__":
    run_script(main, TrainStepConfig)
