"""Compiled inner loops of `prismatic.vla.images` for the CPU: lanczos3 resize, random crop, colour.

Letters: H x W an image's own size, S the side of the result, K taps of the resize kernel, R rows that are resized together.

numba compiles the functions when this module is first imported (some seconds) and keeps the machine code in its cache, so that later
processes load it at once. All numbers are float32, as in TensorFlow. Loops run over slices, so that indices need no checks, and are laid
out so that the innermost one is long, contiguous and free of branches: that is what becomes vector instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

F = np.float32
_ROWS = 28  # R: 28 rows of 256 pixels fit the second-level cache

# Sums may be reordered and products fused with sums, which vector instructions need; NaN does not occur.
_OPTIONS: dict[str, Any] = {
    "fastmath": {"reassoc", "contract", "nsz", "arcp", "nnan", "ninf"},
    "error_model": "numpy",
    "nogil": True,
}
_IMAGE = types.Array(types.uint8, 3, "C", readonly=True)
_INDICES, _NUMBERS, _MATRIX = types.int64[::1], types.float32[::1], types.float32[:, ::1]
_PLANES = types.float32[:, :, ::1]


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles for exactly these types; without a cache where no folder for one is writable."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(signature, cache=True, **_OPTIONS)(function)
        except RuntimeError:  # "no locator available"
            return njit(signature, **_OPTIONS)(function)

    return decorate


@njit(**_OPTIONS)
def _weighted_sum(total: np.ndarray, values: np.ndarray, start: int, stride: int, weights: np.ndarray) -> None:
    """total[i] = sum over k of weights[k] * values[start + k * stride + i]; four taps per pass over `total`."""
    length, fours = len(total), len(weights) // 4 * 4
    total[:] = F(0)
    for k in range(0, fours, 4):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        first = start + k * stride
        v0, v1 = values[first : first + length], values[first + stride : first + stride + length]
        v2, v3 = values[first + 2 * stride : first + 2 * stride + length], values[first + 3 * stride : first + 3 * stride + length]
        for i in range(length):
            total[i] += (w0 * F(v0[i]) + w1 * F(v1[i])) + (w2 * F(v2[i]) + w3 * F(v3[i]))
    for k in range(fours, len(weights)):
        weight = weights[k]
        tail = values[start + k * stride : start + k * stride + length]
        for i in range(length):
            total[i] += weight * F(tail[i])


@_compiled(types.uint8[:, :, ::1](_IMAGE, _INDICES, _MATRIX, _INDICES, _MATRIX))
def resize(
    image: np.ndarray, first_rows: np.ndarray, row_weights: np.ndarray, first_columns: np.ndarray, column_weights: np.ndarray
) -> np.ndarray:
    """uint8 [S, S, 3] out of uint8 [H, W, 3], rounded and clipped once, at the end.

    Row y of the result is the sum of K rows of the image from first_rows[y] on with row_weights[y]; columns likewise.
    """
    size, values = len(first_rows), image.shape[1] * 3
    flat = image.reshape(-1)
    resized = np.empty((size, size * 3), np.uint8)
    line = np.empty(values, F)
    lines = np.empty((values, _ROWS), F)  # R rows, resized vertically, on their side
    lines_flat = lines.reshape(-1)
    pixel = np.empty(3 * _ROWS, F)
    pixels = np.empty((size * 3, _ROWS), np.uint8)
    pixels_flat = pixels.reshape(-1)
    for top in range(0, size, _ROWS):
        rows = min(_ROWS, size - top)
        for row in range(rows):
            _weighted_sum(line, flat, first_rows[top + row] * values, values, row_weights[top + row])
            for i in range(values):
                lines[i, row] = line[i]
        for column in range(size):
            _weighted_sum(pixel, lines_flat, first_columns[column] * 3 * _ROWS, 3 * _ROWS, column_weights[column])
            rounded = pixels_flat[column * 3 * _ROWS : (column + 1) * 3 * _ROWS]
            for i in range(3 * _ROWS):
                rounded[i] = np.uint8(np.int32(min(max(pixel[i], F(0)), F(255)) + F(0.5)))
        for row in range(rows):
            for i in range(size * 3):
                resized[top + row, i] = pixels[i, row]
    return resized.reshape(size, size, 3)


@_compiled(_NUMBERS(_IMAGE, _NUMBERS, _NUMBERS, types.float32, _PLANES))
def crop_and_brighten(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, brightness: float, planes: np.ndarray) -> np.ndarray:
    """float32 [3], the mean of each channel; writes planes [3, S, S]: bilinear pixels at (rows, columns) plus brightness, in [0, 1].

    `rows` and `columns` [S] are positions in the image, 0 its first pixel centre and S - 1 its last.
    """
    size = image.shape[0]
    flat = image.reshape(size, size * 3)
    line = np.empty((size + 1) * 3, F)
    sums = np.zeros(3, F)
    scale = F(1 / 255)
    for y in range(size):
        top = min(int(rows[y]), size - 1)
        upper, lower = flat[top], flat[min(top + 1, size - 1)]
        share = (rows[y] - F(top)) * scale
        rest = scale - share
        for i in range(size * 3):
            line[i] = rest * F(upper[i]) + share * F(lower[i]) + brightness
        for i in range(size * 3, size * 3 + 3):  # a loop compiles in a tenth of the time of a slice assignment
            line[i] = line[i - 3]
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        for x in range(size):
            left = min(int(columns[x]), size - 1)
            share, i = columns[x] - F(left), 3 * left
            red[x] = line[i] + share * (line[i + 3] - line[i])
            green[x] = line[i + 1] + share * (line[i + 4] - line[i + 1])
            blue[x] = line[i + 2] + share * (line[i + 5] - line[i + 2])
        for channel in range(3):
            plane, total = planes[channel, y], F(0)
            for x in range(size):
                value = min(max(plane[x], F(0)), F(1))
                plane[x] = value
                total += value
            sums[channel] += total
    return sums / F(size * size)


@njit(**_OPTIONS)
def _to_byte(value: float) -> int:
    """Of a value in [0, 1], as `tf.image.convert_image_dtype` does it."""
    return np.uint8(np.int32(min(value * F(255.5), F(255))))


@_compiled(types.void(_PLANES, _NUMBERS, types.float32, types.float32, types.float32, types.uint8[:, :, ::1]))
def adjust_colour(planes: np.ndarray, means: np.ndarray, contrast: float, saturation: float, hue: float, out: np.ndarray) -> None:
    """Writes out [S, S, 3] uint8: contrast about `means` [3], clip, HSV saturation and hue, floor(x * 255.5).

    The formulas are those of `images._adjust_saturation_and_hue`.
    """
    size = planes.shape[1]
    bytes_of_row = np.empty((3, size), np.uint8)
    to_red, to_green, to_blue = bytes_of_row[0], bytes_of_row[1], bytes_of_row[2]
    shift, rest = F(6) * hue, F(1) - contrast
    red_rest, green_rest, blue_rest = means[0] * rest, means[1] * rest, means[2] * rest
    for y in range(size):
        red_plane, green_plane, blue_plane = planes[0, y], planes[1, y], planes[2, y]
        for x in range(size):
            red = min(max(red_plane[x] * contrast + red_rest, F(0)), F(1))
            green = min(max(green_plane[x] * contrast + green_rest, F(0)), F(1))
            blue = min(max(blue_plane[x] * contrast + blue_rest, F(0)), F(1))
            value = max(max(red, green), blue)
            chroma = value - min(min(red, green), blue)
            inverse = F(1) / max(chroma, F(1e-12))
            of_green_or_blue = (blue - red) * inverse + F(2) if value == green else (red - green) * inverse + F(4)
            sextant = ((green - blue) * inverse if value == red else of_green_or_blue) + shift
            sextant -= F(6) * np.floor(sextant * F(1 / 6))
            chroma = min(chroma * saturation, value)
            least = value - chroma
            to_red[x] = _to_byte(least + chroma * min(max(abs(sextant - F(3)) - F(1), F(0)), F(1)))
            to_green[x] = _to_byte(least + chroma * min(max(F(2) - abs(sextant - F(2)), F(0)), F(1)))
            to_blue[x] = _to_byte(least + chroma * min(max(F(2) - abs(sextant - F(4)), F(0)), F(1)))
        row = out[y]
        for x in range(size):
            row[x, 0], row[x, 1], row[x, 2] = to_red[x], to_green[x], to_blue[x]
