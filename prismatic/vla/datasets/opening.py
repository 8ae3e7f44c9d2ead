"""A checked name of a data set -> its index, with what a manifest changes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prismatic.vla.datasets.episode_rules import EVERYTHING, check_texts, fitting_episodes
from prismatic.vla.datasets.episode_weights import check_recorded, episode_weights
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.manifest import Manifest, is_manifest, read_manifest
from prismatic.vla.datasets.merged import PART
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.sources import open_source


def open_index(spec: DatasetSpec, cache_dir: Path | None = None, is_lenient: bool = True) -> EpisodeIndex:
    """The index of `spec`, built where there is none; episodes have the instructions that a manifest gives them.

    Raises:
        ValueError: the recordings cannot be read, or a rule of the manifest fits nothing; without `is_lenient` also where one episode
            cannot be used.
    """
    source = open_source(spec.folder, spec.entry)
    index = load_index(source, spec.entry, spec.transform, cache_dir, dataset=spec.name, is_lenient=is_lenient)
    if not is_manifest(spec.folder.name) or spec.folder.is_dir():
        return index
    return _with_instructions(read_manifest(spec.folder), index)


def _with_instructions(manifest: Manifest, index: EpisodeIndex) -> EpisodeIndex:
    """The index in which episodes have the instructions that the manifest gives them."""
    if not any(part.instructions for part in manifest.parts):
        return index
    texts, ids = list(index.instructions), np.array(index.instruction_ids)
    parts = np.array([facts.get(PART, -1) for facts in index.facts])
    for number, part in enumerate(manifest.parts):
        where = f'{part.where}, "instructions"'
        check_texts((rule for rule in part.instructions if rule != EVERYTHING), [index], where)
        for rule, text in part.instructions.items():
            among = parts == number
            chosen = among if rule == EVERYTHING else fitting_episodes(rule, index, among, where)
            if text not in texts:
                texts.append(text)
            ids[index.steps_of(np.flatnonzero(chosen))] = texts.index(text)
    return replace(index, instructions=tuple(texts), instruction_ids=ids)


def check_trainable(specs: Sequence[DatasetSpec], use_proprio: bool) -> None:
    """Accepts data sets that can be trained on, by their numbers: no image is decoded.

    Raises:
        ValueError: recordings of another robot or with other actions, rules that fit nothing, weights that are none; names the place.
    """
    indexes = {}
    for spec in specs:
        indexes[spec.name] = index = open_index(spec)
        spec.check_widths(index.actions.shape[1], index.proprio.shape[1] if use_proprio else None)
    for name, weights in episode_weights(specs, indexes, None).items():
        left_out = frozenset(np.flatnonzero(weights.episodes == 0).tolist())
        if len(left_out) == indexes[name].num_episodes:
            raise ValueError(f"the weights of data set {name!r} leave no episode; give one a weight above 0")
        indexes[name].check_refused(left_out)
        check_recorded(next(spec for spec in specs if spec.name == name), indexes[name], left_out)
