"""Training pictures as from other cameras and worse sensors, and with parts hidden: what `--augmentation strong` adds to crop and colour.

Half of the samples are shown as an evaluation shows them, the centre crop and the colours that were recorded, so that the scene as it was
is learnt as well as without augmentation. For the others the standard one comes first, its colours in wider ranges; then

    viewpoint   of every camera that does not ride on a wrist, the corners of the picture move by up to 0.12 of its side, each by itself:
                a perspective, as from elsewhere; a camera on the wrist keeps its place at the hand
    noise       on every pixel, standard deviation up to 16 levels
    mask        one sample in two has a grey box, a tenth to a third of the side high and wide, in every picture
    blindness   one sample in ten has one camera that shows nothing but grey, if there are several

Everything is drawn with the sample's own generator after the standard numbers, which stay as they are. Both ways of augmenting, on the CPU
and on the training device, call `strengthen`. Letters: B batch, N cameras, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from prismatic.vla.cameras import is_wrist

if TYPE_CHECKING:
    import torch

AUGMENTATIONS = ("standard", "strong")
_CORNER_SHIFT, _MAX_NOISE = 0.12, 16.0  # share of the side, levels
_PLAIN = 0.5  # share of the samples that are shown as in an evaluation
_MASKED, _BLIND = 0.5, 0.1  # shares of the others
_SMALLEST_BOX, _LARGEST_BOX = 0.1, 0.33
_GREY = 128
_BRIGHTER, _OTHERWISE = 2.0, 2.5  # times the standard range of brightness and hue, of contrast and saturation
_NUM_SHARED = 7  # numbers of a row that all cameras share: noise and its seed, the box's top, left, height, width, the blind camera
_NOTHING = (*[0.0] * (_NUM_SHARED - 1), -1.0)


def draw_strong(
    standard: np.ndarray, as_evaluated: np.ndarray, rng: np.random.Generator, cameras: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [6], float32 [7 + 8 N]) for one sample, of the standard draw and of what an evaluation does, each a row [6]."""
    if rng.random() < _PLAIN:
        return as_evaluated, np.array([*_NOTHING, *np.zeros(8 * len(cameras))], np.float32)
    corners = [rng.uniform(-_CORNER_SHIFT, _CORNER_SHIFT, 8) * (not is_wrist(camera)) for camera in cameras]
    noise, seed = rng.uniform(0, _MAX_NOISE), rng.integers(2**24)  # a float32 holds such integers exactly
    height, width = rng.uniform(_SMALLEST_BOX, _LARGEST_BOX, 2) * (rng.random() < _MASKED)
    top, left = rng.random() * (1 - height), rng.random() * (1 - width)
    is_blind = rng.random() < _BLIND
    blind = rng.integers(len(cameras)) if is_blind and len(cameras) > 1 else -1
    return _widen(standard), np.array([noise, seed, top, left, height, width, blind, *np.concatenate(corners)], np.float32)


def _widen(standard: np.ndarray) -> np.ndarray:
    """float32 [6], a row of `AugmentationDraw` with wider colours: brightness +-0.4, hue +-0.1, contrast and saturation 0.5 to 1.5."""
    wide = standard.copy()
    wide[[2, 5]] *= _BRIGHTER
    wide[3:5] = 1 + _OTHERWISE * (standard[3:5] - 1)
    return wide


