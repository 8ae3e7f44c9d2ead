"""What may stand in the name of a run's folder."""

from __future__ import annotations

from pathlib import Path


def check_note(note: str | None) -> None:
    """Accepts what --run_id_note appends to the name.

    Raises:
        ValueError: the folder would lie outside the one that receives the runs.
    """
    if note is not None and ".." in Path(note).parts:
        raise ValueError(f"--run_id_note is {note!r}, which leads out of the folder of the runs; give a word, such as second_try")
