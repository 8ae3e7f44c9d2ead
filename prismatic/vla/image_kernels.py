"""Compiled inner loops of `prismatic.vla.images` for the CPU: lanczos3 resize, random crop, colour.

Letters: H x W an image's own size, S the side of the result, K taps of the resize kernel.

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
_BLOCK = 256  # values of a row that are resized together: the inputs of eight rows of a result fit the first-level cache or nearly
_STRETCH = 64  # values of a row that are cropped together: four of the longest vectors

# Sums may be reordered and products fused with sums, which vector instructions need; NaN does not occur. What computes is compiled by
# itself or inlined: a function that is called would round in one way when it is compiled and in another when it comes out of the cache.
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
def _aligned(length: int) -> np.ndarray:
    """Uninitialised float32 [length] at a multiple of 64 bytes, so that no vector lies across two cache lines."""
    numbers = np.empty(length + 16, F)
    skipped = (-numbers.ctypes.data // 4) % 16
    return numbers[skipped : skipped + length]


@njit(forceinline=True, **_OPTIONS)
def _weighted_sum(total: np.ndarray, length: int, values: np.ndarray, stride: int, weights: np.ndarray) -> None:
    """total[i] = sum over k of weights[k] * values[k * stride + i] for i < length; eight taps in the first pass, four in each other.

    Seven taps (256 -> 224 pixels) have a pass of their own. Inlined, so that a constant length and stride leave no loop behind.
    """
    done = 0
    if len(weights) == 7:
        w0, w1, w2, w3, w4, w5, w6 = weights[0], weights[1], weights[2], weights[3], weights[4], weights[5], weights[6]
        for i in range(length):
            low = (w0 * values[i] + w1 * values[stride + i]) + (w2 * values[2 * stride + i] + w3 * values[3 * stride + i])
            total[i] = low + (w4 * values[4 * stride + i] + w5 * values[5 * stride + i] + w6 * values[6 * stride + i])
        done = 7
    elif len(weights) >= 8:
        w0, w1, w2, w3, w4, w5, w6, w7 = weights[0], weights[1], weights[2], weights[3], weights[4], weights[5], weights[6], weights[7]
        for i in range(length):
            low = (w0 * values[i] + w1 * values[stride + i]) + (w2 * values[2 * stride + i] + w3 * values[3 * stride + i])
            high = (w4 * values[4 * stride + i] + w5 * values[5 * stride + i]) + (w6 * values[6 * stride + i] + w7 * values[7 * stride + i])
            total[i] = low + high
        done = 8
    else:
        for i in range(length):
            total[i] = F(0)
    while done + 4 <= len(weights):
        w0, w1, w2, w3 = weights[done], weights[done + 1], weights[done + 2], weights[done + 3]
        four = values[done * stride : (done + 4) * stride]
        for i in range(length):
            total[i] += (w0 * four[i] + w1 * four[stride + i]) + (w2 * four[2 * stride + i] + w3 * four[3 * stride + i])
        done += 4
    for k in range(done, len(weights)):
        weight, one = weights[k], values[k * stride :]
        for i in range(length):
            total[i] += weight * one[i]


@njit(**_OPTIONS)
def _bundle(rows: np.ndarray, length: int, bundle: np.ndarray) -> None:
    """bundle[8 i + r] = rows[r, i]: eight rows side by side, so that what is done to one column is done to eight neighbours in memory."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    for i in range(length):  # written out: eight stores side by side become shuffles, a loop over them does not
        bundle[8 * i], bundle[8 * i + 1], bundle[8 * i + 2], bundle[8 * i + 3] = r0[i], r1[i], r2[i], r3[i]
        bundle[8 * i + 4], bundle[8 * i + 5], bundle[8 * i + 6], bundle[8 * i + 7] = r4[i], r5[i], r6[i], r7[i]


@njit(**_OPTIONS)
def _unbundle(bundle: np.ndarray, length: int, rows: np.ndarray) -> None:
    """rows[r, i] = bundle[8 i + r], the inverse of `_bundle`."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    for i in range(length):
        r0[i], r1[i], r2[i], r3[i] = bundle[8 * i], bundle[8 * i + 1], bundle[8 * i + 2], bundle[8 * i + 3]
        r4[i], r5[i], r6[i], r7[i] = bundle[8 * i + 4], bundle[8 * i + 5], bundle[8 * i + 6], bundle[8 * i + 7]


@njit(**_OPTIONS)
def _resize_rows(image: np.ndarray, first_rows: np.ndarray, row_weights: np.ndarray, bundle: np.ndarray) -> None:
    """Writes bundle [8 W * 3]: up to eight rows of the result, `first_rows` of them, out of image [H, W * 3]; columns as they were."""
    top, num_rows = first_rows[0], first_rows[-1] + row_weights.shape[1] - first_rows[0]
    block, lines = _aligned(num_rows * _BLOCK), _aligned(8 * _BLOCK).reshape(8, _BLOCK)
    for left in range(0, image.shape[1], _BLOCK):
        length = min(_BLOCK, image.shape[1] - left)
        for row in range(num_rows):  # every input becomes a float once, whatever the number of results that it adds to
            inputs, floats = image[top + row, left : left + length], block[row * _BLOCK : row * _BLOCK + length]
            for i in range(length):
                floats[i] = F(inputs[i])
        for row in range(len(first_rows)):
            _weighted_sum(lines[row], length, block[(first_rows[row] - top) * _BLOCK :], _BLOCK, row_weights[row])
        _bundle(lines, length, bundle[8 * left :])


@_compiled(types.void(_IMAGE, _INDICES, _MATRIX, _INDICES, _MATRIX, types.uint8[:, :, ::1]))
def resize(
    image: np.ndarray,
    first_rows: np.ndarray,
    row_weights: np.ndarray,
    first_columns: np.ndarray,
    column_weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Writes out [S, S, 3] uint8 out of uint8 [H, W, 3], rounded and clipped once, at the end.

    Row y of the result is the sum of K rows of the image from first_rows[y] on with row_weights[y]; columns likewise.
    """
    size, values = len(first_rows), image.shape[1] * 3
    rows_of_image, rows_of_out = image.reshape(-1, values), out.reshape(size, size * 3)
    bundle, sums = _aligned(8 * values), _aligned(24 * size)
    levels, rows = np.empty(24 * size, np.uint8), np.empty((8, 3 * size), np.uint8)
    for top in range(0, size, 8):
        _resize_rows(rows_of_image, first_rows[top : top + 8], row_weights[top : top + 8], bundle)
        for column in range(size):  # three channels of eight rows are 24 numbers
            _weighted_sum(sums[24 * column :], 24, bundle[24 * first_columns[column] :], 24, column_weights[column])
        for i in range(24 * size):
            levels[i] = np.uint8(np.int32(min(max(sums[i], F(0)), F(255)) + F(0.5)))
        _unbundle(levels, 3 * size, rows)
        for row in range(min(8, size - top)):
            line, line_of_out = rows[row], rows_of_out[top + row]
            for i in range(3 * size):
                line_of_out[i] = line[i]


