"""Rules about single steps, trimmed ends and other instructions in a manifest."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rollout_files import ROBOT, load, manifest, shown, write_rollout

from prismatic.acting.recorder import EpisodeRecorder, RecordedStep
from prismatic.cli import parse_flags
from prismatic.commands.make_manifest import ManifestConfig, main
from prismatic.vla.datasets.episode_rules import check_texts
from prismatic.vla.datasets.inspection.ranges import check_pauses
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.manifest import Part, read_manifest, write_manifest
from prismatic.vla.datasets.opening import open_index
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.training_data import TrainingData
from prismatic.vla.rollout_record import Commander
from prismatic.vla.types import Observation

BY = (Commander.POLICY, Commander.POLICY, Commander.PERSON, Commander.PERSON, Commander.POLICY)


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_steps(path: Path, motions: list[float], by: tuple[Commander, ...] = BY, text: str = "push") -> Path:
    """A rollout whose state counts its steps and whose hand moves by `motions`."""
    with EpisodeRecorder(path, text) as recorder:
        for step, (motion, who) in enumerate(zip(motions, by, strict=True)):
            picture = np.full((16, 16, 3), 5 * step, np.uint8)
            seen = Observation({"primary": picture, "wrist": picture}, text, np.full(4, step))
            recorder.add(RecordedStep(seen, np.array([motion, motion, 0, 1.0]), who))
        recorder.close({"action_names": ROBOT.action_names, "robot_platform": "METAWORLD", "success": True})
    return path


def shares(data: TrainingData) -> list[float]:
    part = data.train.parts[0]
    return [1.0] * len(part) if part.shares is None else part.shares.tolist()


def test_interventions_are_shown_twice_and_what_the_policy_did_before_never(tmp_path: Path) -> None:
    write_steps(tmp_path / "rollouts" / "a.hdf5", [0.1] * 5)
    write_steps(tmp_path / "rollouts" / "b.hdf5", [0.2] * 5, (Commander.POLICY,) * 5)
    path = manifest(tmp_path, {"path": "rollouts", "weights": {"by person": 2}})
    assert shares(load(path)) == [1, 1, 2, 2, 1, 1, 1, 1, 1, 1]
    data = load(manifest(tmp_path, {"path": "rollouts", "weights": {"by policy": 0}}))
    assert shares(data) == [0, 0, 1, 1, 0], "an episode without any step to show is in no split"
    assert data.weights == {"metaworld_demo": {"0": 1, "1": 1}}
    assert data.step_weights == {"metaworld_demo": {"0": 8, "1": 2}}
    sampler = data.train.sampler(seed=0)
    keys = [key.sample for key, _ in zip(sampler, range(8), strict=False)]
    assert set(keys) == {2, 3}
    chunk = data.train.parts[0].actions(3)
    assert chunk.shape == (8, 4), "the future of a step that is shown goes on with those that are not"


def test_the_same_rules_of_a_file(tmp_path: Path) -> None:
    write_steps(tmp_path / "rollouts" / "a.hdf5", [0.1] * 5)
    (tmp_path / "weights.json").write_text(json.dumps({"by  person": 3, "success": 0.5}))
    assert shares(load(manifest(tmp_path, {"path": "rollouts"}), episode_weights=str(tmp_path / "weights.json"))) == [
        0.5,
        0.5,
        1.5,
        1.5,
        0.5,
    ]


def test_idle_beginnings_and_ends_are_trimmed_and_pauses_stay(tmp_path: Path) -> None:
    write_steps(tmp_path / "rollouts" / "a.hdf5", [0, 0.0005, 0.3, 0, 0.2, 0], (*BY, Commander.POLICY))
    write_steps(tmp_path / "rollouts" / "b.hdf5", [0.3, 0.3, 0.1, 0.2, 0.1])
    weights = {"idle start": 0, "idle end": 0}
    assert shares(load(manifest(tmp_path, {"path": "rollouts", "weights": weights}))) == [0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1]


def test_pauses_longer_than_a_chunk_are_told_of_and_left_out(tmp_path: Path) -> None:
    motions = [0.0] * 9 + [0.3] + [0.0] * 10 + [0.3] + [0.0] * 7 + [0.3] + [0.0] * 9  # a chunk has 8 actions
    write_steps(tmp_path / "rollouts" / "a.hdf5", motions, (Commander.POLICY,) * len(motions))
    write_steps(tmp_path / "rollouts" / "b.hdf5", [0.3] * 5)
    data = load(manifest(tmp_path, {"path": "rollouts", "weights": {"idle middle": 0}}))
    assert [step for step, share in enumerate(shares(data)) if not share] == [10, 11, 12], "the others of a pause lead on"
    (spec,) = resolve_datasets(str(manifest(tmp_path, {"path": "rollouts"})), tmp_path)
    (finding,) = check_pauses(DatasetView.of(spec, open_index(spec)))
    assert finding.found.endswith("later it goes on: in 1 of 2 (a chunk has 8 steps), 0")


def test_instructions_are_replaced_without_touching_the_recordings(tmp_path: Path) -> None:
    first = write_steps(tmp_path / "rollouts" / "a.hdf5", [0.1] * 5)
    write_steps(tmp_path / "rollouts" / "b.hdf5", [0.1] * 5)
    before = first.read_bytes()
    data = load(manifest(tmp_path, {"path": "rollouts", "instructions": {"b.hdf5": "pull"}}))
    assert [data.train.parts[0].instruction(sample) for sample in (0, 5)] == ["push", "pull"]
    data = load(manifest(tmp_path, {"path": "rollouts", "instructions": {"*": "turn"}}))
    assert {data.train.parts[0].instruction(sample) for sample in range(10)} == {"turn"}
    assert first.read_bytes() == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"weights": {"by person": 2}}, r"recordings 0: no recording here says who commanded its steps \(\'by person\' asks\)"),
        ({"weights": {"by person": -1}}, r"the weight of 'by person' is -1; it must be a number, 0 \(left out\) or more"),
        ({"weights": {"by robot": 2}}, "'by robot' is neither a column nor an episode"),
        ({"weights": {"by persn": 2}}, r"'by persn' is neither a column nor an episode; did you mean by person or .*\? by file: "),
        ({"weights": {"sucess": 2}}, r"'sucess' is neither a column nor an episode; did you mean success\? by file: "),
        ({"instructions": {"c.hdf5": "pull"}}, "'c.hdf5' is neither a column nor an episode; by file: .*a.hdf5"),
        ({"instructions": {"*": " "}}, r'"instructions": expected an object such as \{"\*": "open the drawer"\}'),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write_rollout(tmp_path / "rollouts" / "a.hdf5", 1.0)
    with h5py.File(path, "a") as file:
        del file["rollout"]
    with pytest.raises(ValueError, match=message):
        load(manifest(tmp_path, {"path": "rollouts", **row}))


def test_a_command_merges_drops_trims_and_relabels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_steps(tmp_path / "one" / "a.hdf5", [0, 0.1, 0.1, 0.1, 0.1])
    write_steps(tmp_path / "one" / "b.hdf5", [0.1] * 5)
    write_steps(tmp_path / "two" / "c.hdf5", [0.1] * 5, (Commander.EXPERT,) * 5)
    output = tmp_path / "all.json"
    flags: dict[str, Any] = {"recordings": [str(tmp_path / "one"), str(tmp_path / "two")], "dataset_name": "metaworld_demo"}
    main(ManifestConfig(output, **flags, drop=["b.hdf5"], weights={"by expert": 2}, instructions={"c.hdf5": "pull"}, trim_idle=True))
    assert f"wrote {output}: 2 sets" in capsys.readouterr().out
    data = load(output)
    assert shares(data) == [0, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert [data.train.parts[0].instruction(sample) for sample in (0, 5)] == ["push", "pull"]
    assert read_manifest(output).parts[0].weights == {"b.hdf5": 0, "idle start": 0, "idle end": 0}
    stored = output.read_bytes()
    write_steps(tmp_path / "one" / "more" / "a.hdf5", [0.1] * 5)
    for rules, message in (
        ({"drop": ["a.hdf5"]}, r"'a\.hdf5' fits episodes of 2 files"),
        ({"drop": ["success"]}, "leave no episode; give one a weight above 0"),
        ({"weights": {"success": -1.0}}, "--weights: the weight of 'success' is -1.0"),
        ({"instructions": {"success == 0": "pull"}}, "'success == 0' fits no episode"),
        ({"recordings": [str(tmp_path / "nowhere")]}, "--recordings: .*nowhere does not exist"),
        ({"recordings": [str(output), str(tmp_path / "two" / "c.hdf5")]}, rf"the manifest for {output} lists two/c\.hdf5 twice"),
    ):
        with pytest.raises(ValueError, match=message):
            main(ManifestConfig(output, **{"recordings": [str(output)]} | rules))
    assert output.read_bytes() == stored
    flags["recordings"] = [str(tmp_path / "two")]
    main(ManifestConfig(tmp_path / "later.json", **flags, weights={"by person": 2}))  # nobody has taken over yet
    assert "'by person' fits no step so far" in caplog.text
    (tmp_path / "later.json").unlink()
    with pytest.raises(ValueError, match=r"'d\.hdf5' is neither a column nor an episode"):
        main(ManifestConfig(output, [str(output)], drop=["d.hdf5"]))
    assert output.read_bytes() == stored
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["all.json"]
    with pytest.raises(ValueError, match="--dataset_name is missing: name the registry entry"):
        main(ManifestConfig(output, [str(tmp_path / "one")]))


def test_rules_reach_the_files_of_a_list_that_they_are_about(tmp_path: Path) -> None:
    for number, name in enumerate("abc", 1):
        write_rollout(tmp_path / "r" / f"{name}.hdf5", float(number), success=name != "b")
    write_rollout(tmp_path / "s" / "d.hdf5", 4.0)
    files, first = [str(tmp_path / "r" / f"{name}.hdf5") for name in "abc"], tmp_path / "first.json"
    for recordings in ([*files, str(tmp_path / "s")], [str(first)]):  # the files themselves, then a manifest of them
        for rules in ({"weights": {"not success": 0}}, {"drop": ["b.hdf5"]}):
            main(ManifestConfig(tmp_path / "all.json", recordings, "metaworld_demo", **rules))
            assert shown(load(tmp_path / "all.json")) == {1.0: 1.0, 3.0: 1.0, 4.0: 1.0}
        main(ManifestConfig(tmp_path / "all.json", recordings, "metaworld_demo", instructions={"not success": "pull"}))
        part = load(tmp_path / "all.json").train.parts[0]
        assert [part.instruction(sample) for sample in range(0, 12, 3)] == ["push", "pull", "push", "push"]
        main(ManifestConfig(first, recordings, "metaworld_demo"))


def test_the_documented_commands_fit_a_demo_and_its_first_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("python scripts/make_manifest.py")]
    assert len(commands) == 2
    for task in ("faucet-open", "faucet-close"):  # demonstrations that say who acts nowhere, and a policy that nobody had to correct
        path = write_rollout(tmp_path / "runs" / "demo" / "recordings" / task / "episode_000007.hdf5", 1.0, task=task)
        with h5py.File(path, "a") as file:
            del file["rollout"]
        name = f"round_1/recordings/policy/{task}/episode_000007_seed_7.hdf5"
        write_rollout(tmp_path / "runs" / name, 2.0, task=task)
    write_manifest(tmp_path / "runs" / "round_1" / "manifest.json", "metaworld_demo", [Part(tmp_path / "runs/round_1/recordings/policy")])
    monkeypatch.chdir(tmp_path)
    for flags in commands:
        main(parse_flags(ManifestConfig, flags))
    data = load("runs/mended.json")
    assert data.weights == {"metaworld_demo": {"0": 1, "1": 3}}
    assert set(data.train.parts[0].index.instructions) == {"push", "turn the faucet right"}


def test_new_instructions_are_the_ones_that_count(tmp_path: Path) -> None:
    """One for episodes that had been mended before stood before the earlier rule for all, which took its place again."""
    write_steps(tmp_path / "one" / "a.hdf5", [0.1] * 5)
    output = tmp_path / "all.json"
    main(ManifestConfig(output, [str(tmp_path / "one")], "metaworld_demo", instructions={"a.hdf5": "pull", "*": "turn"}))
    assert load(output).train.parts[0].instruction(0) == "turn"
    main(ManifestConfig(output, [str(output)], instructions={"a.hdf5": "push"}))
    assert load(output).train.parts[0].instruction(0) == "push"


def test_a_text_of_another_data_set_is_no_slip(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with h5py.File(write_steps(tmp_path / name / "a.hdf5", [0.1] * 5), "a") as file:
            file.attrs["task"] = name
    index = {name: open_index(resolve_datasets(str(manifest(tmp_path, {"path": name})), tmp_path)[0]) for name in ("one", "two")}
    check_texts(["task == one", "task != two"], list(index.values()), "--episode_weights")
    with pytest.raises(ValueError, match="--episode_weights: 'task == one' compares with 'one', which no recording says; known: two"):
        check_texts(["task == one"], [index["two"]], "--episode_weights")


def test_an_episode_that_is_named_by_its_number_stays_that_episode_in_another_set(tmp_path: Path) -> None:
    """A manifest that was listed behind another set left out another episode, without a word."""

    def kept(path: Path) -> set[str]:
        data = load(path).train
        return {str((path.parent / data.origin(sample).recording).relative_to(tmp_path)) for sample in range(len(data))}

    for name in ("one/a.hdf5", "one/more/a.hdf5", "one/more/b.hdf5", "two/c.hdf5"):
        write_steps(tmp_path / name, [0.1] * 5)
    first, both = tmp_path / "first.json", tmp_path / "elsewhere" / "both.json"
    main(ManifestConfig(first, [str(tmp_path / "one")], "metaworld_demo", drop=["train 2"], instructions={"train 0": "pull"}))
    part = read_manifest(first).parts[0]
    assert (part.weights, part.instructions) == ({"more/b.hdf5": 0}, {"one/a.hdf5": "pull"})  # "a.hdf5" would not be clear
    main(ManifestConfig(both, [str(tmp_path / "two"), str(first)]))
    assert kept(both) == {"two/c.hdf5", "one/a.hdf5", "one/more/a.hdf5"}
    assert [load(both).train.parts[0].instruction(sample) for sample in (0, 5, 10)] == ["push", "pull", "push"]
    write_manifest(first, "metaworld_demo", [Part(tmp_path / "one", weights={"train 2": 0})])  # as a person may write it
    assert kept(first) == {"one/a.hdf5", "one/more/a.hdf5"}
    message = r"first\.json has the rule 'train 2', which counts episodes; .* Name the episode by its file"
    with pytest.raises(ValueError, match=message):
        main(ManifestConfig(both, [str(tmp_path / "two"), str(first)]))
    both.write_text(json.dumps({"dataset": "metaworld_demo", "recordings": [{"path": "../two"}, {"path": "../first.json"}]}))
    with pytest.raises(ValueError, match=message):
        load(both)
    main(ManifestConfig(both, [str(first), str(tmp_path / "two")]))  # the numbers are the same
    assert kept(both) == {"two/c.hdf5", "one/a.hdf5", "one/more/a.hdf5"}
