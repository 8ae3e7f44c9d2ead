"""One model on several processes: copied to each (DDP), or cut into shards of every tensor (FSDP2), and whole again for a checkpoint.

Weights are read by the main process alone; the others build the same model without memory for its weights and receive them from it.
So one whole copy is in the host memory of one machine, however many processes there are, and only while a run starts. FSDP gathers the
weights of one block at a time: every Transformer block, the token embeddings and the LM head; the rest (heads, projectors, patch
embeddings) together.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from prismatic.models.action_model import ActionModel
from prismatic.policy.checkpoint.files import is_film_layer
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import Ranks, wait_for_all


def place(model: ActionModel, ranks: Ranks, shards: bool, compute_dtype: torch.dtype | None = None) -> ActionModel | None:
    """Moves `model`, whose weights only the main process needs to have, to the device of every process; returns its skeleton if sharded.

    A quantized model is made anew by every process, from weights of its own.
    """
    if ranks.world_size > 1 and shards:
        return shard(model, ranks, compute_dtype)
    if any(tensor.is_meta for tensor in model.parameters()):
        model.to("meta").to_empty(device=ranks.device)
    model.to(ranks.device)
    if ranks.world_size > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
    return None


def check_shardable(config: FinetuneConfig, ranks: Ranks) -> None:
    """Returns if the run can shard its model, where it is to.

    Raises:
        ValueError: a flag does not go together with shards.
    """
    if ranks.world_size == 1 or not config.shards_model:
        return
    for flag, value, whole in (
        ("quantize_base", config.model.quantize_base, "none"),
        ("optimizer", config.optimization.optimizer, "adamw"),
    ):
        if value != whole:
            raise ValueError(f"--{flag} {value} cannot be sharded; pass --strategy ddp, or leave --{flag} out")


def replicate(model: ActionModel, ranks: Ranks) -> DistributedDataParallel:
    """`model`, which `place` made the same on every process; every parameter that requires a gradient must get one in each step."""
    device_ids = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True, init_sync=False)


def shard(model: ActionModel, ranks: Ranks, compute_dtype: torch.dtype | None) -> ActionModel:
    """Cuts `model` in place over all processes, on their devices, with the main one's weights; returns its skeleton, without memory.

    Blocks compute in `compute_dtype` from weights kept in their own dtype, and exchange gradients in float32 (None: all as it is).
    """
    weights = model.state_dict() if ranks.is_main else {}
    model.to("meta")
    skeleton = copy.deepcopy(model)
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(compute_dtype, torch.float32) if compute_dtype else MixedPrecisionPolicy()
    for unit in _units(model):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "predict")
    model.to_empty(device=ranks.device)
    fill_all(model.state_dict(), weights.__getitem__ if ranks.is_main else None, ranks)
    return skeleton


def _units(model: ActionModel) -> Iterator[nn.Module]:
    """The modules whose weights are gathered and let go together; each is entered through its own forward only."""
    vla = model.bare_vla
    for tower in (vla.bare_vision_backbone.featurizer, vla.bare_vision_backbone.fused_featurizer):
        yield from tower.blocks
        if hasattr(tower, "attn_pool"):
            yield tower.attn_pool
    yield from vla.language_model.model.layers
    if not vla.language_model.is_tied:  # tied ones are read by two modules, and stay with the model's own weights
        yield vla.language_model.model.embed_tokens
        yield vla.language_model.lm_head


def set_gradient_exchange(model: nn.Module, is_last: bool) -> None:
    """Sharded models exchange gradients at the last micro-batch of a step only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)


def fill_all(targets: Mapping[str, torch.Tensor], read: Callable[[str], torch.Tensor] | None, ranks: Ranks) -> None:
    """Fills every one of `targets` with what `read` gives for its name: on the main process, however slow; the others pass None."""
    for name, target in targets.items():
        value = None if read is None else read(name)
        wait_for_all(ranks)  # the others' messages would run out of time while the main process reads
        fill(target, value, ranks)


@torch.no_grad()
def fill(target: torch.Tensor, value: torch.Tensor | None, ranks: Ranks) -> None:
    """Copies `value`, which only the main process needs to have, into `target`, whole or sharded, on every process."""
    if isinstance(target, DTensor):
        whole = torch.empty(target.shape, dtype=target.dtype, device=ranks.device)
        if value is not None:
            whole.copy_(value)
        target.copy_(distribute_tensor(whole, target.device_mesh, target.placements))
        return
    if value is not None:
        target.copy_(value)
    if ranks.world_size > 1:
        dist.broadcast(target.detach(), src=0)


class Gathering(Iterator[torch.Tensor]):
    """Whole tensors, one after another. All processes must go through to the end, since each gives its shards; see `finish`."""

    def __init__(self, tensors: Iterable[torch.Tensor], ranks: Ranks) -> None:
        self._tensors, self._ranks = iter(tensors), ranks

    def __next__(self) -> torch.Tensor:
        tensor = next(self._tensors).detach()
        if not isinstance(tensor, DTensor):
            return tensor
        wait_for_all(self._ranks)  # the main process may still be writing the one before
        return tensor.full_tensor()

    def finish(self) -> None:
        """Takes part in what is left."""
        deque(self, maxlen=0)


def whole_model(model: ActionModel, skeleton: ActionModel | None, ranks: Ranks) -> ActionModel:
    """`model` with all its weights in one place: itself unless it is sharded, else a copy in the main process's host memory.

    What a checkpoint holds in bfloat16 is rounded on the way. Every process must call it; what the others get has no weights.
    """
    if skeleton is None:
        return model
    state = model.state_dict()
    whole: dict[str, torch.Tensor] = {}
    for name, tensor in zip(state, Gathering(state.values(), ranks), strict=True):
        if ranks.is_main:
            whole[name] = tensor.to("cpu", torch.bfloat16 if _is_saved_in_bfloat16(name) else tensor.dtype, copy=True)
    result = copy.deepcopy(skeleton)
    if ranks.is_main:
        result.load_state_dict(whole, assign=True)
    return result


def _is_saved_in_bfloat16(name: str) -> bool:
    """Weights of the model itself; adapters are merged before rounding, FiLM and heads have dtypes of their own."""
    return name.startswith("vla.") and ".lora_" not in name and ".base_layer." not in name and not is_film_layer(name)
