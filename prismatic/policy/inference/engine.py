"""Camera images and prompts -> normalised actions: what runs a policy's model, plainly or in captured CUDA graphs.

Letters: B batch, N cameras, S image side, L prompt length, H chunk, A action dim, P proprio dim.

    eager       operation after operation; needs no compiler
    graph       the same operations, captured once per shape in CUDA graphs (`prismatic.policy.inference.graphs`)
    compiled    "graph", with operations joined by torch.compile; on a CPU compiled only
    auto        on a GPU, for plain and fp8 weights, "compiled", or "graph" where there is no C compiler; else "eager"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from prismatic.models.action_model import ActionInputs
from prismatic.models.processor import normalize_pixels
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.vla.images import ImageRecipe, prepare_frames, prepare_image

ENGINES = ("auto", "eager", "graph", "compiled")


def nothing() -> None:
    """What there is to do meanwhile, usually."""


@dataclass(frozen=True)
class EngineInputs:
    """B observations on the host, in the model's range."""

    frames: Sequence[np.ndarray]  # B*N camera images uint8 [height, width, 3], of one observation after the other
    prompts: Sequence[Sequence[int]]  # B rows of token ids that end in the empty token
    proprio: np.ndarray | None  # float32 [B, P], normalised
    noise: np.ndarray | None  # float32 [B, H, A]; where a diffusion policy starts
    is_round_tripped: bool = False  # the frames have been JPEG files already: the recipe's round trip is behind them
    meanwhile: Callable[[], None] = nothing  # called once: while the device computes, or first of all where the host does

    def recipe(self, of_policy: ImageRecipe) -> ImageRecipe:
        """What is left to be done to the frames."""
        return replace(of_policy, jpeg_round_trip=False) if self.is_round_tripped else of_policy

    def __len__(self) -> int:
        return len(self.prompts)


class Engine(Protocol):
    """What runs a policy's model."""

    @property
    def kind(self) -> str:
        """One of `ENGINES` but auto."""
        ...

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Those that it prepares for."""
        ...

    @property
    def left(self) -> Mapping[str, str]:
        """Ways to be faster that it does not go (names of `fast_paths`), each with the reason."""
        ...

    @property
    def plain_calls(self) -> Mapping[str, int]:
        """How many calls ran plainly although it records others, by reason."""
        ...

    def __call__(self, inputs: EngineInputs) -> np.ndarray:
        """Normalised actions float32 [B, H, A]."""
        ...

    def seal(self, frame_sizes: Sequence[tuple[int, int]], batch_size: int) -> None:
        """From now on no call waits for what a first one of its kind has to do: what was not warmed up runs plainly.

        First it prepares for images of these sizes (height, width) in any order, in batches of up to `batch_size` observations.
        """
        ...

    def warm_up(self, batch_sizes: Sequence[int], frame_sizes: Sequence[tuple[int, int]], prompt_lengths: Sequence[int]) -> None:
        """Does now what a first call with such inputs would have to: `frame_sizes` (height, width) are those of the N cameras."""
        ...


class EagerEngine:
    """Operation after operation."""

    def __init__(self, parts: PolicyParts, reason: str = "--engine eager") -> None:
        self._parts = parts
        self._device = next(parts.model.parameters()).device
        self.left: Mapping[str, str] = dict.fromkeys(("compiled", "recorded"), reason)
        self.plain_calls: Mapping[str, int] = {}

    kind = "eager"
    batch_sizes = (1,)

    def seal(self, frame_sizes: Sequence[tuple[int, int]], batch_size: int) -> None:
        """Everything runs plainly."""

    @torch.inference_mode()
    def __call__(self, inputs: EngineInputs) -> np.ndarray:
        inputs.meanwhile()
        parts, device = self._parts, self._device
        images = self._images(inputs).unflatten(0, (len(inputs), -1))  # [B, N, S, S, 3]
        ids, mask = _pad_prompts(inputs.prompts, parts.config.token_ids.pad)
        proprio, noise = (None if rows is None else torch.from_numpy(rows).to(device) for rows in (inputs.proprio, inputs.noise))
        model_inputs = make_inputs(parts, images, ids.to(device), None if mask is None else mask.to(device), proprio)
        steps = parts.spec.heads.num_diffusion_steps_inference
        return parts.model.predict(model_inputs, noise, steps).cpu().numpy()

    def warm_up(self, batch_sizes: Sequence[int], frame_sizes: Sequence[tuple[int, int]], prompt_lengths: Sequence[int]) -> None:
        """One call of each batch size, so that libraries are loaded."""
        for count in batch_sizes:
            self(idle_inputs(self._parts, count, frame_sizes, prompt_lengths[0]))

    def _images(self, inputs: EngineInputs) -> torch.Tensor:
        """uint8 [B*N, S, S, 3] on the device."""
        frames, recipe = inputs.frames, inputs.recipe(self._parts.spec.image)
        if self._device.type == "cpu":
            return torch.from_numpy(np.stack([prepare_image(frame, recipe) for frame in frames]))
        prepared: list[torch.Tensor] = [torch.empty(0)] * len(frames)
        for numbers in group_by_size(frames):
            stacked = torch.from_numpy(np.stack([frames[number] for number in numbers])).to(self._device)
            for number, image in zip(numbers, prepare_frames(stacked, recipe), strict=True):
                prepared[number] = image
        return torch.stack(prepared)


def make_inputs(
    parts: PolicyParts, images: torch.Tensor, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor | None, proprio: torch.Tensor | None
) -> ActionInputs:
    """The model's inputs of prepared images uint8 [B, N, S, S, 3] and prompts int64 [B, L] on its device."""
    count, token_ids = parts.model.num_action_tokens, parts.config.token_ids
    return ActionInputs.from_prompts(normalize_pixels(images), prompt_ids, prompt_mask, proprio, count, token_ids)


def idle_inputs(parts: PolicyParts, count: int, frame_sizes: Sequence[tuple[int, int]], prompt_length: int) -> EngineInputs:
    """Inputs of that shape which mean nothing."""
    platform, heads = parts.spec.platform, parts.spec.heads
    frames = [np.zeros((*size, 3), np.uint8) for _ in range(count) for size in frame_sizes]
    prompts = [[parts.config.token_ids.bos] + [parts.config.token_ids.empty] * (prompt_length - 1)] * count
    proprio = np.zeros((count, platform.proprio_dim), np.float32) if heads.use_proprio else None
    shape = (count, platform.num_actions_chunk, platform.action_dim)
    return EngineInputs(frames, prompts, proprio, np.zeros(shape, np.float32) if heads.action_head == "diffusion" else None)


def group_by_size(frames: Sequence[np.ndarray]) -> list[list[int]]:
    """The numbers of frames of one size, size by size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, frame in enumerate(frames):
        groups.setdefault(frame.shape, []).append(number)
    return list(groups.values())


def _pad_prompts(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompt ids int64 [B, L], padded at the end, and their mask (None without padding)."""
    lengths = torch.tensor([len(row) for row in prompts])
    longest = int(lengths.max())
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in prompts])
    return ids, None if bool((lengths == longest).all()) else torch.arange(longest) < lengths[:, None]
