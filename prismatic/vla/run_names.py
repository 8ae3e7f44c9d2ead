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


def check_run_name(name: str | None) -> None:
    """Accepts --run_id_override.

    Raises:
        ValueError: it is no folder in the one that receives the runs.
    """
    parts = () if name is None else Path(name).parts
    if name is not None and (not parts or ".." in parts or Path(name).is_absolute()):
        raise ValueError(f"--run_id_override is {name!r}, which is no folder in --run_root_dir; give the run a name, such as bowl_1")
