"""A composed base checkpoint loads again, whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.models.processor import PrismaticProcessor
from prismatic.models.vla import OpenVLAForActionPrediction

SIZES = TinySizes(image_size=16, patch_size=8, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_mlp_dim=48)
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "nested" / "tiny"
    write_tiny_base(folder, SIZES, seed=3)
    return folder


def test_files(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    assert {path.name for path in folder.parent.iterdir()} == {"tiny"}, "a partial folder was left behind"


def test_loads_again(folder: Path) -> None:
    vla, report = OpenVLAForActionPrediction.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert vla.dtype == torch.bfloat16
    processor = PrismaticProcessor.from_pretrained(folder)
    assert processor.image_processor.image_size == vla.config.image_size == SIZES.image_size
    assert processor.tokenizer.vocab["▁"] == vla.config.token_ids.empty
    assert processor.tokenizer.pad_token_id == vla.config.token_ids.pad < vla.get_input_embeddings().weight.shape[0]
    text = "In: What action should the robot take to open the drawer?\nOut:"
    assert AutoTokenizer.from_pretrained(folder, local_files_only=True).encode(text) == processor.tokenizer.encode(text)


def test_seed_decides_the_weights(folder: Path, tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "same", SIZES, seed=3)
    write_tiny_base(tmp_path / "other", SIZES, seed=4)
    weights = (folder / "model.safetensors").read_bytes()
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != weights


def test_existing_folder_is_kept(folder: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        write_tiny_base(folder, SIZES, seed=3)


def test_folder_without_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks preprocessor_config\.json"):
        PrismaticProcessor.from_pretrained(tmp_path)
