"""Describes a published OFT folder, which has no policy.json, out of its files and what the user says.

Its files tell the action head, FiLM, proprio and the adapters' rank; its statistics name the data set, whose registry entry tells
platform and cameras. How many images it takes stands nowhere: that flag is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prismatic.models.configuration import OpenVLAConfig
from prismatic.policy.checkpoint.files import (
    ACTION_HEAD,
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    NOISY_ACTION_PROJECTOR,
    PROPRIO_PROJECTOR,
    VISION_BACKBONE,
    has_component,
    read_component,
)
from prismatic.policy.checkpoint.flags import PolicyFlags, apply_flags
from prismatic.policy.checkpoint.spec import HeadSpec, LoraSpec, PolicySpec
from prismatic.policy.lora.adapters import lora_rank, stored_ranks
from prismatic.vla.cameras import ONE_ARM, TWO_ARMS
from prismatic.vla.constants import ROBOT_PLATFORMS, RobotPlatform, get_robot_platform, near_names
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry, find_entry
from prismatic.vla.images import ImageRecipe

_PUBLISHED_DIFFUSION_STEPS = 50
_META = torch.device("meta")  # names and shapes alone: the towers of the 7B model are 1.5 GB
_CAMERAS = {1: ONE_ARM[:1], 2: ONE_ARM, 3: TWO_ARMS}


def describe_published(
    folder: Path, flags: PolicyFlags, config: OpenVLAConfig, norm_stats: Mapping[str, Any], unnorm_key: str | None
) -> PolicySpec:
    """The specification of a published OFT folder, out of its files and the flags.

    Raises:
        ValueError: something stands neither in the files nor in the flags, or both contradict each other; the message lists the choices.
    """
    key = unnorm_key or (next(iter(norm_stats)) if len(norm_stats) == 1 else None)
    entry = _registry_entry(key)
    platform = _platform(folder, flags, entry, key, norm_stats)
    cameras = _cameras(flags, entry, folder)
    rank = _rank(folder)
    rank = flags.lora_rank if rank is None else rank
    spec = PolicySpec(
        platform=platform,
        cameras=cameras,
        image=ImageRecipe(size=config.image_size, jpeg_round_trip=True, center_crop=flags.center_crop is not False),
        unnorm_key=key,
        heads=_heads(folder, flags),
        lora=None if rank is None else LoraSpec(rank),
        prompt=config.token_ids.prompt_template,
        provenance={"note": "a published checkpoint without policy.json"},
    )
    return apply_flags(spec, flags, f"the files of {folder}")


def _rank(folder: Path) -> int | None:
    """Of the adapters in the files; None: they hold none, or lay them into the weights."""
    if has_component(folder, VISION_BACKBONE):
        return lora_rank(read_component(folder, VISION_BACKBONE, _META))
    path = folder / ADAPTER_FOLDER / ADAPTER_FILE
    return next(iter(stored_ranks(path).values()), None) if path.is_file() else None


def _registry_entry(unnorm_key: str | None) -> DatasetEntry | None:
    try:
        return None if unnorm_key is None else find_entry(unnorm_key)
    except ValueError:  # a data set of somebody's own, which the flags must describe
        return None


def _platform(
    folder: Path, flags: PolicyFlags, entry: DatasetEntry | None, key: str | None, norm_stats: Mapping[str, Any]
) -> RobotPlatform:
    name = flags.robot_platform or (entry.robot_platform if entry else None)
    if name is not None:
        return get_robot_platform(name)
    if key is None:
        raise ValueError(
            f"{folder} was trained on several data sets; pass --unnorm_key, one of {', '.join(norm_stats)} (to export.py, whose programs "
            "leave it open, --robot_platform)"
        )
    if key not in norm_stats:
        raise ValueError(f"unnorm_key {key!r} is not in the statistics of {folder}; {near_names(key, norm_stats)}")
    width = len(next(iter(norm_stats[key]["action"].values())))
    fitting = [platform.name for platform in ROBOT_PLATFORMS.values() if platform.action_dim == width]
    raise ValueError(
        f"{folder} has no policy.json, and its data set {key!r} is not in the registry, so nothing says which robot it drives; "
        f"pass --robot_platform, for actions of {width} dimensions one of: {', '.join(fitting) or 'none yet, add it to constants.py'}"
    )


def _cameras(flags: PolicyFlags, entry: DatasetEntry | None, folder: Path) -> tuple[str, ...]:
    known = tuple(entry.cameras) if entry else ()
    count = flags.num_images_in_input
    if count is None:
        listed = f" (its data set has {len(known)} cameras: {', '.join(known)})" if known else ""
        raise ValueError(
            f"{folder} has no policy.json, and nothing in it tells how many images the policy takes; pass --num_images_in_input, "
            f"as in training{listed}"
        )
    if count < 1:
        raise ValueError(f"--num_images_in_input is {count}; the policy needs at least the primary camera")
    if known:
        if count > len(known):
            raise ValueError(
                f"--num_images_in_input is {count}, the data set of the checkpoint has {len(known)} cameras: {', '.join(known)}"
            )
        return known[:count]
    if count not in _CAMERAS:
        raise ValueError(
            f"--num_images_in_input is {count}; for a data set outside the registry 1, 2 or 3 are known; add an entry for its cameras"
        )
    return _CAMERAS[count]


def _heads(folder: Path, flags: PolicyFlags) -> HeadSpec:
    action_head = "discrete"
    if has_component(folder, ACTION_HEAD):
        is_diffusion = any(key.startswith("noise_predictor.") for key in read_component(folder, ACTION_HEAD, _META))
        action_head = "diffusion" if is_diffusion else "l1"
        if is_diffusion and not has_component(folder, NOISY_ACTION_PROJECTOR):
            raise ValueError(f"{folder} holds a diffusion head but no {NOISY_ACTION_PROJECTOR}--*checkpoint.pt; copy the whole checkpoint")
    elif flags.action_head != "discrete":
        raise ValueError(
            f"{folder} holds no action_head--*checkpoint.pt. If it is a base model, fine-tune it first; if its actions are tokens, pass "
            "--use_l1_regression False --use_diffusion False; else copy the whole checkpoint"
        )
    steps = (flags.num_diffusion_steps_train or _PUBLISHED_DIFFUSION_STEPS) if action_head == "diffusion" else None
    return HeadSpec(
        action_head=action_head,
        use_proprio=has_component(folder, PROPRIO_PROJECTOR),
        use_film=has_component(folder, VISION_BACKBONE),
        num_diffusion_steps_train=steps,
    )
