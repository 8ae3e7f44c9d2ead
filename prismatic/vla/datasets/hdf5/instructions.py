"""What a robot was told, wherever an HDF5 recording says it.

An ACT file: its attribute language_instruction, or its data set /language_raw, or the folder's instructions.json {file name or stem, or
"*": text}, or the folder's instruction.txt. LIBERO's is in problem_info, else in the file's name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

INSTRUCTIONS_FILE, INSTRUCTION_FILE = "instructions.json", "instruction.txt"
_SCENE = re.compile(r"^[A-Z_]+SCENE\d+_")  # KITCHEN_SCENE3_turn_on_the_stove


def act_instruction(file: Any, path: Path) -> str:
    """The language instruction of an ACT file; "" if there is none."""
    if "language_instruction" in file.attrs:
        return as_text(file.attrs["language_instruction"])
    if "language_raw" in file:
        return as_text(file["language_raw"][()])
    return folder_instruction(path)


def folder_instruction(path: Path) -> str:
    """What instructions.json or instruction.txt beside the file says about it; "" if nothing."""
    table = path.parent / INSTRUCTIONS_FILE
    if table.is_file():
        return instruction_from_table(table, path)
    single = path.parent / INSTRUCTION_FILE
    return single.read_text().strip() if single.is_file() else ""


def instruction_from_table(table: Path, path: Path) -> str:
    """What the JSON file `table` says about the recording `path`; "" if nothing.

    Raises:
        ValueError: `table` is not a JSON object of texts.
    """
    try:
        texts = json.loads(table.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{table}: cannot be read ({error}); expected a JSON object {{file name: instruction}}") from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{table}: expected a JSON object {{file name, stem, or '*': instruction}}")
    return next((texts[key] for key in (path.name, path.stem, "*") if key in texts), "")


def problem_instruction(data: Any) -> str | None:
    """What LIBERO's attribute problem_info of /data says; None without it."""
    if "problem_info" not in data.attrs:
        return None
    text = json.loads(as_text(data.attrs["problem_info"])).get("language_instruction", "")
    text = "".join(text) if isinstance(text, list) else str(text)
    return text.strip().strip('"')


def instruction_of_name(path: Path) -> str:
    """LIBERO calls its files after the task."""
    return _SCENE.sub("", path.stem.removesuffix("_demo")).replace("_", " ").strip()


def as_text(value: Any) -> str:
    """The text of an HDF5 string, stored in any way: str, bytes, an array of one of them."""
    array = np.asarray(value).ravel()
    if array.size == 0:
        return ""
    first = array[0]
    return (first.decode() if isinstance(first, bytes) else str(first)).strip()
