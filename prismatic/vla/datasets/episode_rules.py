"""Rules that say which episodes, or which steps of them, are meant: of a manifest and of --episode_weights.

    success                a column of the recordings that is true and not 0; "not success" the others
    num_person_steps > 0   a column compared: ==, !=, <, <=, >, >=
    episode_7.hdf5         as in --exclude_episodes: a file, "file, demo_3", "train 12" (counted over the whole data set)
    by person              the steps whose action is a person's; by policy, by expert (`vla.rollout_record`)
    idle start             the steps before anything moves; idle end those after; idle middle those from which nothing moves for a chunk
    *                      all of them, in "instructions" of a manifest

Columns are the attributes of HDF5 recordings (`vla.rollout_record.ATTRIBUTES`). Letters: E episodes, M steps.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from prismatic.vla.constants import ActionKind, near_names
from prismatic.vla.datasets.exclusions import find_episodes
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.merged import PART
from prismatic.vla.datasets.stillness import idle_ends, idle_middles
from prismatic.vla.rollout_record import COMMANDERS

_COMPARED = {"==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_CONDITION = re.compile(r"(?:(not)\s+)?([A-Za-z_]\w*)\s*(?:(==|!=|<=|>=|<|>)\s*(.+))?")
EVERYTHING = "*"
_IDLE = ("idle start", "idle end")
_PAUSE = "idle middle"
STEP_RULES = (*(f"by {by.value}" for by in COMMANDERS), *_IDLE, _PAUSE)


def is_about_steps(rule: str) -> bool:
    """Whether a rule means steps; else it means episodes."""
    return " ".join(rule.split()) in STEP_RULES


def fitting_steps(
    rule: str, index: EpisodeIndex, among: np.ndarray, kinds: tuple[ActionKind, ...], num_actions_chunk: int, where: str
) -> np.ndarray:
    """bool [M]: the steps of the episodes `among` (bool [E]) that `rule` means; `kinds` of the actions tell what stands still.

    Raises:
        ValueError: no recording among them says who commanded its steps.
    """
    name, chosen = " ".join(rule.split()), np.zeros(len(index.actions), bool)
    chosen[index.steps_of(np.flatnonzero(among))] = True
    if name in _IDLE:
        return idle_ends(index, kinds)[_IDLE.index(name)] & chosen
    if name == _PAUSE:
        return idle_middles(index, kinds, num_actions_chunk) & chosen
    if not (index.commanders[chosen] > 0).any():
        raise ValueError(
            f"{where}: no recording here says who commanded its steps ({rule!r} asks); rollouts do, recorded with --record True or by "
            "scripts/collect.py"
        )
    wanted = 1 + [by.value for by in COMMANDERS].index(name.removeprefix("by "))
    return chosen & (index.commanders == wanted)


def fitting_episodes(rule: str, index: EpisodeIndex, among: np.ndarray, where: str) -> np.ndarray:
    """bool [E]: the episodes of `among` that `rule` means.

    Raises:
        ValueError: it fits nothing, or a recording lacks the column.
    """
    fits, condition = np.zeros(index.num_episodes, bool), find_condition(rule, index)
    if condition is not None:
        place = f"{where}: {rule!r}"
        for episode in map(int, np.flatnonzero(among)):
            if episode not in index.refused:  # those say nothing, and are refused for what is wrong with them
                fits[episode] = condition.holds(column_value(condition.column, episode, index, place), place)
        return fits
    found = find_episodes(rule, index, f"{where}: {rule!r}", set(np.flatnonzero(among).tolist()))
    if not found:
        raise ValueError(f"{where}: {advice(rule, index)}")
    fits[sorted(found)] = True
    return fits


class Condition:
    """A column, and what is asked of it."""

    def __init__(self, column: str, is_negated: bool, sign: str | None, value: str | None) -> None:
        self.column, self._is_negated, self._sign, self._text = column, is_negated, sign, (value or "").strip()

    @property
    def text(self) -> str | None:
        """What the column must, or must not, be; None: another question."""
        return self._text if self._sign in ("==", "!=") else None

    def holds(self, value: bool | float | str, where: str) -> bool:
        """Whether a recording with this value is meant.

        Raises:
            ValueError: it is a number, compared with a text, or a text, which is neither true nor false.
        """
        if self._sign is None:
            if isinstance(value, str):
                raise ValueError(f"{where}: the recordings have the text {value!r}; compare it: {self.column} == {value}")
            return bool(value) != self._is_negated
        other: Any = self._text
        if not isinstance(value, str):
            try:
                other = float({"true": "1", "false": "0"}.get(self._text.lower(), self._text))
            except ValueError as error:
                raise ValueError(
                    f"{where}: {self.column} is compared with {self._text!r}, the recordings have the number {value}"
                ) from error
        return bool(_COMPARED[self._sign](value, other)) != self._is_negated


def find_condition(rule: str, index: EpisodeIndex) -> Condition | None:
    """The rule as a condition; None: it names episodes."""
    found = _CONDITION.fullmatch(rule.strip())
    if found is None:
        return None
    negated, column, sign, value = found.groups()
    is_column = negated or sign or any(column in facts for facts in index.facts)
    return Condition(column, bool(negated), sign, value) if is_column else None


def check_texts(rules: Iterable[str], indexes: Sequence[EpisodeIndex], where: str) -> None:
    """Accepts rules that compare columns with texts of some recording.

    Raises:
        ValueError: no recording says that text: a slip, by which == would mean none of them and != all.
    """
    for rule in rules:
        asked = [(condition, index) for index in indexes if (condition := find_condition(rule, index)) is not None]
        values = [facts.get(condition.column) for condition, index in asked for facts in index.facts]
        said = sorted({value for value in values if isinstance(value, str)})
        text = asked[0][0].text if asked else None
        if text is not None and said and text not in said:
            raise ValueError(f"{where}: {rule!r} compares with {text!r}, which no recording says; {near_names(text, said)}")


def column_value(column: str, episode: int, index: EpisodeIndex, where: str) -> bool | float | str:
    """What the recording of an episode says.

    Raises:
        ValueError: it has no such column; the message names near ones.
    """
    facts = index.facts[episode]
    if column not in facts:
        known = sorted({name for each in index.facts for name in each if name != PART})
        others = near_names(column, known) if known else "only HDF5 recordings have such attributes"
        if column in known:
            others = "others have; what is neither a finite number nor a short text is no column"
        raise ValueError(
            f"{where}: the recording {index.label_of(episode)} has no column {column!r} ({others}); record with --record True, add the "
            "attribute to the file, or name the episodes instead"
        )
    return facts[column]


def advice(rule: str, index: EpisodeIndex) -> str:
    """What could be meant by a rule that fits nothing."""
    columns = sorted({name for each in index.facts for name in each if name != PART})
    near = near_names(rule, (*STEP_RULES, *columns))
    hint = f"{near} " if near.startswith("did you mean") else ""
    return f"{rule!r} is neither a column nor an episode; {hint}by file: {near_names(rule, index.names[:10_000])}"
