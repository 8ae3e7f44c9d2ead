"""Group A: vision towers and projector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_cases import assert_matches, load_tensors, load_vla

from prismatic.models.sequence import ActionSlots, mean_prompt_embedding

NAME = "a_vision_and_projector"


@pytest.mark.parametrize("tower", ["dino", "siglip"])
@torch.no_grad()
def test_blocks(golden_dir: Path, tower: str) -> None:
    expected, pool = load_tensors(golden_dir, NAME), load_tensors(golden_dir, "pixels")["pool"]
    backbone = load_vla(golden_dir).vision_backbone
    transformer, channels = (backbone.featurizer, slice(0, 3)) if tower == "dino" else (backbone.fused_featurizer, slice(3, 6))
    x = transformer.embed(pool[: len(expected[f"{tower}_block0_patches"]), channels])
    prefix = transformer.num_prefix_tokens
    for i, block in enumerate(transformer.blocks):
        x = block(x)
        assert_matches(x[:, prefix:], expected[f"{tower}_block{i}_patches"], f"{tower} block {i}")
        if prefix:
            assert_matches(x[:, :prefix], expected[f"{tower}_block{i}_prefix"], f"{tower} block {i} prefix tokens")


@pytest.mark.parametrize("num_images", [1, 2, 3])
@torch.no_grad()
def test_patches(golden_dir: Path, num_images: int) -> None:
    expected = load_tensors(golden_dir, NAME)[f"patches_{num_images}img"]
    pool = load_tensors(golden_dir, "pixels")["pool"]
    assert_matches(load_vla(golden_dir).vision_backbone(pool[: len(expected), : 6 * num_images]), expected, "patches")


@pytest.mark.parametrize("num_images", [1, 2, 3])
@torch.no_grad()
def test_film_patches(golden_dir: Path, num_images: int) -> None:
    recorded = load_tensors(golden_dir, NAME)
    vla = load_vla(golden_dir)
    vla.add_film()
    vla.vision_backbone.load_state_dict(load_tensors(golden_dir, "film_vision_backbone"))
    words = recorded["language_embeddings"]
    no_slots = ActionSlots(torch.full((len(words),), words.shape[1]), 0)
    language = mean_prompt_embedding(words, None, no_slots)
    assert_matches(language, recorded["film_avg_language_embedding"].view_as(language), "mean of the words")
    expected = recorded[f"film_patches_{num_images}img"]
    pixels = load_tensors(golden_dir, "pixels")["pool"][: len(expected), : 6 * num_images]
    assert_matches(vla.vision_backbone(pixels, language), expected, "patches")


@torch.no_grad()
def test_projector(golden_dir: Path) -> None:
    recorded = load_tensors(golden_dir, NAME)
    assert_matches(load_vla(golden_dir).projector(recorded["projector_in"]), recorded["projector_out"], "projector")
