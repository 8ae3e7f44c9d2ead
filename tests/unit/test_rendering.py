"""How pictures were rendered, from the recording to the warning of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
from rlds_writer import make_episode, write_dataset
from rollout_files import load, manifest, write_rollout
from toy_simulator import ToyPolicy, ToySimulator

from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags
from experiments.robot.evaluation.policies import SeededPolicy
from experiments.robot.evaluation.run import run_evaluation
from prismatic.policy.watching import ObservationWatch
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.recorded_names import FILE, RecordedNames
from prismatic.vla.datasets.sources import open_source
from prismatic.vla.reference import ObservationCheck
from prismatic.vla.rendering import agreed_rendering, rendered, unlike_training

FAST = {"fast_rendering": True, "image_size": 64}


class Trained:
    """The toy's policy as a checkpoint that says how its demonstrations were rendered."""

    def __init__(self, seen: dict[str, Any]) -> None:
        self.spec = SimpleNamespace(provenance={"rendered": {"toy": seen}} if seen else {})
        self.unnorm_key, self.predict = "toy", ToyPolicy().predict
        self.watch = self.make_watch()

    def make_watch(self) -> ObservationWatch:
        return ObservationWatch(ObservationCheck(None, None, ()))

    def warm_up(self, *args: object) -> float:
        return 0.0


def play(folder: Path, seen: dict[str, Any], rendering: dict[str, Any], **flags: Any) -> list[str]:
    """The warnings of the page."""
    config = EvaluationFlags("toy", num_trials_per_task=1, num_envs=1, num_pictures=0, local_log_dir=folder, **flags)
    policy = SeededPolicy(Trained(seen))
    run_evaluation(config, Benchmark("Toy", "METAWORLD", ToySimulator(), ["left"], lambda: policy, rendering=rendering))
    return list(json.loads((folder / "report.json").read_text())["warnings"])


def test_an_evaluation_that_renders_otherwise_says_so_once_a_flag(tmp_path: Path) -> None:
    seen = {"fast_rendering": [True], "image_size": [64]}
    fast, size = play(tmp_path / "other", seen, {"fast_rendering": False, "image_size": 128})
    assert fast == (
        "the pictures are rendered with --fast_rendering False, those of training were with --fast_rendering True. "
        "Pass --fast_rendering True."
    )
    assert "--image_size 128, those of training were with --image_size 64" in size
    assert "--fast_rendering False, those of training" in (tmp_path / "other/report.html").read_text()
    assert play(tmp_path / "same", seen, FAST) == []
    assert play(tmp_path / "unknown", {}, FAST) == []  # checkpoints of earlier versions
    assert unlike_training(FAST, {"fast_rendering": [False, True], "env_img_res": [256]}) == []


def test_what_not_every_episode_says_is_not_known() -> None:
    slow = {"fast_rendering": False, "image_size": 64, "seed": 7}
    assert rendered([FAST, slow]) == {"fast_rendering": [True, False], "image_size": [64]}
    assert agreed_rendering([FAST, slow]) == {"image_size": 64}
    assert rendered([FAST, {"seed": 7}]) == rendered([]) == {}


def test_training_keeps_what_the_recordings_say(tmp_path: Path) -> None:
    for number in range(3):
        write_rollout(tmp_path / f"new/episode_{number}.hdf5", value=number + 1, **FAST)
    new = {"path": "new"}
    assert load(manifest(tmp_path, new)).rendered == {"metaworld_demo": {"fast_rendering": [True], "image_size": [64]}}
    write_rollout(tmp_path / "old/episode_0.hdf5", value=5)
    assert load(manifest(tmp_path, new, {"path": "old"})).rendered == {}


def test_rollouts_of_an_evaluation_say_how_they_were_rendered(tmp_path: Path) -> None:
    play(tmp_path, {}, {"fast_rendering": False, "env_img_res": 128}, record=True)
    (path,) = tmp_path.glob("recordings/**/*.hdf5")
    with h5py.File(path) as file:
        assert not file.attrs["fast_rendering"]
        assert file.attrs["env_img_res"] == 128


def test_a_converted_data_set_says_it_too(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "mine", {"train": [make_episode(5)]})
    names = RecordedNames(cameras={}, state=(), action=())
    names.save(folder)
    assert "rendering" not in json.loads((folder / FILE).read_text())  # as earlier versions read it
    assert [dict(raw.facts) for raw in open_source(folder, DatasetEntry()).episodes()] == [{}]
    layout = open_source(folder, DatasetEntry()).layout
    RecordedNames(cameras={}, state=(), action=(), rendering=FAST).save(folder)
    assert [dict(raw.facts) for raw in open_source(folder, DatasetEntry()).episodes()] == [FAST]
    assert open_source(folder, DatasetEntry()).layout == layout
