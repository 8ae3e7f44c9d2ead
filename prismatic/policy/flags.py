"""What a user says about a checkpoint: needed where it does not describe itself, checked against policy.json where it does.

A published OFT folder has no policy.json. Its files tell the action head, FiLM, proprio and the adapters' rank; its statistics name
the data set, whose registry entry tells platform and cameras. How many images it takes stands nowhere: that flag is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prismatic.policy.adapters import lora_rank
from prismatic.policy.files import ACTION_HEAD, NOISY_ACTION_PROJECTOR, PROPRIO_PROJECTOR, VISION_BACKBONE, has_component, read_component
from prismatic.policy.spec import HeadSpec, LoraSpec, PolicySpec
from prismatic.vla.constants import ROBOT_PLATFORMS, RobotPlatform, get_robot_platform
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry, find_entry
from prismatic.vla.images import ImageRecipe

_PUBLISHED_DIFFUSION_STEPS = 50
_CAMERAS = {1: ("primary",), 2: ("primary", "wrist"), 3: ("primary", "left_wrist", "right_wrist")}


@dataclass(frozen=True)
class PolicyFlags:
    """The familiar flags of evaluation and serving; None: not said."""

    robot_platform: str | None = None  # a name of prismatic/vla/constants.py
    num_images_in_input: int | None = None
    use_l1_regression: bool | None = None
    use_diffusion: bool | None = None
    num_diffusion_steps_train: int | None = None
    num_diffusion_steps_inference: int | None = None  # may always be chosen
    use_film: bool | None = None
    use_proprio: bool | None = None
    lora_rank: int | None = None
    center_crop: bool | None = None
    published_normalization: bool | None = None  # may always be chosen

    @property
    def action_head(self) -> str | None:
        """The head that the flags name; None if they leave it open.

        Raises:
            ValueError: they name two.
        """
        if self.use_l1_regression and self.use_diffusion:
            raise ValueError("--use_l1_regression and --use_diffusion are both True; a checkpoint has one action head")
        if self.use_l1_regression:
            return "l1"
        if self.use_diffusion:
            return "diffusion"
        return "discrete" if self.use_l1_regression is False and self.use_diffusion is False else None


def apply_flags(spec: PolicySpec, flags: PolicyFlags, source: str) -> PolicySpec:
    """`spec` with what may be chosen freely; `source` names the checkpoint.

    Raises:
        ValueError: a flag contradicts the checkpoint; every such flag is listed.
    """
    head = spec.heads.action_head
    facts: dict[str, Any] = {
        "robot_platform": spec.platform.name,
        "num_images_in_input": len(spec.cameras),
        "use_l1_regression": head == "l1",
        "use_diffusion": head == "diffusion",
        "num_diffusion_steps_train": spec.heads.num_diffusion_steps_train,
        "use_film": spec.heads.use_film,
        "use_proprio": spec.heads.use_proprio,
        "lora_rank": spec.lora.rank if spec.lora else None,
        "center_crop": spec.image.center_crop,
    }
    said = {name: getattr(flags, name) for name in facts}
    if head != "diffusion":
        said["num_diffusion_steps_train"] = None  # a default of the familiar commands, without meaning here
    if spec.lora is None:
        said["lora_rank"] = None
    wrong = [
        f"--{name} {value} (the checkpoint: {facts[name]})"
        for name, value in said.items()
        if value is not None and str(value).upper() != str(facts[name]).upper()
    ]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}: contradicts {source}. Leave the flag out: the checkpoint describes itself")
    heads = spec.heads
    if head == "diffusion" and flags.num_diffusion_steps_inference is not None:
        heads = replace(heads, num_diffusion_steps_inference=flags.num_diffusion_steps_inference)
    published = spec.published_normalization if flags.published_normalization is None else flags.published_normalization
    return replace(spec, heads=heads, published_normalization=published)


def describe_published(
    folder: Path, flags: PolicyFlags, image_size: int, norm_stats: Mapping[str, Any], unnorm_key: str | None
) -> PolicySpec:
    """The specification of a published OFT folder, out of its files and the flags.

    Raises:
        ValueError: something stands neither in the files nor in the flags, or both contradict each other; the message lists the choices.
    """
    key = unnorm_key or (next(iter(norm_stats)) if len(norm_stats) == 1 else None)
    entry = _registry_entry(key)
    platform = _platform(folder, flags, entry, key, norm_stats)
    cameras = _cameras(flags, entry, folder)
    rank = None
    if has_component(folder, VISION_BACKBONE):
        rank = lora_rank(read_component(folder, VISION_BACKBONE))
    elif flags.lora_rank is not None:
        rank = flags.lora_rank
    spec = PolicySpec(
        platform=platform,
        cameras=cameras,
        image=ImageRecipe(size=image_size, jpeg_round_trip=True, center_crop=flags.center_crop is not False),
        unnorm_key=key,
        heads=_heads(folder, flags),
        lora=None if rank is None else LoraSpec(rank),
        provenance={"note": "a published checkpoint without policy.json"},
    )
    return apply_flags(spec, flags, f"the files of {folder}")


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
        raise ValueError(f"{folder} was trained on several data sets; pass --unnorm_key, one of {', '.join(norm_stats)}")
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
        is_diffusion = any(key.startswith("noise_predictor.") for key in read_component(folder, ACTION_HEAD))
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
