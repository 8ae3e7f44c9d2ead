"""Data sets that are lists of others, and how often their episodes are shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import pytest
from rlds_writer import make_episode, write_dataset
from rollout_files import OPTIONS, load, manifest, shown, write_rollout

from prismatic.doctor.data import check_data
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.inspection.page import inspect_dataset
from prismatic.vla.datasets.manifest import Part, read_manifest, write_manifest
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.training_data import load_training_data
from prismatic.vla.diagnosis import Status
from prismatic.vla.rollout_record import Commander


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    """Three rollouts: a success, a failure, a success with an intervention."""
    write_rollout(tmp_path / "rollouts" / "a.hdf5", 1.0)
    write_rollout(tmp_path / "rollouts" / "b.hdf5", 2.0, length=4, success=False)
    write_rollout(tmp_path / "rollouts" / "c.hdf5", 3.0, by=Commander.PERSON)
    return tmp_path / "rollouts"


def test_a_manifest_joins_sets_of_any_kind_and_copies_nothing(tmp_path: Path, rollouts: Path) -> None:
    write_dataset(tmp_path / "data", "metaworld_demo", {"train": [make_episode(5, seed=0, size=16)], "val": [make_episode(2, size=16)]})
    other = write_rollout(tmp_path / "elsewhere" / "d.hdf5", 4.0)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    path = tmp_path / "sets" / "manifest.json"
    write_manifest(path, "metaworld_demo", [Part(tmp_path / "data" / "metaworld_demo"), Part(rollouts), Part(other.parent)])
    assert sorted(item for item in tmp_path.rglob("*") if item.is_file()) == sorted([*before, path])
    data = load(path, val_fraction=0.1)
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (5 + 3 + 4 + 3 + 3, 2)
    assert list(data.statistics) == ["metaworld_demo"]
    part = data.train.parts[0]
    for number in range(5, len(data.train)):  # pictures and numbers of the same step
        value = float(part.index.proprio[part.locate(number)[0]][0])
        assert abs(float(part.frames(number).mean()) - 10 * value) < 1.5, number
        assert str(int(value)) in "1234"
    assert data.train.origin(5).recording == str(rollouts / "a.hdf5")
    inspection = inspect_dataset(resolve_datasets(str(path), tmp_path)[0])
    assert len(inspection.view.episodes) == 5
    assert inspection.strips


def test_success_only_and_interventions_twice(tmp_path: Path, rollouts: Path) -> None:
    weights = {"not success": 0, "num_person_steps > 0": 2}
    path = manifest(tmp_path, {"path": "rollouts", "weights": weights})
    data = load(path)
    assert shown(data) == {1.0: 1.0, 3.0: 2.0}
    assert data.weights == {"metaworld_demo": {"0": 1, "1": 1, "2": 1}}
    assert data.statistics["metaworld_demo"]["num_trajectories"] == 2, "what is never shown counts in no statistic"
    (tmp_path / "weights.json").write_text(json.dumps(weights))
    plain = manifest(tmp_path, {"path": "rollouts"})
    assert shown(load(plain, episode_weights=str(tmp_path / "weights.json"))) == {1.0: 1.0, 3.0: 2.0}
    assert shown(load(plain, episode_weights="success")) == {1.0: 1.0, 3.0: 1.0}
    assert shown(load(plain, episode_weights="num_person_steps")) == {3.0: 3.0}
    (tmp_path / "weights.json").write_text(
        json.dumps({"metaworld_demo": {"b.hdf5": 0.5}, "task == none": 9} | {"num_person_steps >= 3": 0})
    )
    with pytest.raises(ValueError, match="has no column 'task'"):
        load(plain, episode_weights=str(tmp_path / "weights.json"))
    (tmp_path / "weights.json").write_text(json.dumps({"metaworld_demo": {"b.hdf5": 0.5}, "num_person_steps >= 3": 0}))
    assert shown(load(plain, episode_weights=str(tmp_path / "weights.json"))) == {1.0: 1.0, 2.0: 0.5}


def test_episodes_weights_files_and_manifests_within_manifests(tmp_path: Path, rollouts: Path) -> None:
    manifest(tmp_path, {"path": "rollouts", "episodes": ["a.hdf5", "not success"], "weight": 0.5}, {"path": "rollouts/c.hdf5", "weight": 3})
    found = shown(load(tmp_path / "manifest.json"))
    assert found.pop(3.0) == 3.0
    assert list(found) == [1.0, 2.0]
    assert all(abs(rate - 4 / 7) < 0.1 for rate in found.values()), "of 3.5 samples of the rest a pass draws 4"
    (tmp_path / "outer").mkdir()
    outer = manifest(tmp_path / "outer", {"path": "../manifest.json", "weight": 2})
    assert shown(load(outer)) == {1.0: 1.0, 2.0: 1.0, 3.0: 6.0}
    assert [part.weight for part in read_manifest(outer).parts] == [1.0, 6.0]


def test_files_that_are_listed_are_all_that_is_read(tmp_path: Path, rollouts: Path) -> None:
    (rollouts / "z.hdf5").write_bytes(b"cut")  # of the same folder, and not listed
    path = manifest(tmp_path, {"path": "rollouts/c.hdf5"}, {"path": "rollouts/a.hdf5"}, {"path": "rollouts/b.hdf5", "weight": 2})
    data = load(path)
    assert data.train.parts[0].index.num_episodes == 3
    assert shown(data) == {1.0: 1.0, 2.0: 2.0, 3.0: 1.0}
    assert [(part.file, part.weight) for part in read_manifest(path).parts] == [("c.hdf5", 1.0), ("a.hdf5", 1.0), ("b.hdf5", 2.0)]
    (tmp_path / "copy").mkdir()
    write_manifest(tmp_path / "copy" / "manifest.json", "metaworld_demo", read_manifest(path).parts)
    assert read_manifest(tmp_path / "copy" / "manifest.json").parts == read_manifest(path).parts
    with pytest.raises(ValueError, match=r"lists rollouts/a.hdf5 twice; give it a weight of 2"):
        load(manifest(tmp_path, {"path": "rollouts/a.hdf5"}, {"path": "rollouts/a.hdf5"}))
    rows = ({"path": "rollouts/a.hdf5"}, {"path": "rollouts/b.hdf5"}, {"path": "rollouts/c.hdf5", "weights": {"sucess > 0": 1}})
    with pytest.raises(ValueError, match=r"manifest.json, recordings 2: .*rollouts/c.hdf5\) has no column 'sucess'"):
        load(manifest(tmp_path, *rows))
    told = {"path": "rollouts/c.hdf5", "instructions": {"*": "pull"}}
    index = load(manifest(tmp_path, {"path": "rollouts/a.hdf5"}, told)).train.parts[0].index
    assert [index.instructions[number] for number in index.instruction_ids[::3]] == ["push", "pull"]


def test_an_edited_list_of_files_is_read_as_it_stands_now(tmp_path: Path, rollouts: Path) -> None:
    def listed(**more: dict[str, Any]) -> Path:
        return manifest(tmp_path, *({"path": f"rollouts/{name}.hdf5", **more.get(name, {})} for name in "abc"))

    assert shown(load(listed(c={"weight": 2}))) == {1.0: 1.0, 2.0: 1.0, 3.0: 2.0}
    assert shown(load(listed(b={"weight": 0}, c={"weight": 0}))) == {1.0: 1.0}
    for told in ("ac", "bc", "c"):
        index = load(listed(**{name: {"instructions": {"*": f"pull {name}"}} for name in told})).train.parts[0].index
        texts = dict(zip(map(float, index.proprio[:, 0]), (index.instructions[number] for number in index.instruction_ids), strict=True))
        assert texts == {float(number): f"pull {name}" if name in told else "push" for number, name in enumerate("abc", 1)}


def test_a_recording_that_moves_to_another_folder_is_what_that_folder_says(tmp_path: Path) -> None:
    root = tmp_path / "metaworld_demo"
    for number, name in enumerate(("open/a", "open/b", "shut/c"), 1):
        write_rollout(root / f"{name}.hdf5", float(number))
    specs = resolve_datasets("metaworld_demo", tmp_path)
    assert load_training_data(specs, OPTIONS).val is None
    (root / "val").mkdir()
    (root / "shut/c.hdf5").rename(root / "val/c.hdf5")
    data = load_training_data(specs, DatasetOptions(**{**vars(OPTIONS), "val_fraction": 0.1}))
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (6, 3)
    assert data.train.parts[0].index.names[-1].endswith("val/c.hdf5")


def test_a_listed_file_is_what_its_folders_say(tmp_path: Path, rollouts: Path) -> None:
    write_rollout(tmp_path / "set" / "val" / "v.hdf5", 5.0)
    told = write_rollout(tmp_path / "set" / "task" / "t.hdf5", 6.0)
    with h5py.File(told, "a") as file:
        del file.attrs["language_instruction"]
    (tmp_path / "set" / "instruction.txt").write_text("lift it")
    path = manifest(tmp_path, {"path": "set/val/v.hdf5"}, {"path": "set/task/t.hdf5"}, {"path": "rollouts/a.hdf5"})
    data = load(path, val_fraction=0.1)
    assert data.val is not None
    assert shown(data) == {1.0: 1.0, 6.0: 1.0}
    assert len(data.val) == 3
    assert set(data.train.parts[0].index.instructions) == {"push", "lift it"}


def test_names_do_not_depend_on_the_manifest_that_was_read_first(tmp_path: Path, rollouts: Path) -> None:
    (tmp_path / "sets").mkdir()
    names = [load(manifest(folder, {"path": str(rollouts)})).train.parts[0].index.names for folder in (tmp_path / "sets", tmp_path)]
    assert names == [tuple(f"{base}/{name}.hdf5" for name in "abc") for base in (rollouts, "rollouts")]


def test_pictures_of_equal_files_in_two_folders_are_kept_apart(tmp_path: Path) -> None:
    """Whole seconds of tar, or a store without times: name, size and time are the same."""
    keys = []
    for number, folder in enumerate(("one", "two")):
        path = write_rollout(tmp_path / folder / "a.hdf5", 1.0 + number)
        os.utime(path, (1, 1))
        keys.append(load(manifest(tmp_path, {"path": f"{folder}/a.hdf5"})).train.parts[0].index.frame_keys)
    assert not set(keys[0]) & set(keys[1])


def test_links_to_one_recording_are_that_recording(tmp_path: Path, rollouts: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "z.hdf5").symlink_to(rollouts / "a.hdf5")
    with pytest.raises(ValueError, match=r"lists linked/z.hdf5 twice"):
        load(manifest(tmp_path, {"path": "rollouts"}, {"path": "linked/z.hdf5"}))
    blob = rollouts / "b.hdf5"
    blob.rename(tmp_path / "0123abcd")
    blob.symlink_to(tmp_path / "0123abcd")
    write_manifest(tmp_path / "copy.json", "metaworld_demo", [Part(rollouts / "b.hdf5")])
    assert [part.file for part in read_manifest(tmp_path / "copy.json").parts] == ["b.hdf5"]
    assert shown(load(tmp_path / "copy.json")) == {2.0: 1.0}


def test_a_damaged_file_in_a_list_can_be_left_out(tmp_path: Path, rollouts: Path) -> None:
    (rollouts / "z.hdf5").write_bytes(b"cut")
    damaged = {"path": "rollouts/z.hdf5"}
    with pytest.raises(ValueError, match=r"z\.hdf5: cannot be read as HDF5"):
        load(manifest(tmp_path, {"path": "rollouts/a.hdf5"}, damaged))
    assert shown(load(manifest(tmp_path, {"path": "rollouts/a.hdf5"}, {**damaged, "weight": 0}))) == {1.0: 1.0}


def test_folders_called_after_days_and_times_are_no_versions(tmp_path: Path, rollouts: Path) -> None:
    for number, name in enumerate(("2026.11.29", "2026.11.30", "2026-11-30T10:22:05"), 7):
        write_rollout(tmp_path / "days" / name / "a.hdf5", float(number))
    rows = [{"path": "days"}, {"path": "days/2026-11-30T10:22:05/a.hdf5"}, {"path": "days/2026-11-30T10:22:05"}]
    for row, values in zip(rows, ([7.0, 8.0, 9.0], [9.0], [9.0]), strict=True):
        assert list(shown(load(manifest(tmp_path, row)))) == values


def test_many_listed_files_need_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prismatic.vla.datasets.hdf5.frames._MAX_OPEN_FILES", 4)
    rows = [{"path": str(write_rollout(tmp_path / f"{number}.hdf5", 1.0 + number)), "weight": 1.0 + number % 2} for number in range(12)]
    part = load(manifest(tmp_path, *rows)).train.parts[0]
    before = len(os.listdir("/proc/self/fd"))
    for sample in range(len(part)):
        value = float(part.index.proprio[part.locate(sample)[0]][0])
        assert abs(float(part.frames(sample).mean()) - 10 * value) < 1.5
    assert len(os.listdir("/proc/self/fd")) - before <= 4


def test_a_plain_data_set_takes_weights_too(tmp_path: Path, rollouts: Path) -> None:
    rollouts.rename(tmp_path / "metaworld_demo")
    specs = resolve_datasets("metaworld_demo", tmp_path)
    data = load_training_data(specs, DatasetOptions(**{**vars(OPTIONS), "episode_weights": "success"}))
    assert shown(data) == {1.0: 1.0, 3.0: 1.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"path": "nowhere"}, r"recordings 0: .*nowhere does not exist; correct the path"),
        ({"path": "rollouts", "weight": -1}, r"the weight of 'weight' is -1; it must be a number, 0 \(left out\) or more"),
        ({"path": "rollouts", "weights": {"success": "often"}}, r"the weight of 'success' is 'often'"),
        ({"path": "rollouts", "weights": {"success": float("nan")}}, r"the weight of 'success' is nan"),
        ({"path": "rollouts", "weights": [1, 2, 3]}, r'"weights": expected an object'),
        ({"path": "rollouts", "wieght": 2}, r"'wieght' is unknown; did you mean weight"),
        ({"path": "rollouts", "episodes": []}, r'"episodes" must be a list of one or more texts'),
        ({"path": "rollouts", "episodes": ["d.hdf5"]}, r"'d.hdf5' is neither a column nor an episode; by file: known: rollouts/a.hdf5"),
        ({"path": "rollouts", "weights": {"sucess > 0": 1}}, r"rollouts/a.hdf5\) has no column 'sucess' \(did you mean success"),
        ({"path": "rollouts", "weights": {"success": 0, "not success": 0}}, r"no episode left.*a weight above 0"),
        ({"path": "rollouts", "weight": 1e9}, r"come to 1e\+09 .* at most 1000 times"),
        ({"path": "rollouts", "weights": {"not robot_platform": 0}}, "the text 'METAWORLD'; compare it: robot_platform == METAWORLD"),
        ({"path": "rollouts", "weights": {"success == yes": 0}}, r"recordings 0: 'success == yes': success is compared with 'yes'"),
        (
            {"path": "rollouts", "weights": {"robot_platform == 'METAWORLD'": 0}},
            r"compares with \"'METAWORLD'\", which no recording says; did you mean METAWORLD\?",
        ),
        ({"path": "rollouts", "episodes": ["robot_platform != METAWORD"]}, r"compares with 'METAWORD', which no recording says"),
        (
            {"path": "rollouts", "instructions": {"robot_platform == ALOHA": "pull"}},
            r"\"instructions\": .* with 'ALOHA', which no",
        ),
        ({"path": "rollouts/a.hdf5", "episodes": ["b.hdf5"]}, r'a\.hdf5 is a file; write .*"episodes": \["a\.hdf5, demo_3"\]'),
        ({"path": "notes.txt"}, r"notes\.txt is no recording; expected a folder of recordings"),
        ({"path": "manifest.json"}, "list each other in a circle"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_one_line(tmp_path: Path, rollouts: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "notes.txt").touch()
    path = manifest(tmp_path, row)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_rule_that_a_file_of_weights_has_twice_is_named(tmp_path: Path, rollouts: Path) -> None:
    """The last weight counted, without a word: an episode that was left out came back."""
    (tmp_path / "weights.json").write_text('{"a.hdf5": 0, "success": 2, "a.hdf5": 5}')
    with pytest.raises(ValueError, match=r"weights.json cannot be read \('a.hdf5' stands there twice; keep one\)"):
        load(manifest(tmp_path, {"path": "rollouts"}), episode_weights=str(tmp_path / "weights.json"))


def test_doctor_and_inspection_take_a_manifest(tmp_path: Path, rollouts: Path) -> None:
    path = manifest(tmp_path, {"path": "rollouts"})
    for finding in (check_data(path, None, None)[0], check_data(tmp_path, str(path), None)[0]):
        assert (finding.status, finding.subject) == (Status.OK, "metaworld_demo"), finding
        assert "manifest of recordings, 3 episodes" in finding.found
    (broken,) = check_data(manifest(tmp_path, {"path": "nowhere"}), None, None)
    assert "recordings 0: " in broken.found
    with pytest.raises(ValueError, match="the weights of data set 'metaworld_demo' leave no episode"):
        inspect_dataset(resolve_datasets(str(manifest(tmp_path, {"path": "rollouts", "weight": 0})), tmp_path)[0])


def test_what_is_no_manifest_is_named(tmp_path: Path, rollouts: Path) -> None:
    with pytest.raises(ValueError, match=r"the manifest .*none.json cannot be read \(.*No such file"):
        load(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list.json is no manifest: expected"):
        load(tmp_path / "list.json")
    (tmp_path / "list.json").write_text(
        '{"dataset": "metaworld_demo", "recordings": [{"path": "a"}], "recordings": [{"path": "rollouts"}]}'
    )
    with pytest.raises(ValueError, match=r"list.json cannot be read \('recordings' stands there twice; put all recordings into one list"):
        load(tmp_path / "list.json")  # the first list was lost without a word
    (tmp_path / "list.json").write_text('{"dataset": "metaworld_demo", "recordings": [{"path": "rollouts"}], "weights": {"success": 0}}')
    with pytest.raises(ValueError, match=r"list.json: 'weights' stands beside \"recordings\", where it means nothing; write it into each"):
        load(tmp_path / "list.json")
    with pytest.raises(ValueError, match=r"'metaworld_dmo' is neither an entry.*did you mean metaworld_demo"):
        load(manifest(tmp_path, {"path": "rollouts"}, dataset="metaworld_dmo"))
    (tmp_path / "link").symlink_to(rollouts)
    with pytest.raises(ValueError, match=r"lists link/a.hdf5 twice"):
        load(manifest(tmp_path, {"path": "rollouts"}, {"path": "link"}))
    (tmp_path / "link").unlink()
    twice = manifest(tmp_path, {"path": "rollouts"}, {"path": "rollouts/a.hdf5"})
    with pytest.raises(ValueError, match=r"lists rollouts/a.hdf5 twice; give it a weight of 2"):
        load(twice)


def test_rollouts_of_another_robot_or_layout_of_actions_are_refused_until_left_out(tmp_path: Path, rollouts: Path) -> None:
    write_rollout(rollouts / "d.hdf5", 4.0, action_names=("x [m]", "y [m]", "z [m]", "gripper"), robot_platform="OTHER")
    path = manifest(tmp_path, {"path": "rollouts"})
    with pytest.raises(ValueError, match=r"d.hdf5\) was recorded on OTHER with the actions x \[m\], .*\(1 of 4 episodes\); leave them out"):
        load(path)
    assert 4.0 not in shown(load(manifest(tmp_path, {"path": "rollouts", "weights": {"robot_platform == OTHER": 0}})))


def test_recordings_without_success_are_named_before_training(tmp_path: Path, rollouts: Path) -> None:
    with h5py.File(rollouts / "b.hdf5", "a") as file:
        del file.attrs["success"]
    path = manifest(tmp_path, {"path": "rollouts"})
    with pytest.raises(ValueError, match=r"rollouts/b.hdf5\) has no column 'success'.*record with --record True, add the attribute"):
        load(path, episode_weights="success")
    with h5py.File(rollouts / "b.hdf5", "a") as file:
        file.attrs["success"] = float("nan")
    with pytest.raises(ValueError, match=r"no column 'success' \(others have; what is neither a finite number nor a short text"):
        load(path, episode_weights="success")
    with h5py.File(rollouts / "b.hdf5", "a") as file:
        file.attrs["success"] = -1.0
    with pytest.raises(ValueError, match=r"b.hdf5\) has the weight -1.0; it must be a number, 0 \(left out\) or more"):
        load(path, episode_weights="success")


def test_a_damaged_recording_is_refused_for_its_damage_until_it_is_left_out(tmp_path: Path, rollouts: Path) -> None:
    (rollouts / "z.hdf5").write_bytes(b"cut")
    success = {"not success": 0}
    for row, weights in (({"weights": success}, None), ({}, "success")):
        with pytest.raises(ValueError, match=r"z\.hdf5: cannot be read as HDF5"):
            load(manifest(tmp_path, {"path": "rollouts", **row}), episode_weights=weights)
    path = manifest(tmp_path, {"path": "rollouts", "weights": {"z.hdf5": 0, **success}})
    assert shown(load(path)) == shown(load(path, episode_weights="success")) == {1.0: 1.0, 3.0: 1.0}
