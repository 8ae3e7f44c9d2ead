"""Evaluations that are interrupted, continued, contradicted; what they leave behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from toy_simulator import INSTRUCTIONS, ToyPolicy, ToySimulator

from experiments.robot.evaluation import run as run_module
from experiments.robot.evaluation.contact_sheet import choose_rows, write_contact_sheet
from experiments.robot.evaluation.journal import JOURNAL_FILE, Journal, JournalError, fingerprint, read_journal, read_journals
from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags
from experiments.robot.evaluation.policies import check_policy
from experiments.robot.evaluation.rollout import EpisodeResult
from experiments.robot.evaluation.run import run_evaluation
from experiments.robot.evaluation.shards import Shard
from experiments.robot.recording.record import RecordingOptions
from prismatic.policy.checkpoint.spec import HeadSpec, PolicySpec
from prismatic.vla.constants import get_robot_platform
from prismatic.vla.datasets.hdf5.recording import read_recording
from prismatic.vla.images import ImageRecipe
from prismatic.vla.types import ActionChunk, Observation

TASKS = ["left", "right"]


class Interrupted(ToyPolicy):
    """Somebody presses Ctrl-C at its n-th answer."""

    def __init__(self, num_answers: int) -> None:
        super().__init__()
        self.num_answers = num_answers

    def predict(self, observations: list[Observation], seeds: list[int]) -> list[ActionChunk]:
        if len(self.batch_sizes) == self.num_answers:
            raise KeyboardInterrupt
        return super().predict(observations, seeds)


def flags(folder: Path, **changes) -> EvaluationFlags:
    return EvaluationFlags(**({"pretrained_checkpoint": "toy", "num_trials_per_task": 3, "num_envs": 1, "local_log_dir": folder} | changes))


def evaluate(config: EvaluationFlags, policy: ToyPolicy | None = None, simulator: ToySimulator | None = None):
    return run_evaluation(config, Benchmark("Toy", "METAWORLD", simulator or ToySimulator(), TASKS, lambda: policy or ToyPolicy()))


def rows(folder: Path) -> list[dict]:
    return read_journal(folder / JOURNAL_FILE)[1]


def test_an_interrupted_evaluation_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    whole = evaluate(flags(tmp_path / "whole"))
    policy = Interrupted(num_answers=6)
    with pytest.raises(KeyboardInterrupt):
        evaluate(flags(tmp_path / "parts"), policy)
    done = rows(tmp_path / "parts")
    assert 0 < len(done) < 6
    assert (tmp_path / "parts" / "report.html").exists()  # what there is so far
    second = ToyPolicy()
    parts = evaluate(flags(tmp_path / "parts", num_envs=2, save_video="failures"), second)  # flags without influence may change
    assert len(second.batch_sizes) == sum(row["num_queries"] for row in rows(tmp_path / "parts")[len(done) :])
    assert [(r.task, r.index, r.success, r.num_steps) for r in parts.main_run] == [
        (r.task, r.index, r.success, r.num_steps) for r in whole.main_run
    ]
    assert len(parts.main_run[0].pictures) == 2  # also of episodes of the first half


def test_the_bar_counts_the_planned_episodes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(ToyPolicy):
        def predict(self, observations: list[Observation], seeds: list[int]) -> list[ActionChunk]:
            return [ActionChunk(np.zeros((4, 2))) for _ in observations]

    shown: list[dict[str, str]] = []
    monkeypatch.setattr(run_module.tqdm, "set_postfix", lambda bar, said, refresh: shown.append(said))

    def play(tasks: list[str], policy: ToyPolicy, number: int) -> None:
        config = flags(tmp_path, num_trials_per_task=number)
        run_evaluation(config, Benchmark("Toy", "METAWORLD", ToySimulator(), tasks, lambda: policy))

    play(["left"], Blind(), 3)
    play(["left", "right"], ToyPolicy(), 1)
    assert shown == [{"none": "0%"}] * 3 + [{"none": "50%"}]  # two of the episodes of the first call are not among those of the second


def test_a_finished_evaluation_plays_nothing_and_loads_no_policy(tmp_path: Path) -> None:
    first = evaluate(flags(tmp_path))

    def load() -> ToyPolicy:
        raise AssertionError("the policy was loaded")

    again = run_evaluation(flags(tmp_path), Benchmark("Toy", "METAWORLD", ToySimulator(broken=True), TASKS, load))
    assert again.runs == first.runs
    more = evaluate(flags(tmp_path, num_trials_per_task=4))
    assert len(more.main_run) == 8
    assert len(rows(tmp_path)) == 8


def test_episodes_are_recorded_step_by_step_and_what_was_played_without_is_played_again(tmp_path: Path) -> None:
    plain = evaluate(flags(tmp_path, control="none,grey", num_trials_per_task=2))
    crash = tmp_path / "crash"
    crash.touch()
    wanted = {"control": "none,grey", "num_trials_per_task": 2, "with_expert": True, "record": True}
    policy = ToyPolicy()
    recorded = evaluate(flags(tmp_path, **wanted), policy, ToySimulator(kill_file=str(crash)))  # a worker is killed in an episode
    assert len(policy.batch_sizes) >= sum(result.num_queries for result in recorded.main_run), "none was recorded: all are played"
    for run in ("none", "grey"):
        found = [[(r.task, r.index, r.success, r.num_steps) for r in report.runs[run]] for report in (plain, recorded)]
        assert found[0] == found[1], "recording changes no outcome"
    assert not any(result.recording for result in recorded.runs["grey"]), "what a control shows is no data"
    for result in (*recorded.main_run, *recorded.runs["expert"]):
        assert result.recording
        by, with_chunk = ("expert", False) if result.run == "expert" else ("policy", True)
        recording = read_recording(Path(result.recording))
        assert (recording.num_steps, recording.instruction) == (result.num_steps, INSTRUCTIONS[result.task])
        said = recording.attributes
        assert (said["success"], said["seed"], said["task"], said["episode"]) == (result.success, 7, result.task, result.index)
        assert (said["robot_platform"], said["control_hz"], said.get("checkpoint")) == ("METAWORLD", 10.0, "toy" if with_chunk else None)
        np.testing.assert_allclose(recording.proprio[1:, 0], np.cumsum(recording.actions[:-1, 0]), rtol=1e-6)  # before each action
        with h5py.File(result.recording) as file:
            assert set(file["rollout/commanded_by"][()]) == {by.encode()}
            chunks = 1 + np.arange(result.num_steps) // 4 if with_chunk else np.zeros(result.num_steps)
            np.testing.assert_array_equal(file["rollout/chunk"], chunks)
    assert not list((tmp_path / "recordings").rglob(".*")), "nothing is left of the worker that was killed"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "recordings").rglob("*.hdf5")}
    assert len(before) == 8
    evaluate(flags(tmp_path, **wanted), simulator=ToySimulator(broken=True))  # plays nothing
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "recordings").rglob("*.hdf5")} == before


def test_other_settings_are_refused_until_told_to_restart(tmp_path: Path) -> None:
    evaluate(flags(tmp_path, num_trials_per_task=1))
    with pytest.raises(JournalError, match=r"seed was 7, is 8.*--local_log_dir.*--restart True"):
        evaluate(flags(tmp_path, num_trials_per_task=1, seed=8))
    evaluate(flags(tmp_path, num_trials_per_task=1, seed=8, restart=True))
    assert [row["seed"] for row in rows(tmp_path)] == [8, 8]


def test_another_checkpoint_in_the_same_folder_is_another_evaluation(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(bytes(200_000))
    before = fingerprint(checkpoint)
    config = flags(tmp_path / "log", pretrained_checkpoint=checkpoint, num_trials_per_task=1)
    evaluate(config)
    for name in ("README.md", "curves.png", "metrics.jsonl", ".gitattributes", "manifest.json"):  # what people and later versions add
        (checkpoint / name).write_bytes(b"for people")
    assert fingerprint(checkpoint) == before
    (checkpoint / "weights").write_bytes(bytes(199_999) + b"x")
    assert fingerprint(checkpoint) != before
    with pytest.raises(JournalError, match="checkpoint_content was"):
        evaluate(config)


@pytest.mark.parametrize("place", ["eval", "."])
def test_an_evaluation_may_lie_in_its_checkpoints_folder(tmp_path: Path, place: str) -> None:
    """What it had left there was taken for a part of the policy, so that no evaluation of it went on."""
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "lora_adapter").mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"1")
    config = flags(checkpoint / place, pretrained_checkpoint=checkpoint, num_trials_per_task=1)
    evaluate(config)
    assert len(evaluate(replace(config, num_trials_per_task=2)).main_run) == 4
    before = fingerprint(checkpoint)
    (checkpoint / "lora_adapter" / "adapter_config.json").write_text("{}")
    assert fingerprint(checkpoint) != before


def test_the_same_checkpoint_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slash at its end was another evaluation, and so were the shards of two machines."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    config = flags(tmp_path / "log", pretrained_checkpoint="checkpoint")
    evaluate(replace(config, num_trials_per_task=1, shard="1/2"))
    evaluate(replace(config, num_trials_per_task=1, shard="2/2", pretrained_checkpoint="checkpoint/"))
    (tmp_path / "checkpoint").rename(tmp_path / "moved")
    report = evaluate(replace(config, num_trials_per_task=2, pretrained_checkpoint=tmp_path / "moved"))
    assert (len(report.main_run), report.num_missing) == (4, 0)
    (tmp_path / "moved" / "weights").write_bytes(b"2")
    with pytest.raises(JournalError, match=r"another evaluation \(checkpoint_content was '\w+', is '\w+'\)"):
        evaluate(replace(config, pretrained_checkpoint=tmp_path / "moved"))


def test_other_starts_under_the_same_name_and_another_commit_of_a_hub_policy_are_another_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, commit = tmp_path / "metainfo.json", ["1" * 40]
    states.write_text("{}")
    monkeypatch.setattr("prismatic.policy.checkpoint.loading.resolve_folder", lambda name, **_: Path("/hub/snapshots") / commit[0])

    def play(**changes: Any) -> None:
        benchmark = Benchmark("Toy", "METAWORLD", ToySimulator(), ["left"], ToyPolicy, files={"initial_states_path": states})
        run_evaluation(flags(tmp_path / "eval", pretrained_checkpoint="me/policy", **changes), benchmark)

    play()
    states.write_text('{"left": {}}')
    with pytest.raises(JournalError, match="initial_states_path_content was"):
        play()
    states.write_text("{}")
    commit[0] = "2" * 40
    with pytest.raises(JournalError, match="checkpoint_content was"):
        play()
    play(restart=True)


def test_the_time_of_a_part_is_not_that_of_the_whole(tmp_path: Path) -> None:
    """An evaluation that went on, or a shard, stood in the report as if all its episodes had taken so long."""

    def stages(**changes: Any) -> list[str]:
        return list(evaluate(flags(tmp_path, **changes)).timings_s)

    assert stages(num_trials_per_task=1) == ["load the policy", "play the episodes"]
    assert stages(num_trials_per_task=3) == ["load the policy", "play the episodes (of this call: 4 of 6)"]
    assert stages(num_trials_per_task=3) == ["play the episodes (of this call: 0 of 6)"]
    assert stages(num_trials_per_task=1, seed=8, restart=True, shard="1/2")[1:] == ["play the episodes (of this call: 1 of 2)"]


def test_warnings_of_what_was_played_before_stay_in_the_report(tmp_path: Path) -> None:
    evaluate(flags(tmp_path))
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "warnings": ["the cameras are exchanged"]}))
    evaluate(flags(tmp_path))  # nothing is left to play
    assert json.loads(path.read_text())["warnings"] == ["the cameras are exchanged"]
    evaluate(flags(tmp_path, restart=True))
    assert json.loads(path.read_text())["warnings"] == []


def test_a_line_cut_short_is_dropped_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    evaluate(flags(tmp_path, num_trials_per_task=2))
    path = tmp_path / JOURNAL_FILE
    complete = path.read_text()
    path.write_text(complete[:-20])
    assert len(rows(tmp_path)) == 3
    assert len(evaluate(flags(tmp_path, num_trials_per_task=2)).main_run) == 4
    assert len(path.read_text().splitlines()) == 5
    path.write_text(complete.replace('"task"', "task", 1))
    with pytest.raises(JournalError, match="line 2 is no JSON"):
        evaluate(flags(tmp_path, num_trials_per_task=2))
    for damage, said in (
        (("{", "\udcff{"), "line 1 is no JSON"),  # bytes that are no text
        (('{"settings": {', '{"settings": [{'), "line 1 is no JSON"),
        ((complete.splitlines()[0], '{"settings": [1]}'), "does not begin with the settings"),
        ((complete.splitlines()[0], "[]"), "does not begin with the settings"),
        (('"index": 0', '"index": [0]'), "line [2-5] is no row of a journal"),
        (('"num_steps"', '"num_stops"'), "line 2 is no row of a journal"),
    ):
        path.write_bytes(complete.replace(*damage, 1).encode(errors="surrogateescape"))
        with pytest.raises(JournalError, match=rf"episodes\.jsonl.* {said}.*with --restart True"):
            read_journals(tmp_path)


def test_a_journal_that_is_gone_is_not_begun_again_without_its_settings(tmp_path: Path) -> None:
    """As where another process forgot it meanwhile (--restart True): the folder could not be read any more."""
    result = evaluate(flags(tmp_path, num_trials_per_task=1)).main_run[0]
    settings = read_journals(tmp_path)[0]
    playing = Journal(tmp_path, settings, shard=Shard(1, 2))
    Journal(tmp_path, settings, restart=True)
    with pytest.raises(JournalError, match=r"shard-1-of-2\.jsonl is gone: .* another process has begun anew with --restart True"):
        playing.add(result)
    assert read_journals(tmp_path) == (settings, [])


def test_an_evaluation_that_played_nothing_leaves_the_folder_free(tmp_path: Path) -> None:
    Journal(tmp_path, {"batch_size": 1})
    Journal(tmp_path, {"batch_size": 2})
    assert read_journal(tmp_path / JOURNAL_FILE)[0] == {"batch_size": 2}


def test_an_episode_whose_simulator_died_twice_is_played_again_next_time(tmp_path: Path) -> None:
    broken = evaluate(flags(tmp_path, num_trials_per_task=1), simulator=ToySimulator(broken=True))
    assert all("the toy is broken" in (result.error or "") for result in broken.main_run)
    repaired = evaluate(flags(tmp_path, num_trials_per_task=1))
    assert [result.success for result in repaired.main_run] == [True, True]
    assert len(rows(tmp_path)) == 4
    assert len(Journal(tmp_path, read_journal(tmp_path / JOURNAL_FILE)[0]).results) == 2


def test_failures_bring_what_the_policy_saw(tmp_path: Path) -> None:
    report = evaluate(flags(tmp_path, control="wrong_instruction", num_trials_per_task=2))
    assert not any(result.success for result in report.main_run)
    assert all(len(result.failure_frames) == 6 for result in report.main_run)
    sheet = np.asarray(Image.open(tmp_path / "failures.png"))
    assert sheet.std() > 10
    assert 'href="failures.png"' in (tmp_path / "report.html").read_text()
    evaluate(flags(tmp_path / "good", num_trials_per_task=1))
    assert not (tmp_path / "good" / "failures.png").exists()
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["wrong_instruction"]["left"]["num_successes"] == 0


def test_a_long_sheet_shows_every_task_and_an_old_one_goes(tmp_path: Path) -> None:
    frames = (np.zeros((32, 32, 3), np.uint8),) * 6

    def failure(task: str, index: int) -> EpisodeResult:
        return EpisodeResult("none", task, index, 7, f"do {task}", False, 9, 2, 1.0, 1.0, failure_frames=frames)

    failures = [failure(task, index) for task in ("a", "b", "c") for index in range(20)]
    chosen = choose_rows(failures, 7)
    assert [(result.task, result.index) for result in chosen] == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("c", 0), ("c", 1)]
    path = write_contact_sheet(failures, tmp_path)
    assert path is not None
    assert Image.open(path).width > 2 * 6 * 32  # two columns
    assert write_contact_sheet([], tmp_path) is None
    assert not path.exists()


def test_a_policy_of_another_robot_is_refused_before_anything_is_played() -> None:
    image = ImageRecipe(size=28, jpeg_round_trip=True, center_crop=True)
    libero = PolicySpec(get_robot_platform("LIBERO"), ("primary", "wrist"), image, "arm", HeadSpec(use_proprio=True))
    check_policy("run", libero, "LIBERO", ("primary", "wrist"))
    with pytest.raises(ValueError, match=r"run drives LIBERO .7 action, 8 proprio dimensions: dx, .*METAWORLD has 4 and 4"):
        check_policy("run", libero, "METAWORLD", ("primary", "wrist"))
    with pytest.raises(ValueError, match=r"run drives LIBERO .*BRIDGE has 7 and 7"):
        check_policy("run", libero, "BRIDGE", ("primary", "wrist"))
    with pytest.raises(ValueError, match="run needs the cameras primary, wrist; LIBERO has no wrist"):
        check_policy("run", libero, "LIBERO", ("primary",))


@pytest.mark.parametrize("shard", ["", "1/2"])
def test_what_somebody_else_keeps_in_the_folder_outlives_a_restart(tmp_path: Path, shard: str) -> None:
    """The folders pictures/ and failures/ were removed with all that they held, also where no evaluation had been."""
    mine = tmp_path / "pictures" / "holidays.png"
    mine.parent.mkdir()
    mine.touch()
    config = flags(tmp_path, num_trials_per_task=1, num_pictures=1)
    evaluate(replace(config, restart=True))
    assert len(list(tmp_path.rglob("episode_*.png"))) == 2
    evaluate(replace(config, restart=True, seed=8, num_pictures=0, shard=shard))
    assert set((tmp_path / "pictures").rglob("*.png")) == {mine}


def test_pictures_of_an_episode_as_it_was_before_are_not_shown_for_it(tmp_path: Path) -> None:
    result = evaluate(flags(tmp_path, num_trials_per_task=1, num_pictures=1)).main_run[0]
    settings = read_journals(tmp_path)[0]
    assert result.pictures
    Journal(tmp_path, settings).add(replace(result, pictures=()))  # played again, by a call without --num_pictures
    assert [item.pictures for item in Journal(tmp_path, settings).results if item.task == result.task] == [()]


@pytest.mark.parametrize("shard", ["", "1/1", "1/2"])
def test_videos_of_forgotten_episodes_do_not_lie_beside_those_of_the_episodes_to_come(tmp_path: Path, shard: str) -> None:
    """Their names say how an episode ended: of one that ended otherwise the folder showed both, a success and a failure."""
    mine = tmp_path / "videos" / "left" / "mine.mp4"
    evaluate(flags(tmp_path, num_trials_per_task=2, save_video="all"))
    assert len(list(tmp_path.rglob("*.mp4"))) == 4
    mine.touch()
    (tmp_path / "videos" / "right" / "episode_000_seed_7_success.mp4").unlink()  # by a person
    report = evaluate(flags(tmp_path, num_trials_per_task=1, seed=8, save_video="first_1", restart=True, shard=shard))
    assert set(tmp_path.rglob("*.mp4")) == {mine, *(Path(result.video) for result in report.main_run if result.video)}
    evaluate(flags(tmp_path, num_trials_per_task=1, seed=8, restart=True, shard=shard))
    assert set(tmp_path.rglob("*.mp4")) == {mine}


def test_bad_flags_name_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--policy is 'me'"):
        flags(tmp_path, policy="me")
    with pytest.raises(ValueError, match="--use_wandb True needs --wandb_project"):
        flags(tmp_path, use_wandb=True)


def test_another_wrong_instruction_is_another_episode(tmp_path: Path) -> None:
    """With more tasks the words most like a task's own may be others; rows of both counted as one control."""
    simulator, config = ToySimulator(), flags(tmp_path, control="none,wrong_instruction", num_trials_per_task=1)

    def play(*tasks: str) -> dict[str, str]:
        report = run_evaluation(config, Benchmark("Toy", "METAWORLD", simulator, list(tasks), ToyPolicy))
        return {result.task: result.instruction for result in report.runs["wrong_instruction"]}

    assert play("left", "jump") == {"left": "leap", "jump": "walk to the left"}
    played = len(rows(tmp_path))
    assert play("left", "jump", "right") == {"left": "walk to the right", "jump": "walk to the left", "right": "walk to the left"}
    added = [(row["run"], row["task"]) for row in rows(tmp_path)[played:]]
    assert sorted(added) == [("none", "right"), ("wrong_instruction", "left"), ("wrong_instruction", "right")]


