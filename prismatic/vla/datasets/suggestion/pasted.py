"""An entry and a platform -> the Python to paste, which states only what differs from the defaults; evaluated it gives the same again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum

from prismatic.vla.constants import ActionKind, RobotPlatform
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry, kinds_text


def entry_text(name: str, entry: DatasetEntry) -> str:
    """One item of OXE_DATASET_CONFIGS."""
    default = DatasetEntry()
    changed = {item.name: getattr(entry, item.name) for item in fields(entry) if getattr(entry, item.name) != getattr(default, item.name)}
    body = "".join(f"        {field}={_value_text(value)},\n" for field, value in changed.items())
    return f"    {_quoted(name)}: DatasetEntry(\n{body}    ),"


def platform_text(platform: RobotPlatform) -> str:
    """One item of ROBOT_PLATFORMS."""
    fields = {
        "name": _quoted(platform.name),
        "num_actions_chunk": str(platform.num_actions_chunk),
        "action_dim": str(platform.action_dim),
        "proprio_dim": str(platform.proprio_dim),
        "normalization": f"NormalizationType.{platform.normalization.name}",
        "control_hz": f"{platform.control_hz:g}",
        "action_names": _tuple_text(platform.action_names),
        "proprio_names": _tuple_text(platform.proprio_names),
    }
    if replace(platform, action_kinds=()).action_kinds != platform.action_kinds:
        fields["action_kinds"] = kinds_text(platform.action_kinds)
    body = "".join(f"            {key}={value},\n" for key, value in fields.items())
    return f"        RobotPlatform(\n{body}        ),"


def _value_text(value: object) -> str:
    """Any value of an entry's field."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(key)}: {_value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        kinds = [item for item in value if isinstance(item, ActionKind)]
        return kinds_text(kinds) if kinds else _tuple_text(value)
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    return _quoted(value) if value is None or isinstance(value, str) else f"{value:g}"


def _quoted(text: str | None) -> str:
    return "None" if text is None else json.dumps(text, ensure_ascii=False)


def _tuple_text(values: Sequence[str | None]) -> str:
    return "(" + ", ".join(map(_quoted, values)) + ("," if len(values) == 1 else "") + ")"
