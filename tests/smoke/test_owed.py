"""What a run owes when it is stopped, a validation or evaluations, it does when it goes on: once, and before anything relies on it."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from survival import DATASET, make_workplace, rows

from prismatic.interrupts import STOPPED
from prismatic.training.best import BEST_METRIC
from prismatic.training.config import FinetuneConfig
from prismatic.training.finite import NonFiniteWeightsError
from prismatic.training.loop import Trainer, finetune
from prismatic.training.validation import Validation

REPORT = {"summary": {"none": {"mean": {"rate": 0.5}, "push": {"rate": 0.5, "num_trials": 2}}}}
# Waits for the file `go` if it is the first of its step.
EVALUATION = """
import pathlib, sys, time
output_dir, go = map(pathlib.Path, sys.argv[1:3])
while not go.exists():
    time.sleep(0.01)
(output_dir / "report.json").write_text(TEXT)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("owed"))


def make_config(workplace: Path, runs: Path, **flags: Any) -> FinetuneConfig:
    defaults: dict[str, Any] = {
        **{"vla_path": str(workplace / "base"), "data_root_dir": workplace / "data", "dataset_name": DATASET, "run_root_dir": runs},
        **{"run_id_override": "run", "num_images_in_input": 2, "use_proprio": True, "batch_size": 2, "save_freq": 2, "num_workers": 0},
        **{"wandb_log_freq": 1, "lora_rank": 2, "image_aug": False},
    }
    return FinetuneConfig.from_flags(**defaults | flags)


def run_until(step: int, monkeypatch: pytest.MonkeyPatch, config: FinetuneConfig, *, is_killed: bool = False) -> None:
    """A run that SIGTERM stops in step `step`, or that is killed there."""
    original = Trainer.optimizer_step

    def optimizer_step(self: Trainer, batches: Any) -> dict[str, torch.Tensor]:
        if self.step + 1 == step:
            if is_killed:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "optimizer_step", optimizer_step)
        with pytest.raises(KeyboardInterrupt if is_killed else SystemExit) as ended:
            finetune(config)
    assert is_killed or ended.value.code == STOPPED  # type: ignore[union-attr]


def validations(runs: Path) -> list[int]:
    return [row["step"] for row in rows(runs / "run") if BEST_METRIC in row]


def test_the_best_checkpoint_is_known_before_a_save_removes_others(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([0.1, 0.5, 0.4])
    monkeypatch.setattr(Validation, "metrics", lambda self, names: {BEST_METRIC: next(errors)})
    flags = {"use_val_set": True, "val_freq": 2, "keep_checkpoints": 1, "max_steps": 6}
    run_until(2, monkeypatch, make_config(workplace, tmp_path, **flags))
    finetune(make_config(workplace, tmp_path, resume=True, **flags))
    assert sorted(path.name for path in tmp_path.glob("run--*")) == ["run--2_chkpt", "run--6_chkpt"]
    assert json.loads((tmp_path / "run" / "best.json").read_text())["checkpoint"] == "run--2_chkpt"


def test_an_owed_validation_is_recorded_once_however_often_the_run_is_killed_after_it(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"use_val_set": True, "val_freq": 2, "save_freq": 4, "max_steps": 4}
    run_until(2, monkeypatch, make_config(workplace, tmp_path, **flags))
    for _ in range(2):
        run_until(3, monkeypatch, make_config(workplace, tmp_path, resume=True, **flags), is_killed=True)
        assert validations(tmp_path) == [2]
    finetune(make_config(workplace, tmp_path, resume=True, **flags))
    assert validations(tmp_path) == [2, 4]
    assert [row["step"] for row in rows(tmp_path / "run") if "train/loss" in row] == [1, 2, 3, 4]
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()] == [2, 4]


def test_evaluations_that_a_stop_cut_off_are_taken_up(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code, go = EVALUATION.replace("TEXT", repr(json.dumps(REPORT))), tmp_path / "go"
    command = f"python -c {shlex.quote(code)} {{output_dir}} {go} {{checkpoint}}"
    flags = {"eval_every": 2, "eval_command": command, "max_steps": 4}
    run_until(3, monkeypatch, make_config(workplace, tmp_path, **flags))
    assert "evaluation of step 2 has not ended; the run takes it up when it goes on" in caplog.text
    run_until(4, monkeypatch, make_config(workplace, tmp_path, resume=True, **flags))  # one runs, that of the last step waits
    state = json.loads((tmp_path / "run--4_chkpt" / "trainer_state" / "state.json").read_text())
    assert state["owed_evaluations"] == [2, 4]
    go.touch()
    for _ in range(2):  # the second time nothing is owed
        finetune(make_config(workplace, tmp_path, resume=True, **flags))
        assert [(row["step"], row["eval/success_rate"]) for row in rows(tmp_path / "run") if "eval/success_rate" in row] == [
            (2, 0.5),
            (4, 0.5),
        ]


def test_weights_that_the_last_update_destroyed_are_not_saved(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._update_weights

    def update(self: Trainer) -> None:
        if self.step == 3:
            next(iter(self.trained.parameters.values())).grad.fill_(float("inf"))  # type: ignore[union-attr]
        original(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update_weights", update)
        with pytest.raises(
            NonFiniteWeightsError, match=r"1 of \d+ trained tensors are not finite after the update of step 4: .*--resume_step"
        ):
            finetune(make_config(workplace, tmp_path, max_steps=4))
    assert [path.name for path in tmp_path.glob("run--*")] == ["run--2_chkpt"]
    path = tmp_path / "run--2_chkpt" / "trainer_state" / "trainable.safetensors"
    finetune(make_config(workplace, tmp_path, max_steps=4, resume=True, learning_rate=1e-4))
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # NaN, as an earlier version might have saved it
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 of the \d+ tensors in .*run--2_chkpt.* are not finite, .*resume from an earlier checkpoint"):
        finetune(make_config(workplace, tmp_path, max_steps=6, resume=True, resume_step=2))
