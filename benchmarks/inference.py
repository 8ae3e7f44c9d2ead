"""Latency, throughput and memory of the policy at a real shape (7B; qwen-*: 0.5B) with random weights: from images and text to actions.

python benchmarks/inference.py --json inference.json                                  # every shape and kind; needs a GPU with 48 GB
python benchmarks/inference.py --shapes libero --kinds bf16 --batch_sizes 1 --profile true
python benchmarks/inference.py --device cpu --shapes qwen-libero --batch_sizes 1 --num_calls 20    # float32, by all cores (OMP_NUM_THREADS)

A call is `Policy.predict`: uint8 camera images and an instruction on the host in, actions in the robot's units on the host out. The error
is the root mean square of the difference from the eager bfloat16 policy's actions for 8 observations, as a share of theirs.
"""

from __future__ import annotations

import gc
import json
import resource
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import camera_picture

from prismatic.cli import run_script
from prismatic.models.base import build_tokenizer_for
from prismatic.models.configuration import OpenVLAConfig, openvla_7b, prismatic_qwen25_0_5b
from prismatic.models.processor import PrismaticImageProcessor, PrismaticProcessor
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.parts import PolicyParts, build_action_model
from prismatic.policy.checkpoint.spec import HeadSpec, PolicySpec
from prismatic.policy.inference.graphs import make_engine
from prismatic.policy.inference.quantization import quantize_model
from prismatic.policy.policy import Policy
from prismatic.vla.cameras import ONE_ARM, TWO_ARMS
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.images import ImageRecipe
from prismatic.vla.types import Observation

# Tokens in the language model: LIBERO 605, diffusion 606, ALOHA 1155, as in docs of the published code's speed.
INSTRUCTION = "pick up the black bowl between the plate and the box and place it on the right small round plate"
SHAPES: dict[str, tuple[str, tuple[str, ...], HeadSpec]] = {
    "libero": ("LIBERO", ONE_ARM, HeadSpec(use_proprio=True)),
    "aloha-film": ("ALOHA", TWO_ARMS, HeadSpec(use_proprio=True, use_film=True)),
    "qwen-libero": ("LIBERO", ONE_ARM, HeadSpec(use_proprio=True)),  # goal: 7 ms in bf16, 3.5 GiB
    "qwen-aloha-film": ("ALOHA", TWO_ARMS, HeadSpec(use_proprio=True, use_film=True)),
    "libero-diffusion": (
        "LIBERO",
        ONE_ARM,
        HeadSpec("diffusion", use_proprio=True, num_diffusion_steps_train=50, num_diffusion_steps_inference=10),
    ),
}
# kind -> (engine, quantization)
KINDS = {
    "eager": ("eager", "none"),
    "graph": ("graph", "none"),
    "bf16": ("compiled", "none"),
    "fp8": ("compiled", "fp8"),
    "nf4": ("eager", "nf4"),
}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


@dataclass
class InferenceConfig:
    """The flags."""

    shapes: list[str] = field(default_factory=lambda: list(SHAPES))
    kinds: list[str] = field(default_factory=list)  # by default every kind of the device
    device: str = "cuda"  # or cpu, which knows the kind eager alone
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])
    num_calls: int = 1000  # at batch 1; larger batches as many observations
    frame_size: int = 256  # pixels, of the square camera images
    pace_s: float = 0.0  # from the start of a call to the start of the next, as of a robot that acts meanwhile; 0: without pause
    all_lengths: bool = True  # warm up for prompts of any usual length, as deploy.py does; else for the benchmark's own
    profile: bool = False  # also print where the time of a call goes
    json: Path | None = None  # also write the figures here

    def __post_init__(self) -> None:
        if self.device not in DTYPES:
            raise ValueError(f"--device is {self.device!r}; choose among {', '.join(DTYPES)}")
        kinds = list(KINDS) if self.device == "cuda" else ["eager"]
        self.kinds = self.kinds or kinds
        for name, known in (("shapes", list(SHAPES)), ("kinds", kinds)):
            if unknown := set(getattr(self, name)) - set(known):
                raise ValueError(f"--{name}: {', '.join(sorted(unknown))} is unknown; choose among {', '.join(known)}")


def main(config: InferenceConfig) -> None:
    """Prints one line per shape, kind and batch size."""
    figures: dict[str, Any] = {**machine(config.device), "torch": torch.__version__, "rows": []}
    print(*list(figures.values())[:-1], flush=True)
    for shape in config.shapes:
        expected: np.ndarray | None = None
        for kind in ["eager", *[kind for kind in config.kinds if kind != "eager"]]:
            parts = build_parts(shape, KINDS[kind][1], torch.device(config.device))
            actions = measure_kind(config, shape, kind, parts, expected, figures["rows"])
            expected = actions if kind == "eager" else expected
            del parts
            if config.json is not None:
                config.json.write_text(json.dumps(figures, indent=2) + "\n")


