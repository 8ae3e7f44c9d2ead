"""FiLM listens to the prompt alone: neither padding nor the slots for actions change what the towers see."""

from __future__ import annotations

import pytest
import torch

from prismatic.models.action_heads import ActionHead, DiffusionActionHead, DiscreteActionHead, L1RegressionActionHead
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.base import random_weights
from prismatic.models.configuration import TinySizes, tiny
from prismatic.models.projectors import NoisyActionProjector, ProprioProjector
from prismatic.models.vla import OpenVLAForActionPrediction

SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=2, llm_dim=32, llm_layers=2, llm_heads=2, llm_mlp_dim=64)
CONFIG = tiny(SIZES, base_vocab_size=600, empty_token_id=300)
CHUNK, ACTION_DIM, PROPRIO_DIM, WIDTH = 3, 5, 4, SIZES.llm_dim


def _model(kind: str, film: bool) -> ActionModel:
    vla = OpenVLAForActionPrediction(CONFIG)
    vla.load_state_dict(random_weights(CONFIG, seed=0))
    torch.manual_seed(1)
    if film:
        vla.add_film()
    head: ActionHead = L1RegressionActionHead(WIDTH, CHUNK, ACTION_DIM)
    if kind == "diffusion":
        head = DiffusionActionHead(WIDTH, CHUNK, ACTION_DIM, 10)
    if kind == "discrete":
        head = DiscreteActionHead(CHUNK, ACTION_DIM, CONFIG.token_ids)
    noisy = NoisyActionProjector(WIDTH) if kind == "diffusion" else None
    return ActionModel(vla, head, ProprioProjector(WIDTH, PROPRIO_DIM), noisy).eval()


def _inputs(prompts: list[list[int]], num_images: int) -> ActionInputs:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(2, 6 * num_images, 28, 28, generator=generator)[-len(prompts) :]
    proprio = torch.randn(2, PROPRIO_DIM, generator=generator)[-len(prompts) :]
    length = max(map(len, prompts))
    ids = torch.tensor([prompt + [CONFIG.token_ids.pad] * (length - len(prompt)) for prompt in prompts])
    mask = ids != CONFIG.token_ids.pad
    return ActionInputs.from_prompts(pixels, ids, mask, proprio, CHUNK * ACTION_DIM, CONFIG.token_ids)


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("kind", ["l1", "diffusion", "discrete"])
@pytest.mark.parametrize("num_images", [1, 4])
def test_a_sample_is_the_same_alone_and_in_a_padded_batch(kind: str, film: bool, num_images: int) -> None:
    model = _model(kind, film)
    long, short = [1, 40, 41, 42, 43, 44, 300], [1, 50, 51, 300]
    noise = torch.randn(2, CHUNK, ACTION_DIM, generator=torch.Generator().manual_seed(3))
    together = model.predict(_inputs([long, short], num_images), noise, 5)
    alone = model.predict(_inputs([short], num_images), noise[1:], 5)
    assert together.shape == (2, CHUNK, ACTION_DIM)
    torch.testing.assert_close(together[1:], alone, atol=2e-5, rtol=1e-4)


def test_the_instruction_changes_what_the_towers_see() -> None:
    model = _model("l1", film=True)
    images = []
    for word in (40, 41):
        inputs = _inputs([[1, word, 300]], 2)
        images.append(model.bare_vla.encode_images(inputs.pixel_values, inputs.input_ids, None, inputs.slots))
    assert (images[0] - images[1]).abs().max() > 1e-4


def test_a_diffusion_model_refuses_to_guess_its_noise() -> None:
    with pytest.raises(ValueError, match="must hold noisy_actions and timesteps"):
        _model("diffusion", film=False)(_inputs([[1, 40, 300]], 1))


@pytest.mark.parametrize("num_steps", [0, 11])
def test_an_impossible_number_of_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"{num_steps} denoising steps; choose 1 to 10"):
        _model("diffusion", film=False).action_head.schedule.timesteps(num_steps)  # type: ignore[union-attr, operator]
