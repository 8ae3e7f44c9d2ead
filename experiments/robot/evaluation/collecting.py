"""Rollouts as data: an evaluation whose episodes are recorded, from starts that no evaluation draws, and a manifest that names them.

With the expert's help (`actors.HELP`) they show what the policy should have done: at every step, or from where the expert took over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.actors import NO_HELP, TAKEOVER, check_help
from experiments.robot.evaluation.backlog import PlannedEpisode
from experiments.robot.evaluation.journal import JOURNAL_FILE, JournalError, journal_files, read_journals
from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags, plan_episodes
from experiments.robot.evaluation.rollout import RolloutOptions
from experiments.robot.evaluation.run import run_evaluation
from prismatic.acting.recorder import RECORDINGS
from prismatic.vla.constants import near_names
from prismatic.vla.datasets.manifest import Part, write_manifest
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, registered_name

MANIFEST_FILE = "manifest.json"
COLLECTION = "collection"  # of simulators.episodes.SPLITS
# Kind of help -> weights of the manifest: what the policy did before the expert took over is no example, nor is what failed all the same.
WHAT_IS_TAUGHT = {TAKEOVER: {"by policy": 0.0, "not success": 0.0}}


def collect(config: EvaluationFlags, benchmark: Benchmark, dataset: str, expert_help: str = NO_HELP) -> Path:
    """Plays and records what is missing of the episodes; the manifest of all of them, in `config.folder`.

    `dataset`: the registry entry that reads them. An interrupted collection goes on; its manifest names what there is so far.

    Raises:
        ValueError: no such entry, no expert that can help, the folder holds the episodes of another policy or other flags, or a
            collection of an earlier version, or every episode crashed.
    """
    check_help(expert_help)
    if expert_help != NO_HELP and config.policy == "expert":
        raise ValueError(f"--expert_help {expert_help} is for a checkpoint; with --policy expert nobody needs help")
    if registered_name(dataset) is None:
        raise ValueError(f"--dataset_name {dataset!r} is no entry of the registry; {near_names(dataset, OXE_DATASET_CONFIGS)}")
    _check_earlier(config.folder)
    config, benchmark = replace(config, record=True), _as_collection(benchmark, expert_help)
    if config.restart:
        (config.folder / MANIFEST_FILE).unlink(missing_ok=True)  # what it names is forgotten
    try:
        run_evaluation(config, benchmark)
    except JournalError:
        raise  # what lies there is another collection's, and so is its manifest
    except BaseException:
        _write_manifest(config, benchmark, dataset)
        raise
    manifest = _write_manifest(config, benchmark, dataset)
    if manifest is None:
        raise ValueError(f"no episode could be recorded in {config.folder}: all crashed, as told above; the same command tries them again")
    return manifest


def _as_collection(benchmark: Benchmark, expert_help: str) -> Benchmark:
    return replace(benchmark, split=COLLECTION, expert_help=expert_help, episode_numbers=lambda task, count: list(range(count)))


def _check_earlier(folder: Path) -> None:
    """Refuses to begin anew beside what an earlier version has collected in a folder of its own (LIBERO's EVAL-<suite>-<policy>)."""
    earlier = sorted(folder.glob(f"EVAL-*/{JOURNAL_FILE}"))
    if earlier and not journal_files(folder):
        raise ValueError(
            f"{earlier[0].parent} holds what an earlier version has collected; name that folder as --output_dir to go on with it, "
            f"or choose another one than {folder}"
        )


def _write_manifest(config: EvaluationFlags, benchmark: Benchmark, dataset: str) -> Path | None:
    """Names the recordings that there are of the planned episodes in the journal, and no others; None, and no file, without any."""
    options = RolloutOptions(recording_dir=config.folder / RECORDINGS)
    wanted = [path for episode, _ in _played(config, benchmark) if (path := options.recording(episode)) is not None and path.exists()]
    parts = []
    for folder in dict.fromkeys(path.parents[1] for path in wanted):
        own = {path for path in wanted if path.parents[1] == folder}
        is_all = own == set(folder.rglob("*.hdf5"))
        episodes = () if is_all else tuple(sorted(path.relative_to(folder).as_posix() for path in own))
        parts.append(Part(folder, episodes, weights=WHAT_IS_TAUGHT.get(benchmark.expert_help, {})))
    if not parts:
        return None
    path = config.folder / MANIFEST_FILE
    write_manifest(path, dataset, parts)
    return path


def _played(config: EvaluationFlags, benchmark: Benchmark) -> list[tuple[PlannedEpisode, Mapping[str, Any]]]:
    """The planned episodes that there are, each with its row of the journal."""
    rows = read_journals(config.folder)[1] if journal_files(config.folder) else []
    found = {(row["run"], row["task"], row["index"], row["seed"]): row for row in rows}
    keys = [((item.run, item.spec.task, item.spec.index, item.spec.seed), item) for item in plan_episodes(config, benchmark)]
    return [(item, found[key]) for key, item in keys if key in found]


def dataset_of(checkpoint: str | Path, default: str) -> str:
    """The data set whose entry and statistics a policy was trained with, where it is one of the registry; else `default`."""
    from prismatic.models.json_files import read_object
    from prismatic.policy.checkpoint.files import STATISTICS_FILE
    from prismatic.policy.checkpoint.loading import resolve_folder

    if not checkpoint:
        return default
    statistics = resolve_folder(checkpoint, with_weights=False) / STATISTICS_FILE
    known = [name for name in read_object(statistics) if registered_name(name)] if statistics.is_file() else []
    return known[0] if len(known) == 1 else default


def count_episodes(config: EvaluationFlags, benchmark: Benchmark) -> tuple[int, int]:
    """(episodes, successes) that `config.folder` holds of the planned episodes of a collection, without those that crashed."""
    rows = [row for _, row in _played(config, _as_collection(benchmark, NO_HELP)) if row.get("error") is None]
    return len(rows), sum(row["success"] for row in rows)
