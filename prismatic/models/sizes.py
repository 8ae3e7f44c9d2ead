"""Sizes that a user may choose; apart from the configurations, whose module loads transformers."""

from __future__ import annotations

from dataclasses import dataclass

from prismatic.vla.types import check_side

BACKBONES = ("llama", "qwen")


@dataclass(frozen=True)
class TinySizes:
    """Sizes of a model small enough to train from scratch on a CPU; the defaults are the demo's."""

    # Sizes of a tiny model
    image_size: int = 64  # pixels
    patch_size: int = 16  # pixels
    vision_dim: int = 64  # width of each tower
    vision_layers: int = 2  # computed blocks; one more exists, as in published towers
    vision_heads: int = 1  # of attention
    llm_dim: int = 128  # width of the language model
    llm_layers: int = 3  # blocks
    llm_heads: int = 2  # of attention
    llm_mlp_dim: int = 384  # inner width of its perceptrons
    backbone: str = "llama"  # form of the language model: llama, or qwen (shared key/value heads, biases, tied embeddings, a chat prompt)

    def __post_init__(self) -> None:
        check_side("--image_size", self.image_size)
        for name in ("patch_size", "vision_dim", "vision_layers", "vision_heads", "llm_dim", "llm_layers", "llm_heads", "llm_mlp_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        for whole, part in (("image_size", "patch_size"), ("vision_dim", "vision_heads")):
            size, step = getattr(self, whole), getattr(self, part)
            if size % step:
                below = f"{size - size % step} or " if size > step else ""
                raise ValueError(f"--{whole} is {size}, no multiple of --{part} {step}; take {below}{size + step - size % step}")
        if self.backbone not in BACKBONES:
            raise ValueError(f"--backbone is {self.backbone!r}; choose one of {', '.join(BACKBONES)}")
        if self.llm_dim % (2 * self.llm_heads):
            raise ValueError(f"llm_dim {self.llm_dim} is not an even multiple of llm_heads {self.llm_heads}; heads need an even width")
