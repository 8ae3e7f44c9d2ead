"""JSON files of a model folder, read so that a damaged one is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin

from huggingface_hub.errors import StrictDataclassError


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Raises:
        ValueError: the file is damaged, or holds something else; the message names it.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # of the JSON, or of bytes that are no text
        raise ValueError(f"{path} is not valid JSON ({error}); copy or download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object; copy or download it again")
    return content


def is_of_kind(value: Any, kind: Any) -> bool:
    """Whether `value`, which JSON gave, is what the annotation `kind` says: a plain type, a mapping or list of such, or Any."""
    container, inner = get_origin(kind), get_args(kind)
    if container is list:
        return isinstance(value, list) and all(is_of_kind(item, inner[0]) for item in value)
    if container is not None:  # Mapping or dict
        return isinstance(value, dict) and all(is_of_kind(item, inner[1]) for item in value.values())
    return kind is Any or (isinstance(value, kind) and isinstance(value, bool) == (kind is bool))


@contextmanager
def described_in(path: Path) -> Iterator[None]:
    """Where a configuration is built of the JSON object in `path`.

    Raises:
        ValueError: it is none, or a value in it is of another kind than its name says; the message names the file.
    """
    read_object(path)
    try:
        yield
    except (StrictDataclassError, TypeError) as error:
        found = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{path} does not describe a model ({found}); copy or download it again") from error
