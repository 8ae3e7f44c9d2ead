"""A run is resumed with the robot, the cameras and the episodes that it has had, or is told what differs before the model loads."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import ROOT
from survival import make_workplace

from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla import constants
from prismatic.vla.datasets.rlds.oxe import configs

sys.path.append(str(ROOT / "tests" / "unit"))
from rlds_writer import make_episode, write_dataset

DATASET = "metaworld_demo"


def double(trajectory: dict[str, Any]) -> dict[str, Any]:
    """Actions twice as large."""
    return {**trajectory, "action": trajectory["action"] * 2}


def _config(workplace: Path, **flags: Any) -> FinetuneConfig:
    defaults: dict[str, Any] = {
        **{"vla_path": str(workplace / "base"), "data_root_dir": workplace / "data", "dataset_name": DATASET, "run_root_dir": workplace},
        **{"run_id_override": "run", "num_images_in_input": 2, "use_proprio": True, "batch_size": 2, "max_steps": 1, "save_freq": 1},
        **{"num_workers": 0, "lora_rank": 2, "use_val_set": True, "val_fraction": 0.34},
        **{"exclude_episodes": workplace / "excluded.txt", "paraphrases": workplace / "words.json"},
    }
    return FinetuneConfig.from_flags(**defaults | flags)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_workplace(tmp_path_factory.mktemp("resumed_data"))
    for place, text in (("data", "task"), ("renamed", "deed")):
        episodes = [make_episode(6, seed=number, instruction=f"{text} {number}") for number in range(6)]
        write_dataset(folder / place, DATASET, {"train": episodes})
    words = {f"{text} {number}": [f"do {number}"] for text in ("task", "deed") for number in range(6)}
    (folder / "words.json").write_text(json.dumps(words))
    (folder / "excluded.txt").write_text("train 0\n")
    (folder / "other.txt").write_text("train 1\n")
    finetune(_config(folder))
    return folder


def _resume(workplace: Path, **flags: Any) -> None:
    finetune(_config(workplace, resume=True, max_steps=2, **flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"exclude_episodes": "other.txt"},
            r"other \w+ episodes.*; --exclude_episodes left out train 0 \(.*\), now train 1 \(.*restore what",
        ),
        ({"val_fraction": 0.6}, r"other training episodes \(3 then, 2 now\): the position in the data cannot be resumed"),
        ({"data_root_dir": "renamed"}, r"other training episodes, lengths, instructions, paraphrases or weights: the position"),
        ({"optimizer": "adamw_8bit"}, r"--optimizer is 'adamw_8bit', the run in .* was started with 'adamw'"),
        ({"image_aug": False}, r"--image_aug is False, the run in .* was started with True"),
    ],
    ids=["exclusions", "val_fraction", "instructions", "optimizer", "image_aug"],
)
def test_other_flags_or_data_of_the_same_size_are_refused(workplace: Path, flags: dict[str, Any], message: str) -> None:
    places = {name: workplace / value if value in ("other.txt", "renamed") else value for name, value in flags.items()}
    with pytest.raises(ValueError, match=f"(?i)resuming: .*{message}"):
        _resume(workplace, **places)


def test_other_words_in_the_same_file_are_refused(workplace: Path) -> None:
    file = workplace / "words.json"
    before = file.read_text()
    file.write_text(before.replace("do ", "please do "))
    try:
        with pytest.raises(ValueError, match=r"resuming: data set 'metaworld_demo' has other training episodes, .*paraphrases"):
            _resume(workplace)
    finally:
        file.write_text(before)


def test_the_same_words_in_another_place_are_taken_and_none_are_not(workplace: Path) -> None:
    copied = shutil.copy(workplace / "words.json", workplace / "copied.json")
    finetune(_config(workplace, resume=True, paraphrases=copied))  # there is nothing left to do: the run has all of its steps
    with pytest.raises(ValueError, match=r"has other training episodes, .*paraphrases"):
        _resume(workplace, paraphrases=None)


@pytest.mark.parametrize("content", [b"\xff" * 2000, b"", None])
def test_a_random_state_that_cannot_be_read_is_named(workplace: Path, content: bytes | None) -> None:
    file = workplace / "run--1_chkpt" / "trainer_state" / "rng.pt"
    before = file.read_bytes()
    if content is None:
        torch.save({"state": 1}, file)
    else:
        file.write_bytes(content)
    file.write_bytes(file.read_bytes().ljust(len(before), b"\0"))  # of the size that the manifest says
    try:
        with pytest.raises(ValueError, match=r"rng\.pt (cannot be read|holds no random states).*--resume_step"):
            _resume(workplace)
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"transform": double}, r"actions of data set 'metaworld_demo' have changed, \w+ from \[.*\] to \[.*\]: the position"),
        (
            {"image_obs_keys": {"primary": "wrist_image", "wrist": "image"}},
            r"shows other cameras, primary=image, .* then, primary=wrist_image",
        ),
    ],
    ids=["transform", "cameras"],
)
def test_an_entry_that_changed_meanwhile_is_noticed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], message: str
) -> None:
    monkeypatch.setitem(configs.OXE_DATASET_CONFIGS, DATASET, dataclasses.replace(configs.find_entry(DATASET), **entry))
    with pytest.raises(ValueError, match=f"resuming: .*{message}"):
        _resume(workplace)


def test_a_platform_that_changed_meanwhile_is_noticed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = configs.find_entry(DATASET).robot_platform or ""
    changed = dataclasses.replace(constants.ROBOT_PLATFORMS[name], num_actions_chunk=3, normalization=constants.NormalizationType.BOUNDS)
    monkeypatch.setitem(constants.ROBOT_PLATFORMS, name, changed)
    with pytest.raises(
        ValueError, match=r"was for another robot: num_actions_chunk of the robot platform \d+ then, 3 now; normalization of"
    ):
        _resume(workplace)


def test_the_checkpoint_that_a_run_of_the_same_name_continued_is_not_resumed_again(workplace: Path) -> None:
    """--run_root_dir is another, the name the same: --vla_path then is where the run began, not where it goes on."""
    elsewhere = {"run_root_dir": workplace / "elsewhere", "vla_path": str(workplace / "run--1_chkpt")}
    finetune(_config(workplace, max_steps=2, **elsewhere))
    finetune(_config(workplace, max_steps=3, resume=True, **elsewhere))
    state = json.loads((workplace / "elsewhere" / "run--3_chkpt" / "trainer_state" / "state.json").read_text())
    assert state["flags"]["started_from"] == elsewhere["vla_path"]
    with pytest.raises(ValueError, match=r"--resume_step is 1, but --vla_path .*run--3_chkpt is of step 3; give one"):
        finetune(_config(workplace, resume=True, resume_step=1, **elsewhere | {"vla_path": str(workplace / "elsewhere" / "run--3_chkpt")}))


def test_that_checkpoint_may_be_spelt_otherwise(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slash behind it or a path from another folder: the run went back to the step of the other one, and put its own newer ones aside."""
    monkeypatch.chdir(workplace)
    elsewhere = {"run_root_dir": workplace / "spelt"}
    finetune(_config(workplace, max_steps=2, vla_path="run--1_chkpt", **elsewhere))
    for step, place in ((3, f"{workplace}/run--1_chkpt/"), (4, "../run--1_chkpt")):
        monkeypatch.chdir(workplace / "spelt")
        finetune(_config(workplace, max_steps=step, resume=True, vla_path=place, **elsewhere))
    assert not list((workplace / "spelt").glob("*.left1"))
    state = json.loads((workplace / "spelt" / "run--4_chkpt" / "trainer_state" / "state.json").read_text())
    assert {state["flags"][name] for name in ("vla_path", "started_from")} == {str(workplace / "run--1_chkpt")}


