"""Which base model a resumed run reads: the one that it was started from, wherever that lies by now.

A scheduler may start a run again on another node, with the base copied to a scratch disk under a path of its own: a --vla_path that is
given and differs is taken, if what lies there is the same model, as `prismatic.policy.checkpoint.base_files` tells.
"""

from __future__ import annotations

import logging
from pathlib import Path

from prismatic.policy.checkpoint.base_files import describe_base, differences, named_base
from prismatic.policy.checkpoint.loading import resolve_folder
from prismatic.policy.checkpoint.spec import POLICY_FILE, PolicySpec
from prismatic.policy.checkpoint.stored_weights import has_weights
from prismatic.training.config import FinetuneConfig
from prismatic.training.run_folder import Checkpoint, is_of_run, is_same_place, read_checkpoint
from prismatic.training.sections import ModelConfig

logger = logging.getLogger(__name__)


def resumed_base(config: FinetuneConfig, checkpoint: Checkpoint) -> str:
    """Path or Hub id of the base that the run of `checkpoint` goes on with: an explicit --vla_path if it is the same model.

    Raises:
        ValueError: it is another one (the message says what differs), or the base is gone and no other place was named.
    """
    recorded = str(checkpoint.state.flags["vla_path"])
    given = _given_base(config, checkpoint)
    place = recorded if given is None else given
    try:
        folder = resolve_folder(place, with_weights=False)
    except ValueError as error:
        if given is not None:
            raise
        raise ValueError(
            f"resuming: {recorded}, which the run in {checkpoint.folder} was started from, is not there any more ({error}); "
            "pass --vla_path with a copy of it"
        ) from error
    known = checkpoint.state.base or _describe_if_there(recorded)
    if not known and place != recorded:
        logger.warning("%s does not say what its base model was, and %s is gone: %s is taken unseen", checkpoint.folder, recorded, place)
    if told := differences(known, describe_base(folder), is_whole=Path(place).expanduser().is_dir()):
        raise ValueError(
            f"resuming: {place} is not the model that the run in {checkpoint.folder} was started from ({recorded}): "
            f"{'; '.join(told)}. Pass --vla_path with a copy of that one{'' if given is None else ', or leave it out'}"
        )
    return place


def _given_base(config: FinetuneConfig, checkpoint: Checkpoint) -> str | None:
    """The base that --vla_path names: itself, or that of the adapters in it; None if the flag says nothing new.

    Nothing new is the flag as it was when the run began, a checkpoint of the run, by which one may resume, and the flag's default.
    """
    given, flags = config.model.vla_path, checkpoint.state.flags
    if any(is_same_place(given, str(known)) for known in (flags["vla_path"], flags.get("started_from"), ModelConfig.vla_path)):
        return None
    folder = Path(given).expanduser()
    if config.saving.resume and is_of_run(config, folder) and read_checkpoint(folder) is not None:
        return None
    if has_weights(folder) or not folder.is_dir():
        return given
    return (PolicySpec.load(folder).base_model if (folder / POLICY_FILE).is_file() else None) or named_base(folder) or given


def _describe_if_there(place: str) -> dict[str, str]:
    folder = Path(place).expanduser()
    return describe_base(folder) if folder.is_dir() else {}
