"""A folder of recordings: what it is, whether it can be read, and what looks wrong in its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prismatic.vla.diagnosis import Finding, Status

if TYPE_CHECKING:
    from prismatic.vla.datasets.inspection.view import DatasetView
    from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec

_KINDS = {"rlds": "RLDS", "lerobot": "LeRobot", "hdf5": "HDF5 recordings", "manifest": "manifest of recordings"}
_NUM_EPISODES, _NUM_STEPS = 4, 4  # whose images are decoded
_READ_AGAIN = "Correct what the message names; recordings that are damaged must be copied or written again."


def check_data(folder: Path, dataset_name: str | None, robot_platform: str | None, checkpoint: Path | None = None) -> list[Finding]:
    """`folder` holds data sets, or is one or a manifest; `dataset_name` (a data set or mixture) chooses. `checkpoint`: compare with its
    training."""
    from prismatic.vla.datasets.manifest import is_manifest
    from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets

    if folder.is_file() and is_manifest(folder.name) and dataset_name is None:
        folder, dataset_name = folder.parent, str(folder)
    if not folder.is_dir():
        return [Finding("folder", Status.PROBLEM, f"{folder} is not a folder", "Pass the folder of a data set, or --data_root_dir's.")]
    if dataset_name is None:
        return _check_unnamed(folder, robot_platform, checkpoint)
    try:
        specs = resolve_datasets(dataset_name, folder, robot_platform)
    except ValueError as error:
        return [Finding(dataset_name, Status.PROBLEM, str(error), "Correct --data, --dataset_name or the entry of the data set.")]
    return [finding for spec in specs for finding in _check_dataset(spec, checkpoint)]


def _check_unnamed(folder: Path, robot_platform: str | None, checkpoint: Path | None) -> list[Finding]:
    """The data set that `folder` is, else all those in it."""
    folder = folder.resolve()
    if _dataset_folder(folder) is not None:
        return _check_named(folder.parent, folder.name, robot_platform, checkpoint)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and _dataset_folder(path) is not None)
    if not names:
        holds = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        remedy = "Expected RLDS (1.0.0/dataset_info.json), LeRobot (meta/info.json) or .hdf5 files, here or one folder below."
        return [Finding("folder", Status.PROBLEM, f"{folder} holds no recordings; it holds {holds}", remedy)]
    return [finding for name in names for finding in _check_named(folder, name, robot_platform, checkpoint)]


def _dataset_folder(folder: Path) -> Path | None:
    """Where the recordings of `folder` lie: in it or in its newest version."""
    from prismatic.vla.datasets.sources import find_dataset_folder

    try:
        return find_dataset_folder(folder.parent, folder.name)
    except ValueError:
        return None


def _check_named(root: Path, name: str, robot_platform: str | None, checkpoint: Path | None) -> list[Finding]:
    """Data set `name`; where the registry does not know it, only what its files say."""
    from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry, find_entry
    from prismatic.vla.datasets.sources import open_source, source_kind

    try:
        find_entry(name)
    except ValueError:
        folder = _dataset_folder(root / name)
        assert folder is not None
        try:
            source = open_source(folder, DatasetEntry())
        except ValueError as error:
            return [Finding(name, Status.PROBLEM, str(error), _READ_AGAIN)]
        found = f"{_KINDS[source_kind(folder)]}, {source.num_episodes:,} episodes; not in the registry, so not checked further"
        return [Finding(name, Status.WARNING, found, f"Print an entry for it: python scripts/inspect_dataset.py --suggest {root / name}")]
    return check_data(root, name, robot_platform, checkpoint)


def _check_dataset(spec: DatasetSpec, checkpoint: Path | None) -> list[Finding]:
    """The index, then the findings of `scripts/inspect_dataset.py` on few images."""
    from prismatic.vla.datasets.inspection.checks import check_arrays
    from prismatic.vla.datasets.inspection.frames import check_frames, read_strips
    from prismatic.vla.datasets.inspection.view import DatasetView
    from prismatic.vla.datasets.opening import open_index
    from prismatic.vla.datasets.sources import source_kind

    try:
        kind = source_kind(spec.folder)
        index = open_index(spec, is_lenient=False)
        view = DatasetView.of(spec, index)
        strips, damaged = read_strips(view, _NUM_EPISODES, _NUM_STEPS)
    except ValueError as error:
        return [Finding(spec.name, Status.PROBLEM, str(error), _READ_AGAIN)]
    splits = ", ".join(f"{last - first} {split}" for split, (first, last) in index.splits.items())
    found = f"{_KINDS[kind]}, {index.num_episodes:,} episodes ({splits}), {len(index.actions):,} steps; platform {spec.platform.name}"
    sound = Finding(spec.name, Status.OK, f"{found}, cameras {', '.join(index.cameras)}")
    findings = [*check_arrays(view), *damaged, *check_frames(strips), *_compare(view, checkpoint)]
    return [sound, *findings]


def _compare(view: DatasetView, checkpoint: Path | None) -> list[Finding]:
    """The data against what the checkpoint was trained on, if a checkpoint is given that records it."""
    from prismatic.policy.checkpoint.told import read_training
    from prismatic.vla.datasets.inspection.against import check_against

    training = None if checkpoint is None else read_training(checkpoint.expanduser(), view.platform.name, view.name)
    return [] if training is None else check_against(view, *training)
