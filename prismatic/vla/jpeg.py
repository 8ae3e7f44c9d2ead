"""What a JPEG file does to pixels, without the file: `images.jpeg_round_trip` for a batch, bit for bit, on any device.

Letters: F frames, H x W their size, h x w a plane's own size (chroma: half of each side, rounded up), M blocks of 8 x 8.

    RGB -> YCbCr -> chroma halved -> DCT -> quantised | (entropy coding: lossless, left out) | -> DCT back -> chroma doubled -> RGB

Every step is integer arithmetic and a fact of the format's most used library, libjpeg-turbo: the slow exact DCT forward, as Pillow encodes,
the fast one back and smooth chroma, as TensorFlow decodes. A pass of the forward DCT is a matrix product of integers, rounded by a shift;
one of the fast DCT truncates five products on the way. Shifts are powers of two inside the matrices, so that a pass is a product with a
constant added, rounded down: few operations, which on a GPU cost a launch each. No number here needs more than 53 bits, so float64 holds
them exactly and matrix units may multiply them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

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
    planes = _to_ycc(_padded(_padded(frames, 1, 2), 2, 2 * _BLOCK))  # [3, F, H, W], sides even
    luma = _code_plane(planes[0], _LUMA, quality)[:, :height, :width]
    halved = _code_plane(_halve(planes[1:].flatten(0, 1)), _CHROMA, quality)[:, : -(-height // 2), : -(-width // 2)]
    return _to_rgb(luma, *_double(halved)[:, :height, :width].chunk(2))


def _padded(x: torch.Tensor, dim: int, multiple: int) -> torch.Tensor:
    """`x` with its last row or column repeated until their number is a multiple."""
    length = x.shape[dim]
    if length % multiple == 0:
        return x
    return x.index_select(dim, torch.arange(-(-length // multiple) * multiple, device=x.device).clamp(max=length - 1))


def _to_ycc(frames: torch.Tensor) -> torch.Tensor:
    """Integers float64 [3, F, H, W]."""
    colours = _colours(frames.device)
    pixels = torch.addmm(colours.to_ycc_bias, frames.double().view(-1, 3), colours.to_ycc).floor_()
    return pixels.view(frames.shape).permute(3, 0, 1, 2)


def _to_rgb(luma: torch.Tensor, blueness: torch.Tensor, redness: torch.Tensor) -> torch.Tensor:
    colours = _colours(luma.device)
    pixels = torch.stack([luma, blueness, redness], dim=-1)  # [F, H, W, 3]
    rounded_down = torch.addmm(colours.to_rgb_bias, pixels.view(-1, 3), colours.to_rgb).clamp_(0, 255).to(torch.uint8)
    return rounded_down.view(pixels.shape)


def _halve(plane: torch.Tensor) -> torch.Tensor:
    """[F, h, w]: means of 2 x 2 pixels, rounded down and up in turns along a row."""
    means = F.avg_pool2d(plane, 2)
    return means.add_(_in_turns(0.25, 0.5, means.shape[2], means.device)).floor_()


def _double(plane: torch.Tensor) -> torch.Tensor:
    """[F, 2h, 2w]: each new pixel is 9/16 of the nearest old one, 3/16 of the two beside it and 1/16 of the one across."""
    doubled = F.interpolate(plane[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
    return doubled.add_(_in_turns(8 / 16, 7 / 16, doubled.shape[2], doubled.device)).floor_()


@lru_cache(maxsize=16)
def _in_turns(even: float, odd: float, length: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor([even, odd], dtype=torch.float64, device=device).repeat(-(-length // 2))[:length]


def _code_plane(plane: torch.Tensor, table: tuple[int, ...], quality: int) -> torch.Tensor:
    """Integers 0 to 255, float64 [F, h, w] (rows rounded up to whole blocks): transformed, quantised and back."""
    plane = _padded(plane, 1, _BLOCK)
    tables = _tables(table, quality, plane.device)
    count, height, width = plane.shape
    rows = plane.reshape(count, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).transpose(2, 3).reshape(-1, _BLOCK)  # [M*8, 8]
    rows = torch.addmm(tables.forward_rows_bias, rows, tables.forward_rows).floor_()
    rows = torch.addmm(_half(plane.device), _turned(rows), tables.forward_columns).floor_()  # columns last from here on
    blocks = rows.view(-1, _BLOCK, _BLOCK)
    blocks = torch.copysign(tables.half_divisor, blocks).add_(blocks).div_(tables.divisor).trunc_().mul_(tables.multiplier)
    rows = _fast_pass(blocks.view(-1, _BLOCK), tables.inverse_rows, tables.inverse_rows_products, None)
    rows = _fast_pass(_turned(rows), tables.inverse_columns, tables.inverse_columns_products, tables.inverse_columns_bias)
    blocks = rows.floor_().clamp_(0, 255).view(count, height // _BLOCK, width // _BLOCK, _BLOCK, _BLOCK)
    return blocks.transpose(2, 3).reshape(count, height, width)


def _turned(rows: torch.Tensor) -> torch.Tensor:
    """The rows [M*8, 8] of transposed blocks."""
    return rows.view(-1, _BLOCK, _BLOCK).mT.reshape(-1, _BLOCK)


def _fast_pass(x: torch.Tensor, matrix: torch.Tensor, of_products: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """One pass of the fast inverse DCT over rows [M*8, 8]: five products rounded down to integers, the rest sums."""
    both = x @ matrix if bias is None else torch.addmm(bias, x, matrix)  # [M*8, 8 + 5]
    return torch.addmm(both[:, :_BLOCK], both[:, _BLOCK:].floor(), of_products)


@lru_cache(maxsize=8)
def _half(device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.full((_BLOCK,), 0.5, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class _Colours:
    """float64 [3, 3], inputs by outputs, and [3]: with the bias that rounding down by a shift of 16 bits asks for."""

    to_ycc: torch.Tensor
    to_ycc_bias: torch.Tensor
    to_rgb: torch.Tensor
    to_rgb_bias: torch.Tensor


@lru_cache(maxsize=8)
def _colours(device: torch.device) -> _Colours:
    to_ycc = np.array([[19595, -11059, 32768], [38470, -21709, -27439], [7471, 32768, -5329]]) / (1 << 16)
    to_ycc_bias = np.array([0.5, 128.5 - 2**-16, 128.5 - 2**-16])
    chroma = np.array([[0, -22554, 116130], [91881, -46802, 0]]) / (1 << 16)
    to_rgb, to_rgb_bias = np.vstack([np.ones(3), chroma]), 0.5 - 128 * chroma.sum(axis=0)
    with torch.inference_mode(False):
        return _Colours(*(torch.tensor(values, device=device) for values in (to_ycc, to_ycc_bias, to_rgb, to_rgb_bias)))


@dataclass(frozen=True)
class _Tables:
    """Constants of one plane in float64: matrices [inputs, outputs] for products from the right, and [8, 8] with columns last."""

    forward_rows: torch.Tensor
    forward_rows_bias: torch.Tensor  # of rounding, and of 0 to 255 as -128 to 127
    forward_columns: torch.Tensor
    divisor: torch.Tensor
    half_divisor: torch.Tensor
    multiplier: torch.Tensor
    inverse_rows: torch.Tensor  # [8, 8 + 5]: sums, then products
    inverse_rows_products: torch.Tensor  # [5, 8]
    inverse_columns: torch.Tensor
    inverse_columns_products: torch.Tensor
    inverse_columns_bias: torch.Tensor  # -128 to 127 as 0 to 255


@lru_cache(maxsize=16)
def _tables(table: tuple[int, ...], quality: int, device: torch.device) -> _Tables:
    scale = 200 - 2 * quality
    steps = np.clip((np.array(table).reshape(8, 8) * scale + 50) // 100, 1, 255)
    fast = np.rint(np.outer(_FAST_SCALES, _FAST_SCALES) * (1 << 14)).astype(np.int64)
    exact = np.isin(np.arange(8), (0, 4))  # sums without a product keep two bits more in the first pass, and lose them in the second
    forward, sums, products, of_products = _forward_matrix(), *_fast_matrices()
    forward_rows = np.where(exact, 4, 1) * forward / 2.0 ** np.where(exact, 0, 11)
    constants = (
        forward_rows,
        0.5 - 128 * forward_rows.sum(axis=0),
        forward / 2.0 ** np.where(exact, 2, 15),
        8 * steps.T,
        4 * steps.T,
        ((steps * fast + (1 << 11)) >> 12).T,
        np.hstack([sums, products / 256]),
        of_products,
        np.hstack([sums / 32, products / 256]),
        of_products / 32,
        np.repeat([128, 0], [8, 5]),
    )
    with torch.inference_mode(False):
        return _Tables(*(torch.tensor(np.ascontiguousarray(values), dtype=torch.float64, device=device) for values in constants))


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
