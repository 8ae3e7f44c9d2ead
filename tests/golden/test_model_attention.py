"""Group B: every query sees every key that is not padding, with every attention backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_cases import assert_matches, load_tensors, load_vla

from prismatic.models.sequence import extend_mask

NAME = "c0_attention_rule"
ON_CPU = ("sdpa", "eager", "flex_attention")


@pytest.mark.parametrize("padding", ["nomask", "allones", "rightpad"])
@pytest.mark.parametrize("backend", ON_CPU)
@torch.no_grad()
def test_bidirectional(golden_dir: Path, backend: str, padding: str) -> None:
    recorded = load_tensors(golden_dir, NAME)
    mask = {"nomask": None, "allones": torch.ones_like(recorded["attention_mask"]), "rightpad": recorded["attention_mask"]}[padding]
    hidden = load_vla(golden_dir, backend).language_model(recorded["inputs_embeds"], mask)
    assert_matches(hidden, recorded[f"sdpa_{padding}_last_hidden"], "hidden states")


@torch.no_grad()
def test_causal_recordings_differ(golden_dir: Path) -> None:
    """The published eager backend is causal under padding; ours must not be."""
    recorded = load_tensors(golden_dir, NAME)
    hidden = load_vla(golden_dir, "eager").language_model(recorded["inputs_embeds"], recorded["attention_mask"])
    assert (hidden - recorded["eager_rightpad_last_hidden"]).abs().max() > 1e-2


def test_mask_without_padding_is_dropped(golden_dir: Path) -> None:
    mask = load_tensors(golden_dir, NAME)["attention_mask"]
    assert extend_mask(torch.ones_like(mask), 3) is None
    extended = extend_mask(mask, 3)
    assert extended is not None
    assert extended.sum() == mask.sum() + 3 * len(mask)
