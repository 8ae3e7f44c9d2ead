"""An entry and a platform -> the Python to paste, which states only what differs from the defaults; evaluated it gives the same again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from prismatic.vla.constants import RobotPlatform
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry, kinds_text


def entry_text(name: str, entry: DatasetEntry) -> str:
    """One item of OXE_DATASET_CONFIGS."""
    default, lines = DatasetEntry(), []
    if dict(entry.image_obs_keys) != dict(default.image_obs_keys):
        keys = ", ".join(f"{_quoted(slot)}: {_quoted(key)}" for slot, key in entry.image_obs_keys.items())
        lines.append(f"image_obs_keys={{{keys}}}")
    for field in ("state_obs_keys", "action_keys"):
        if getattr(entry, field) != getattr(default, field):
            lines.append(f"{field}={_tuple_text(getattr(entry, field))}")
    for field in ("state_encoding", "action_encoding"):
        if (value := getattr(entry, field)) != getattr(default, field):
            lines.append(f"{field}={type(value).__name__}.{value.name}")
    if entry.action_kinds:
        lines.append(f"action_kinds={kinds_text(entry.action_kinds)}")
    for field in ("robot_platform", "fps", "stride", "version", "transform"):
        if (value := getattr(entry, field)) != getattr(default, field):
            lines.append(f"{field}={_quoted(value) if isinstance(value, str) else f'{value:g}'}")
    body = "".join(f"        {line},\n" for line in lines)
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


def _quoted(text: str | None) -> str:
    return "None" if text is None else json.dumps(text, ensure_ascii=False)


def _tuple_text(values: Sequence[str | None]) -> str:
    return "(" + ", ".join(map(_quoted, values)) + ("," if len(values) == 1 else "") + ")"
