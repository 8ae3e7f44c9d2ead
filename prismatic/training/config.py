"""The flags of vla-scripts/finetune.py by concern, each section with its own checks. The published flags have their published defaults.

A new flag is a decision: tests/unit/test_flags.py lists all of them with the reason why no default can serve.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prismatic.cli_sections import SECTION, from_flags
from prismatic.training.sections import (
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    OptimizationConfig,
    SavingConfig,
    SpeedConfig,
)
from prismatic.vla.constants import file_part


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tunes an OpenVLA base on one data set or mixture."""

    model: ModelConfig = field(default_factory=ModelConfig, metadata=SECTION)
    data: DataConfig = field(default_factory=DataConfig, metadata=SECTION)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig, metadata=SECTION)
    saving: SavingConfig = field(default_factory=SavingConfig, metadata=SECTION)
    logging: LoggingConfig = field(default_factory=LoggingConfig, metadata=SECTION)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig, metadata=SECTION)
    speed: SpeedConfig = field(default_factory=SpeedConfig, metadata=SECTION)

    def __post_init__(self) -> None:
        if self.speed.compile == "True" and self.recomputes_dropout:
            raise ValueError(
                f"--compile is True, --gradient_checkpointing is True and --lora_dropout is {self.model.lora_dropout}: a compiled block "
                "would draw the dropout again when it recomputes; leave one of the three out"
            )

    @classmethod
    def from_flags(cls, **flags: Any) -> FinetuneConfig:
        """The configuration of flat flags, as on the command line: `FinetuneConfig.from_flags(batch_size=4)`."""
        return from_flags(cls, **flags)

    @property
    def recomputes_dropout(self) -> bool:
        """Whether blocks are computed again in the backward pass and must then drop the same inputs."""
        return self.speed.gradient_checkpointing and self.model.use_lora and self.model.lora_dropout > 0

    @property
    def shards_model(self) -> bool:
        """Whether several processes share the weights out among them."""
        return self.speed.strategy == "fsdp" or (self.speed.strategy == "auto" and not self.model.use_lora)

    @property
    def run_id(self) -> str:
        """The run's name; checkpoints of step N are in `<run_root_dir>/<run_id>--<N>_chkpt`.

        Where a run goes on without --run_id_override, `prismatic.training.run_choice` says which one that is.
        """
        return self.saving.run_id_override or "".join(text for text, _ in self.name_parts)

    @property
    def name_parts(self) -> tuple[tuple[str, bool], ...]:
        """The pieces of the automatic name, in order, and of each whether it says what may be another when the run goes on."""
        base = self.model.vla_path.rstrip("/").split("/")[-1]
        parts = [(f"{base}+{file_part(self.data.dataset_name)}+b", False), (str(self.optimization.samples_per_step), True)]
        parts += [("+lr-", False), (str(self.optimization.learning_rate), True)]
        if self.model.use_lora:
            parts += [(f"+lora-r{self.model.lora_rank}+dropout-", False), (str(self.model.lora_dropout), True)]
        if self.data.image_aug:
            parts.append(("--image_aug", False))
        if self.saving.run_id_note:
            parts.append((f"--{self.saving.run_id_note}", False))
        return tuple(parts)

    def as_run(self, run_id: str) -> FinetuneConfig:
        """The same flags, for the run of that name."""
        return self if run_id == self.run_id else replace(self, saving=replace(self.saving, run_id_override=run_id))

    @property
    def run_dir(self) -> Path:
        """Holds the log; with --save_latest_checkpoint_only the checkpoint too."""
        return Path(os.path.expanduser(self.saving.run_root_dir)) / self.run_id
