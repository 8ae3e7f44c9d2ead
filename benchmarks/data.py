"""The data engine against tf.data: CPU time per sample, time to the first batch, memory, growth with the size of the set.

    python benchmarks/data.py [--json FILE] [--device cuda]

Writes small RLDS sets with tensorflow-datasets (extra [rlds]) into a temporary folder; TensorFlow runs in processes of its own. Both
sides use one thread and are measured in turns. Three kinds of output are compared with the tf.data pipeline whose images went through
the image processor, as a model takes them:

    float32   the same: pixel values, normalised for both vision towers, by the worker
    uint8     augmented images; the model normalises them on its device
    device    decoded images; `images.prepare_on_device` does the rest (--device times it)

each twice: plain, as in the first epoch, and cached, as in every later one with --frame_cache_dir.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from data_kinds import IMAGE_SIZE, KINDS, Kind  # noqa: E402
from data_reader import collate, open_dataset  # noqa: E402

from prismatic.cli import run_script  # noqa: E402
from prismatic.models.processor import normalize_pixels  # noqa: E402
from prismatic.vla.datasets.dataset import VLADataset  # noqa: E402
from prismatic.vla.datasets.sampler import MixtureSampler  # noqa: E402
from prismatic.vla.images import AugmentationDraw, draw_augmentation, prepare_batch_on_device, stack_draws  # noqa: E402

TARGETS = {"float32": 3.5, "uint8": 6.5, "device": 10.0}  # times less CPU time than tf.data
_OUTPUTS = tuple(TARGETS)


@dataclass
class BenchmarkConfig:
    """Flags of this script."""

    json: Path | None = None  # write all figures to this file
    device: str | None = None  # "cuda": time prepare_on_device there, and nothing else
    seconds: float = 2.0  # of each measurement
    rounds: int = 3  # measurements of each side, in turns; the median counts
    growth: int = 10  # the larger set has this many times the episodes

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.rounds < 1 or self.growth < 2:
            raise ValueError(f"--seconds {self.seconds}, --rounds {self.rounds}, --growth {self.growth}: need > 0, >= 1 and >= 2")


def main(config: BenchmarkConfig) -> None:
    """Prints the figures; writes them to --json."""
    torch.set_num_threads(1)
    if config.device is not None:
        figures: dict[str, Any] = {"prepare_on_device": {name: time_device(kind, config.device) for name, kind in KINDS.items()}}
        for name, found in figures["prepare_on_device"].items():
            print(f"{name:14s} batch {found['batch_size']}: {found['milliseconds']:.2f} ms on {found['device']}")
    else:
        figures = {}
        for name, kind in KINDS.items():
            with tempfile.TemporaryDirectory() as folder:
                figures[name] = measure_kind(Path(folder), name, kind, config)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure_kind(folder: Path, name: str, kind: Kind, config: BenchmarkConfig) -> dict[str, Any]:
    """All figures of one sort of data set."""
    sets = {"1x": kind.num_episodes, f"{config.growth}x": kind.num_episodes * config.growth}
    figures: dict[str, Any] = {}
    for size, episodes in sets.items():
        _tensorflow("write", folder / size, name, str(episodes)).communicate()
    figures["cpu_milliseconds_per_sample"] = found = compare(folder, name, kind, config)
    for cached in ("", " cached"):
        for output in _OUTPUTS:
            ratio = found["tf.data float32"] / found[output + cached]
            print(
                f"{name:14s} {output + cached:15s} {found[output + cached]:6.2f} ms, tf.data {found['tf.data float32']:6.2f} ms: "
                f"{ratio:5.1f} times less CPU time (target {TARGETS[output]})"
            )
    print(
        f"{name:14s} tf.data  {found['tf.data uint8']:6.2f} ms with uint8 output: {found['tf.data uint8'] / found['uint8']:.1f} times ours"
    )
    figures["growth"] = {size: measure_growth(folder / size, name, kind, folder / f"cache_{size}") for size in sets}
    for size, values in figures["growth"].items():
        print(f"{name:14s} {size:4s} " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    return figures


def compare(folder: Path, name: str, kind: Kind, config: BenchmarkConfig) -> dict[str, float]:
    """CPU milliseconds per sample of each output of ours and of tf.data, medians of rounds taken in turns."""
    small, cache = folder / "1x", folder / "cache"
    readers: dict[str, Callable[[], None]] = {}
    for cached, frames in (("", None), (" cached", folder / "frames")):
        on_cpu, on_device = (open_dataset(small, kind, cache, on_device, frames) for on_device in (False, True))
        readers["float32" + cached] = _reader(on_cpu, kind, normalize=True)
        readers["uint8" + cached] = _reader(on_cpu, kind, normalize=False)
        readers["device" + cached] = _reader(on_device, kind, normalize=False)
    for number in range(len(on_cpu)):  # the first epoch
        on_cpu[number]
    rows: dict[str, list[float]] = {}
    with _tensorflow("read", small, name) as other:
        for _ in range(config.rounds):
            for output, read in readers.items():
                rows.setdefault(output, []).append(_cpu_milliseconds(read, config.seconds) / kind.batch_size)
            for output in ("float32", "uint8"):
                rows.setdefault(f"tf.data {output}", []).append(_ask(other, output == "float32", config.seconds))
        assert other.stdin is not None
        other.stdin.close()
    return {output: statistics.median(values) for output, values in rows.items()}


def _reader(dataset: VLADataset, kind: Kind, normalize: bool) -> Callable[[], None]:
    """Reads one batch per call, in the order of training."""
    keys: Iterator[Any] = iter(dataset.sampler(seed=0))

    def read() -> None:
        batch = collate([dataset[key] for key in islice(keys, kind.batch_size)])
        if normalize:
            normalize_pixels(batch["images"])

    return read


def _cpu_milliseconds(call: Callable[[], None], seconds: float) -> float:
    """CPU time of this process (no other works for it) per call."""
    call()
    count, end, cpu = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < end:
        call()
        count += 1
    return (time.process_time() - cpu) / count * 1e3


def _tensorflow(*arguments: str | Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "data_tensorflow.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _ask(process: subprocess.Popen[str], normalize: bool, seconds: float) -> float:
    """CPU milliseconds per sample of the tf.data process, all of its threads."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"seconds": seconds, "normalize": normalize}) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise ValueError('the TensorFlow process ended; install the extra: pip install "openvla-oft-robot[rlds]"')
    found = json.loads(answer)
    return found["cpu_seconds"] / found["samples"] * 1e3


