"""What the folder of a checkpoint tells of its training: statistics, pictures and instructions, and whether that was changed since."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from prismatic.models.json_files import read_object
from prismatic.policy.checkpoint.files import STATISTICS_FILE, changed_texts
from prismatic.policy.checkpoint.spec import POLICY_FILE, PolicySpec
from prismatic.vla.reference import Reference

logger = logging.getLogger(__name__)


def warn_of_changes(folder: Path) -> None:
    """Says which of the files that give actions their meaning are not as training saved them."""
    if changed := [name for name in changed_texts(folder) if name in (POLICY_FILE, STATISTICS_FILE)]:
        logger.warning("%s: %s changed since training saved it; actions may have other units. Copy it again", folder, ", ".join(changed))


def load_reference(folder: Path, spec: PolicySpec) -> Reference | None:
    """What the training behind the checkpoint saw, where its folder tells.

    Raises:
        ValueError: it saw other cameras, or in another order, than policy.json says.
    """
    reference = Reference.load(folder)
    if reference is not None and tuple(reference.frames) != spec.cameras:
        raise ValueError(
            f"{folder}: policy.json lists the cameras {', '.join(spec.cameras)}, training had {', '.join(reference.frames)}; "
            "copy policy.json again"
        )
    return reference


def read_training(folder: Path, platform: str, data_set: str) -> tuple[Reference | None, dict[str, Any]] | None:
    """What the training behind a checkpoint saw, and its statistics, of `data_set` or else of the only one.

    None: nothing is said, or it was about another robot than `platform`. Raises:
        ValueError: a file is damaged.
    """
    path = folder / STATISTICS_FILE
    if not path.is_file() or ((folder / POLICY_FILE).is_file() and PolicySpec.load(folder).platform.name != platform):
        return None
    statistics = read_object(path)
    entry = statistics.get(data_set) or (next(iter(statistics.values())) if len(statistics) == 1 else None)
    return None if entry is None else (Reference.load(folder), entry)


def load_statistics(folder: Path) -> dict[str, Any]:
    """The content of dataset_statistics.json; where there is none, what the model's config.json carries as norm_stats.

    Raises:
        ValueError: both are absent.
    """
    path = folder / STATISTICS_FILE
    if not path.is_file():
        config = folder / "config.json"
        if config.is_file() and (carried := read_object(config).get("norm_stats")):
            return carried
        raise ValueError(f"{folder} lacks {STATISTICS_FILE}, without which actions have no units; copy the whole checkpoint folder")
    return read_object(path)
