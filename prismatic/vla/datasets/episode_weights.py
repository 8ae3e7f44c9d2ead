"""How often the episodes of a data set are shown: 2 twice per pass, 0.5 every other pass, 0 never (nor counted in statistics).

A manifest says it for its parts, --episode_weights for a run; both multiply. Rules say which episodes are meant:

    success                a column of the recordings that is true and not 0; "not success" the others
    num_person_steps > 0   a column compared: ==, !=, <, <=, >, >=
    episode_7.hdf5         as in --exclude_episodes: a file, "file, demo_3", "train 12" (counted over the whole data set)

--episode_weights FILE.json is {rule: weight}, multiplied where several fit; {"bridge_orig": {rule: weight}} is about that data set alone.
--episode_weights COLUMN takes the numbers of that column. Columns are the attributes of HDF5 recordings (`vla.rollout_record.ATTRIBUTES`).
"""

from __future__ import annotations

import json
import logging
import operator
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.constants import near_names
from prismatic.vla.datasets.exclusions import find_episodes
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.manifest import SUFFIX, Manifest, check_weights, is_manifest, read_manifest
from prismatic.vla.datasets.merged import PART
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec

logger = logging.getLogger(__name__)

_FLAG = "--episode_weights"
_COMPARED = {"==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_CONDITION = re.compile(r"(?:(not)\s+)?([A-Za-z_]\w*)\s*(?:(==|!=|<=|>=|<|>)\s*(.+))?")


def episode_weights(specs: Sequence[DatasetSpec], indexes: Mapping[str, EpisodeIndex], wanted: str | None) -> dict[str, np.ndarray]:
    """Data set -> float64 [E]: how often a pass shows each episode, by its manifest if it is one and by --episode_weights.

    Raises:
        ValueError: a rule fits nothing, a recording lacks a column, or a weight is not a number from 0 on.
    """
    weights = flag_weights(wanted, indexes)
    for spec in specs:
        weights[spec.name] = weights[spec.name] * manifest_weights(spec.folder, indexes[spec.name])
        if (weights[spec.name] != 1).any():
            said = ", ".join(f"{weight} for {count}" for weight, count in describe_weights(weights[spec.name]).items())
            logger.info("data set %s: weights of its %d episodes: %s", spec.name, len(weights[spec.name]), said)
    return weights


def check_recorded(spec: DatasetSpec, index: EpisodeIndex, left_out: Set[int]) -> None:
    """Accepts episodes whose recordings name the dimensions of their actions as the platform does, or not at all.

    Raises:
        ValueError: one that is not left out is of another robot, or of another layout of actions.
    """
    wanted = ", ".join(spec.platform.action_names)
    odd = [number for number, said in enumerate(index.facts) if said.get("action_names", wanted) != wanted and number not in left_out]
    if not odd:
        return
    said = index.facts[odd[0]]
    raise ValueError(
        f"data set {spec.name!r} is of the platform {spec.platform.name} with the actions {wanted}, but {index.label_of(odd[0])} was "
        f"recorded on {said.get('robot_platform', 'a robot')} with the actions {said['action_names']} ({len(odd)} of {index.num_episodes} "
        "episodes); leave them out, take the entry of that robot, or correct the attribute action_names where it means the same"
    )


def manifest_weights(folder: Path, index: EpisodeIndex) -> np.ndarray:
    """float64 [E]: what the manifest `folder` says of each episode; 1 where it is no manifest but a folder.

    Raises:
        ValueError: a rule fits nothing, or an episode is in two parts.
    """
    if not is_manifest(folder.name) or folder.is_dir():
        return np.ones(index.num_episodes)
    manifest, weights = read_manifest(folder), np.zeros(index.num_episodes)
    numbers = np.array([facts.get(PART, -1) for facts in index.facts])
    for number, part in enumerate(manifest.parts):
        among, where = numbers == number, f"{manifest.path}, recordings {number}"
        chosen = among.copy()
        if part.episodes:
            chosen = np.logical_or.reduce([_fitting(rule, index, among, where) for rule in part.episodes])
        weights[chosen] = part.weight
        for rule, factor in part.weights.items():
            weights[_fitting(rule, index, chosen, where)] *= factor
    _check_distinct(manifest, index, weights)
    return weights


def _check_distinct(manifest: Manifest, index: EpisodeIndex, weights: np.ndarray) -> None:
    seen: set[str] = set()
    for episode in np.flatnonzero(weights):
        if (name := index.names[episode]) in seen:
            raise ValueError(f"{manifest.path} lists {name} twice; give it a weight of 2, or remove one of the lines")
        seen.add(name)


def flag_weights(wanted: str | None, indexes: Mapping[str, EpisodeIndex]) -> dict[str, np.ndarray]:
    """Data set -> float64 [E]: what --episode_weights says of its episodes.

    Raises:
        ValueError: the file cannot be read, a rule fits nothing, a recording lacks the column, or a weight is negative.
    """
    weights = {name: np.ones(index.num_episodes) for name, index in indexes.items()}
    if wanted is None:
        return weights
    if not wanted.endswith(SUFFIX):
        return {name: _column_weights(wanted, index, f"{_FLAG} {wanted}, data set {name!r}") for name, index in indexes.items()}
    fitted: dict[str, bool] = {}
    for dataset, rule, factor in _rules(Path(wanted), tuple(indexes)):
        for name in indexes if dataset is None else (dataset,):
            index, where = indexes[name], f"{_FLAG} {wanted}"
            is_condition = _condition(rule, index) is not None
            if not is_condition and not find_episodes(rule, index, f"{where}: {rule!r}"):
                fitted.setdefault(rule, False)
                continue
            fitted[rule] = True
            weights[name][_fitting(rule, index, np.ones(index.num_episodes, bool), where)] *= factor
    if lost := [rule for rule, fits in fitted.items() if not fits]:
        raise ValueError(f"{_FLAG} {wanted}: {_advice(lost[0], next(iter(indexes.values())))}")
    return weights


def _rules(path: Path, datasets: tuple[str, ...]) -> list[tuple[str | None, str, float]]:
    """(data set or None for all, rule, weight) of the file."""
    try:
        content = json.loads(path.expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f'{_FLAG} {path} cannot be read ({error}); it holds an object such as {{"not success": 0}}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{_FLAG} {path} holds {content!r}; it needs an object such as {{"not success": 0}}')
    own = {name: rules for name, rules in content.items() if isinstance(rules, dict)}
    if unknown := [name for name in own if name not in datasets]:
        raise ValueError(f"{_FLAG} {path}: {unknown[0]!r} is no data set of this run; {near_names(unknown[0], datasets)}")
    general = check_weights({rule: weight for rule, weight in content.items() if rule not in own}, f"{_FLAG} {path}")
    found: list[tuple[str | None, str, float]] = [(None, rule, weight) for rule, weight in general.items()]
    for name, rules in own.items():
        found += [(name, rule, weight) for rule, weight in check_weights(rules, f"{_FLAG} {path}, {name!r}").items()]
    return found


def _column_weights(column: str, index: EpisodeIndex, where: str) -> np.ndarray:
    values = [_value(column, episode, index, where) for episode in range(index.num_episodes)]
    for episode, value in enumerate(values):
        if isinstance(value, str) or value < 0:
            raise ValueError(f"{where}: {index.label_of(episode)} has the weight {value!r}; it must be a number, 0 (left out) or more")
    return np.array(values, np.float64)


def _fitting(rule: str, index: EpisodeIndex, among: np.ndarray, where: str) -> np.ndarray:
    """bool [E]: the episodes of `among` that `rule` means."""
    fits, condition = np.zeros(index.num_episodes, bool), _condition(rule, index)
    if condition is not None:
        for episode in np.flatnonzero(among):
            fits[episode] = condition.holds(_value(condition.column, int(episode), index, f"{where}: {rule!r}"))
        return fits
    found = find_episodes(rule, index, f"{where}: {rule!r}", set(np.flatnonzero(among).tolist()))
    if not found:
        raise ValueError(f"{where}: {_advice(rule, index)}")
    fits[sorted(found)] = True
    return fits


class _Condition:
    """A column, and what is asked of it."""

    def __init__(self, column: str, is_negated: bool, sign: str | None, value: str | None) -> None:
        self.column, self._is_negated, self._sign, self._text = column, is_negated, sign, (value or "").strip()

    def holds(self, value: bool | float | str) -> bool:
        """Whether a recording with this value is meant."""
        if self._sign is None:
            return bool(value) != self._is_negated
        other: Any = self._text
        if not isinstance(value, str):
            try:
                other = float({"true": "1", "false": "0"}.get(self._text.lower(), self._text))
            except ValueError as error:
                raise ValueError(f"{self.column} is compared with {self._text!r}, the recordings have the number {value}") from error
        return bool(_COMPARED[self._sign](value, other)) != self._is_negated


def _condition(rule: str, index: EpisodeIndex) -> _Condition | None:
    """The rule as a condition; None: it names episodes."""
    found = _CONDITION.fullmatch(rule.strip())
    if found is None:
        return None
    negated, column, sign, value = found.groups()
    is_column = negated or sign or any(column in facts for facts in index.facts)
    return _Condition(column, bool(negated), sign, value) if is_column else None


def _value(column: str, episode: int, index: EpisodeIndex, where: str) -> bool | float | str:
    facts = index.facts[episode]
    if column not in facts:
        known = sorted({name for each in index.facts for name in each if name != PART})
        raise ValueError(
            f"{where}: the recording {index.label_of(episode)} has no column {column!r} "
            f"({near_names(column, known) if known else 'only HDF5 recordings have such attributes'}); record with --record True, add the "
            "attribute to the file, or name the episodes instead"
        )
    return facts[column]


def _advice(rule: str, index: EpisodeIndex) -> str:
    return f"{rule!r} is neither a column nor an episode; by file: {near_names(rule, index.names[:10_000])}"


def describe_weights(weights: np.ndarray) -> dict[str, int]:
    """Weight -> number of episodes that have it, for people."""
    values, counts = np.unique(weights, return_counts=True)
    return {f"{value:g}": int(count) for value, count in zip(values, counts, strict=True)}
