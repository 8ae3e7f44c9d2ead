"""Images and prompts -> tensors. Letters: B batch, N images, S image side.

An image becomes six channels: normalised for DINOv2 (ImageNet mean and standard deviation) and for SigLIP (0.5 and 0.5).
Both towers take the same S, so the image is resized once; bicubic with antialiasing, as Pillow does it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prismatic.models.chat_tokenizer import EXTRA_TOKENS, LINE_BREAK
from prismatic.models.json_files import read_object
from prismatic.vla.constants import QWEN_PROMPT_TEMPLATE, TokenIds, near_names
from prismatic.vla.prompts import tokenize_prompt

PREPROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "added_tokens.json")
_MEANS = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
_STDS = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))
_BICUBIC_CODE = 3  # torchvision's number, as the published file holds it


def normalize_pixels(images: torch.Tensor) -> torch.Tensor:
    """Pixel values float32 [B, 6N, S, S] of uint8 images [B, N, S, S, 3], on the device where they are.

    Raises:
        ValueError: another dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 5 or images.shape[-1] != 3:
        raise ValueError(f"expected uint8 images [batch, images, size, size, 3], found {images.dtype} {list(images.shape)}")
    scale, shift = _channel_constants(images.device)
    pixels = images.permute(0, 1, 4, 2, 3).contiguous().unsqueeze(2)  # [B, N, 1, 3, S, S]; bytes are cheaper to reorder than floats
    return (pixels * scale).sub_(shift).flatten(1, 3)


@lru_cache(maxsize=8)
def _channel_constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and subtrahend, float32 [2, 3, 1, 1]; kept, because a CUDA graph cannot upload them."""
    with torch.inference_mode(False):
        return pixel_constants(device)


def pixel_constants(device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and subtrahend, float32 [2, 3, 1, 1], of a channel's bytes, for DINOv2 and for SigLIP."""
    mean, std = (torch.tensor(values, device=device)[:, :, None, None] for values in (_MEANS, _STDS))
    return 1 / (255 * std), mean / std


@dataclass(frozen=True)
class PrismaticImageProcessor:
    """Pillow image of any size -> float32 [6, S, S], by one of the three published strategies."""

    image_size: int  # S
    image_resize_strategy: str = "resize-naive"  # squash to a square | "letterbox": pad | "resize-crop": cut

    def __post_init__(self) -> None:
        if self.image_resize_strategy not in _RESIZE_STRATEGIES:
            raise ValueError(
                f"image_resize_strategy {self.image_resize_strategy!r}; {near_names(str(self.image_resize_strategy), _RESIZE_STRATEGIES)}"
            )

    def resize(self, image: Image.Image) -> np.ndarray:
        """The image as uint8 RGB [S, S, 3]."""
        return np.asarray(_RESIZE_STRATEGIES[self.image_resize_strategy](image.convert("RGB"), self.image_size))

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Pixel values float32 [6N, S, S] of N images."""
        resized = np.stack([self.resize(image) for image in images])
        return normalize_pixels(torch.from_numpy(resized)[None])[0]

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json in the published layout."""
        size = [self.image_size, self.image_size]
        resize_size = size if self.image_resize_strategy == "resize-naive" else self.image_size
        letterbox = self.image_resize_strategy == "letterbox"
        resize = {"antialias": True, "interpolation": _BICUBIC_CODE, "max_size": None, "size": resize_size}
        float32 = [[np.asarray(values, np.float32).tolist() for values in half] for half in zip(_MEANS, _STDS, strict=True)]
        return {
            "image_processor_type": "PrismaticImageProcessor",
            "image_resize_strategy": self.image_resize_strategy,
            "input_sizes": [[3, *size]] * 2,
            "interpolations": ["bicubic"] * 2,
            "means": [list(values) for values in _MEANS],
            "stds": [list(values) for values in _STDS],
            "tvf_crop_params": [{"output_size": size}] * 2,
            "tvf_do_letterbox": letterbox,
            "tvf_letterbox_fill": [_FILL] * 3 if letterbox else None,
            "tvf_normalize_params": [{"inplace": False, "mean": mean, "std": std} for mean, std in float32],
            "tvf_resize_params": [resize] * 2,
            "use_fused_vision_backbone": True,
        }

    def save_pretrained(self, folder: Path) -> None:
        """Writes preprocessor_config.json into `folder`."""
        content = {**self.to_dict(), "processor_class": "PrismaticProcessor"}
        (folder / PREPROCESSOR_FILE).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> PrismaticImageProcessor:
        """The processor that a preprocessor_config.json describes.

        Raises:
            ValueError: it describes other sizes, means or standard deviations than those of the two towers.
        """
        sizes = {tuple(size) for size in content["input_sizes"]}
        if len(sizes) != 1:
            raise ValueError(
                f"{PREPROCESSOR_FILE}: input_sizes {content['input_sizes']} differ; both vision towers must take the same image"
            )
        if not np.allclose(content["means"], _MEANS) or not np.allclose(content["stds"], _STDS):
            raise ValueError(f"{PREPROCESSOR_FILE}: means {content['means']} and stds {content['stds']}; expected {_MEANS} and {_STDS}")
        return cls(image_size=sizes.pop()[1], image_resize_strategy=content["image_resize_strategy"])

    @classmethod
    def from_pretrained(cls, folder: Path) -> PrismaticImageProcessor:
        """Reads preprocessor_config.json out of `folder`."""
        path = folder / PREPROCESSOR_FILE
        if not path.is_file():
            raise ValueError(f"checkpoint folder {folder} lacks {PREPROCESSOR_FILE}; copy it from the base model")
        content = read_object(path)
        try:
            return cls.from_dict(content)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{path} does not describe the image processor ({error}); copy it from the base model") from error


