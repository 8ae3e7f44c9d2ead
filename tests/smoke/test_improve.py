"""scripts/improve.py, with a tiny policy in MetaWorld: a round that is killed goes on to its end; what cannot be continued is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
import sys
from pathlib import Path
from typing import Any

import h5py
import launching
import numpy as np
import pytest

from experiments.robot.improvement.config import ImproveConfig
from experiments.robot.improvement.rounds import check_inputs, improve
from prismatic.acting.recorder import EpisodeRecorder, RecordedStep
from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.rollout_record import Commander
from prismatic.vla.types import Observation

SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
METAWORLD = ROBOT_PLATFORMS["METAWORLD"]
SHORT = ("--task_names", "[faucet-open]", "--image_size", "32", "--num_envs", "1", "--num_rounds", "1", "--num_rollouts", "1")
SHORT += ("--num_trials", "1", "--num_final_trials", "1", "--max_steps", "2", "--batch_size", "2", "--finetune_flags", "--use_lora False")

# Looked for, not imported: the rendering has to be configured before MuJoCo is.
needs_metaworld = pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="needs the extra [metaworld]")


def write_demonstration(path: Path, **facts: Any) -> None:
    rng = np.random.default_rng(0)
    known = {"action_names": METAWORLD.action_names, "robot_platform": "METAWORLD", "success": True, **facts}
    with EpisodeRecorder(path, "turn the faucet right") as recorder:
        for _ in range(12):
            picture = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            seen = Observation({"primary": picture, "wrist": picture}, "turn the faucet right", rng.normal(size=4))
            recorder.add(RecordedStep(seen, rng.choice([-1.0, 1.0], 4), Commander.EXPERT))  # the range of the true expert
        recorder.close(known)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """demos/, and policy/, trained on them for one step."""
    folder = tmp_path_factory.mktemp("improve")
    write_demonstration(folder / "demos" / "a.hdf5")
    write_demonstration(folder / "demos" / "b.hdf5")
    write_tiny_base(folder / "base", SIZES, seed=0)
    (folder / "demos.json").write_text(json.dumps({"dataset": "metaworld_demo", "recordings": [{"path": "demos"}]}))
    flags: dict[str, Any] = {"vla_path": str(folder / "base"), "dataset_name": str(folder / "demos.json"), "run_root_dir": folder}
    flags |= {"run_id_override": "policy", "save_latest_checkpoint_only": True, "num_images_in_input": 2, "use_proprio": True}
    flags |= {"use_lora": False, "image_aug": False, "batch_size": 2, "num_workers": 0, "max_steps": 1, "save_freq": 1}
    finetune(FinetuneConfig.from_flags(**flags))
    return folder


def config_of(workplace: Path, **changes: Any) -> ImproveConfig:
    flags: dict[str, Any] = {"pretrained_checkpoint": str(workplace / "policy"), "demonstrations": [str(workplace / "demos")]}
    flags |= {"output_dir": workplace / "checked", "task_names": ["faucet-open"], "finetune_flags": "--use_lora False"}
    return ImproveConfig(**flags | changes)


def start(workplace: Path, output: str, *more: str) -> launching.Started:
    command = [sys.executable, "scripts/improve.py", "--pretrained_checkpoint", str(workplace / "policy"), "--demonstrations"]
    command += [json.dumps([str(workplace / "demos")]), "--output_dir", str(workplace / "out"), "--method", "relabel", *SHORT, *more]
    return launching.start(command, workplace / output)


@pytest.mark.sim
@pytest.mark.timeout(1200)
@needs_metaworld
def test_a_round_that_is_killed_goes_on_to_its_end(workplace: Path) -> None:
    out = workplace / "out"
    killed = start(workplace, "killed.txt")
    begun = out / "round_1" / "collected" / "episodes.jsonl"
    launching.wait_until(lambda: begun.exists() or not killed.is_running(), 300)
    killed.kill(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, killed.text()
    assert not (out / "round_1" / "collected" / "done.json").exists()
    ended = start(workplace, "ended.txt")
    status, text = ended.wait(580), ended.text()
    assert status == 0, text
    assert "=== start: evaluate" not in text, "what is done is not done again"
    (recording,) = (out / "round_1" / "collected" / "recordings").rglob("*.hdf5")
    with h5py.File(recording) as file:
        assert set(file["rollout/mode"][()]) == {b"relabelled"}
        assert (file["action"][()] != file["rollout/executed"][()]).any()
    manifest = json.loads((out / "round_1" / "manifest.json").read_text())
    assert [row["path"] for row in manifest["recordings"]] == [str(workplace / "demos"), "collected/recordings/policy"]
    policy = json.loads((out / "round_1" / "train" / "policy.json").read_text())
    assert policy["provenance"]["continued"]["checkpoint"] == str(workplace / "policy")
    assert (policy["provenance"]["step"], policy["provenance"]["continued"]["new"]) == (2, [])
    content = json.loads((out / "improve.json").read_text())
    assert [row["round"] for row in content["rounds"]] == [0, 1]
    assert content["final"]["trials"] == 1
    assert (out / "improve.png").is_file()
    assert (out / "improve.md").read_text() in text
    with pytest.raises(ValueError, match=r"holds another improvement \(.*method was 'relabel', is 'filtered'"):
        improve(config_of(workplace, output_dir=out, method="filtered"))


def write_phase(folder: Path, successes: str, seed: int) -> None:
    """What a phase leaves that is done: a journal with an episode for each letter, + for a success, and its command."""
    folder.mkdir(parents=True)
    rows = [
        {"run": "none", "task": "faucet-open", "index": index, "seed": seed, "success": letter == "+", "num_steps": 9}
        for index, letter in enumerate(successes)
    ]
    lines = [{"settings": {}}, *rows]
    (folder / "episodes.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "done.json").write_text(json.dumps({"command": "python x.py --num_trials_per_task 2", "seconds": 1.0}))


@needs_metaworld
def test_more_rounds_end_with_the_figures_of_the_policy_that_is_best_then(workplace: Path) -> None:
    config = config_of(workplace, output_dir=workplace / "more", num_rounds=1, num_final_trials=2)
    out = config.folder
    for place, successes in (("start", "----"), ("round_1", "+---"), ("round_2", "+++-")):
        write_phase(out / place / "eval", successes, 7)
    for number in (1, 2):
        write_phase(out / f"round_{number}" / "collected", "+", 7 + number)
        (out / f"round_{number}" / "train").mkdir()
        (out / f"round_{number}" / "train" / "done.json").write_text('{"command": "", "seconds": 1.0}')
    for name, successes in (("start", "--"), ("round_1", "+-"), ("round_2", "++")):
        write_phase(out / "final" / name, successes, 1007)
    assert "0 % (0/2) before (0 - 66 %), 50 % (1/2) after round 1" in improve(config)
    assert "0 % (0/2) before (0 - 66 %), 100 % (2/2) after round 2" in improve(dataclasses.replace(config, num_rounds=2))


@needs_metaworld
def test_what_cannot_be_continued_is_refused_before_anything_is_played(workplace: Path) -> None:
    dataset, spec = check_inputs(config_of(workplace))
    assert (dataset, spec.cameras) == ("metaworld_demo", ("primary", "wrist"))
    with pytest.raises(ValueError, match=r"base cannot be continued: it has no policy\.json"):
        check_inputs(config_of(workplace, pretrained_checkpoint=str(workplace / "base")))
    with pytest.raises(ValueError, match="cannot be taken over: --use_proprio was True, is False"):
        check_inputs(config_of(workplace, finetune_flags="--use_lora False --use_proprio False"))
    with pytest.raises(ValueError, match="lora_rnk"):
        check_inputs(config_of(workplace, finetune_flags="--lora_rnk 4"))
    (workplace / "other.json").write_text(json.dumps({"dataset": "libero_spatial_no_noops", "recordings": [{"path": "demos"}]}))
    with pytest.raises(ValueError, match=r"other\.json is of the data set 'libero_spatial_no_noops', the policy was trained on 'metaworld"):
        check_inputs(config_of(workplace, demonstrations=[str(workplace / "other.json")]))
    assert not (workplace / "checked" / "settings.json").exists()


@needs_metaworld
def test_demonstrations_of_another_robot_are_refused_before_anything_is_played(workplace: Path) -> None:
    write_demonstration(workplace / "others" / "a.hdf5", action_names=("x", "y", "z", "gripper"), robot_platform="DESK")
    with pytest.raises(ValueError, match=r"was recorded on DESK with the actions x, y, z, gripper \(1 of 1"):
        check_inputs(config_of(workplace, demonstrations=[str(workplace / "others")]))


@pytest.mark.skipif(importlib.util.find_spec("gym_aloha") is None, reason="needs the extra [aloha]")
def test_a_plan_of_its_own_cannot_relabel(workplace: Path) -> None:
    config = dataclasses.replace(config_of(workplace), simulator="aloha", task_names=["transfer_cube"], method="relabel")
    with pytest.raises(ValueError, match=r"the expert of ALOHA simulation follows a plan of its own .* --method takeover"):
        check_inputs(config)
