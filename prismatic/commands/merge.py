"""Merges the LoRA adapters of a checkpoint into its base model and saves the whole model beside them.

    python vla-scripts/merge_lora_weights_and_save.py --base_checkpoint openvla/openvla-7b --lora_finetuned_checkpoint_dir RUN--10000_chkpt

Needed only for runs with --merge_lora_during_training False. Runs once, in one process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prismatic.cli import run_script
from prismatic.cli_sections import SECTION
from prismatic.policy.checkpoint.flags import PolicyFlags


@dataclass
class MergeConfig:
    """Merges adapters into a whole model."""

    lora_finetuned_checkpoint_dir: Path  # the checkpoint folder; the merged model is written into it
    base_checkpoint: str | None = None  # base model, folder or Hub id; None: what the checkpoint names
    merge_dtype: str = "float32"  # float32: add exactly, round once; bfloat16: as the published script
    device: str | None = None  # None: the GPU if there is one
    unnorm_key: str | None = None  # for the comparison, where the checkpoint was trained on several data sets; the first by default
    flags: PolicyFlags = field(default_factory=PolicyFlags, metadata=SECTION)  # for a published folder, which does not describe itself

    def __post_init__(self) -> None:
        if self.merge_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--merge_dtype is {self.merge_dtype!r}; choose float32 or bfloat16")
        if not self.lora_finetuned_checkpoint_dir.is_dir():
            raise ValueError(f"--lora_finetuned_checkpoint_dir {self.lora_finetuned_checkpoint_dir} is not a folder")


def main(config: MergeConfig) -> None:
    """Merges, compares and reports."""
    from prismatic.conversion.merging import MERGE_DTYPES, merge_checkpoint
    from prismatic.policy.checkpoint.loading import LoadOptions
    from prismatic.policy.policy import default_device, default_dtype

    device = default_device(config.device)
    options = LoadOptions(flags=config.flags, unnorm_key=config.unnorm_key)
    result = merge_checkpoint(
        config.lora_finetuned_checkpoint_dir,
        config.base_checkpoint,
        MERGE_DTYPES[config.merge_dtype],
        device,
        default_dtype(device),
        options,
    )
    print(
        f"merged into {result.folder}; on a sample observation the actions before and after differ by at most "
        f"{result.max_action_difference:.2e} (largest action: {result.max_action:.2e})"
    )


def run() -> None:
    """Entry point."""
    run_script(main, MergeConfig)
