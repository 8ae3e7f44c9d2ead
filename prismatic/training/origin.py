"""What a run begins with: a base model, or a fine-tuned policy whose heads, FiLM, adapters and statistics are taken over.

A checkpoint as --vla_path is continued: "200 demonstrations, later 50 more". Its heads answer in its normalization statistics, so these
stay, too, and what the new data have beyond them is counted. A data set that it does not know, beside one that it knows, gets its own.
Where it knows several and none of the run's, it cannot be told in whose statistics its heads are to go on, and has to be said. All of
this is reported, and recorded in policy.json under provenance.continued. --fresh_heads and --new_statistics ask for otherwise.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prismatic.policy.checkpoint.base_files import check_base, named_base
from prismatic.policy.checkpoint.continuing import Continuation, check_heads
from prismatic.policy.checkpoint.files import ACTION_HEAD, ADAPTER_FILE, ADAPTER_FOLDER, has_component
from prismatic.policy.checkpoint.flags import PolicyFlags
from prismatic.policy.checkpoint.loading import (
    LoadOptions,
    list_files,
    load_config,
    load_spec,
    resolve_folder,
)
from prismatic.policy.checkpoint.spec import POLICY_FILE, HeadSpec, PolicySpec
from prismatic.policy.checkpoint.stored_weights import WEIGHT_FILES
from prismatic.policy.checkpoint.told import load_statistics, warn_of_newer
from prismatic.policy.lora.adapters import stored_ranks
from prismatic.policy.lora.scaling import AdapterScaling
from prismatic.training.config import FinetuneConfig
from prismatic.training.resumed_base import resumed_base
from prismatic.training.resumed_data import shown
from prismatic.training.run_folder import Checkpoint
from prismatic.vla.constants import RobotPlatform
from prismatic.vla.datasets.statistics import DatasetStatistics

logger = logging.getLogger(__name__)

_HEAD_FLAGS = {
    "l1": "--use_l1_regression True --use_diffusion False",
    "diffusion": "--use_l1_regression False --use_diffusion True",
    "discrete": "--use_l1_regression False --use_diffusion False",
}

_COMPUTED = "computed from this run's data"  # how policy.json says that a data set has statistics of its own


@dataclass(frozen=True)
class Origin:
    """What a run begins with."""

    base_path: str  # the model whose weights are read first; its adapters, if any, are merged
    told: Path  # folder that tells what training saw before
    continuation: Continuation | None = None  # what is laid over these weights; None: a base model
    statistics: Mapping[str, DatasetStatistics] = field(default_factory=dict)  # data set -> kept from a checkpoint
    # data set whose statistics are computed anew -> data set of the checkpoint -> those that its heads have learnt
    earlier_statistics: Mapping[str, Mapping[str, DatasetStatistics]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)  # for policy.json

    @property
    def kept(self) -> frozenset[str]:
        """Data sets that are normalised by the statistics of a policy that the run has continued."""
        return frozenset(name for name, source in self.record.get("statistics", {}).items() if source != _COMPUTED)


def find_origin(
    config: FinetuneConfig, platform: RobotPlatform, cameras: Sequence[str], data_sets: Sequence[str], resumed: Checkpoint | None
) -> Origin:
    """Where the run's weights and statistics come from; only small files are read.

    Raises:
        ValueError: no such model, a checkpoint whose heads or adapters are of another kind, width or rank than the run's, or one of
            several data sets, of which the run has none.
    """
    if resumed is not None:
        return _resumed(resumed_base(config, resumed), resumed.folder)
    folder = resolve_folder(config.model.vla_path, with_weights=False)
    if not (folder / POLICY_FILE).is_file() and not has_component(folder, ACTION_HEAD):
        if config.model.freeze_heads:
            raise ValueError(f"--freeze_heads True needs a fine-tuned checkpoint as --vla_path; {folder} is a base model")
        return Origin(config.model.vla_path, folder)
    warn_of_newer(folder)
    known = load_statistics(folder)
    spec = load_spec(folder, LoadOptions(_as_policy_flags(config, platform), unnorm_key=_same_name(data_sets, known)), known)
    base_path = _base_path(config, folder, spec)
    continuation = Continuation(folder, keeps_adapters=base_path != config.model.vla_path, has_fresh_heads=config.model.fresh_heads)
    if not config.model.fresh_heads:
        _check_same_heads(config, spec, platform)
        check_heads(folder, load_config(base_path), replace(spec, platform=platform, heads=config.model.heads))
    kept = choose_statistics(data_sets, known)
    is_new = config.data.new_statistics or config.model.fresh_heads
    if not kept and not is_new:
        raise ValueError(
            f"{folder} normalizes by the statistics of {', '.join(known)}, and the run has none of these data sets, but "
            f"{', '.join(data_sets)}: it is not clear in whose statistics its heads are to go on. --new_statistics True computes them "
            "anew, which changes what the heads say until they have learnt it; --fresh_heads True begins with new heads"
        )
    origin = Origin(
        base_path,
        folder,
        continuation,
        statistics={} if is_new else kept,
        earlier_statistics=_learnt(data_sets, known) if is_new and not config.model.fresh_heads else {},
        record=_record(config, continuation, {} if is_new else kept, data_sets, known),
    )
    _tell(origin, spec, cameras, config.data.image_aug)
    return origin


def choose_statistics(data_sets: Sequence[str], known: Mapping[str, DatasetStatistics]) -> dict[str, DatasetStatistics]:
    """Data set -> the checkpoint's statistics that are kept for it, of those in `known`.

    A data set of the same name keeps its own. If the checkpoint knows one data set alone and the run has others, they are all taken by
    that one's. {}: it knows several, and none of the run's.
    """
    kept = {name: known[name] for name in data_sets if name in known}
    return dict.fromkeys(data_sets, next(iter(known.values()))) if not kept and len(known) == 1 else kept


def _learnt(data_sets: Sequence[str], known: Mapping[str, DatasetStatistics]) -> dict[str, dict[str, DatasetStatistics]]:
    """Data set of the run -> data set of the checkpoint -> statistics in which its heads may have learnt to speak of it."""
    kept = choose_statistics(data_sets, known)
    if not kept:
        return {name: dict(known) for name in data_sets}
    return {name: {name if name in known else next(iter(known)): statistics} for name, statistics in kept.items()}


def _resumed(base_path: str, folder: Path) -> Origin:
    """A run goes on in its own statistics; if it continued a checkpoint, what it has frozen is read from its own."""
    spec = PolicySpec.load(folder)
    record = spec.provenance.get("continued", {})
    continuation = Continuation(folder, keeps_adapters=spec.lora is not None) if record else None
    return Origin(base_path, resolve_folder(base_path, with_weights=False), continuation, load_statistics(folder), record=record)


def known_anywhere(name_or_path: str) -> str:
    """A folder's path as it means the same in every working directory, for files that are read later; a Hub id as it is."""
    return os.path.abspath(name_or_path) if Path(name_or_path).is_dir() else name_or_path


