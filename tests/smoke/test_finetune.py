"""The real finetune.py on real RLDS with a tiny base: two steps, resumed to four, then one observation is served.

Every run is a process of its own, started as a user starts it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.policy import Policy
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla.reference import Reference
from prismatic.vla.types import Observation

ROOT = Path(__file__).parents[2]
DATASET = "libero_spatial_no_noops"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and a small recorded data set."""
    folder = tmp_path_factory.mktemp("smoke")
    sizes = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
    write_tiny_base(folder / "base", sizes, seed=0)
    shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, folder / "data" / DATASET)
    return folder


def run_finetune(workplace: Path, runs: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "vla-scripts/finetune.py",
        *("--vla_path", str(workplace / "base"), "--data_root_dir", str(workplace / "data"), "--dataset_name", DATASET),
        *("--run_root_dir", str(workplace / runs), "--run_id_override", "run", "--num_images_in_input", "2", "--use_proprio", "True"),
        *("--batch_size", "4", "--save_freq", "2", "--max_steps", "2", "--wandb_log_freq", "1", "--num_workers", "0", "--lora_rank", "4"),
        *("--use_val_set", "True"),
        *flags,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return launching.run(command, env=environment, timeout=240)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def resumed(workplace: Path) -> Path:
    """The checkpoint of step 4 of a LoRA run that was stopped after step 2 and resumed; frames come out of the cache on disk."""
    cache = ("--frame_cache_dir", str(workplace / "frames"))
    first = run_finetune(workplace, "resumed", *cache)
    assert first.returncode == 0, first.stderr
    second = run_finetune(workplace, "resumed", "--max_steps", "4", "--resume", "True", *cache)
    assert second.returncode == 0, second.stderr
    assert "frame cache in" in second.stderr
    assert len(list((workplace / "frames").glob("*.frames"))) == 2
    return workplace / "resumed" / "run--4_chkpt"


@pytest.fixture(scope="module")
def uninterrupted(workplace: Path) -> Path:
    result = run_finetune(workplace, "uninterrupted", "--max_steps", "4")
    assert result.returncode == 0, result.stderr
    return workplace / "uninterrupted" / "run--4_chkpt"


def test_a_resumed_run_equals_an_uninterrupted_one(workplace: Path, resumed: Path, uninterrupted: Path) -> None:
    assert losses(workplace / "resumed" / "run") == losses(workplace / "uninterrupted" / "run")
    for name in ("trainer_state/trainable.safetensors", "model.safetensors"):
        one, other = load_file(resumed / name), load_file(uninterrupted / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_training_changes_the_adapters_and_nothing_frozen(workplace: Path, uninterrupted: Path) -> None:
    base, tuned = load_file(workplace / "base" / "model.safetensors"), load_file(uninterrupted / "model.safetensors")
    assert base.keys() == tuned.keys()
    changed = {key for key in base if not torch.equal(base[key].bfloat16(), tuned[key])}
    assert any("self_attn.q_proj" in key for key in changed)
    assert not any("embed_tokens" in key or "lm_head" in key or "norm" in key for key in changed)


def test_the_checkpoint_serves_an_observation_without_any_flag(resumed: Path) -> None:
    policy = Policy.from_pretrained(resumed, device="cpu")
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("wrist", "primary")}
    observation = Observation(images=images, instruction="Pick up the bowl", proprio=np.zeros(8))
    chunk, again = policy.predict([observation, observation])
    assert chunk.actions.shape == (8, 7)
    assert np.isfinite(chunk.actions).all()
    np.testing.assert_allclose(chunk.actions, again.actions, atol=1e-6)


def test_the_checkpoint_describes_itself(resumed: Path) -> None:
    spec = PolicySpec.load(resumed)
    assert spec.platform.name == "LIBERO"
    assert spec.cameras == ("primary", "wrist")
    assert spec.unnorm_key == DATASET
    assert (spec.image.size, spec.image.center_crop, spec.image.jpeg_round_trip) == (28, True, True)
    assert spec.heads.use_proprio
    assert spec.provenance["step"] == 4


def test_published_file_names(resumed: Path) -> None:
    names = {path.name for path in resumed.iterdir()}
    assert {
        *("model.safetensors", "config.json", "generation_config.json", "lora_adapter", "action_head--4_checkpoint.pt"),
        *("proprio_projector--4_checkpoint.pt", "dataset_statistics.json", "tokenizer.json", "preprocessor_config.json"),
        *("policy.json", "trainer_state"),
    } <= names


def test_what_training_saw_lies_in_the_checkpoint_and_later_data_are_compared_with_it(workplace: Path, resumed: Path) -> None:
    reference = Reference.load(resumed)
    assert reference is not None
    assert list(reference.frames) == ["primary", "wrist"]
    assert len(reference.frames["primary"]) > 8
    assert reference.instructions == tuple(sorted(set(reference.instructions)))
    folder = shutil.copytree(resumed, workplace / "exchanged")
    pictures = [np.full((4, 32, 32, 3), level, np.uint8) for level in (250, 5)]  # of nothing that these data show
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    statistics[DATASET]["proprio"] |= {"min": [1000.0] * 8, "q01": [1000.1] * 8, "q99": [1000.4] * 8, "max": [1000.5] * 8}
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    Reference(dict(zip(("primary", "wrist"), pictures, strict=True))).save(folder)
    result = run_finetune(workplace, "again", "--vla_path", str(folder))
    assert result.returncode == 0, result.stderr
    assert f"{DATASET}: Seen from the checkpoint, the state is far from all that training saw" in result.stderr
    assert "looks unlike" not in result.stderr  # another scene is what data are recorded for


def test_adapters_alone_give_the_merged_actions(workplace: Path, uninterrupted: Path) -> None:
    result = run_finetune(workplace, "unmerged", "--merge_lora_during_training", "False", "--max_steps", "4")
    assert result.returncode == 0, result.stderr
    unmerged = workplace / "unmerged" / "run--4_chkpt"
    assert not (unmerged / "model.safetensors").exists()
    images = {name: np.full((64, 64, 3), 90, np.uint8) for name in ("primary", "wrist")}
    observation = Observation(images=images, instruction="pick up the bowl", proprio=np.zeros(8))
    one, other = (Policy.from_pretrained(folder, device="cpu").predict([observation])[0].actions for folder in (unmerged, uninterrupted))
    np.testing.assert_allclose(one, other, atol=0.05)  # merged weights are rounded to bfloat16


def test_full_fine_tuning_keeps_only_the_latest_checkpoint(workplace: Path) -> None:
    flags = ("--use_lora", "False", "--save_latest_checkpoint_only", "True", "--max_steps", "4", "--grad_accumulation_steps", "2")
    result = run_finetune(workplace, "full", *flags)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (workplace / "full").iterdir()] == ["run"]
    folder = workplace / "full" / "run"
    assert (folder / "action_head--latest_checkpoint.pt").is_file()
    assert len(losses(folder)) == 4
    assert Policy.from_pretrained(folder, device="cpu").spec.lora is None


def test_a_mistake_is_one_line_and_no_trace(workplace: Path) -> None:
    result = run_finetune(workplace, "bad", "--dataset_name", "libero_spatial_no_noop")
    assert result.returncode == 2, result.stderr
    assert "did you mean libero_spatial_no_noops" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_root_dir": Path("nowhere")}, "nowhere"),
        ({"num_images_in_input": 3}, "--num_images_in_input is 3"),
        ({"robot_platform": "ALOHA"}, "platform ALOHA expects 14"),
        ({"vla_path": "/nowhere/at/all"}, "/nowhere/at/all is neither a folder nor a Hub id"),
        ({"resume": True}, "no complete checkpoint of run 'bad'"),
    ],
)
def test_bad_input_is_refused_before_training(workplace: Path, flags: dict[str, Any], message: str) -> None:
    known = {"vla_path": str(workplace / "base"), "data_root_dir": workplace / "data", "dataset_name": DATASET}
    config = FinetuneConfig.from_flags(
        **{**known, "run_root_dir": workplace / "bad", "run_id_override": "bad", "use_proprio": True, **flags}
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        finetune(config)
    assert not (workplace / "bad").exists()
