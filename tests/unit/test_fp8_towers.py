"""Float8 in the vision towers and the projector: chosen by name, near the plain layers, told where it is not, and never saved."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prismatic.models.action_heads import L1RegressionActionHead
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.base import random_weights
from prismatic.models.configuration import OpenVLAConfig, TinySizes, TowerConfig, tiny
from prismatic.models.vision import VisionBlock
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.spec import LoraSpec
from prismatic.policy.inference.compilation import compile_blocks
from prismatic.policy.inference.facts import describe_fp8, describe_model
from prismatic.policy.inference.fast_paths import FAST_PATHS
from prismatic.policy.inference.fp8 import Fp8FrozenLinear, Fp8Linear
from prismatic.policy.inference.fp8_layers import FP8_PARTS, LANGUAGE, PROJECTOR, VISION, fp8_parts
from prismatic.policy.inference.quantization import QuantizedLinear, quantize_frozen_base, quantize_model
from prismatic.policy.inference.stacking import stack_projections
from prismatic.policy.lora.adapters import add_lora, published_state, unquantized_state

EVERYTHING = (LANGUAGE, VISION, PROJECTOR)
CPU = torch.device("cpu")
ERROR = FAST_PATHS["fp8 towers"].tolerance
# SigLIP's MLP is 3.7362 times as wide as the tower: of 80 it is 298, of 1152 4304, which is 16 x 269; so only DINOv2's fits here.
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=80, vision_layers=2, llm_dim=64, llm_layers=2, llm_heads=2, llm_mlp_dim=96)
FITTING = 2 * 4 + 2 * 2  # of two computed blocks: all layers of DINOv2, SigLIP's attention
LAYERS = [(part, kind) for part, kinds in FP8_PARTS.items() for kind in kinds]


@pytest.fixture(scope="module")
def config() -> OpenVLAConfig:
    return tiny(SIZES, 600, 300)


def make(config: OpenVLAConfig, film: bool = False) -> OpenVLAForActionPrediction:
    """With biases, which start at zero and would be easily forgotten."""
    torch.manual_seed(0)
    vla = OpenVLAForActionPrediction(config)
    vla.load_state_dict(random_weights(config, seed=0))
    for name, parameter in vla.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    if film:
        vla.add_film()
    return vla.eval().requires_grad_(False)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def layer_of(part: str, kind: str, config: OpenVLAConfig) -> nn.Linear:
    """One that is float8, with a bias."""
    vla = make(config)
    block: Any = vla.bare_vision_backbone.featurizer.blocks[0]
    owner = vla.projector if part == PROJECTOR else block.attn if kind in ("qkv", "proj") else block.mlp
    return getattr(owner, kind)


@pytest.mark.parametrize(("part", "kind"), LAYERS)
def test_every_kind_of_layer_is_near_the_plain_one(config: OpenVLAConfig, part: str, kind: str) -> None:
    """Forward in both forms, and the gradient of the input; the bias does not hide the error of the product."""
    layer = layer_of(part, kind, config)
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected, seen = x.clone().requires_grad_(), x.clone().requires_grad_()
    reference = layer(expected)
    product = reference - layer.bias
    frozen = Fp8FrozenLinear(layer.weight, layer.weight.abs().amax(dim=0), layer.bias)
    output = frozen(seen)
    for found in (output, Fp8Linear(layer.weight, layer.bias)(x)):
        assert 0 < relative(found - layer.bias, product) < ERROR
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(gradient)
    reference.backward(gradient)
    assert seen.grad is not None
    assert expected.grad is not None
    assert 0 < relative(seen.grad, expected.grad) < ERROR


def quantized_names(vla: nn.Module) -> set[str]:
    return {name for name, module in vla.named_modules() if isinstance(module, QuantizedLinear)}


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_chosen_is_float8_and_the_rest_is_told(config: OpenVLAConfig, frozen: bool) -> None:
    quantize = quantize_frozen_base if frozen else quantize_model
    language = {"fp8": 7, "few tokens are computed, or not chosen": 7} if frozen else {"fp8": 14}
    left = {"never computed": 13, "sizes are no multiples of 16": 4}  # two last blocks and the attention pool; SigLIP's MLPs
    for names, towers, projector in (
        ((LANGUAGE,), {"not chosen": FITTING, **left}, {"not chosen": 3}),
        (EVERYTHING, {"fp8": FITTING, **left}, {"fp8": 3}),
        ((LANGUAGE, f"{VISION}.fc1"), {"fp8": 2, "not chosen": FITTING - 2, **left}, {"not chosen": 3}),
        ((LANGUAGE, f"{PROJECTOR}.fc2"), {"not chosen": FITTING, **left}, {"fp8": 1, "not chosen": 2}),
    ):
        vla = make(config)
        assert describe_fp8(vla) == {}
        with fp8_parts(names):
            quantize(vla, "fp8", CPU, torch.float32)
        assert describe_fp8(vla) == {LANGUAGE: language, VISION: towers, PROJECTOR: projector}
        assert describe_model(vla)["fp8"] == describe_fp8(vla)
        assert len(quantized_names(vla)) == sum(counts.get("fp8", 0) for counts in describe_fp8(vla).values())


def test_without_a_choice_the_language_model_alone_is_float8(config: OpenVLAConfig) -> None:
    vla = make(config)
    quantize_model(vla, "fp8", CPU, torch.float32)
    assert all(name.startswith("language_model.model.layers.") for name in quantized_names(vla))


@pytest.mark.parametrize("name", ["vision_backbones", "projector.fc4", "language_model.q_proj"])
def test_an_unknown_part_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"fp8 part '{name}' is unknown"), fp8_parts((name,)):
        pass


def actions_of(vla: OpenVLAForActionPrediction, config: OpenVLAConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels, prompt = torch.randn(2, 6, 28, 28, generator=generator), torch.randint(3, 300, (2, 8), generator=generator)
    torch.manual_seed(1)
    head = L1RegressionActionHead(SIZES.llm_dim, 3, 4).eval()
    return ActionModel(vla, head).predict(ActionInputs.from_prompts(pixels, prompt, None, None, 12, config.token_ids))


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_actions_stay_close(config: OpenVLAConfig, film: bool, is_compiled: bool) -> None:
    plain = make(config, film)
    quantized = copy.deepcopy(plain)
    with fp8_parts((VISION, PROJECTOR)):
        quantize_model(quantized, "fp8", CPU, torch.float32)
    assert describe_fp8(quantized).get("film") == ({"fp8": 12} if film else None)
    expected = actions_of(plain, config)
    if is_compiled:  # traced and lowered as ever; only the C++ compiler, which takes a minute, is left out
        torch._dynamo.reset()
        compile_blocks(quantized)
        with torch.compiler.set_stance("default", force_backend="aot_eager_decomp_partition"):
            found = actions_of(quantized, config)
        assert "forward" in vars(quantized.projector)
    else:
        found = actions_of(quantized, config)
    assert 0 < relative(found, expected) < FAST_PATHS["fp8 policy"].tolerance


def test_a_plain_projector_is_not_compiled(config: OpenVLAConfig) -> None:
    vla = make(config)
    quantize_model(vla, "fp8", CPU, torch.float32)
    compile_blocks(vla)
    assert "forward" not in vars(vla.projector)


def adapted(config: OpenVLAConfig, kind: str, parts: Sequence[str] = (VISION, PROJECTOR)) -> tuple[OpenVLAForActionPrediction, nn.Module]:
    """A model and its wrapper with adapters that are not zero, the same for every kind of base."""
    vla = make(config)
    with fp8_parts(parts):
        quantize_frozen_base(vla, kind, CPU, torch.float32)
    torch.manual_seed(1)
    model = add_lora(vla, LoraSpec(4, 0.0))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.manual_seed(len(name))
            nn.init.normal_(parameter, std=0.02)
    return vla, model


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("part", [VISION, PROJECTOR])
def test_adapters_over_them_learn_as_over_the_plain_ones(config: OpenVLAConfig, part: str, is_compiled: bool) -> None:
    gradients = []
    for kind in ("none", "fp8"):
        vla, model = adapted(config, kind, (part,))
        stack_projections(vla)
        torch._dynamo.reset()
        if is_compiled:
            compile_blocks(vla)
        with torch.compiler.set_stance("default", force_backend="aot_eager_decomp_partition"):
            features = vla.vision_backbone(torch.randn(2, 6, 28, 28, generator=torch.Generator().manual_seed(2)))
            out = features if part == VISION else vla.projector(features)
            (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    for kind in FP8_PARTS[part]:
        plain, quantized = (
            torch.cat([found[name].flatten() for name in sorted(found) if f".{part}." in name and f".{kind}." in name])
            for found in gradients
        )
        assert 0 < relative(quantized, plain) < FAST_PATHS["fp8 base under adapters"].tolerance, kind
        assert float(torch.cosine_similarity(plain, quantized, dim=0)) > 0.99, kind


def test_under_autocast_it_gives_what_a_plain_layer_gives() -> None:
    """Norms give float32 there; one float32 output would make the residual stream, and all that is kept of it, float32."""
    torch.manual_seed(0)
    block = VisionBlock(TowerConfig.dino(28, 14, 32, 2, 2), None).bfloat16().requires_grad_(False)
    plain = copy.deepcopy(block)
    for owner in (block.attn, block.mlp):
        for name, layer in list(owner.named_children()):
            assert isinstance(layer, nn.Linear)
            frozen = Fp8FrozenLinear(layer.weight, layer.weight.abs().amax(dim=0), layer.bias)
            setattr(owner, name, QuantizedLinear(frozen, torch.bfloat16))
    x = torch.randn(1, 9, 32, dtype=torch.bfloat16)
    for forward in (VisionBlock.forward, torch.compile(VisionBlock.forward, backend="aot_eager")):
        with torch.autocast("cpu", torch.bfloat16):
            found = forward(block, x)
            assert block.mlp.fc1(x.float()).dtype == plain.mlp.fc1(x.float()).dtype == torch.bfloat16
            assert found.dtype == plain(x).dtype == torch.bfloat16
    assert block.mlp.fc1(x.float()).dtype == torch.float32


def test_a_base_of_which_only_the_towers_are_float8_may_have_one_language_layer(config: OpenVLAConfig) -> None:
    one = tiny(TinySizes(vision_dim=80, llm_dim=64, llm_layers=1, llm_heads=2, llm_mlp_dim=64), 512, 300)
    vla = OpenVLAForActionPrediction(one)
    with fp8_parts(EVERYTHING):
        quantize_frozen_base(vla, "fp8", CPU, torch.float32)
    assert describe_fp8(vla)[LANGUAGE] == {"few tokens are computed, or not chosen": 7}


@pytest.mark.parametrize("film", [False, True])
def test_saved_weights_are_those_that_it_was_made_from(config: OpenVLAConfig, film: bool) -> None:
    originals = make(config).state_dict()
    states = []
    for kind in ("none", "fp8"):
        vla, model = adapted(config, kind, EVERYTHING)
        if film:
            torch.manual_seed(4)
            vla.add_film()
        towers = unquantized_state(vla.vision_backbone, "vision_backbone", originals)
        states.append((towers, published_state(model, torch.bfloat16, originals=originals)))
    for plain, quantized in zip(*states, strict=True):
        assert plain.keys() == quantized.keys()
        assert all(torch.equal(plain[name], quantized[name]) for name in plain)


def test_saving_without_them_is_refused(config: OpenVLAConfig, tmp_path: Path) -> None:
    vla, _ = adapted(config, "fp8")
    with pytest.raises(AssertionError, match="cannot be saved without the weights that it was made from"):
        unquantized_state(vla.vision_backbone, "vision_backbone", None)
