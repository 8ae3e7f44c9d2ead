"""Writes a checkpoint of a tiny policy that has learnt nothing, for smoke runs and benchmarks: everything but success can be seen with it.

python scripts/make_untrained_policy.py --output_dir runs/untrained_libero --robot_platform LIBERO
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismatic.cli import run_script
from prismatic.models.sizes import TinySizes
from prismatic.policy.checkpoint.spec import HeadSpec, PolicySpec
from prismatic.vla.cameras import ONE_ARM, TWO_ARMS
from prismatic.vla.constants import get_robot_platform
from prismatic.vla.images import ImageRecipe

_STATISTICS_NAME = "untrained"


@dataclass(frozen=True)
class UntrainedConfig(TinySizes):
    """A tiny policy with random weights."""

    # What to write
    output_dir: Path = Path("runs/untrained_libero")  # a folder that does not exist yet
    robot_platform: str = "LIBERO"  # whose shapes the actions have
    action_head: str = "l1"  # l1, diffusion or discrete
    seed: int = 7  # of the random weights


def main(config: UntrainedConfig) -> None:
    """Entry point."""
    import torch

    from prismatic.models.base import write_tiny_base
    from prismatic.policy.checkpoint.loading import load_base
    from prismatic.policy.checkpoint.parts import PolicyParts, build_action_model
    from prismatic.policy.checkpoint.saving import save_policy

    if config.output_dir.exists():
        raise ValueError(f"--output_dir {config.output_dir} exists already; choose another folder, or delete it first")
    platform = get_robot_platform(config.robot_platform)
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_base(Path(folder) / "base", config, config.seed)
        base = load_base(Path(folder) / "base", torch.float32)
    steps = 50 if config.action_head == "diffusion" else None
    spec = PolicySpec(
        platform=platform,
        cameras=TWO_ARMS if platform.name == "ALOHA" else ONE_ARM,
        image=ImageRecipe(size=config.image_size, jpeg_round_trip=True, center_crop=True),
        unnorm_key=_STATISTICS_NAME,
        heads=HeadSpec(action_head=config.action_head, use_proprio=True, num_diffusion_steps_train=steps),
        prompt=base.vla.config.token_ids.prompt_template,
        provenance={"note": "random weights, made by scripts/make_untrained_policy.py"},
    )
    torch.manual_seed(config.seed)
    model = build_action_model(base.vla, base.vla.config, spec).eval()
    statistics = {_STATISTICS_NAME: {"action": _bounds(platform.action_dim), "proprio": _bounds(platform.proprio_dim)}}
    config.output_dir.mkdir(parents=True)
    save_policy(PolicyParts(model, base.vla.config, base.processor, spec, statistics), config.output_dir, step=None)
    print(f"wrote {config.output_dir}")


def _bounds(dim: int) -> dict[str, Any]:
    return {"min": [-1.0] * dim, "max": [1.0] * dim, "q01": [-1.0] * dim, "q99": [1.0] * dim}


if __name__ == "__main__":
    run_script(main, UntrainedConfig)
