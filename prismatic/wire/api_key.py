"""The API key of a server, from where neither the list of processes nor a record of the command shows it."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PRISMATIC_API_KEY"


def read_api_key(file: Path | None = None) -> str | None:
    """The text in `file`; without one, of the environment variable; None where there is neither.

    Raises:
        ValueError: the file cannot be read, or is empty.
    """
    if file is None:
        return os.environ.get(VARIABLE) or None
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--api_key_file {file} cannot be read: {error}") from error
    if not key or len(key.splitlines()) != 1:
        raise ValueError(f"--api_key_file {file} must hold the key in one line; or set {VARIABLE}")
    return key
