"""The flags of vla-scripts/finetune.py: the familiar names with their published defaults, then ours."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from prismatic.policy.checkpoint.spec import HeadSpec, LoraSpec

PRECISIONS = ("auto", "bf16", "fp32")
STRATEGIES = ("auto", "ddp", "fsdp")
BASE_QUANTIZATIONS = ("none", "nf4", "int8")
SWITCHES = ("auto", "True", "False")
OPTIMIZERS = ("adamw", "adamw_8bit")
LOGGERS = ("wandb", "tensorboard")


@dataclass
class FinetuneConfig:
    """Fine-tunes an OpenVLA base on one data set or mixture."""

    # Where things are
    vla_path: str = "openvla/openvla-7b"  # base model: a folder in the published layout, or a Hub id
    data_root_dir: Path = Path("datasets/rlds")  # folder that holds the data sets
    dataset_name: str = "aloha1_scoop_X_into_bowl_45_demos"  # a name of prismatic/vla/datasets/rlds/oxe/{configs,mixtures}.py
    run_root_dir: Path = Path("runs")  # folder that receives logs and checkpoints
    shuffle_buffer_size: int = 100_000  # accepted for old commands; unused, the whole data set is always shuffled

    # Model
    use_l1_regression: bool = True  # continuous actions, L1 loss
    use_diffusion: bool = False  # continuous actions, denoising loss; with both False actions are tokens, cross-entropy loss
    num_diffusion_steps_train: int = 50  # diffusion only
    use_film: bool = False  # modulate the vision features by the instruction
    num_images_in_input: int = 1  # cameras, the primary one first
    use_proprio: bool = False  # feed the robot's state

    # Training
    batch_size: int = 8  # samples per process and micro-batch
    learning_rate: float = 5e-4  # of AdamW, before warm-up and decay
    lr_warmup_steps: int = 0  # steps over which the learning rate rises from a tenth to the whole
    num_steps_before_decay: int = 100_000  # the learning rate falls tenfold at this step
    grad_accumulation_steps: int = 1  # micro-batches per optimizer step
    max_steps: int = 200_000  # optimizer steps
    use_val_set: bool = False  # validate on the val split, or on episodes split off where there is none
    val_freq: int = 10_000  # steps between validations
    val_time_limit: int = 180  # seconds, at most, per validation
    save_freq: int = 10_000  # steps between checkpoints
    save_latest_checkpoint_only: bool = False  # one folder, replaced at every save
    keep_checkpoints: int | None = None  # newest checkpoints that stay; older ones go once a newer one is complete. None: all stay
    resume: bool = False  # continue the run exactly from its newest complete checkpoint
    auto_resume: bool = False  # like --resume if the run has a checkpoint, else start it: one command for schedulers that restart jobs
    resume_step: int | None = None  # with --resume: from this step instead
    image_aug: bool = True  # random crop and colour; evaluation then takes the centre crop
    diffusion_sample_freq: int = 50  # diffusion only: steps between full denoising checks

    # LoRA
    use_lora: bool = True  # False trains every weight
    lora_rank: int = 32  # of each adapter; alpha is min(rank, 16)
    lora_dropout: float = 0.0  # share of an adapter's inputs that is dropped
    merge_lora_during_training: bool = True  # checkpoints also hold the merged model, ready for evaluation

    # Logging
    wandb_entity: str | None = None  # account or team at Weights & Biases
    wandb_project: str | None = None  # set it to log to Weights & Biases too
    run_id_note: str | None = None  # appended to the run's name
    run_id_override: str | None = None  # the run's name
    wandb_log_freq: int = 10  # steps between log lines
    logger: str = "none"  # beside metrics.jsonl: none, wandb, tensorboard, or both with a comma

    # Robot and data (this and what follows are ours)
    robot_platform: str | None = None  # overrides the data-set entry's; a name of prismatic/vla/constants.py
    default_instruction: str | None = None  # for episodes without one, which are left out otherwise
    val_fraction: float = 0.05  # share of episodes split off for --use_val_set when the data set has no val split
    device_augmentation: bool = False  # workers only decode (or read the frame cache); the training device resizes and augments
    frame_cache_dir: Path | None = None  # keep resized frames here, 152 KB each at 224 px; later epochs and runs only read them
    num_workers: int = 2  # processes that load data, per training process; 0 loads in the training process

    # Optimization
    seed: int = 7  # weights of new modules, sampling, augmentation
    precision: str = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    strategy: str = "auto"  # on several processes: ddp copies the model, fsdp shards it; auto: ddp with LoRA, fsdp without
    weight_decay: float = 0.01  # of AdamW
    max_grad_norm: float | None = None  # clip the gradient's norm; the published recipe does not

    # Speed and memory
    compile: str = "auto"  # compile the model's blocks: auto (on a GPU with a C compiler), True or False
    cuda_graphs: str = "auto"  # replay recorded steps: auto (where tried, on one node), True (wherever possible) or False
    activation_memory_budget: float = 0.85  # compiled: share of a block's activations to keep; the rest is computed again when needed
    gradient_checkpointing: bool = False  # keep only each block's input: a quarter less speed, a fraction of the memory
    quantize_base: str = "none"  # hold the frozen language model in nf4 (4 bits) or int8; with LoRA only, for cards with little memory
    optimizer: str = "adamw"  # adamw_8bit keeps AdamW's moments in 8 bits (bitsandbytes)

    # Freezing
    freeze_vision_backbone: bool = False  # the vision towers and their adapters stay as they are; FiLM's new layers are trained
    freeze_projector: bool = False  # the projector from vision to language, and its adapters, stay as they are
    freeze_language_model: bool = False  # the language model and its adapters stay as they are

    # Evaluation in closed loop while training
    eval_every: int = 0  # steps between evaluations in a simulator, each on a checkpoint saved for it; 0: never
    eval_command: str | None = None  # what to run, with {checkpoint} and {output_dir}; the platform's own script by default

    def __post_init__(self) -> None:
        self._check_heads()
        self._check_numbers()
        if self.precision not in PRECISIONS:
            raise ValueError(f"--precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        self._check_memory_savers()
        self._check_survival()
        if self.resume_step is not None and not self.resume:
            raise ValueError(f"--resume_step is {self.resume_step} without --resume True; add it, or leave --resume_step out")
        self._check_loggers()
        self._check_evaluation()

    def _check_heads(self) -> None:
        if self.use_l1_regression and self.use_diffusion:
            raise ValueError("--use_l1_regression and --use_diffusion are both True; set the one that you do not want to False")
        frozen_base = self.freeze_vision_backbone and self.freeze_projector and self.freeze_language_model
        if frozen_base and self.heads.action_head == "discrete" and not self.use_proprio and not self.use_film:
            raise ValueError(
                "--freeze_vision_backbone, --freeze_projector and --freeze_language_model are all True, and discrete actions have no head "
                "of their own: nothing is left to train; set one of them to False"
            )

    def _check_loggers(self) -> None:
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

    def _check_evaluation(self) -> None:
        if self.eval_command is None:
            return
        if not self.eval_every:
            raise ValueError(f"--eval_command is {self.eval_command!r}, but --eval_every is 0; say after how many steps to evaluate")
        if "{checkpoint}" not in self.eval_command or "{output_dir}" not in self.eval_command:
            raise ValueError(
                f"--eval_command is {self.eval_command!r}; it must contain {{checkpoint}}, the folder to evaluate, and {{output_dir}}, "
                "where it writes report.json"
            )

    def _check_survival(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"--strategy is {self.strategy!r}; choose one of {', '.join(STRATEGIES)}")
        if self.resume and self.auto_resume:
            raise ValueError("--resume and --auto_resume are both True; --auto_resume also starts a run that has no checkpoint yet")
        if self.keep_checkpoints is not None and self.save_latest_checkpoint_only:
            raise ValueError(
                f"--keep_checkpoints is {self.keep_checkpoints}, but --save_latest_checkpoint_only True keeps exactly one; give one of both"
            )

    def _check_memory_savers(self) -> None:
        for name, choices in (
            ("compile", SWITCHES),
            ("cuda_graphs", SWITCHES),
            ("quantize_base", BASE_QUANTIZATIONS),
            ("optimizer", OPTIMIZERS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"--{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.compile == "True" and self.recomputes_dropout:
            raise ValueError(
                f"--compile is True, --gradient_checkpointing is True and --lora_dropout is {self.lora_dropout}: a compiled block "
                "would draw the dropout again when it recomputes; leave one of the three out"
            )
        if not 0 < self.activation_memory_budget <= 1:
            raise ValueError(f"--activation_memory_budget is {self.activation_memory_budget}; it must be above 0 and at most 1")
        if self.quantize_base != "none" and not self.use_lora:
            raise ValueError(f"--quantize_base {self.quantize_base} needs --use_lora True: quantized weights cannot be trained themselves")

    def _check_numbers(self) -> None:
        positive = (
            "batch_size",
            "grad_accumulation_steps",
            "max_steps",
            "val_freq",
            "val_time_limit",
            "save_freq",
            "wandb_log_freq",
            "lora_rank",
            "num_diffusion_steps_train",
            "diffusion_sample_freq",
        )
        for name in (*positive, *(["keep_checkpoints"] if self.keep_checkpoints is not None else [])):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr_warmup_steps", "num_steps_before_decay", "num_workers", "weight_decay", "eval_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} is {getattr(self, name)}; it cannot be negative")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"--max_grad_norm is {self.max_grad_norm}; it must be above 0, or left out to clip nothing")
        if self.num_images_in_input < 1:
            raise ValueError(f"--num_images_in_input is {self.num_images_in_input}; the policy needs at least the primary camera")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning_rate is {self.learning_rate}; it must be above 0")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora_dropout is {self.lora_dropout}; it must be in [0, 1)")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"--val_fraction is {self.val_fraction}; it must be in (0, 1)")

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
    def recomputes_dropout(self) -> bool:
        """Whether blocks are computed again in the backward pass and must then drop the same inputs."""
        return self.gradient_checkpointing and self.use_lora and self.lora_dropout > 0

    @property
    def logger_names(self) -> tuple[str, ...]:
        """What receives the metrics beside metrics.jsonl; a W&B project given alone counts, as in familiar commands."""
        names = [name.strip() for name in self.logger.split(",") if name.strip() not in ("", "none")]
        return tuple(dict.fromkeys([*names, *(["wandb"] if self.wandb_project else [])]))

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """The parts of the base that training leaves alone, by their names in the model."""
        return tuple(part for part in ("vision_backbone", "projector", "language_model") if getattr(self, f"freeze_{part}"))

    @property
    def shards_model(self) -> bool:
        """Whether several processes share the weights out among them."""
        return self.strategy == "fsdp" or (self.strategy == "auto" and not self.use_lora)

    @property
    def run_id(self) -> str:
        """The run's name; checkpoints of step N lie in `<run_root_dir>/<run_id>--<N>_chkpt`."""
        if self.run_id_override:
            return self.run_id_override
        base = self.vla_path.rstrip("/").split("/")[-1]
        if self.resume and (continued := re.fullmatch(r"(.+)--\d+_chkpt", base)):
            return continued[1]  # the familiar way to resume names a checkpoint of the run
        parts = f"{base}+{self.dataset_name}+b{self.batch_size * self.grad_accumulation_steps}+lr-{self.learning_rate}"
        if self.use_lora:
            parts += f"+lora-r{self.lora_rank}+dropout-{self.lora_dropout}"
        if self.image_aug:
            parts += "--image_aug"
        return f"{parts}--{self.run_id_note}" if self.run_id_note else parts

    @property
    def run_dir(self) -> Path:
        """Holds the log; with --save_latest_checkpoint_only the checkpoint too."""
        return Path(os.path.expanduser(self.run_root_dir)) / self.run_id