def _as_policy_flags(config: FinetuneConfig, platform: RobotPlatform) -> PolicyFlags:
    """What a published folder does not say about itself; ours does, and is compared by `_check_same_heads`."""
    if (Path(config.model.vla_path).expanduser() / POLICY_FILE).is_file():
        return PolicyFlags()
    return PolicyFlags(
        robot_platform=platform.name,
        num_images_in_input=config.model.num_images_in_input,
        num_diffusion_steps_train=config.model.num_diffusion_steps_train,
    )


def _same_name(data_sets: Sequence[str], known: Mapping[str, DatasetStatistics]) -> str | None:
    return next((name for name in data_sets if name in known), None)


def _base_path(config: FinetuneConfig, folder: Path, spec: PolicySpec) -> str:
    """The model that the run's weights are read from: the checkpoint itself if it is whole, else the base of its adapters.

    Raises:
        ValueError: the adapters cannot go on as they are.
    """
    if list_files(config.model.vla_path) & set(WEIGHT_FILES):
        return config.model.vla_path
    base = spec.base_model or named_base(folder)
    if not (folder / ADAPTER_FOLDER / ADAPTER_FILE).is_file() or not base or spec.lora is None:
        raise ValueError(
            f"{folder} holds neither {WEIGHT_FILES[0]} nor {ADAPTER_FOLDER}/ with a known base model; copy the whole checkpoint"
        )
    merging = f"python vla-scripts/merge_lora_weights_and_save.py --lora_finetuned_checkpoint_dir {folder}"
    if config.model.lora is None or config.model.lora.rank != spec.lora.rank:
        wish = f"--lora_rank {config.model.lora_rank}" if config.model.use_lora else "--use_lora False"
        raise ValueError(
            f"{folder} holds adapters of rank {spec.lora.rank} that are not merged, the run has {wish}. Pass --lora_rank {spec.lora.rank} "
            f"to go on with them, or merge them first and take any: {merging}"
        )
    if scaled := _unusual_adapters(folder / ADAPTER_FOLDER):
        raise ValueError(f"{folder} holds adapters that count otherwise than those of a run here ({scaled}); merge them first: {merging}")
    try:
        base_folder = resolve_folder(base, with_weights=False)
    except ValueError as error:
        raise ValueError(
            f"{folder} holds adapters of the base model {base}: {error}. Or merge them first: {merging} --base_checkpoint BASE"
        ) from error
    if Path(base).expanduser().is_dir():  # of the Hub no weights may be here yet
        check_base(folder, spec.base_files, base, base_folder)
    return base


