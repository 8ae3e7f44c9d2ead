"""A data set -> one self-contained HTML page. Letters: M steps, A action dim, P proprio dim."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.constants import ActionKind
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.inspection.checks import REPAIRS, check_arrays, instruction_counts
from prismatic.vla.datasets.inspection.colours import check_channel_order
from prismatic.vla.datasets.inspection.drawings import curves, histogram, picture
from prismatic.vla.datasets.inspection.frames import Strip, check_frames, read_strips
from prismatic.vla.datasets.inspection.ranges import clipped_share
from prismatic.vla.datasets.inspection.scores import DOUBTFUL, EpisodeScore, score_episodes
from prismatic.vla.datasets.inspection.view import DatasetView
from prismatic.vla.datasets.opening import open_index
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.diagnosis import Finding, Status
from prismatic.vla.normalization import Bounds, normalize

_NUM_CHECKED_EPISODES, _NUM_SHOWN_EPISODES, _NUM_STRIP_STEPS, _NUM_CURVE_EPISODES = 16, 4, 8, 2
_NUM_WORST = 20  # episodes in the table of scores


@dataclass(frozen=True)
class Inspection:
    """One data set, looked at."""

    view: DatasetView
    findings: list[Finding]
    strips: list[Strip]
    scores: list[EpisodeScore]  # the worst first


def inspect_dataset(spec: DatasetSpec, ask_policy: Callable[[DatasetView], Mapping[int, Mapping[str, float]]] | None = None) -> Inspection:
    """Findings and sampled frames of one data set; the work is bounded whatever its size, but for building the index once.

    `ask_policy` says of each episode how much a policy disagrees with it, which takes predictions for some steps of each.

    Raises:
        ValueError: no episode can be read.
    """
    index = open_index(spec)
    view, findings = DatasetView.of(spec, index), _refusals(index)
    if "train" not in index.splits:
        found = f"There is no split 'train', only {', '.join(index.splits)}"
        findings.append(Finding("splits", Status.PROBLEM, found, "Training needs one; rename the split."))
    strips, damaged = read_strips(view, _NUM_CHECKED_EPISODES, _NUM_STRIP_STEPS)
    scores = score_episodes(view, None if ask_policy is None else ask_policy(view))
    colours = check_channel_order(strips, spec.entry.image_channel_order)
    return Inspection(view, [*findings, *check_arrays(view), *damaged, *check_frames(strips), *colours], strips, scores)


def write_page(inspections: list[Inspection], title: str, command: str, output: Path, started: float) -> None:
    """Writes the page, complete or not at all; `started` is time.monotonic() at the beginning."""
    import jinja2

    source = (Path(__file__).parent / "inspection.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    sets = [_describe(inspection) for inspection in inspections]
    text = environment.from_string(source).render(title=title, command=command, sets=sets, seconds=time.monotonic() - started)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, output)


def _refusals(index: EpisodeIndex) -> list[Finding]:
    """A finding about episodes that training would refuse (NaN, missing keys, other widths), if there are any."""
    if not index.refused:
        return []
    first, reason = next(iter(index.refused.items()))
    split, number = index.place_of(first)
    what = f"Training will refuse this data set: {len(index.refused)} of {index.num_episodes} episodes cannot be used"
    remedy = f'First: {reason}. To train without them, list each in a file, as "{split} {number}", and pass it as --exclude_episodes.'
    return [Finding("episodes", Status.PROBLEM, what, remedy)]


def _describe(inspection: Inspection) -> dict[str, Any]:
    """What the template shows of one data set."""
    view = inspection.view
    index, hz = view.index, view.platform.control_hz
    return {
        "view": view,
        "findings": [finding for finding in inspection.findings if finding.subject != REPAIRS],
        "repairs": index.repairs,
        "encoding": view.spec.entry.action_encoding.name,
        "tiles": [
            (
                f"{index.num_episodes:,}",
                "episodes: " + ", ".join(f"{last - first} {split}" for split, (first, last) in index.splits.items()),
            ),
            (f"{len(index.actions):,}", "steps"),
            (f"{len(index.actions) / hz / 60:.1f} min", f"at {hz:g} Hz"),
            (str(len(index.cameras)), ", ".join(_camera_label(inspection, camera) for camera in index.cameras)),
            (f"{index.actions.shape[1]} / {index.proprio.shape[1]}", "action / state dimensions"),
            (str(view.platform.num_actions_chunk), f"actions per chunk, {view.platform.num_actions_chunk / hz:.2g} s"),
        ],
        "strips": [_show(strip, view) for strip in inspection.strips[:: max(1, len(inspection.strips) // _NUM_SHOWN_EPISODES)]][
            :_NUM_SHOWN_EPISODES
        ],
        "quantities": [(kind, _dimensions(view, kind, rows, bounds, names)) for kind, rows, bounds, names in view.quantities()],
        "grippers": [_gripper(view, dim) for dim in view.gripper_dims],
        "curves": [_curves(view, strip) for strip in inspection.strips[:_NUM_CURVE_EPISODES]],
        "lengths": _lengths(view),
        "scores": [_score(item, view) for item in inspection.scores[:_NUM_WORST]],
        "fence": DOUBTFUL,
        "num_doubtful": sum(item.is_doubtful for item in inspection.scores),
        "instructions": instruction_counts(view),
        "num_frames": sum(len(frames) for strip in inspection.strips for frames in strip.frames.values()),
    }


def _camera_label(inspection: Inspection, camera: str) -> str:
    if not inspection.strips:
        return camera
    height, width = inspection.strips[0].frames[camera][0].shape[:2]
    return f"{camera} {width}x{height}"


def _show(strip: Strip, view: DatasetView) -> dict[str, Any]:
    number = int(view.index.instruction_ids[view.index.episode_starts[strip.episode]])
    return {
        "episode": strip.episode,
        "length": int(view.index.lengths[strip.episode]),
        "instruction": view.index.instructions[number] if number >= 0 else "(no instruction)",
        "steps": strip.steps.tolist(),
        "cameras": {camera: [picture(frame) for frame in frames] for camera, frames in strip.frames.items()},
    }


def _score(item: EpisodeScore, view: DatasetView) -> dict[str, Any]:
    number = int(view.index.instruction_ids[view.index.episode_starts[item.episode]])
    return {
        "label": view.index.label_of(item.episode),
        "instruction": view.index.instructions[number] if number >= 0 else "(no instruction)",
        "values": item.values,
        "worst": item.worst,
        "score": item.score,
        "is_doubtful": item.is_doubtful,
    }


def _dimensions(view: DatasetView, kind: str, rows: np.ndarray, bounds: Bounds, names: tuple[str, ...]) -> list[dict[str, Any]]:
    statistics = view.statistics["action" if kind == "action" else "proprio"]
    normalised, clipped = normalize(rows, bounds), clipped_share(rows, bounds)
    described = []
    for dim, name in enumerate(names):
        numbers = {key: statistics[key][dim] for key in ("min", "q01", "mean", "q99", "max")}
        is_normalised = bool(bounds.mask[dim])
        span = (-1.0, 1.0) if is_normalised else (min(-1.0, numbers["min"]), max(1.0, numbers["max"]))
        described.append(
            {
                "name": name,
                "kind": view.kinds[dim].value if kind == "action" else "",
                "normalised": is_normalised,
                "constant": bool(bounds.constant[dim]),
                "clipped": float(clipped[dim]),
                "numbers": numbers,
                "raw": histogram(rows[:, dim], numbers["min"], numbers["max"], (numbers["q01"], numbers["q99"])),
                "scaled": histogram(normalised[:, dim], span[0], span[1], marks=(0.0,)),
                "span": span,
            }
        )
    return described


def _gripper(view: DatasetView, dim: int) -> dict[str, Any]:
    values = view.actions[:, dim]
    low, high = float(values.min()), float(values.max())
    is_high = values > (low + high) / 2
    switches = int((is_high[1:] != is_high[:-1])[view.has_next].sum())
    ends = view.starts + view.lengths - 1
    return {
        "name": view.action_names[dim],
        "low": low,
        "high": high,
        "sign": "both signs" if low < 0 < high else "never negative" if low >= 0 else "never positive",
        "share": float(is_high.mean()),
        "switches": switches / len(view.lengths),
        "start": float(is_high[view.starts].mean()),
        "end": float(is_high[ends].mean()),
    }


def _curves(view: DatasetView, strip: Strip) -> dict[str, Any]:
    """Actions of one episode over the state's value, or over its change where the action is a motion; velocities alone."""
    rows = slice(int(view.index.episode_starts[strip.episode]), int(view.index.episode_starts[strip.episode + 1]))
    actions, states = view.index.actions[rows], view.index.proprio[rows]
    plots = []
    for dim, name in enumerate(view.action_names):
        is_motion = view.kinds[dim] is ActionKind.MOTION
        lines = {}
        if view.use_proprio and dim < states.shape[1] and view.kinds[dim] is not ActionKind.VELOCITY:
            state = states[:, dim]
            lines["state"] = _unit(np.diff(state, append=state[-1:])) if is_motion else state
        lines["action"] = _unit(actions[:, dim]) if is_motion else actions[:, dim]
        plots.append({"name": name, "kind": view.kinds[dim].value, "svg": curves(lines)})
    return {"episode": strip.episode, "plots": plots}


def _unit(values: np.ndarray) -> np.ndarray:
    """Scaled to at most 1: motions and state changes have different units (controller scale, metres)."""
    return values / (np.abs(values).max() or 1.0)


def _lengths(view: DatasetView) -> dict[str, Any]:
    lengths, chunk = view.lengths, view.platform.num_actions_chunk
    high = int(max(lengths.max(), chunk))
    return {
        "svg": histogram(lengths, 0, high, (float(chunk),), size=(1100, 90)),
        "high": high,
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "max": int(lengths.max()),
        "chunk": chunk,
    }
