"""Encoded camera frames -> the uint8 images that a policy sees; training augmentation; never TensorFlow.

Letters: B batch, N cameras of a sample, H x W a camera's own size, S the model's image side.

    training     decode -> lanczos3 to S -> random crop and colour            (decode_image, resize_lanczos3, augment_batch)
    evaluation   JPEG round trip -> lanczos3 to S -> centre crop              (prepare_image)

The operations are those of `tf.image`, with its parameters, because published checkpoints were trained on its pixels;
tests marked `rlds` compare with TensorFlow itself. Decoding is bit-identical. Augmentation is one torch
implementation for a batch on any device, of which the CPU path is a batch of one. torch is imported late: simulator and
conversion processes use the rest without it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image

from prismatic.vla.types import check_image

if TYPE_CHECKING:
    import torch

# The share of the area that random crops keep in training and the centre crop keeps in evaluation.
CROP_AREA_FRACTION = 0.9

_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG"


def decode_image(encoded: bytes) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a JPEG or PNG file; grey images are spread over three channels, transparency is dropped.

    JPEG uses the fast integer DCT and smooth chroma upsampling, as TensorFlow does by default: the pixels are identical.

    Raises:
        ValueError: neither format, or a damaged file.
    """
    if encoded.startswith(_JPEG_START):
        return simplejpeg.decode_jpeg(encoded, "RGB", fastdct=True, fastupsample=False)
    if not encoded.startswith(_PNG_START):
        raise ValueError(f"expected a JPEG or PNG image, found {len(encoded)} bytes that start with {encoded[:8]!r}")
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise ValueError(f"expected a PNG with 8 bits a channel, found Pillow mode {image.mode} (a depth image?)")
        return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"damaged PNG image of {len(encoded)} bytes: {error}") from error


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """The JPEG file of a uint8 RGB image [H, W, 3]; the same bytes as TensorFlow's `encode_jpeg`."""
    check_image("to encode", image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0", dpi=(300, 300))
    return buffer.getvalue()


def resize_lanczos3(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [S, S, 3] out of uint8 [H, W, 3], antialiased, rounded and clipped; unchanged if it already has that size.

    Within mean 0.01 levels of `tf.image.resize(lanczos3, antialias=True)`, as one float32 matrix product per direction.
    """
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    rows = _resize_first_axis(image.reshape(height, width * channels).astype(np.float32), size)
    columns = rows.reshape(size, width, channels).transpose(1, 0, 2).reshape(width, size * channels)
    resized = _resize_first_axis(columns, size).reshape(size, size, channels).transpose(1, 0, 2)
    return np.ascontiguousarray(np.clip(np.rint(resized), 0, 255).astype(np.uint8))


def _resize_first_axis(values: np.ndarray, size: int) -> np.ndarray:
    """float32 [size, K] out of float32 [length, K]."""
    resized = np.empty((size, values.shape[1]), np.float32)
    for outputs, inputs, weights in _lanczos3_bands(len(values), size):
        np.matmul(weights, values[inputs], out=resized[outputs])
    return resized


@lru_cache(maxsize=32)
def _lanczos3_bands(length: int, size: int) -> list[tuple[slice, slice, np.ndarray]]:
    """The weights in bands of 32 outputs with the few inputs that reach them: skipping the zeros makes it 2-3 times faster."""
    weights = lanczos3_weights(length, size)
    bands = []
    for start in range(0, size, 32):
        band = weights[start : start + 32]
        used = np.flatnonzero(band.any(0))
        inputs = slice(int(used[0]), int(used[-1]) + 1)
        bands.append((slice(start, start + 32), inputs, np.ascontiguousarray(band[:, inputs])))
    return bands


def lanczos3_weights(length: int, size: int) -> np.ndarray:
    """float32 [size, length]: how much each input pixel adds to each output pixel; the kernel widens when shrinking.

    Source: the Lanczos window with three lobes, sinc(x) sinc(x / 3), sampled at pixel centres and normalised per output.
    """
    scale = length / size
    centers = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(length)[None, :] + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class ImageRecipe:
    """How a camera image becomes the policy's input at evaluation; part of policy.json."""

    size: int  # S, pixels
    jpeg_round_trip: bool = True  # encode and decode once, as the training images were
    center_crop: bool = False  # keep the central 0.9 of the area; True for policies trained with augmentation

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"image size is {self.size}; it must be at least 1 pixel")


def prepare_image(image: np.ndarray, recipe: ImageRecipe) -> np.ndarray:
    """uint8 [S, S, 3] as the policy sees it at evaluation, out of a camera's uint8 [H, W, 3].

    Raises:
        ValueError: `image` is not a uint8 RGB array.
    """
    check_image("to prepare", image)
    if recipe.jpeg_round_trip:
        image = decode_image(encode_jpeg(image))
    image = resize_lanczos3(image, recipe.size)
    return center_crop(image) if recipe.center_crop else image


def center_crop(image: np.ndarray, area_fraction: float = CROP_AREA_FRACTION) -> np.ndarray:
    """uint8 [H, W, 3]: the central part with `area_fraction` of the area, resized back to the same size (bilinear)."""
    import torch

    side = area_fraction**0.5
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255  # [1, 3, H, W]
    offset = torch.tensor([(1 - side) / 2])
    return _to_uint8(_crop_and_resize(pixels, offset, offset, side))[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class AugmentationDraw:
    """The random numbers that augment B samples, float32 [B] each; every camera of a sample shares its draw."""

    crop_y: np.ndarray  # offset of the crop's top edge, share of the image height
    crop_x: np.ndarray  # offset of the crop's left edge, share of the image width
    brightness: np.ndarray  # added to pixels in [0, 1]
    contrast: np.ndarray  # factor about each channel's mean
    saturation: np.ndarray  # factor on HSV saturation
    hue: np.ndarray  # added to HSV hue in [0, 1)


def draw_augmentation(rng: np.random.Generator, equal_crop_offsets: bool = False) -> AugmentationDraw:
    """The draw of one sample (B = 1): crop of 0.9 of the area, brightness +-0.2, contrast and saturation 0.8-1.2, hue +-0.05.

    `equal_crop_offsets` ties x to y, as the published code does by drawing one seed twice.
    """
    largest_offset = 1 - CROP_AREA_FRACTION**0.5
    values = rng.random((6, 1), dtype=np.float32)
    return AugmentationDraw(
        crop_y=values[0] * largest_offset,
        crop_x=values[0 if equal_crop_offsets else 1] * largest_offset,
        brightness=0.4 * values[2] - 0.2,
        contrast=0.8 + 0.4 * values[3],
        saturation=0.8 + 0.4 * values[4],
        hue=0.1 * values[5] - 0.05,
    )


def stack_draws(draws: Sequence[AugmentationDraw]) -> AugmentationDraw:
    """One draw for a batch out of those of its samples."""
    return AugmentationDraw(*(np.concatenate([getattr(draw, item.name) for draw in draws]) for item in fields(AugmentationDraw)))


def augment_cpu(images: np.ndarray, draw: AugmentationDraw) -> np.ndarray:
    """uint8 [N, S, S, 3]: the cameras of one sample, cropped and coloured."""
    import torch

    return augment_batch(torch.tensor(images)[None], draw)[0].numpy()


def augment_batch(images: torch.Tensor, draw: AugmentationDraw) -> torch.Tensor:
    """uint8 [B, N, S, S, 3]: random crop, brightness, contrast, saturation, hue, clipped to [0, 1] after each; on the device of `images`.

    Raises:
        ValueError: the draw is for another number of samples.
    """
    import torch

    batch, cameras, height, width, channels = images.shape
    if len(draw.hue) != batch:
        raise ValueError(f"the augmentation draw is for {len(draw.hue)} samples, the batch has {batch}")
    crop_y, crop_x, brightness, contrast, saturation, hue = (
        torch.from_numpy(getattr(draw, item.name)).to(images.device) for item in fields(AugmentationDraw)
    )
    pixels = images.permute(0, 4, 1, 2, 3).float().div_(255)  # [B, 3, N, S, S]
    pixels = pixels.reshape(batch, channels * cameras, height, width)
    pixels = _crop_and_resize(pixels, crop_y, crop_x, CROP_AREA_FRACTION**0.5).view(batch, channels, cameras, height, width)
    pixels = pixels.clamp_(0, 1).add_(_per_sample(brightness, pixels)).clamp_(0, 1)
    mean = pixels.mean((-2, -1), keepdim=True)
    pixels = pixels.sub_(mean).mul_(_per_sample(contrast, pixels)).add_(mean).clamp_(0, 1)
    pixels = _adjust_saturation_and_hue(pixels, saturation, hue)
    return _to_uint8(pixels).permute(0, 2, 3, 4, 1).contiguous()


def _per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))