def test_videos_that_come_too_late_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    played = evaluate(flags(tmp_path, num_trials_per_task=2)).main_run
    evaluate(flags(tmp_path, num_trials_per_task=2, save_video="first_1"))
    assert "2 episodes were played before without the videos that --save_video first_1 asks for; --restart True" in caplog.text
    caplog.clear()
    evaluate(flags(tmp_path, num_trials_per_task=2, save_video="failures"))
    num_failures = sum(not result.success for result in played)
    assert (f"{num_failures} episodes were played before" in caplog.text) == bool(num_failures)
    caplog.clear()
    for _ in range(2):
        evaluate(flags(tmp_path / "filmed", num_trials_per_task=2, save_video="all"))
    assert "without the videos" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "expert"}, r"--control is 'expert', expected one of \['none', 'grey', 'wrong_instruction'\]"),
        ({"control": "none,gray"}, "--control is 'gray'"),
        ({"num_control_trials_per_task": 0}, "--num_control_trials_per_task is 0, must be at least 1"),
        (
            {"policy": "expert", "control": "grey"},
            "--control is grey, which is for a checkpoint's .*leave it out with --policy expert",
        ),
        ({"policy": "expert", "delay_steps": "4"}, "--delay_steps is 4, which is for a checkpoint's policy"),
        ({"policy": "expert", "num_open_loop_steps": 4}, "--num_open_loop_steps is 4, which is for a checkpoint's policy"),
    ],
)
def test_flags_that_would_do_nothing_or_something_else_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A control called expert played the scripted expert, under the checkpoint's title."""
    with pytest.raises(ValueError, match=message):
        flags(tmp_path, **changes)


