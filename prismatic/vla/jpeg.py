"""What a JPEG file does to pixels, without the file: `images.jpeg_round_trip` for a batch, bit for bit, on any device.

Letters: F frames, H x W their size, h x w a plane's own size (chroma: half of each side, rounded up), M blocks of 8 x 8.

    RGB -> YCbCr -> chroma halved -> DCT -> quantised | (entropy coding: lossless, left out) | -> DCT back -> chroma doubled -> RGB

Every step is integer arithmetic and a fact of the format's most used library, libjpeg-turbo: the slow exact DCT forward, as Pillow encodes,
the fast one back and smooth chroma, as TensorFlow decodes. A pass of the forward DCT is a matrix product of integers, rounded by a shift;
one of the fast DCT truncates five products on the way. The integers stay below 2**53, so float64 holds them exactly and matrix units may
multiply them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

MIN_SIDE = 5  # pixels; libjpeg-turbo doubles the chroma of smaller images another way
_BLOCK = 8

# Quantisation tables of quality 50 (ISO 10918-1, annex K), rows top to bottom.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *[99] * 32,
)  # fmt: skip
# cos(k pi / 16) sqrt(2), with 1 for k = 0: the fast DCT leaves these factors to the quantisation tables.
_FAST_SCALES = (1.0, 1.387039845, 1.306562965, 1.175875602, 1.0, 0.785694958, 0.541196100, 0.275899379)


def round_trip_batch(frames: torch.Tensor, quality: int = 95) -> torch.Tensor:
    """uint8 [F, H, W, 3] out of the same: encoded with chroma 4:2:0 at `quality` (50 to 100) and decoded again.

    Raises:
        ValueError: a side is shorter than `MIN_SIDE`.
    """
    height, width = frames.shape[1:3]
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"frames of {height}x{width} pixels; the batched JPEG round trip takes at least {MIN_SIDE}x{MIN_SIDE}")
    frames = frames[:, _clamped(height, 2, frames.device)][:, :, _clamped(width, 2 * _BLOCK, frames.device)]
    luma, *chroma = _to_ycc(frames.int())
    luma = _code_plane(luma, _LUMA, quality)
    halved = _code_plane(_halve(torch.cat(chroma)), _CHROMA, quality)[:, : -(-height // 2), : -(-width // 2)]
    return _to_rgb(*(plane[:, :height, :width] for plane in (luma, *_double(halved).chunk(2))))


def _clamped(length: int, multiple: int, device: torch.device) -> torch.Tensor:
    """Indices [length, rounded up to a multiple] that repeat the last one."""
    return torch.arange(-(-length // multiple) * multiple, device=device).clamp(max=length - 1)


def _to_ycc(frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
    red, green, blue = frames.unbind(-1)  # each int32 [F, H, W]
    return (
        (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16,
        ((128 << 16) + (1 << 15) - 1 - 11059 * red - 21709 * green + 32768 * blue) >> 16,
        ((128 << 16) + (1 << 15) - 1 + 32768 * red - 27439 * green - 5329 * blue) >> 16,
    )


def _to_rgb(luma: torch.Tensor, blueness: torch.Tensor, redness: torch.Tensor) -> torch.Tensor:
    blueness, redness = blueness - 128, redness - 128
    red = luma + ((91881 * redness + (1 << 15)) >> 16)
    green = luma + ((-22554 * blueness - 46802 * redness + (1 << 15)) >> 16)
    blue = luma + ((116130 * blueness + (1 << 15)) >> 16)
    return torch.stack([red, green, blue], dim=-1).clamp_(0, 255).to(torch.uint8)


def _halve(plane: torch.Tensor) -> torch.Tensor:
    """int32 [F, h, w]: means of 2 x 2 pixels, rounded down and up in turns along a row."""
    total = plane[:, 0::2, 0::2] + plane[:, 0::2, 1::2] + plane[:, 1::2, 0::2] + plane[:, 1::2, 1::2]
    return (total + 1 + torch.arange(total.shape[2], device=plane.device, dtype=torch.int32) % 2) >> 2


def _double(plane: torch.Tensor) -> torch.Tensor:
    """int32 [F, 2h, 2w]: each new pixel is 9/16 of the nearest old one, 3/16 of the two beside it and 1/16 of the one across."""
    rows = 3 * plane
    above, below = (torch.cat(parts, dim=1) for parts in ((plane[:, :1], plane[:, :-1]), (plane[:, 1:], plane[:, -1:])))
    sums = torch.stack([rows + above, rows + below], dim=2).flatten(1, 2)  # [F, 2h, w]
    columns = 3 * sums
    left, right = (torch.cat(parts, dim=2) for parts in ((sums[..., :1], sums[..., :-1]), (sums[..., 1:], sums[..., -1:])))
    return torch.stack([(columns + left + 8) >> 4, (columns + right + 7) >> 4], dim=3).flatten(2, 3)


def _code_plane(plane: torch.Tensor, table: tuple[int, ...], quality: int) -> torch.Tensor:
    """int32 [F, h, w] (rows rounded up to whole blocks): transformed, quantised and back."""
    plane = plane[:, _clamped(plane.shape[1], _BLOCK, plane.device)]
    tables = _tables(table, quality, plane.device)
    count, height, width = plane.shape
    blocks = plane.view(count, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).transpose(2, 3)  # [F, h/8, w/8, 8, 8]
    blocks = (blocks - 128).double()
    blocks = _shift(blocks @ tables.forward_rows, tables.row_shifts).mT  # columns last from here on
    blocks = _shift(blocks @ tables.forward_columns, tables.column_shifts)
    quantised = torch.floor((blocks.abs() + tables.divisor // 2) / tables.divisor).copysign(blocks)
    blocks = _fast_pass(quantised * tables.multiplier, tables).mT
    blocks = torch.floor(_fast_pass(blocks, tables) / 32).clamp(-128, 127) + 128
    return blocks.int().transpose(2, 3).reshape(count, height, width)


def _shift(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """x / 2**bits rounded to the nearest integer, halves up."""
    return torch.floor(torch.ldexp(x, -bits) + 0.5)


def _fast_pass(x: torch.Tensor, tables: _Tables) -> torch.Tensor:
    """One pass of the fast inverse DCT along the last dimension: five products truncated to integers, the rest sums."""
    return x @ tables.inverse_sums + torch.floor(x @ tables.inverse_products / 256) @ tables.inverse_product_sums


@dataclass(frozen=True)
class _Tables:
    """Constants of one plane, float64 [inputs, outputs] for products from the right, and [8, 8] with columns last."""

    forward_rows: torch.Tensor
    row_shifts: torch.Tensor
    forward_columns: torch.Tensor
    column_shifts: torch.Tensor
    divisor: torch.Tensor
    multiplier: torch.Tensor
    inverse_sums: torch.Tensor
    inverse_products: torch.Tensor
    inverse_product_sums: torch.Tensor


@lru_cache(maxsize=16)
def _tables(table: tuple[int, ...], quality: int, device: torch.device) -> _Tables:
    scale = 200 - 2 * quality
    steps = np.clip((np.array(table).reshape(8, 8) * scale + 50) // 100, 1, 255)
    fast = np.rint(np.outer(_FAST_SCALES, _FAST_SCALES) * (1 << 14)).astype(np.int64)
    exact = np.isin(np.arange(8), (0, 4))  # sums without a product keep two bits more in the first pass, and lose them in the second
    forward, sums, products, product_sums = _forward_matrix(), *_fast_matrices()
    constants = (
        np.where(exact, 4, 1) * forward,
        np.where(exact, 0, 11),
        forward,
        np.where(exact, 2, 15),
        8 * steps.T,
        ((steps * fast + (1 << 11)) >> 12).T,
        sums,
        products,
        product_sums,
    )
    with torch.inference_mode(False):
        return _Tables(*(torch.tensor(values, dtype=torch.float64, device=device) for values in constants))


def _forward_matrix() -> np.ndarray:
    """int64 [8, 8]: the exact DCT (Loeffler, Ligtenberg & Moschytz 1989) with constants of 13 bits, outputs 0 and 4 unscaled."""
    x = np.eye(8, dtype=np.int64)
    sums, differences = x[:4] + x[:3:-1], x[:4] - x[:3:-1]
    outer, inner = sums[0] - sums[3], sums[1] - sums[2]
    middle = 4433 * (inner + outer)
    a, b, c, d = differences[3], differences[2], differences[1], differences[0]
    both = 9633 * (a + b + c + d)
    ac, bd = both - 16069 * (a + c), both - 3196 * (b + d)
    ad, bc = -7373 * (a + d), -20995 * (b + c)
    return np.stack(
        [
            sums.sum(axis=0),
            12299 * d + ad + bd,
            middle + 6270 * outer,
            25172 * c + bc + ac,
            sums[0] + sums[3] - sums[1] - sums[2],
            16819 * b + bc + bd,
            middle - 15137 * inner,
            2446 * a + ad + ac,
        ],
        axis=1,
    )


def _fast_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fast inverse DCT (Arai, Agui & Nakajima 1988) with constants of 8 bits: what outputs [.., 8] take of the inputs [8, ..], the
    five products of the inputs [8, 5], and what outputs take of the products [5, 8]."""
    x = np.eye(13, dtype=np.int64)  # eight inputs, then five products
    first = x[2] - x[6]
    z13, z10, z11, z12 = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    products = np.stack([362 * first, 362 * (z11 - z13), 473 * (z10 + z12), 277 * z12, -669 * z10], axis=1)[:8]
    even = x[8] - x[2] - x[6]
    a, d, b, c = x[0] + x[4] + x[2] + x[6], x[0] + x[4] - x[2] - x[6], x[0] - x[4] + even, x[0] - x[4] - even
    seven = z11 + z13
    six = x[12] + x[10] - seven
    five = x[9] - six
    four = x[11] - x[10] + five
    outputs = np.stack([a + seven, b + six, c + five, d - four, d + four, c - five, b - six, a - seven], axis=1)
    return outputs[:8], products, outputs[8:]