@dataclass(frozen=True)
class PrismaticProcessor:
    """Image processor and tokenizer of one checkpoint."""

    image_processor: PrismaticImageProcessor
    tokenizer: PreTrainedTokenizerBase
    tokenizer_files: Mapping[str, bytes]  # name -> content, as read

    @classmethod
    def from_pretrained(cls, folder: Path) -> PrismaticProcessor:
        """Reads preprocessor_config.json and the tokenizer files out of `folder`."""
        files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
        return cls(PrismaticImageProcessor.from_pretrained(folder), load_tokenizer(folder), files)

    def save_pretrained(self, folder: Path) -> None:
        """Writes preprocessor_config.json and the tokenizer files into `folder`.

        The tokenizer's files are those it was read from: rewritten by another transformers, an older one could not read them.
        """
        self.image_processor.save_pretrained(folder)
        for name, content in self.tokenizer_files.items():
            (folder / name).write_bytes(content)

    def __call__(self, instruction: str, images: Sequence[Image.Image], token_ids: TokenIds) -> tuple[torch.Tensor, torch.Tensor]:
        """(pixel_values float32 [1, 6N, S, S], prompt ids int64 [1, L] that end in the empty token)."""
        prompt_ids = tokenize_prompt(self.tokenizer, instruction, token_ids)
        return self.image_processor(images)[None], torch.tensor([prompt_ids])


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, read without the network.

    Raises:
        ValueError: the folder holds no tokenizer.json, or a file of the tokenizer is damaged.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"checkpoint folder {folder} lacks tokenizer.json; copy the tokenizer files from the base model")
    for name in TOKENIZER_FILES:
        if name.endswith(".json") and (folder / name).is_file():
            read_object(folder / name)
    try:
        # Takes tokenizer.json as it is; AutoTokenizer would rebuild a Llama tokenizer by the rules of the installed transformers.
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the package tokenizers raises plain ones
        raise ValueError(f"{folder}/tokenizer.json is no tokenizer ({error}); copy the tokenizer files from the base model") from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, token_ids: TokenIds, source: str) -> None:
    """Returns if the tokenizer goes with a model of these ids; `source` names the folder.

    Raises:
        ValueError: it is that of another family, or lacks the extra tokens that stand for actions.
    """
    vocabulary = tokenizer.get_vocab()
    if token_ids.prompt_template == QWEN_PROMPT_TEMPLATE:
        if vocabulary.get("<|im_start|>") != token_ids.bos or vocabulary.get("<|im_end|>") != token_ids.stop:
            raise ValueError(
                f"{source}: the language model is Qwen's, but its tokenizer has not <|im_start|> at {token_ids.bos} and <|im_end|> at "
                f"{token_ids.stop}, so it is another model's; copy the tokenizer files of Qwen/Qwen2.5-0.5B or of the converted base"
            )
        if vocabulary.get(LINE_BREAK) != token_ids.empty:
            raise ValueError(
                f"{source}: config.json says empty_token_id {token_ids.empty}, but the line break that ends the prompt has "
                f"{vocabulary.get(LINE_BREAK)} in the tokenizer; copy both files from the same base"
            )
        first = token_ids.action_token_begin_idx + 1
        if [vocabulary.get(token) for token in (EXTRA_TOKENS[0], EXTRA_TOKENS[-1])] != [first, token_ids.base_vocab_size - 1]:
            raise ValueError(
                f"{source}: the tokenizer lacks the {len(EXTRA_TOKENS)} extra tokens {EXTRA_TOKENS[0]} ... {EXTRA_TOKENS[-1]} at "
                f"{first} ... {token_ids.base_vocab_size - 1}, which stand for actions; scripts/convert/prismatic_to_base.py adds them"
            )
        return
    if "<|im_start|>" in vocabulary:
        raise ValueError(f"{source}: the language model is Llama's, but its tokenizer is Qwen's; copy the tokenizer files of its own base")
    if (begins := tokenizer.encode("a")[:1]) != [token_ids.bos]:
        raise ValueError(
            f"{source}: the tokenizer begins prompts with {begins}, the model was trained with {token_ids.bos}; copy the tokenizer files "
            "of its own base"
        )


_FILL = 127  # int(255 x 0.5): SigLIP's mean, which the published processor uses for both halves


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic with antialiasing, one axis after the other, with whole numbers between them, so that their order shows.

    It is that of Pillow 13, whichever is installed; older ones always begin with the width, which gives a tall picture other pixels.
    """
    lost_height, lost_width = image.height - height, image.width - width
    is_height_first = lost_height > 0 and lost_height > 2 * lost_width
    between = (image.width, height) if is_height_first else (width, image.height)
    return image.resize(between, Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)


def _squash(image: Image.Image, size: int) -> Image.Image:
    return _resized(image, size, size)


def _crop(image: Image.Image, size: int) -> Image.Image:
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    image = _resized(image, width, height)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _letterbox(image: Image.Image, size: int) -> Image.Image:
    longest = max(image.size)
    left, top = ((longest - side) // 2 for side in image.size)  # an odd difference leaves the square one pixel short, as published
    padded = Image.new("RGB", (image.width + 2 * left, image.height + 2 * top), (_FILL,) * 3)
    padded.paste(image, (left, top))
    return _crop(padded, size)


_RESIZE_STRATEGIES = {"resize-naive": _squash, "letterbox": _letterbox, "resize-crop": _crop}
