"""Changed scenes: what each axis changes, how much, and what it leaves as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from toy_simulator import INSTRUCTIONS, ToyPolicy, ToySimulator

from experiments.robot.aloha.tasks import ALOHA_TASKS
from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags, outcome_settings
from experiments.robot.evaluation.run import run_evaluation
from experiments.robot.metaworld.tasks import METAWORLD_TASKS
from experiments.robot.recording.script import RecordFlags, record
from experiments.robot.simulators.changed import PerturbedEnvironment, PerturbedSimulator, perturbed
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.paraphrases import choose_paraphrase, paraphrases
from experiments.robot.simulators.perturbations import AXES, CAMERA_ORDER, PICTURE_AXES, SEVERITIES, Perturbation, parse_perturbations
from experiments.robot.simulators.scene_look import SceneLook, free_axes
from experiments.robot.simulators.sensor_changes import change_picture
from prismatic.vla.datasets.hdf5.recording import read_recording

SPEC, OTHER = EpisodeSpec("left", 0, 7), EpisodeSpec("left", 1, 7)
SCENE = """
<mujoco>
  <visual><headlight diffuse="0.3 0.3 0.3"/></visual>
  <worldbody>
    <light pos="0 0 2" dir="0 0 -1" diffuse="0.6 0.6 0.6"/>
    <camera name="fixed" pos="1 0 1" xyaxes="0 1 0 -1 0 1" fovy="45"/>
    <geom type="box" size="0.2 0.2 0.2"/>
  </worldbody>
