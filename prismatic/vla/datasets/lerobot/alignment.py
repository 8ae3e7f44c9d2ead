"""Steps of an episode -> frames of a video.

LeRobot stores a time stamp with every step and looks for the frame nearest to it. Time stamps come from clocks, videos lose a frame at
their end, and v3 puts the episodes of a camera one behind the other into one file, so the rules are, in this order:

    the time stamps meet the frames one by one                   these frames
    all but one step do, and they meet every frame               these frames; the step whose frame was lost shows the one beside it
    the span of the episode has as many frames as steps, +-1     frames by number; a last step that has none shows the one before
    the time stamps meet frames, of another rate                 the nearest ones
    otherwise                                                    refused, with both numbers

A frame outside the episode's span is never taken: it would show another episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prismatic.vla.datasets.lerobot.frame_tables import FrameTable
from prismatic.vla.datasets.lerobot.layout import VideoSpan


@dataclass(frozen=True)
class Alignment:
    """The frames of T steps."""

    frames: np.ndarray  # int64 [T]
    remarks: tuple[tuple[str, str], ...] = ()  # what was mended, and how it was found


class MisalignedError(ValueError):
    """The video does not belong to the steps; the message has both numbers."""


def align(table: FrameTable, span: VideoSpan, timestamps: np.ndarray | None, num_steps: int, fps: float) -> Alignment:
    """The frame of each step; `timestamps` [T] are seconds since the episode's beginning, as recorded.

    Raises:
        MisalignedError: more than one frame is missing.
    """
    regular = np.arange(num_steps) / fps
    seconds = regular if timestamps is None else timestamps.astype(np.float64)
    first, end = _frames_of(table, span)
    count = end - first
    if count <= 0:
        raise MisalignedError(f"{num_steps} steps, but the video {_describe(table, span)} has no frame there; {_ADVICE}")
    start = span.start or 0.0
    frames = np.clip(_nearest(table.seconds, start + seconds), first, end - 1)
    away = np.abs(table.seconds[frames] - (start + seconds))
    is_away = away > 0.5 / fps + 1e-6
    fits = not is_away.any()
    if fits and (np.diff(frames) == 1).all():
        surplus = end - 1 - frames[-1]
        return Alignment(frames, () if surplus <= 1 else ((_LONGER, f"{num_steps} steps, {count} frames"),))
    if (lost := _lost_step(frames, is_away, first, end)) is not None:
        frames[lost] = frames[lost - 1] if lost else first
        return Alignment(frames, ((_SHORT if lost == num_steps - 1 else _LOST, f"{num_steps} steps, {count} frames, none of step {lost}"),))
    if abs(count - num_steps) <= 1:
        remarks = [] if count == num_steps else [(_SHORT if count < num_steps else _ODD, f"{num_steps} steps, {count} frames")]
        deviation = np.abs(seconds - regular)
        if deviation.max() > 0.5 / fps:
            step = int(deviation.argmax())
            remarks.append((_CLOCK, f"step {step} is at {seconds[step]:.3f} s, by its number {regular[step]:.3f} s"))
        return Alignment(np.minimum(first + np.arange(num_steps), end - 1), tuple(remarks))
    if fits and (np.diff(frames) >= 0).all():
        return Alignment(frames)
    step = int(away.argmax())
    raise MisalignedError(
        f"{num_steps} steps, but {count} frames in the video {_describe(table, span)}; step {step} is at {seconds[step]:.3f} s, "
        f"the nearest frame is {away[step]:.3f} s away; {_ADVICE}"
    )


_SHORT = "episodes whose video is a frame short show the frame before at their last step"
_LOST = "episodes whose video lacks a frame between others show the one beside it at that step"
_ODD = "episodes whose video has a frame more than steps, not at its end: the frames are taken by number"
_LONGER = "episodes whose video goes on after their last step are shown up to there"
_CLOCK = "episodes whose time stamps are not those of the frames: the frames are taken by number"
_ADVICE = "download both again, or leave the episode out with splits in meta/info.json"


def _lost_step(frames: np.ndarray, is_away: np.ndarray, first: int, end: int) -> int | None:
    """The only step that meets no frame, where the others meet all from `first` on, one by one; None: it is not so."""
    steps, others = np.flatnonzero(is_away), frames[~is_away]
    is_whole = len(steps) == 1 and len(others) > 0 and np.array_equal(others, first + np.arange(len(others)))
    if not is_whole or end - first > len(frames) - (steps[0] == len(frames) - 1):  # a last frame that comes late is the last step's
        return None
    return int(steps[0])


def _frames_of(table: FrameTable, span: VideoSpan) -> tuple[int, int]:
    """(first frame of the span, the one behind its last)."""
    half = 0.5 * _interval(table)
    first = int(np.searchsorted(table.seconds, (span.start or 0.0) - half)) if span.start else 0
    end = len(table) if span.stop is None else int(np.searchsorted(table.seconds, span.stop - half))
    return first, end


def _interval(table: FrameTable) -> float:
    """Seconds from one frame to the next, mostly."""
    return float(np.median(np.diff(table.seconds))) if len(table) > 1 else 0.0


def _nearest(times: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """int64: for each of `seconds` the number of the frame shown closest to it."""
    right = np.clip(np.searchsorted(times, seconds), 1, max(len(times) - 1, 1))
    left, right = right - 1, np.minimum(right, len(times) - 1)
    return np.where(seconds - times[left] <= times[right] - seconds, left, right)


def _describe(table: FrameTable, span: VideoSpan) -> str:
    end = float(table.seconds[-1]) + _interval(table)
    if not span.start and span.stop is None:
        return f"({end:.2f} s)"
    return f"from {span.start or 0.0:.2f} to {end if span.stop is None else span.stop:.2f} s of a file of {end:.2f} s"
