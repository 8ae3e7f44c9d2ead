"""Reading recorded cases and comparing with them. Nothing here assumes the sizes of one set of recordings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prismatic.models.action_heads import ActionHead, DiffusionActionHead, DiscreteActionHead, L1RegressionActionHead
from prismatic.models.action_model import ActionModel
from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.projectors import NoisyActionProjector, ProprioProjector
from prismatic.models.vla import OpenVLAForActionPrediction

FORWARD_TOLERANCE = 2e-5  # error / max(1, max|expected|) of one forward pass
PUBLISHED_DIFFUSION_STEPS = 50  # where a foreign folder does not record them
DENOISING_TOLERANCE = 1e-3  # of a whole reverse diffusion

Tensors = dict[str, torch.Tensor]


def case_names(config: pytest.Config, pattern: str, without: str = "\0") -> list[str]:
    """Names of the cases that match `pattern` in --golden-dir; where none does, the pattern itself, whose files are then found absent."""
    folder = Path(config.getoption("--golden-dir"))
    names = {path.name.removesuffix(".json") for path in folder.glob(f"{pattern}.json")}
    return sorted(name for name in names if without not in name) or [pattern]


def parametrize_cases(metafunc: pytest.Metafunc, patterns: dict[str, str], without: str = "\0") -> None:
    """For a module's pytest_generate_tests: `patterns` maps fixture names to patterns of case names."""
    for fixture, pattern in patterns.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, case_names(metafunc.config, pattern, without))


def golden_path(folder: Path, name: str) -> Path:
    """The file `name`; a recording that is absent fails the test that needs it."""
    path = folder / name
    if not path.is_file():
        pytest.fail(f"{name} is absent in {folder}; --golden-dir names the folder of the recorded numbers", pytrace=False)
    return path


def load_json(folder: Path, name: str) -> Any:
    return json.loads(golden_path(folder, name).read_text())


def load_tensors(folder: Path, name: str) -> Tensors:
    """Recorded tensors; integers as int64, bfloat16 storage as float32."""
    tensors = load_file(golden_path(folder, f"{name}.safetensors"))
    casts = {torch.int32: torch.int64, torch.bfloat16: torch.float32}
    return {key: value.to(casts.get(value.dtype, value.dtype)) for key, value in tensors.items()}


def load_case(folder: Path, name: str) -> tuple[dict[str, Any], Tensors]:
    """(settings, tensors) of one case."""
    return load_json(folder, f"{name}.json"), load_tensors(folder, name)


def load_config(folder: Path) -> OpenVLAConfig:
    """The recorded tiny model's sizes."""
    recorded = load_json(folder, "vla.config.json")
    towers = []
    for tower in (recorded["dino"], recorded["siglip"]):
        towers.append(
            {
                "image_size": recorded["image_size"],
                "patch_size": recorded["patch_size"],
                "embed_dim": tower["embed_dim"],
                "depth": tower["depth"],
                "num_heads": tower["num_heads"],
                "mlp_hidden_dim": tower.get("mlp_hidden", int(tower["mlp_ratio"] * tower["embed_dim"])),
                "num_register_tokens": tower["reg_tokens"],
                "class_token": tower["class_token"],
                "layer_scale": tower["layer_scale"],
                "attn_pool": not tower["class_token"],
            }
        )
    tokens = recorded["tokens"]
    return OpenVLAConfig(
        vision_towers=towers,
        image_sizes=[recorded["image_size"]] * 2,
        text_config=recorded["text_config"],
        pad_token_id=tokens["pad_token_id"],
        pad_to_multiple_of=tokens["pad_to_multiple_of"],
        empty_token_id=tokens["empty_token_id"],
    )


def load_vla(folder: Path, attn_implementation: str = "sdpa") -> OpenVLAForActionPrediction:
    """The recorded tiny model in float32 evaluation mode."""
    config = load_config(folder)
    config._attn_implementation = attn_implementation
    model = OpenVLAForActionPrediction(config)
    model.load_state_dict(load_tensors(folder, "vla"))
    return model.eval()


def head_weights(folder: Path, platform: str, module: str) -> Tensors:
    prefix = f"{module}/"
    heads = load_tensors(folder, f"{platform}.heads")
    return {key.removeprefix(prefix): value for key, value in heads.items() if key.startswith(prefix)}


def load_model(folder: Path, settings: dict[str, Any], mode: str) -> ActionModel:
    """VLA, the head of `mode` ("l1", "diff" or "disc") and what else the case uses (proprio, FiLM), in float32 evaluation mode."""
    vla = load_vla(folder)
    if settings["film"]:
        vla.add_film()
        vla.vision_backbone.load_state_dict(load_tensors(folder, "film_vision_backbone"))
    shape = (settings["chunk"], settings["action_dim"])
    width, platform = vla.config.hidden_size, settings["platform"]
    projector = noisy_projector = None
    if settings["use_proprio"]:
        weights = head_weights(folder, platform, "proprio_projector")
        projector = ProprioProjector(width, weights["fc1.weight"].shape[1])
        projector.load_state_dict(weights)
    head: ActionHead = DiscreteActionHead(*shape, vla.config.token_ids)
    if mode == "l1":
        head = L1RegressionActionHead(width, *shape)
        head.load_state_dict(head_weights(folder, platform, "l1_action_head"))
    elif mode == "diff":
        scheduler = folder / "c3_ddim_scheduler.json"
        num_steps = json.loads(scheduler.read_text())["config"]["num_train_timesteps"] if scheduler.is_file() else PUBLISHED_DIFFUSION_STEPS
        head = DiffusionActionHead(width, *shape, num_steps)
        head.load_state_dict(head_weights(folder, platform, "diffusion_action_head"))
        noisy_projector = NoisyActionProjector(width)
        noisy_projector.load_state_dict(head_weights(folder, platform, "noisy_action_projector"))
    return ActionModel(vla, head, projector, noisy_projector).eval()


def load_pixels(folder: Path, settings: dict[str, Any]) -> torch.Tensor:
    """The slice of the pixel pool that a case names, for example `pool[:2, :12]`."""
    match = re.search(r"pool\[:(\d+), :(\d+)\]", settings["pixel_values"])
    assert match is not None
    return load_tensors(folder, "pixels")["pool"][: int(match[1]), : int(match[2])]


def assert_matches(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = FORWARD_TOLERANCE) -> None:
    """The largest error, relative to max(1, max|expected|), stays within `tolerance`."""
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, recorded {list(expected.shape)}"
    error = (actual.double() - expected.double()).abs().max().item() / max(1.0, expected.double().abs().max().item())
    assert error <= tolerance, f"{what}: error {error:.2e}, tolerance {tolerance:.0e}"
