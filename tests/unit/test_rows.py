"""Rows of JSON survive what a kill leaves of them; closing a run's log replaces no error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from prismatic.training.config import FinetuneConfig
from prismatic.training.logging import RunLogger
from prismatic.training.rows import append_row, drop_later_rows, read_rows


def test_a_row_cut_short_anywhere_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_row(path, {"step": 1, "loss": 0.5})
    whole = path.read_bytes()
    row = json.dumps({"step": 2, "nested": {"a": [1, 2]}}).encode() + b"\n"
    for length in range(len(row) + 1):
        path.write_bytes(whole + row[:length])
        append_row(path, {"step": 3})
        steps = [found["step"] for found in read_rows(path)]
        assert steps == ([1, 2, 3] if length >= len(row) - 1 else [1, 3]), row[:length]


def test_what_is_no_row_is_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"step": 1}\n{"step": 2, "tr{"step": 3}\n[1]\n{"other": 1}\n\xff\xfe\x00\n{"step": 4, "x": NaN}\n{"step": 5, "v": {"a": 1}'
    )
    assert [row["step"] for row in read_rows(path)] == [1, 4]
    assert "4 of 7 lines are damaged and left out (line 2)" in caplog.text
    drop_later_rows(path, 3)
    assert path.read_text() == '{"step": 1}\n'
    drop_later_rows(tmp_path / "none.jsonl", 3)
    assert read_rows(tmp_path / "none.jsonl") == []


class FailingSink:
    """A service that is down."""

    def __init__(self, config: FinetuneConfig, first_step: int) -> None:
        self.num_calls = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        self.num_calls += 1
        raise ConnectionError("nobody answers")

    def close(self, failed: bool) -> None:
        raise ConnectionError("nobody says goodbye")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunLogger:
    monkeypatch.setattr("prismatic.training.sinks._SINKS", {"tensorboard": FailingSink})
    return RunLogger(FinetuneConfig.from_flags(run_root_dir=tmp_path, run_id_override="run", logger="tensorboard"), 0, is_main=True)


def test_a_service_that_fails_is_left_out(log: RunLogger, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with log:
        log.metrics(1, {"val/loss": 0.5})
        log.metrics(2, {"val/loss": 0.4})
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert caplog.text.count("FailingSink failed and gets nothing any more") == 1


def test_closing_the_log_does_not_replace_the_error_that_ends_the_run(
    log: RunLogger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run" / "metrics.jsonl").write_text("no row at all\n")  # of which no curves can be drawn
    with pytest.raises(ValueError, match="the real one"), log:
        raise ValueError("the real one")
    assert "the curves cannot be drawn" in caplog.text
    assert "nobody says goodbye" in caplog.text


def test_a_log_that_cannot_be_written_is_the_runs_to_tell(log: RunLogger, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "run")
    log.metrics(1, {"val/loss": 0.5})
    assert f"{tmp_path}/run/metrics.jsonl cannot be written (No such file or directory)" in str(log.failure)
