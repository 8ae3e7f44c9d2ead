"""A dataclass of flags -> the text of --help: groups, then a line per flag with its default and its comment.

The source is the documentation: a comment that stands alone above a field, after an empty line, is the heading of a group; the comment
behind a field says what the flag does, in which unit.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from draccus.wrappers.docstring import get_attribute_docstring

_FIELD = re.compile(r"^    (\w+)\s*:")
_HEADING = re.compile(r"^    # (.+)$")
_MIN_WIDTH, _MAX_WIDTH = 80, 170  # characters of a line
_MAX_DEFAULT_WIDTH = 18  # a longer default moves its own text to the right, not that of all rows


@dataclass(frozen=True)
class Flag:
    """One row."""

    name: str
    default: str
    text: str


def render_help(config_class: type, program: str, positional: str | None = None) -> str:
    """What --help prints; `positional` names the list that arguments without a flag fill."""
    groups = {heading: flags for heading, flags in flag_groups(config_class).items() if flags}
    config_path = Flag("config_path", "-", "YAML file that sets flags; those on the command line win over it")
    groups = {**groups, "Any script": [config_path]}
    flags = [flag for rows in groups.values() for flag in rows]
    name_width = max(len(flag.name) for flag in flags) + 4
    default_width = max(len(flag.default) for flag in flags if len(flag.default) <= _MAX_DEFAULT_WIDTH) + 2
    width = min(max(shutil.get_terminal_size((_MAX_WIDTH, 24)).columns, _MIN_WIDTH), _MAX_WIDTH)
    lines = [f"{program}{f' {positional.upper()} ...' if positional else ''} [--flag value ...]", "", *_about(config_class)]
    for heading, rows in groups.items():
        lines += ["", f"{heading}"]
        lines += [line for flag in rows for line in _row(flag, name_width, default_width, width)]
    return "\n".join(lines)


def flag_groups(config_class: type) -> dict[str, list[Flag]]:
    """Heading -> flags, in the order of the source; what a class inherits comes first."""
    headings: dict[str, str] = {}
    for owner in reversed([base for base in config_class.__mro__ if dataclasses.is_dataclass(base)]):
        headings |= dict(_headings(owner))
    groups: dict[str, list[Flag]] = {}
    for item in dataclasses.fields(config_class):
        if item.init:
            text = get_attribute_docstring(config_class, item.name).comment_inline
            groups.setdefault(headings.get(item.name, "Flags"), []).append(Flag(item.name, _default(item), text))
    return groups


def _headings(owner: type) -> Iterator[tuple[str, str]]:
    """(field, heading that it stands under) of the fields that `owner` itself defines."""
    heading, previous = "Flags", ""
    for line in inspect.getsource(owner).splitlines():
        if found := _FIELD.match(line):
            yield found[1], heading
        elif (comment := _HEADING.match(line)) and not previous.strip():
            heading = comment[1]
        previous = line


def _default(item: dataclasses.Field) -> str:
    value = item.default
    if value is dataclasses.MISSING:
        value = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return "-" if value is None or value == "" else str(value)


def _about(config_class: type) -> list[str]:
    text = inspect.getdoc(config_class) or ""
    return [] if text.startswith(f"{config_class.__name__}(") else [text]  # dataclass writes its signature where nobody wrote a docstring


def _row(flag: Flag, name_width: int, default_width: int, width: int) -> list[str]:
    """`  --name  default  text`, the text wrapped below itself where the terminal is too narrow."""
    start = f"  --{flag.name}".ljust(name_width + 2) + flag.default.ljust(default_width)
    indent = name_width + default_width + 2
    if len(flag.default) > default_width - 2 and len(start) + 2 + len(flag.text) <= width:
        return [f"{start}  {flag.text}"]
    wrapped = textwrap.wrap(flag.text, max(width - indent, 30)) or [""]
    if len(start) > indent:
        return [start, *(" " * indent + line for line in wrapped)]
    return [f"{start}{wrapped[0]}".rstrip(), *(" " * indent + line for line in wrapped[1:])]
