"""Recordings of rollouts: what is in them, that they are whole or absent, and that a person's intervention is in them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from simulated_arm import NAMES, SimulatedArm
from test_loop import HZ, LIMITS, Keys, Policy

from prismatic.acting import recorder as recorder_module
from prismatic.acting.actor import RemoteActor
from prismatic.acting.execution import ChunkExecutor, ExecutionOptions
from prismatic.acting.leader import Leader, check_leader
from prismatic.acting.loop import RealTimeRollout, RolloutPlan
from prismatic.acting.recorder import BackgroundRecorder, EpisodeRecorder, RecordedStep, RecordingError
from prismatic.acting.states import State
from prismatic.vla.datasets.hdf5.layout import find_files
from prismatic.vla.datasets.hdf5.recording import read_recording
from prismatic.vla.datasets.hdf5.source import Hdf5Source
from prismatic.vla.images import decode_image
from prismatic.vla.jpeg_files import encode_jpeg
from prismatic.vla.rollout_record import Commander
from prismatic.vla.types import Observation


def step(number: int, **changes: Any) -> RecordedStep:
    image = np.random.default_rng(number).integers(0, 255, (16, 24, 3), np.uint8)
    seen = Observation({"primary": image, "wrist": image[:8]}, "go", np.array([number, -1.0]))
    return RecordedStep(**{"observation": seen, "action": np.array([number, 0.5]), "by": Commander.POLICY, **changes})


def columns(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {name: stored[()] for name, stored in file["rollout"].items()} | {"action": file["action"][()], **file.attrs}


def test_a_recording_holds_every_step_with_the_pictures_that_the_policy_saw(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rollout_001.hdf5"
    recorder = EpisodeRecorder(path, "pick it up", {"seed": 3, "action_names": ("a [rad]", "b"), "checkpoint": None}, {"primary": "top"})
    steps = [step(number, chunk=1 + number // 2, delay_s=0.04, position=np.array([number, 9.0])) for number in range(4)]
    for item in steps[:3]:
        recorder.add(item)
    recorder.add(step(3, by=Commander.PERSON, mode="intervention", position=np.array([3.0, 9.0])))
    assert not list(path.parent.glob("*.hdf5")), "a file under its name is complete"
    assert recorder.close({"success": True, "ending": "solved"}) == path
    found = columns(path)
    assert found["commanded_by"].tolist() == [b"policy"] * 3 + [b"person"]
    assert found["mode"].tolist() == [b"acting"] * 3 + [b"intervention"]
    assert found["chunk"].tolist() == [1, 1, 2, 0]
    np.testing.assert_allclose(found["delay_s"], [0.04, 0.04, 0.04, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(found["position"], [[number, 9.0] for number in range(4)])
    assert (found["seed"], found["success"], found["num_person_steps"], found["language_instruction"]) == (3, True, 1, "pick it up")
    assert found["action_names"].tolist() == ["a [rad]", "b"]
    assert "checkpoint" not in found
    (episode,) = Hdf5Source(path.parent).episodes()
    assert set(episode.trajectory) == {"action", "observation", "language_instruction", "commanded_by"}, "what a rollout adds is no action"
    assert set(episode.trajectory["observation"]) == {"qpos", "state", "top", "wrist", "wrist_image"}, "and no state"
    np.testing.assert_array_equal(episode.trajectory["action"], [[number, 0.5] for number in range(4)])
    with h5py.File(path) as file:
        for number, item in enumerate(steps):
            stored = decode_image(file["observations/images/top"][number].tobytes())
            np.testing.assert_array_equal(stored, decode_image(encode_jpeg(item.observation.images["primary"])))


def test_names_of_cameras_that_are_usual_are_read_without_an_entry(tmp_path: Path) -> None:
    with EpisodeRecorder(tmp_path / "rollout.hdf5", "go") as recorder:
        recorder.add(step(0))
        recorder.close({"success": False})
    recording = read_recording(tmp_path / "rollout.hdf5")
    assert {name: images.shape for name, images in recording.images.items()} == {"primary": (1, 16, 24, 3), "wrist": (1, 8, 24, 3)}
    assert recording.attributes["success"] == np.False_


def test_what_was_not_closed_is_no_recording_and_is_cleared_away_by_the_next_attempt(tmp_path: Path) -> None:
    path = tmp_path / "rollout.hdf5"
    killed = EpisodeRecorder(path, "go")
    killed.add(step(0))
    (left,) = tmp_path.iterdir()
    left.rename(tmp_path / f".{path.name}.{2**22 + 1}.tmp")  # of a process that is gone
    with pytest.raises(ValueError, match=r"holds no \*.hdf5 file"):
        find_files(tmp_path)
    with EpisodeRecorder(path, "go") as failed:
        failed.add(step(0))  # whatever happens next, nobody closes it
    assert list(tmp_path.iterdir()) == []
    assert EpisodeRecorder(path, "go").close({"success": True}) is None, "nothing happened in it"


def test_steps_that_differ_from_the_first_are_refused(tmp_path: Path) -> None:
    with EpisodeRecorder(tmp_path / "rollout.hdf5", "go") as recorder:
        recorder.add(step(0))
        blind = Observation({"primary": np.zeros((8, 8, 3), np.uint8)}, "go", np.zeros(2))
        with pytest.raises(RecordingError, match=r"step 1 and the first differ in observations/images/wrist"):
            recorder.add(step(1, observation=blind))
        with pytest.raises(RecordingError, match=r"/action has \(3,\) numbers at step 1, \(2,\) before"):
            recorder.add(step(1, action=np.zeros(3)))


def test_a_disk_that_does_not_take_it_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("not a folder")
    recorder = BackgroundRecorder(EpisodeRecorder(tmp_path / "full" / "rollout.hdf5", "go"))
    recorder.add(step(0))
    with pytest.raises(RecordingError, match=r"full/rollout.hdf5 cannot be written: .*(exists|directory)"):
        recorder.close({"success": True})


def test_a_disk_that_becomes_full_costs_the_recording_and_not_the_process(tmp_path: Path) -> None:
    class Full:
        closed = False

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 30_000

        def write(self, data: memoryview) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def fill(recorder: EpisodeRecorder) -> None:
        for number in range(1, 60):
            recorder.add(step(number))
        recorder.close({"success": True})

    for attempt in range(2):  # HDF5, which saw a write fail, ended the process at the next file or at its exit
        with EpisodeRecorder(tmp_path / "rollout.hdf5", "go") as recorder:
            recorder.add(step(0))
            assert recorder._disk is not None
            recorder._disk._file = Full(recorder._disk._file)
            with pytest.raises(RecordingError, match=r"rollout.hdf5 cannot be written: .*No space left"):
                fill(recorder)
        assert list(tmp_path.iterdir()) == [], attempt


def test_steps_for_which_there_is_no_time_are_left_out_and_counted_and_pictures_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_MAX_WAITING", 2)
    may_write = threading.Event()

    class Slow(EpisodeRecorder):
        def add(self, step: RecordedStep) -> None:
            may_write.wait()
            super().add(step)

    recorder = BackgroundRecorder(Slow(tmp_path / "rollout.hdf5", "go"))
    steps = [step(number) for number in range(9)]
    for item in steps:
        recorder.add(item)
        item.observation.images["primary"][:] = 0  # the camera's memory is used again
        item.observation.proprio[:] = 99.0  # and that of the joints
    may_write.set()
    assert 9 - 3 <= recorder.num_left_out <= 9 - 2
    recorder.close({"success": True, "num_left_out": recorder.num_left_out})
    recording = read_recording(tmp_path / "rollout.hdf5")
    assert recording.num_steps == 9 - recorder.num_left_out
    assert recording.images["primary"].std() > 30
    assert recording.proprio.max() < 99.0


class SimulatedLeader(Leader):
    """An arm that a person holds somewhere else than where the robot is."""

    action_names = NAMES

    def __init__(self) -> None:
        self.target: np.ndarray = np.full(6, 20.0)
        self.is_lost = False

    def connect(self) -> None:
        return

    def read(self) -> np.ndarray:
        if self.is_lost:
            raise ConnectionError("no status packet")
        return self.target

    def disconnect(self) -> None:
        return


class RecordedRollout:
    """A rollout with a leader that runs in a thread while the test looks on."""

    def __init__(self, path: Path, leader: SimulatedLeader | None, arm: SimulatedArm | None = None) -> None:
        self.arm, self.keys, self.recorder = arm or SimulatedArm(), Keys(), EpisodeRecorder(path, "put the cube into the bowl")
        self.actor = RemoteActor(Policy(), ChunkExecutor(ExecutionOptions(8, 4, stop_after_s=20.0), LIMITS, HZ, NAMES))
        log = path.with_suffix(".jsonl")
        plan = RolloutPlan(0, self.arm.instruction, 10_000, HZ, log, leader=leader, recorder=self.recorder)
        self.rollout = RealTimeRollout(self.arm, self.actor, self.keys, plan)  # type: ignore[arg-type]
        self.num_unseen_steps = -1
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.num_unseen_steps = self.rollout.run().num_unseen_steps

    def wait_for(self, condition: Any) -> None:
        pause = threading.Event()
        for _ in range(2000):
            if condition():
                return
            pause.wait(0.01)
        raise AssertionError("it never came to that")

    def finish(self) -> dict[str, Any]:
        self.keys.queue.append("s")
        self.thread.join(20)
        self.actor.close()
        path = self.recorder.close({"success": True})
        assert path is not None
        return columns(path)


def test_a_person_takes_over_with_a_leader_smoothly_and_it_is_in_the_record(tmp_path: Path) -> None:
    leader = SimulatedLeader()
    rollout = RecordedRollout(tmp_path / "rollout.hdf5", leader)
    arm, executor = rollout.arm, rollout.actor.executor
    rollout.wait_for(lambda: executor.step > 10)
    rollout.keys.queue.append("t")
    rollout.wait_for(lambda: executor.state is State.INTERVENTION and np.allclose(arm.commands[-1], 20.0))
    leader.is_lost = True
    rollout.wait_for(lambda: "no status packet" in (tmp_path / "rollout.jsonl").read_text())
    leader.target, leader.is_lost = np.full(6, 12.0), False
    rollout.wait_for(lambda: np.allclose(arm.commands[-1], 12.0))
    before = executor.step
    rollout.keys.queue.append("t")
    rollout.wait_for(lambda: executor.step > before + 10)
    found = rollout.finish()

    by = [value.decode() for value in found["commanded_by"]]
    changes = [one for one, other in zip(by, [None, *by], strict=False) if one != other]
    assert changes == ["policy", "person", "policy"]
    assert found["num_person_steps"] == by.count("person") > 5
    is_person = np.array([value == "person" for value in by])
    assert set(found["mode"][is_person]) == {b"intervention"}
    assert set(found["mode"][~is_person]) <= {b"acting", b"approaching"}
    assert (found["chunk"][is_person] == 0).all()
    assert (np.diff(found["chunk"][~is_person]) >= 0).all()
    assert np.isfinite(found["delay_s"][~is_person]).all()
    walking = 0.25 * LIMITS.max_speed / HZ
    jumps = np.abs(np.diff(np.array(arm.commands), axis=0))
    assert (jumps <= LIMITS.max_speed / HZ + 1e-9).all(), "no command jumps, whoever takes over"
    first = int(np.flatnonzero(is_person)[0])
    assert (np.abs(found["action"][first] - found["action"][first - 1]) <= walking + 1e-4).all(), "it walks to the leader"
    sent = {tuple(np.float32(command)) for command in arm.commands}
    assert {tuple(action) for action in found["action"]} <= sent, "what is recorded was commanded"
    assert np.abs(found["position"] - found["action"]).max() < 25, "measured, not commanded"
    assert not np.array_equal(found["position"], found["action"])


def test_without_a_leader_the_key_only_pauses(tmp_path: Path) -> None:
    rollout = RecordedRollout(tmp_path / "rollout.hdf5", None)
    rollout.wait_for(lambda: rollout.actor.executor.step > 3)
    rollout.keys.queue.append("t")
    rollout.wait_for(lambda: rollout.actor.executor.state is State.WAITING)
    rollout.wait_for(lambda: "no leader to take over with" in (tmp_path / "rollout.jsonl").read_text())
    assert set(rollout.finish()["commanded_by"]) == {b"policy"}


def test_a_camera_that_fails_between_two_queries_costs_the_record_that_step_alone(tmp_path: Path) -> None:
    class Flickering(SimulatedArm):
        def observe(self, instruction: str) -> Observation:
            if rollout.actor.executor.step == 3:  # after the command of step 2; the policy is asked from step 4 on
                raise TimeoutError("camera top: no frame for 200 ms")
            return super().observe(instruction)

    rollout = RecordedRollout(tmp_path / "rollout.hdf5", None, Flickering())
    rollout.wait_for(lambda: rollout.actor.executor.step > 12)
    found = rollout.finish()
    assert rollout.num_unseen_steps == 1
    assert len(found["action"]) == rollout.actor.executor.step + rollout.actor.executor.counts.approached - 1


def test_a_leader_of_another_robot_is_refused_before_anything_moves() -> None:
    leader = SimulatedLeader()
    check_leader(leader, NAMES)
    leader.action_names = (*NAMES[:5], "gripper [0-100]")
    with pytest.raises(ValueError, match=r"the leader commands .*gripper \[0-100\], the robot takes .* gripper; names, order and units"):
        check_leader(leader, NAMES)


def test_a_leader_that_does_not_say_what_it_commands_is_told_what_to_write() -> None:
    class Nameless(Leader):
        connect, read, disconnect = SimulatedLeader.connect, SimulatedLeader.read, SimulatedLeader.disconnect

    with pytest.raises(ValueError, match=r"Nameless does not say what it commands; .* action_names = \('shoulder_pan \[deg\]', "):
        check_leader(Nameless(), NAMES)
