"""A dataclass of flags -> the text of --help: what the program does, then groups with a line per flag, its default and its comment.

The source is the documentation: a comment that stands alone above a field, after an empty line, is the heading of a group; the comment
behind a field says what the flag does, in which unit. A field that is a dataclass itself is a group of flags with a dot in their names;
in a section (prismatic.cli_sections) without.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from draccus.wrappers.docstring import get_attribute_docstring

from prismatic.cli_sections import sections

_FIELD = re.compile(r"^    (\w+)\s*:")
_HEADING = re.compile(r"^    # (.+)$")
_NO_HEADING = "Flags"
_MIN_WIDTH, _MAX_WIDTH = 80, 170  # characters of a line
_MAX_DEFAULT_WIDTH = 18  # a longer default moves its own text to the right, not that of all rows


@dataclass(frozen=True)
class Flag:
    """One row."""

    name: str
    default: str
    text: str


_EVERYWHERE = (
    Flag("config_path", "-", "YAML file that sets flags; those on the command line win over it"),
    Flag("debug", "False", "show the stack trace of an error, and the warnings of libraries"),
)


def render_help(config_class: type, program: str, positional: str | None = None, about: str = "") -> str:
    """What --help prints; `positional` names the list that arguments without a flag fill, `about` says what the program does."""
    groups = {**flag_groups(config_class), "Any script": list(_EVERYWHERE)}
    flags = [flag for rows in groups.values() for flag in rows]
    name_width = max(len(flag.name) for flag in flags) + 4
    default_width = max(len(flag.default) for flag in flags if len(flag.default) <= _MAX_DEFAULT_WIDTH) + 2
    width = min(max(shutil.get_terminal_size((_MAX_WIDTH, 24)).columns, _MIN_WIDTH), _MAX_WIDTH)
    lines = [f"{program}{f' {positional.upper()} ...' if positional else ''} [--flag value ...]", "", *about.strip().splitlines()]
    for heading, rows in groups.items():
        lines += ["", f"{heading}"]
        lines += [line for flag in rows for line in _row(flag, name_width, default_width, width)]
    return "\n".join(lines)


def flag_groups(config_class: type, prefix: str = "") -> dict[str, list[Flag]]:
    """Heading -> flags; the groups of the class itself come before those that it inherits."""
    owners = [base for base in config_class.__mro__ if dataclasses.is_dataclass(base)]
    headings: dict[str, str] = {}
    for owner in reversed(owners):  # a default that is replaced leaves the flag in its group
        headings |= {name: heading for name, heading in _headings(owner) if heading or name not in headings}
    groups: dict[str, list[Flag]] = {heading: [] for owner in owners for _, heading in _headings(owner)}
    types, inner = typing.get_type_hints(config_class), sections(config_class)
    for item in dataclasses.fields(config_class):
        comments = (get_attribute_docstring(owner, item.name).comment_inline for owner in owners)
        text = next(filter(None, comments), "")  # a default that is replaced needs no comment of its own
        if dataclasses.is_dataclass(types[item.name]):
            groups |= flag_groups(types[item.name], prefix if item.name in inner else f"{prefix}{item.name}.")
        elif item.init:
            groups[headings[item.name]].append(Flag(f"{prefix}{item.name}", _default(item), text))
    return {heading or _NO_HEADING: flags for heading, flags in groups.items() if flags}


def _headings(owner: type) -> Iterator[tuple[str, str]]:
    """(field, heading that it stands under, "" for none) of the fields that `owner` itself defines."""
    heading, previous = "", ""
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
