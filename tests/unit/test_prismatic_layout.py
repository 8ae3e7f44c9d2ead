"""Bases as Prismatic's training writes them are read key for key, converted, and refused with what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prismatic_files import PUBLISHED, SIZES, Parts, prismatic_parts, small_model, write_prismatic
from safetensors.torch import save_file
from script_modules import load_script

from prismatic.models.base import tiny_base, tokenizer_texts
from prismatic.policy.checkpoint.flags import PolicyFlags
from prismatic.policy.checkpoint.loading import LoadOptions, load_base, load_config, load_parts
from prismatic.policy.checkpoint.prismatic_layout import weights_file
from prismatic.policy.checkpoint.stored_weights import has_weights, open_weights, weight_paths
from prismatic.vla.prompts import tokenize_prompt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prismatic(tmp_path / "base")
    return tmp_path / "base"


def test_every_weight_is_the_one_of_its_name(folder: Path) -> None:
    config, weights, _ = small_model()
    base = load_base(folder, torch.float32)
    found = base.vla.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert base.vla.config.token_ids == config.token_ids
    prompt = tokenize_prompt(base.processor.tokenizer, "Lift the Lid", config.token_ids)
    assert (prompt[0], prompt[-1]) == (config.token_ids.bos, config.token_ids.empty)
    assert "to lift the lid?<|im_end|>" in base.processor.tokenizer.decode(prompt)
    extra = base.processor.tokenizer.convert_tokens_to_ids(["<|extra_0|>", "<|extra_255|>"])
    assert extra == [config.token_ids.action_token_begin_idx + 1, config.token_ids.base_vocab_size - 1]


def test_converting_gives_a_base_of_the_published_layout(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("scripts/convert/prismatic_to_base.py")
    converted = tmp_path / "converted"
    script.main(script.ConvertConfig(str(folder), converted))
    assert "1,319 tokens" in capsys.readouterr().out
    expected, found = (load_base(place, torch.bfloat16) for place in (folder, converted))
    assert json.loads((converted / "config.json").read_text())["text_config"]["model_type"] == "qwen2"
    assert found.vla.config.decoder_sizes == expected.vla.config.decoder_sizes
    state = found.vla.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.vla.state_dict().items())
    assert found.processor.tokenizer.get_vocab() == expected.processor.tokenizer.get_vocab()
    with pytest.raises(ValueError, match="exists already"):
        script.main(script.ConvertConfig(str(folder), converted))
    with pytest.raises(ValueError, match=r"has no config\.json of Prismatic's training"):
        script.main(script.ConvertConfig(str(converted), tmp_path / "again"))


def test_the_published_names_lead_to_the_published_sizes(tmp_path: Path) -> None:
    for content in ({"model": PUBLISHED}, {"vla": {"base_vlm": "prism-qwen25-extra-dinosiglip-224px+0_5b", "vla_id": "minivla"}}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        sizes = load_config(tmp_path).decoder_sizes
        assert (sizes.num_layers, sizes.hidden_size, sizes.num_key_value_heads, sizes.vocab_size) == (24, 896, 2, 151936)


def test_the_checkpoint_of_the_last_step_is_taken(tmp_path: Path) -> None:
    write_prismatic(tmp_path / "vla", name="step-009000-epoch-01-loss=0.5.pt")
    last = tmp_path / "vla" / "checkpoints" / "step-122500-epoch-55-loss=0.0743.pt"
    (tmp_path / "vla" / "checkpoints" / "step-009000-epoch-01-loss=0.5.pt").rename(last)
    (last.parent / "step-020000-epoch-09-loss=0.1.pt").write_bytes(b"")
    assert weights_file(tmp_path / "vla") == last
    assert has_weights(tmp_path / "vla")
    assert weight_paths(tmp_path / "vla") == [last]
    assert len(open_weights(tmp_path / "vla", load_config(tmp_path / "vla"))) == len(small_model()[1])


def test_a_minivla_is_a_base_and_no_policy(folder: Path) -> None:
    (folder / "dataset_statistics.json").write_text('{"libero_90": {"action": {"q01": [0.0], "q99": [1.0]}}}')
    flags = PolicyFlags(robot_platform="LIBERO", num_images_in_input=1, use_l1_regression=False, use_diffusion=False)
    with pytest.raises(ValueError, match="is a base in Prismatic's layout, whose actions cannot be read here; fine-tune it first"):
        load_parts(folder, torch.device("cpu"), torch.float32, LoadOptions(flags))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model": ', r"config\.json is not valid JSON"),
        ('{"model": null}', r"config\.json: 'model' is None, expected an object"),
        ('{"vla": [2]}', r"config\.json: 'vla' is \[2\], expected an object"),
        ('{"vla": {"base_vlm": "prism-qwen25-extra-dinosiglip-224px+1_5b"}}', r"\+1_5b', which is not known here; supported: .*\+0_5b"),
    ],
)
def test_a_description_that_is_damaged_is_named(content: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_base(folder, torch.float32)


def _drop(*keys: str) -> Callable[[Parts], Parts]:
    return lambda parts: {
        name: {key: value for key, value in part.items() if key not in keys} for name, part in parts.items() if name not in keys
    }


def _add(part: str, key: str, value: Any) -> Callable[[Parts], Parts]:
    return lambda parts: {**parts, part: {**parts[part], key: value}}


EMBEDDINGS, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"


@pytest.mark.parametrize("kept", [EMBEDDINGS, HEAD])
def test_a_tied_weight_under_one_of_its_names_is_enough(kept: str, tmp_path: Path) -> None:
    weights = small_model()[1]
    write_prismatic(tmp_path / "base", _drop(HEAD if kept == EMBEDDINGS else EMBEDDINGS)(prismatic_parts(weights)))
    name = "language_model.model.embed_tokens.weight"
    assert torch.equal(load_base(tmp_path / "base", torch.float32).vla.state_dict()[name], weights[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("projector"), r"latest-checkpoint\.pt lacks projector in its 'model', which holds vision_backbone, llm_backbone"),
        (_drop("vision_backbone"), r"lacks vision_backbone, as training .* tiny-dinov2\.safetensors, tiny-siglip\.safetensors is missing"),
        (_drop(EMBEDDINGS, HEAD), "holds neither llm.model.embed_tokens.weight nor llm.lm_head.weight"),
        (_add("llm_backbone", HEAD, torch.zeros(1383, 32)), "with different numbers, but this base ties them to one weight"),
        (_add("projector", "downsampler.0.weight", torch.zeros(1)), "holds 'downsampler.0.weight', which belongs to no part"),
        (lambda parts: {**parts, "projector": [1]}, r"latest-checkpoint\.pt: projector is a list; expected the names and tensors"),
        (_add("projector", "projector.0.bias", 3.0), r"projector holds 'projector\.0\.bias', which is no tensor"),
        (lambda parts: [], r"is no checkpoint of Prismatic: it has no 'model' with the parts vision_backbone, projector, llm_backbone"),
        (lambda parts: parts["projector"], r"lacks projector, llm_backbone in its 'model', which holds projector\.0\.weight, .*"),
        (_add("projector", "projector.0.bias", torch.zeros(128, dtype=torch.int8)), r"1 of 109 tensors are no float32.*fc1\.bias is int8"),
        (_drop("llm.model.layers.1.self_attn.k_proj.bias"), r"missing language_model.model.layers.1.self_attn.k_proj.bias \[16\]"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_described(change: Callable[[Parts], Parts], message: str, tmp_path: Path) -> None:
    write_prismatic(tmp_path / "base", change(prismatic_parts(small_model()[1])))
    with pytest.raises(ValueError, match=message):
        load_base(tmp_path / "base", torch.float32)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"llm_backbone_id": "qwen25-0_5b-pure"}, "'qwen25-0_5b-pure'; missing here: it has no extra tokens for actions"),
        ({"llm_backbone_id": "phi-2-3b", "model_id": "phi-2+3b"}, r"phi-2\+3b has .*; missing here: its parallel layers, partial rotary"),
        ({"llm_backbone_id": "llama2-7b-pure"}, "missing here: openvla/openvla-7b is the policy base that was trained from it"),
        ({"vision_backbone_id": "siglip-vit-so400m"}, "vision backbone 'siglip-vit-so400m'; missing here: other towers"),
        ({"arch_specifier": "no-align+gelu-mlp"}, r"projector 'no-align\+gelu-mlp'; missing here: other projectors"),
    ],
)
def test_other_bases_are_named_with_what_is_missing(model: dict[str, Any], message: str, folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model": {**content["model"], **model}}))
    with pytest.raises(ValueError, match=message):
        load_config(folder)


def test_another_models_tokenizer_and_half_of_the_extra_tokens_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, content in tokenizer_texts(tiny_base(SIZES)[1]).items():
        (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"the language model is Qwen's, but its tokenizer has not <\|im_start\|>"):
        load_base(folder, torch.float32)
    half = json.loads(tokenizer_texts(tiny_base(replace(SIZES, backbone="qwen"))[1])["tokenizer.json"])
    half["added_tokens"] = half["added_tokens"][:-100]
    (folder / "tokenizer.json").write_text(json.dumps(half))
    with pytest.raises(ValueError, match=r"the tokenizer has 156 of the 256 tokens <\|extra_0\|>"):
        load_base(folder, torch.float32)
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"lacks tokenizer\.json, .*hf download Qwen/Qwen2\.5-0\.5B tokenizer\.json"):
        load_base(folder, torch.float32)


def test_a_base_of_ours_without_the_extra_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    script = load_script("scripts/convert/prismatic_to_base.py")
    script.main(script.ConvertConfig(str(folder), tmp_path / "converted"))
    (tmp_path / "converted" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match=r"lacks the 256 extra tokens <\|extra_0\|> \.\.\. <\|extra_255\|> at 1063 \.\.\. 1318"):
        load_base(tmp_path / "converted", torch.float32)


def test_towers_that_training_left_alone_come_from_their_own_files(tmp_path: Path) -> None:
    weights, folder = small_model()[1], tmp_path / "base"
    write_prismatic(folder, _drop("vision_backbone")(prismatic_parts(weights)))
    for side, name, prefix in (("featurizer", "tiny-dinov2", ""), ("fused_featurizer", "tiny-siglip", "visual.trunk.")):
        start = f"vision_backbone.{side}."
        tower = {prefix + key.removeprefix(start).replace("scale_factor", "gamma"): value for key, value in weights.items() if start in key}
        if side == "featurizer":  # published for larger pictures
            tower["pos_embed"] = torch.arange(16.0).expand(1, 25, 16).contiguous()
        save_file({**tower, **({"text.positional_embedding": torch.zeros(2)} if prefix else {})}, folder / f"{name}.safetensors")
    found = load_base(folder, torch.float32).vla.state_dict()
    changed = "vision_backbone.featurizer.pos_embed"
    assert all(torch.equal(found[name], value) for name, value in weights.items() if name != changed)
    torch.testing.assert_close(found[changed], torch.arange(16.0).expand(1, 4, 16))