def measure_growth(folder: Path, name: str, kind: Kind, cache: Path) -> dict[str, float]:
    """Cost of index and sampling, time to the first batch without and with index, memory of the main process and two workers (PSS)."""
    cold, warm = (_first_batch(folder, name, cache) for _ in range(2))
    cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    dataset = open_dataset(folder, kind, cache.with_suffix(".again"))
    index_seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu
    read = _reader(dataset, kind, normalize=False)
    return {
        "steps": len(dataset),
        "index_cpu_seconds": index_seconds,
        "sample_cpu_ms": _cpu_milliseconds(read, 2.0) / kind.batch_size,
        "epoch_order_ms": _cpu_milliseconds(lambda: _order(dataset.sampler(seed=0)), 0.3),
        "first_batch_cold_s": cold["first_batch_seconds"],
        "first_batch_warm_s": warm["first_batch_seconds"],
        "first_batch_warm_cpu_s": warm["first_batch_cpu_seconds"],  # of the main process: what a quiet machine takes, nearly
        "peak_pss_gb": max(cold["peak_pss_gb"], warm["peak_pss_gb"]),
    }


def _order(sampler: MixtureSampler) -> None:
    next(iter(sampler))


def _first_batch(folder: Path, name: str, cache: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "data_reader.py"), str(folder), name, str(cache), str(time.time())]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def time_device(kind: Kind, device: str) -> dict[str, Any]:
    """Milliseconds of prepare_on_device for one batch of decoded frames that lie on the device."""
    rng = np.random.default_rng(0)
    shape = (kind.batch_size, len(kind.image_keys), *kind.image_shape, 3)
    images = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)).to(device)
    draw: AugmentationDraw = stack_draws([draw_augmentation(rng) for _ in range(kind.batch_size)])
    draws = torch.from_numpy(draw.rows()).to(device)

    def synchronize() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    times = []
    for _ in range(30):
        synchronize()
        start = time.perf_counter()
        prepare_batch_on_device(images, draws, IMAGE_SIZE)
        synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    named = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device
    return {"batch_size": kind.batch_size, "milliseconds": statistics.median(times[10:]), "device": named}


if __name__ == "__main__":
    run_script(main, BenchmarkConfig)
