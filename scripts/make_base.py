"""Writes a tiny base checkpoint (random weights, tokenizer, image processor) in the published layout.

python scripts/make_base.py --output_dir runs/tiny_base --llm_dim 128 --llm_layers 3
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import draccus

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes


@dataclass(frozen=True)
class MakeBaseConfig(TinySizes):
    """The flags: every size of TinySizes, and these."""

    output_dir: Path = Path("runs/tiny_base")  # a folder that does not exist yet
    seed: int = 7  # of the random weights


def main() -> None:
    """Entry point."""
    config = draccus.parse(MakeBaseConfig)
    write_tiny_base(config.output_dir, config, config.seed)
    print(f"wrote {config.output_dir}")


if __name__ == "__main__":
    main()