</mujoco>
"""


def test_what_is_asked_for_is_read_and_described() -> None:
    changes = parse_perturbations("camera:2, light:1")
    assert changes == (Perturbation("camera", 2), Perturbation("light", 1))
    assert parse_perturbations("") == ()
    assert "turned by 8 degrees" in changes[0].describe()
    assert "joints by 0.2 rad in all" in Perturbation("robot", 2).describe()
    assert "the hand by 4 cm" in Perturbation("robot", 2).describe()
    for axis in AXES:
        described = [Perturbation(axis, severity).describe() for severity in SEVERITIES]
        assert len(set(described)) == 3
        assert not any("{" in text for text in described)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camra:1", "axis 'camra'.*camera"),
        ("camera:4", "camera:4: the severity must be 1, 2 or 3"),
        ("camera", "expected axis:severity"),
        ("camera:2@", "camera:2@'; expected axis:severity"),
        ("camera:1,camera:2", "names an axis twice"),
    ],
)
def test_what_cannot_be_asked_for_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationFlags(pretrained_checkpoint="toy", perturb=text)


@pytest.mark.parametrize("axis", PICTURE_AXES)
def test_pictures_get_worse_with_the_severity_and_are_the_same_again(axis: str) -> None:
    rows, columns = np.mgrid[:64, :64]
    picture = np.stack([rows * 3, columns * 3, ((rows // 4 + columns // 4) % 2) * 120], axis=2).astype(np.uint8)
    kept = picture.copy()

    def changed(severity: int, episode: EpisodeSpec = SPEC, slot: str = "primary", step: int = 3) -> np.ndarray:
        return change_picture(picture, Perturbation(axis, severity), episode, slot, step)

    distances = [float(np.abs(changed(severity).astype(int) - picture).mean()) for severity in SEVERITIES]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert np.array_equal(changed(2), changed(2))
    assert np.array_equal(picture, kept)
    assert changed(1).dtype == np.uint8
    if axis == "noise":
        assert not np.array_equal(changed(2), changed(2, step=4))
        assert not np.array_equal(changed(2), changed(2, slot="wrist"))
    if axis == "brightness":  # the episodes of one task are not all darker
        assert len({changed(3, EpisodeSpec("left", index, 7)).mean() > picture.mean() for index in range(12)}) == 2


def test_every_task_that_is_named_here_has_ten_other_ways_to_be_said() -> None:
    instructions = {task.instruction for task in (*METAWORLD_TASKS.values(), *ALOHA_TASKS.values())}  # a moving target is told alike
    for instruction in instructions:
        found = paraphrases(instruction)
        assert len({*found, instruction}) == 11, instruction
    everything = [text for instruction in instructions for text in paraphrases(instruction)]
    assert len(set(everything)) == len(everything)  # no words mean two tasks
    libero = "pick up the black bowl on the stove and place it on the plate"
    assert len({*paraphrases(libero), libero}) == 11
    assert paraphrases(libero)[3] == "grab the black bowl on the stove and put it on the plate"
    drawn = [choose_paraphrase(libero, severity, np.random.default_rng(0)) for severity in SEVERITIES]
    assert [paraphrases(libero).index(text) // 4 for text in drawn] in ([0, 0, 2], [0, 1, 2], [0, 0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="no other words are known for 'walk to the left'"):
        perturbed(ToySimulator(), (Perturbation("language", 1),), ["left"])


def test_a_change_that_stays_is_the_same_in_every_episode_and_recordings_say_it(tmp_path: Path) -> None:
    (stays,), (moves,) = parse_perturbations("light:2@1"), parse_perturbations("light:2")
    assert (str(stays), stays.draw, moves.draw) == ("light:2@1", 1, None)
    assert "alike in every episode" in stays.describe()
    numbers = [[change.rng(spec).random() for spec in (SPEC, OTHER)] for change in (stays, moves, replace(stays, draw=2))]
    assert numbers[0][0] == numbers[0][1] != numbers[2][0]
    assert numbers[1][0] != numbers[1][1]
    flags = RecordFlags(tmp_path, num_episodes=1, noise_scale=0.0, num_workers=1, perturb="light:2@1,noise:3")
    record(flags, ToySimulator(), ["left"], (0,))
    recording = read_recording(tmp_path / "left" / "episode_000000.hdf5")
    assert recording.attributes["perturb"] == "light:2@1,noise:3"
    assert recording.images["primary"][0].std() > 0  # the toy's own pictures have one colour
    with pytest.raises(ValueError, match="--perturb camera:1@4: the toy cannot change its camera"):
        record(replace(flags, perturb="camera:1@4"), ToySimulator(), ["left"], (0,))


def test_an_axis_that_a_simulator_cannot_change_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="--perturb camera:1: the toy cannot change its camera; it knows light, noise"):
        PerturbedSimulator(ToySimulator(), (Perturbation("camera", 1),))


def test_scene_changes_go_to_the_environment_and_the_others_to_what_it_shows() -> None:
    changes = (Perturbation("light", 2), Perturbation("noise", 1))
    simulator = PerturbedSimulator(ToySimulator(), changes)
    environment, plain = simulator.make_environment("left"), ToySimulator().make_environment("left")
    environment.reset(SPEC)
    plain.reset(SPEC)
    assert isinstance(environment, PerturbedEnvironment)
    assert environment.inner.changes == changes[:1]  # type: ignore[attr-defined]
    assert environment.inner.goal == plain.goal  # type: ignore[attr-defined]  # the same start
    assert environment.observe().images["primary"].std() > 0  # the toy's own pictures have one colour
    assert np.array_equal(environment.observe().images["primary"], environment.observe().images["primary"])
    first = environment.observe().images["primary"]
    environment.step(np.zeros(2))
    assert not np.array_equal(environment.observe().images["primary"], first)
    assert simulator.make_expert(environment).act()[0] == -1.0


def test_pictures_change_in_the_order_of_a_camera_however_it_is_typed() -> None:
    """Both spellings share a journal; noise was blurred away in one of them."""
    assert sorted(CAMERA_ORDER) == sorted(PICTURE_AXES)
    seen = []
    for text in ("blur:3,brightness:1,noise:3,jpeg:3", "jpeg:3,noise:3,blur:3,brightness:1"):
        environment = PerturbedSimulator(ToySimulator(), parse_perturbations(text)).make_environment("left")
        environment.reset(SPEC)
        seen.append(environment.observe().images["primary"])
    plain = ToySimulator().make_environment("left")
    plain.reset(SPEC)
    expected = plain.observe().images["primary"]
    for axis, severity in (("blur", 3), ("brightness", 1), ("noise", 3), ("jpeg", 3)):
        expected = change_picture(expected, Perturbation(axis, severity), SPEC, "primary", 0)
    assert np.array_equal(seen[0], expected)
    assert np.array_equal(seen[1], expected)


@pytest.mark.parametrize(("text", "version"), [("camera:1", 2), ("robot:1@2", 2), ("noise:1,jpeg:1", 2), ("noise:1,light:2", None)])
def test_episodes_of_the_changes_before_do_not_mix_with_those_of_now(tmp_path: Path, text: str, version: int | None) -> None:
    benchmark = Benchmark("Toy", "METAWORLD", ToySimulator(), ["left", "right"], ToyPolicy)
    config = EvaluationFlags(pretrained_checkpoint="toy", perturb=text, local_log_dir=tmp_path)
    assert outcome_settings(config, benchmark).get("perturb_version") == version


def test_words_are_drawn_for_each_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INSTRUCTIONS, "left", "turn the faucet left")
    environment = PerturbedSimulator(ToySimulator(), (Perturbation("language", 2),)).make_environment("left")
    told = []
    for index in (0, 1, 2, 3, 4, 5, 0):
        environment.reset(replace(SPEC, index=index))
        told.append(environment.observe().instruction)
        assert environment.instruction == told[-1]
    assert told[0] == told[-1]
    assert len(set(told)) > 1
    assert set(told) <= set(paraphrases("turn the faucet left")[3:7])


def seen_by(model: object, camera: object) -> tuple[np.ndarray, np.ndarray, float]:
    """(position, forward direction, field of view) of the fixed camera."""
    import mujoco

    axes = np.zeros(9)
    mujoco.mju_quat2Mat(axes, model.cam_quat[0])  # type: ignore[attr-defined]
    return model.cam_pos[0].copy(), -axes.reshape(3, 3)[:, 2], float(model.cam_fovy[0])  # type: ignore[attr-defined]


def test_a_camera_keeps_looking_at_the_middle_and_comes_back() -> None:
    import mujoco

    model = mujoco.MjModel.from_xml_string(SCENE)
    view = mujoco.MjvCamera()
    view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    look = SceneLook(model, view, distance=2**0.5)
    loaded = seen_by(model, view)
    turned = []
    for severity in SEVERITIES:
        change = Perturbation("camera", severity)
        look.apply(SPEC, (change,))
        position, forward, fov = seen_by(model, view)
        away = np.linalg.norm(position)  # the middle of the scene is the origin
        assert np.allclose(position / away, -forward, atol=1e-9)
        assert abs(away / 2**0.5 - 1) == pytest.approx(change.size / 100)
        assert abs(fov / 45 - 1) == pytest.approx(change.size / 100)
        turned.append(np.degrees(np.arccos(forward @ loaded[1])))
        assert turned[-1] == pytest.approx(change.size, rel=0.02)
    assert turned[0] < turned[1] < turned[2]
    look.apply(OTHER, (change,))
    assert not np.allclose(seen_by(model, view)[0], position)  # each episode has its own direction
    look.apply(SPEC, ())
    assert all(np.array_equal(now, before) for now, before in zip(seen_by(model, view), loaded, strict=True))


def test_lights_change_and_come_back_and_so_does_a_free_camera() -> None:
    import mujoco

    model, view = mujoco.MjModel.from_xml_string(SCENE), mujoco.MjvCamera()
    view.azimuth, view.elevation, view.distance = 270.0, -58.0, 1.0
    look = SceneLook(model, view, distance=1.0)
    before = model.light_diffuse.copy(), model.light_dir.copy(), model.vis.headlight.diffuse.copy()
    strength = []
    for severity in SEVERITIES:
        look.apply(SPEC, (Perturbation("light", severity), Perturbation("camera", severity)))
        strength.append(abs(np.log2(model.light_diffuse.mean() / 0.6)))
        assert model.vis.headlight.diffuse.mean() / 0.3 == pytest.approx(model.light_diffuse.mean() / 0.6, rel=1e-5)
        assert np.linalg.norm(model.light_dir[0]) == pytest.approx(1.0)
    assert 0 < strength[0] < strength[1] < strength[2]
    look.apply(SPEC, ())
    after = model.light_diffuse, model.light_dir, model.vis.headlight.diffuse
    assert all(np.array_equal(now, then) for now, then in zip(after, before, strict=True))
    assert (view.azimuth, view.elevation, view.distance) == (270.0, -58.0, 1.0)


def test_a_free_camera_turns_by_what_is_documented_in_every_direction() -> None:
    """About the world's upright it turned by 53 % of it to the sides: one that looks down at 58 degrees."""
    import mujoco

    model, view = mujoco.MjModel.from_xml_string(SCENE), mujoco.MjvCamera()
    view.azimuth, view.elevation, view.distance = 270.0, -58.0, 1.0
    look, before = SceneLook(model, view, distance=1.0), free_axes(270.0, -58.0)
    assert np.allclose(before.T @ before, np.eye(3))
    assert np.allclose(before[:, 0], [-1, 0, 0])  # it looks towards -y, its right hand points to -x
    for severity in SEVERITIES:
        change, sides = Perturbation("camera", severity), []
        for index in range(40):
            look.apply(replace(SPEC, index=index), (change,))
            forward = -free_axes(view.azimuth, view.elevation)[:, 2]
            assert np.degrees(np.arccos(-forward @ before[:, 2])) == pytest.approx(change.size, rel=0.005)
            sides.append(abs(forward @ before[:, 0]))
        assert max(sides) > 0.9 * np.sin(np.radians(change.size))  # some of them nearly all aside


