"""A session of rollouts with a simulated arm, and a person at the keys who is played by the test."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from simulated_arm import NAMES, SimulatedArm
from test_loop import HZ, LIMITS, Policy

from experiments.robot.evaluation import session as session_module
from experiments.robot.evaluation.session import Driver, SessionOptions, drive
from experiments.robot.evaluation.video import BackgroundFilm, VideoWriter, write_mp4
from prismatic.acting.client import RequestRefusedError
from prismatic.acting.execution import ExecutionOptions
from prismatic.acting.limit_sources import ChosenLimits
from prismatic.acting.recorder import RecordingError
from prismatic.acting.robot import RobotError
from prismatic.vla.constants import ActionKind
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.types import Observation
from prismatic.wire.policy_info import PolicyInfo

INFO = PolicyInfo(
    platform="SO101",
    cameras=("primary",),
    num_actions_chunk=10,
    action_names=NAMES,
    action_kinds=(ActionKind.TARGET,) * 6,
    proprio_names=NAMES,
    control_hz=HZ,
    needs_state=True,
    center_crop=True,
    jpeg_round_trip=True,
    unnorm_key="arm",
    demonstrated=Demonstrated((-50.0,) * 6, (50.0,) * 6, (2.0,) * 6, (6.0,) * 6),
)


class Person:
    """Answers every question with the next key, and presses the last ones while the robot acts."""

    is_terminal = True

    def __init__(self, *answers: str, pressed: str = "") -> None:
        self.answers, self.keys = list(answers), list(pressed)

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_: object) -> None: ...
    def forget(self) -> None: ...
    def wait(self, keys: str) -> str:
        return self.answers.pop(0)

    def pressed(self) -> str:
        return self.keys.pop(0) if self.keys else ""


def play(folder: Path, arm: SimulatedArm, person: Person, **options: Any) -> None:
    driver = Driver(Policy(), INFO, ExecutionOptions(8), ChosenLimits(LIMITS, ()))
    drive(arm, driver, SessionOptions(folder / "run", num_rollouts=1, control_hz=HZ, **options), person)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RobotError("no way"), OSError("no bus")], ids=repr)
def test_a_reset_that_is_broken_off_ends_the_motion_that_its_driver_has_begun(tmp_path: Path, error: BaseException) -> None:
    class Homing(SimulatedArm):
        def reset(self, rollout: int) -> None:
            self.calls.append("go home")  # and its driver does so by itself
            raise error

    arm = Homing()
    if isinstance(error, RobotError):
        play(tmp_path, arm, Person("q"))
    else:
        with pytest.raises(type(error)):
            play(tmp_path, arm, Person())
    assert arm.calls == ["connect", "go home", "stop", "disconnect"]


def test_a_stop_that_fails_does_not_hide_what_broke_the_reset_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Dead(SimulatedArm):
        def reset(self, rollout: int) -> None:
            raise ConnectionError("no status packet")

        def stop(self) -> None:
            raise ConnectionError("no port")

    with pytest.raises(ConnectionError, match="no status packet"):
        play(tmp_path, Dead(), Person())
    assert "the robot could not be stopped (ConnectionError: no port); use its emergency stop" in caplog.text


@pytest.mark.parametrize("key", ["q", "s"])
def test_a_recording_that_was_lost_is_told_however_the_rollout_ended(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        num_left_out = 0

        def __init__(self, recorder: object) -> None: ...
        def add(self, step: object) -> None: ...
        def close(self, facts: object) -> None:
            raise RecordingError("rollout_001.hdf5 cannot be written: no space left on device")

    monkeypatch.setattr(session_module, "BackgroundRecorder", Full)
    with pytest.raises(RecordingError, match="no space left"):
        play(tmp_path, SimulatedArm(), Person("c", pressed=f"..{key}"), records=True)
    assert "this rollout is not recorded: rollout_001.hdf5 cannot be written" in caplog.text
    assert (tmp_path / "run" / "rollouts.jsonl").exists() == (key == "s")


def test_a_camera_that_is_late_does_not_cost_the_look_at_where_the_robot_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "_LOOK_AGAIN_S", 0.001)
    arm = SimulatedArm(120.0)  # beyond its limits
    observe, num_looks = arm.observe, [0]

    def observe_late(instruction: str) -> Observation:
        num_looks[0] += 1
        if num_looks[0] <= 7:
            raise TimeoutError("no frame")
        return observe(instruction)

    arm.observe = observe_late  # type: ignore[method-assign]
    play(tmp_path, arm, Person("c", "c", "q"))  # the scene is ready; look again; not so
    assert num_looks == [8]
    assert "gripper is at 120 before the start; its limits are 0 and 100" in caplog.text
    assert arm.calls == ["connect", "disconnect"]
    assert arm.commands == []


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        (lambda seen: replace(seen, images={"wrist": seen.images["wrist"]}), "the robot lacks the camera primary"),
        (lambda seen: replace(seen, proprio=None), "the policy needs a state of 6 numbers"),
        (lambda seen: replace(seen, proprio=seen.proprio[:5]), "the policy needs a state of 6 numbers"),
        (lambda seen: replace(seen, proprio=[None, *seen.proprio[1:]]), "proprio must be one row of finite numbers, found [None"),
        (lambda seen: replace(seen, images={**seen.images, "primary": seen.images["primary"][:0]}), "found uint8 [0, 64, 3]"),
        (lambda _: None, "the robot's observe() returns NoneType, expected prismatic.vla.types.Observation"),
    ],
)
def test_an_observation_that_lacks_something_for_a_moment_holds_the_arm_and_does_not_end_the_session(
    tmp_path: Path, lacking: Callable[[Observation], Observation], reason: str
) -> None:
    arm = SimulatedArm()
    arm.max_steps = 16
    observe, num_looks = arm.observe, [0]

    def blink(instruction: str) -> Observation:
        num_looks[0] += 1
        seen = observe(instruction)
        return lacking(seen) if num_looks[0] == 3 else seen  # the first is before the start

    arm.observe = blink  # type: ignore[method-assign]
    play(tmp_path, arm, Person("c", "s"))
    (row,) = map(json.loads, (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines())
    assert (row["ending"], row["num_steps"], row["failed_observations"]) == ("out of steps", 16, 1)
    assert any(reason in held for held in row["held_ticks"]), row["held_ticks"]


@pytest.mark.parametrize("said", [[None] * 6, ["here"] * 6, None])
def test_a_position_that_is_no_number_before_the_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[Any] | None
) -> None:
    monkeypatch.setattr(session_module, "_LOOK_AGAIN_S", 0.001)
    arm = SimulatedArm()
    arm.max_steps = 8
    position, readings = arm.position, iter(range(10_000))
    # every look has one reading for the state of the observation, which stays sound, and one for the position
    arm.position = lambda: said if 0 < (number := next(readings)) < 4 and number % 2 else position()  # type: ignore
    play(tmp_path, arm, Person("c", "s"))
    assert json.loads((tmp_path / "run" / "rollouts.jsonl").read_text())["ending"] == "out of steps"


def test_an_observation_that_is_none_is_named_before_anything_moves(tmp_path: Path) -> None:
    arm = SimulatedArm()
    arm.observe = lambda _: {"primary": np.zeros((4, 4, 3), np.uint8)}  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ValueError, match=r"the robot's observe\(\) returns dict, expected prismatic.vla.types.Observation"):
        play(tmp_path, arm, Person("c"))
    assert arm.commands == []


def test_two_runs_that_begin_in_the_same_second_get_a_folder_each(tmp_path: Path) -> None:
    for _ in range(3):
        play(tmp_path, SimulatedArm(), Person("q"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2", "run-3"]
    assert all((path / "summary.json").exists() for path in tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        play(tmp_path / "file", SimulatedArm(), Person("q"))


@pytest.mark.parametrize("in_background", [True, False])
def test_a_video_that_cannot_be_written_to_its_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    pytest.importorskip("av")
    write, frames = VideoWriter.write, np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)

    def write_until_full(writer: VideoWriter, frame: np.ndarray) -> None:
        if np.array_equal(frame, frames[-1]):
            assert list(tmp_path.iterdir()), "nothing has been written yet"
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, frame)

    monkeypatch.setattr(VideoWriter, "write", write_until_full)
    if in_background:
        film = BackgroundFilm(VideoWriter(tmp_path / "film.mp4", 10.0))
        for frame in frames:
            film.add(frame)
        with pytest.raises(OSError, match="No space left"):
            film.close(tmp_path / "success.mp4")
    else:
        with pytest.raises(OSError, match="No space left"):
            write_mp4(tmp_path / "film.mp4", list(frames), 10.0)
    assert list(tmp_path.iterdir()) == []


class Judging(SimulatedArm):
    """As a simulator does, it knows whether the task is solved: it is not."""

    def is_solved(self) -> bool:
        return False


@pytest.mark.parametrize("arm", [SimulatedArm(), Judging()], ids=lambda arm: type(arm).__name__)
def test_a_rollout_that_nobody_can_judge_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str], arm: SimulatedArm) -> None:
    arm.max_steps = 8
    play(tmp_path, arm, Person(), is_attended=False, waits_for_person=False, records=True)
    row, summary = (json.loads((tmp_path / "run" / name).read_text()) for name in ("rollouts.jsonl", "summary.json"))
    with h5py.File(tmp_path / "run/recordings/rollout_001.hdf5") as file:
        recorded = {name: bool(file.attrs[name]) for name in ("success",) if name in file.attrs}
    said = capsys.readouterr().out
    if isinstance(arm, Judging):
        assert (row["success"], recorded, summary["num_judged"]) == (False, {"success": False}, 1)
        assert "0 of 1 rollouts succeeded (95 % interval 0-79 %): " in said
    else:
        assert (row["success"], recorded, summary["num_judged"], summary["num_rollouts"]) == (None, {}, 0, 1)
        assert "rollout 1: not judged (out of steps)" in said
        assert "1 played and not judged: " in said
        assert "succeeded (" not in said


class Strict(Policy):
    """A server that answers once and then refuses, as one with too small a --max_body_mb does."""

    def infer(self, observation: Observation, begins: bool = False) -> np.ndarray:
        if self.begun:
            raise RequestRefusedError("the server answered 413: raise --max_body_mb")
        return super().infer(observation, begins)


def test_a_rollout_that_the_server_refuses_is_in_the_log_and_ends_the_session(tmp_path: Path) -> None:
    driver, arm = Driver(Strict(), INFO, ExecutionOptions(8), ChosenLimits(LIMITS, ())), SimulatedArm()
    options = SessionOptions(tmp_path / "run", num_rollouts=3, control_hz=HZ, records=True)
    with pytest.raises(RequestRefusedError, match="413"):
        drive(arm, driver, options, Person("c"))  # type: ignore[arg-type]  # nobody is asked whether it was a success
    (row,) = map(json.loads, (tmp_path / "run/rollouts.jsonl").read_text().splitlines())
    assert (row["success"], row["ending"]) == (None, "refused: the server answered 413: raise --max_body_mb")
    assert row["num_steps"] > 0
    assert arm.calls[-2:] == ["stop", "disconnect"]
    assert json.loads((tmp_path / "run/summary.json").read_text())["num_rollouts"] == 1
