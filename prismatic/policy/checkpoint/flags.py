"""What a user says about a checkpoint: needed where it does not describe itself, checked against policy.json where it does.

This module loads no torch, so that the command line answers at once; `published.py` reads what a published folder's files tell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from prismatic.policy.checkpoint.spec import PolicySpec


@dataclass(frozen=True)
class PolicyFlags:
    """The familiar flags of evaluation and serving; None: not said."""

    # A published checkpoint only: ours says all of this itself, and a flag that contradicts it is refused
    robot_platform: str | None = None  # a name of prismatic/vla/constants.py
    num_images_in_input: int | None = None  # cameras, as in training
    use_l1_regression: bool | None = None  # as in training
    use_diffusion: bool | None = None  # as in training
    num_diffusion_steps_train: int | None = None  # diffusion only: as in training
    num_diffusion_steps_inference: int | None = None  # diffusion only: may always be chosen
    use_film: bool | None = None  # as in training
    use_proprio: bool | None = None  # as in training
    lora_rank: int | None = None  # as in training
    center_crop: bool | None = None  # True after training with image augmentation
    published_normalization: bool | None = None  # constant dimensions as in the published code; may always be chosen

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
