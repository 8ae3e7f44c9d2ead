"""Whether red and blue look exchanged in recorded pictures (OpenCV's order, BGR): a guess from what is usual, with its figures.

A file does not say in which order its colours were written. But the vivid colours of ordinary scenes (wood, skin, cardboard, copper, lamps)
are mostly red to yellow; skies and shadows are blue, not vivid. Exchanging red and blue maps the hue h to 240 degrees - h, which turns
exactly the warm hues here (-15 .. 75 degrees) into the cool ones (165 .. 255) and back, so that one share says both. A scene whose only
vivid things are blue looks the same as an exchanged one: this is a question to the reader of the page, never a reason to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prismatic.vla.datasets.inspection.frames import Strip
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE
from prismatic.vla.diagnosis import Finding, Status

_VIVID = 80  # levels between the largest and the smallest channel, and
_SATURATED = 0.45  # of the largest: skies and pale blue walls have less
_FEWEST_VIVID = 0.003  # of all pixels of all cameras; less says nothing
_FEWEST_OF_CAMERA = 0.001  # of the pixels of one camera, from which on it has a vote
_COOL_ON_THE_WHOLE = 0.8  # share of the vivid pixels that are blue to cyan, over all cameras
_COOL_EVERYWHERE = 0.7  # the same of each camera that has a vote
_COOL_OF_ONE = 0.95  # the same where a single camera has a vote
_MOST_ROWS = 120  # and columns of a picture that are looked at


@dataclass(frozen=True)
class HueShares:
    """Shares of a camera's pixels."""

    warm: float  # vivid and red to yellow
    cool: float  # vivid and cyan to blue

    @property
    def vivid(self) -> float:
        return self.warm + self.cool

    @property
    def cool_share(self) -> float:
        """Of the vivid pixels."""
        return self.cool / self.vivid if self.vivid else 0.0


def check_channel_order(strips: Sequence[Strip], channel_order: str) -> list[Finding]:
    """A finding where the pictures, read in `channel_order`, look as if red and blue were exchanged."""
    if not strips:
        return []
    cameras = {camera: hue_shares([frame for strip in strips for frame in strip.frames[camera]]) for camera in strips[0].frames}
    if not looks_exchanged(cameras):
        return []
    mean = _mean(cameras)
    share = f"{mean.cool_share:.0%}"
    each = ", ".join(f"{camera} {shares.cool_share:.0%}" for camera, shares in cameras.items() if shares.vivid >= _FEWEST_OF_CAMERA)
    found = (
        f"The pictures look as if red and blue were exchanged (BGR): {mean.vivid:.1%} of the pixels are vivid, {share} of them "
        f"blue to cyan, the rest red to yellow ({each}); where wood, skin or cardboard are seen it is mostly the other way round"
    )
    if channel_order == "rgb":
        change = f'write image_channel_order="bgr" into the entry in {CONFIGS_FILE} (in a conversion: --image_channel_order bgr)'
    else:
        change = f'take image_channel_order="{channel_order}" out of the entry in {CONFIGS_FILE}'
    remedy = f"Look at the strips: if colours are wrong, {change}; if blue things are blue, all is well. Colours alone prove nothing."
    return [Finding("colours", Status.WARNING, found, remedy)]


def looks_exchanged(cameras: Mapping[str, HueShares]) -> bool:
    """Whether the vivid pixels of all cameras together, and of each that has some, are blue to cyan."""
    voting = [shares for shares in cameras.values() if shares.vivid >= _FEWEST_OF_CAMERA]
    mean = _mean(cameras)
    if mean.vivid < _FEWEST_VIVID or mean.cool_share < _COOL_ON_THE_WHOLE:
        return False
    least = _COOL_EVERYWHERE if len(voting) > 1 else _COOL_OF_ONE
    return all(shares.cool_share >= least for shares in voting)


def _mean(cameras: Mapping[str, HueShares]) -> HueShares:
    return HueShares(
        float(np.mean([shares.warm for shares in cameras.values()])), float(np.mean([shares.cool for shares in cameras.values()]))
    )


def hue_shares(frames: Sequence[np.ndarray]) -> HueShares:
    """Of all pixels of uint8 RGB frames [H, W, 3], of which every n-th row and column is looked at."""
    pixels = np.concatenate([_thinned(frame).reshape(-1, 3) for frame in frames]).astype(np.float32)
    red, green, blue = pixels.T
    largest, smallest = pixels.max(1), pixels.min(1)
    chroma = largest - smallest
    is_vivid = (chroma >= _VIVID) & (chroma >= _SATURATED * largest)
    # The hue within its sextant: how far the middle channel is on the way from the smallest to the largest.
    middle = (red + green + blue - largest - smallest - smallest) / np.maximum(chroma, 1)  # 0 .. 1
    towards_quarter = middle <= 0.25  # within 15 degrees of the pure colour
    warm = is_vivid & (largest == red) & ((green >= blue) | towards_quarter)
    warm |= is_vivid & (largest == green) & (red >= blue) & (middle >= 0.75)  # yellow
    cool = is_vivid & (largest == blue) & ((green >= red) | towards_quarter)
    cool |= is_vivid & (largest == green) & (blue > red) & (middle >= 0.75)  # cyan
    return HueShares(float(warm.mean()), float(cool.mean()))


def _thinned(frame: np.ndarray) -> np.ndarray:
    steps = [max(1, -(-length // _MOST_ROWS)) for length in frame.shape[:2]]
    return frame[:: steps[0], :: steps[1]]
