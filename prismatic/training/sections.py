"""The sections of `FinetuneConfig`: one small dataclass per concern, with the checks that need nothing of the others.

A comment behind a flag is its line in --help; a comment alone above one is the heading of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismatic.policy.checkpoint.spec import HeadSpec, LoraSpec
from prismatic.vla.datasets.split_names import VAL_FRACTION
from prismatic.vla.run_names import check_note, check_run_name
from prismatic.vla.strong_augmentation import AUGMENTATIONS

PRECISIONS = ("auto", "bf16", "fp32")
STRATEGIES = ("auto", "ddp", "fsdp")
BASE_QUANTIZATIONS = ("none", "fp8", "nf4", "int8")
SWITCHES = ("auto", "True", "False")
OPTIMIZERS = ("adamw", "adamw_8bit")
LOGGERS = ("wandb", "tensorboard")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained: the base, the modules beside it, adapters, and what stays as it is."""

    # Model
    vla_path: str = "openvla/openvla-7b"  # base model, or a fine-tuned checkpoint to go on with: a folder, or a Hub id
    use_l1_regression: bool = True  # continuous actions, L1 loss
    use_diffusion: bool = False  # continuous actions, denoising loss; with both False actions are tokens, cross-entropy loss
    num_diffusion_steps_train: int = 50  # diffusion only
    use_film: bool = False  # modulate the vision features by the instruction
    num_images_in_input: int = 1  # cameras, the primary one first
    use_proprio: bool = False  # feed the robot's state
    fresh_heads: bool = False  # --vla_path is a fine-tuned checkpoint: begin with new heads, projectors, FiLM and statistics all the same

    # LoRA
    use_lora: bool = True  # False trains every weight
    lora_rank: int = 32  # of each adapter; alpha is min(rank, 16)
    lora_dropout: float = 0.0  # share of an adapter's inputs that is dropped
    quantize_base: str = "none"  # with LoRA: the frozen language model in fp8 (faster, Hopper or Ada), nf4 or int8 (less memory)

    # Freezing
    freeze_vision_backbone: bool = False  # the vision towers and their adapters stay as they are; FiLM's new layers are trained
    freeze_projector: bool = False  # the projector from vision to language, and its adapters, stay as they are
    freeze_language_model: bool = False  # the language model and its adapters stay as they are
    freeze_heads: bool = False  # action head and projectors of a fine-tuned --vla_path stay: with the two above, eyes and FiLM alone learn

    def __post_init__(self) -> None:
        _check_at_least_one(self, ("lora_rank", "num_diffusion_steps_train"))
        _check_choice(self, "quantize_base", BASE_QUANTIZATIONS)
        if not self.vla_path.strip():  # a variable of the shell that is not set; the working directory would be meant
            raise ValueError("--vla_path is empty; name a base model, such as openvla/openvla-7b, or a fine-tuned checkpoint")
        if self.num_images_in_input < 1:
            raise ValueError(f"--num_images_in_input is {self.num_images_in_input}; the policy needs at least the primary camera")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora_dropout is {self.lora_dropout}; it must be in [0, 1)")
        if self.use_l1_regression and self.use_diffusion:
            raise ValueError("--use_l1_regression and --use_diffusion are both True; set the one that you do not want to False")
        if self.quantize_base != "none" and not self.use_lora:
            raise ValueError(f"--quantize_base {self.quantize_base} needs --use_lora True: quantized weights cannot be trained themselves")
        if self.freeze_heads and self.fresh_heads:
            raise ValueError("--freeze_heads and --fresh_heads are both True; new heads that never learn would know nothing")
        has_heads = not self.freeze_heads and (self.heads.action_head != "discrete" or self.use_proprio)
        if len(self.frozen_parts) == 3 and not has_heads and not self.use_film:
            why = "--freeze_heads too" if self.freeze_heads else "and discrete actions have no head of their own"
            raise ValueError(
                f"--freeze_vision_backbone, --freeze_projector and --freeze_language_model are all True, {why}: nothing is left to train; "
                "set one of them to False"
            )

    @property
    def heads(self) -> HeadSpec:
        action_head = "l1" if self.use_l1_regression else "diffusion" if self.use_diffusion else "discrete"
        return HeadSpec(
            action_head=action_head,
            use_proprio=self.use_proprio,
            use_film=self.use_film,
            num_diffusion_steps_train=self.num_diffusion_steps_train if self.use_diffusion else None,
        )

    @property
    def lora(self) -> LoraSpec | None:
        return LoraSpec(self.lora_rank, self.lora_dropout) if self.use_lora else None

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """The parts of the base that training leaves alone, by their names in the model."""
        return tuple(part for part in ("vision_backbone", "projector", "language_model") if getattr(self, f"freeze_{part}"))


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on, and how samples are made."""

    # Data
    data_root_dir: Path = Path("datasets/rlds")  # folder that holds the data sets
    dataset_name: str = "aloha1_scoop_X_into_bowl_45_demos"  # a name of prismatic/vla/datasets/rlds/oxe/{configs,mixtures}.py
    robot_platform: str | None = None  # overrides the data-set entry's; a name of prismatic/vla/constants.py
    stride: str | None = None  # use every n-th recorded step: 2, or auto for the recorded rate over the robot's; None: as the entry says
    new_statistics: bool = False  # --vla_path is a fine-tuned checkpoint: normalize by these data, not as its heads have learnt it
    default_instruction: str | None = None  # for episodes without one, which are left out otherwise
    exclude_episodes: Path | None = None  # a file that lists episodes to leave out, one a line: train 12, or episode_7.hdf5
    episode_weights: str | None = None  # how often episodes are shown: a JSON file of rules, or a column of the recordings (success)
    max_bad_samples: int | None = None  # samples that cannot be decoded before the run stops; None: 0.1 % of an epoch, 10 at least
    image_aug: bool = True  # random crop and colour; evaluation then takes the centre crop
    augmentation: str = "standard"  # of image_aug; strong: wider colours, other viewpoints, noise and masks, for changed scenes
    paraphrases: Path | None = None  # JSON file: instruction -> list of other ways to say it, of which each sample has one
    device_augmentation: bool = False  # workers only decode (or read the frame cache); the training device resizes and augments
    frame_cache_dir: Path | None = None  # keep resized frames here, 152 KB each at 224 px; later epochs and runs only read them
    num_workers: int = 2  # processes that load data, per training process; 0 loads in the training process
    published_tail: bool = False  # as published: leave out the last steps of an episode, which less than a chunk of actions follows
    published_statistics: bool = False  # as published: normalize by all splits, validation and episodes without instruction included
    published_crop: bool = False  # as published: the random crop moves along the diagonal only
    shuffle_buffer_size: int = 100_000  # accepted for old commands; unused, the whole data set is always shuffled

    def __post_init__(self) -> None:
        _check_not_negative(self, ("num_workers", "max_bad_samples"))
        _check_choice(self, "augmentation", AUGMENTATIONS)
        if self.augmentation != "standard" and not self.image_aug:
            raise ValueError(f"--augmentation {self.augmentation} and --image_aug False contradict each other; leave one of them out")


@dataclass(frozen=True)
class OptimizationConfig:
    """How weights change."""

    # Optimization
    batch_size: int = 8  # samples per process and micro-batch
    grad_accumulation_steps: int = 1  # micro-batches per optimizer step
    max_steps: int = 200_000  # optimizer steps
    learning_rate: float = 5e-4  # of AdamW, before warm-up and decay
    lr_warmup_steps: int = 0  # steps over which the learning rate rises from a tenth to the whole
    num_steps_before_decay: int = 100_000  # the learning rate falls tenfold at this step
    weight_decay: float = 0.01  # of AdamW
    max_grad_norm: float | None = None  # clip the gradient's norm; the published recipe does not
    optimizer: str = "adamw"  # adamw_8bit keeps AdamW's moments in 8 bits (bitsandbytes)
    seed: int = 7  # weights of new modules, sampling, augmentation

    def __post_init__(self) -> None:
        _check_at_least_one(self, ("batch_size", "grad_accumulation_steps", "max_steps"))
        _check_not_negative(self, ("lr_warmup_steps", "num_steps_before_decay", "weight_decay"))
        _check_choice(self, "optimizer", OPTIMIZERS)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed is {self.seed}; it must be a whole number from 0 to {2**63 - 1}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning_rate is {self.learning_rate}; it must be above 0, and finite")
        if self.learning_rate < 1 and not self.learning_rate * self.weight_decay < 1:  # a greater one is told by the loss that it ruins
            raise ValueError(
                f"--weight_decay is {self.weight_decay}; each step takes --learning_rate {self.learning_rate} times as much from every "
                "weight, which must be less than all of it: 0.01 is usual"
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"--max_grad_norm is {self.max_grad_norm}; it must be above 0, or left out to clip nothing")

    @property
    def samples_per_step(self) -> int:
        """Samples that one process takes for one optimizer step."""
        return self.batch_size * self.grad_accumulation_steps


@dataclass(frozen=True)
class SavingConfig:
    """Where a run lies, which of its checkpoints stay, and whether it goes on from one."""

    # Saving and resuming
    run_root_dir: Path = Path("runs")  # folder that receives logs and checkpoints
    run_id_note: str | None = None  # appended to the run's name
    run_id_override: str | None = None  # the run's name
    save_freq: int = 10_000  # steps between checkpoints
    save_latest_checkpoint_only: bool = False  # one folder, replaced at every save
    keep_checkpoints: int | None = None  # newest checkpoints that stay; older ones go once a newer one is complete. None: all stay
    merge_lora_during_training: bool = True  # checkpoints also hold the merged model, ready for evaluation
    resume: bool = False  # continue the run exactly from its newest complete checkpoint
    auto_resume: bool = False  # like --resume if the run has a checkpoint, else start it: one command for schedulers that restart jobs
    resume_step: int | None = None  # with --resume: from this step instead

    def __post_init__(self) -> None:
        _check_at_least_one(self, ("save_freq", "keep_checkpoints"))
        check_run_name(self.run_id_override)
        check_note(self.run_id_note)
        if self.resume and self.auto_resume:
            raise ValueError("--resume and --auto_resume are both True; --auto_resume also starts a run that has no checkpoint yet")
        if self.keep_checkpoints is not None and self.save_latest_checkpoint_only:
            raise ValueError(
                f"--keep_checkpoints is {self.keep_checkpoints}, but --save_latest_checkpoint_only True keeps exactly one; give one of both"
            )
        if self.resume_step is not None and not self.resume:
            raise ValueError(f"--resume_step is {self.resume_step} without --resume True; add it, or leave --resume_step out")


@dataclass(frozen=True)
class LoggingConfig:
    """Who hears of the run."""

    # Logging
    logger: str = "none"  # beside metrics.jsonl: none, wandb, tensorboard, or both with a comma
    wandb_entity: str | None = None  # account or team at Weights & Biases
    wandb_project: str | None = None  # set it to log to Weights & Biases too
    wandb_log_freq: int = 10  # steps between log lines

    def __post_init__(self) -> None:
        _check_at_least_one(self, ("wandb_log_freq",))
        if unknown := [name for name in self.logger_names if name not in LOGGERS]:
            raise ValueError(
                f"--logger is {self.logger!r}: {unknown[0]!r} is unknown; choose none, {', '.join(LOGGERS)}, or {','.join(LOGGERS)}"
            )
        if self.wandb_entity and not self.wandb_project:
            raise ValueError(f"--wandb_entity is {self.wandb_entity!r} without --wandb_project; give both, or neither to log locally only")
        if "wandb" in self.logger_names and not self.wandb_project:
            raise ValueError(
                f"--logger is {self.logger!r} without --wandb_project; name the project of Weights & Biases that receives the run"
            )

    @property
    def logger_names(self) -> tuple[str, ...]:
        """What receives the metrics beside metrics.jsonl; a W&B project given alone counts, as in familiar commands."""
        names = [name.strip() for name in self.logger.split(",") if name.strip() not in ("", "none")]
        return tuple(dict.fromkeys([*names, *(["wandb"] if self.wandb_project else [])]))


@dataclass(frozen=True)
class EvaluationConfig:
    """How the policy is judged meanwhile: on episodes that were held back, and in closed loop."""

    # Validation and evaluation
    use_val_set: bool = False  # validate on the val split, or on episodes split off where there is none
    val_fraction: float = VAL_FRACTION  # share of episodes split off for --use_val_set when the data set has no val split
    val_freq: int = 10_000  # steps between validations
    val_time_limit: int = 180  # seconds, at most, per validation
    diffusion_sample_freq: int = 50  # diffusion only: steps between full denoising checks
    eval_every: int = 0  # steps between evaluations in a simulator, each on a checkpoint saved for it; 0: never
    eval_command: str | None = None  # what to run, with {checkpoint} and {output_dir}; the platform's own script by default

    def __post_init__(self) -> None:
        _check_at_least_one(self, ("val_freq", "val_time_limit", "diffusion_sample_freq"))
        _check_not_negative(self, ("eval_every",))
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"--val_fraction is {self.val_fraction}; it must be in (0, 1)")
        if self.eval_command is None:
            return
        if not self.eval_every:
            raise ValueError(f"--eval_command is {self.eval_command!r}, but --eval_every is 0; say after how many steps to evaluate")
        if "{checkpoint}" not in self.eval_command or "{output_dir}" not in self.eval_command:
            raise ValueError(
                f"--eval_command is {self.eval_command!r}; it must contain {{checkpoint}}, the folder to evaluate, and {{output_dir}}, "
                "where it writes report.json"
            )


@dataclass(frozen=True)
class SpeedConfig:
    """How the same numbers are computed: dtypes, processes, recordings, memory."""

    # Speed and memory
    precision: str = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    strategy: str = "auto"  # on several processes: ddp copies the model, fsdp shards it; auto: ddp with LoRA, fsdp without
    compile: str = "auto"  # compile the model's blocks: auto (on a GPU with a C compiler), True or False
    cuda_graphs: str = "auto"  # replay recorded steps: auto (where tried, on one node), True (wherever possible) or False
    activation_memory_budget: float = 0.85  # compiled: share of a block's activations to keep; the rest is computed again when needed
    gradient_checkpointing: bool = False  # keep only each block's input: a quarter less speed, a fraction of the memory

    def __post_init__(self) -> None:
        for name, choices in (("precision", PRECISIONS), ("strategy", STRATEGIES), ("compile", SWITCHES), ("cuda_graphs", SWITCHES)):
            _check_choice(self, name, choices)
        if not 0 < self.activation_memory_budget <= 1:
            raise ValueError(f"--activation_memory_budget is {self.activation_memory_budget}; it must be above 0 and at most 1")


def _check_at_least_one(section: Any, names: Sequence[str]) -> None:
    for name in names:
        if (value := getattr(section, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")


def _check_not_negative(section: Any, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(section, name)
        if value is not None and value < 0:
            raise ValueError(f"--{name} is {value}; it cannot be negative")


def _check_choice(section: Any, name: str, choices: Sequence[str]) -> None:
    if (value := getattr(section, name)) not in choices:
        raise ValueError(f"--{name} is {value!r}; choose one of {', '.join(choices)}")
