"""A base as Prismatic's training wrote it (config.json, checkpoints/*.pt) -> a base folder in the published layout of OpenVLA.

python scripts/convert/prismatic_to_base.py --input_dir prism-qwen25-extra-dinosiglip-224px-0_5b --output_dir runs/qwen_base

finetune.py reads such a folder directly, too; converted it is smaller (bfloat16, no optimizer), holds its tokenizer and opens faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prismatic.cli import run_script


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert."""

    input_dir: str = ""  # folder or Hub id of the base, with the tokenizer files of its language model in it
    output_dir: Path = Path("runs/qwen_base")  # a folder that does not exist yet

    def __post_init__(self) -> None:
        if not self.input_dir:
            raise ValueError("--input_dir missing: the folder or Hub id of a base in Prismatic's layout")


def main(config: ConvertConfig) -> None:
    """Entry point."""
    if config.output_dir.exists():
        raise ValueError(f"--output_dir {config.output_dir} exists already; choose another folder, or delete it first")
    import torch

    from prismatic.models.base import write_base
    from prismatic.policy.checkpoint.loading import load_base, resolve_folder
    from prismatic.policy.checkpoint.prismatic_layout import is_prismatic

    folder = resolve_folder(config.input_dir)
    if not is_prismatic(folder):
        raise ValueError(f"--input_dir {folder} has no config.json of Prismatic's training (with 'model' or 'vla' in it)")
    base = load_base(folder, torch.bfloat16)
    write_base(config.output_dir, base.vla.config, base.vla.state_dict(), base.processor.tokenizer)
    count = sum(parameter.numel() for parameter in base.vla.parameters())
    print(f"wrote {config.output_dir}: {count:,} parameters, {len(base.processor.tokenizer):,} tokens")


if __name__ == "__main__":
    run_script(main, ConvertConfig)
