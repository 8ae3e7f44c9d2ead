"""Group c3_ddim_scheduler: the noise schedule, a denoising run with a known noise function and the timestep's embedding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_cases import assert_matches, golden_path, load_case, load_tensors

from prismatic.models.diffusion import DDIMSchedule, timestep_embedding

NAME = "c3_ddim_scheduler"


def _load(golden_dir: Path) -> tuple[DDIMSchedule, dict[str, torch.Tensor]]:
    settings, recorded = load_case(golden_dir, NAME)
    return DDIMSchedule(settings["config"]["num_train_timesteps"]), recorded


def test_schedule(golden_dir: Path) -> None:
    schedule, recorded = _load(golden_dir)
    assert_matches(schedule.betas, recorded["betas"], "betas")
    assert_matches(schedule.alphas_cumprod, recorded["alphas_cumprod"], "alphas_cumprod")
    assert recorded["final_alpha_cumprod"].item() == 1.0  # what `step` uses beyond the last timestep
    noisy = schedule.add_noise(recorded["x0"], recorded["noise"], recorded["timesteps"])
    assert_matches(noisy, recorded["noisy"], "noisy actions")


def test_denoising(golden_dir: Path, num_steps: int) -> None:
    schedule, recorded = _load(golden_dir)
    timesteps = schedule.timesteps(num_steps)
    assert timesteps == recorded[f"timesteps_{num_steps}"].tolist()
    x = recorded["noise"][:1]
    for i, timestep in enumerate(timesteps):
        x = schedule.step(torch.sin(3 * x + timestep / 10), timestep, x, num_steps)
        if i == 0:
            assert_matches(x, recorded[f"step1_{num_steps}"], "first step")
    assert_matches(x, recorded[f"final_{num_steps}"], "last step", 1e-3 if num_steps > 10 else 2e-5)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "num_steps" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--golden-dir"))
        path = folder / f"{NAME}.safetensors"
        keys = load_tensors(folder, NAME) if path.is_file() else {"timesteps_50": None}
        counts = sorted(int(key.removeprefix("timesteps_")) for key in keys if key.startswith("timesteps_"))
        metafunc.parametrize("num_steps", counts)


def test_timestep_embedding(golden_dir: Path) -> None:
    golden_path(golden_dir, f"{NAME}.safetensors")
    _, recorded = _load(golden_dir)
    expected = recorded["time_embedding"]
    assert_matches(timestep_embedding(recorded["time_embedding_t"], expected.shape[-1]), expected, "embedding")
