"""Writes a base checkpoint (weights, tokenizer, image processor) in the published layout.

python scripts/make_base.py --output_dir runs/tiny_base --llm_dim 128 --llm_layers 3        random weights, sizes from the flags
python scripts/make_base.py --output_dir runs/base_7b --preset openvla-7b --device cuda     random weights of the real size (15 GB)
python scripts/make_base.py --output_dir runs/base_qwen --preset prismatic-qwen25-0.5b      the same of the small base (2.5 GB)
python scripts/make_base.py --output_dir runs/mine --sizes_from DIR --weights FILE          given weights, sizes and tokenizer of DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic.cli import run_script
from prismatic.models.sizes import TinySizes

if TYPE_CHECKING:
    import torch

    from prismatic.models.configuration import OpenVLAConfig

PRESETS = ("tiny", "openvla-7b", "prismatic-qwen25-0.5b")


@dataclass(frozen=True)
class MakeBaseConfig(TinySizes):
    """A base model in the published layout."""

    # What to write
    output_dir: Path = Path("runs/tiny_base")  # a folder that does not exist yet
    preset: str = "tiny"  # tiny: the sizes below; openvla-7b, prismatic-qwen25-0.5b: the published sizes
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
    from prismatic.models.base import write_tiny_base

    if config.preset == "tiny" and config.sizes_from is None and config.weights is None and config.tokenizer is None:
        write_tiny_base(config.output_dir, config, config.seed)
    else:
        _compose(config)
    print(f"wrote {config.output_dir}")


def _compose(config: MakeBaseConfig) -> None:
    from prismatic.models.base import build_tokenizer_for, random_weights, write_base
    from prismatic.models.configuration import openvla_7b, prismatic_qwen25_0_5b
    from prismatic.policy.checkpoint.loading import load_config, resolve_folder
    from prismatic.policy.policy import default_device

    presets = {"openvla-7b": openvla_7b, "prismatic-qwen25-0.5b": prismatic_qwen25_0_5b}
    if config.sizes_from is None and config.preset not in presets:
        raise ValueError(
            f"--weights and --tokenizer need the sizes that go with them: pass --sizes_from or --preset {' or '.join(presets)}"
        )
    sizes = presets[config.preset]() if config.sizes_from is None else load_config(config.sizes_from)
    source = config.tokenizer or config.sizes_from
    tokenizer = build_tokenizer_for(sizes) if source is None else resolve_folder(source, with_weights=False)
    weights = random_weights(sizes, config.seed, default_device(config.device)) if config.weights is None else _read(config.weights, sizes)
    write_base(config.output_dir, sizes, weights, tokenizer)


def _read(path: Path, sizes: OpenVLAConfig) -> dict[str, torch.Tensor]:
    import torch

    from prismatic.models.vla import OpenVLAForActionPrediction
    from prismatic.policy.checkpoint.files import check_keys, read_safetensors

    weights = read_safetensors(path)
    with torch.device("meta"):
        expected = OpenVLAForActionPrediction(sizes).state_dict()
    check_keys(expected, weights, f"{path} does not fit the sizes")
    return weights


if __name__ == "__main__":
    run_script(main, MakeBaseConfig)
