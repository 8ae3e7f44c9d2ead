"""Episodes that a run leaves out: the file of --exclude_episodes -> numbers of episodes of each data set.

A text file with a line for each, or a JSON list of such lines; # begins a comment:

    train 12                     the episode with that number in a split, counted from 0, as messages name it
    episode_7.hdf5               a file, in the data set's folder or below it: all its episodes
    task.hdf5, demo_3            one episode of a file
    episode 12                   the same without its file, where that is clear (LeRobot)
    bridge_orig: train 12        of one data set of a mixture; JSON may write {"bridge_orig": ["train 12"]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from prismatic.vla.constants import near_names
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.texts import parse_json

_FLAG = "--exclude_episodes"


def excluded_episodes(path: Path | None, indexes: Mapping[str, EpisodeIndex]) -> dict[str, frozenset[int]]:
    """Data set -> the numbers of its episodes that are left out, for every data set of `indexes`.

    Raises:
        ValueError: the file cannot be read, or a line fits no episode, or more than one place; the message names it.
    """
    excluded: dict[str, set[int]] = {name: set() for name in indexes}
    for wanted, line in _lines(path, indexes) if path is not None else ():
        found = {name: episodes for name in wanted if (episodes := find_episodes(line, indexes[name], f"{_FLAG} {path}: {line!r}"))}
        if not found:
            raise ValueError(f"{_FLAG} {path}: {line!r} is no episode of {', '.join(wanted)}; {_advice(line, indexes[wanted[0]])}")
        if len(found) > 1:
            raise ValueError(f"{_FLAG} {path}: {line!r} is in {' and in '.join(found)}; say which, such as {next(iter(found))}: {line}")
        for name, episodes in found.items():
            excluded[name] |= episodes
    return {name: frozenset(episodes) for name, episodes in excluded.items()}


def _lines(path: Path, indexes: Mapping[str, EpisodeIndex]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(data sets that may be meant, episode) of every line."""
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
        lines = [line.partition("#")[0] for line in text.splitlines()]
        content = parse_json(text, "put its episodes into one list") if path.suffix == ".json" else lines
    except (OSError, ValueError) as error:
        raise ValueError(f"{_FLAG} {path} cannot be read ({error}); it holds a line for each episode, such as: train 12") from error
    if isinstance(content, dict):
        content = [f"{name}: {line}" for name, lines in content.items() for line in (lines if isinstance(lines, list) else [lines])]
    if not isinstance(content, list):
        raise ValueError(f'{_FLAG} {path} holds {content!r}; it needs a list, such as ["train 12", "episode_7.hdf5"]')
    for line in (str(item).strip() for item in content):
        dataset, colon, episode = (part.strip() for part in line.partition(": "))
        if not line:
            continue
        if not colon:
            yield tuple(indexes), line
        elif dataset in indexes:
            yield (dataset,), episode
        else:
            raise ValueError(f"{_FLAG} {path}: {dataset!r} of the line {line!r} is no data set of this run; {near_names(dataset, indexes)}")


def find_episodes(line: str, index: EpisodeIndex, where: str, among: Set[int] | None = None) -> set[int]:
    """The episodes, of `among` or of all, that `line` means; none if it fits none.

    Raises:
        ValueError: it is not clear which; `where` begins the message.
    """
    split, _, number = line.rpartition(" ")
    if split in index.splits and re.fullmatch(r"\d+", number):
        first, end = index.splits[split]
        if int(number) >= end - first:
            raise ValueError(f"{where}: split {split} has {end - first} episodes, numbered from 0")
        return {first + int(number)} if among is None or first + int(number) in among else set()
    files: dict[str, set[int]] = {}
    exact: set[int] = set()  # a file may have the name of one in a folder below it
    for episode, name in enumerate(index.names):
        if among is not None and episode not in among:
            continue
        file, comma, label = name.rpartition(", ")
        file = file if comma else name
        if line in (name, file):
            exact.add(episode)
        if _ends_with(name, line) or _ends_with(file, line) or (comma and label == line):
            files.setdefault(file, set()).add(episode)
    if exact:
        return exact
    if len(files) > 1:
        raise ValueError(f"{where} fits episodes of {len(files)} files, {' and '.join(list(files)[:2])}; give its folder or file, too")
    return next(iter(files.values()), set())


def _ends_with(path: str, end: str) -> bool:
    return path == end or path.endswith(f"/{end}")


def _advice(line: str, index: EpisodeIndex) -> str:
    counts = ", ".join(f"{split} 0 to {end - first - 1}" for split, (first, end) in index.splits.items())
    return f"there are {counts}; by file: {near_names(line, index.names[:10_000])}"
