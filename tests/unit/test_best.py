"""best.json names the checkpoint with the lowest validation error among those that exist."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from prismatic.cli_sections import plain_values
from prismatic.policy.checkpoint.files import atomic_folder
from prismatic.training.best import BEST_METRIC, cadence_note, mark_best
from prismatic.training.config import FinetuneConfig
from prismatic.training.run_folder import BEST_FILE, TrainerState, find_checkpoints, prune_checkpoints

ROWS = [{"step": 10, "train/loss": 0.1}, {"step": 10, BEST_METRIC: 0.5}, {"step": 20, BEST_METRIC: 0.2}, {"step": 30, BEST_METRIC: 0.3}]


def make_config(tmp_path: Path, **flags: Any) -> FinetuneConfig:
    config = FinetuneConfig.from_flags(run_root_dir=tmp_path, run_id_override="run", use_val_set=True, **flags)
    config.run_dir.mkdir()
    return config


def add_checkpoint(tmp_path: Path, name: str) -> None:
    state = TrainerState(step=int(name.split("--")[1].split("_")[0]), sampler={}, world_size=1, flags=plain_values(FinetuneConfig()))
    with atomic_folder(tmp_path / name) as folder:
        (folder / "trainer_state").mkdir()
        (folder / "trainer_state" / "state.json").write_text(json.dumps(asdict(state)))


def best(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "run" / BEST_FILE).read_text())


def test_the_lowest_error_of_a_saved_step_wins(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    add_checkpoint(tmp_path, "run--10_chkpt")
    assert mark_best(config, ROWS[:2], 10) == "run--10_chkpt"
    assert best(tmp_path) == {"checkpoint": "run--10_chkpt", "step": 10, "metric": BEST_METRIC, "value": 0.5}
    add_checkpoint(tmp_path, "run--30_chkpt")  # step 20, the best of all, was not saved
    assert mark_best(config, ROWS, 30) == "run--30_chkpt"
    add_checkpoint(tmp_path, "run--20_chkpt")
    assert mark_best(config, ROWS, 40) == "run--20_chkpt"


def test_an_incomplete_folder_is_no_checkpoint(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    (tmp_path / "run--20_chkpt").mkdir()
    add_checkpoint(tmp_path, "run--10_chkpt")
    assert mark_best(config, ROWS, 20) == "run--10_chkpt"


def test_without_a_candidate_an_old_mark_goes(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    (tmp_path / "run" / BEST_FILE).write_text("{}")
    assert mark_best(config, [], None) is None
    assert not (tmp_path / "run" / BEST_FILE).exists()


def test_the_one_latest_checkpoint_is_the_best_until_a_worse_one_replaces_it(tmp_path: Path) -> None:
    config = make_config(tmp_path, save_latest_checkpoint_only=True)
    assert mark_best(config, ROWS[:3], 20) == "run"
    assert mark_best(config, ROWS, 30) is None
    assert best(tmp_path) == {"checkpoint": None, "step": 20, "metric": BEST_METRIC, "value": 0.2}


@pytest.mark.parametrize(
    ("val_freq", "save_freq", "told"),
    [(100, 100, None), (200, 100, None), (100, 150, "multiples of 300, and the last,"), (100, 100_000_000, "only the last checkpoint")],
)
def test_cadences_that_do_not_meet_are_reported(val_freq: int, save_freq: int, told: str | None) -> None:
    note = cadence_note(FinetuneConfig.from_flags(use_val_set=True, val_freq=val_freq, save_freq=save_freq))
    assert note is None if told is None else note is not None and told in note
    assert cadence_note(FinetuneConfig.from_flags(val_freq=100, save_freq=150)) is None


@pytest.mark.parametrize("latest_only", [True, False])
def test_a_validation_that_found_no_number_is_never_the_best(tmp_path: Path, latest_only: bool) -> None:
    config = make_config(tmp_path, save_latest_checkpoint_only=latest_only)
    for step in (10, 20):
        add_checkpoint(tmp_path, f"run--{step}_chkpt")
    rows: list[dict[str, Any]] = [{"step": 10, BEST_METRIC: float("nan")}]
    assert mark_best(config, rows, 10) is None
    assert not (tmp_path / "run" / BEST_FILE).exists()
    rows += [{"step": 20, BEST_METRIC: 0.4}, {"step": 30, BEST_METRIC: None}, {"step": 40, BEST_METRIC: float("-inf")}]
    assert mark_best(config, rows, 20) == ("run" if latest_only else "run--20_chkpt")
    assert best(tmp_path)["value"] == 0.4


@pytest.mark.parametrize("content", ["", "[]", '{"step": 1}', '{"checkpoint": 3}'])
def test_nothing_is_removed_while_the_best_cannot_be_read(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(tmp_path, keep_checkpoints=1)
    for step in (10, 20):
        add_checkpoint(tmp_path, f"run--{step}_chkpt")
    (tmp_path / "run" / BEST_FILE).write_text(content)
    assert prune_checkpoints(config) == []
    assert "no checkpoint is removed" in caplog.text
    (tmp_path / "run" / BEST_FILE).write_text('{"checkpoint": null}')
    assert prune_checkpoints(config) == [tmp_path / "run--10_chkpt"]


def test_a_checkpoint_whose_state_says_something_else_is_passed_over(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    add_checkpoint(tmp_path, "run--10_chkpt")
    for name, content in (("run--20_chkpt", '{"step": 20, "of": "another version"}'), ("run--30_chkpt", "[1]")):
        with atomic_folder(tmp_path / name) as folder:
            (folder / "trainer_state").mkdir()
            (folder / "trainer_state" / "state.json").write_text(content)
    assert list(find_checkpoints(config)) == [10]
