"""Saving and resuming a run: everything that the next step depends on, in one folder that appears all at once.

trainer_state/ beside the published files holds
    state.json               step, data position, number of processes, flags, metrics that wait for their log line
    trainable.safetensors    every trained weight in its training dtype (the published files round to bfloat16)
    optimizer.safetensors    the optimizer's tensors, <weight>/<name>; its plain numbers are in the file's metadata
    rng.pt                   random state of every process

The main process writes and reads; other processes give and get their shards. Nothing in the files depends on the number of processes
or on how they share the model, so a run may go on with others.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for a file that is no checkpoint
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from prismatic.models.action_model import ActionModel
from prismatic.policy.checkpoint.files import TRAINER_STATE_FOLDER, atomic_folder, check_keys, format_bytes
from prismatic.policy.checkpoint.saving import save_policy
from prismatic.policy.checkpoint.stored_weights import open_weights
from prismatic.policy.lora.adapters import is_adapted
from prismatic.training.distributed import Ranks, is_lost_process, on_main, raise_together
from prismatic.training.finite import non_finite_weights
from prismatic.training.run_folder import (
    STATE_FILE,
    Checkpoint,
    TrainerState,
    check_room,
    checkpoint_folder,
    find_checkpoints,
    prune_checkpoints,
)
from prismatic.training.setup import Run
from prismatic.training.sharding import Gathering, fill_all, whole_model
from prismatic.training.tensor_files import write_tensors

_TRAINABLE_FILE = "trainable.safetensors"
_OPTIMIZER_FILE = "optimizer.safetensors"
_RANDOM_FILE = "rng.pt"
_ANOTHER = "resume from another checkpoint with --resume_step"
_STEP = "step"  # in the metadata of both; names of weights have dots and slashes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What training changes: the weights, by name, and the optimizer's memory of them."""

    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """<weight>/<name> -> tensor."""
        return {key: value for key, value in self._optimizer_state() if isinstance(value, torch.Tensor)}

    def optimizer_numbers(self) -> dict[str, str]:
        """<weight>/<name> -> anything else, as JSON."""
        return {key: json.dumps(value) for key, value in self._optimizer_state() if not isinstance(value, torch.Tensor)}

    def _optimizer_state(self) -> Iterator[tuple[str, Any]]:
        for name, parameter in self.parameters.items():
            for key, value in sorted(self.optimizer.state[parameter].items()):  # as a file gives them back
                yield f"{name}/{key}", value


def save_checkpoint(run: Run, trained: Trained, state: TrainerState, merge: bool) -> Path:
    """The folder that now holds the checkpoint; every process must call it, the main one writes and then prunes old checkpoints.

    Raises:
        ValueError: it could not be written; earlier checkpoints are untouched.
    """
    config, ranks = run.config, run.ranks
    folder = checkpoint_folder(config, state.step)
    on_main(run.check_writer, ranks)
    on_main(lambda: check_room(config, folder, checkpoint_bytes(run.parts.model, trained, merge)), ranks)
    random_states = gather_random_states(ranks)
    parts = replace(run.parts_at(state.step), model=whole_model(run.parts.model, run.skeleton, ranks))
    if is_adapted(parts.model.vla) and not merge:
        parts = replace(parts, spec=replace(parts.spec, base_model=run.base_path))
    gathering = Gathering([*trained.parameters.values(), *trained.optimizer_tensors().values()], ranks)
    if not ranks.is_main:
        gathering.finish()

    def write() -> None:
        try:
            with atomic_folder(folder) as temporary:
                originals = open_weights(run.base_folder, parts.config) if config.model.quantize_base != "none" else None
                save_policy(parts, temporary, None if config.saving.save_latest_checkpoint_only else state.step, merge, originals)
                _write_trainer_state(temporary / TRAINER_STATE_FOLDER, state, trained, gathering, random_states)
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_lost_process(error):
                raise
            needed = format_bytes(checkpoint_bytes(run.parts.model, trained, merge))
            rest = "earlier checkpoints are untouched. Make room or repair the disk, then go on with the same command and --resume True"
            if not find_checkpoints(config):
                rest = "there is no earlier checkpoint. Make room or repair the disk, then start again with the same command"
            raise ValueError(
                f"the checkpoint of step {state.step} cannot be written to {folder} ({error}); it needs {needed}. The run stops, {rest}"
            ) from error
        finally:
            gathering.finish()
        for path in prune_checkpoints(config):
            logger.info("removed %s (--keep_checkpoints %s)", path, config.saving.keep_checkpoints)

    on_main(write, ranks)
    return folder


def checkpoint_bytes(model: ActionModel, trained: Trained, merge: bool = True) -> int:
    """What a checkpoint takes on the disk: trained weights with two moments in their own dtype and once more in bfloat16, the whole model
    in bfloat16 unless adapters stand alone, 16 MiB for the rest."""
    is_whole = merge or not is_adapted(model.vla)
    whole = sum(parameter.numel() for parameter in model.parameters()) * 2 if is_whole else 0
    return whole + sum(parameter.numel() * (3 * parameter.element_size() + 2) for parameter in trained.parameters.values()) + 2**24


