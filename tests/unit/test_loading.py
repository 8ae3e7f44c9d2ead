"""Base models and adapters of every form load strictly: whatever is missing, unexpected or misshapen is listed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.checkpoint.files import ACTION_HEAD, read_component
from prismatic.policy.checkpoint.loading import load_base, load_config
from prismatic.policy.checkpoint.spec import LoraSpec
from prismatic.policy.checkpoint.told import load_statistics
from prismatic.policy.lora.adapters import (
    adapter_state,
    add_lora,
    load_adapter,
    merge_adapter,
    merge_component,
    published_state,
    read_adapter,
)

SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading") / "base"
    write_tiny_base(folder, SIZES, seed=0)
    return folder


@pytest.fixture
def sharded(base: Path, tmp_path: Path) -> Path:
    """The same model as several files and an index, as the 7B model is published."""
    folder = tmp_path / "sharded"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(load_file(base / "model.safetensors"), folder, max_shard_size="60KB", metadata={"format": "pt"})
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards(base: Path, sharded: Path) -> None:
    whole, parts = (load_base(folder, torch.bfloat16).vla.state_dict() for folder in (base, sharded))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_whoever_reads_the_other_files_reads_the_weights(base: Path) -> None:
    assert len({path.stat().st_mode for path in base.iterdir()}) == 1


def test_a_missing_shard_is_named(sharded: Path) -> None:
    victim = sorted(sharded.glob("model-*.safetensors"))[0]
    victim.unlink()
    with pytest.raises(ValueError, match=r"lacks model-0000\d-of-0000\d.safetensors, which model.safetensors.index.json lists"):
        load_base(sharded, torch.bfloat16)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{victim.name} cannot be read .* copy or download it again"):
        load_base(sharded, torch.bfloat16)


def test_every_difference_is_listed_with_both_shapes(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["projector.fc1.bias"] = weights["projector.fc1.bias"][:-1].clone()
    weights["extra.weight"] = weights.pop("projector.fc2.bias")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its config.json") as error:
        load_base(folder, torch.bfloat16)
    listed = str(error.value).splitlines()[1:]
    assert listed == [
        "  missing projector.fc2.bias [32]",
        "  unexpected extra.weight [32]",
        "  projector.fc1.bias: expected [128], found [127]",
    ]


def test_an_unknown_attention_backend_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'flash' is not available"):
        load_base(tmp_path, torch.bfloat16, "flash")


def test_a_damaged_component_is_named(tmp_path: Path) -> None:
    (tmp_path / "action_head--1_checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"action_head--1_checkpoint\.pt cannot be read"):
        read_component(tmp_path, ACTION_HEAD)


def _change(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


def _as_integers(folder: Path) -> None:
    save_file({key: value.to(torch.int8) for key, value in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")


def _damaged_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["projector.fc2.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _without_begin(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))


def _index(content: str) -> Callable[[Path], object]:
    return lambda folder: (
        (folder / "model.safetensors").unlink(),
        (folder / "model.safetensors.index.json").write_text(content),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("config.json", "openvla", '"'), r"config\.json is not valid JSON"),
        (_change("config.json", '"hidden_size": 32', '"hidden_size": "32"'), r"config\.json does not describe a model \(.*hidden_size"),
        (_change("config.json", '"depth": 2,', ""), r"config\.json does not describe a model \(.*'depth'"),
        (_change("preprocessor_config.json", "}", ""), r"preprocessor_config\.json is not valid JSON"),
        (_change("preprocessor_config.json", '"means"', '"mean"'), r"preprocessor_config\.json does not describe .*'means'"),
        (_change("preprocessor_config.json", "28", "56"), r"makes images of 56 pixels, config\.json describes vision towers for 28"),
        (_change("tokenizer.json", '"model"', '"models"'), r"tokenizer\.json is no tokenizer"),
        (_change("tokenizer_config.json", "{", "{{"), r"tokenizer_config\.json is not valid JSON"),
        (_as_integers, r"tensors are no float32, float16 or bfloat16 \(.* is I8\); take the model before it was quantized"),
        (
            _damaged_weight,
            r"the model in .*changed: 1 of \d+ weights hold NaN or infinity in torch.bfloat16 \(first projector.fc2.weight\)",
        ),
        (_index("[]"), r"index\.json holds a JSON list, expected an object"),
        (_index("{}"), r"index\.json has no weight_map"),
        (_index('{"weight_map": {}}'), r"index\.json has no \"metadata\", an object that may be empty"),
        (
            _change("preprocessor_config.json", '"means": [', '"means": [[1, 2],'),
            r"preprocessor_config\.json does not describe .*; copy it",
        ),
        (_without_begin, "the tokenizer begins prompts with .*, the model was trained with 1; copy"),
    ],
)
def test_a_file_that_is_damaged_or_of_another_base_is_named(
    change: Callable[[Path], object], message: str, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(base, folder)
    change(folder)
    with pytest.raises(ValueError, match=message):
        load_base(folder, torch.bfloat16)


def test_a_component_of_another_kind_is_named(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "action_head--latest_checkpoint.pt")
    with pytest.raises(ValueError, match="does not hold the weights of action_head by name"):
        read_component(tmp_path, ACTION_HEAD)


def test_heads_and_adapters_that_are_not_finite_are_named(tmp_path: Path) -> None:
    path = tmp_path / "action_head--1_checkpoint.pt"
    torch.save({"fc1.weight": torch.tensor([1.0, -float("inf")]), "steps": torch.tensor(3)}, path)
    with pytest.raises(
        ValueError, match=r"action_head--1_checkpoint\.pt: 1 of 2 weights hold NaN or infinity .*\(first fc1\.weight\); copy"
    ):
        read_component(tmp_path, ACTION_HEAD)
    assert read_component(tmp_path, ACTION_HEAD, torch.device("meta")).keys() == {"fc1.weight", "steps"}
    adapter = tmp_path / "adapter_model.safetensors"
    save_file({"q.lora_A.weight": torch.ones(2, 2), "q.lora_B.weight": torch.full((2, 2), float("nan"))}, adapter)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: 1 of 2 weights hold NaN .*\(first q\.lora_B\.weight\)"):
        read_adapter(adapter)


def test_a_component_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Path("x")}, tmp_path / "action_head--1_checkpoint.pt")
    with pytest.raises(ValueError, match=r"action_head--1_checkpoint\.pt cannot be read"):
        read_component(tmp_path, ACTION_HEAD)


def test_adapters_of_another_rank_are_listed(base: Path) -> None:
    four, eight = (add_lora(load_base(base, torch.float32).vla, LoraSpec(rank)) for rank in (4, 8))
    with pytest.raises(ValueError, match=r"expected \[8, \d+\], found \[4, \d+\]"):
        load_adapter(eight, adapter_state(four, torch.float32), "adapter")


def test_adapters_of_another_model_are_refused(base: Path) -> None:
    vla = load_base(base, torch.float32).vla
    adapter = adapter_state(add_lora(vla, LoraSpec(4)), torch.float32)
    plain = load_base(base, torch.float32).vla.state_dict()
    without = {key: value for key, value in plain.items() if "fc3" not in key}
    with pytest.raises(ValueError, match=r"projector.fc3.lora_A.weight has no weight in the model"):
        list(merge_adapter(without, adapter, "adapter"))
    narrow = {**plain, "projector.fc3.weight": plain["projector.fc3.weight"][:, :-1]}
    with pytest.raises(ValueError, match=r"projector.fc3: the adapter is for a weight of \[32, 32\], the model has \[32, 31\]"):
        list(merge_adapter(narrow, adapter, "adapter"))


def test_an_incomplete_pair_of_a_component_is_refused() -> None:
    state = {"proj.base_layer.weight": torch.zeros(2, 2), "proj.lora_A.default.weight": torch.zeros(1, 2)}
    with pytest.raises(ValueError, match="proj lacks lora_A or lora_B"):
        merge_component(state, "vision_backbone.pt")


def test_merging_in_bfloat16_rounds_twice(base: Path) -> None:
    wrapped = add_lora(load_base(base, torch.bfloat16).vla, LoraSpec(4))
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    exact = published_state(wrapped, torch.float32)
    once, twice = (published_state(wrapped, torch.bfloat16, dtype) for dtype in (torch.float32, torch.bfloat16))
    key = "projector.fc3.weight"
    errors = [(state[key].float() - exact[key]).square().mean() for state in (once, twice)]
    assert errors[0] < errors[1]


def test_a_config_with_unknown_towers_is_described(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unknown"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["vision_towers"]
    config["timm_model_ids"] = ["vit_large_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_224"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unknown vision tower 'vit_large_patch14_reg4_dinov2'; did you mean"):
        load_base(folder, torch.bfloat16)


def test_statistics_that_stand_in_the_config_alone_are_used(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"norm_stats": None}))
    with pytest.raises(ValueError, match="lacks dataset_statistics"):
        load_statistics(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"norm_stats": {"arm": {"action": {"q01": [0]}}}}))
    assert load_statistics(tmp_path) == {"arm": {"action": {"q01": [0]}}}
    (tmp_path / "dataset_statistics.json").write_text("{}")
    assert load_statistics(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run", r"units; it holds no checkpoint: pass .*/run--1000_chkpt"),
        ("", r"units; it holds no checkpoint: pass .*/run--1000_chkpt"),  # the folder of all runs
        ("elsewhere", r"units; it holds no checkpoint: pass a folder that finetune.py saved"),
        ("base", r"units; it is a base model, .*: fine-tune it first"),
        ("run--500_chkpt", "units; copy the whole checkpoint folder"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_answered_with_what_to_pass(tmp_path: Path, name: str, message: str) -> None:
    for folder in ("run", "run--500_chkpt", "run--1000_chkpt", "elsewhere", "base"):
        (tmp_path / folder).mkdir()
    for folder in ("base", "run--500_chkpt"):
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "run--500_chkpt" / "policy.json").write_text("{}")
    with pytest.raises(ValueError, match=f"lacks dataset_statistics.json, without which actions have no {message}"):
        load_statistics(tmp_path / name)


def test_the_folder_of_a_run_as_a_base_is_answered_with_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"run lacks config.json; copy the whole model folder"):
        load_config(tmp_path / "run")
    (tmp_path / "run--100_chkpt").mkdir()
    with pytest.raises(ValueError, match=rf"run lacks config.json; pass {tmp_path / 'run--100_chkpt'}"):
        load_config(tmp_path / "run")
