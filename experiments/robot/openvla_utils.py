"""The familiar functions of evaluation scripts, each a line or two over `prismatic.policy`.

    cfg = GenerateConfig(pretrained_checkpoint="runs/my-run--10000_chkpt")
    vla = get_vla(cfg)
    actions = get_vla_action(cfg, vla, get_processor(cfg), obs, "pick up the cup", get_action_head(cfg, vla.llm_dim), ...)

New code needs none of them: `Policy.from_pretrained(folder).predict([observation])`. A configuration object may be any that has some of
the fields of `GenerateConfig`; a field that contradicts the checkpoint is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from torch import nn

from prismatic.models.processor import PrismaticProcessor
from prismatic.policy.checkpoint.files import policy_files
from prismatic.policy.checkpoint.flags import PolicyFlags
from prismatic.policy.checkpoint.loading import LoadOptions
from prismatic.policy.inference.quantization import choose_quantization
from prismatic.policy.policy import Policy
from prismatic.vla.cameras import SENT_KEYS
from prismatic.vla.types import Observation

_IN_OTHER_UNITS: WeakKeyDictionary[Policy, dict[str, Policy]] = WeakKeyDictionary()  # data set -> the same model in its units


class HasCheckpoint(Protocol):
    """What every configuration object has."""

    @property
    def pretrained_checkpoint(self) -> str | Path: ...


@dataclass
class GenerateConfig:
    """Which checkpoint to act with; what stays None is read from it."""

    pretrained_checkpoint: str | Path = ""
    unnorm_key: str | None = None
    robot_platform: str | None = None
    num_images_in_input: int | None = None
    use_l1_regression: bool | None = None
    use_diffusion: bool | None = None
    num_diffusion_steps_train: int | None = None
    num_diffusion_steps_inference: int | None = None
    use_film: bool | None = None
    use_proprio: bool | None = None
    lora_rank: int | None = None
    center_crop: bool | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    engine: str = "auto"  # see prismatic/policy/inference/engine.py


def get_vla(cfg: HasCheckpoint) -> Policy:
    """The policy of `cfg.pretrained_checkpoint`; asked again with the same settings, the same object.

    Raises:
        ValueError: no checkpoint is named, it is damaged, or a setting contradicts it.
    """
    if not cfg.pretrained_checkpoint:
        raise ValueError("pretrained_checkpoint is empty; set it to a checkpoint folder or Hub id")
    known = {item.name for item in fields(PolicyFlags)}
    flags = PolicyFlags(**{name: getattr(cfg, name) for name in known if hasattr(cfg, name)})
    in_8bit, in_4bit = getattr(cfg, "load_in_8bit", False), getattr(cfg, "load_in_4bit", False)
    quantization = choose_quantization(in_8bit, in_4bit, getattr(cfg, "quantization", "none"))
    options = LoadOptions(flags, quantization=quantization, engine=getattr(cfg, "engine", "auto"))
    folder = Path(cfg.pretrained_checkpoint).expanduser()
    files = policy_files(folder) if folder.is_dir() else []
    stamp = tuple(number for path in files for number in (path.stat().st_size, path.stat().st_mtime_ns))
    return _load(str(cfg.pretrained_checkpoint), getattr(cfg, "unnorm_key", None) or None, options, stamp)


@lru_cache(maxsize=1)
def _load(checkpoint: str, unnorm_key: str | None, options: LoadOptions, stamp: tuple[int, ...]) -> Policy:
    """`stamp` changes where a training has saved into the folder meanwhile."""
    return Policy.from_pretrained(checkpoint, unnorm_key=unnorm_key, options=options)


def get_processor(cfg: HasCheckpoint) -> PrismaticProcessor:
    """Image processor and tokenizer of the checkpoint."""
    return get_vla(cfg).parts.processor


def get_action_head(cfg: HasCheckpoint, llm_dim: int) -> nn.Module:
    """The checkpoint's action head, loaded already."""
    return get_vla(cfg).parts.model.action_head


def get_proprio_projector(cfg: HasCheckpoint, llm_dim: int, proprio_dim: int) -> nn.Module | None:
    """The checkpoint's projector of the robot's state, loaded already; None if it has none."""
    return get_vla(cfg).parts.model.proprio_projector


def get_noisy_action_projector(cfg: HasCheckpoint, llm_dim: int) -> nn.Module | None:
    """The checkpoint's projector of noisy actions, loaded already; None unless it is a diffusion policy."""
    return get_vla(cfg).parts.model.noisy_action_projector


def get_vla_action(
    cfg: HasCheckpoint,
    vla: Policy,
    processor: PrismaticProcessor,
    obs: Mapping[str, Any],
    task_label: str,
    action_head: nn.Module | None = None,
    proprio_projector: nn.Module | None = None,
    noisy_action_projector: nn.Module | None = None,
    use_film: bool = False,
) -> list[np.ndarray]:
    """The next actions, one array [action_dim] in the robot's units per step of the chunk; `obs` stays as it is.

    `obs` holds full_image, the wrist images that the policy takes, and state. The other arguments are accepted because scripts pass
    them; the policy has its own. `cfg.unnorm_key` may have been set after `get_vla`, as published scripts do.

    Raises:
        ValueError: a head or projector of another checkpoint, a data set that it does not know, or an observation that does not fit.
    """
    model = vla.parts.model
    for name, given, own in (
        ("action_head", action_head, model.action_head),
        ("proprio_projector", proprio_projector, model.proprio_projector),
        ("noisy_action_projector", noisy_action_projector, model.noisy_action_projector),
    ):
        if given is not None and given is not own:
            raise ValueError(f"{name} is not that of the policy; take it from get_{name}(cfg, ...) with the same cfg, or leave it out")
    policy = _in_units(vla, getattr(cfg, "unnorm_key", None) or vla.unnorm_key)
    return list(policy.predict([to_observation(obs, task_label)])[0].actions)


def _in_units(vla: Policy, unnorm_key: str) -> Policy:
    """`vla` in the units of the data set `unnorm_key`; for each the same object every time, with its own noise and its own warnings."""
    if unnorm_key == vla.unnorm_key:
        return vla
    others = _IN_OTHER_UNITS.setdefault(vla, {})
    if unnorm_key not in others:
        others[unnorm_key] = vla.with_unnorm_key(unnorm_key)
    return others[unnorm_key]


def to_observation(obs: Mapping[str, Any], task_label: str) -> Observation:
    """An observation in the form of evaluation scripts (see `SENT_KEYS`, and "state") as an `Observation`."""
    images = {camera: np.asarray(obs[key]) for camera, key in SENT_KEYS.items() if key in obs}
    state = obs.get("state")
    return Observation(images=images, instruction=task_label, proprio=None if state is None else np.asarray(state, np.float64))
