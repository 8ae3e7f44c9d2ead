"""How a simulator rendered the pictures: what recordings say, what training keeps of it, what of an evaluation differs.

    attributes of a recording -> facts of its episode -> policy.json: provenance.rendered (data set -> flag -> values) -> a warning

A policy that sees the same scene rendered otherwise acts worse, and nothing else tells why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prismatic.vla.diagnosis import Finding, Status

RENDERING = ("fast_rendering", "image_size", "env_img_res")  # flags of the scripts that record and evaluate


def agreed_rendering(episodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Flag -> the value that all `episodes` have in their facts; without the flags in which they differ or of which one says nothing."""
    return {flag: values[0] for flag, values in rendered(episodes).items() if len(values) == 1}


def rendered(episodes: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Flag -> the values that `episodes` have in their facts, each once; without the flags of which an episode says nothing."""
    said = list(episodes)
    known = [flag for flag in RENDERING if said and all(flag in facts for facts in said)]
    return {flag: list(dict.fromkeys(facts[flag] for facts in said)) for flag in known}


def unlike_training(now: Mapping[str, Any], seen: Mapping[str, Sequence[Any]]) -> list[Finding]:
    """A warning for each flag whose value `now` is none of those `seen` in training; what is not known of either is passed over."""
    return [_finding(flag, now[flag], values) for flag, values in seen.items() if flag in now and now[flag] not in values]


def _finding(flag: str, now: object, seen: Sequence[object]) -> Finding:
    wanted = " or ".join(f"--{flag} {value}" for value in seen)
    what = f"the pictures are rendered with --{flag} {now}, those of training were with {wanted}"
    return Finding("cameras", Status.WARNING, what, f"Pass {wanted}.")