def test_a_run_that_goes_back_leaves_what_came_later_behind(workplace: Path) -> None:
    """The abandoned step 3 would be the newest for the next start, and pruning would keep it in place of the new checkpoints."""
    elsewhere = {"run_root_dir": workplace / "back", "vla_path": str(workplace / "run--1_chkpt"), "save_freq": 1}
    finetune(_config(workplace, max_steps=3, **elsewhere))
    (workplace / "back" / "run--3_chkpt" / "note.txt").write_text("the old way")
    finetune(_config(workplace, max_steps=2, resume=True, resume_step=1, keep_checkpoints=1, **elsewhere))
    folders = sorted(path.name for path in (workplace / "back").iterdir() if not path.name.startswith("."))
    assert folders == ["run", "run--2_chkpt", "run--2_chkpt.left1", "run--3_chkpt.left1"]
    assert (workplace / "back" / "run--3_chkpt.left1" / "note.txt").exists()
    finetune(_config(workplace, max_steps=3, resume=True, **elsewhere))
    assert not (workplace / "back" / "run--3_chkpt" / "note.txt").exists()


def test_a_run_without_a_name_of_its_own_goes_on_with_another_learning_rate(workplace: Path) -> None:
    runs = workplace / "unnamed"
    flags = {"run_root_dir": runs, "run_id_override": None}
    finetune(_config(workplace, **flags))
    finetune(_config(workplace, max_steps=2, resume=True, learning_rate=1e-4, **flags))
    name = "base+metaworld_demo+b2+lr-0.0005+lora-r2+dropout-0.0--image_aug"
    assert sorted(path.name for path in runs.iterdir()) == [name, f"{name}--1_chkpt", f"{name}--2_chkpt"]
    with pytest.raises(ValueError, match=r"--auto_resume True: there is no run .*lr-0.001.* but 'base\+metaworld_demo"):
        finetune(_config(workplace, max_steps=3, auto_resume=True, learning_rate=1e-3, **flags))
    continued = {**flags, "vla_path": str(runs / f"{name}--1_chkpt"), "save_freq": 1}
    finetune(_config(workplace, max_steps=1, **continued))
    finetune(_config(workplace, max_steps=3, resume=True, **continued))
    assert (runs / f"{name}--2_chkpt").is_dir()  # the run that was continued is as it was
    assert (runs / f"{name}--1_chkpt+metaworld_demo+b2+lr-0.0005+lora-r2+dropout-0.0--image_aug--3_chkpt").is_dir()
