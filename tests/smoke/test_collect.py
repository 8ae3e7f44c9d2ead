"""scripts/collect.py: rollouts in simulators become a data set that is inspected and trained on."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import launching
import pytest

from experiments.robot.evaluation.collecting import collect, count_episodes
from experiments.robot.evaluation.journal import JournalError
from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags
from experiments.robot.libero.run_libero_eval import EvalConfig, InPlaceConfig
from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.manifest import read_manifest
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.training_data import load_training_data

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from script_modules import load_script
from toy_simulator import ToyPolicy, ToySimulator

ROOT = Path(__file__).parents[2]
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return launching.run([sys.executable, "scripts/collect.py", *flags], timeout=400)


@pytest.mark.sim
def test_rollouts_of_metaworld_are_collected_and_their_successes_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("metaworld", reason="needs the extra [metaworld]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "round_1"
    flags = (
        "--policy",
        "expert",
        "--simulator",
        "metaworld",
        "--task_names",
        "[faucet-open]",
        "--output_dir",
        str(folder),
        "--num_envs",
        "1",
    )
    done = run(*flags, "--num_episodes", "2", "--image_size", "32")
    assert done.returncode == 0, done.stderr
    manifest = folder / "manifest.json"
    assert f"--dataset_name {manifest} --episode_weights success" in done.stdout
    recordings = sorted((folder / "recordings" / "expert").rglob("*.hdf5"))
    assert len(recordings) == 2
    with h5py.File(recordings[0]) as file:
        assert (file.attrs["task"], file.attrs["robot_platform"], file.attrs["seed"]) == ("faucet-open", "METAWORLD", 7)
        assert set(file["rollout/commanded_by"][()]) == {b"expert"}
    with h5py.File(recordings[1], "a") as file:
        file.attrs["success"] = False
    write_tiny_base(tmp_path / "base", SIZES, seed=0)
    config: dict[str, Any] = {"vla_path": str(tmp_path / "base"), "dataset_name": str(manifest), "run_root_dir": tmp_path / "runs"}
    config |= {"run_id_override": "next", "num_images_in_input": 2, "use_proprio": True, "use_lora": False, "episode_weights": "success"}
    finetune(FinetuneConfig.from_flags(**config, batch_size=2, num_workers=0, max_steps=1, save_freq=1))
    policy = json.loads((tmp_path / "runs" / "next--1_chkpt" / "policy.json").read_text())
    assert policy["unnorm_key"] == "metaworld_demo"
    assert policy["provenance"]["episode_weights"] == {"metaworld_demo": {"0": 1, "1": 1}}


def collect_toys(folder: Path, num_episodes: int, expert_help: str = "none", load: Any = ToyPolicy, **changes: Any) -> Path:
    flags = {"pretrained_checkpoint": "toy", "num_trials_per_task": num_episodes, "num_envs": 1, "local_log_dir": folder, **changes}
    benchmark = Benchmark("Toy", "METAWORLD", ToySimulator(), ["left"], load, episode_numbers=lambda task, count: [99])
    return collect(EvaluationFlags(**flags), benchmark, "metaworld_demo", expert_help)


def test_starts_are_those_of_no_evaluation_and_the_manifest_names_what_was_planned(tmp_path: Path) -> None:
    manifest = collect_toys(tmp_path, 2)
    (part,) = read_manifest(manifest).parts
    assert (part.path, part.episodes) == (tmp_path / "recordings" / "policy", ())
    with pytest.raises(JournalError, match="seed was 7, is 8"):
        collect_toys(tmp_path, 2, seed=8)
    stored = manifest.read_bytes()
    with pytest.raises(JournalError, match="expert_help was None, is 'takeover'"):
        collect_toys(tmp_path, 1, "takeover")
    assert manifest.read_bytes() == stored, "a collection that is refused leaves that of the other alone"
    (part,) = read_manifest(collect_toys(tmp_path, 1)).parts  # fewer are planned than there are
    assert part.episodes == ("left/episode_000000_seed_7.hdf5",)
    first = (tmp_path / "recordings" / "policy" / part.episodes[0]).stat().st_mtime_ns
    (part,) = read_manifest(collect_toys(tmp_path, 3)).parts  # more: only the third is played
    assert part.episodes == ()
    assert (part.path / "left" / "episode_000000_seed_7.hdf5").stat().st_mtime_ns == first
    assert json.loads((tmp_path / "episodes.jsonl").read_text().splitlines()[0])["settings"]["split"] == "collection"


def test_the_report_says_that_an_expert_helped(tmp_path: Path) -> None:
    """Its title, settings and page were those of an evaluation of the policy, with 100 % success."""
    collect_toys(tmp_path, 1, "takeover")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["title"] == "Toy, collection, with the expert's help (takeover): toy"
    assert (report["settings"]["split"], report["settings"]["expert_help"]) == ("collection", "takeover")
    assert "solved with the expert&#39;s help" in (tmp_path / "report.html").read_text()


def test_what_was_planned_is_counted_and_not_all_that_lies_there(tmp_path: Path) -> None:
    collect_toys(tmp_path, 3)
    for num_episodes in (3, 1):
        flags = EvaluationFlags(pretrained_checkpoint="toy", num_trials_per_task=num_episodes, local_log_dir=tmp_path)
        benchmark = Benchmark("Toy", "METAWORLD", ToySimulator(), ["left"], ToyPolicy, episode_numbers=lambda task, count: [99])
        assert count_episodes(flags, benchmark) == (num_episodes, num_episodes)


def test_failures_are_not_recommended_to_train_on(tmp_path: Path) -> None:
    summary = load_script("scripts/collect.py").summary
    assert "--episode_weights success" in summary("none", 4, 1, "d", tmp_path)[1]
    assert "nothing to learn from" in summary("none", 4, 0, "d", tmp_path)[1]
    assert summary("takeover", 4, 4, "d", tmp_path)[0].startswith("4 episodes, 4 of them solved with the expert's help")
    assert "--dataset_name" in summary("takeover", 4, 0, "d", tmp_path)[1]


def test_a_collection_of_libero_lies_where_every_collection_does(tmp_path: Path) -> None:
    """Its manifest, too; it lay in <output_dir>/EVAL-<suite>-<policy>."""
    config = load_script("scripts/collect.py").CollectConfig(pretrained_checkpoint="toy", simulator="libero", output_dir=tmp_path / "new")
    given = config.evaluation_flags()
    assert InPlaceConfig(**given).folder == tmp_path / "new"
    assert EvalConfig(**given).folder.parent == tmp_path / "new"
    (tmp_path / "old/EVAL-libero_spatial-toy").mkdir(parents=True)
    (tmp_path / "old/EVAL-libero_spatial-toy/episodes.jsonl").touch()
    with pytest.raises(ValueError, match="name that folder as --output_dir to go on with it"):
        collect_toys(tmp_path / "old", 1)


def test_a_new_beginning_names_no_recording_of_before(tmp_path: Path) -> None:
    class Ends(ToyPolicy):
        """Begins the second episode, and no more."""

        def predict(self, observations: list[Any], seeds: list[int]) -> list[Any]:
            if (tmp_path / "episodes.jsonl").read_text().count("\n") > 1:
                raise KeyboardInterrupt
            return super().predict(observations, seeds)

    collect_toys(tmp_path, 3)
    with pytest.raises(KeyboardInterrupt):
        collect_toys(tmp_path, 3, load=Ends, restart=True, seed=7)
    kept = [sorted(path.name for path in (tmp_path / folder).rglob("*.hdf5")) for folder in ("recordings", "recordings.left1")]
    assert kept == [["episode_000000_seed_7.hdf5"], [f"episode_{number:06d}_seed_7.hdf5" for number in range(3)]]
    (part,) = read_manifest(tmp_path / "manifest.json").parts
    assert part.episodes == ()


def test_episodes_that_all_crash_are_no_collection(tmp_path: Path) -> None:
    benchmark = Benchmark("Toy", "METAWORLD", ToySimulator(broken=True), ["left"], ToyPolicy)
    flags = EvaluationFlags(pretrained_checkpoint="toy", num_trials_per_task=1, num_envs=1, local_log_dir=tmp_path)
    with pytest.raises(ValueError, match=r"no episode could be recorded in .*: all crashed, as told above"):
        collect(flags, benchmark, "metaworld_demo")
    assert not (tmp_path / "manifest.json").exists()


def test_rollouts_of_a_robot_with_other_dimensions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = collect_toys(tmp_path, 1)  # two dimensions, where the platform has four
    specs = resolve_datasets(str(manifest), tmp_path)
    specs = tuple(dataclasses.replace(spec, entry=dataclasses.replace(spec.entry, image_obs_keys={"primary": "image"})) for spec in specs)
    with pytest.raises(ValueError, match="'metaworld_demo' has actions of 2 dimensions, robot platform METAWORLD expects 4"):
        load_training_data(specs, DatasetOptions(cameras=("primary",), image_size=16))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"simulator": "mujoco"}, "--simulator is 'mujoco'; known: aloha, libero, metaworld"),
        ({"simulator": "metaworld", "task_suite_name": "libero_goal"}, "--task_suite_name belongs to --simulator libero; leave it out"),
        ({"simulator": "aloha", "num_episodes": 0}, "--num_episodes is 0, must be at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_script("scripts/collect.py").CollectConfig(**flags)


def test_an_entry_that_nobody_knows_is_named_before_anything_is_played(tmp_path: Path) -> None:
    benchmark = Benchmark("Toy", "METAWORLD", ToySimulator(), ["left"], ToyPolicy)
    with pytest.raises(ValueError, match="--dataset_name 'metaworld_dmo' is no entry of the registry; did you mean metaworld_demo"):
        collect(EvaluationFlags(pretrained_checkpoint="toy", local_log_dir=tmp_path / "new"), benchmark, "metaworld_dmo")
    assert not (tmp_path / "new").exists()
