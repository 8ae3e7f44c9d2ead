"""A few decoded frames of a data set, and what looks wrong in them.

Letters: K episodes, F time steps, C cameras.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from prismatic.vla.cameras import is_wrist
from prismatic.vla.datasets.episodes import FrameError
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE
from prismatic.vla.diagnosis import Finding, Status, listed

_SAME_PROPORTION = 1.05  # of width to height, from one episode to another
_THUMBNAIL = 32  # pixels; what the comparisons look at


@dataclass(frozen=True)
class Strip:
    """Frames of one episode, equally spaced from its first to its last step."""

    episode: int  # number in the index
    steps: np.ndarray  # int64 [F], counted from the episode's start
    frames: dict[str, list[np.ndarray]]  # camera -> F x uint8 [height, width, 3]


def read_strips(view: DatasetView, num_episodes: int, num_steps: int) -> tuple[list[Strip], list[Finding]]:
    """Strips of up to `num_episodes` episodes spread over the data set, and a finding for frames that cannot be read."""
    chosen = view.episodes[np.unique(np.linspace(0, len(view.episodes) - 1, num_episodes).astype(int))]
    strips, damaged = [], []
    for episode in chosen.tolist():
        steps = np.unique(np.linspace(0, view.index.lengths[episode] - 1, num_steps).astype(int))
        first = int(view.index.episode_starts[episode])
        try:
            frames = {
                camera: [view.index.frame(first + step, column) for step in steps.tolist()]
                for column, camera in enumerate(view.index.cameras)
            }
        except FrameError as error:
            damaged.append(str(error))
            continue
        strips.append(Strip(episode, steps, frames))
    if not damaged:
        return strips, []
    status = Status.WARNING if strips else Status.PROBLEM  # training stops at more than a few
    found = f"{len(damaged)} of {len(chosen)} sampled episodes have a damaged image: {damaged[0]}"
    return strips, [Finding("images", status, found, "Copy or convert the data set again.")]


def check_frames(strips: list[Strip]) -> list[Finding]:
    """Cameras that are black, constant, frozen, identical, swapped or of several shapes."""
    if not strips:
        return []
    small = {camera: [_thumbnails(strip.frames[camera]) for strip in strips] for camera in strips[0].frames}
    checks = (_check_single(small), _check_identical(small), _check_swapped(small), _check_mixed_up(small, strips), _check_shapes(strips))
    return [finding for findings in checks for finding in findings]


def _thumbnails(frames: list[np.ndarray]) -> np.ndarray:
    """float32 [F, side, side], grey."""
    images = [Image.fromarray(frame).convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX) for frame in frames]
    return np.stack([np.asarray(image, np.float32) for image in images])


def _check_single(small: dict[str, list[np.ndarray]]) -> list[Finding]:
    findings = []
    for camera, episodes in small.items():
        black = np.mean([(frames.mean((1, 2)) < 8).mean() for frames in episodes])
        flat = np.mean([(frames.std((1, 2)) < 3).mean() for frames in episodes])
        several = [frames for frames in episodes if len(frames) > 1]
        frozen = np.mean([np.abs(frames - frames[0]).max() < 1 for frames in several]) if several else 0
        for share, what in ((black, "black"), (flat, "of one colour"), (frozen, "frozen: it never changes within an episode")):
            if share > 0.2:
                unit = "episodes" if what.startswith("frozen") else "frames"
                remedy = f"Check the camera and its cable, and image_obs_keys of the entry in {CONFIGS_FILE}; leave bad episodes out."
                findings.append(
                    Finding("cameras", Status.WARNING, f"The camera {camera} is {what} ({share:.0%} of the sampled {unit})", remedy)
                )
                break
    return findings


def _check_identical(small: dict[str, list[np.ndarray]]) -> list[Finding]:
    return [
        Finding(
            "cameras",
            Status.WARNING,
            f"The cameras {one} and {other} show the same picture",
            f"Give each camera its own key in image_obs_keys of the entry in {CONFIGS_FILE}; the recorder may have saved one twice.",
        )
        for one, other in _pairs(small)
        if all(np.abs(a - b).mean() < 1 for a, b in zip(small[one], small[other], strict=True)) and _contrast(small[one]) > 3
    ]


def _check_swapped(small: dict[str, list[np.ndarray]]) -> list[Finding]:
    """A fixed camera keeps most of its picture, one on the wrist does not."""
    findings = []
    for wrist in filter(is_wrist, small if "primary" in small else ()):
        moving = [(_still_share(fixed), _still_share(hand)) for fixed, hand in zip(small["primary"], small[wrist], strict=True)
                  if len(fixed) > 2]  # fmt: skip
        if moving and np.mean([hand > fixed + 0.25 for fixed, hand in moving]) > 0.7:
            findings.append(
                Finding(
                    "cameras",
                    Status.WARNING,
                    f"The cameras primary and {wrist} may be swapped: primary moves with the robot, {wrist} stands still",
                    f"Look at the strips below; if so, exchange their keys in image_obs_keys of the entry in {CONFIGS_FILE}.",
                )
            )
    return findings


def _check_mixed_up(small: dict[str, list[np.ndarray]], strips: list[Strip]) -> list[Finding]:
    """Single episodes whose two cameras are exchanged against all others."""
    findings: list[Finding] = []
    if len(strips) < 4:
        return findings
    for one, other in _pairs(small):
        first, second = (np.stack([frames[0] for frames in small[camera]]) for camera in (one, other))
        usual_first, usual_second = np.median(first, axis=0), np.median(second, axis=0)
        as_is = np.abs(first - usual_first).mean((1, 2)) + np.abs(second - usual_second).mean((1, 2))
        exchanged = np.abs(first - usual_second).mean((1, 2)) + np.abs(second - usual_first).mean((1, 2))
        odd = [strip.episode for strip, flag in zip(strips, exchanged < 0.5 * as_is, strict=True) if flag]
        if odd:
            findings.append(
                Finding(
                    "cameras",
                    Status.WARNING,
                    f"The cameras {one} and {other} are swapped in some episodes: {listed(odd)}",
                    "Repair or leave out these.",
                )
            )
    return findings


def _check_shapes(strips: list[Strip]) -> list[Finding]:
    """A policy sees squares: what was recorded wider is squeezed more."""
    findings = []
    for camera in strips[0].frames:
        shapes = {frame.shape[:2]: strip.episode for strip in strips for frame in strip.frames[camera]}
        proportions = [width / height for height, width in shapes]
        if max(proportions) > _SAME_PROPORTION * min(proportions):
            shown = listed([f"{width} x {height} (episode {episode})" for (height, width), episode in shapes.items()])
            findings.append(
                Finding(
                    "cameras",
                    Status.WARNING,
                    f"The pictures of the camera {camera} have different proportions: {shown}; squeezed to squares, things differ in width",
                    "Crop them to those of the robot's camera, or leave these episodes out.",
                )
            )
    return findings


def _pairs(small: dict[str, list[np.ndarray]]) -> list[tuple[str, str]]:
    cameras = list(small)
    return [(one, other) for number, one in enumerate(cameras) for other in cameras[number + 1 :]]


def _still_share(frames: np.ndarray) -> float:
    """Share of the picture [F, side, side] that hardly changes over the episode."""
    return float((np.ptp(frames, axis=0) < 12).mean())


def _contrast(episodes: list[np.ndarray]) -> float:
    return float(np.mean([frames.std((1, 2)).mean() for frames in episodes]))
