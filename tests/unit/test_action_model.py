"""The whole model at tiny size: batch invariance, backends, frozen parts, checkpointing, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from prismatic.models.action_heads import L1RegressionActionHead, MLPResNet
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.attention import get_attention
from prismatic.models.configuration import TinySizes, tiny
from prismatic.models.processor import normalize_pixels
from prismatic.models.projectors import ProprioProjector
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.vla.action_tokenizer import ActionTokenizer
from prismatic.vla.constants import IGNORE_INDEX
from prismatic.vla.prompts import build_training_tokens
from prismatic.vla.types import Batch

SIZES = TinySizes(image_size=16, patch_size=8, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=2, llm_mlp_dim=48)
H, A, P, N = 3, 2, 4, 2  # chunk, action dim, proprio dim, images


def build(attn_implementation: str = "sdpa") -> ActionModel:
    torch.manual_seed(0)
    config = tiny(SIZES, base_vocab_size=300, empty_token_id=20)
    config._attn_implementation = attn_implementation
    vla = OpenVLAForActionPrediction(config)
    return ActionModel(vla, L1RegressionActionHead(config.hidden_size, H, A), ProprioProjector(config.hidden_size, P)).eval()


def build_inputs(model: ActionModel, prompts: list[list[int]]) -> ActionInputs:
    """Inputs for `prompts`, the images and proprio of row i depending on i alone."""
    token_ids = model.vla.config.token_ids
    longest = max(len(prompt) for prompt in prompts)
    prompt_ids = torch.tensor([prompt + [token_ids.pad] * (longest - len(prompt)) for prompt in prompts])
    mask = prompt_ids != token_ids.pad
    images, proprio = [], []
    for i in range(len(prompts)):
        generator = torch.Generator().manual_seed(i)
        images.append(torch.randint(0, 256, (N, 16, 16, 3), generator=generator, dtype=torch.uint8))
        proprio.append(torch.randn(P, generator=generator))
    pixels = normalize_pixels(torch.stack(images))
    return ActionInputs.from_prompts(pixels, prompt_ids, None if mask.all() else mask, torch.stack(proprio), H * A, token_ids)


PROMPTS = [[1, 5, 6, 7, 20], [1, 8, 20], [1, 5, 9, 9, 9, 9, 20]]


@torch.no_grad()
def test_a_sample_is_predicted_the_same_alone_and_in_a_padded_batch() -> None:
    model = build()
    batch = build_inputs(model, PROMPTS)
    together = model(batch)
    assert together.shape == (len(PROMPTS), H, A)
    for i, prompt in enumerate(PROMPTS):
        prompt_ids = torch.tensor([prompt])
        assert batch.proprio is not None
        alone = ActionInputs.from_prompts(
            batch.pixel_values[i : i + 1], prompt_ids, None, batch.proprio[i : i + 1], H * A, model.vla.config.token_ids
        )
        torch.testing.assert_close(model(alone)[0], together[i], rtol=0, atol=1e-5)


@torch.no_grad()
def test_training_and_prediction_agree() -> None:
    """Labels and action ids tell the model nothing: the slots are zeroed, so both layouts give the same actions."""
    model = build()
    token_ids = model.vla.config.token_ids
    predicted = model(build_inputs(model, PROMPTS))
    actions = torch.rand(len(PROMPTS), H, A) * 2 - 1
    rows = [
        build_training_tokens(prompt, ActionTokenizer(token_ids).encode(chunk.numpy()).flatten().tolist(), token_ids)
        for prompt, chunk in zip(PROMPTS, actions, strict=True)
    ]
    longest = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [token_ids.pad] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([row + [IGNORE_INDEX] * (longest - len(row)) for _, row in rows])
    images, proprio = [], []
    for i in range(len(PROMPTS)):
        generator = torch.Generator().manual_seed(i)
        images.append(torch.randint(0, 256, (N, 16, 16, 3), generator=generator, dtype=torch.uint8))
        proprio.append(torch.randn(P, generator=generator))
    batch = Batch(torch.stack(images), input_ids, input_ids != token_ids.pad, labels, actions, torch.stack(proprio))
    torch.testing.assert_close(model(ActionInputs.from_batch(batch, token_ids)), predicted)


@torch.no_grad()
def test_every_token_reaches_every_earlier_one() -> None:
    """Bidirectional: changing the last prompt token changes the state at the first position, with each backend."""
    for backend in ("sdpa", "eager"):
        model = build(backend)
        first_states = []
        for last in (7, 9):
            inputs = build_inputs(model, [[1, 5, last, 20]])
            output = model.vla(inputs.pixel_values, inputs.input_ids, None, inputs.slots)
            first_states.append(output.hidden_states[:, 0])
        assert (first_states[0] - first_states[1]).abs().max() > 1e-4


@torch.no_grad()
def test_backends_agree_on_padded_batches() -> None:
    sdpa, eager = build("sdpa"), build("eager")
    torch.testing.assert_close(sdpa(build_inputs(sdpa, PROMPTS)), eager(build_inputs(eager, PROMPTS)), rtol=0, atol=1e-5)


def test_random_weights_keep_the_scale_of_activations() -> None:
    vla = build().vla
    tower = vla.vision_backbone.featurizer
    patches = tower.patch_embed(torch.randn(8, 3, 16, 16))
    assert 0.5 < patches.std() < 2
    assert 0.5 < tower.pos_embed.std() < 1.5
    assert not tower.patch_embed.proj.bias.any()
    assert torch.equal(tower.blocks[0].ls1.scale_factor, torch.ones(SIZES.vision_dim))
    assert 0.01 < vla.language_model.model.embed_tokens.weight.std() < 0.03


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"'spda' is not available; did you mean sdpa"):
        get_attention("spda")


def test_exactly_the_frozen_parameters_get_no_gradient() -> None:
    model = build().train()
    model(build_inputs(model, PROMPTS)).sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    fresh = build()
    fresh.vla.freeze_unused()
    assert without == {name for name, parameter in fresh.named_parameters() if not parameter.requires_grad}
    assert "vla.language_model.lm_head.weight" in without


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
        model = build().train()
        if checkpointed:
            model.vla.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert model.vla.language_model.model.gradient_checkpointing
        model(build_inputs(model, PROMPTS)).sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert set(plain) == set(checkpointed)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@torch.no_grad()
def test_weights_survive_a_file(tmp_path: Path) -> None:
    model = build()
    model.vla.save_pretrained(tmp_path)
    loaded, report = OpenVLAForActionPrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = model(build_inputs(model, PROMPTS))
    model.vla = loaded.eval()
    assert torch.equal(model(build_inputs(model, PROMPTS)), expected)


@torch.no_grad()
def test_bfloat16_stays_close() -> None:
    model = build()
    inputs = build_inputs(model, PROMPTS)
    expected = model(inputs)
    found = model.to(torch.bfloat16)(inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_lora_wraps_and_trains() -> None:
    from peft import LoraConfig, get_peft_model

    model = build().train()
    expected = model(build_inputs(model, PROMPTS)).detach()
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights="gaussian")
    model.vla = get_peft_model(model.vla, config)
    model.vla.get_base_model().freeze_unused()
    predicted = model(build_inputs(model, PROMPTS))
    torch.testing.assert_close(predicted, expected)
    predicted.sum().backward()
    trainable = {name for name, parameter in model.vla.named_parameters() if parameter.requires_grad}
    assert any("q_proj.lora_B" in name for name in trainable)
    assert all("lora_" in name for name in trainable)
    assert all(parameter.grad is not None for parameter in model.vla.parameters() if parameter.requires_grad)


def test_missing_proprio() -> None:
    model = build()
    with pytest.raises(ValueError, match="hold no proprio"):
        model(replace(build_inputs(model, PROMPTS), proprio=None))


def test_proprio_of_the_wrong_length() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"proprio must be \[batch, 4\], found \[3, 5\]"):
        model(replace(build_inputs(model, PROMPTS), proprio=torch.zeros(3, 5)))


def test_other_chunk_than_the_head() -> None:
    model = build()
    inputs = build_inputs(model, PROMPTS)
    with pytest.raises(ValueError, match=r"8 action tokens a sample.*3 actions of 2 dimensions"):
        model(replace(inputs, slots=replace(inputs.slots, count=8)))


def test_images_of_the_wrong_size() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"pixel_values must be \[batch, 6 x images, 16, 16\], found \[3, 12, 16, 8\]"):
        model(replace(build_inputs(model, PROMPTS), pixel_values=torch.zeros(3, 12, 16, 8)))


@torch.no_grad()
def test_compiles_into_one_graph() -> None:
    model = build()
    inputs = build_inputs(model, PROMPTS)
    expected = model(inputs)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), expected)


@pytest.mark.parametrize("width", [7, 14, 16])
def test_narrow_outputs_are_those_of_the_layer(width: int) -> None:
    torch.manual_seed(0)
    network, x = MLPResNet(input_dim=12, hidden_dim=24, output_dim=width), torch.randn(2, 3, 12)
    found = network(x)
    hidden = F.relu(network.fc1(network.layer_norm1(x)))
    for block in network.mlp_resnet_blocks:
        hidden = block(hidden)
    expected = network.fc2(network.layer_norm2(hidden))
    torch.testing.assert_close(found, expected)
    parameters = list(network.parameters())
    for one, other in zip(torch.autograd.grad(found.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True):
        torch.testing.assert_close(one, other)