def strengthen(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """uint8 [B, N, S, S, 3] out of the same, by rows float32 [B, 7 + 8 N], on the device of `images`."""
    import torch

    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        pixels = images.permute(0, 1, 4, 2, 3).float()  # [B, N, 3, S, S]
        pixels = _seen_from_elsewhere(pixels, rows[:, _NUM_SHARED:])
        level, seed = (rows[:, column].to(pixels.device) for column in (0, 1))
        pixels = pixels + _noise(pixels.shape[1:], seed) * level.view(-1, 1, 1, 1, 1)
        _hide(pixels, rows[:, 2:_NUM_SHARED])
        return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()


def strengthen_cpu(images: np.ndarray, row: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S, 3]: `strengthen` for the cameras of one sample."""
    import torch

    return strengthen(torch.from_numpy(images)[None], torch.from_numpy(row)[None])[0].numpy()


def homographies(corners: np.ndarray) -> np.ndarray:
    """float32 [B, 3, 3]: places in the new picture -> places in the old one, x, y in [-1, 1]; corners [B, 8] move by shares of the side.

    Source: the eight linear equations of four point pairs (Hartley and Zisserman, Multiple View Geometry, 4.1).
    """
    target = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
    source = target[None] + 2 * corners.astype(np.float64).reshape(-1, 4, 2)
    x, y = target.T
    zero, one = np.zeros(4), np.ones(4)
    found = []
    for u, v in source.transpose(0, 2, 1):
        upper = np.stack([x, y, one, zero, zero, zero, -x * u, -y * u], axis=1)
        lower = np.stack([zero, zero, zero, x, y, one, -x * v, -y * v], axis=1)
        solved = np.linalg.solve(np.concatenate([upper, lower]), np.concatenate([u, v]))
        found.append(np.append(solved, 1.0).reshape(3, 3))
    return np.stack(found).astype(np.float32)


def _seen_from_elsewhere(pixels: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """[B, N, 3, S, S], bilinear, by corners [B, 8 N]; what lies outside the old picture repeats its edge."""
    import torch
    from torch.nn.functional import grid_sample

    batch, cameras, channels, height, width = pixels.shape
    maps = torch.from_numpy(homographies(corners.reshape(-1, 8).cpu().numpy())).to(pixels.device)  # [B * N, 3, 3]
    rows, columns = (torch.linspace(-1, 1, length, device=pixels.device) for length in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(1, -1, 3)  # [1, S*S, 3]
    moved = (places[:, :, None, :] * maps[:, None, :, :]).sum(-1)  # [B * N, S*S, 3]; a sum of products, the same on every device
    grid = (moved[..., :2] / moved[..., 2:]).view(-1, height, width, 2)
    flat = pixels.reshape(batch * cameras, channels, height, width)
    return grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=True).view(pixels.shape)


def _noise(shape: torch.Size, seeds: torch.Tensor) -> torch.Tensor:
    """float32 [B, *shape] of mean 0 and standard deviation 1, where `seeds` are, the same on every device: hashed integers."""
    import torch

    numbers = torch.arange(shape.numel(), device=seeds.device, dtype=torch.int64)
    mixed = numbers * 0x9E3779B1 + seeds.to(torch.int64)[:, None] * 0x85EBCA6B  # [B, pixels]
    first = _hash(mixed & 0xFFFFFFFF)
    second = _hash(first ^ 0x5BD1E995)
    unit = (first.float() + second.float()) / 2**32 - 1  # the sum of two uniform numbers, in [-1, 1]
    return (unit * 6**0.5).view(-1, *shape)


def _hash(values: torch.Tensor) -> torch.Tensor:
    """int64 in [0, 2^32) out of the same. Source: Wellons' hash prospector, the best of two rounds found there (2018)."""
    values = values ^ (values >> 16)
    values = (values * 0x21F0AAAD) & 0xFFFFFFFF
    values = values ^ (values >> 15)
    values = (values * 0x735A2D97) & 0xFFFFFFFF
    return values ^ (values >> 15)


def _hide(pixels: torch.Tensor, rows: torch.Tensor) -> None:
    """Greys a box of every picture and all of a blind camera's, in place; rows [B, 5]."""
    height, width = pixels.shape[-2:]
    for pictures, (top, left, box_height, box_width, blind) in zip(pixels, rows.cpu().tolist(), strict=True):
        bottom, right = (round((start + length) * size) for start, length, size in ((top, box_height, height), (left, box_width, width)))
        pictures[..., round(top * height) : bottom, round(left * width) : right] = _GREY
        if blind >= 0:
            pictures[int(blind)] = _GREY
