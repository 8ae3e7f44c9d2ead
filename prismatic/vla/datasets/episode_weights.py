"""How often the episodes of a data set are shown: 2 twice per pass, 0.5 every other pass, 0 never (nor counted in statistics).

A manifest says it for its parts, --episode_weights for a run; both multiply. Rules (`episode_rules`) say which episodes or steps are meant.

--episode_weights FILE.json is {rule: weight}, multiplied where several fit; {"bridge_orig": {rule: weight}} is about that data set alone.
--episode_weights COLUMN takes the numbers of that column. Steps of weight 0 are no samples; they are still the future of earlier ones.
Letters: E episodes, M steps.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from prismatic.vla.constants import near_names
from prismatic.vla.datasets.episode_rules import (
    advice,
    check_texts,
    column_value,
    find_condition,
    fitting_episodes,
    fitting_steps,
    is_about_steps,
)
from prismatic.vla.datasets.exclusions import find_episodes
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.manifest import SUFFIX, Manifest, check_weights, is_manifest, read_manifest
from prismatic.vla.datasets.merged import PART
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.texts import parse_json

logger = logging.getLogger(__name__)

_FLAG = "--episode_weights"
_MOST = 1000  # times that a pass shows an episode, or a step; more is a mistake, and a pass would not fit into memory


class Weights:
    """How often the episodes of one data set are shown, and steps of them."""

    def __init__(self, spec: DatasetSpec, index: EpisodeIndex) -> None:
        self._spec, self._index = spec, index
        self.episodes = np.ones(index.num_episodes)  # float64 [E]
        self.steps: np.ndarray | None = None  # float64 [M], what the weight of an episode is multiplied with; None: 1 throughout

    def multiply(self, rule: str, factor: float, among: np.ndarray, where: str) -> None:
        """Multiplies the weights of what `rule` means among some episodes (bool [E]).

        Raises:
            ValueError: it fits nothing, or a recording lacks what it asks for.
        """
        if not is_about_steps(rule):
            self.episodes[fitting_episodes(rule, self._index, among, where)] *= factor
            return
        if self.steps is None:
            self.steps = np.ones(len(self._index.actions))
        kinds = self._spec.entry.kinds(self._index.actions.shape[1])
        self.steps[fitting_steps(rule, self._index, among, kinds, self._spec.platform.num_actions_chunk, where)] *= factor

    def settle(self) -> Weights:
        """Leaves out episodes none of whose steps is shown.

        Raises:
            ValueError: one would be shown too often.
        """
        most = self.episodes.max(initial=0.0) * (1.0 if self.steps is None else self.steps.max(initial=0.0))
        if not most <= _MOST:
            label = self._index.label_of(int(self.episodes.argmax()))
            raise ValueError(
                f"the weights of data set {self._spec.name!r} come to {most:g} ({label}): at most {_MOST} times may a pass show an "
                "episode; weights count beside each other, so divide all of them"
            )
        if self.steps is not None:
            for episode in self._index.all_episodes():
                if not self.steps[self._index.steps_of(np.array([episode]))].any():
                    self.episodes[episode] = 0.0
        return self


def episode_weights(specs: Sequence[DatasetSpec], indexes: Mapping[str, EpisodeIndex], wanted: str | None) -> dict[str, Weights]:
    """Data set -> how often a pass shows each episode and step, by its manifest if it is one and by --episode_weights.

    Raises:
        ValueError: a rule fits nothing, a recording lacks a column, or a weight is not a number from 0 on.
    """
    found = {spec.name: manifest_weights(spec, indexes[spec.name]) for spec in specs}
    if wanted is not None:
        _multiply_by_flag(wanted, found, indexes)
    for name, weights in found.items():
        weights.settle()
        if (weights.episodes != 1).any():
            said = ", ".join(f"{weight} for {count}" for weight, count in describe_weights(weights.episodes).items())
            logger.info("data set %s: weights of its %d episodes: %s", name, len(weights.episodes), said)
        if weights.steps is not None:
            said = ", ".join(f"{weight} for {count}" for weight, count in describe_weights(weights.steps).items())
            logger.info("data set %s: weights of its %d steps: %s", name, len(weights.steps), said)
    return found


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


def manifest_weights(spec: DatasetSpec, index: EpisodeIndex) -> Weights:
    """What the manifest `spec.folder` says; 1 where it is no manifest but a folder.

    Raises:
        ValueError: a rule fits nothing, or asks for a text that no recording says, or an episode is in two parts.
    """
    weights = Weights(spec, index)
    if not is_manifest(spec.folder.name) or spec.folder.is_dir():
        return weights
    manifest = read_manifest(spec.folder)
    numbers = np.array([facts.get(PART, -1) for facts in index.facts])
    for number, part in enumerate(manifest.parts):
        among, where = numbers == number, part.where
        check_texts((*part.episodes, *part.weights), [index], where)
        chosen = among.copy()
        if part.episodes:
            chosen = np.logical_or.reduce([fitting_episodes(rule, index, among, where) for rule in part.episodes])
        weights.episodes[among] = np.where(chosen[among], part.weight, 0.0)
        for rule, factor in part.weights.items():
            weights.multiply(rule, factor, chosen, where)
    _check_distinct(manifest, index, weights.episodes)
    return weights


def _check_distinct(manifest: Manifest, index: EpisodeIndex, weights: np.ndarray) -> None:
    seen: set[tuple[str, str]] = set()
    base = os.path.abspath(manifest.path.parent)
    for episode in np.flatnonzero(weights):
        name = index.names[episode]
        file, comma, label = name.rpartition(", ")
        place = os.path.realpath(os.path.join(base, file if comma else name)), label if comma else ""  # links give files several names
        if place in seen:
            raise ValueError(f"{manifest.path} lists {name} twice; give it a weight of 2, or remove one of the lines")
        seen.add(place)


def _multiply_by_flag(wanted: str, weights: Mapping[str, Weights], indexes: Mapping[str, EpisodeIndex]) -> None:
    """Takes what --episode_weights says into the weights of each data set.

    Raises:
        ValueError: the file cannot be read, a rule fits nothing, a recording lacks the column, or a weight is negative.
    """
    if not wanted.endswith(SUFFIX):
        for name, index in indexes.items():
            weights[name].episodes *= _column_weights(wanted, index, f"{_FLAG} {wanted}, data set {name!r}")
        return
    where, fitted = f"{_FLAG} {wanted}", dict[str, bool]()
    for dataset, rule, factor in _rules(Path(wanted), tuple(indexes)):
        names = tuple(indexes) if dataset is None else (dataset,)
        check_texts([rule], [indexes[name] for name in names], where)
        for name in names:
            index = indexes[name]
            if not _is_meant_for(rule, index, is_only=dataset is not None or len(indexes) == 1, where=where):
                fitted.setdefault(rule, False)
                continue
            fitted[rule] = True
            weights[name].multiply(rule, factor, np.ones(index.num_episodes, bool), where)
    if lost := [rule for rule, fits in fitted.items() if not fits]:
        raise ValueError(f"{where}: {advice(lost[0], next(iter(indexes.values())))}")


def _is_meant_for(rule: str, index: EpisodeIndex, is_only: bool, where: str) -> bool:
    """Whether a rule of a file says something about a data set; of several, those whose steps nobody has noted are passed over."""
    if is_about_steps(rule):
        return is_only or rule.startswith("idle") or bool(index.commanders.any())
    return find_condition(rule, index) is not None or bool(find_episodes(rule, index, f"{where}: {rule!r}"))


def _rules(path: Path, datasets: tuple[str, ...]) -> list[tuple[str | None, str, float]]:
    """(data set or None for all, rule, weight) of the file."""
    try:
        content = parse_json(path.expanduser().read_text(encoding="utf-8-sig"), "keep one")
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
    episodes = range(index.num_episodes)
    values = [1.0 if episode in index.refused else column_value(column, episode, index, where) for episode in episodes]
    for episode, value in enumerate(values):
        if isinstance(value, str) or value < 0:
            raise ValueError(f"{where}: {index.label_of(episode)} has the weight {value!r}; it must be a number, 0 (left out) or more")
    return np.array(values, np.float64)


def describe_weights(weights: np.ndarray) -> dict[str, int]:
    """Weight -> number of episodes that have it, for people."""
    values, counts = np.unique(weights, return_counts=True)
    return {f"{value:g}": int(count) for value, count in zip(values, counts, strict=True)}