def _crop_and_resize(pixels: torch.Tensor, crop_y: torch.Tensor, crop_x: torch.Tensor, side: float) -> torch.Tensor:
    """[B, C, H, W]: the box of relative side `side` at offsets crop_y, crop_x [B], bilinear to the whole image.

    As `tf.image.crop_and_resize`: the first and last pixel centres of the result lie on the edges of the box, in units of
    (size - 1); this is grid_sample with align_corners.
    """
    import torch

    height, width = pixels.shape[-2:]
    device = pixels.device
    rows = crop_y[:, None] + torch.linspace(0, side, height, device=device)  # [B, H], 0 and 1 are the outer pixel centres
    columns = crop_x[:, None] + torch.linspace(0, side, width, device=device)  # [B, W]
    rows, columns = rows[:, :, None].expand(-1, -1, width), columns[:, None, :].expand(-1, height, -1)
    grid = torch.stack((columns, rows), dim=-1).mul_(2).sub_(1)  # [B, H, W, 2], x before y, in [-1, 1]
    return torch.nn.functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _adjust_saturation_and_hue(pixels: torch.Tensor, saturation: torch.Tensor, hue: torch.Tensor) -> torch.Tensor:
    """[B, 3, N, S, S] with HSV saturation times `saturation` (at most 1) and `hue` added, value unchanged.

    Scaling saturation by k moves every channel away from the maximum v by k, hence chroma = k * (v - min); the hexagon
    formula then gives the channels back from hue, chroma and v.
    """
    import torch

    red, green, blue = pixels.unbind(1)  # each [B, N, S, S]
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    inverse = chroma.clamp_min(1e-12).reciprocal_()  # grey pixels: differences are 0, so is the hue
    sextant = torch.where(
        value == red,
        (green - blue) * inverse,
        torch.where(value == green, (blue - red) * inverse + 2, (red - green) * inverse + 4),
    )
    sextant = sextant.add_(6 * _per_sample(hue, sextant))
    sextant = sextant.sub_((sextant / 6).floor_().mul_(6))  # modulo 6, several times faster than torch.remainder
    chroma = torch.minimum(chroma * _per_sample(saturation, chroma), value)
    least = value - chroma
    planes = (
        (sextant - 3).abs_().sub_(1),
        (sextant - 2).abs_().neg_().add_(2),
        (sextant - 4).abs_().neg_().add_(2),
    )
    return torch.stack([plane.clamp_(0, 1).mul_(chroma).add_(least) for plane in planes], dim=1)


def _to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1] -> uint8 as `tf.image.convert_image_dtype` does it: floor(x * 255.5), saturating."""
    import torch

    return (pixels.clamp(0, 1) * 255.5).clamp_max_(255).to(torch.uint8)


def resize_lanczos3_batch(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [..., S, S, 3] out of uint8 [..., H, W, 3] on their device, antialiased, rounded and clipped.

    The same weights and accuracy as `resize_lanczos3`, for a whole batch at once.
    """
    import torch

    height, width = images.shape[-3:-1]
    if (height, width) == (size, size):
        return images
    rows, columns = (torch.from_numpy(lanczos3_weights(length, size)).to(images.device) for length in (height, width))
    planes = images.movedim(-1, -3).float()  # [..., 3, H, W]
    resized = rows @ (planes @ columns.T)  # [..., 3, S, S]
    return resized.round_().clamp_(0, 255).to(torch.uint8).movedim(-3, -1).contiguous()
