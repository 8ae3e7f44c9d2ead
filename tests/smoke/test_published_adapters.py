"""A run of the published code whose adapters were not merged: lora_adapter/, heads, statistics and the processor; no config.json."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_checkpoints import write_base, write_run

from prismatic.commands import merge
from prismatic.doctor.checkpoint import check_checkpoint
from prismatic.policy.checkpoint.flags import PolicyFlags
from prismatic.policy.checkpoint.loading import LoadOptions
from prismatic.policy.checkpoint.spec import HeadSpec
from prismatic.policy.lora.bank import load_adapter_policies
from prismatic.policy.policy import Policy
from prismatic.training.config import FinetuneConfig
from prismatic.training.origin import find_origin
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.locks import locked
from prismatic.vla.diagnosis import Status
from prismatic.vla.types import Observation

CPU = torch.device("cpu")
DATA_SET = "libero_spatial_no_noops"
FLAGS = LoadOptions(PolicyFlags(num_images_in_input=1))
STAYS_WITH_THE_BASE = ("config.json", "generation_config.json", "model.safetensors", "policy.json")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_published(tmp_path, HeadSpec(use_proprio=True))


def write_published(folder: Path, heads: HeadSpec) -> Path:
    run = write_run(folder / "run", write_base(folder / "base"), 1, heads)
    statistics = json.loads((run / "dataset_statistics.json").read_text())
    (run / "dataset_statistics.json").write_text(json.dumps({DATA_SET: statistics["arm"]}))
    for name in STAYS_WITH_THE_BASE:
        (run / name).unlink()
    return run


def act(policy: Policy) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    return policy.predict([Observation({"primary": image}, "lift", np.linspace(-0.5, 0.5, 8))])[0].actions


def merge_as_documented(run: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    folders = ("--lora_finetuned_checkpoint_dir", str(run), "--base_checkpoint", str(run.parent / "base"))
    monkeypatch.setattr(sys, "argv", ["merge_lora_weights_and_save.py", *folders, "--device", "cpu", *flags])
    merge.run()


@pytest.mark.parametrize("heads", [HeadSpec(use_proprio=True), HeadSpec(use_proprio=True, use_film=True)], ids=["plain", "film"])
def test_it_acts_is_merged_by_the_documented_command_and_acts_the_same(
    heads: HeadSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_published(tmp_path, heads)
    apart = Policy.from_pretrained(run, "cpu", options=FLAGS)
    assert apart.spec.lora is not None
    assert apart.spec.lora.rank == 4
    before = act(apart)
    merge_as_documented(run, monkeypatch)
    assert json.loads((run / "config.json").read_text())["norm_stats"] == apart.norm_stats
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    after = act(Policy.from_pretrained(run, "cpu", options=FLAGS))
    np.testing.assert_allclose(after, before, atol=0.05 * np.abs(before).max())  # merged weights are rounded to bfloat16


def test_the_flags_that_messages_name_are_those_of_the_merging_command(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    statistics = json.loads((run / "dataset_statistics.json").read_text())
    (run / "dataset_statistics.json").write_text(json.dumps({"my_own": statistics[DATA_SET]}))
    with pytest.raises(SystemExit):
        merge_as_documented(run, monkeypatch)
    assert "pass --robot_platform, for actions of 7 dimensions one of: LIBERO" in caplog.text
    merge_as_documented(run, monkeypatch, "--robot_platform", "LIBERO", "--num_images_in_input", "1")
    assert (run / "model.safetensors").is_file()


def test_a_policy_of_several_data_sets_is_merged_without_a_choice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Policy.from_pretrained(run, "cpu", options=FLAGS).spec.save(run)
    spec, statistics = (json.loads((run / name).read_text()) for name in ("policy.json", "dataset_statistics.json"))
    (run / "policy.json").write_text(json.dumps({**spec, "unnorm_key": None}))
    (run / "dataset_statistics.json").write_text(json.dumps({**statistics, "other": statistics[DATA_SET]}))
    merge_as_documented(run, monkeypatch)
    assert (run / "model.safetensors").is_file()


def test_shards_of_an_earlier_merge_are_not_left_among_the_new_weights(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge_as_documented(run, monkeypatch)
    once = sorted(path.name for path in run.iterdir())
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (run / name).write_bytes((run / "model.safetensors").read_bytes())
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    merge_as_documented(run, monkeypatch)
    assert sorted(path.name for path in run.iterdir()) == once


def test_what_a_killed_merge_left_is_removed_by_the_next(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden, and as large as the model, it stayed, and filled the disk that the next merge needed."""
    (run / ".merging-dead").mkdir()
    (run / ".merging-dead" / "model.safetensors").write_bytes(b"half")
    merge_as_documented(run, monkeypatch)
    assert (run / "model.safetensors").is_file()
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_a_second_merge_at_the_same_time_is_refused_and_removes_nothing_of_the_first(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (run / ".merging-alive").mkdir()
    with locked(run / ".merging.lock"), pytest.raises(SystemExit):
        merge_as_documented(run, monkeypatch)
    assert f"merges the adapters of {run}; wait for it" in caplog.text
    assert (run / ".merging-alive").is_dir()


def test_what_cannot_be_merged_is_told_with_what_helps(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "lora_adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": ""}))
    (run / "config.json").write_text((run.parent / "base" / "config.json").read_text())
    with pytest.raises(
        ValueError, match=r"does not say which base model its adapters belong to\. .* merge_lora_weights_and_save\.py --base"
    ):
        Policy.from_pretrained(run, "cpu", options=FLAGS)
    merge_as_documented(run, monkeypatch)  # as the message says
    (run / "lora_adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds a whole model without lora_adapter/.* there is nothing to merge, take it as it is"):
        Policy.from_pretrained(run, "cpu", options=replace(FLAGS, keep_adapters=True, base_model=str(run.parent / "base")))


