"""A composed base checkpoint loads again, whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from script_modules import load_script
from transformers import AutoTokenizer

from prismatic.models.base import build_tokenizer, write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.models.processor import PrismaticProcessor
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.vla.constants import TokenIds
from prismatic.vla.prompts import build_training_tokens, tokenize_prompt

SIZES = TinySizes(image_size=16, patch_size=8, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_mlp_dim=48)
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
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


def test_tokenizer_of_the_published_size() -> None:
    ids = TokenIds()
    tokenizer = build_tokenizer(ids)
    assert len(tokenizer) == ids.pad + 1
    assert (tokenizer.vocab["▁"], tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        ids.empty,
        ids.pad,
        ids.bos,
        ids.stop,
    )
    actions = list(range(ids.base_vocab_size - 256, ids.base_vocab_size))
    text = "In: What action should the robot take to open the drawer?\nOut: " + tokenizer.decode(actions)
    assert tokenizer(text).input_ids[-257:] == [ids.empty, *actions]
    prompt = tokenize_prompt(tokenizer, "open the drawer", ids)
    assert prompt == build_training_tokens(prompt, actions, ids)[0][: len(prompt)] == tokenizer(text).input_ids[:-256]


def test_given_weights_are_checked_and_kept(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights, tmp_path / "weights.safetensors")
    script, given = load_script("scripts/make_base.py"), {"sizes_from": str(folder), "weights": tmp_path / "weights.safetensors"}
    script.main(script.MakeBaseConfig(output_dir=tmp_path / "copy", **given))
    copied = load_file(tmp_path / "copy" / "model.safetensors")
    assert all(torch.equal(copied[key], weights[key]) for key in weights)
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()

    del weights["projector.fc1.bias"]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"missing projector\.fc1\.bias"):
        script.main(script.MakeBaseConfig(output_dir=tmp_path / "other", **given))
    assert not (tmp_path / "other").exists()


def test_no_base_is_written_with_another_models_tokenizer(folder: Path, tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "qwen", replace(SIZES, backbone="qwen"), seed=0)
    script = load_script("scripts/make_base.py")
    with pytest.raises(ValueError, match="the language model is Llama's, but its tokenizer is Qwen's"):
        script.main(script.MakeBaseConfig(output_dir=tmp_path / "mixed", sizes_from=str(folder), tokenizer=str(tmp_path / "qwen")))
    assert [path.name for path in tmp_path.iterdir()] == ["qwen"]
