"""The API key of a server, from where neither the list of processes nor a record of the command shows it."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PRISMATIC_API_KEY"


def read_api_key(file: Path | None = None) -> str | None:
    """The text in `file`; without one, of the environment variable; None where there is neither. Space around it does not count.

    Raises:
        ValueError: the file cannot be read or is empty, or the key is nothing that a header can hold.
    """
    if file is None:
        return _checked(os.environ[VARIABLE], VARIABLE) if os.environ.get(VARIABLE) else None
    try:
        return _checked(file.read_text("utf-8-sig"), f"--api_key_file {file}")  # Windows' editor puts a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--api_key_file {file} cannot be read: {error}") from error


def _checked(text: str, source: str) -> str:
    key = text.strip()
    if not key or not all("!" <= character <= "~" for character in key):
        raise ValueError(f"{source} must hold the key in one line, of letters, digits and punctuation of ASCII, without spaces")
    return key
