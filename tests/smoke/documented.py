"""How each command of the documents is tested: the first rule that fits says it.

`Here` runs the command as it is written, with `extra` flags that make it short. `Elsewhere` names the test that runs it in a short form.
`Gpu` and `ByHand` say why no test runs it. A command that no rule fits, and a rule that fits no command, fail the test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PAGES = (
    "README_EN.md",
    "docs/from_openvla_oft.md",
    "ALOHA.md",
    "LIBERO.md",
    "SETUP.md",
    "CONTRIBUTING.md",
    "docs/rollouts.md",
    "docs/changed_scenes.md",
    "docs/reproductions/README.md",
    "benchmarks/README.md",
    "docs/lerobot.md",
    "docs/hdf5_rlds.md",
    "docs/laptop.md",
)
FOLLOWED_BY_A_TEST_OF_ITS_OWN = {"docs/own_robot.md": "tests/smoke/test_own_robot.py"}


@dataclass(frozen=True)
class Here:
    """Run in the workplace of test_documented_commands.py."""

    extra: str = ""  # flags, added at the end, where they win
    instead: str | None = None  # what a make target runs, in a short form
    serves: bool = False  # runs until it is ended
    statuses: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Elsewhere:
    """Run, in a short form, by another test."""

    test: str
    names: str  # what that test mentions if it does


@dataclass(frozen=True)
class Gpu:
    """Needs a GPU or several; `last` says when it was run."""

    last: str


@dataclass(frozen=True)
class ByHand:
    """Needs another machine, or too much time."""

    why: str


Rule = Here | Elsewhere | Gpu | ByHand

_SHORT = "--max_steps 2 --save_freq 2 --num_workers 0 --batch_size 2 --wandb_log_freq 1 --lora_rank 4"
_INSTALLS = ByHand("changes the machine or the environment that the tests run in")
_THIS = ByHand("is what runs this test")
_NOT_YET = Gpu("not yet run: needs eight GPUs, or the published checkpoints")
_RECORDED = Gpu("the date of the last run stands beside its results in benchmarks/README.md")

RULES: dict[str, Rule] = {
    # docs/lerobot.md
    r"lerobot-record .* --teleop\.type=so101_leader .*": ByHand("needs an arm and its leader"),
    r"lerobot-record .* --policy\.type=openvla_oft_remote .*": Elsewhere("tests/smoke/test_lerobot_policy.py", "lerobot_record"),
    r"lerobot-rollout .*": Elsewhere("tests/smoke/test_lerobot_policy.py", "lerobot_rollout"),
    r"python -m lerobot_policy_openvla_oft_remote .*": Elsewhere(
        "tests/smoke/test_lerobot_policy.py", '"lerobot_policy_openvla_oft_remote"'
    ),
    r"python scripts/run_robot\.py --robot lerobot:so101_follower .*": Elsewhere("tests/smoke/test_lerobot_robots.py", "run_robot.py"),
    r"python scripts/run_robot\.py --robot recorded:\S+ .*": Elsewhere("tests/unit/test_recorded_robot.py", "recorded:"),
    r"python vla-scripts/deploy\.py --pretrained_checkpoint runs/so101_pick.*": Elsewhere("tests/smoke/test_lerobot_robots.py", "Server("),
    r"python scripts/inspect_dataset\.py --suggest ~/\S+/me/so101_pick": Here(),
    r"python scripts/inspect_dataset\.py --dataset_name me/so101_pick .*|python scripts/convert/lerobot_to_rlds\.py .*": Here(),
    r"torchrun .* --dataset_name me/so101_pick .*": Here(_SHORT),
    r"pip install --no-deps \. && .*": ByHand("changes the robot's environment"),
    # docs/hdf5_rlds.md
    r"python vla-scripts/deploy\.py --pretrained_checkpoint runs/my_run--100000_chkpt": Elsewhere(
        "tests/smoke/test_own_robot.py", "deploy.py"
    ),
    r"python scripts/run_robot\.py --robot my_robots:MyArm .*": Elsewhere("tests/smoke/test_own_robot.py", "run_robot.py"),
    # docs/laptop.md
    r"python scripts/inspect_dataset\.py --dataset_name metaworld_demo .*": Here(),
    # README_EN.md
    r"make demo": Here(
        instead="python scripts/demo.py --num_demonstrations 4 --max_steps 4 --num_trials_per_task 1 --num_control_trials_per_task 1"
    ),
    r"(TORCH_INDEX_URL=\S+ )?make install": _INSTALLS,
    r"make (test|test-world|lint)|python -m pytest -x \S+": _THIS,
    r"python scripts/doctor\.py.*": Here(statuses=(0, 1)),  # 1: this machine has a problem
    r"python vla-scripts/deploy\.py .*": Here("--port 0", serves=True),
    r"python scripts/convert/aloha_hdf5_to_rlds\.py --input_dir (recordings|preprocessed/fold_shirt|runs/aloha_sim\S+) .*": Here(),
    r"python scripts/inspect_dataset\.py --(suggest data/my_robot|dataset_name (my_robot|fold_shirt)) .*": Here(),
    r"python scripts/inspect_dataset\.py --caches .*": Here("--frame_cache_dir cache"),
    r"torchrun .* --dataset_name my_robot --run_root_dir runs --use_l1_regression True .* --run_id_override my_run": Here(
        f"{_SHORT} --merge_lora_during_training False --frame_cache_dir cache"
    ),
    r"torchrun .* --dataset_name my_robot --run_root_dir runs --use_l1_regression True .* --lora_rank 32": Here(
        f"{_SHORT} --run_id_override as_published --merge_lora_during_training False --frame_cache_dir cache"
    ),
    r"python vla-scripts/finetune\.py --config_path vla-scripts/recipes/aloha\.yaml .*": Here(f"{_SHORT} --run_id_override another_run"),
    r"python vla-scripts/finetune\.py --vla_path runs/my_run--10000_chkpt .*": Here(_SHORT),
    r"python scripts/plot_run\.py .*": Here(),
    r"python vla-scripts/merge_lora_weights_and_save\.py .*": Here(),
    r"python scripts/push_to_hub\.py .*": Here("--dry_run True"),  # tests/smoke/test_push_to_hub.py uploads to a server of its own
    # docs/changed_scenes.md
    r"python scripts/robustness\.py .*": Here(
        "--num_trials_per_task 1 --axes [noise] --severities [3] --evaluation_flags '--task_names [faucet-open] --num_envs 1'"
    ),
    r"python experiments/robot/metaworld/run_metaworld_eval\.py .* --perturb .*": Elsewhere(
        "tests/smoke/test_metaworld.py", "changed_scenes.py"
    ),
    r"python experiments/robot/metaworld/run_metaworld_eval\.py .* --delay_steps .*": Elsewhere(
        "tests/unit/test_stepping.py", "SteppedActor("
    ),
    r"python experiments/robot/metaworld/run_metaworld_eval\.py .*": Here(
        "--num_trials_per_task 1 --task_names [faucet-open] --num_envs 1"
    ),
    # ALOHA.md
    r"python experiments/robot/aloha/preprocess_split_aloha_data\.py .*": Here("--percent_val 0.5"),
    r"torchrun .* --dataset_name (fold_shirt|aloha_sim_transfer_cube_scripted) .*": Here(_SHORT),
    r"python experiments/robot/aloha/run_aloha_eval\.py .*": Elsewhere("tests/smoke/test_aloha_eval.py", "run_aloha_eval.py"),
    r"python experiments/robot/aloha/run_aloha_sim_eval\.py .*": Here("--num_trials_per_task 1 --num_envs 1 --image_size 48"),
    r"python scripts/learning\.py --benchmark metaworld .*": Here(
        "--variants [film] --num_demonstrations 2 --max_steps 2 --num_trials_per_task 1 --num_control_trials_per_task 1"
    ),
    r"CUDA_VISIBLE_DEVICES=\d python scripts/learning\.py .* --num_parallel 3 .*": Gpu("run 2026-11-28 on two H200s, both at once"),
    r"python scripts/learning\.py .* --max_steps \d+": Gpu("run 2026-11-28 on an H200, limited by time in place of steps"),
    r"python experiments/robot/aloha/record_demos\.py .*": Here("--num_episodes 2 --image_size 48"),
    r"make aloha-smoke": Elsewhere("tests/smoke/test_aloha_simulation.py", "aloha_smoke.py"),
    # LIBERO.md
    r"make libero-smoke": Elsewhere("tests/smoke/test_libero.py", "libero_smoke.py"),
    r"python experiments/robot/libero/run_libero_eval\.py --pretrained_checkpoint moojink/.*": _NOT_YET,
    r"python experiments/robot/libero/run_libero_eval\.py .*": Elsewhere("tests/smoke/test_libero.py", "run_libero_eval.py"),
    r"python experiments/robot/libero/record_demos\.py .*": Elsewhere("tests/smoke/test_libero.py", "record_demos.py"),
    r"python experiments/robot/libero/regenerate_libero_dataset\.py .*": Elsewhere(
        "tests/smoke/test_libero_regeneration.py", "regenerate_libero_dataset.py"
    ),
    r"python scripts/convert/libero_hdf5_to_rlds\.py .*": Here(),
    r"python scripts/convert/aloha_hdf5_to_rlds\.py --input_dir runs/libero_\S+ .*": Elsewhere(
        "tests/smoke/test_convert_to_rlds.py", "aloha"
    ),
    r"python scripts/compare_runs\.py .*": Here(),
    r"torchrun .* --nproc-per-node 8 .* --dataset_name libero_spatial_no_noops .*": _NOT_YET,
    r"python scripts/make_base\.py --output_dir runs/tiny_base": Here(),
    r"torchrun .* --dataset_name libero_object_scripted .*": Here(_SHORT),
    # docs/rollouts.md
    r"python scripts/collect\.py .*": Elsewhere("tests/smoke/test_collect.py", "scripts/collect.py"),
    r"make improve-demo|python scripts/improve\.py .*": Elsewhere("tests/smoke/test_improve.py", "scripts/improve.py"),
    r"python scripts/make_manifest\.py .*": Elsewhere("tests/unit/test_step_rules.py", "ManifestConfig"),
    r"python scripts/inspect_dataset\.py .* --rerun .*": Elsewhere("tests/unit/test_scores.py", "InspectConfig"),
    # SETUP.md
    r"source .*|python3 -m venv .*|(\.venv/bin/)?pip install --constraint .*|conda .*": _INSTALLS,
    r"pip (wheel|install dist/).*": Elsewhere("tests/smoke/test_wheel.py", '"wheel"'),
    r"hf download (Stanford-ILIAD|Qwen)/.*": ByHand("downloads a base or its tokenizer from the Hub"),
    r"python scripts/convert/prismatic_to_base\.py .*": Elsewhere("tests/unit/test_prismatic_layout.py", "prismatic_to_base.py"),
    r"python vla-scripts/finetune\.py --config_path vla-scripts/recipes/small_8gb_card\.yaml .*": Elsewhere(
        "tests/unit/test_recipes.py", "small_8gb_card"
    ),
    r"python scripts/export\.py .*": Elsewhere("tests/unit/test_export.py", "export.py"),
    r"docker .*": ByHand("needs Docker"),
    r"torchrun --standalone --nnodes 1 --nproc-per-node 8 .* --data_root_dir data --dataset_name my_robot": Elsewhere(
        "tests/smoke/test_processes.py", "--nproc-per-node"
    ),
    r"torchrun --nnodes 2 .*": Elsewhere("tests/smoke/test_processes.py", "--rdzv-backend"),
    r"#!/bin/bash|#SBATCH .*|trap .*|head=.*|srun .*|wait .*|if \[ -n .*": ByHand("the lines of a Slurm job"),
    # benchmarks/README.md
    r"python scripts/pretrain_base\.py": Gpu(
        "last run 2026-11-25, see assets/tiny_base/README.md; tests/unit/test_pretraining.py tests its stages"
    ),
    r"python benchmarks/(check_7b|inference|serving|train_step)\.py .*|python benchmarks/data\.py --device cuda.*": _RECORDED,
    r"python scripts/compare_training\.py .*": Elsewhere("tests/unit/test_compare_training.py", "compare_training.py"),
    r"python benchmarks/lerobot_client\.py": ByHand("runs in LeRobot's environment; the date of the last run stands beside its results"),
    r"python -m pytest -m gpu tests|torchrun .* benchmarks/scaling\.py --work_dir /dev/shm.*": _RECORDED,
    r"python benchmarks/improvement\.py .*": Gpu("made for 16 cores; tests/unit/test_improvement.py tests its commands"),
    r"python benchmarks/spoiled\.py .*": Gpu("made for 16 cores; tests/unit/test_improvement.py tests its commands"),
    r"python benchmarks/mismatches\.py .*": Elsewhere("tests/smoke/test_mismatches.py", "mismatches"),
    r"torchrun .* benchmarks/scaling\.py .* --preset tiny .*|python benchmarks/(data|rollout|serving_soak)\.py .*": ByHand(
        "minutes on a CPU; its results are dated"
    ),
}


def find_rule(command: str) -> tuple[str, Rule]:
    """The pattern and the rule for a command.

    Raises:
        LookupError: nothing says how it is tested.
    """
    for pattern, rule in RULES.items():
        if re.fullmatch(pattern, command):
            return pattern, rule
    raise LookupError(f"tests/smoke/documented.py does not say how this is tested: {command}")
