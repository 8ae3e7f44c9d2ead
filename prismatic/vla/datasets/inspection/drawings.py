"""Small inline SVG drawings and pictures for the page. Coordinates are pixels.

Written by hand: drawn by matplotlib, the same page is a quarter (one arm) to half (two arms) larger and takes five times as long.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

_NUM_BINS = 48
_MAX_POINTS = 240


def histogram(values: np.ndarray, low: float, high: float, marks: tuple[float, ...] = (), size: tuple[int, int] = (250, 44)) -> str:
    """An SVG of how often each value occurs in low .. high (heights as square roots, so that rare ones show); `marks` are dashed lines."""
    width, height = size
    span = high - low or 1.0
    counts, _ = np.histogram(np.clip(values, low, low + span), bins=_NUM_BINS, range=(low, low + span))
    tops = np.sqrt(counts / max(1, counts.max())) * (height - 3)
    step = width / _NUM_BINS
    bars = "".join(f"M{i * step:.1f} {height}v-{top:.1f}h{step * 0.86:.1f}v{top:.1f}z" for i, top in enumerate(tops) if top)
    lines = "".join(
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>' for x in ((mark - low) / span * width for mark in marks)
    )
    return _svg(
        width, height, f'<path class="bars" d="{bars}"/>{lines}<line class="axis" x1="0" x2="{width}" y1="{height}" y2="{height}"/>'
    )


def curves(lines: dict[str, np.ndarray], size: tuple[int, int] = (270, 90)) -> str:
    """An SVG of curves over time on one scale; the keys are their CSS classes."""
    width, height = size
    joined = np.concatenate(list(lines.values()))
    low, high = float(joined.min()), float(joined.max())
    span = high - low or 1.0
    drawn = []
    for name, values in lines.items():
        kept = np.unique(np.linspace(0, len(values) - 1, _MAX_POINTS).astype(int))
        x, y = kept / max(1, len(values) - 1) * width, height - 4 - (values[kept] - low) / span * (height - 8)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        drawn.append(f'<polyline class="{name}" points="{points}"/>')
    return _svg(width, height, "".join(drawn))


def picture(frame: np.ndarray, height: int = 128) -> str:
    """A JPEG data URI of uint8 [height, width, 3], scaled to `height`."""
    buffer = io.BytesIO()
    width = max(1, round(frame.shape[1] * height / frame.shape[0]))
    Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS).save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _svg(width: int, height: int, content: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">{content}</svg>'
