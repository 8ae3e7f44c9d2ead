"""What lies in a run's folders is not overwritten by the next start."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_files import add_checkpoint
from safetensors.torch import load_file

from prismatic.models.base import tiny_base, write_tiny_base
from prismatic.models.sizes import TinySizes
from prismatic.models.vla import num_parameters
from prismatic.training.config import FinetuneConfig
from prismatic.training.run_choice import choose_run
from prismatic.training.run_folder import BEST_FILE, check_disk, check_room, leave_later_checkpoints, open_run


def make_config(root: Path, **flags: Any) -> FinetuneConfig:
    return FinetuneConfig.from_flags(**{"run_root_dir": root, "vla_path": "some/base", "dataset_name": "ds", **flags})


@pytest.mark.parametrize("mode", [{}, {"resume": True}, {"auto_resume": True}], ids=["plain", "resume", "auto_resume"])
@pytest.mark.parametrize("latest_only", [False, True])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_policies_that_cannot_be_resumed_are_not_overwritten(
    tmp_path: Path, mode: dict[str, Any], latest_only: bool, is_damaged: bool
) -> None:
    config = make_config(tmp_path, run_id_override="run", save_latest_checkpoint_only=latest_only)
    folders = [add_checkpoint(config, step) for step in ((4,) if latest_only else (2, 4, 10))]
    for folder in folders:
        if is_damaged:
            (folder / "trainer_state" / "state.json").write_text("{}")
        else:
            shutil.rmtree(folder / "trainer_state")  # to save disk
    again = make_config(tmp_path, run_id_override="run", save_latest_checkpoint_only=latest_only, **mode)
    named = ", ".join(folder.name for folder in folders)
    with pytest.raises(ValueError, match=re.escape(f"run 'run' has policies in {tmp_path} ({named}) that cannot be resumed")) as refused:
        open_run(again, 1)
    assert f"--vla_path {folders[-1]}" in str(refused.value)
    following = make_config(tmp_path, run_id_override="more", vla_path=str(folders[-1]))  # as the message says
    assert open_run(following.as_run(choose_run(following)), 1) is None


def test_a_later_policy_without_trainer_state_is_put_aside_as_others_are(tmp_path: Path) -> None:
    config = make_config(tmp_path, run_id_override="run", resume=True)
    for step in (2, 4, 10):
        add_checkpoint(config, step)
    for step in (4, 10):
        shutil.rmtree(tmp_path / f"run--{step}_chkpt" / "trainer_state")
    (tmp_path / "run--6_chkpt").mkdir()  # nothing in it
    checkpoint = open_run(config, 1)
    assert checkpoint is not None
    assert checkpoint.state.step == 2
    assert [place.name for place in leave_later_checkpoints(config, 2)] == ["run--4_chkpt.left1", "run--10_chkpt.left1"]
    assert (tmp_path / "run--4_chkpt.left1" / "model.safetensors").read_text() == "weights of step 4"


def test_a_later_checkpoint_in_the_folder_of_the_run_is_not_gone_on_from_either(tmp_path: Path) -> None:
    """A run that was told to keep the latest alone for a while has it beside numbered ones."""
    config = make_config(tmp_path, run_id_override="run", resume=True)
    add_checkpoint(config, 2)
    run = add_checkpoint(make_config(tmp_path, run_id_override="run", save_latest_checkpoint_only=True), 6)
    back = make_config(tmp_path, run_id_override="run", resume=True, resume_step=2)
    assert (found := open_run(back, 1)) is not None
    assert leave_later_checkpoints(back, found.state.step) == [run / "trainer_state.left1"]
    add_checkpoint(config, 3)
    assert (found := open_run(config, 1)) is not None
    assert found.state.step == 3
    assert leave_later_checkpoints(config, 3) == []


def test_a_damaged_policy_file_is_passed_over_as_other_damage_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(tmp_path, run_id_override="run", resume=True)
    newest = [add_checkpoint(config, step) for step in (2, 4)][-1]
    (newest / "policy.json").write_text('{"format_version": 1,')
    checkpoint = open_run(config, 1)
    assert checkpoint is not None
    assert checkpoint.state.step == 2
    assert f"{newest} cannot be resumed: {newest}/policy.json is not valid JSON" in caplog.text
    assert [place.name for place in leave_later_checkpoints(config, 2)] == ["run--4_chkpt.left1"]
    shutil.copy(tmp_path / "run--4_chkpt.left1" / "policy.json", tmp_path / "run--2_chkpt" / "policy.json")
    with pytest.raises(ValueError, match=r"run--2_chkpt/policy\.json is not valid JSON .* copy or download it again"):
        open_run(config, 1)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("step",), "step is '4', expected int"),
        (("episodes",), "episodes is '4', expected Mapping"),
        (("episodes", "ds"), "episodes is {'ds': '4'}, expected Mapping"),
        (("meters",), "meters is '4', expected list"),
        (("flags", "seed"), "the flag seed is '4', expected int"),
    ],
)
def test_a_value_of_another_kind_in_the_state_is_passed_over_as_other_damage_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, edit: tuple[str, ...], told: str
) -> None:
    config = make_config(tmp_path, run_id_override="run", resume=True)
    path = [add_checkpoint(config, step) for step in (2, 4)][-1] / "trainer_state" / "state.json"
    content, size = json.loads(path.read_text()), path.stat().st_size
    place = content
    for key in edit[:-1]:
        place = place[key]
    place[edit[-1]] = "4"
    path.write_text(json.dumps(content, separators=(",", ":")).ljust(size))  # as many bytes as the manifest says
    checkpoint = open_run(config, 1)
    assert checkpoint is not None
    assert checkpoint.state.step == 2
    assert f"{path.parents[1]} cannot be resumed: state.json says something else than expected ({told}" in caplog.text


@pytest.mark.parametrize(
    ("flags", "num_bytes"),
    [({}, 2 * 10**18), ({"use_lora": False}, 14 * 10**18), ({"merge_lora_during_training": False}, 0)],
    ids=["lora", "full", "adapters"],
)
def test_a_checkpoint_needs_what_it_will_hold_however_the_base_is_stored(tmp_path: Path, flags: dict[str, Any], num_bytes: int) -> None:
    """Of a base in float32 twice as much was asked."""
    config, _ = tiny_base(TinySizes())
    write_tiny_base(tmp_path / "base", TinySizes(), seed=0)
    assert num_parameters(config) == sum(value.numel() for value in load_file(tmp_path / "base" / "model.safetensors").values())
    told = pytest.raises(ValueError, match=rf"needs .* GiB \({num_bytes:,} bytes\)") if num_bytes else contextlib.nullcontext()
    with told:
        check_disk(make_config(tmp_path, run_id_override="run", **flags), 10**18)


def test_a_base_that_is_quantized_otherwise_from_now_on_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_checkpoint(make_config(tmp_path, run_id_override="run"), 4)
    assert open_run(make_config(tmp_path, run_id_override="run", resume=True), 1) is not None
    assert "--quantize_base" not in caplog.text
    assert open_run(make_config(tmp_path, run_id_override="run", resume=True, quantize_base="nf4"), 1) is not None
    assert "--quantize_base is nf4, it was none up to step 4: the adapters go on over a base that is rounded otherwise" in caplog.text


def test_only_what_helps_is_advised_where_the_disk_is_full(tmp_path: Path) -> None:
    """What is replaced or pruned later has to lie beside the new checkpoint first."""

    def advice(**flags: Any) -> str:
        with pytest.raises(ValueError, match="needs 931322574") as refused:
            check_room(make_config(tmp_path, run_id_override="run", **flags), tmp_path / "run", 10**18)
        return str(refused.value).split(" free; ")[1]

    merged = "--merge_lora_during_training False saves adapters without the merged model, which can be made later"
    assert advice() == f"free some, or choose another --run_root_dir; {merged}"
    assert advice(merge_lora_during_training=False) == advice(use_lora=False) == "free some, or choose another --run_root_dir"
    config = make_config(tmp_path, run_id_override="run")
    for step in (2, 4, 6, 8):
        add_checkpoint(config, step)
    config.run_dir.mkdir()
    (config.run_dir / BEST_FILE).write_text(json.dumps({"checkpoint": "run--4_chkpt"}))
    told = advice(use_lora=False, keep_checkpoints=1)
    assert told.startswith("free some; of the run, which goes on from the newest, you may delete run--2_chkpt, run--6_chkpt (")
    (config.run_dir / BEST_FILE).write_text("{")
    assert advice(use_lora=False) == "free some"
