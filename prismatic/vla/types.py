"""What flows between the rooms. Letters: B batch, N cameras, S image side, T tokens, H chunk, A action dim, P proprio dim.

Observation  --policy-->  ActionChunk           (raw units: what the robot sends and receives)
Sample       --collator-->  Batch               (normalised units: what training consumes)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prismatic.vla.constants import near_names

if TYPE_CHECKING:  # simulator processes use Observation and need neither torch's memory nor its import time
    import torch

MAX_SIDE = 8192  # pixels of a picture


@dataclass(frozen=True)
class Observation:
    """What the robot sees, feels and is told at one instant, in its own units."""

    images: Mapping[str, np.ndarray]  # camera name ("primary", "wrist", ...) -> uint8 RGB [height, width, 3], any size
    instruction: str
    proprio: np.ndarray | None = None  # [P], raw units
    is_round_tripped: bool = False  # the images went through the JPEG round trip of the image path already, on their way here

    def __post_init__(self) -> None:
        if not isinstance(self.images, Mapping):
            raise ValueError(f"observation: images must be a dict of camera names and pictures, found {type(self.images).__name__}")
        for name, image in self.images.items():
            check_image(name, image)
        if self.proprio is not None and not _is_state(self.proprio):
            raise ValueError(f"observation: proprio must be one row of finite numbers, found {self.proprio!r:.200}")

    def copy(self) -> Observation:
        """The same in memory of its own: cameras and drivers may use theirs again."""
        images = {name: image.copy() for name, image in self.images.items()}
        return replace(self, images=images, proprio=None if self.proprio is None else np.array(self.proprio))


def _is_state(values: Any) -> bool:
    """Whether `values` are a row of numbers; a driver that has missed a packet says None, another one texts."""
    try:
        array = np.asarray(values)
        return array.ndim == 1 and bool(np.isfinite(array).all())
    except (TypeError, ValueError):  # none of numbers, or rows of different lengths
        return False


def check_image(name: str, image: np.ndarray) -> None:
    """Accepts a uint8 RGB array [height, width, 3] that has a pixel.

    Raises:
        ValueError: anything else; the message names the camera and what was found.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"camera {name!r}: expected a uint8 RGB array [height, width, 3], found {found}")


def check_side(flag: str, pixels: int | None) -> None:
    """Accepts the side of square pictures as `flag` states it; None: as they are.

    Raises:
        ValueError: no picture has such a side.
    """
    if pixels is not None and not 1 <= pixels <= MAX_SIDE:
        limit = "at least 1 pixel" if pixels < 1 else f"at most {MAX_SIDE} pixels, the side of the picture (256 is usual)"
        raise ValueError(f"{flag} is {pixels}; it must be {limit}")


def select_cameras(images: Mapping[str, np.ndarray], cameras: tuple[str, ...]) -> list[np.ndarray]:
    """The images of `cameras` in that order, whatever the order of the mapping.

    Raises:
        ValueError: a camera is missing; the message suggests near names.
    """
    for camera in cameras:
        if camera not in images:
            raise ValueError(f"observation lacks camera {camera!r}, needed in the order {list(cameras)}; {near_names(camera, images)}")
    return [images[camera] for camera in cameras]


@dataclass(frozen=True)
class ActionChunk:
    """The next H actions, in the robot's units."""

    actions: np.ndarray  # float64 [H, A]


@dataclass(frozen=True)
class BadSample:
    """A sample whose images cannot be decoded."""

    sample: int  # position in the data set
    where: str  # data set, episode with its file, step
    episode: str  # as a line of --exclude_episodes: "demo: train 12"
    reason: str  # one line, with the place in the file


@dataclass(frozen=True)
class Sample:
    """One training sample: what is seen at one step and the chunk of actions that follows."""

    images: np.ndarray  # uint8 [N, S, S, 3], cameras in the policy's order; as recorded if the device prepares them
    instruction: str
    actions: np.ndarray  # float32 [H, A], normalised
    proprio: np.ndarray | None  # float32 [P], normalised; None when the policy does not use it
    sample_id: int  # position in the data set, for messages and resuming
    draw: np.ndarray | None = None  # float32 [6], of a strong one more: how the device is to augment it; None: not at all
    in_place_of: tuple[BadSample, ...] = ()  # samples whose turn it was, and which cannot be decoded


def _no_sample_ids() -> torch.Tensor:
    import torch

    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Batch:
    """B samples as tensors, prompts padded on the right to the same T."""

    images: torch.Tensor  # uint8 [B, N, S, S, 3]; as recorded until `images.prepare_on_device`, if the device prepares them
    input_ids: torch.Tensor  # int64 [B, T]
    attention_mask: torch.Tensor | None  # bool [B, T], False on padding; None: nothing is padded
    labels: torch.Tensor  # int64 [B, T], IGNORE_INDEX everywhere but on action ids and the stop token
    actions: torch.Tensor  # float32 [B, H, A], normalised
    proprio: torch.Tensor | None  # float32 [B, P], normalised
    sample_ids: torch.Tensor = field(default_factory=_no_sample_ids)  # int64 [B]
    draws: torch.Tensor | None = (
        None  # float32 [B, 6], of strong ones more: the random numbers of an augmentation that the device has to do
    )
    in_place_of: tuple[BadSample, ...] = ()  # samples that could not be decoded and have been replaced

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        import torch

        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            moved[item.name] = value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        import torch

        pinned: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            pinned[item.name] = value.pin_memory() if isinstance(value, torch.Tensor) else value
        return replace(self, **pinned)
