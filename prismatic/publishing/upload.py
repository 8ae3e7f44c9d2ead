"""A whole checkpoint folder -> one commit on the Hub, with its card."""

from __future__ import annotations

import logging
from pathlib import Path

from prismatic.policy.checkpoint.files import ADAPTER_FOLDER, TRAINER_STATE_FOLDER, is_result, is_weights
from prismatic.policy.checkpoint.spec import POLICY_FILE
from prismatic.policy.checkpoint.told import other_than_checkpoint, warn_of_newer
from prismatic.policy.checkpoint.verification import adapter_base, verify_checkpoint
from prismatic.vla.diagnosis import Status

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"


def require_whole(folder: Path) -> None:
    """Returns if others can use what is in `folder`.

    Raises:
        ValueError: a part is missing or does not fit; every such part is named.
    """
    findings = verify_checkpoint(folder)
    if folder.is_dir() and (other := other_than_checkpoint(folder)) is not None:
        raise ValueError(f"{folder} {other[0]}: {other[1]}")
    if not (folder / POLICY_FILE).is_file() and folder.is_dir():
        raise ValueError(f"{folder} has no {POLICY_FILE}: a published checkpoint, which says nothing to put on a card")
    problems = [f"\n  {finding.subject}: {finding.found}" for finding in findings if finding.status == Status.PROBLEM]
    if problems:
        raise ValueError(f"{folder} is not a whole checkpoint and is not uploaded:{''.join(problems)}")
    warn_of_newer(folder)
    base = adapter_base(folder)
    if base is not None and Path(base).exists():
        logger.warning("others do not have %s, which these adapters belong to: merge them first, or upload the base too", base)


def files_to_upload(folder: Path, with_trainer_state: bool) -> list[Path]:
    """Every file of the checkpoint but hidden ones, the card and (unless wanted) the trainer state; relative, in order.

    Other folders (an evaluation, logs of Weights & Biases) are no part of a checkpoint, nor are results of an evaluation beside its files.
    """
    own = {ADAPTER_FOLDER, TRAINER_STATE_FOLDER} if with_trainer_state else {ADAPTER_FOLDER}
    others = [path.name for path in folder.iterdir() if (path.is_dir() and path.name not in own) or is_result(path.name)]
    if told := sorted(name for name in others if not name.startswith(".") and name != TRAINER_STATE_FOLDER):
        logger.info("no part of the checkpoint, and not uploaded: %s", ", ".join(told))
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = [path for path in files if path.parts[0] not in others and path != Path(CARD_FILE)]
    return [path for path in kept if not any(part.startswith(".") for part in path.parts)]


def upload(folder: Path, files: list[Path], card: str, repo_id: str, private: bool) -> str:
    """Makes the repository where there is none and adds everything in one commit; returns its address.

    Weights of an earlier upload that are not among `files` go with the same commit: they would be loaded beside the new ones.

    Raises:
        ValueError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationAdd(path.as_posix(), folder / path) for path in files]
    operations.append(CommitOperationAdd(CARD_FILE, card.encode()))
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        sent = {path.as_posix() for path in files}
        old = [name for name in api.list_repo_files(repo_id) if is_weights(name.partition("/")[0]) and name not in sent]
        if old:
            logger.info("weights of an earlier upload are removed from %s: %s", repo_id, ", ".join(old))
        operations += [CommitOperationDelete(name) for name in old]
        api.create_commit(repo_id, operations, commit_message=f"Upload {folder.resolve().name}")
    except Exception as error:  # the client raises many kinds; its first line says what the Hub answered
        raise ValueError(
            f"the Hub did not take {repo_id} ({type(error).__name__}: {str(error).splitlines()[0]}). Log in with hf auth login and a token "
            "that may write, and check the owner's name; files that arrived are not sent again"
        ) from error
    return str(url)
