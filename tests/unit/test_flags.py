"""All flags of training, and why each exists. A new flag is a decision: it stands here with the reason why no default can serve."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from experiments.robot.aloha.preprocess_split_aloha_data import PreprocessConfig
from experiments.robot.aloha.run_aloha_eval import AlohaEvalConfig as AlohaConfig
from experiments.robot.aloha.run_aloha_sim_eval import EvalConfig as AlohaSimConfig
from experiments.robot.evaluation.driving import DrivingFlags
from experiments.robot.evaluation.plan import EvaluationFlags
from experiments.robot.libero.regenerate_libero_dataset import RegenerateConfig
from experiments.robot.libero.run_libero_eval import EvalConfig as LiberoConfig
from experiments.robot.metaworld.run_metaworld_eval import EvalConfig as MetaWorldConfig
from experiments.robot.recording.record import RecordingOptions
from prismatic.cli import parse_flags
from prismatic.cli_sections import flag_names, flag_values
from prismatic.commands.convert_aloha import ConvertConfig
from prismatic.commands.make_manifest import ManifestConfig
from prismatic.models.sizes import TinySizes
from prismatic.training.config import FinetuneConfig

ROOT = Path(__file__).parents[2]

PUBLISHED = "a name of the published command, which people type from memory"
FLAGS = {
    # model
    "vla_path": PUBLISHED,
    "use_l1_regression": PUBLISHED,
    "use_diffusion": PUBLISHED,
    "num_diffusion_steps_train": PUBLISHED,
    "use_film": PUBLISHED,
    "num_images_in_input": PUBLISHED,
    "use_proprio": PUBLISHED,
    "fresh_heads": "continuing a policy is the default; a new task for an old robot may want its eyes alone",
    "use_lora": PUBLISHED,
    "lora_rank": PUBLISHED,
    "lora_dropout": PUBLISHED,
    "quantize_base": "trades accuracy for memory (nf4, int8) or speed (fp8), which its owner must weigh",
    "freeze_vision_backbone": "what a few demonstrations may change is a judgement of the user",
    "freeze_projector": "as freeze_vision_backbone",
    "freeze_language_model": "as freeze_vision_backbone",
    "freeze_heads": "as freeze_vision_backbone",
    # data
    "data_root_dir": PUBLISHED,
    "dataset_name": PUBLISHED,
    "robot_platform": "an entry written for other code names none, and two robots may have the same widths",
    "stride": "how fast the robot will be commanded is not in the recordings, and one set may serve robots of several rates",
    "new_statistics": "the default keeps what heads have learnt; data far beyond need a range of their own",
    "default_instruction": "only the user knows what was done where a recording does not say it",
    "exclude_episodes": "which demonstrations are bad is a judgement of the user",
    "episode_weights": "which episodes count for how much (successes, interventions, the last rounds) is a judgement of the user",
    "max_bad_samples": "how much damage is too much depends on what the data are worth",
    "image_aug": PUBLISHED,
    "augmentation": "wider augmentation costs accuracy on unchanged scenes and gains it on changed ones, which its owner must weigh",
    "paraphrases": "other words for a task are the user's own",
    "device_augmentation": "trades the processor's time for the GPU's; which is scarce depends on the machine",
    "frame_cache_dir": "takes disk space, which only the user may spend",
    "num_workers": "processor cores are shared with others, who are not seen from inside",
    "published_tail": "to compare with numbers of the published system, which loses the end of each episode",
    "published_statistics": "as published_tail: its statistics look at the validation set",
    "published_crop": "as published_tail: its crop draws one offset for both axes",
    "shuffle_buffer_size": PUBLISHED,
    # optimization
    "batch_size": PUBLISHED,
    "grad_accumulation_steps": PUBLISHED,
    "max_steps": PUBLISHED,
    "learning_rate": PUBLISHED,
    "lr_warmup_steps": PUBLISHED,
    "num_steps_before_decay": PUBLISHED,
    "weight_decay": "the published 0.01 is AdamW's own default; full fine-tuning on little data may need more",
    "max_grad_norm": "the published recipe clips nothing, a run that diverges needs it",
    "optimizer": "moments in 8 bits save memory and change the numbers",
    "seed": "runs that shall differ only by chance",
    # saving
    "run_root_dir": PUBLISHED,
    "run_id_note": PUBLISHED,
    "run_id_override": PUBLISHED,
    "save_freq": PUBLISHED,
    "save_latest_checkpoint_only": PUBLISHED,
    "keep_checkpoints": "disk space against the choice of an earlier checkpoint",
    "merge_lora_during_training": PUBLISHED,
    "resume": PUBLISHED,
    "auto_resume": "a scheduler repeats one command, whether the run has begun or not",
    "resume_step": PUBLISHED,
    # logging
    "logger": "TensorBoard beside or in place of W&B",
    "wandb_entity": PUBLISHED,
    "wandb_project": PUBLISHED,
    "wandb_log_freq": PUBLISHED,
    # evaluation
    "use_val_set": PUBLISHED,
    "val_fraction": "how many of few demonstrations may be held back is a judgement of the user",
    "val_freq": PUBLISHED,
    "val_time_limit": PUBLISHED,
    "diffusion_sample_freq": PUBLISHED,
    "eval_every": "closed loop takes a simulator and its time",
    "eval_command": "a simulator of the user's own",
    # speed
    "precision": "comparisons in float32 on a GPU",
    "strategy": "frozen weights that do not fit on one card are sharded with LoRA, too",
    "compile": "a compiler that fails or takes too long must be avoidable",
    "cuda_graphs": "a recording that fails must be avoidable, and untried cases can be tried",
    "activation_memory_budget": "memory against speed, depending on the card",
    "gradient_checkpointing": "as activation_memory_budget, where nothing is compiled",
}


# Flags of rollouts on robots and in simulators that came with recordings.
ROLLOUT_FLAGS = {
    "record": "takes disk space and reads the cameras at every step, which only the user may spend",
    "leader": "what a person takes over with is hardware of the user",
    "leader_args": "ports and calibrations of that hardware",
}


def test_flags_of_rollouts_are_decisions() -> None:
    assert set(ROLLOUT_FLAGS) <= set(flag_names(DrivingFlags))
    assert "record" in flag_names(EvaluationFlags)


@pytest.mark.parametrize("flags", [DrivingFlags, partial(LiberoConfig, policy="expert")])
def test_a_note_leads_nowhere_else(flags: Callable[..., Any]) -> None:
    assert flags(run_id_note="second/try").run_id_note == "second/try"
    for note in ("../../x", "a/../b", ".."):
        with pytest.raises(ValueError, match=r"--run_id_note is '.*', which leads out of the folder of the runs"):
            flags(run_id_note=note)


PATHS = {"input_dir": Path("in"), "dataset_name": "desk", "data_root_dir": Path("out")}


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (partial(ConvertConfig, **PATHS), "image_size"),
        (TinySizes, "image_size"),
        (partial(PreprocessConfig, Path("in"), Path("out")), "img_resize_size"),
        (partial(RegenerateConfig, "libero_goal", Path(), Path("out")), "image_size"),
        (partial(MetaWorldConfig, policy="expert"), "image_size"),
        (partial(AlohaSimConfig, policy="expert"), "image_size"),
        (partial(AlohaConfig, vla_server_url="host"), "image_size"),
        (partial(LiberoConfig, policy="expert"), "env_img_res"),
        (lambda **size: RecordingOptions(Path("out"), pictures=size), "image_size"),
    ],
)
def test_pictures_that_no_memory_holds_are_refused_by_their_flag(flags: Callable[..., Any], name: str) -> None:
    """100000 pixels a side were a trace of numpy's, or took the machine's memory until the process was killed."""
    flags(**{name: 8192})
    for pixels, bound in ((100_000, "at most 8192 pixels"), (0, "at least 1")):
        with pytest.raises(ValueError, match=rf"--{name} is {pixels}[;,] (it )?must be {bound}"):
            flags(**{name: pixels})


def test_an_endless_rate_of_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="--video_hz is inf, must be a finite number"):
        DrivingFlags(video_hz=float("inf"))
    for rate in (-1.0, 1e-310, 1e12):  # the last two ended in an overflow once the robot was connected
        with pytest.raises(ValueError, match=rf"--video_hz is {rate}, .* not negative: 0 for no videos, else 0.001 to 1e\+06"):
            DrivingFlags(video_hz=rate)
    assert [DrivingFlags(video_hz=rate).video_hz for rate in (0.0, 0.5, 1000.0)] == [0.0, 0.5, 1000.0]


def test_steps_to_ask_ahead_are_not_negative() -> None:
    with pytest.raises(ValueError, match="--prefetch_steps is -1, must not be negative"):
        DrivingFlags(prefetch_steps=-1)


def test_every_flag_is_a_decision() -> None:
    names = flag_names(FinetuneConfig)
    assert len(names) == len(set(names)), "two sections have a flag of one name"
    assert list(names) == list(FLAGS), "a new flag needs a line in FLAGS, in the order of prismatic/training/sections.py, that says why"
    assert all(reason.strip() for reason in FLAGS.values())


def test_flags_are_read_by_the_code() -> None:
    read = {"freeze_vision_backbone", "freeze_projector", "freeze_language_model"}  # by `frozen_parts`, by name
    for path in (ROOT / "prismatic" / "training").glob("*.py"):
        tree = ast.parse(path.read_text())
        checks = [node for node in ast.walk(tree) if getattr(node, "name", "") == "__post_init__"]
        checked = {id(node) for check in checks for node in ast.walk(check)}
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) not in checked}
    assert set(FLAGS) - read == {"shuffle_buffer_size"}, "flags that are checked and never used, beside the one accepted for old commands"


def test_a_configuration_is_made_again_from_its_flags() -> None:
    config = FinetuneConfig.from_flags(batch_size=3, run_root_dir=Path("elsewhere"), use_film=True, logger="tensorboard")
    assert FinetuneConfig.from_flags(**flag_values(config)) == config


@pytest.mark.parametrize("words", [["--weights", "{success: 2, by person: 1, success: 0}"], ["--weights={success: 2, success: 0}"]])
def test_a_table_that_says_a_name_twice_is_refused(words: list[str]) -> None:
    """YAML keeps the last without a word."""
    with pytest.raises(ValueError, match="--weights says success twice, of which the last would count; keep one"):
        parse_flags(ManifestConfig, ["--output", "a.json", "--recordings", "[.]", *words])
