"""Adapters over a base model of the right shape that is not theirs: refused wherever they are read, before any weight is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_checkpoints import write_base, write_run

from prismatic.conversion.merging import merge_checkpoint
from prismatic.doctor.checkpoint import check_checkpoint
from prismatic.policy.checkpoint.files import ADAPTER_FOLDER
from prismatic.policy.checkpoint.loading import LoadOptions, load_parts
from prismatic.policy.checkpoint.spec import HeadSpec
from prismatic.policy.lora.bank import load_adapter_policies
from prismatic.vla.diagnosis import Status

CPU = torch.device("cpu")
TOLD = "other is not the base model that the adapters in .*run were trained over: model.safetensors differs. Pass a copy of that one"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_base(tmp_path / "other", seed=1)
    return write_run(tmp_path / "run", write_base(tmp_path / "base"), 0, HeadSpec(use_proprio=True))


def keep_apart(run: Path, base: str) -> None:
    load_parts(run, CPU, torch.float32, LoadOptions(keep_adapters=True, base_model=base))


def merge(run: Path, base: str) -> None:
    merge_checkpoint(run, base, torch.float32, CPU, torch.float32, LoadOptions())


def serve(run: Path, base: str) -> None:
    load_adapter_policies({"a": run}, CPU, torch.float32, LoadOptions(base_model=base))


@pytest.mark.parametrize("use", [keep_apart, merge, serve])
def test_another_base_is_refused_and_a_copy_of_theirs_is_taken(run: Path, use: Callable[[Path, str], None]) -> None:
    before = {path.name: path.stat().st_size for path in run.iterdir()}
    with pytest.raises(ValueError, match=TOLD):
        use(run, str(run.with_name("other")))
    assert {path.name: path.stat().st_size for path in run.iterdir()} == before
    (run.parent / "base").rename(run.with_name("copy"))
    use(run, str(run.with_name("copy")))


def test_what_the_message_advises_takes_a_model_that_was_stored_anew(run: Path) -> None:
    content = json.loads((run / "policy.json").read_text())
    del content["base_files"]
    (run / "policy.json").write_text(json.dumps(content))
    keep_apart(run, str(run.with_name("other")))


def test_the_doctor_sees_a_base_that_was_replaced_in_its_place(run: Path) -> None:
    (run / "model.safetensors").unlink()
    assert {finding.subject: finding for finding in check_checkpoint(run)}["base model"].status == Status.OK
    config = run / ADAPTER_FOLDER / "adapter_config.json"
    config.write_text(config.read_text().replace(str(run.with_name("base")), str(run.with_name("other"))))
    found = {finding.subject: finding for finding in check_checkpoint(run)}["base model"]
    assert found.status == Status.PROBLEM
    assert "model.safetensors differs" in found.found
