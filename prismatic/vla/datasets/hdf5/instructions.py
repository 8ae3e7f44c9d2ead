"""What a robot was told, wherever an HDF5 recording says it; the first place that says something counts.

    in the file      attributes, then data sets called as `texts` knows: a text, several texts to choose from, or one text per step
    beside it        instructions/<stem>.json, instructions.json, instruction.txt; in the file's folder, else in one above it
    LIBERO           attribute problem_info of /data, else the file's name

instructions.json is {file name, stem, path from its own folder, each also with an episode ("task.hdf5, demo_3"), or "*": text or list of
texts}, or {"instruction": text or list}, or a
list of texts. RoboTwin's instructions/episode0.json is {"seen": list of texts, "unseen": list of texts}: those to train with are seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.hdf5.columns import is_group
from prismatic.vla.datasets.texts import (
    INSTRUCTION_FILE,
    INSTRUCTIONS_FILE,
    TEXT_NAMES,
    as_text,
    distinct_texts,
    instruction_names,
    parse_json,
    read_text,
)

_SCENE = re.compile(r"^[A-Z_]+SCENE\d+_")  # KITCHEN_SCENE3_turn_on_the_stove

# Texts to choose from, or one text per step, object [T].
Instruction = tuple[str, ...] | np.ndarray


def stored_instruction(groups: list[Any], num_steps: int) -> Instruction:
    """What the attributes, then the data sets of `groups` say, in this order; () if nothing."""
    for group in groups:
        for name in instruction_names(group.attrs):
            if texts := _texts_of(group.attrs[name]):
                return texts
    for group in groups:
        for stored in [group[name] for name in instruction_names(group)]:
            if is_group(stored) or stored.dtype.kind not in "OSU":
                continue
            if stored.shape == (num_steps,) and num_steps > 1:
                steps = np.array([as_text(value) for value in stored[()]], dtype=object)
                if len(distinct_texts(steps)) > 1:
                    return steps
            if texts := _texts_of(stored[()]):
                return texts
    return ()


def metadata_instruction(group: Any, name: str) -> Instruction:
    """What the JSON attribute `name` of `group` (RoboCasa's ep_meta) says; () if nothing."""
    try:
        content = json.loads(as_text(group.attrs[name])) if name in group.attrs else {}
    except json.JSONDecodeError:
        return ()
    names = instruction_names(content) if isinstance(content, dict) else []
    return next((texts for key in names if (texts := _texts_of(content[key]))), ())


def problem_instruction(data: Any) -> Instruction:
    """What LIBERO's attribute problem_info of /data says; () if nothing."""
    if "problem_info" not in data.attrs:
        return ()
    text = json.loads(as_text(data.attrs["problem_info"])).get("language_instruction", "")
    return distinct_texts([("".join(text) if isinstance(text, list) else str(text)).strip().strip('"')])


def instruction_of_name(path: Path) -> Instruction:
    """LIBERO calls its files after the task."""
    return distinct_texts([_SCENE.sub("", path.stem.removesuffix("_demo")).replace("_", " ")])


def folder_instruction(path: Path, root: Path, episode: str = "") -> Instruction:
    """What a table or instruction.txt says about the file, or its `episode`, in its folder or in one above up to `root`; () if nothing."""
    for folder in _folders(path, root):
        own = folder / "instructions" / f"{path.stem}.json"
        if own.is_file() and (texts := instruction_from_table(own, path, episode)):
            return texts
        table, single = folder / INSTRUCTIONS_FILE, folder / INSTRUCTION_FILE
        if table.is_file() and (texts := instruction_from_table(table, path, episode)):
            return texts
        if single.is_file():
            return distinct_texts([read_text(single)])
    return ()


def text_files(path: Path, root: Path) -> list[Path]:
    """The files that may say something about the recording `path`, in its folder or in one above it up to `root`."""
    names = (f"instructions/{path.stem}.json", INSTRUCTIONS_FILE, INSTRUCTION_FILE)
    return [folder / name for folder in _folders(path, root) for name in names if (folder / name).is_file()]


def _folders(path: Path, root: Path) -> Iterator[Path]:
    yield path.parent
    if path.parent != root and root in path.parents:
        yield from _folders(path.parent, root)


def instruction_from_table(table: Path, path: Path, episode: str = "") -> tuple[str, ...]:
    """The texts of the JSON file `table` for the recording `path`, or for its `episode` ("demo_3") where it has several; () if it has none.

    "task.hdf5, demo_3" counts before "task.hdf5", "*" last.

    Raises:
        ValueError: `table` does not hold texts.
    """
    try:
        content = parse_json(read_text(table), "keep one, or write a list of texts")
    except (OSError, ValueError) as error:
        raise ValueError(f"{table}: cannot be read ({error}); expected a JSON object {{file name: instruction}}") from error
    if isinstance(content, list):
        content = {"*": content}
    if not isinstance(content, Mapping) or not all(_is_texts(value) for value in content.values()):
        raise ValueError(f"{table}: expected a JSON object {{file name, stem, or '*': instruction, or a list of instructions}}")
    below = path.relative_to(table.parent).as_posix() if table.parent in path.parents else path.as_posix()
    names = (below, path.name, path.stem)
    keys = (*(f"{name}, {episode}" for name in names if episode), *names, *TEXT_NAMES, "seen", "*")
    return next((texts for key in keys if (texts := _texts_of(content.get(key)))), ())


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _texts_of(value: Any) -> tuple[str, ...]:
    """The texts of a string or of a list or array of strings; () of anything else."""
    if isinstance(value, np.ndarray):
        value = value.ravel().tolist()
    values = value if isinstance(value, list) else [value]
    return distinct_texts(values) if all(isinstance(item, str | bytes) for item in values) else ()
