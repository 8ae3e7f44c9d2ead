"""Episodes -> a recording that Rerun's viewer plays: cameras, actions and states over the steps. Needs the package rerun-sdk."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismatic.vla.datasets.inspection.view import DatasetView


def check_rerun() -> None:
    """Returns if the package is there.

    Raises:
        ValueError: it is not.
    """
    if importlib.util.find_spec("rerun") is None:
        raise ValueError("--rerun needs the package rerun-sdk: pip install rerun-sdk, or leave the flag out")


def write_rerun(view: DatasetView, episodes: Sequence[int], path: Path) -> None:
    """Writes the `episodes` (numbers of the index), each under its own name, complete or not at all.

    Raises:
        ValueError: the package is missing, or a picture cannot be decoded.
    """
    check_rerun()
    import rerun

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    stream = rerun.RecordingStream(view.name)
    try:
        stream.save(str(temporary))
        for episode in episodes:
            _log_episode(rerun, stream, view, episode)
        stream.flush()
        stream.disconnect()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _log_episode(rerun: Any, stream: Any, view: DatasetView, episode: int) -> None:
    index, (split, number) = view.index, view.index.place_of(episode)
    root, first = f"{split}_{number}", int(index.episode_starts[episode])
    text = int(index.instruction_ids[first])
    said = index.instructions[text] if text >= 0 else "(no instruction)"
    stream.log(f"{root}/instruction", rerun.TextDocument(f"{said}\n\n{index.names[episode]}"), static=True)
    names = {"action": view.action_names, "state": view.proprio_names}
    for step in range(int(index.lengths[episode])):
        stream.set_time("step", sequence=step)
        for column, camera in enumerate(index.cameras):
            stream.log(f"{root}/{camera}", rerun.Image(index.frame(first + step, column)).compress())
        for kind, rows in (("action", index.actions), ("state", index.proprio)):
            for name, value in zip(names[kind], rows[first + step], strict=True):
                stream.log(f"{root}/{kind}/{name.split(' [')[0]}", rerun.Scalars(float(value)))
