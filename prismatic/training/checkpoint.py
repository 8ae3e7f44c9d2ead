"""Saving and resuming a run: everything that the next step depends on, in one folder that appears all at once.

trainer_state/ beside the published files holds
    state.json               step, data position, number of processes, flags
    trainable.safetensors    every trained weight in its training dtype (the published files round to bfloat16)
    optimizer.pt             AdamW's moments
    rng.pt                   random state of every process
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from prismatic.policy.files import check_keys, recover_folder
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import Ranks

TRAINER_STATE_FOLDER = "trainer_state"
_STATE_FILE = "state.json"
_CHECKPOINT_NAME = re.compile(r"--(\d+)_chkpt$")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands; the tensors lie beside it."""

    step: int  # optimizer steps done
    sampler: Mapping[str, Any]  # the sampler's state_dict
    world_size: int
    flags: Mapping[str, Any]  # the FinetuneConfig, as plain values


def checkpoint_folder(config: FinetuneConfig, step: int) -> Path:
    """Where the checkpoint of `step` goes."""
    if config.save_latest_checkpoint_only:
        return config.run_dir
    return config.run_dir.with_name(f"{config.run_dir.name}--{step}_chkpt")


def find_checkpoint(config: FinetuneConfig) -> Path:
    """The complete checkpoint to resume from: `vla_path` itself if it is one, else the run's newest, or that of `resume_step`.

    Raises:
        ValueError: there is none; the message says where it was looked for.
    """
    if is_resumable(Path(config.vla_path)):
        return Path(config.vla_path)
    recover_folder(config.run_dir)
    found = {}
    for folder in [config.run_dir, *config.run_dir.parent.glob(f"{_escape_glob(config.run_id)}--*_chkpt")]:
        name = _CHECKPOINT_NAME.search(folder.name)
        if is_resumable(folder) and (folder == config.run_dir or (name and folder.name == f"{config.run_id}{name[0]}")):
            found[_read_state(folder).step] = folder
    if not found or (config.resume_step is not None and config.resume_step not in found):
        steps = ", ".join(str(step) for step in sorted(found)) or "none"
        wanted = "" if config.resume_step is None else f" of step {config.resume_step}"
        raise ValueError(
            f"--resume True: no complete checkpoint{wanted} of run {config.run_id!r} in {config.run_dir.parent} (steps found: {steps}); "
            "check --run_root_dir and --run_id_override, or start without --resume"
        )
    return found[config.resume_step if config.resume_step is not None else max(found)]


def is_resumable(folder: Path) -> bool:
    """Whether `folder` holds a trainer state."""
    return (folder / TRAINER_STATE_FOLDER / _STATE_FILE).is_file()


def base_model_path(config: FinetuneConfig) -> str:
    """The model to start from; for a checkpoint given as `vla_path` to a resumed run, the base model of that run.

    Raises:
        ValueError: the run that is resumed used other flags where they must agree.
    """
    if not config.resume:
        return config.vla_path
    folder = find_checkpoint(config)
    saved = _read_state(folder).flags
    for flag in (
        "dataset_name",
        "use_lora",
        "lora_rank",
        "use_l1_regression",
        "use_diffusion",
        "num_diffusion_steps_train",
        "use_film",
        "use_proprio",
        "num_images_in_input",
        "batch_size",
        "grad_accumulation_steps",
        "use_val_set",
        "default_instruction",
        "freeze_vision_backbone",
        "freeze_projector",
        "freeze_language_model",
        "seed",
    ):
        if str(saved.get(flag)) != str(getattr(config, flag)):
            found = saved.get(flag)
            raise ValueError(f"--resume True: --{flag} is {getattr(config, flag)!r}, the run in {folder} was started with {found!r}")
    return str(saved["vla_path"])


def save_trainer_state(
    folder: Path, state: TrainerState, parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, random_states: torch.Tensor
) -> None:
    """Writes `folder`/trainer_state; `parameters` are the trained ones by name, `random_states` come from `gather_random_states`."""
    target = folder / TRAINER_STATE_FOLDER
    target.mkdir()
    save_file({name: value.detach().contiguous().cpu() for name, value in parameters.items()}, target / "trainable.safetensors")
    torch.save(optimizer.state_dict(), target / "optimizer.pt")
    torch.save(random_states, target / "rng.pt")
    (target / _STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n")


def load_trainer_state(
    folder: Path, parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, ranks: Ranks
) -> TrainerState:
    """Fills the trained `parameters`, the optimizer and the random state from `folder`; returns where the run stood.

    Raises:
        ValueError: the run used another number of processes, or its weights do not fit.
    """
    source = folder / TRAINER_STATE_FOLDER
    state = _read_state(folder)
    if state.world_size != ranks.world_size:
        raise ValueError(
            f"{folder} was saved by {state.world_size} processes, this run has {ranks.world_size}; the samples could not continue exactly. "
            f"Use --nproc-per-node {state.world_size}, or start a new run with --vla_path {folder}"
        )
    saved = load_file(source / "trainable.safetensors")
    check_keys(parameters, saved, f"{source / 'trainable.safetensors'} does not fit this model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    optimizer.load_state_dict(torch.load(source / "optimizer.pt", map_location=ranks.device, weights_only=True))
    _set_random_state(torch.load(source / "rng.pt", weights_only=True)[ranks.rank], ranks)
    return state


def gather_random_states(ranks: Ranks) -> torch.Tensor:
    """Random state of every process, uint8 [world_size, bytes]; every process must call it."""
    own = torch.get_rng_state()
    if ranks.device.type == "cuda":
        own = torch.cat([own, torch.cuda.get_rng_state(ranks.device)])
    if ranks.world_size == 1:
        return own[None]
    gathered = [torch.empty_like(own, device=ranks.device) for _ in range(ranks.world_size)]
    dist.all_gather(gathered, own.to(ranks.device))
    return torch.stack(gathered).cpu()


def _set_random_state(state: torch.Tensor, ranks: Ranks) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if ranks.device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), ranks.device)


def _read_state(folder: Path) -> TrainerState:
    return TrainerState(**json.loads((folder / TRAINER_STATE_FOLDER / _STATE_FILE).read_text()))


def _escape_glob(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)
