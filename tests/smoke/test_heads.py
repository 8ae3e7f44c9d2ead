"""Every head with FiLM trains, saves, loads without a flag and acts; adapters alone, merged offline, act the same."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest
import torch

from experiments.robot.openvla_utils import (
    GenerateConfig,
    get_action_head,
    get_noisy_action_projector,
    get_processor,
    get_proprio_projector,
    get_vla,
    get_vla_action,
)
from experiments.robot.robot_utils import get_image_resize_size, invert_gripper_action, normalize_gripper_action
from prismatic.doctor.checkpoint import check_checkpoint
from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.checkpoint.flags import PolicyFlags
from prismatic.policy.checkpoint.loading import LoadOptions
from prismatic.policy.policy import Policy
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla.diagnosis import Status
from prismatic.vla.types import Observation

ROOT = Path(__file__).parents[2]
DATASET = "libero_spatial_no_noops"
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
VARIANTS: dict[str, dict[str, Any]] = {
    "diffusion": {"use_l1_regression": False, "use_diffusion": True, "num_diffusion_steps_train": 10, "diffusion_sample_freq": 1},
    "discrete": {"use_l1_regression": False, "use_proprio": False, "num_images_in_input": 1},
    "film": {"use_film": True},
    "film_diffusion": {"use_film": True, "use_l1_regression": False, "use_diffusion": True, "num_diffusion_steps_train": 10},
    "film_adapters_only": {"use_film": True, "merge_lora_during_training": False},
    "film_full": {"use_film": True, "use_lora": False},
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    write_tiny_base(folder / "base", SIZES, seed=0)
    shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, folder / "data" / DATASET)
    for name, flags in VARIANTS.items():
        # The learning rate lets two steps move the adapters far from where they began.
        finetune(_config(folder, name, {"learning_rate": 0.02, **flags}))
    return folder


def _config(workplace: Path, name: str, flags: dict[str, Any]) -> FinetuneConfig:
    defaults: dict[str, Any] = {"num_images_in_input": 2, "use_proprio": True}
    return FinetuneConfig.from_flags(
        **{**defaults, **flags},
        vla_path=str(workplace / "base"),
        data_root_dir=workplace / "data",
        dataset_name=DATASET,
        run_root_dir=workplace,
        run_id_override=name,
        batch_size=4,
        max_steps=2,
        save_freq=2,
        wandb_log_freq=1,
        num_workers=0,
        lora_rank=4,
        use_val_set=True,
    )


def observation() -> Observation:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("primary", "wrist")}
    return Observation(images=images, instruction="Pick up the bowl", proprio=np.zeros(8))


def predict(folder: Path, options: LoadOptions | None = None) -> np.ndarray:
    policy = Policy.from_pretrained(folder, device="cpu", options=options)
    return policy.predict([observation()], seeds=[0])[0].actions


@pytest.mark.parametrize("name", VARIANTS)
def test_acts_without_a_flag(workplace: Path, name: str) -> None:
    actions = predict(workplace / f"{name}--2_chkpt")
    assert actions.shape == (8, 7)
    assert np.isfinite(actions).all()
    rows = [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]
    assert any(np.isfinite(row.get("val/curr_action_l1_loss", np.nan)) for row in rows)
    if name == "diffusion":
        assert np.isfinite(rows[0]["train/curr_action_l1_loss"])
    if name == "discrete":
        assert 0 <= rows[0]["train/curr_action_accuracy"] <= 1


@pytest.mark.parametrize("name", VARIANTS)
def test_verifies_as_whole_without_reading_weights(workplace: Path, name: str) -> None:
    findings = check_checkpoint(workplace / f"{name}--2_chkpt")
    assert {finding.status for finding in findings} == {Status.OK}, findings
    heads = {"discrete": set(), "film": {"action_head", "vision_backbone"}, "diffusion": {"action_head", "noisy_action_projector"}}
    assert heads.get(name, set()) <= {finding.subject for finding in findings}


@pytest.mark.parametrize("name", ["diffusion", "film", "film_diffusion"])
def test_unmerged_adapters_act_like_merged_ones(workplace: Path, name: str) -> None:
    folder = workplace / f"{name}--2_chkpt"
    apart = predict(folder, LoadOptions(keep_adapters=True, base_model=str(workplace / "base")))
    # The merged model is rounded to bfloat16; ten denoising steps on random weights make more of that than one pass.
    np.testing.assert_allclose(predict(folder), apart, atol=0.02 if name == "film" else 0.1)


def test_dropping_the_adapters_would_be_noticed(workplace: Path) -> None:
    """The tolerance above means something: without its adapters the policy acts differently."""
    trained, base = workplace / "film--2_chkpt", workplace / "film_base"
    shutil.copytree(trained, base)
    shutil.copy(workplace / "base" / "model.safetensors", base / "model.safetensors")
    assert np.abs(predict(base) - predict(trained)).max() > 0.05


def test_merging_offline(workplace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "film_adapters_only--2_chkpt"
    shutil.copytree(workplace / folder.name, folder)
    assert not (folder / "model.safetensors").exists()
    before = predict(folder)
    command = [sys.executable, "vla-scripts/merge_lora_weights_and_save.py", "--lora_finetuned_checkpoint_dir", str(folder)]
    command += ["--base_checkpoint", str(workplace / "base"), "--device", "cpu"]
    result = launching.run(command)
    assert result.returncode == 0, result.stderr
    assert "differ by at most" in result.stdout
    assert float(result.stdout.split("at most ")[1].split()[0]) < 0.02
    shutil.move(folder / "lora_adapter", tmp_path / "gone")
    np.testing.assert_allclose(predict(folder), before, atol=0.02)
    assert not list(folder.glob(".merging*"))


def test_merging_needs_adapters(workplace: Path) -> None:
    command = [sys.executable, "vla-scripts/merge_lora_weights_and_save.py", "--lora_finetuned_checkpoint_dir", str(workplace / "base")]
    result = launching.run(command)
    assert result.returncode == 2
    assert "lacks dataset_statistics.json" in result.stderr


def test_fewer_denoising_steps_may_be_chosen(workplace: Path) -> None:
    folder = workplace / "diffusion--2_chkpt"
    few, all_steps = (predict(folder, LoadOptions(PolicyFlags(num_diffusion_steps_inference=steps))) for steps in (2, 10))
    assert np.abs(few - all_steps).max() > 1e-3
    np.testing.assert_array_equal(all_steps, predict(folder))
    with pytest.raises(ValueError, match="num_diffusion_steps_inference is 11; choose 1 to 10"):
        predict(folder, LoadOptions(PolicyFlags(num_diffusion_steps_inference=11)))


def test_a_diffusion_policy_repeats_itself_with_seeds(workplace: Path) -> None:
    policy = Policy.from_pretrained(workplace / "diffusion--2_chkpt", device="cpu")
    other = Observation(images=observation().images, instruction="slowly push the small red block to the left", proprio=np.ones(8))
    _, second = policy.predict([other, observation()], seeds=[5, 0])
    np.testing.assert_allclose(second.actions, policy.predict([observation()], seeds=[0])[0].actions, atol=1e-4)
    with pytest.raises(ValueError, match="1 observations but 2 seeds"):
        policy.predict([observation()], seeds=[1, 2])


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("film", {"use_film": False}, r"--use_film False \(the checkpoint: True\)"),
        ("film", {"use_diffusion": True}, r"--use_diffusion True \(the checkpoint: False\)"),
        ("film", {"num_images_in_input": 3}, r"--num_images_in_input 3 \(the checkpoint: 2\)"),
        ("film", {"robot_platform": "ALOHA"}, r"--robot_platform ALOHA \(the checkpoint: LIBERO\)"),
        ("film", {"lora_rank": 32}, r"--lora_rank 32 \(the checkpoint: 4\)"),
        ("diffusion", {"num_diffusion_steps_train": 50}, r"--num_diffusion_steps_train 50 \(the checkpoint: 10\)"),
    ],
)
def test_a_flag_that_contradicts_policy_json_is_refused(workplace: Path, name: str, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}: contradicts .*policy.json. Leave the flag out"):
        predict(workplace / f"{name}--2_chkpt", LoadOptions(PolicyFlags(**flags)))


@pytest.mark.parametrize("name", ["diffusion", "discrete", "film"])
def test_a_published_folder_is_read_with_the_familiar_flags(workplace: Path, tmp_path: Path, name: str) -> None:
    """Our folder without policy.json is what the published code writes."""
    published = tmp_path / "published"
    shutil.copytree(workplace / f"{name}--2_chkpt", published)
    (published / "policy.json").unlink()
    flags: dict[str, Any] = {"num_images_in_input": 1 if name == "discrete" else 2}
    if name == "diffusion":
        flags["num_diffusion_steps_train"] = 10
    if name == "discrete":
        with pytest.raises(ValueError, match="If it is a base model, fine-tune it first"):
            predict(published, LoadOptions(PolicyFlags(**flags)))
        flags |= {"use_l1_regression": False, "use_diffusion": False}
    found = predict(published, LoadOptions(PolicyFlags(**flags)))
    np.testing.assert_array_equal(found, predict(workplace / f"{name}--2_chkpt"))
    with pytest.raises(ValueError, match="pass --num_images_in_input"):
        predict(published)


@pytest.mark.parametrize("name", ["film", "film_diffusion"])
def test_familiar_functions(workplace: Path, name: str) -> None:
    cfg = GenerateConfig(pretrained_checkpoint=workplace / f"{name}--2_chkpt", center_crop=True, use_film=True)
    vla = get_vla(cfg)
    assert get_vla(cfg) is vla
    os.utime(workplace / f"{name}--2_chkpt" / "policy.json")  # a training has saved into the folder
    assert get_vla(cfg) is not vla
    vla = get_vla(cfg)
    seen = observation()
    obs = {"full_image": seen.images["primary"], "wrist_image": seen.images["wrist"], "state": np.zeros(8)}
    modules = [get_action_head(cfg, vla.llm_dim), get_proprio_projector(cfg, vla.llm_dim, 8), get_noisy_action_projector(cfg, vla.llm_dim)]
    actions = get_vla_action(cfg, vla, get_processor(cfg), obs, "Pick up the bowl", *modules)
    assert len(actions) == 8
    assert actions[0].shape == (7,)
    np.testing.assert_array_equal(obs["state"], np.zeros(8))
    if name == "film":
        np.testing.assert_allclose(np.stack(actions), predict(workplace / "film--2_chkpt"), atol=1e-6)
    assert get_image_resize_size(cfg) == SIZES.image_size
    with pytest.raises(ValueError, match="action_head is not that of the policy"):
        get_vla_action(cfg, vla, get_processor(cfg), obs, "Pick up the bowl", torch.nn.Linear(1, 1))
    closed = invert_gripper_action(normalize_gripper_action(np.array([[0.0, 0.9], [0.0, 0.1]])))
    np.testing.assert_array_equal(closed[:, -1], [-1, 1])


def test_device_augmentation_trains_and_default_instruction_is_used(workplace: Path) -> None:
    """Workers only decode; the images reach the model at its size, for training and validation alike."""
    finetune(_config(workplace, "device", {"device_augmentation": True, "default_instruction": "do the task"}))
    rows = [json.loads(line) for line in (workplace / "device" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["train/loss"]) for row in rows if "train/loss" in row)
    assert np.isfinite(predict(workplace / "device--2_chkpt")).all()