@njit(forceinline=True, **_OPTIONS)
def _find_runs(columns: np.ndarray, starts: np.ndarray, offsets: np.ndarray, shares: np.ndarray) -> int:
    """How many runs there are: columns starts[r] <= x < starts[r + 1] lie between pixel x + offsets[r] and the next, at shares[3 x + c].

    A crop enlarges a little, so that runs are long; the pixels of a run lie side by side in the image and in the result.
    """
    size, num_runs = len(columns), 0
    for x in range(size):
        left = min(int(columns[x]), size - 1)
        shares[3 * x] = shares[3 * x + 1] = shares[3 * x + 2] = columns[x] - F(left)
        if num_runs == 0 or left - x != offsets[num_runs - 1]:
            starts[num_runs], offsets[num_runs] = x, left - x
            num_runs += 1
    starts[num_runs] = size
    return num_runs


@_compiled(_NUMBERS(_IMAGE, _NUMBERS, _NUMBERS, types.float32, _PLANES))
def crop_and_brighten(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, brightness: float, planes: np.ndarray) -> np.ndarray:
    """float32 [3], the mean of each channel; writes planes [3, S, S]: bilinear pixels at (rows, columns) plus brightness, in [0, 1].

    `rows` and `columns` [S] are positions in the image, 0 its first pixel centre and S - 1 its last.
    """
    size, length = image.shape[0], image.shape[0] * 3
    flat = image.reshape(size, length)
    starts, offsets = np.empty(size + 1, np.int64), np.empty(size, np.int64)
    # Stretches may reach beyond a run, where the next one overwrites them, and beyond the row.
    shares, line, mixed = np.zeros(length + _STRETCH, F), np.zeros(length + 3 + _STRETCH, F), _aligned(length + _STRETCH)
    num_runs = _find_runs(columns, starts, offsets, shares)
    sums = np.zeros(3, F)
    scale = F(1 / 255)
    for y in range(size):
        top = min(int(rows[y]), size - 1)
        upper, lower = flat[top], flat[min(top + 1, size - 1)]
        share = (rows[y] - F(top)) * scale
        rest = scale - share
        for i in range(length):
            line[i] = rest * F(upper[i]) + share * F(lower[i]) + brightness
        for i in range(length, length + 3):  # a loop compiles in a tenth of the time of a slice assignment
            line[i] = line[i - 3]
        for run in range(num_runs):
            for first in range(3 * starts[run], 3 * starts[run + 1], _STRETCH):
                inputs, share_of, outputs = line[first + 3 * offsets[run] :], shares[first:], mixed[first:]
                for i in range(_STRETCH):
                    outputs[i] = inputs[i] + share_of[i] * (inputs[i + 3] - inputs[i])
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        red_sum, green_sum, blue_sum = F(0), F(0), F(0)
        for x in range(size):
            r = min(max(mixed[3 * x], F(0)), F(1))
            g = min(max(mixed[3 * x + 1], F(0)), F(1))
            b = min(max(mixed[3 * x + 2], F(0)), F(1))
            red[x], green[x], blue[x] = r, g, b
            red_sum, green_sum, blue_sum = red_sum + r, green_sum + g, blue_sum + b
        sums[0], sums[1], sums[2] = sums[0] + red_sum, sums[1] + green_sum, sums[2] + blue_sum
    return sums / F(size * size)


@njit(forceinline=True, **_OPTIONS)
def _to_byte(value: float) -> int:
    """Of a value in [0, 1], as `tf.image.convert_image_dtype` does it; 1 becomes 255."""
    return np.uint8(np.int32(value * F(255.5)))


@_compiled(types.void(_PLANES, _NUMBERS, types.float32, types.float32, types.float32, types.uint8[:, :, ::1]))
def adjust_colour(planes: np.ndarray, means: np.ndarray, contrast: float, saturation: float, hue: float, out: np.ndarray) -> None:
    """Writes out [S, S, 3] uint8: contrast about `means` [3], clip, HSV saturation and hue, floor(x * 255.5).

    The formulas are those of `images._adjust_saturation_and_hue`.
    """
    size = planes.shape[1]
    flat = out.reshape(size, 3 * size)
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
        row = flat[y]
        for x in range(size):
            row[3 * x], row[3 * x + 1], row[3 * x + 2] = to_red[x], to_green[x], to_blue[x]
