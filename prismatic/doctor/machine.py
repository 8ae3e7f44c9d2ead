"""Memory, disk, GPU and network against what the 7B model needs; of GPUs also the small base. Sizes in GiB."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from prismatic.vla.diagnosis import Finding, Status

_GIB = 2**30
_BASE_MODEL = "openvla/openvla-7b"
_MODEL_GIB = 14  # the 7B model in bfloat16, on disk and in memory
_HUB_TIMEOUT_S = 5.0
_SMALL = "fine-tune the small base (--config_path vla-scripts/recipes/small_8gb_card.yaml)"
# What is measured in benchmarks/README.md, rounded up: peak of GPU memory -> what it is enough for, least first.
GPU_NEEDS = (
    (5, _SMALL),
    (6, f"{_SMALL}, or to serve a 7B policy with --quantization nf4"),
    (10, "fine-tune with --quantize_base nf4 --gradient_checkpointing True --batch_size 1"),
    (15, "serve a 7B policy in bfloat16"),
    (22, "fine-tune with LoRA, --batch_size 1"),
    (34, "fine-tune with LoRA, --batch_size 4"),
    (48, "fine-tune with LoRA, --batch_size 8"),
)


def check_memory() -> list[Finding]:
    """Main memory of this machine or container."""
    total = _memory_limit() / _GIB
    found = f"{total:.0f} GiB, {os.cpu_count()} processor cores"
    if total < _MODEL_GIB + 2:
        remedy = f"Loading the 7B model takes {_MODEL_GIB} GiB; the demo and tiny models run here."
        return [Finding("memory", Status.WARNING, found, remedy)]
    return [Finding("memory", Status.OK, found)]


def check_shared_memory() -> list[Finding]:
    """/dev/shm, through which data loader processes hand over their batches; containers get 64 MB of it by default."""
    if not Path("/dev/shm").is_dir():
        return []
    total = shutil.disk_usage("/dev/shm").total / _GIB
    if total >= 1:
        return [Finding("shared memory", Status.OK, f"{total:.0f} GiB in /dev/shm")]
    remedy = "Start the container with --shm-size 8g (or --ipc host); otherwise train with --num_workers 0."
    return [Finding("shared memory", Status.WARNING, f"{total * 1024:.0f} MiB in /dev/shm", remedy)]


def check_disk() -> list[Finding]:
    """Room for checkpoints here and for downloads in the Hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    findings = []
    for subject, folder in (("disk", Path.cwd()), ("Hub's cache", Path(HF_HUB_CACHE))):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / _GIB
        found = f"{free:.0f} GiB free in {folder}"
        if free < _MODEL_GIB + 1:
            remedy = (
                f"The base model and every merged 7B checkpoint take {_MODEL_GIB} GiB: free some, move HF_HOME or --run_root_dir, or "
                "train with --save_latest_checkpoint_only True --merge_lora_during_training False."
            )
            findings.append(Finding(subject, Status.PROBLEM if free < 1 else Status.WARNING, found, remedy))
        else:
            findings.append(Finding(subject, Status.OK, found))
    return findings


def check_gpu() -> list[Finding]:
    """Every GPU, and the largest task that fits into it."""
    import torch

    if not torch.cuda.is_available():
        return []
    findings = []
    for number in range(torch.cuda.device_count()):
        free, total = (value / _GIB for value in torch.cuda.mem_get_info(number))
        subject, found = f"GPU {number}", f"{torch.cuda.get_device_name(number)}, {free:.0f} of {total:.0f} GiB free"
        fitting = [task for need, task in GPU_NEEDS if need <= free]
        if not fitting:
            remedy = f"The least is {GPU_NEEDS[0][0]} GiB, to {GPU_NEEDS[0][1]}; see nvidia-smi for who holds the memory."
            findings.append(Finding(subject, Status.WARNING, found, remedy))
        else:
            findings.append(Finding(subject, Status.OK, f"{found}: enough to {fitting[-1]}"))
    return findings


def check_hub() -> list[Finding]:
    """Whether models can be downloaded."""
    return [describe_hub_model(_BASE_MODEL, "Hub")]


def describe_hub_model(name: str, subject: str) -> Finding:
    """Whether the model with Hub id `name` is in the cache, or can be asked for within a few seconds."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return Finding(subject, Status.OK, f"{name} is downloaded already")
    elsewhere = f"Folders work without it: download {name} elsewhere (hf download) and pass the folder; HF_ENDPOINT names a mirror."
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except OfflineModeIsEnabled:
        return Finding(subject, Status.NOTE, "HF_HUB_OFFLINE is set; nothing is downloaded", elsewhere)
    except HfHubHTTPError as error:
        found = f"{constants.ENDPOINT} does not give {name}: {str(error).splitlines()[0]}"
        return Finding(subject, Status.WARNING, found, f"Check the spelling, or log in with hf auth login. {elsewhere}")
    except Exception as error:  # the client's transport raises many kinds, all of which mean the same here
        return Finding(subject, Status.WARNING, f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})", elsewhere)
    return Finding(subject, Status.OK, f"{constants.ENDPOINT} answers")


def _memory_limit() -> int:
    """Bytes that processes here may use: those of the machine, or of the container's control group."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))
