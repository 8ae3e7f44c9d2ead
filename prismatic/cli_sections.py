"""A dataclass of flags whose fields are dataclasses themselves: sections for the code, one flat list of names for people.

    @dataclass(frozen=True)
    class Config:
        data: DataConfig = field(default_factory=DataConfig, metadata=SECTION)  # --batch_size for people, config.data.batch_size here

The order of the sections is that of --help. Names of flags are unique over all sections.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

SECTION: Mapping[str, bool] = {"is_section": True}  # marks a field as a section


def sections(config_class: type) -> dict[str, type]:
    """Name of a field -> its dataclass, of each section; none for a dataclass without sections."""
    types = typing.get_type_hints(config_class)
    return {item.name: types[item.name] for item in dataclasses.fields(config_class) if item.metadata == SECTION}


def flag_names(config_class: type) -> tuple[str, ...]:
    """Every flag, those in sections included, in the order of the source."""
    return tuple(item.name for _, item in _flags(config_class))


def flag_values(config: Any) -> dict[str, Any]:
    """Flag -> value, those in sections included."""
    found = {}
    for owner, item in _flags(type(config)):
        found[item.name] = getattr(config if owner is None else getattr(config, owner), item.name)
    return found


def plain_values(config: Any) -> dict[str, int | float | str | None]:
    """`flag_values` as JSON can hold them."""
    return {name: value if isinstance(value, int | float | None) else str(value) for name, value in flag_values(config).items()}


def from_flags(config_class: type[T], **flags: Any) -> T:
    """A `config_class` from flat flags; those that are left out have their defaults.

    Raises:
        TypeError: a flag is unknown.
        ValueError: what the dataclass or a section refuses.
    """
    owners = {item.name: owner for owner, item in _flags(config_class)}
    for name in flags:
        if name not in owners:
            near = difflib.get_close_matches(name, owners, n=1)
            raise TypeError(f"{config_class.__name__} has no flag {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    parts = {}
    for field_name, kind in sections(config_class).items():
        parts[field_name] = kind(**{name: value for name, value in flags.items() if owners[name] == field_name})
    return config_class(**parts, **{name: value for name, value in flags.items() if owners[name] is None})


def flat_class(config_class: type) -> type:
    """A dataclass of the same flags without sections, for the parser; `config_class` itself where there are none."""
    inner = sections(config_class)
    if not inner:
        return config_class
    types = {name: kind for owner in (config_class, *inner.values()) for name, kind in typing.get_type_hints(owner).items()}
    flat = [(item.name, types[item.name], _same_default(item)) for _, item in _flags(config_class)]
    return dataclasses.make_dataclass(config_class.__name__, flat, kw_only=True)


def _flags(config_class: type) -> Iterator[tuple[str | None, dataclasses.Field]]:
    """(section that holds it, field) of every flag."""
    inner = sections(config_class)
    for item in dataclasses.fields(config_class):
        if item.name in inner:
            yield from ((item.name, flag) for flag in dataclasses.fields(inner[item.name]))
        else:
            yield None, item


def _same_default(item: dataclasses.Field) -> Any:
    return dataclasses.field(default=item.default, default_factory=item.default_factory)
