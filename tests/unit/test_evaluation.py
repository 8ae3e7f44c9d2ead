"""Evaluations while training are real processes; what they report, how they fail, how they wait for each other."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from typing import Any

import pytest
from run_files import add_checkpoint

from prismatic.training.config import FinetuneConfig
from prismatic.training.evaluation import EVAL_COMMANDS, BackgroundEvaluation, eval_command, report_metrics

REPORT = {"summary": {"none": {"push": {"rate": 0.5, "num_trials": 4}, "pull": {"rate": 1.0, "num_trials": 2}, "mean": {"rate": 0.75}}}}
# Writes a report if the checkpoint's weights are there; waits first for the file `go`.
SCRIPT = """
import json, pathlib, sys, time
checkpoint, output_dir, go = map(pathlib.Path, sys.argv[1:4])
while not go.exists():
    time.sleep(0.01)
assert (checkpoint / "model.safetensors").read_text() == "weights"
assert not (checkpoint / "trainer_state").exists()
(output_dir / "report.json").write_text(json.dumps(REPORT))
"""


def report(text: str, then: str = "") -> str:
    """A command that leaves `text` as its report."""
    code = f"import pathlib, sys; out = pathlib.Path(sys.argv[1]); (out / 'report.json').write_text({text!r}); {then}"
    return f"python -c {shlex.quote(code)} {{output_dir}} {{checkpoint}}"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "run--1_chkpt"
    (folder / "trainer_state").mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    (folder / "trainer_state" / "optimizer.pt").write_text("moments")
    return folder


def start(tmp_path: Path, command: str) -> BackgroundEvaluation:
    return BackgroundEvaluation(FinetuneConfig.from_flags(run_root_dir=tmp_path / "runs", run_id_override="run"), command)


def script_command(tmp_path: Path) -> str:
    script = tmp_path / "evaluate.py"
    script.write_text(SCRIPT.replace("REPORT", repr(REPORT)))
    return f"python {script} {{checkpoint}} {{output_dir}} {tmp_path / 'go'}"


def test_results_come_with_the_step_of_their_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    with start(tmp_path, script_command(tmp_path)) as evaluation:
        evaluation.submit(7, checkpoint)
        assert evaluation.results() == []  # it runs beside the training, which goes on
        (checkpoint / "model.safetensors").unlink()  # pruned meanwhile: the evaluation has a copy of its own
        (tmp_path / "go").touch()
        ((step, values),) = evaluation.finish()
    assert step == 7
    assert values == {"eval/success_rate": 0.75, "eval/num_episodes": 6, "eval/success_rate/push": 0.5, "eval/success_rate/pull": 1.0}
    assert sorted(path.name for path in (tmp_path / "runs" / "run--eval" / "step_7").iterdir()) == ["log.txt", "report.json"]


def test_crashed_episodes_are_among_the_results(tmp_path: Path) -> None:
    """They count as failures, and the curve of success fell without a word."""
    path = tmp_path / "report.json"
    for num_crashed, told in ((0, {}), (2, {"eval/num_crashed_episodes": 2.0})):
        path.write_text(json.dumps(REPORT | {"num_crashed_episodes": num_crashed}))
        found = report_metrics(path)
        assert {name: value for name, value in found.items() if "crashed" in name} == told


def test_the_newest_checkpoint_waits_for_its_turn(tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start(tmp_path, script_command(tmp_path)) as evaluation:
        for step in (1, 2, 3):
            evaluation.submit(step, checkpoint)
        (tmp_path / "go").touch()
        assert [step for step, _ in evaluation.finish()] == [1, 3]
    assert "evaluation of step 2 is left out" in caplog.text


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("python -c 'raise SystemExit(\"no GPU left\")' {checkpoint} {output_dir}", "failed (exit status 1).*no GPU left"),
        ("python -c pass {checkpoint} {output_dir}", "failed (it wrote 0 report.json)"),
        (report('{"summary": {"none": {"push": {"rate": 0.5}, "mean": {"rate": 0.5}}}}'), "does not hold.*KeyError: 'num_trials'"),
        (report('{"score": 0.5}'), "does not hold {\"summary\".*KeyError: 'summary'"),
        (report('{"summary": {"none": [1, 2]}}'), "does not hold.*AttributeError"),
        (report('{"summary": {"none": {"mean": {"rate": null}}}}'), "does not hold.*TypeError"),
        (report('{"summary": {"none": {"mean": {"rate": NaN}}}}'), "holds rates that are not numbers"),
        (report('{"summary": {"none": {"mean"'), "does not hold.*JSONDecodeError"),
        (report('{"summary": {"none": {"mean": {"rate": 1' + "0" * 400 + "}}}}"), "failed (int too large to convert to float)"),
        (report("[" * 100_000), "failed (maximum recursion depth exceeded"),
        (
            report('{"summary": {"none": {"mean": {"rate": 1.0}}}}', then="import shutil; shutil.rmtree(out)"),
            "wrote 0 report.json.*cannot be read",
        ),
        ("/nowhere/evaluate {checkpoint} {output_dir}", "cannot start.*Check --eval_command: /nowhere/evaluate"),
    ],
)
def test_a_failing_evaluation_is_reported_and_stops_nothing(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture, command: str, told: str
) -> None:
    with start(tmp_path, command) as evaluation:
        evaluation.submit(1, checkpoint)
        assert list(evaluation.finish()) == []
    first, *rest = told.split(".*")
    assert first in caplog.text
    assert all(part in caplog.text for part in rest)
    assert "training goes on" in caplog.text
    assert not list((tmp_path / "runs").rglob("step_1/checkpoint"))


def test_a_checkpoint_that_cannot_be_linked_stops_nothing(tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "runs" / "run--eval").write_text("a file where the folder of the evaluations belongs")
    with start(tmp_path, "true {checkpoint} {output_dir}") as evaluation:
        evaluation.submit(1, checkpoint)
        evaluation.submit(2, checkpoint.with_name("run--2_chkpt"))  # nor one that is not there
        assert list(evaluation.finish()) == []
    assert caplog.text.count("its checkpoint cannot be linked or copied") == 2


def test_waiting_for_the_last_evaluation_can_be_stopped(tmp_path: Path, checkpoint: Path) -> None:
    answers = iter([False, False, True])  # the script waits for a file that never comes
    with start(tmp_path, script_command(tmp_path)) as evaluation:
        evaluation.submit(1, checkpoint)
        assert list(evaluation.finish(lambda: next(answers))) == []
    assert not list((tmp_path / "runs").rglob("checkpoint"))


def test_an_interrupted_training_ends_its_evaluation(tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    evaluation = start(tmp_path, script_command(tmp_path))  # the script waits for a file that never comes
    evaluation.submit(1, checkpoint)
    evaluation.submit(2, checkpoint)
    evaluation.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert evaluation._running is not None
    assert evaluation._running.process.returncode not in (None, 0)
    assert not list((tmp_path / "runs").rglob("checkpoint"))


def test_owed_evaluations_are_taken_up_where_their_checkpoints_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = FinetuneConfig.from_flags(run_root_dir=tmp_path / "runs", run_id_override="run")
    for step in (2, 6):
        add_checkpoint(config, step).joinpath("model.safetensors").write_text("weights")
    (tmp_path / "go").touch()
    with BackgroundEvaluation(config, script_command(tmp_path)) as evaluation:
        evaluation.take_up([2, 4, 6, 8], [{"step": 8, "eval/success_rate": 0.5}, {"step": 2, "train/loss": 0.5}])
        assert evaluation.pending == [2, 6]
        assert [step for step, _ in evaluation.finish()] == [2, 6]
        assert evaluation.pending == []
    assert "evaluation of step 4, which was interrupted, is left out: its checkpoint is not there any more" in caplog.text
    assert "step 8" not in caplog.text


def test_the_latest_checkpoint_is_that_of_another_step_by_now(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = FinetuneConfig.from_flags(run_root_dir=tmp_path / "runs", run_id_override="run", save_latest_checkpoint_only=True)
    add_checkpoint(config, 4)
    with BackgroundEvaluation(config, "true") as evaluation:
        evaluation.take_up([2], [])
        assert evaluation.pending == []
    assert "evaluation of step 2, which was interrupted, is left out" in caplog.text


def test_the_command_is_that_of_the_platform_unless_given() -> None:
    assert eval_command(FinetuneConfig(), "METAWORLD") is None
    assert eval_command(FinetuneConfig.from_flags(eval_every=5), "METAWORLD") == EVAL_COMMANDS["METAWORLD"]
    own = "python mine.py {checkpoint} {output_dir}"
    assert eval_command(FinetuneConfig.from_flags(eval_every=5, eval_command=own), "ALOHA") == own
    libero = eval_command(FinetuneConfig.from_flags(eval_every=5, dataset_name="libero_goal_no_noops"), "LIBERO")
    assert libero is not None
    assert "--task_suite_name libero_goal " in libero
    aloha = eval_command(FinetuneConfig.from_flags(eval_every=5, dataset_name="aloha_sim_insertion_scripted"), "ALOHA")
    assert aloha is not None
    assert "--task_names [insertion] " in aloha
    assert json.dumps(libero).count("{checkpoint}") == 1


@pytest.mark.parametrize(
    ("platform", "flags", "message"),
    [
        ("BRIDGE", {}, "platform BRIDGE has no evaluation of its own"),
        ("ALOHA", {"dataset_name": "fold_shirt"}, r"not clear which simulated tasks fold_shirt is of.* --task_names \[transfer_cube\] "),
        ("METAWORLD", {"eval_command": "a {suite} {checkpoint} {output_dir}"}, "has {suite}, which stands for tasks of LIBERO or ALOHA"),
        ("LIBERO", {"dataset_name": "my_libero_like_set"}, "not clear which simulated tasks my_libero_like_set is of"),
        ("LIBERO", {"eval_command": "python 'x {checkpoint} {output_dir}"}, "no line of a shell .No closing quotation"),
    ],
)
def test_a_platform_without_evaluation_is_refused(platform: str, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eval_command(FinetuneConfig.from_flags(eval_every=5, **flags), platform)
