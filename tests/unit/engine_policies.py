"""Tiny METAWORLD policies with random weights, one per kind of head, and observations for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from prismatic.models.base import random_weights, tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.models.processor import PrismaticImageProcessor, PrismaticProcessor
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.parts import PolicyParts, build_action_model
from prismatic.policy.checkpoint.spec import HeadSpec, PolicySpec
from prismatic.policy.policy import Policy
from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.images import ImageRecipe
from prismatic.vla.types import Observation

SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=2, llm_heads=2, llm_mlp_dim=64)
HEADS = {
    "l1": HeadSpec(use_proprio=True),
    "film": HeadSpec(use_proprio=True, use_film=True),
    "discrete": HeadSpec("discrete"),
    "diffusion": HeadSpec("diffusion", num_diffusion_steps_train=10, num_diffusion_steps_inference=3),
}
INSTRUCTIONS = ("lift", "push the block", "slowly push the small red block to the left of the big green bowl")


def make_parts(head: str, backbone: str = "llama") -> PolicyParts:
    """A METAWORLD policy with random weights, the same in every call."""
    config, tokenizer = tiny_base(replace(SIZES, backbone=backbone))
    vla = OpenVLAForActionPrediction(config)
    vla.load_state_dict(random_weights(config, seed=0))
    torch.manual_seed(1)
    if HEADS[head].use_film:
        vla.add_film()
    platform, image, prompt = ROBOT_PLATFORMS["METAWORLD"], ImageRecipe(28, center_crop=True), config.token_ids.prompt_template
    spec = PolicySpec(platform, ("primary", "wrist"), image, "arm", HEADS[head], prompt=prompt)
    model = build_action_model(vla, config, spec).eval().requires_grad_(False)
    bounds = {"min": [-1.0] * 4, "max": [1.0] * 4, "q01": [-1.0] * 4, "q99": [1.0] * 4}
    processor = PrismaticProcessor(PrismaticImageProcessor(28), tokenizer, {})
    return PolicyParts(model, config, processor, spec, {"arm": {"action": bounds, "proprio": bounds}})


def make_observations(count: int, wrist_size: tuple[int, int] = (30, 40)) -> list[Observation]:
    rng = np.random.default_rng(count)

    def image(size: tuple[int, int]) -> np.ndarray:
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8)

    return [
        Observation({"primary": image((30, 40)), "wrist": image(wrist_size)}, INSTRUCTIONS[i % 3], rng.uniform(-1, 1, 4))
        for i in range(count)
    ]


def predict(policy: Policy, observations: list[Observation]) -> np.ndarray:
    return np.stack([chunk.actions for chunk in policy.predict(observations, seeds=range(len(observations)))])
