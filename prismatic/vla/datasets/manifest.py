"""A data set that is a list of others: a JSON file, named by its path (--dataset_name runs/round_2/manifest.json). Nothing is copied.

    {"dataset": "metaworld_demo",
     "recordings": [{"path": "../demo/recordings"},
                    {"path": "recordings/policy", "weights": {"not success": 0, "num_person_steps > 0": 2}},
                    {"path": "recordings/policy_2", "episodes": ["episode_000003_seed_7.hdf5"], "weight": 0.5},
                    {"path": "../round_1/manifest.json"}]}

"dataset" is the registry entry that all of them are read by, and the name of their common statistics. A path, seen from the manifest's
folder, is a folder that training reads, an .hdf5 file, or another manifest. "episodes" leaves out all others; "weight" and "weights" say
how often an episode, or a step, is shown (`episode_rules`, `episode_weights`); "instructions" is {rule: text}, what the robot is told in
place of what was recorded, "*" for all.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prismatic.vla.constants import near_names
from prismatic.vla.datasets.split_names import usual_split
from prismatic.vla.datasets.texts import TEXT_FILES, parse_json

SUFFIX = ".json"
_FIELDS = ("path", "episodes", "weight", "weights", "instructions")
_FILES = (".hdf5", ".h5")
_FOLDERS_ABOVE = 2  # of a listed file, that are looked at for what they say of it: set/val/open_drawer/episode_7.hdf5
_DEEPEST = 50  # manifests in manifests; more is a circle


@dataclass(frozen=True)
class Part:
    """One of the sets that a manifest lists."""

    path: Path  # a folder
    episodes: tuple[str, ...] = ()  # rules of which an episode must fit one; (): all
    weight: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)  # rule -> what the weight of an episode that fits is multiplied with
    instructions: Mapping[str, str] = field(default_factory=dict)  # rule -> the text of the episodes that fit
    file: str = ""  # the one in the folder, or below it, that is read; "": all
    where: str = field(default="", compare=False)  # how messages call it


@dataclass(frozen=True)
class Manifest:
    """A data set that is a list of others."""

    path: Path  # of the file
    dataset: str  # registry entry
    parts: tuple[Part, ...]


def is_manifest(name: str) -> bool:
    """Whether --dataset_name names a file."""
    return name.endswith(SUFFIX)


def write_manifest(path: Path, dataset: str, parts: Iterable[Part]) -> None:
    """Writes the file, complete or not at all; paths are stored as seen from its folder where they are below it, else in full."""
    folder = path.parent.resolve()
    listed = []
    for part in parts:
        path_of_part = part.path / part.file
        # A file that is a link, as caches of hubs have them, is called otherwise than what it leads to.
        real = path_of_part.resolve() if path_of_part.is_dir() else path_of_part.parent.resolve() / path_of_part.name
        stored = os.path.relpath(real, folder) if folder in real.parents else str(real)
        listed.append({name: value for name, value in asdict(part).items() if name in _FIELDS and value not in ((), {})} | {"path": stored})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({"dataset": dataset, "recordings": listed}, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def counts_episodes(rule: str) -> bool:
    """Whether a rule says which episode by a number over the whole data set: "train 12"."""
    found = re.fullmatch(r"(\S+)\s+\d+", rule.strip())
    return found is not None and usual_split(found[1]) is not None


def check_moved(parts: Sequence[Part], path: Path, where: str) -> None:
    """Accepts parts of the manifest `path` that are read behind other sets.

    Raises:
        ValueError: a rule of theirs counts episodes, which have other numbers there.
    """
    rules = (rule for part in parts for rule in (*part.episodes, *part.weights, *part.instructions))
    if (counted := next(filter(counts_episodes, rules), None)) is not None:
        raise ValueError(
            f"{where}: {path} has the rule {counted!r}, which counts episodes; behind those of other sets another one has that number. "
            "Name the episode by its file instead, or list that manifest first"
        )


def read_manifest(path: Path) -> Manifest:
    """The data set that the file lists, with those of manifests in it.

    Raises:
        ValueError: the file cannot be read or says something else; the message names what.
    """
    return _read(path.expanduser(), 0)


def _read(path: Path, depth: int) -> Manifest:
    if depth > _DEEPEST:
        raise ValueError(f"{path}: manifests list each other in a circle")
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"), "put all recordings into one list, and each rule there once")
    except (OSError, ValueError) as error:
        raise ValueError(f"the manifest {path} cannot be read ({error}); see docs/rollouts.md") from error
    rows = content.get("recordings") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not isinstance(content.get("dataset"), str):
        raise ValueError(f'{path} is no manifest: expected {{"dataset": a registry entry, "recordings": [{{"path": ...}}, ...]}}')
    if lost := next((name for name in content if name in _FIELDS), None):
        raise ValueError(f'{path}: {lost!r} stands beside "recordings", where it means nothing; write it into each line that it is about')
    parts: list[Part] = []
    for number, row in enumerate(rows):
        where = f"{path}, recordings {number}"
        part = _part(row, path.parent, where)
        if is_manifest(part.path.name):
            nested = _nested(part, content["dataset"], depth, where)
            if parts:
                check_moved(nested, part.path, where)
            parts += nested
        else:
            parts.append(part)
    return Manifest(path, content["dataset"], tuple(parts))


def _part(row: Any, folder: Path, where: str) -> Part:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise ValueError(f'{where}: expected an object with a "path", found {row!r}')
    if odd := [name for name in row if name not in _FIELDS]:
        raise ValueError(f"{where}: {odd[0]!r} is unknown; {near_names(odd[0], _FIELDS)}")
    path = folder / Path(row["path"]).expanduser()
    if not path.exists():
        raise ValueError(f"{where}: {path} does not exist; correct the path (seen from the manifest's folder), or remove the line")
    episodes = row.get("episodes", [])
    if not isinstance(episodes, list) or not all(isinstance(item, str) for item in episodes) or (not episodes and "episodes" in row):
        raise ValueError(f'{where}: "episodes" must be a list of one or more texts, such as ["episode_7.hdf5"], found {episodes!r}')
    if path.is_file() and path.suffix.lower() not in (*_FILES, SUFFIX):
        raise ValueError(f"{where}: {path} is no recording; expected a folder of recordings, an .hdf5 file, or another manifest (.json)")
    weights = check_weights(row.get("weights", {}), f'{where}, "weights"')
    weight = check_weights({"weight": row.get("weight", 1.0)}, where)["weight"]
    texts = _instructions(row.get("instructions", {}), f'{where}, "instructions"')
    if path.is_file() and path.suffix.lower() in _FILES:
        if episodes:
            raise ValueError(
                f'{where}: "episodes" are chosen from a folder, and {path} is a file; write {{"path": "{path.parent}", "episodes": '
                f'["{path.name}, demo_3"]}} for one of its episodes, or leave "episodes" out for all'
            )
        root = _root_of(path)
        return Part(root, (), weight, weights, texts, path.relative_to(root).as_posix(), where)
    return Part(path, tuple(episodes), weight, weights, texts, "", where)


def _root_of(path: Path) -> Path:
    """The folder that a listed file is read as a part of: its own, or the one above that whose names and texts are about it."""
    root = path.parent
    for folder, above in zip(path.parents, path.parents[1 : 1 + _FOLDERS_ABOVE], strict=False):
        if usual_split(folder.name) is not None or any((above / name).is_file() for name in TEXT_FILES):
            root = above
    return root


def _instructions(content: Any, where: str) -> dict[str, str]:
    if not isinstance(content, dict) or not all(isinstance(text, str) and text.strip() for text in content.values()):
        raise ValueError(f'{where}: expected an object such as {{"*": "open the drawer"}}, found {content!r}')
    return {rule: text.strip() for rule, text in content.items()}


def check_weights(content: Any, where: str) -> dict[str, float]:
    """Rule -> weight.

    Raises:
        ValueError: no such object, or a weight that is not a number from 0 on.
    """
    if not isinstance(content, dict):
        raise ValueError(f'{where}: expected an object such as {{"not success": 0, "episode_7.hdf5": 2}}, found {content!r}')
    for rule, weight in content.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{where}: the weight of {rule!r} is {weight!r}; it must be a number, 0 (left out) or more")
    return {rule: float(weight) for rule, weight in content.items()}


def _nested(part: Part, dataset: str, depth: int, where: str) -> list[Part]:
    """The parts of a manifest in a manifest, their weights multiplied."""
    if part.episodes or part.weights or part.instructions:
        raise ValueError(f'{where}: a manifest takes a "weight" alone; write "episodes", "weights" and "instructions" into {part.path}')
    inner = _read(part.path, depth + 1)
    if inner.dataset != dataset:
        raise ValueError(f"{where}: {part.path} is of the data set {inner.dataset!r}, this manifest of {dataset!r}; they must be the same")
    return [replace(item, weight=item.weight * part.weight) for item in inner.parts]