def test_an_evaluation_says_what_was_changed_and_keeps_it_apart(tmp_path: Path) -> None:
    benchmark = Benchmark("Toy", "METAWORLD", ToySimulator(), ["left", "right"], ToyPolicy)
    config = EvaluationFlags(
        pretrained_checkpoint="toy", num_trials_per_task=1, num_envs=1, perturb="noise:1,light:3", local_log_dir=tmp_path, num_pictures=0
    )
    assert outcome_settings(config, benchmark)["perturb"] == ["light:3", "noise:1"]
    assert "perturb" not in outcome_settings(replace(config, perturb=""), benchmark)  # as in journals of earlier versions
    report = run_evaluation(config, benchmark)
    assert [change[:7] for change in report.changes] == ["noise:1", "light:3"]
    page = (tmp_path / "report.html").read_text()
    assert "Changed scenes" in page
    assert "noise of 8 levels" in page
    with pytest.raises(ValueError, match=r"perturb was \['light:3', 'noise:1'\], is None"):
        run_evaluation(replace(config, perturb=""), benchmark)


def test_recordings_of_changed_scenes_say_so(tmp_path: Path) -> None:
    """Those of rollouts did not: among others they could not be told, nor weighed, apart."""
    benchmark = Benchmark("Toy", "METAWORLD", ToySimulator(), ["left"], ToyPolicy)
    said = {"": None, "noise:1,light:3": "light:3,noise:1"}
    for number, (perturb, expected) in enumerate(said.items()):
        known = {"pretrained_checkpoint": "toy", "num_trials_per_task": 1, "num_envs": 1, "num_pictures": 0, "record": True}
        report = run_evaluation(EvaluationFlags(**known, perturb=perturb, local_log_dir=tmp_path / str(number)), benchmark)
        recording = report.main_run[0].recording
        assert recording is not None
        with h5py.File(recording) as file:
            assert file.attrs.get("perturb") == expected
