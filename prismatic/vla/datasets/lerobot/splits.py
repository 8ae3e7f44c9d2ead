"""`splits` of meta/info.json -> which episodes belong to which split.

LeRobot writes {"train": "0:50"}: the numbers of the episodes, the last excluded. Trimmed and edited sets keep what no longer fits; by hand
people also write "10:", ":40", "80%:" (shares of the episodes in order), several spans ("0:12,13:50"), single numbers, lists of these,
and "all". A split called training, valid, eval or the like is "train" or "val".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismatic.vla.datasets.repairs import Repairs
from prismatic.vla.datasets.split_names import usual_split

_SPAN = re.compile(r"\s*(?:(?P<start>\d*)(?P<start_share>%?)\s*:\s*(?P<stop>\d*)(?P<stop_share>%?)|(?P<one>\d+))\s*")


def divide_episodes(info: Path, splits: Any, numbers: Sequence[int], repairs: Repairs) -> dict[int, str]:
    """Episode number -> split, split by split; without `splits` all are for training. `numbers` are the episodes that there are.

    Raises:
        ValueError: a split is written in no known form, two share an episode, or none has one; the message names `info`.
    """
    splits = splits or {"train": ":"}
    if not isinstance(splits, Mapping):
        splits = {"train": splits}
    chosen: dict[int, str] = {}
    usual = {name: usual_split(str(name)) or name for name in splits}
    for name, said in splits.items():
        found = _numbers(info, name, said, numbers, repairs, is_only=len(splits) == 1)
        for number in found:
            if chosen.setdefault(number, name) != name:
                raise ValueError(f"{info}: episode {number} is in the splits {chosen[number]!r} and {name!r}; leave it in one of them")
    if numbers and not chosen:
        raise ValueError(
            f"{info}: the splits {dict(splits)} hold none of the {len(numbers)} episodes, numbered {min(numbers)} to {max(numbers)}; "
            f'write "splits": {{"train": ":"}} for all of them'
        )
    if len(set(usual.values())) == len(usual):  # no two names of one split
        chosen = {number: usual[name] for number, name in chosen.items()}
    left_out = [number for number in numbers if number not in chosen]
    if left_out:
        repairs.note("episodes in no split of info.json are left out", f"episode {left_out[0]}", len(left_out))
    return chosen


def _numbers(info: Path, name: str, said: Any, numbers: Sequence[int], repairs: Repairs, is_only: bool) -> list[int]:
    """The episodes of one split, in the order in which it lists them."""
    spans = [_parse(info, name, said, span, numbers) for span in (said if isinstance(said, list) else str(said).split(","))]
    present = set(numbers)
    if is_only and spans == [range(len(numbers))] and not present.issuperset(spans[0]):
        repairs.note("splits count the episodes, whose numbers have gaps: all are taken", f"{info.name}: {name!r} is {said!r}")
        return list(numbers)
    found: dict[int, None] = {}
    for span in spans:
        inside = [number for number in numbers if number in span] if isinstance(span, range) else [n for n in span if n in present]
        found |= dict.fromkeys(inside)
        if len(inside) < len(span):
            absent = next(number for number in span if number not in present)
            where = f"{info.name}: {name!r} is {said!r}, there are {len(numbers)} episodes, and no number {absent}"
            repairs.note("episodes that a split lists and meta/ does not have are skipped", where, len(span) - len(inside))
    return list(found)


def _parse(info: Path, name: str, said: Any, span: Any, numbers: Sequence[int]) -> Sequence[int]:
    """The numbers that one part of a split lists, whether or not there are such episodes."""
    if span == "all":
        return numbers
    match = _SPAN.fullmatch(str(span)) if isinstance(span, (str, int)) and not isinstance(span, bool) else None
    if match is None:
        raise ValueError(
            f"{info}: split {name!r} is {said!r}, expected episode numbers such as '0:50', '10:', '80%:100%', '0:12,13:50' or [0, 1, 5]"
        )
    if match["one"] is not None:
        return [int(match["one"])]
    if match["start_share"] or match["stop_share"]:
        start, stop = (_share(match[side], match[f"{side}_share"], default, numbers) for side, default in (("start", 0), ("stop", 100)))
        return numbers[start:stop]
    return range(int(match["start"] or min(numbers, default=0)), int(match["stop"] or max(numbers, default=-1) + 1))


def _share(text: str, sign: str, default: int, numbers: Sequence[int]) -> int:
    """The place among the episodes in order; a number without % is an episode's number, none at all the first or the end."""
    if not text or sign:
        return int(text or default) * len(numbers) // 100
    return sum(number < int(text) for number in numbers)
