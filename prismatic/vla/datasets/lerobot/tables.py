"""The rows of episodes in parquet files: the file that meta/ names, else the one that holds them. Letters: T steps, D width of a column."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.datasets.broken_files import file_problem
from prismatic.vla.datasets.lerobot.files import open_parquet, read_parquet
from prismatic.vla.datasets.lerobot.layout import EpisodePlace
from prismatic.vla.datasets.repairs import Repairs

_EPISODE = "episode_index"


class Table:
    """The columns of one data file that are numbers or texts."""

    def __init__(self, path: Path, images: Iterable[str]) -> None:
        """Reads everything but the `images`.

        Raises:
            ValueError: absent, a pointer, damaged, or without episode_index; the message names the file.
        """
        schema, left_out = open_parquet(path).schema_arrow, set(images)
        names = [field.name for field in schema if field.name not in left_out and _is_plain(field.type)]
        if _EPISODE not in names:
            raise ValueError(f"{path} has no column {_EPISODE}, which LeRobot writes; it has {', '.join(schema.names)}")
        table = read_parquet(path, names)
        self.path, self.stored = path, frozenset(schema.names)
        self.columns: dict[str, np.ndarray] = {}
        self.problems: dict[str, str] = {}  # columns that cannot be delivered -> why
        self.nulls: dict[str, np.ndarray] = {}  # bool [rows]: where a column has no value
        for name in names:
            self._take(name, table[name])

    def rows_of(self, number: int) -> np.ndarray:
        """int64 [T]: the rows of that episode, in the order of their frames."""
        rows = np.flatnonzero(self.columns[_EPISODE].ravel() == number)
        frames = self.columns.get("frame_index")
        if frames is not None and len(rows) and (np.diff(frames.ravel()[rows]) < 0).any():
            rows = rows[np.argsort(frames.ravel()[rows], kind="stable")]
        return rows

    def _take(self, name: str, column: Any) -> None:
        values, nulls, problem = _to_array(column)
        if problem is not None:
            self.problems[name] = problem
        if values is not None:
            self.columns[name] = values
        if nulls.any():
            self.nulls[name] = nulls


class DataFiles:
    """Finds the rows of episodes; keeps the table read last."""

    def __init__(self, paths: tuple[Path, ...], images: tuple[str, ...], repairs: Repairs) -> None:
        """`paths` are all data files that there are."""
        self._paths, self._images, self._repairs = paths, images, repairs
        self._table: Table | None = None
        self._holders: dict[int, dict[Path, int]] | None = None

    def find(self, place: EpisodePlace, name: str) -> tuple[Table, np.ndarray]:
        """(the table that holds the episode, its rows int64 [T]).

        Raises:
            ValueError: no file holds it, or several do and none as meta/ says; the message names both.
        """
        if place.data is not None and place.data.is_file():
            table = self._read(place.data)
            rows = table.rows_of(place.number)
            if len(rows) and (place.length is None or len(rows) == place.length):
                return table, rows
        path = self._holder(place, name)
        if path != place.data:
            self._repairs.note("episodes whose data file meta/ names wrongly or not at all are taken from the file that holds them", name)
        table = self._read(path)
        rows = table.rows_of(place.number)
        if place.length is not None and len(rows) != place.length:
            self._check_rows(place, table, rows, name)
        return table, rows

    def holds(self, number: int) -> bool:
        """Whether any file has rows of that episode; looks into all of them."""
        return bool(self._all_holders().get(number))

    def _read(self, path: Path) -> Table:
        if self._table is None or self._table.path != path:
            self._table = Table(path, self._images)
        return self._table

    def _holder(self, place: EpisodePlace, name: str) -> Path:
        found = self._all_holders().get(place.number, {})
        as_said = [path for path, count in found.items() if count == place.length]
        chosen = as_said if as_said else list(found)
        if place.data in chosen or len(chosen) == 1:
            return place.data if place.data in chosen else chosen[0]
        if not found:
            raise ValueError(
                f"{name}: none of the {len(self._paths)} data files holds its steps; download the data set again, or leave the episode out "
                "with splits in meta/info.json"
            )
        counts = ", ".join(f"{path} {count} steps" for path, count in found.items())
        raise ValueError(f"{name}: its steps are in several files ({counts}), meta/ says {place.length}; remove the one that is left over")

    def _check_rows(self, place: EpisodePlace, table: Table, rows: np.ndarray, name: str) -> None:
        """Accepts a length in meta/ that is stale, where the frames of the file are whole in themselves."""
        frames = table.columns.get("frame_index")
        found = f"{name}: {len(rows)} steps in {table.path}, meta/ says {place.length}"
        if frames is None or not np.array_equal(frames.ravel()[rows], frames.ravel()[rows[0]] + np.arange(len(rows))):
            raise ValueError(f"{found}, and their frame_index has gaps; download the data set again, or leave the episode out with splits")
        self._repairs.note("episodes whose length in meta/ is not that of their steps are taken as long as their steps", found)

    def _all_holders(self) -> dict[int, dict[Path, int]]:
        """Episode -> the files with rows of it, and how many."""
        if self._holders is None:
            self._holders = defaultdict(dict)
            for path in self._paths:
                if file_problem(path) is not None or _EPISODE not in open_parquet(path).schema_arrow.names:
                    continue
                numbers, counts = np.unique(read_parquet(path, [_EPISODE])[_EPISODE].to_numpy(), return_counts=True)
                for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                    self._holders[int(number)][path] = count
        return self._holders


def _is_plain(kind: Any) -> bool:
    """Numbers and texts, single or in lists of any depth."""
    from pyarrow import types

    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)
    return is_text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _to_array(column: Any) -> tuple[np.ndarray | None, np.ndarray, str | None]:
    """([rows], [rows, D] or object [rows] of texts; bool [rows], True where there is no value; why nothing can be delivered).

    A row without a value is NaN, or an empty text, so that the others keep their places.
    """
    from pyarrow import compute, types

    values = column.combine_chunks()
    values = values.dictionary_decode() if types.is_dictionary(values.type) else values
    nulls = values.is_null().to_numpy(zero_copy_only=False)
    level, shape = values.drop_null(), [int((~nulls).sum())]
    while types.is_nested(level.type):
        widths = np.unique(compute.list_value_length(level).to_numpy(zero_copy_only=False))
        if len(widths) > 1 or np.isnan(widths).any():
            return None, nulls, "has rows of different lengths"
        shape.append(int(widths[0]) if len(widths) else 0)
        level = level.flatten()
    if types.is_string(level.type) or types.is_large_string(level.type):
        is_single = len(level) == shape[0]
        texts = np.full(len(nulls), "", dtype=object)
        texts[~nulls] = [text or "" for text in level.to_pylist()] if is_single else ""
        return (texts, nulls, None) if is_single else (None, nulls, "has lists of texts")
    numbers = level.to_numpy(zero_copy_only=False)  # a number that is absent becomes NaN
    numbers = numbers.astype(np.float64) if numbers.dtype == object else numbers
    numbers = numbers if len(shape) == 1 else numbers.reshape(shape[0], math.prod(shape[1:]))
    if not nulls.any():
        return numbers, nulls, None
    rows = np.full((len(nulls), *numbers.shape[1:]), np.nan)
    rows[~nulls] = numbers
    return rows, nulls, None
