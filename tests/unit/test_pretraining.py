"""scripts/pretrain_base.py: its commands exist with their flags and fit together; the shipped base is the one that its card describes."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import pytest
import torch
from script_modules import ROOT, load_script

from experiments.robot.metaworld.record_demos import RecordConfig
from experiments.robot.metaworld.tasks import BASE_TASKS, get_metaworld_task
from prismatic.cli_sections import flag_names
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.training.config import FinetuneConfig

BASE = ROOT / "assets" / "tiny_base"


recipe = load_script("scripts/pretrain_base.py")
CONFIGS = {
    "experiments/robot/metaworld/record_demos.py": RecordConfig,
    "scripts/make_base.py": load_script("scripts/make_base.py").MakeBaseConfig,
    "vla-scripts/finetune.py": FinetuneConfig,
}


def _flags(command: list[str]) -> dict[str, str]:
    return {name[2:]: value for name, value in zip(command[2::2], command[3::2], strict=True)}


def test_every_command_has_flags_that_exist(tmp_path: Path) -> None:
    for command in recipe.pretraining_commands(recipe.PretrainConfig(output_dir=tmp_path / "base")).values():
        known = set(flag_names(CONFIGS[command[1]]))
        assert set(_flags(command)) <= known, f"{command[1]} has no flag {sorted(set(_flags(command)) - known)}"


def test_stages_hand_on_what_the_one_before_wrote(tmp_path: Path) -> None:
    config = recipe.PretrainConfig(output_dir=tmp_path / "base", work_dir=tmp_path, llm_layers=5, max_steps=600)
    record, start, train, keep = (_flags(command) for command in recipe.pretraining_commands(config).values())
    assert record["task_names"] == f"[{','.join(BASE_TASKS)}]"
    assert Path(record["output_dir"]) == Path(train["data_root_dir"]) / train["dataset_name"]
    assert start["llm_layers"] == "5"
    assert start["output_dir"] == train["vla_path"]
    assert (train["use_lora"], train["num_steps_before_decay"]) == ("False", "500")
    assert Path(keep["sizes_from"]) == config.run_dir == Path(train["run_root_dir"]) / train["run_id_override"]
    assert keep["output_dir"] == str(config.output_dir)


def test_a_mistake_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--output_dir .* exists already"):
        recipe.PretrainConfig(output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"--max_steps is 0; it must be at least 1"):
        recipe.PretrainConfig(output_dir=tmp_path / "base", max_steps=0)


def test_the_card_of_the_shipped_base_is_true(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where no base stands in the way of the default folder
    card = (BASE / "README.md").read_text()
    assert hashlib.sha256((BASE / "model.safetensors").read_bytes()).hexdigest() in card
    vla, report = OpenVLAForActionPrediction.from_pretrained(BASE, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert f"{sum(weight.numel() for weight in vla.parameters()) / 1e6:.2f} M parameters" in card
    assert "bfloat16" in card
    assert vla.dtype == torch.bfloat16
    for command in recipe.pretraining_commands(recipe.PretrainConfig()).values():
        assert f"\n{shlex.join(command)}\n" in card
    for name in BASE_TASKS:
        assert f"\n| {name} | {get_metaworld_task(name).instruction} |\n" in card
