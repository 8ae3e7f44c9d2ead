"""Writes a base checkpoint (weights, tokenizer, image processor) in the published layout.

python scripts/make_base.py --output_dir runs/tiny_base --llm_dim 128 --llm_layers 3        random weights, sizes from the flags
python scripts/make_base.py --output_dir runs/base_7b --preset openvla-7b --device cuda     random weights of the real size (15 GB)
python scripts/make_base.py --output_dir runs/mine --sizes_from DIR --weights FILE          given weights, sizes and tokenizer of DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from prismatic.cli import run_script
from prismatic.models.base import build_tokenizer, random_weights, write_base, write_tiny_base
from prismatic.models.configuration import OpenVLAConfig, TinySizes, openvla_7b
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.files import check_keys, read_safetensors
from prismatic.policy.loading import load_config, resolve_folder

PRESETS = ("tiny", "openvla-7b")


@dataclass(frozen=True)
class MakeBaseConfig(TinySizes):
    """The sizes of a tiny model, and these."""

    output_dir: Path = Path("runs/tiny_base")  # a folder that does not exist yet
    preset: str = "tiny"  # tiny: the sizes above; openvla-7b: the published sizes
    sizes_from: str | None = None  # folder or Hub id whose config.json gives the sizes instead
    weights: Path | None = None  # a safetensors file with the whole state dict; None: random weights
    tokenizer: str | None = None  # folder or Hub id to copy the tokenizer from; None: that of sizes_from, else one made here
    seed: int = 7  # of the random weights
    device: str = "cpu"  # where random weights are drawn: cuda is much faster for the 7B model

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise ValueError(f"--preset is {self.preset!r}; choose one of {', '.join(PRESETS)}")


def main(config: MakeBaseConfig) -> None:
    """Entry point."""
    if config.output_dir.exists():
        raise ValueError(f"--output_dir {config.output_dir} exists already; choose another folder, or delete it first")
    if config.preset == "tiny" and config.sizes_from is None and config.weights is None and config.tokenizer is None:
        write_tiny_base(config.output_dir, config, config.seed)
    else:
        _compose(config)
    print(f"wrote {config.output_dir}")


def _compose(config: MakeBaseConfig) -> None:
    sizes = openvla_7b() if config.sizes_from is None else load_config(config.sizes_from)
    if config.sizes_from is None and config.preset != "openvla-7b":
        raise ValueError("--weights and --tokenizer need the sizes that go with them: pass --sizes_from or --preset openvla-7b")
    source = config.tokenizer or config.sizes_from
    tokenizer = build_tokenizer(sizes.token_ids) if source is None else resolve_folder(source)
    weights = random_weights(sizes, config.seed, torch.device(config.device)) if config.weights is None else _read(config.weights, sizes)
    write_base(config.output_dir, sizes, weights, tokenizer)


def _read(path: Path, sizes: OpenVLAConfig) -> dict[str, torch.Tensor]:
    weights = read_safetensors(path)
    with torch.device("meta"):
        expected = OpenVLAForActionPrediction(sizes).state_dict()
    check_keys(expected, weights, f"{path} does not fit the sizes")
    return weights


if __name__ == "__main__":
    run_script(main, MakeBaseConfig)