def _unusual_adapters(folder: Path) -> str | None:
    """The first adapter whose scaling or rank is not the one that training gives it, in words.

    Raises:
        ValueError: adapter_config.json asks for what is not supported.
    """
    scaling, ranks = AdapterScaling.read(folder), stored_ranks(folder / ADAPTER_FILE)
    usual = next(iter(ranks.values()), 0)
    for module, rank in ranks.items():
        if rank != usual or not scaling.is_usual(module, rank):
            return f"{module}: rank {rank}, scaling {scaling.of(module, rank):g}"
    return None


def _check_same_heads(config: FinetuneConfig, spec: PolicySpec, platform: RobotPlatform) -> None:
    """Returns if the run's heads are those of the checkpoint.

    Raises:
        ValueError: they are of another kind or width, or mean other actions; every difference is listed.
    """
    own, theirs = config.model.heads, spec.heads
    found = []
    if own.action_head != theirs.action_head:
        found.append(f"its action head is {theirs.action_head} ({_HEAD_FLAGS[theirs.action_head]}), this run's {own.action_head}")
    if own.action_head == theirs.action_head == "diffusion" and own.num_diffusion_steps_train != theirs.num_diffusion_steps_train:
        found.append(f"--num_diffusion_steps_train was {theirs.num_diffusion_steps_train}, is {own.num_diffusion_steps_train}")
    for name in ("use_proprio", "use_film"):
        if getattr(own, name) != getattr(theirs, name):
            found.append(f"--{name} was {getattr(theirs, name)}, is {getattr(own, name)}")
    names = ["action_dim", "num_actions_chunk", "normalization", "action_names", *(["proprio_dim"] if own.use_proprio else [])]
    for name in [*names, "action_kinds"]:
        one, other = (shown(getattr(each, name)) for each in (spec.platform, platform))
        if one != other:
            found.append(f"{name} of its robot platform {spec.platform.name} was {one}, that of {platform.name} is {other}")
    if found:
        raise ValueError(
            f"the heads of {config.model.vla_path} cannot be taken over: {'; '.join(found)}. Pass the flags that it was trained with, or "
            "--fresh_heads True to begin with new heads and new statistics"
        )


def _record(
    config: FinetuneConfig,
    continuation: Continuation,
    kept: Mapping[str, DatasetStatistics],
    data_sets: Sequence[str],
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """What was taken over and what is new, for log and policy.json."""
    parts = _parts(config.model.heads)
    taken, new = ([], parts) if continuation.has_fresh_heads else (parts, [])
    if config.model.use_lora:
        (taken if continuation.keeps_adapters else new).append("LoRA adapters")
    statistics = {name: "of the checkpoint" if name in known else "of the checkpoint's data set " + next(iter(known)) for name in kept}
    return {
        "checkpoint": config.model.vla_path,
        "taken_over": taken,
        "new": new,
        "statistics": {name: statistics.get(name, _COMPUTED) for name in data_sets},
    }


def _parts(heads: HeadSpec) -> list[str]:
    names = [] if heads.action_head == "discrete" else ["action head"]
    names += ["proprio projector"] if heads.use_proprio else []
    names += ["noisy-action projector"] if heads.action_head == "diffusion" else []
    return [*names, *(["FiLM"] if heads.use_film else [])]


def _tell(origin: Origin, spec: PolicySpec, cameras: Sequence[str], image_aug: bool) -> None:
    record = origin.record
    logger.info(
        "continuing %s; taken over: %s; new: %s; the optimizer starts anew, so a few --lr_warmup_steps help",
        record["checkpoint"],
        *(", ".join(record[key]) or "nothing" for key in ("taken_over", "new")),
    )
    for name, source in record["statistics"].items():
        logger.info("data set %s: normalization statistics %s", name, source)
    if tuple(cameras) != spec.cameras:
        logger.warning(
            "%s was trained on the cameras %s, this run has %s: the policy has to learn what they show anew",
            *(record["checkpoint"], ", ".join(spec.cameras), ", ".join(cameras)),
        )
    if (origin.told / POLICY_FILE).is_file() and image_aug != spec.image.center_crop:  # a published folder does not say it
        sees = {True: "crops of its images", False: "its images whole"}
        logger.warning(
            "%s was trained with --image_aug %s and sees %s, this run has %s: from now on it sees %s, in training and when it acts",
            *(record["checkpoint"], spec.image.center_crop, sees[spec.image.center_crop], image_aug, sees[image_aug]),
        )
