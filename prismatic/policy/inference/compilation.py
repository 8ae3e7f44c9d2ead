"""torch.compile for the repeated blocks of a model: each kind is compiled once for all its copies.

The language model's layers take any batch size and length from the start. The vision towers see one number of tokens: they are compiled
for the first batch size exactly, and for all others together when a second one comes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import types
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch._inductor.config
from torch import nn
from torch.utils._triton import has_triton

from prismatic.models.film import FiLMedVisionBlock
from prismatic.models.language import DecoderLayer
from prismatic.models.vision import VisionBlock
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.inference import fp8
from prismatic.policy.inference.fp8 import frozen_product

NO_COMPILER = "there is no Triton, or no C compiler for its launchers"
_MAX_VARIANTS = 64  # of one kind: towers, with and without a mask, batches of one, models in one process


def has_compiler() -> bool:
    """Whether torch.compile finds what it needs for a GPU: Triton, and a C compiler for its launchers."""
    return has_triton() and any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))


def compile_blocks(vla: OpenVLAForActionPrediction) -> None:
    """Lets every Transformer block run compiled from its next call on; torch keeps the code on disk, for later processes."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_VARIANTS)
    # Numbers such as a norm's epsilon are the same in every layer. Where shapes are dynamic, dynamo takes them for unknowns, too, finds
    # that it cannot, and begins anew: every graph of the language model was traced and differentiated twice.
    torch._dynamo.config.specialize_float = True
    torch.compiler.allow_in_graph(frozen_product)
    # Without a word torch keeps no traced graph on disk that holds a function of ours; the file's hash stands for what the function does.
    name, source = f"{frozen_product.__module__}.{frozen_product.__name__}", Path(fp8.__file__).read_bytes()
    torch._inductor.config.unsafe_marked_cacheable_functions[name] = hashlib.sha256(source).hexdigest()
    compiled: dict[type[nn.Module], Any] = {}
    for block in [*vla.language_model.model.layers, *_vision_blocks(vla)]:
        kind = type(block)
        assert kind in (DecoderLayer, VisionBlock, FiLMedVisionBlock)
        if kind not in compiled:
            compiled[kind] = torch.compile(kind.forward, dynamic=True if kind is DecoderLayer else None)
        block.forward = types.MethodType(compiled[kind], block)


def _vision_blocks(vla: OpenVLAForActionPrediction) -> list[nn.Module]:
    backbone = vla.bare_vision_backbone
    return [*backbone.featurizer.blocks, *backbone.fused_featurizer.blocks]
