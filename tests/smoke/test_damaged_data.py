"""The real finetune.py on data with damaged frames: they are replaced, named once and counted; episodes can be left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, Launcher
from survival import flags, make_workplace, start_processes, wait_for

sys.path.append(str(ROOT / "tests" / "unit"))
from rlds_writer import make_episode, write_dataset

DAMAGED = ((0, 3), (0, 4), (2, 1))  # episode, step


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_workplace(tmp_path_factory.mktemp("damaged"))
    episodes = [make_episode(6, seed=number, instruction=f"task {number}") for number in range(4)]
    for episode, step in DAMAGED:
        images = episodes[episode]["observation/image"]
        images[step] = images[step][: len(images[step]) // 3]
    write_dataset(folder / "data", "metaworld_demo", {"train": episodes})
    return folder


@pytest.fixture(scope="module")
def launcher(workplace: Path) -> Launcher:
    return Launcher(workplace)


def _flags(workplace: Path, runs: str, *more: str) -> list[str]:
    steps = ("--max_steps", "12", "--save_freq", "6", "--wandb_log_freq", "2")  # 24 samples, two a step: one epoch
    return flags(workplace, runs, "--dataset_name", "metaworld_demo", *steps, *more)


def _bad_rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "data/bad_sample" in row]


def _named(run: Path) -> list[str]:
    return [row["data/bad_sample"] for row in _bad_rows(run)]


EXPECTED = {
    f"metaworld_demo, train episode {episode} (metaworld_demo-train.tfrecord-00000-of-00001, episode {episode}), step {step}"
    for episode, step in DAMAGED
}


def test_a_run_goes_on_over_damaged_frames_and_names_each_once(launcher: Launcher, workplace: Path) -> None:
    run = launcher.start(_flags(workplace, "alone", "--num_workers", "2"))
    assert run.wait() == 0, run.text()
    found = _named(workplace / "alone" / "run")
    assert (len(found), set(found)) == (3, EXPECTED)
    assert run.text().count("a sample cannot be decoded and is replaced by the next") == 3
    assert all("image at byte" in row["data/reason"] for row in _bad_rows(workplace / "alone" / "run"))
    # Two processes share the same samples out, and a run that is resumed goes the same way and repeats no name.
    both = start_processes(launcher, _flags(workplace, "both", "--batch_size", "1"), [workplace, workplace])
    wait_for(both)
    assert sorted(_named(workplace / "both" / "run")) == sorted(EXPECTED)
    for steps in ("6", "12"):
        part = launcher.start(_flags(workplace, "parts", "--auto_resume", "True", "--max_steps", steps))
        assert part.wait() == 0, part.text()
    assert _named(workplace / "parts" / "run") == found
    rows = [(row["step"], row["data/bad_sample"]) for row in _bad_rows(workplace / "parts" / "run")]
    assert rows == [(row["step"], row["data/bad_sample"]) for row in _bad_rows(workplace / "alone" / "run")]


def test_too_many_end_the_run_in_one_line(launcher: Launcher, workplace: Path) -> None:
    run = launcher.start(_flags(workplace, "many", "--max_bad_samples", "2"))
    assert run.wait() == 2, run.text()
    (line,) = [line for line in run.text().splitlines() if line.startswith("error:")]
    assert "3 samples cannot be decoded, more than --max_bad_samples 2" in line
    assert "metaworld_demo: train 0; metaworld_demo: train 2" in line
    assert "Traceback" not in run.text()
    write_dataset(workplace / "repaired", "metaworld_demo", {"train": [make_episode(6, seed=n, instruction=f"task {n}") for n in range(4)]})
    repaired = ("--max_bad_samples", "2", "--data_root_dir", str(workplace / "repaired"), "--resume", "True")
    run = launcher.start(_flags(workplace, "many", *repaired))
    assert run.wait() == 0, run.text()


def test_excluded_episodes_are_left_out_and_stand_in_policy_json(launcher: Launcher, workplace: Path) -> None:
    listed = workplace / "bad.txt"
    listed.write_text("metaworld_demo: train 0\nepisode 2  # the camera fell\n")
    run = launcher.start(_flags(workplace, "excluded", "--exclude_episodes", str(listed)))
    assert run.wait() == 0, run.text()
    assert _bad_rows(workplace / "excluded" / "run") == []
    provenance = json.loads((workplace / "excluded" / "run--12_chkpt" / "policy.json").read_text())["provenance"]
    names = [f"train {number} (metaworld_demo-train.tfrecord-00000-of-00001, episode {number})" for number in (0, 2)]
    assert provenance["excluded_episodes"] == {"metaworld_demo": names}
    statistics = json.loads((workplace / "excluded" / "run--12_chkpt" / "dataset_statistics.json").read_text())
    assert statistics["metaworld_demo"]["num_trajectories"] == 2
    listed.write_text("episode 9\n")
    run = launcher.start(_flags(workplace, "unknown", "--exclude_episodes", str(listed)))
    assert run.wait() == 2
    assert f"error: --exclude_episodes {listed}: 'episode 9' is no episode of metaworld_demo" in run.text()