def machine(device: str) -> dict[str, Any]:
    """What computes.

    Raises:
        ValueError: it is not there.
    """
    if device == "cpu":
        named = next(
            (line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "CPU"
        )
        return {"cpu": named, "threads": torch.get_num_threads()}
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device; the 7B policy needs one with 48 GB, or --device cpu")
    return {"gpu": torch.cuda.get_device_name()}


def measure_kind(
    config: InferenceConfig, shape: str, kind: str, parts: PolicyParts, expected: np.ndarray | None, rows: list[dict[str, Any]]
) -> np.ndarray:
    """Actions [8, H, A] of 8 observations; adds one row per batch size."""
    observations = make_observations(parts.spec, config.frame_size)
    _free(config.device)
    started = time.perf_counter()
    policy = Policy(parts, engine=make_engine(parts, KINDS[kind][0]))
    instructions = () if config.all_lengths else (INSTRUCTION,)
    policy.warm_up((1,), (config.frame_size,) * 2, instructions)
    warm_up_s = time.perf_counter() - started
    compared = observations if config.device == "cuda" else observations[:1]  # a CPU has one kind, and nothing to compare
    actions = np.stack([policy.predict([item], seeds=[0])[0].actions for item in compared])
    error = None if expected is None else _rms(actions - expected) / _rms(expected)
    if kind == "eager" and kind not in config.kinds:
        return actions
    check_way(policy, kind)
    for count in config.batch_sizes:
        batch = [observations[number % len(observations)] for number in range(count)]
        policy.predict(batch)
        num_calls = max(min(20, config.num_calls), (50 if kind == "eager" else config.num_calls) // count)
        times = time_calls(policy, observations, count, num_calls, config.pace_s)
        row = {"shape": shape, "kind": kind, "batch": count, **times, "warm_up_s": warm_up_s, "error": error, **_memory(config.device)}
        rows.append({**row, "in_use": check_way(policy, kind)})
        print(
            "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()), flush=True
        )
        if config.profile:
            print_profile(policy, batch)
    return actions


def check_way(policy: Policy, kind: str) -> dict[str, Any]:
    """What is in use.

    Raises:
        ValueError: not what `kind` names: another engine, no quantized layers, or calls that ran plainly beside the recorded ones.
    """
    (engine, quantization), in_use = KINDS[kind], policy.in_use()
    unexpected = {"compiled", "recorded"} & set(in_use["left"]) if engine == "compiled" else set()
    if in_use["engine"] != engine or unexpected or in_use["plain_calls"]:
        raise ValueError(f"{kind} was left: engine {in_use['engine']}, {in_use['left']}, plain calls {in_use['plain_calls']}")
    if (quantization != "none") != bool(in_use["quantized_layers"]):
        raise ValueError(f"{kind} was left: quantized layers are {in_use['quantized_layers']}")
    return in_use


def build_parts(shape: str, quantization: str, device: torch.device) -> PolicyParts:
    """The policy of `shape` on `device` with random weights, the same in every call."""
    platform_name, cameras, heads = SHAPES[shape]
    platform, config = ROBOT_PLATFORMS[platform_name], prismatic_qwen25_0_5b() if shape.startswith("qwen-") else openvla_7b()
    image, prompt = ImageRecipe(config.image_size, center_crop=True), config.token_ids.prompt_template
    spec = PolicySpec(platform, cameras, image, "random", heads, prompt=prompt)
    torch.manual_seed(0)
    with device:
        vla = OpenVLAForActionPrediction(config)
        if heads.use_film:
            vla.add_film()
        model = build_action_model(vla, config, spec).to(DTYPES[device.type]).eval().requires_grad_(False)
    quantize_model(vla, quantization, device, DTYPES[device.type])
    for module in vla.unused_modules(uses_lm_head=False):
        module.cpu()  # as when a checkpoint is loaded
    bounds = {name: [value] * platform.action_dim for name, value in (("min", -1.0), ("max", 1.0), ("q01", -1.0), ("q99", 1.0))}
    states = {name: [value] * platform.proprio_dim for name, value in (("min", -1.0), ("max", 1.0), ("q01", -1.0), ("q99", 1.0))}
    return PolicyParts(model, config, _processor(config), spec, {"random": {"action": bounds, "proprio": states}})


def _processor(config: OpenVLAConfig) -> PrismaticProcessor:
    return PrismaticProcessor(PrismaticImageProcessor(config.image_size), build_tokenizer_for(config), {})


def make_observations(spec: PolicySpec, frame_size: int) -> list[Observation]:
    """Eight."""
    rng = np.random.default_rng(0)
    return [
        Observation(
            {camera: camera_picture(rng, frame_size) for camera in spec.cameras}, INSTRUCTION, rng.uniform(-1, 1, spec.platform.proprio_dim)
        )
        for _ in range(8)
    ]


def time_calls(policy: Policy, observations: list[Observation], count: int, num_calls: int, pace_s: float) -> dict[str, float]:
    """Milliseconds of a call with `count` observations (median, 99th percentile), and observations per second."""
    durations = []
    for call in range(num_calls):
        batch = [observations[(call + number) % len(observations)] for number in range(count)]
        started = time.perf_counter()
        policy.predict(batch)
        durations.append(time.perf_counter() - started)
        time.sleep(max(0.0, pace_s - durations[-1]))
    median, p99 = (1e3 * float(np.percentile(durations, rank)) for rank in (50, 99))
    return {"median_ms": median, "p99_ms": p99, "samples_per_s": count * len(durations) / sum(durations)}


def print_profile(policy: Policy, batch: list[Observation]) -> None:
    """Milliseconds on the GPU by kernel, and of the whole call."""
    num_calls = 10
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        started = time.perf_counter()
        for _ in range(num_calls):
            policy.predict(batch)
        wall = 1e3 * (time.perf_counter() - started) / num_calls
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            totals[event.name[:100]][0] += event.device_time / 1e3 / num_calls
            totals[event.name[:100]][1] += 1 / num_calls
    print(f"    {wall:.2f} ms a call (with the profiler), kernels {sum(ms for ms, _ in totals.values()):.2f} ms:")
    for name, (ms, calls) in sorted(totals.items(), key=lambda item: -item[1][0])[:24]:
        print(f"    {ms:7.3f} ms {calls:6.1f} x  {name}")


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _memory(device: str) -> dict[str, float]:
    if device == "cpu":
        return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    run_script(main, InferenceConfig)
