"""What the folder of a checkpoint tells of its training: statistics, pictures and instructions, and whether that was changed since."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

from prismatic.models.json_files import read_object
from prismatic.policy.checkpoint.files import ADAPTER_FOLDER, STATISTICS_FILE, changed_texts
from prismatic.policy.checkpoint.spec import POLICY_FILE, PolicySpec
from prismatic.vla.reference import Reference

_WHAT_IS_SAVED = "a folder that finetune.py saved (its name ends in _chkpt)"
_NOT_MEANT = re.compile(r"\..*|.*\.left\d+")  # names of folders that are half-written, or put aside

logger = logging.getLogger(__name__)


def warn_of_changes(folder: Path) -> None:
    """Says which of the files that give actions their meaning are not as training saved them."""
    if changed := [name for name in changed_texts(folder) if name in (POLICY_FILE, STATISTICS_FILE)]:
        logger.warning("%s: %s changed since training saved it; actions may have other units. Copy it again", folder, ", ".join(changed))


def warn_of_newer(folder: Path) -> None:
    """Says that a run went on to numbered checkpoints after it had saved into its own `folder` (--save_latest_checkpoint_only)."""
    if told := newer_policy(folder):
        logger.warning("%s", told)


def newer_policy(folder: Path) -> str | None:
    """Which step `folder` holds, and where a newer policy of the same run lies beside it, in words; None: there is none."""
    newest = newest_checkpoint(folder)
    if newest is None or not 0 < _step(folder) < _step(newest):
        return None
    return f"{folder} holds the policy of step {_step(folder)}, which is taken; {newest} is of step {_step(newest)}"


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
        what, remedy = other_than_checkpoint(folder) or ("", "copy the whole checkpoint folder")
        raise ValueError(f"{folder} lacks {STATISTICS_FILE}, without which actions have no units; {what and f'it {what}: '}{remedy}")
    return read_object(path)


def other_than_checkpoint(folder: Path) -> tuple[str, str] | None:
    """(what `folder` is or holds, what to pass in its place) of what is no checkpoint; None: it is one, or part of one."""
    if not any((folder / name).exists() for name in ("config.json", POLICY_FILE, ADAPTER_FOLDER)):
        return "holds no checkpoint", f"pass {newest_checkpoint(folder) or _WHAT_IS_SAVED}"
    if not any((folder / name).exists() for name in (POLICY_FILE, STATISTICS_FILE)) and not any(folder.glob("*--*checkpoint.pt")):
        return "is a base model, without action head and statistics", f"fine-tune it first, then pass {_WHAT_IS_SAVED}"
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The one of the latest step beside the folder of a run, or in a folder of runs."""
    saved = sorted(folder.parent.glob(f"{folder.name}--*_chkpt"), key=_step)
    found = {*folder.glob("*_chkpt"), *(path.parent for path in folder.glob(f"*/{POLICY_FILE}"))}
    saved = saved or sorted((path for path in found if not _NOT_MEANT.fullmatch(path.name)), key=_step)
    return saved[-1] if saved else None


def _step(folder: Path) -> int:
    """How many optimizer steps the checkpoint has had, by its name or else by policy.json; 0: neither says it."""
    if found := re.search(r"--(\d+)_chkpt$", folder.name):
        return int(found[1])
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return int(read_object(folder / POLICY_FILE)["provenance"]["step"])
    return 0
