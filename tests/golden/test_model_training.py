"""Groups C1, C2, C3 and C5: every head and FiLM in a training step: states, predictions, loss, metrics and gradients.

FiLM: the published code averages padding into the instruction's embedding, ours does not (tests/unit/test_film.py shows what that
buys). The rows without padding must agree as they are; the whole batch agrees once the published average is put in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import (
    DENOISING_TOLERANCE,
    FORWARD_TOLERANCE,
    Tensors,
    assert_matches,
    load_case,
    load_model,
    load_pixels,
    parametrize_cases,
)
from torch.nn import functional as F

from prismatic.models import vla as vla_module
from prismatic.models.action_heads import DiffusionActionHead, DiscreteActionHead
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.diffusion import timestep_embedding
from prismatic.models.sequence import mean_prompt_embedding, slots_from_labels
from prismatic.training.objectives import Objective, action_errors, diffusion_objective, discrete_objective, l1_objective, slot_targets


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    patterns = {"case": "*.c[1235]_*", "film_case": "*.c5_film_*_pad_*"}
    patterns |= {"diffusion_case": "*.c[35]*_diffusion_*", "sampling_case": "*.c3_diffusion_*_proprio"}
    parametrize_cases(metafunc, patterns)


@dataclass(frozen=True)
class Case:
    settings: dict[str, Any]
    recorded: Tensors
    model: ActionModel
    inputs: ActionInputs

    @classmethod
    def load(cls, folder: Path, name: str) -> Case:
        settings, recorded = load_case(folder, name)
        model = load_model(folder, settings, settings["mode"])
        slots = slots_from_labels(recorded["labels"], model.num_action_tokens, model.bare_vla.config.token_ids)
        optional = (recorded.get(key) for key in ("proprio", "noisy_actions", "timesteps"))
        pixels = load_pixels(folder, settings)
        return cls(settings, recorded, model, ActionInputs(pixels, recorded["input_ids"], recorded["attention_mask"], slots, *optional))

    def objective(self, output: torch.Tensor) -> Objective:
        head, recorded = self.model.action_head, self.recorded
        if isinstance(head, DiffusionActionHead):
            return diffusion_objective(output, recorded["noise"])
        if isinstance(head, DiscreteActionHead):
            token_ids = self.model.bare_vla.config.token_ids
            return discrete_objective(output, slot_targets(recorded["labels"], self.model.num_action_tokens, token_ids), head)
        return l1_objective(output, recorded["actions"])

    def states(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(action states, all hidden states, number of inserted tokens)."""
        model, inputs, vla = self.model, self.inputs, self.model.bare_vla
        tokens = [vla.encode_images(inputs.pixel_values, inputs.input_ids, inputs.attention_mask, inputs.slots)]
        if model.proprio_projector is not None:
            tokens.append(model.proprio_projector(self.recorded["proprio"]))
        embeddings = None
        if model.noisy_action_projector is not None:
            tokens.append(self.recorded["diffusion_timestep_embeddings"])
            embeddings = model.noisy_action_projector(self.recorded["noisy_actions"].flatten(1))
        output = vla.run_sequence(torch.cat(tokens, dim=1), inputs.input_ids, inputs.attention_mask, inputs.slots, embeddings)
        return output.action_states, output.hidden_states, output.num_inserted


@pytest.fixture
def published_film_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vla_module, "mean_prompt_embedding", lambda text, mask, slots: mean_prompt_embedding(text, None, slots))