def test_a_task_that_is_named_twice_is_played_once() -> None:
    from experiments.robot.metaworld.run_metaworld_eval import EvalConfig, make_benchmark

    config = EvalConfig(policy="expert", task_names=["faucet-open", "button-press-topdown", "faucet-open", "faucet-open-v3"])
    assert make_benchmark(config).tasks == ["faucet-open", "button-press-topdown"]
    with pytest.raises(ValueError, match="--task_names is empty; pass at least one task"):
        EvalConfig(policy="expert", task_names=[])


@pytest.mark.parametrize("changes", [{"policy": "expert"}, {"with_expert": True}])
def test_an_expert_that_does_not_exist_is_told_before_anything_is_played(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Each of its episodes crashed twice and counted as a failure."""
    with pytest.raises(ValueError, match="the toy has no expert"):
        evaluate(flags(tmp_path / "eval", **changes), simulator=ToySimulator(has_expert=False))
    assert not (tmp_path / "eval").exists()


def test_numbers_below_what_can_be_are_refused_before_anything_is_played(tmp_path: Path) -> None:
    """Nothing can be drawn from a negative seed: every episode crashed and counted as a failure."""
    from experiments.robot.metaworld.run_metaworld_eval import EvalConfig

    with pytest.raises(ValueError, match="--seed is -1, must be at least 0"):
        evaluate(flags(tmp_path, seed=-1))
    assert not (tmp_path / JOURNAL_FILE).exists()
    with pytest.raises(ValueError, match="--image_size is 0; it must be at least 1"):
        EvalConfig(policy="expert", image_size=0)
    with pytest.raises(ValueError, match="--image_size is 0; it must be at least 1 pixel"):
        RecordingOptions(tmp_path, pictures={"image_size": 0})
    with pytest.raises(ValueError, match="--save_video is 'first_²', expected none, failures, all or first_<number>"):
        evaluate(flags(tmp_path, save_video="first_²"))


@pytest.mark.parametrize(
    "content", ["hello", "{}", '[{"stage": "record"}]', '[{"stage": 1, "command": "make demo", "seconds": 2}]', "[null]"]
)
def test_a_file_of_stages_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "stages.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"--stages_file .*stages\.json (cannot be read|is no list of stages)"):
        evaluate(flags(tmp_path, stages_file=path))


def test_starts_of_which_none_is_left_are_told(tmp_path: Path) -> None:
    """robustness.py ended in a stack trace; the script said that a shard had nothing to play."""
    benchmark = Benchmark("Toy", "METAWORLD", ToySimulator(), TASKS, ToyPolicy, episode_numbers=lambda task, count: [])
    with pytest.raises(ValueError, match="no task has a start whose number is below --num_trials_per_task 3; choose more"):
        run_evaluation(flags(tmp_path), benchmark)


def test_a_policy_that_cannot_be_loaded_forgets_nothing(tmp_path: Path) -> None:
    """A typing error beside --restart True cost the episodes that were there."""
    evaluate(flags(tmp_path, num_trials_per_task=1))
    before = (tmp_path / JOURNAL_FILE).read_text()

    def missing() -> ToyPolicy:
        raise ValueError("toi is neither a folder nor a Hub id")

    config = flags(tmp_path, num_trials_per_task=1, restart=True, pretrained_checkpoint="toi")
    with pytest.raises(ValueError, match="toi is neither a folder nor a Hub id"):
        run_evaluation(config, Benchmark("Toy", "METAWORLD", ToySimulator(), TASKS, missing))
    assert (tmp_path / JOURNAL_FILE).read_text() == before
    assert len(evaluate(replace(config, pretrained_checkpoint="toy")).main_run) == 2