def _write_trainer_state(
    folder: Path, state: TrainerState, trained: Trained, gathering: Iterator[torch.Tensor], random_states: torch.Tensor
) -> None:
    folder.mkdir()
    moments = trained.optimizer_tensors()
    mark = {_STEP: str(state.step)}
    write_tensors(folder / _TRAINABLE_FILE, trained.parameters, (next(gathering) for _ in trained.parameters), mark)
    write_tensors(folder / _OPTIMIZER_FILE, moments, (next(gathering) for _ in moments), trained.optimizer_numbers() | mark)
    torch.save(random_states, folder / _RANDOM_FILE)
    (folder / STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n")


def restore_checkpoint(checkpoint: Checkpoint, trained: Trained, ranks: Ranks) -> None:
    """Fills the trained weights, the optimizer and the random state; every process must call it, the main one reads.

    Raises:
        ValueError: the weights do not fit, cannot be read, or are not finite.
    """
    source = checkpoint.folder / TRAINER_STATE_FOLDER
    on_main(lambda: _check_steps(source, checkpoint.state.step), ranks)
    _fill_all(trained.parameters, source / _TRAINABLE_FILE, ranks)
    if bad := non_finite_weights(trained.parameters, ranks):
        told = f"{len(bad)} of the {len(trained.parameters)} tensors in {source / _TRAINABLE_FILE} are not finite, {bad[0]} among them"
        advice = "resume from an earlier checkpoint with --resume_step, or begin a new run"
        raise_together(ValueError(f"{told}: {advice}"), ranks)
    tensors, numbers = on_main(lambda: _describe(source / _OPTIMIZER_FILE), ranks)
    for name, like in tensors.items():
        weight, _, key = name.rpartition("/")
        parameter = trained.parameters[weight]
        is_per_weight = like.shape == parameter.shape and like.dtype == parameter.dtype
        own = torch.zeros_like(parameter) if is_per_weight else torch.zeros_like(like, device=parameter.device)
        trained.optimizer.state[parameter][key] = own.detach()
    for name, value in numbers.items():
        if name == _STEP:
            continue
        weight, _, key = name.rpartition("/")
        trained.optimizer.state[trained.parameters[weight]][key] = json.loads(value)
    _fill_all(trained.optimizer_tensors(), source / _OPTIMIZER_FILE, ranks)
    states = on_main(lambda: _read_random_states(source / _RANDOM_FILE), ranks)
    _restore_random_state(states, checkpoint.state, ranks)


def _check_steps(source: Path, step: int) -> None:
    """Returns if weights and moments are of `step`, or of an earlier version, which did not say it.

    Raises:
        ValueError: a file is of another step; as many bytes as it should have, it passes for whole.
    """
    for path in (source / _TRAINABLE_FILE, source / _OPTIMIZER_FILE):
        with _opened(path) as file:
            found = (file.metadata() or {}).get(_STEP, str(step))
        if found != str(step):
            raise ValueError(
                f"{path} is of step {found}, the checkpoint is of step {step}; copy it again, or resume from another one with --resume_step"
            )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, its tensors not read yet; it raises ValueError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_ANOTHER}") from error


def _read_random_states(path: Path) -> torch.Tensor:
    """What `gather_random_states` returned.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    try:
        states = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); {_ANOTHER}") from error
    if not isinstance(states, torch.Tensor) or states.dtype != torch.uint8 or states.dim() != 2:
        raise ValueError(f"{path} holds no random states; {_ANOTHER}")
    return states


def _describe(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(name -> tensor without memory, metadata) of a safetensors file, whose tensors are not read: they may be 50 GiB."""
    with _opened(path) as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            like = part[:0] if part.get_shape() else file.get_tensor(name)
            tensors[name] = torch.empty(part.get_shape(), dtype=like.dtype, device="meta")
        return tensors, file.metadata() or {}


def _fill_all(targets: Mapping[str, torch.Tensor], path: Path, ranks: Ranks) -> None:
    """Fills `targets` from the file, tensor by tensor."""
    on_main(lambda: check_keys(targets, _describe(path)[0], f"{path} does not fit this model"), ranks)
    if not ranks.is_main:
        fill_all(targets, None, ranks)
        return
    with safe_open(path, "pt") as file:
        fill_all(targets, file.get_tensor, ranks)


def random_state(ranks: Ranks) -> torch.Tensor:
    """This process's random state, uint8 [bytes]: of the processor, then of its GPU."""
    own = torch.get_rng_state()
    return torch.cat([own, torch.cuda.get_rng_state(ranks.device)]) if ranks.device.type == "cuda" else own


def set_random_state(state: torch.Tensor, ranks: Ranks) -> None:
    """Goes on from what `random_state` returned."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if ranks.device.type == "cuda":
        torch.cuda.set_rng_state(state[size:].clone(), ranks.device)


def gather_random_states(ranks: Ranks) -> torch.Tensor:
    """Random state of every process, uint8 [world_size, bytes]; every process must call it."""
    own = random_state(ranks)
    if ranks.world_size == 1:
        return own[None]
    gathered = [torch.empty_like(own) for _ in range(ranks.world_size)]
    dist.all_gather(gathered, own, group=ranks.control)
    return torch.stack(gathered)


def _restore_random_state(states: torch.Tensor, saved: TrainerState, ranks: Ranks) -> None:
    if states.shape != (ranks.world_size, len(random_state(ranks))):
        logger.info(
            "resumed on %d processes, saved by %d: every step takes the samples that it would have taken, but sums round differently, and "
            "dropout and the noise of a diffusion head are drawn anew",
            ranks.world_size,
            saved.world_size,
        )
        seeds = np.random.SeedSequence([int(saved.flags["seed"]), saved.step, ranks.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        return
    set_random_state(states[ranks.rank], ranks)