@pytest.mark.usefixtures("published_film_mean")
def test_step(golden_dir: Path, case: str) -> None:
    loaded = Case.load(golden_dir, case)
    settings, recorded, model = loaded.settings, loaded.recorded, loaded.model
    assert torch.equal(loaded.inputs.slots.mask(recorded["labels"].shape[1])[:, 1:], recorded["mask_shifted_actions"])
    output = model(loaded.inputs)
    objective = loaded.objective(output)
    assert_matches(objective.loss[None], recorded["loss"], "loss")
    metrics = dict(objective.metrics)
    if settings["mode"] == "l1":
        assert_matches(output, recorded["predicted_actions"], "predicted actions")
    if settings["mode"] == "diff":
        assert_matches(output, recorded["noise_pred"], "predicted noise")
        if "sampled_actions" in recorded:
            sampled = model.predict(loaded.inputs, noise=recorded["sampling_initial_noise"])
            metrics |= action_errors(sampled, recorded["actions"])
    metrics["loss_value"] = metrics.pop("loss")
    for name in metrics.keys() & settings["metrics"].keys():
        tolerance = DENOISING_TOLERANCE if settings["mode"] == "diff" else FORWARD_TOLERANCE
        assert_matches(metrics[name].detach(), torch.tensor(settings["metrics"][name]), name, tolerance)
    if settings["mode"] != "diff" or "sampled_actions" in recorded:
        assert metrics.keys() == settings["metrics"].keys()

    if settings.get("grad_l2_norms"):
        objective.loss.backward()
        if settings["film"]:  # the published embedding layer gives its padding row no gradient; ours never uses that row
            embedding = model.bare_vla.language_model.model.embed_tokens.weight
            assert embedding.grad is not None
            embedding.grad[model.bare_vla.config.token_ids.pad] = 0
        _check_gradients(settings["grad_l2_norms"], model)


def _check_gradients(recorded: dict[str, float | None], model: ActionModel) -> None:
    modules = {"vla": model.bare_vla, "action_head": model.action_head, "proprio_projector": model.proprio_projector}
    found = {
        f"{name}/{key}": None if parameter.grad is None else parameter.grad.norm()
        for name, module in modules.items()
        if module is not None
        for key, parameter in module.named_parameters()
    }
    assert set(found) == set(recorded)
    assert {key for key, norm in found.items() if norm is None} == {key for key, norm in recorded.items() if norm is None}
    for key, norm in found.items():
        if norm is not None:
            assert_matches(norm, torch.tensor(recorded[key]), f"gradient of {key}")


@pytest.mark.usefixtures("published_film_mean")
@torch.no_grad()
def test_states(golden_dir: Path, case: str) -> None:
    loaded = Case.load(golden_dir, case)
    settings, recorded, vla = loaded.settings, loaded.recorded, loaded.model.bare_vla
    states, hidden, num_inserted = loaded.states()
    stride = settings["action_position_stride"]
    key = "last_hidden_at_actions" if settings["mode"] == "disc" else "actions_hidden_states"
    assert_matches(states[:, ::stride], recorded[key], "action states")
    first = recorded["last_hidden_first_positions"]
    assert_matches(hidden[:, : first.shape[1]], first, "first hidden states")
    assert num_inserted == settings["num_patches_arg"]
    lm_head = vla.language_model.lm_head
    logits = lm_head(states)
    assert torch.equal(logits.argmax(-1), recorded["logits_argmax_at_actions"])
    if "logits_at_actions_strided" in recorded:
        strided = logits[:, ::stride, :: settings["logits_vocab_stride"]]
        assert_matches(strided, recorded["logits_at_actions_strided"], "logits")
    cross_entropy = F.cross_entropy(lm_head(hidden[:, num_inserted:-1]).flatten(0, 1), recorded["labels"][:, 1:].flatten())
    assert_matches(cross_entropy[None], recorded["language_model_ce_loss"], "cross-entropy")


@torch.no_grad()
def test_timestep_embedding(golden_dir: Path, diffusion_case: str) -> None:
    _, recorded = load_case(golden_dir, diffusion_case)
    expected = recorded["diffusion_timestep_embeddings"]
    assert_matches(timestep_embedding(recorded["timesteps"], expected.shape[-1]).unsqueeze(1), expected, "timestep embedding")


@torch.no_grad()
def test_sampling_in_a_padded_batch(golden_dir: Path, sampling_case: str) -> None:
    loaded = Case.load(golden_dir, sampling_case)
    recorded = loaded.recorded
    sampled = loaded.model.predict(loaded.inputs, noise=recorded["sampling_initial_noise"])
    assert_matches(sampled, recorded["sampled_actions"], "sampled actions", DENOISING_TOLERANCE)


@torch.no_grad()
def test_film_rows_without_padding(golden_dir: Path, film_case: str) -> None:
    loaded = Case.load(golden_dir, film_case)
    full = loaded.recorded["attention_mask"].all(dim=1)
    assert full.any()
    assert not full.all()
    states, _, _ = loaded.states()
    stride = loaded.settings["action_position_stride"]
    key = "last_hidden_at_actions" if loaded.settings["mode"] == "disc" else "actions_hidden_states"
    assert_matches(states[full, ::stride], loaded.recorded[key][full], "action states")
