"""A command that goes on without --run_id_override finds the run that it means, or names those that it may mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_files import add_checkpoint

from prismatic.training.config import FinetuneConfig
from prismatic.training.run_choice import choose_run
from prismatic.training.run_folder import open_run


def make_config(root: Path, **flags: Any) -> FinetuneConfig:
    return FinetuneConfig.from_flags(**{"run_root_dir": root, "vla_path": "some/base", "dataset_name": "ds", **flags})


def test_a_run_that_began_with_the_checkpoint_of_another_one_goes_on_itself(tmp_path: Path) -> None:
    old = make_config(tmp_path, run_id_override="old")
    first, _ = add_checkpoint(old, 2), add_checkpoint(old, 4)
    more = {"vla_path": str(first), "learning_rate": 1e-4}
    begun = make_config(tmp_path, **more)
    assert choose_run(make_config(tmp_path, resume=True, **more)) == "old"  # the familiar way to resume: nothing else can be meant
    add_checkpoint(begun, 3, episodes={})
    again = make_config(tmp_path, resume=True, **more)
    again = again.as_run(choose_run(again))
    assert again.run_id == begun.run_id == "old--2_chkpt+ds+b8+lr-0.0001+lora-r32+dropout-0.0--image_aug"
    checkpoint = open_run(again, 1)
    assert checkpoint is not None
    assert checkpoint.state.step == 3
    assert choose_run(make_config(tmp_path, resume=True, run_id_override="old", **more)) == "old"


@pytest.mark.parametrize("is_saved", [False, True])
def test_where_the_old_run_and_a_new_one_may_be_meant_both_are_named(tmp_path: Path, is_saved: bool) -> None:
    first = add_checkpoint(make_config(tmp_path, run_id_override="old"), 2)
    begun = make_config(tmp_path, vla_path=str(first))
    if is_saved:  # and now with another learning rate
        add_checkpoint(begun, 3)
        again = make_config(tmp_path, vla_path=str(first), resume=True, learning_rate=1e-5)
    else:  # killed before its first checkpoint
        begun.run_dir.mkdir()
        again = make_config(tmp_path, vla_path=str(first), resume=True)
    with pytest.raises(ValueError, match=r"--run_id_override old, or --run_id_override old--2_chkpt\+ds\+b8") as refused:
        choose_run(again)
    assert ("give its command without --resume" in str(refused.value)) != is_saved


OTHERS: list[dict[str, Any]] = [
    {"learning_rate": 1e-5},
    {"lora_dropout": 0.1},
    {"batch_size": 2},
    {"batch_size": 2, "grad_accumulation_steps": 8},
]


@pytest.mark.parametrize("flags", OTHERS)
def test_a_run_goes_on_with_flags_that_may_change_and_are_in_its_name(
    tmp_path: Path, flags: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    begun = make_config(tmp_path)
    add_checkpoint(begun, 2)
    caplog.set_level("INFO")
    assert choose_run(make_config(tmp_path, resume=True, **flags)) == begun.run_id
    assert f"going on with {begun.run_id}" in caplog.text
    with pytest.raises(ValueError, match=r"--auto_resume True: there is no run .*, but 'base\+ds.*' \(step 2\).*--run_id_note"):
        choose_run(make_config(tmp_path, auto_resume=True, **flags))  # a search over learning rates would look the same
    add_checkpoint(make_config(tmp_path, **flags).as_run(begun.run_id), 4)
    assert choose_run(make_config(tmp_path, auto_resume=True, **flags)) == begun.run_id  # it went on so before
    noted = make_config(tmp_path, auto_resume=True, run_id_note="other", **flags)
    assert choose_run(noted) == noted.run_id


def test_several_runs_are_named(tmp_path: Path) -> None:
    for rate in (1e-3, 1e-4):
        add_checkpoint(make_config(tmp_path, learning_rate=rate), 2)
    with pytest.raises(ValueError, match=r"'base\+ds\+b8\+lr-0.0001\+.*' \(step 2\), 'base\+ds\+b8\+lr-0.001\+.*--run_id_override NAME"):
        choose_run(make_config(tmp_path, resume=True))


@pytest.mark.parametrize(
    "flags",
    [{"use_film": True}, {"seed": 8}, {"lora_rank": 8}, {"vla_path": "some/other"}, {"dataset_name": "ds2"}, {"image_aug": False}],
    ids=lambda flags: next(iter(flags)),
)
@pytest.mark.parametrize("mode", ["resume", "auto_resume"])
def test_runs_that_cannot_go_on_with_the_flags_are_not_meant(tmp_path: Path, flags: dict[str, Any], mode: str) -> None:
    add_checkpoint(make_config(tmp_path, learning_rate=1e-4), 2)
    config = make_config(tmp_path, **{mode: True}, **flags)
    assert choose_run(config) == config.run_id


def test_a_run_of_the_exact_name_comes_first_also_while_its_folder_is_replaced(tmp_path: Path) -> None:
    add_checkpoint(make_config(tmp_path, learning_rate=1e-4), 2)
    own = make_config(tmp_path, auto_resume=True, save_latest_checkpoint_only=True)
    folder = add_checkpoint(own, 2)
    assert choose_run(own) == own.run_id
    folder.rename(folder.with_name(f".{folder.name}.previous"))
    assert choose_run(own) == own.run_id
    checkpoint = open_run(own, 1)
    assert checkpoint is not None
    assert checkpoint.folder == folder
