"""Adapters of a checkpoint folder -> a whole model beside them, once and for all, checked on a sample observation."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from prismatic.policy.checkpoint.files import check_free_space, list_weights_anew
from prismatic.policy.checkpoint.loading import LoadOptions, load_parts
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.checkpoint.saving import save_config, save_model
from prismatic.policy.checkpoint.spec import POLICY_FILE
from prismatic.policy.policy import Policy
from prismatic.vla.datasets.locks import LockedError, locked
from prismatic.vla.normalization import bounds_from_statistics
from prismatic.vla.types import Observation

MERGE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LOCK = ".merging.lock"  # held by the process that merges in a folder
_UNFINISHED = ".merging-"  # beginning of a hidden folder's name, of the size of the model
_CAMERA_SIZE = 256  # pixels, of the sample observation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeResult:
    """How a merge went."""

    folder: Path
    max_action_difference: float  # between before and after, in the robot's units
    max_action: float  # largest action of the sample, for comparison


def merge_checkpoint(
    folder: Path, base_model: str | None, merge_dtype: torch.dtype, device: torch.device, dtype: torch.dtype, options: LoadOptions
) -> MergeResult:
    """Writes model.safetensors (or shards) into `folder`; an existing one is replaced only when the new one is complete.

    So does config.json where there is none, as in the published code's folders of unmerged adapters. `merge_dtype` float32 rounds each
    merged weight once; bfloat16 adds in bfloat16, as the published script does.

    Raises:
        ValueError: `folder` holds no adapters, its base model is unknown, another process merges there, or the disk is full.
    """
    try:
        with locked(folder / _LOCK):
            try:
                return _merge(folder, base_model, merge_dtype, device, dtype, options)
            finally:
                (folder / _LOCK).unlink(missing_ok=True)
    except LockedError as error:
        raise ValueError(f"{error} merges the adapters of {folder}; wait for it") from error


def _merge(
    folder: Path, base_model: str | None, merge_dtype: torch.dtype, device: torch.device, dtype: torch.dtype, options: LoadOptions
) -> MergeResult:
    if not (folder / POLICY_FILE).is_file() and options.flags.num_images_in_input is None:
        options = replace(options, flags=replace(options.flags, num_images_in_input=1))  # the weights are the same for any number
    apart = replace(options, keep_adapters=True, base_model=base_model)
    parts = replace(load_parts(folder, device, dtype, apart), reference=None)  # the sample looks like nothing, and need not
    sample = sample_observation(parts)
    key = options.unnorm_key or parts.spec.unnorm_key or next(iter(parts.norm_stats))  # of several data sets any compares as well
    before = Policy(parts, key).predict([sample], seeds=[0])[0].actions
    for left in folder.glob(f"{_UNFINISHED}*"):
        logger.info("%s was left by a merge that died; it is removed", left)
        shutil.rmtree(left, ignore_errors=True)
    check_free_space(folder, sum(2 * parameter.numel() for parameter in parts.model.bare_vla.parameters()))
    temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        save_model(parts.model.vla, temporary, merge_dtype)
        if not (folder / "config.json").is_file():
            save_config(parts, temporary)
        del parts
        new = sorted(path.name for path in temporary.iterdir())
        for name in sorted(new, key=lambda name: name.endswith(".json")):  # an index comes last: it makes the shards count
            (temporary / name).replace(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in folder.glob("model*.safetensors*"):  # of an earlier merge into other shards
        if path.name not in new:
            path.unlink()
    list_weights_anew(folder)
    merged = Policy(replace(load_parts(folder, device, dtype, options), reference=None), key)
    after = merged.predict([sample], seeds=[0])[0].actions
    return MergeResult(folder, float(np.abs(after - before).max()), float(np.abs(before).max()))


def sample_observation(parts: PolicyParts) -> Observation:
    """Random pictures and a state in the middle of the training data."""
    spec = parts.spec
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (_CAMERA_SIZE, _CAMERA_SIZE, 3), dtype=np.uint8) for camera in spec.cameras}
    proprio = None
    if spec.heads.use_proprio:
        key = spec.unnorm_key or next(iter(parts.norm_stats))
        bounds = bounds_from_statistics(parts.norm_stats, key, "proprio", spec.platform.normalization)
        proprio = (bounds.low + bounds.high) / 2
    return Observation(images=images, instruction="pick up the object", proprio=proprio)
