"""What lets a small card train: a quantized base under adapters, recomputed activations, compiled blocks. On a CPU, with a tiny base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.policy import Policy
from prismatic.training.capture import GradientBuffer, uses_cuda_graphs
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import Ranks
from prismatic.training.loop import finetune
from prismatic.vla.types import Observation

ROOT = Path(__file__).parents[2]
DATASET = "libero_spatial_no_noops"
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=64, llm_layers=2, llm_heads=2, llm_mlp_dim=64)
SCALING = 1.0  # of rank 4


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("low_memory")
    write_tiny_base(folder / "base", SIZES, seed=0)
    shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, folder / "data" / DATASET)
    return folder


def train(workplace: Path, name: str, **flags: Any) -> list[float]:
    """The losses of three steps; the checkpoint is saved."""
    config = FinetuneConfig.from_flags(
        vla_path=str(workplace / "base"),
        data_root_dir=workplace / "data",
        dataset_name=DATASET,
        run_root_dir=workplace,
        run_id_override=name,
        num_images_in_input=2,
        use_proprio=True,
        batch_size=2,
        learning_rate=0.01,
        max_steps=3,
        save_freq=3,
        wandb_log_freq=1,
        num_workers=0,
        lora_rank=4,
        **flags,
    )
    finetune(config)
    rows = [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def plain(workplace: Path) -> list[float]:
    return train(workplace, "plain")


def test_recomputed_activations_change_nothing(workplace: Path, plain: list[float]) -> None:
    assert train(workplace, "checkpointed", gradient_checkpointing=True) == plain


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_train_as_plain_ones(workplace: Path, plain: list[float], recompute: bool) -> None:
    # Traced, differentiated and partitioned as ever; only the C++ compiler, which takes a minute, is left out.
    torch._dynamo.reset()
    with torch.compiler.set_stance("default", force_backend="aot_eager_decomp_partition"):
        found = train(workplace, f"compiled-{recompute}", compile="True", gradient_checkpointing=recompute)
    assert torch._functorch.config.activation_memory_budget == (0.0 if recompute else 0.85)
    in_use = json.loads((workplace / f"compiled-{recompute}" / "in_use.json").read_text())
    assert (in_use["compiled"], in_use["activation_memory_budget"]) == (True, 0.0 if recompute else 0.85)
    assert json.loads((workplace / "plain" / "in_use.json").read_text())["activation_memory_budget"] is None
    assert found == pytest.approx(plain, rel=1e-3)
    names = [load_file(workplace / f"{run}--3_chkpt" / "model.safetensors").keys() for run in (f"compiled-{recompute}", "plain")]
    assert names[0] == names[1]


@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_adapters_over_a_quantized_base_are_merged_into_the_original_weights(workplace: Path, plain: list[float], kind: str) -> None:
    if kind != "fp8":
        pytest.importorskip("bitsandbytes")
    losses = train(workplace, kind, quantize_base=kind, gradient_checkpointing=True)
    assert losses != plain, "the base was not quantized"
    assert losses[:2] == pytest.approx(plain[:2], rel=0.35)  # at this learning rate later ones drift apart
    left = json.loads((workplace / kind / "in_use.json").read_text())["left"]
    assert left.get("fp8 base") == (None if kind == "fp8" else f"--quantize_base {kind}")
    folder = workplace / f"{kind}--3_chkpt"
    assert PolicySpec.load(folder).provenance["quantize_base"] == kind
    base, merged, adapter = (
        load_file(path)
        for path in (workplace / "base/model.safetensors", folder / "model.safetensors", folder / "lora_adapter/adapter_model.safetensors")
    )
    assert merged.keys() == base.keys()
    name = "language_model.model.layers.0.self_attn.q_proj"
    down, up = (adapter[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
    added = merged[f"{name}.weight"].float() - base[f"{name}.weight"].float()
    assert added.abs().max() > 0
    torch.testing.assert_close(added, SCALING * up @ down, rtol=0, atol=0.01)  # adapters and weights are rounded to bfloat16
    images = {camera: np.zeros((64, 64, 3), np.uint8) for camera in ("primary", "wrist")}
    actions = Policy.from_pretrained(folder).predict([Observation(images, "open the drawer", np.zeros(8))])[0].actions
    assert np.isfinite(actions).all()


def test_eight_bit_moments_train_and_resume(workplace: Path) -> None:
    pytest.importorskip("bitsandbytes")
    flags = {"optimizer": "adamw_8bit"}
    first = train(workplace, "eight_bit", **flags)
    assert first[-1] < first[0]
    train(workplace, "eight_bit", resume=True, **flags)


def test_gradients_are_views_of_one_buffer() -> None:
    layer = torch.nn.Linear(3, 2)
    buffer = GradientBuffer(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.flatten().tolist() == [2.0] * 6
    buffer.average(1)
    buffer.zero()
    assert layer.weight.grad.abs().sum() == 0


def test_gradients_gathered_at_once_are_those_added_one_by_one() -> None:
    layers, inputs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), torch.randn(2, 5, 3)
    buffer = GradientBuffer(layers.parameters())
    for x in inputs:
        layers(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in layers.parameters() if parameter.grad is not None]
    buffer.zero()
    for x in inputs:
        with buffer.gathering():
            layers(x).square().sum().backward()
    with pytest.raises(RuntimeError), buffer.gathering():
        raise RuntimeError
    assert len(expected) == 4
    for parameter, one_by_one in zip(layers.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, one_by_one)
        assert parameter.grad.untyped_storage().data_ptr() == layers[0].weight.grad.untyped_storage().data_ptr()


def test_recorded_steps_are_refused_where_they_cannot_be(workplace: Path) -> None:
    cpu = Ranks(0, 1, torch.device("cpu"))
    assert not uses_cuda_graphs(FinetuneConfig(), cpu)
    with pytest.raises(ValueError, match="--cuda_graphs True: there is no CUDA device"):
        uses_cuda_graphs(FinetuneConfig.from_flags(cuda_graphs="True"), cpu)


def test_steps_that_were_not_compared_are_recorded_only_if_asked_for() -> None:
    gpu = Ranks(0, 1, torch.device("cuda", 0))
    assert uses_cuda_graphs(FinetuneConfig.from_flags(compile="False"), gpu)
    assert uses_cuda_graphs(FinetuneConfig.from_flags(compile="True", gradient_checkpointing=True), gpu)
    assert not uses_cuda_graphs(FinetuneConfig.from_flags(compile="False", gradient_checkpointing=True), gpu)
    assert not uses_cuda_graphs(FinetuneConfig.from_flags(compile="False", quantize_base="nf4"), gpu)
    assert uses_cuda_graphs(FinetuneConfig.from_flags(compile="False", gradient_checkpointing=True, cuda_graphs="True"), gpu)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"quantize_base": "nf4", "use_lora": False}, "--quantize_base nf4 needs --use_lora True"),
        ({"quantize_base": "4bit"}, "--quantize_base is '4bit'"),
        ({"compile": "yes"}, "--compile is 'yes'"),
        ({"optimizer": "sgd"}, "--optimizer is 'sgd'"),
        ({"activation_memory_budget": 0.0}, "--activation_memory_budget is 0.0"),
        ({"compile": "True", "gradient_checkpointing": True, "lora_dropout": 0.1}, "leave one of the three out"),
    ],
)
def test_contradictions_are_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneConfig.from_flags(**flags)
