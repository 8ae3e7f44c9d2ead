"""Contradictory or impossible flags are refused with the flag's name before anything loads."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from prismatic.cli_sections import flag_values
from prismatic.training.config import FinetuneConfig
from prismatic.training.optim import learning_rate_factor
from prismatic.training.run_choice import choose_run

ALL_FROZEN = {"freeze_vision_backbone": True, "freeze_projector": True, "freeze_language_model": True}
# flags -> what is wrong, what to do about it
REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"vla_path": ""}, "--vla_path is empty", "openvla/openvla-7b"),
    ({"use_diffusion": True}, "--use_l1_regression and --use_diffusion are both True", "set the one that you do not want to False"),
    ({"num_images_in_input": 0}, "--num_images_in_input is 0", "needs at least the primary camera"),
    ({"batch_size": 0}, "--batch_size is 0", "at least 1"),
    ({"val_time_limit": 0}, "--val_time_limit is 0", "at least 1"),
    ({"lr_warmup_steps": -1}, "--lr_warmup_steps is -1", "cannot be negative"),
    ({"eval_every": -5}, "--eval_every is -5", "cannot be negative"),
    ({"weight_decay": -0.1}, "--weight_decay is -0.1", "cannot be negative"),
    ({"learning_rate": -1.0}, "--learning_rate is -1.0", "above 0"),
    ({"learning_rate": math.inf}, "--learning_rate is inf", "finite"),
    ({"weight_decay": math.inf}, "--weight_decay is inf", "0.01 is usual"),
    ({"weight_decay": 2000.0}, "--weight_decay is 2000.0; each step takes --learning_rate 0.0005 times as much", "less than all of it"),
    ({"max_grad_norm": 0.0}, "--max_grad_norm is 0.0", "left out to clip nothing"),
    ({"seed": -1}, "--seed is -1", "from 0 to"),
    ({"seed": 2**63}, f"--seed is {2**63}", "from 0 to"),
    ({"lora_dropout": 1.0}, "--lora_dropout is 1.0", "in [0, 1)"),
    ({"val_fraction": 0.0}, "--val_fraction is 0.0", "in (0, 1)"),
    ({"precision": "fp8"}, "--precision is 'fp8'", "auto, bf16, fp32"),
    ({"strategy": "zero"}, "--strategy is 'zero'", "choose one of auto, ddp, fsdp"),
    ({"keep_checkpoints": 0}, "--keep_checkpoints is 0", "at least 1"),
    ({"run_id_override": "../x"}, "--run_id_override is '../x'", "no folder in --run_root_dir"),
    ({"run_id_override": "."}, "--run_id_override is '.'", "no folder in --run_root_dir"),
    ({"run_id_note": "../../x"}, "--run_id_note is '../../x'", "leads out of the folder of the runs"),
    ({"run_id_override": "/x"}, "--run_id_override is '/x'", "no folder in --run_root_dir"),
    ({"keep_checkpoints": 2, "save_latest_checkpoint_only": True}, "--keep_checkpoints is 2", "give one of both"),
    ({"resume": True, "auto_resume": True}, "--resume and --auto_resume are both True", "no checkpoint yet"),
    ({"resume_step": 5}, "--resume_step is 5 without --resume True", "add it"),
    ({"wandb_entity": "me"}, "--wandb_entity is 'me' without --wandb_project", "give both"),
    ({"logger": "wandb"}, "--logger is 'wandb' without --wandb_project", "name the project"),
    ({"logger": "tensorbord"}, "--logger is 'tensorbord'", "choose none, wandb, tensorboard"),
    ({"eval_command": "true {checkpoint} {output_dir}"}, "--eval_every is 0", "after how many steps"),
    ({"eval_every": 5, "eval_command": "true {checkpoint}"}, "--eval_command is 'true {checkpoint}'", "{output_dir}"),
    ({**ALL_FROZEN, "use_l1_regression": False}, "nothing is left to train", "set one of them to False"),
]


@pytest.mark.parametrize(("flags", "problem", "remedy"), REFUSED)
def test_contradictions_name_flag_value_and_remedy(flags: dict[str, object], problem: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as refused:
        FinetuneConfig.from_flags(**flags)  # type: ignore[arg-type]
    assert remedy in str(refused.value)


def test_a_frozen_base_may_still_train_a_head() -> None:
    assert FinetuneConfig.from_flags(**ALL_FROZEN).model.frozen_parts == ("vision_backbone", "projector", "language_model")  # type: ignore[arg-type]
    assert FinetuneConfig.from_flags(**ALL_FROZEN, use_l1_regression=False, use_film=True).model.heads.action_head == "discrete"  # type: ignore[arg-type]


def test_a_wandb_project_alone_turns_wandb_on() -> None:
    assert FinetuneConfig().logging.logger_names == ()
    assert FinetuneConfig.from_flags(wandb_project="p", wandb_entity="me").logging.logger_names == ("wandb",)
    assert FinetuneConfig.from_flags(wandb_project="p", logger="tensorboard, wandb").logging.logger_names == ("tensorboard", "wandb")


PUBLISHED_DEFAULTS = {
    **{
        "vla_path": "openvla/openvla-7b",
        "run_root_dir": Path("runs"),
        "data_root_dir": Path("datasets/rlds"),
        "shuffle_buffer_size": 100_000,
    },
    **{"use_l1_regression": True, "use_diffusion": False, "num_diffusion_steps_train": 50, "use_film": False, "num_images_in_input": 1},
    **{"use_proprio": False, "batch_size": 8, "learning_rate": 5e-4, "lr_warmup_steps": 0, "num_steps_before_decay": 100_000},
    **{"grad_accumulation_steps": 1, "max_steps": 200_000, "use_val_set": False, "val_freq": 10_000, "val_time_limit": 180},
    **{"save_freq": 10_000, "save_latest_checkpoint_only": False, "resume": False, "resume_step": None, "image_aug": True},
    **{"diffusion_sample_freq": 50, "use_lora": True, "lora_rank": 32, "lora_dropout": 0.0, "merge_lora_during_training": True},
    **{"run_id_note": None, "run_id_override": None, "wandb_log_freq": 10},
}


def test_familiar_flags_have_their_published_defaults() -> None:
    config = FinetuneConfig()
    assert {name: flag_values(config)[name] for name in PUBLISHED_DEFAULTS} == PUBLISHED_DEFAULTS
    assert {"dataset_name", "wandb_entity", "wandb_project"} <= set(flag_values(config))


def test_run_id_is_the_published_one() -> None:
    config = FinetuneConfig.from_flags(vla_path="some/tinybase", dataset_name="ds", lora_rank=4, grad_accumulation_steps=2, batch_size=4)
    assert config.run_id == "tinybase+ds+b8+lr-0.0005+lora-r4+dropout-0.0--image_aug"
    assert FinetuneConfig.from_flags(use_lora=False, image_aug=False, run_id_note="x").run_id.endswith("+b8+lr-0.0005--x")


def test_resuming_from_a_named_checkpoint_continues_its_run(tmp_path: Path) -> None:
    config = FinetuneConfig.from_flags(vla_path="runs/my_run--10000_chkpt", resume=True, run_root_dir=tmp_path)
    assert config.as_run(choose_run(config)).run_id == "my_run"
    assert FinetuneConfig.from_flags(vla_path="runs/my_run--10000_chkpt").run_id.startswith("my_run--10000_chkpt+")


def test_warmup_and_decay_multiply() -> None:
    assert learning_rate_factor(0, lr_warmup_steps=10, num_steps_before_decay=100) == pytest.approx(0.19)
    assert learning_rate_factor(9, lr_warmup_steps=10, num_steps_before_decay=100) == pytest.approx(1.0)
    assert learning_rate_factor(100, lr_warmup_steps=10, num_steps_before_decay=100) == pytest.approx(0.1)
    assert learning_rate_factor(0, lr_warmup_steps=0, num_steps_before_decay=0) == pytest.approx(0.1)
