"""Makes a data set out of others without copying them: merges, leaves episodes out, weighs, trims idle beginnings and ends, relabels.

python scripts/make_manifest.py --output runs/all.json --recordings "[runs/demo/recordings, runs/round_1/manifest.json]" --trim_idle True
python scripts/make_manifest.py --output data/mended.json --dataset_name my_robot --recordings data/my_robot --drop episode_7.hdf5

What it writes is a manifest (docs/rollouts.md), checked against the recordings first; pass it as --dataset_name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prismatic.cli import run_script
from prismatic.vla.datasets.episode_rules import EVERYTHING, find_condition, fitting_episodes, fitting_steps, is_about_steps
from prismatic.vla.datasets.exclusions import find_episodes
from prismatic.vla.datasets.index import EpisodeIndex
from prismatic.vla.datasets.manifest import (
    Manifest,
    Part,
    check_moved,
    check_weights,
    counts_episodes,
    is_manifest,
    read_manifest,
    write_manifest,
)
from prismatic.vla.datasets.merged import PART
from prismatic.vla.datasets.opening import check_trainable, open_index
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets

logger = logging.getLogger(__name__)

_TRIMMED = ("idle start", "idle end")


@dataclass
class ManifestConfig:
    """What the data set consists of."""

    output: Path  # the manifest, a file that ends with .json
    recordings: list[str] = field(default_factory=list)  # folders that training reads, or other manifests
    dataset_name: str | None = None  # registry entry that reads them; that of the first manifest among them by default
    drop: list[str] = field(default_factory=list)  # episodes that are left out: rules of docs/rollouts.md, such as episode_7.hdf5
    weights: dict[str, float] = field(default_factory=dict)  # rule -> how often: {by person: 2, not success: 0}
    instructions: dict[str, str] = field(default_factory=dict)  # rule -> what the robot is told in place of what was recorded; "*": all
    trim_idle: bool = False  # leave out the steps of each episode before anything moves, and those after

    def __post_init__(self) -> None:
        if not is_manifest(self.output.name):
            raise ValueError(f"--output is {self.output}; a manifest's name ends with .json")
        if not self.recordings:
            raise ValueError("--recordings is empty; pass folders of recordings, or manifests")


def main(config: ManifestConfig) -> None:
    """Writes the manifest and says what it comes to."""
    check_weights(config.weights, "--weights")
    for name in config.recordings:
        if not Path(name).expanduser().exists():
            raise ValueError(f"--recordings: {name} does not exist; pass folders of recordings, .hdf5 files, or manifests")
    found = [_read(Path(name).expanduser()) for name in config.recordings]
    dataset = config.dataset_name or next((item.dataset for item in found if item.dataset), None)
    if dataset is None:
        raise ValueError("--dataset_name is missing: name the registry entry that reads these recordings")
    if others := [item for item in found if item.dataset not in ("", dataset)]:
        raise ValueError(f"{others[0].path} is of the data set {others[0].dataset!r}, not of {dataset!r}; one manifest has one")
    for item in found[1:]:
        check_moved(item.parts, item.path, "--recordings")
    weights = dict.fromkeys(config.drop, 0.0) | config.weights | (dict.fromkeys(_TRIMMED, 0.0) if config.trim_idle else {})
    parts = [part for item in found for part in item.parts]
    checked = config.output.with_name(f".unchecked-{config.output.name}")
    try:
        write_manifest(checked, dataset, parts)
        (spec,) = resolve_datasets(str(checked), checked.parent)
        index = open_index(spec)
        weights = {_by_name(rule, index, checked): weight for rule, weight in weights.items()}
        texts = {_by_name(rule, index, checked): text for rule, text in config.instructions.items()}
        rules = {rule: _parts_that_fit(rule, index, spec, len(parts)) for rule in (*weights, *texts)}
        write_manifest(checked, dataset, [_edited(part, number, rules, weights, texts) for number, part in enumerate(parts)])
        check_trainable(resolve_datasets(str(checked), checked.parent), use_proprio=False)
        os.replace(checked, config.output)
    except ValueError as error:  # of a file that will not be there
        raise ValueError(str(error).replace(str(checked), f"the manifest for {config.output}")) from error
    finally:
        checked.unlink(missing_ok=True)
    print(f"wrote {config.output}: {len(parts)} sets, to be read as {dataset}; train with --dataset_name {config.output}")


def _read(path: Path) -> Manifest:
    return read_manifest(path) if is_manifest(path.name) else Manifest(path, "", (Part(path),))


def _by_name(rule: str, index: EpisodeIndex, manifest: Path) -> str:
    """A rule that counts episodes ("train 12") as the name of that episode in its set: in others it has another number."""
    if not counts_episodes(rule):
        return rule
    for episode in find_episodes(rule, index, "a rule"):
        number = index.facts[episode][PART]
        folder = read_manifest(manifest).parts[number].path
        name = os.path.relpath(os.path.abspath(manifest.parent / index.names[episode]), os.path.abspath(folder))
        among = {other for other, facts in enumerate(index.facts) if facts[PART] == number}
        return name if _is_clear(name, index, among) else index.names[episode]
    return rule


def _is_clear(name: str, index: EpisodeIndex, among: Set[int]) -> bool:
    try:
        return len(find_episodes(name, index, "a rule", among)) == 1
    except ValueError:  # a folder below has a file of that name, too
        return False


def _parts_that_fit(rule: str, index: EpisodeIndex, spec: DatasetSpec, num_parts: int) -> set[int]:
    """The numbers of the parts that `rule` is about: a manifest names rules beside the part that they fit.

    Raises:
        ValueError: it fits none.
    """
    numbers, where = np.array([facts[PART] for facts in index.facts]), "a rule"
    if rule == EVERYTHING:
        return set(range(num_parts))
    if not is_about_steps(rule) and find_condition(rule, index) is None:  # an episode, which must be one in all of them
        return set(numbers[fitting_episodes(rule, index, np.ones(index.num_episodes, bool), where)].tolist())
    said, fitting, problems = set[int](), set[int](), list[ValueError]()
    for number in range(num_parts):
        among = numbers == number
        try:
            if is_about_steps(rule):
                kinds = spec.entry.kinds(index.actions.shape[1])
                fits = fitting_steps(rule, index, among, kinds, spec.platform.num_actions_chunk, where)
            else:
                fits = fitting_episodes(rule, index, among, where)
        except ValueError as error:
            problems.append(error)
        else:
            said.add(number)
            fitting |= {number} if fits.any() or rule in _TRIMMED else set()
    if not said:
        raise problems[0]
    if not fitting and not is_about_steps(rule):
        raise ValueError(f"{rule!r} fits no episode")
    if not fitting:
        logger.warning("%r fits no step so far", rule)
    return fitting or said


def _edited(part: Part, number: int, rules: dict[str, set[int]], weights: dict[str, float], texts: dict[str, str]) -> Part:
    """The part with the rules that are about it."""
    own = {rule: weight for rule, weight in weights.items() if number in rules[rule]}
    own_texts = {rule: text for rule, text in texts.items() if number in rules[rule]}
    earlier = {rule: text for rule, text in part.instructions.items() if rule not in own_texts}  # of several that fit the last one counts
    return replace(part, weights={**part.weights, **own}, instructions=earlier | own_texts)


def run() -> None:
    """Entry point."""
    run_script(main, ManifestConfig)
