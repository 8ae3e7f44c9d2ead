"""Group D: prediction with every head, with and without FiLM, from either form of prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_cases import (
    DENOISING_TOLERANCE,
    FORWARD_TOLERANCE,
    assert_matches,
    load_case,
    load_json,
    load_model,
    load_pixels,
    parametrize_cases,
)

from prismatic.models.action_heads import DiffusionActionHead
from prismatic.models.action_model import ActionInputs
from prismatic.models.diffusion import timestep_embedding
from prismatic.vla.constants import NormalizationType
from prismatic.vla.normalization import bounds_from_statistics, unnormalize
from prismatic.vla.prompts import append_empty_token

_MODES = {"d_l1_": "l1", "d_diffusion_": "diff", "d_discrete_": "disc"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_cases(metafunc, {"case": "*.d_[ld]*", "diffusion_case": "*.d_diffusion_*"})


@torch.no_grad()
def test_prediction(golden_dir: Path, case: str) -> None:
    settings, recorded = load_case(golden_dir, case)
    mode = next(mode for part, mode in _MODES.items() if part in case)
    model = load_model(golden_dir, settings, mode)
    vla = model.bare_vla
    token_ids = vla.config.token_ids
    prompt_ids = torch.tensor([append_empty_token(row, token_ids) for row in recorded["input_ids"].tolist()])
    assert prompt_ids.shape[1] == settings["prompt_len_after_append"]
    proprio = recorded["proprio"][None] if settings["use_proprio"] else None
    inputs = ActionInputs.from_prompts(load_pixels(golden_dir, settings), prompt_ids, None, proprio, model.num_action_tokens, token_ids)

    predicted = model.predict(inputs, recorded.get("initial_noise"), settings.get("num_inference_steps"))[0]
    tolerance = DENOISING_TOLERANCE if mode == "diff" else FORWARD_TOLERANCE
    assert_matches(predicted, recorded["normalized_actions"], "normalised actions", tolerance)
    statistics = load_json(golden_dir, f"{settings['platform']}.dataset_statistics.json")
    bounds = bounds_from_statistics(statistics, settings["unnorm_key"], "action", NormalizationType(settings["normalization"]))
    assert_matches(torch.from_numpy(unnormalize(predicted.numpy(), bounds)), recorded["actions"], "actions", tolerance)

    tokens, embeddings = [vla.encode_images(inputs.pixel_values, inputs.input_ids, None, inputs.slots)], None
    if model.proprio_projector is not None:
        assert proprio is not None
        tokens.append(model.proprio_projector(proprio))
    if model.noisy_action_projector is not None:
        timesteps = recorded["scheduler_timesteps"][:1]
        tokens.append(timestep_embedding(timesteps, vla.config.hidden_size).unsqueeze(1))
        embeddings = model.noisy_action_projector(recorded["initial_noise"].flatten(1))
    sequence = (torch.cat(tokens, dim=1), inputs.input_ids, inputs.attention_mask, inputs.slots, embeddings)
    embedded, mask = vla.embed_sequence(*sequence)
    assert mask is None
    assert embedded.shape[:2] == recorded["lm_attention_mask"].shape
    assert recorded["lm_attention_mask"].all()
    if "lm_inputs_embeds_first_call" in recorded:
        assert_matches(embedded, recorded["lm_inputs_embeds_first_call"], "embeddings")
    start = inputs.slots.start.item() + embedded.shape[1] - inputs.input_ids.shape[1] - 1
    assert [start, start + inputs.slots.count] == settings["action_slice"]
    if mode == "diff":  # the recorded states are those of the last denoising step, checked below through the predicted noise
        return
    states = vla.run_sequence(*sequence).action_states
    assert_matches(states[:, :: settings["action_position_stride"]], recorded["actions_hidden_states"], "action states")
    if mode == "disc":
        logits = vla.language_model.lm_head(states)
        assert torch.equal(logits.argmax(-1), recorded["predicted_token_ids"])
        strided = logits[:, :: settings["action_position_stride"], :: settings["logits_vocab_stride"]]
        assert_matches(strided, recorded["logits_strided"], "logits")


@torch.no_grad()
def test_denoising_steps(golden_dir: Path, diffusion_case: str) -> None:
    settings, recorded = load_case(golden_dir, diffusion_case)
    model = load_model(golden_dir, settings, "diff")
    vla, head = model.bare_vla, model.action_head
    assert isinstance(head, DiffusionActionHead)
    assert_matches(head.schedule.alphas_cumprod, recorded["alphas_cumprod"], "alphas_cumprod")
    num_steps = settings["num_inference_steps"]
    timesteps = head.schedule.timesteps(num_steps)
    assert timesteps == recorded["scheduler_timesteps"].tolist()
    token_ids = vla.config.token_ids
    prompt_ids = torch.tensor([append_empty_token(row, token_ids) for row in recorded["input_ids"].tolist()])
    proprio = recorded["proprio"][None] if settings["use_proprio"] else None
    inputs = ActionInputs.from_prompts(load_pixels(golden_dir, settings), prompt_ids, None, proprio, model.num_action_tokens, token_ids)

    noises: list[torch.Tensor] = []
    states: list[torch.Tensor] = []

    def record(module: torch.nn.Module, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        states.append(arguments[0])
        noises.append(output)

    head.register_forward_hook(record)
    model.predict(inputs, recorded["initial_noise"], num_steps)
    assert len(noises) == num_steps
    # Either every step is recorded or only the first.
    assert_matches(torch.cat(noises)[: len(recorded["noise_preds"])], recorded["noise_preds"], "predicted noise", DENOISING_TOLERANCE)
    noisy, trajectory = recorded["initial_noise"], []
    for noise, timestep in zip(noises, timesteps, strict=True):
        noisy = head.schedule.step(noise, timestep, noisy, num_steps)
        trajectory.append(noisy[0])
    kept = recorded["trajectory_step_index"].tolist()
    assert_matches(torch.stack([trajectory[i] for i in kept]), recorded["trajectory"], "trajectory", DENOISING_TOLERANCE)
    strided = states[-1][:, :: settings["action_position_stride"]]
    assert_matches(strided, recorded["actions_hidden_states"], "action states of the last step", DENOISING_TOLERANCE)
