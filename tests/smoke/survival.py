"""A small workplace for runs that are interrupted, and what is compared between them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launching import ROOT, SCRIPT, Launcher, Started, free_port
from safetensors.torch import load_file

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes

DATASET = "libero_spatial_no_noops"
FINETUNE = f"import runpy\nsys.argv[0] = {str(SCRIPT)!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
# Differ between runs that are the same: how they were started, and clocks.
_OWN_FILES = ("policy.json", "manifest.json", "trainer_state/state.json", "metrics.jsonl", "curves.png", "lora_adapter/adapter_config.json")
_CLOCKS = ("seconds", "train/samples_per_second", "train/step_seconds", "train/data_wait", "train/host_gib")


def make_workplace(folder: Path) -> Path:
    """A tiny base and a small recorded data set in `folder`."""
    sizes = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
    write_tiny_base(folder / "base", sizes, seed=0)
    shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, folder / "data" / DATASET)
    return folder


def flags(workplace: Path, runs: str, *more: str) -> list[str]:
    """The flags of a small run named "run" in the folder `runs`; later ones win."""
    return [
        *("--vla_path", str(workplace / "base"), "--data_root_dir", str(workplace / "data"), "--dataset_name", DATASET),
        *("--run_root_dir", str(workplace / runs), "--run_id_override", "run", "--num_images_in_input", "2", "--use_proprio", "True"),
        *("--batch_size", "2", "--save_freq", "2", "--max_steps", "10000", "--wandb_log_freq", "1", "--num_workers", "0"),
        *("--lora_rank", "2", *more),
    ]


def write_script(folder: Path, name: str, *parts: str) -> Path:
    """A script for `start_processes` that knows its `rank`; the part FINETUNE runs the real one."""
    path = folder / f"{name}.py"
    path.write_text("".join(("import os, sys, time\nrank = int(os.environ['RANK'])\n", *parts)))
    return path


def start_processes(launcher: Launcher, arguments: Sequence[str], folders: Sequence[Path], script: Path = SCRIPT) -> list[Started]:
    """One run with a process in each of `folders`, as torchrun would start them."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(folders))}
    places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(folders))]
    return [launcher.start(arguments, place, folder, script) for place, folder in zip(places, folders, strict=True)]


def wait_for(processes: Sequence[Started], status: int = 0) -> None:
    """Returns when all have ended with `status`."""
    for process in processes:
        assert process.wait() == status, process.text()


def rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what clocks say; none where there is no file yet, or none in the moment of its replacement."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    return [{key: value for key, value in json.loads(line).items() if key not in _CLOCKS} for line in lines if line.endswith("}")]


def contents(checkpoint: Path) -> dict[str, str]:
    """File -> hash of its content, of all that must not depend on how often a run was interrupted."""
    files = {str(path.relative_to(checkpoint)): path for path in checkpoint.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name not in _OWN_FILES}


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    """Two safetensors files hold the same names, dtypes and (relative to each tensor's largest value) numbers."""
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype, key
        difference = float((right[key] - value).abs().max())
        assert difference <= tolerance * float(value.abs().max()), f"{key} differs by {difference}"


def assert_every_weight_got_a_gradient(checkpoint: Path) -> None:
    """AdamW remembers exactly the weights that have had a gradient; DDP, which does not search for others, would wait for them."""
    trained = load_file(checkpoint / "trainer_state" / "trainable.safetensors")
    moments = load_file(checkpoint / "trainer_state" / "optimizer.safetensors")
    assert {name.removesuffix("/exp_avg") for name in moments if name.endswith("/exp_avg")} == trained.keys() != set()
