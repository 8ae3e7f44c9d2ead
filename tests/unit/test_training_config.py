"""Contradictory or impossible flags are refused with the flag's name before anything loads."""

from __future__ import annotations

import pytest

from prismatic.training.config import FinetuneConfig
from prismatic.training.optim import learning_rate_factor


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"use_diffusion": True}, "use_l1_regression and --use_diffusion are both True"),
        ({"num_images_in_input": 0}, "--num_images_in_input is 0"),
        ({"batch_size": 0}, "--batch_size is 0"),
        ({"learning_rate": -1.0}, "--learning_rate is -1.0"),
        ({"lora_dropout": 1.0}, "--lora_dropout is 1.0"),
        ({"precision": "fp8"}, "--precision is 'fp8'"),
        ({"resume_step": 5}, "--resume_step needs --resume True"),
        ({"wandb_entity": "me"}, "--wandb_entity is set without --wandb_project"),
        ({"val_fraction": 0.0}, "--val_fraction is 0.0"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**flags)  # type: ignore[arg-type]


def test_run_id_is_the_published_one() -> None:
    config = FinetuneConfig(vla_path="some/tinybase", dataset_name="ds", lora_rank=4, grad_accumulation_steps=2, batch_size=4)
    assert config.run_id == "tinybase+ds+b8+lr-0.0005+lora-r4+dropout-0.0--image_aug"
    assert FinetuneConfig(use_lora=False, image_aug=False, run_id_note="x").run_id.endswith("+b8+lr-0.0005--x")


def test_warmup_and_decay_multiply() -> None:
    assert learning_rate_factor(0, lr_warmup_steps=10, num_steps_before_decay=100) == pytest.approx(0.19)
    assert learning_rate_factor(9, lr_warmup_steps=10, num_steps_before_decay=100) == pytest.approx(1.0)
    assert learning_rate_factor(100, lr_warmup_steps=10, num_steps_before_decay=100) == pytest.approx(0.1)
    assert learning_rate_factor(0, lr_warmup_steps=0, num_steps_before_decay=0) == pytest.approx(0.1)
