"""Which layers of a model are multiplied in float8.

A choice is a set of names: a part ("language_model", "vision_backbone", "projector"), or one kind of its layers ("vision_backbone.fc1").
Layers whose sizes are no multiples of 16, and those that are never computed, stay as they are; `facts.describe_fp8` says which and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.vla.constants import near_names

LANGUAGE, VISION, PROJECTOR = "language_model", "vision_backbone", "projector"
# Kinds of layers by part; the language model's belong together, since those of one input are stacked.
FP8_PARTS: dict[str, tuple[str, ...]] = {LANGUAGE: (), VISION: ("qkv", "proj", "fc1", "fc2"), PROJECTOR: ("fc1", "fc2", "fc3")}
DEFAULT_FP8_PARTS: tuple[str, ...] = (LANGUAGE,)
MULTIPLE = 16  # of which both sizes of a weight must be one

_chosen: ContextVar[tuple[str, ...]] = ContextVar("fp8_parts", default=DEFAULT_FP8_PARTS)


def chosen_fp8_parts() -> tuple[str, ...]:
    """The choice that holds here."""
    return _chosen.get()


@contextmanager
def fp8_parts(names: Sequence[str]) -> Iterator[None]:
    """Models that are quantized meanwhile take these; for benchmarks and tests, which compare choices.

    Raises:
        ValueError: a name is no part, nor a kind of its layers.
    """
    known = [name for part, kinds in FP8_PARTS.items() for name in (part, *(f"{part}.{kind}" for kind in kinds))]
    for name in names:
        if name not in known:
            raise ValueError(f"fp8 part {name!r} is unknown; {near_names(name, known)}")
    token = _chosen.set(tuple(names))
    try:
        yield
    finally:
        _chosen.reset(token)


def is_chosen(part: str, kind: str = "") -> bool:
    """Whether layers called `kind` of `part` are to be float8; without `kind`, whether all of them are."""
    return part in _chosen.get() or f"{part}.{kind}" in _chosen.get()


def fits(layer: nn.Linear) -> bool:
    """Whether float8 products can have its sizes."""
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


def chosen_beside_language(vla: OpenVLAForActionPrediction) -> list[tuple[nn.Module, str]]:
    """Owner and name of every layer of the towers and the projector that is to be float8, and can be."""
    found: list[tuple[nn.Module, str]] = []
    unused = {module for part in vla.vision_backbone.unused_modules() for module in part.modules()}
    for part, root in ((VISION, vla.bare_vision_backbone), (PROJECTOR, vla.projector)):
        for owner in root.modules():
            for name, layer in owner.named_children():
                is_kind = name in FP8_PARTS[part] and layer not in unused and is_chosen(part, name)
                if is_kind and isinstance(layer, nn.Linear) and fits(layer):
                    found.append((owner, name))
    return found
