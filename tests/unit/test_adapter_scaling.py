"""adapter_config.json is obeyed: merged, apart in PEFT's wrapper and in the bank, or refused by name."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "smoke"))
from adapter_checkpoints import write_base, write_run

from prismatic.policy.checkpoint.loading import LoadOptions
from prismatic.policy.checkpoint.spec import HeadSpec, LoraSpec
from prismatic.policy.lora.adapters import adapter_config, merge_adapter
from prismatic.policy.lora.bank import check_adapter, load_adapter_policies
from prismatic.policy.lora.scaling import AdapterScaling
from prismatic.policy.policy import Policy
from prismatic.training.origin import _unusual_adapters
from prismatic.vla.types import Observation

CPU = torch.device("cpu")
SEEN = Observation({"primary": np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)}, "push", np.linspace(-1, 1, 8))
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scaling")
    write_run(folder / "run", write_base(folder / "base"), 0, HeadSpec(use_proprio=True))  # rank 4, alpha 4
    (folder / "run" / "model.safetensors").unlink()  # so that the adapter is merged when it is loaded
    return folder


def edited(workplace: Path, target: Path, changes: dict[str, Any], edit: Callable[[Tensors], Tensors] = lambda adapter: adapter) -> Path:
    """A copy of the run with other settings of its adapter, and other matrices."""
    shutil.copytree(workplace / "run", target)
    path = target / "lora_adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    weights = target / "lora_adapter" / "adapter_model.safetensors"
    save_file(edit(load_file(weights)), weights)
    return target


def actions(workplace: Path, folder: Path, way: str) -> np.ndarray:
    options = LoadOptions(keep_adapters=way == "apart", base_model=str(workplace / "base"))
    if way == "bank":
        policy = load_adapter_policies({"x": folder}, CPU, torch.float32, options)["x"]
    else:
        policy = Policy.from_pretrained(folder, CPU, torch.float32, options=options)
    return policy.predict([SEEN])[0].actions


SETTINGS = {
    "lora_alpha": 16,
    "use_rslora": True,
    "alpha_pattern": {"q_proj": 12, r"layers\.1\.mlp\.up_proj": 8},
    "rank_pattern": {"k_proj": 2},
}


def narrowed(adapter: Tensors) -> Tensors:
    """Rank 2 for the projections of keys."""
    found = dict(adapter)
    for key in adapter:
        if "k_proj" in key and ".lora_" in key:
            found[key] = adapter[key][:2].contiguous() if ".lora_A." in key else adapter[key][:, :2].contiguous()
    return found


def equivalent(adapter: Tensors) -> Tensors:
    """What does the same under the settings of training (alpha 4, rank 4) as `SETTINGS` do with `narrowed`."""
    found = {key: value.float().clone() for key, value in adapter.items()}
    for key, value in found.items():
        if ".lora_B." in key:
            alpha = 12 if "q_proj" in key else 8 if "layers.1.mlp.up_proj" in key else 16
            value *= alpha / math.sqrt(2 if "k_proj" in key else 4)
            if "k_proj" in key:
                value[:, 2:] = 0
    return found


@pytest.mark.parametrize("way", ["merged", "apart", "bank"])
def test_settings_of_the_adapter_are_obeyed(workplace: Path, tmp_path: Path, way: str) -> None:
    found = actions(workplace, edited(workplace, tmp_path / "found", SETTINGS, narrowed), way)
    expected = actions(workplace, edited(workplace, tmp_path / "expected", {}, equivalent), way)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - actions(workplace, workplace / "run", way)).max() > 1e-2


def test_training_goes_on_only_with_adapters_that_count_as_its_own(workplace: Path, tmp_path: Path) -> None:
    assert _unusual_adapters(workplace / "run" / "lora_adapter") is None
    stronger = edited(workplace, tmp_path / "stronger", {"lora_alpha": 16})
    assert "rank 4, scaling 4" in str(_unusual_adapters(stronger / "lora_adapter"))
    mixed = edited(workplace, tmp_path / "mixed", {"rank_pattern": {"k_proj": 2}}, narrowed)
    assert "k_proj: rank 2" in str(_unusual_adapters(mixed / "lora_adapter"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"modules_to_save": ["lm_head"], "bias": "all"}, "bias = 'all', modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern must map"),
        ({"lora_alpha": "16"}, "lora_alpha must be a positive number"),
        ({"use_rslora": "false"}, "use_rslora must be true or false, found 'false'"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = adapter_config(LoraSpec(4), None)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=message):
        AdapterScaling.read(tmp_path)


@pytest.mark.parametrize("way", ["merged", "apart", "bank"])
def test_a_file_without_an_adapter_is_refused(workplace: Path, tmp_path: Path, way: str) -> None:
    """The policy acted as its base does, without a word: sharded training with PEFT alone leaves such files."""
    edits: dict[str, Callable[[Tensors], Tensors]] = {
        "holds no LoRA weights": lambda adapter: {},
        "matrices are empty": lambda adapter: {key: value.new_empty(0) for key, value in adapter.items()},
        "holds no floating-point weights: .* is int8": lambda adapter: {key: value.to(torch.int8) for key, value in adapter.items()},
    }
    for number, (message, edit) in enumerate(edits.items()):
        with pytest.raises(ValueError, match=message):
            actions(workplace, edited(workplace, tmp_path / str(number), {}, edit), way)


def test_an_adapter_is_merged_only_into_a_weight_of_its_shape() -> None:
    """As many numbers in another order were taken for it."""
    adapter = {"base_model.model.fc1.lora_A.weight": torch.ones(4, 6), "base_model.model.fc1.lora_B.weight": torch.ones(8, 4)}
    with pytest.raises(
        ValueError, match=r"file: fc1: the adapter is for a weight of \[8, 6\], the model has \[6, 8\]; take the right base"
    ):
        list(merge_adapter({"fc1.weight": torch.zeros(6, 8)}, adapter, "file"))


def test_matrices_of_another_rank_than_stated_are_named() -> None:
    with pytest.raises(ValueError, match="says rank 8 of fc1, its matrices have 4"):
        AdapterScaling({"r": 8, "lora_alpha": 16}, "adapter_config.json").of("fc1", 4)


@pytest.mark.parametrize(
    "read", [lambda adapter: list(merge_adapter({}, adapter, "file")), lambda adapter: check_adapter(adapter, None, "file")]
)
def test_a_missing_matrix_is_named(read: Callable[[Tensors], object]) -> None:
    name = "base_model.model.fc1"
    for key, message in (
        (f"{name}.lora_A.weight", "has no lora_B beside it; the file is incomplete"),
        (f"{name}.lora_B.weight", "has no lora_A beside it; the file is incomplete"),
        (f"{name}.lora_embedding_A", "is neither lora_A.weight nor lora_B.weight"),
    ):
        with pytest.raises(ValueError, match=f"file: {key} {message}".replace(".", r"\.")):
            read({key: torch.zeros(1, 2)})


def test_patterns_fit_as_in_peft() -> None:
    from peft.utils.other import get_pattern_key

    modules = [f"language_model.model.layers.{layer}.{name}" for layer in (1, 11) for name in ("self_attn.q_proj", "mlp.up_proj")]
    modules += ["projector.fc1", "vision_backbone.featurizer.blocks.1.attn.proj", "q"]
    patterns = {r"1\.self_attn\.q_proj": 1, r"layers\.1\..*": 2, "proj": 3, "q": 4, r".*\.fc\d": 5}
    scaling = AdapterScaling({"r": 8, "lora_alpha": 80, "alpha_pattern": patterns})
    for module in modules:
        assert math.isclose(scaling.of(module, 8), patterns.get(get_pattern_key(list(patterns), module), 80) / 8), module