def test_it_is_served_as_an_adapter_examined_and_continued(run: Path) -> None:
    alone = act(Policy.from_pretrained(run, "cpu", options=FLAGS))
    shared = act(load_adapter_policies({"a": run}, CPU, torch.float32, FLAGS)["a"])
    np.testing.assert_allclose(shared, alone, atol=0.05 * np.abs(alone).max())
    assert not [finding for finding in check_checkpoint(run) if finding.status == Status.PROBLEM]
    config = FinetuneConfig.from_flags(vla_path=str(run), lora_rank=4, use_proprio=True)
    origin = find_origin(config, ROBOT_PLATFORMS["LIBERO"], ("primary",), [DATA_SET], None)
    assert Path(origin.base_path) == run.parent / "base"


def test_a_base_that_was_moved_is_named_with_the_flags_that_say_where_it_is(run: Path) -> None:
    moved = (run.parent / "base").rename(run.with_name("moved"))
    with pytest.raises(ValueError, match=r"run holds adapters of the base model .*base: .* deploy.py takes --base_model, merge_lora.*"):
        Policy.from_pretrained(run, "cpu", options=FLAGS)
    act(Policy.from_pretrained(run, "cpu", options=LoadOptions(FLAGS.flags, base_model=str(moved))))


def test_the_doctor_reads_the_adapters_own_description(run: Path) -> None:
    path = run / "lora_adapter" / "adapter_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "base_model_name_or_path": -1}))
    with pytest.raises(ValueError, match="base_model_name_or_path is -1, expected a text"):
        Policy.from_pretrained(run, "cpu", options=FLAGS)
    path.write_text(json.dumps({**content, "r": 7}))
    [found] = [finding for finding in check_checkpoint(run) if finding.status == Status.PROBLEM]
    assert "says rank 7 of" in found.found
    with pytest.raises(ValueError, match="says rank 7 of"):
        Policy.from_pretrained(run, "cpu", options=FLAGS)
