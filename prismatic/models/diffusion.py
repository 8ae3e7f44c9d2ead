"""Denoising diffusion of normalised actions: the noise schedule, DDIM steps and the timestep's embedding.

Letters: x noisy actions, x0 clean ones, eps the noise; t timestep, a_t the share of signal left at t (alphas_cumprod).

    x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps

Cosine schedule: Nichol & Dhariwal 2021 (arXiv:2102.09672, eq. 17, betas at most 0.999). Deterministic steps: DDIM, Song et al.
2020 (arXiv:2010.02502, eq. 12, eta 0); x0 is clipped to [-1, 1] and eps is not computed again from the clipped x0, as published
(golden group c3_ddim_scheduler).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

_OFFSET = 0.008
_MAX_BETA = 0.999


@dataclass(frozen=True)
class DDIMSchedule:
    """The cosine schedule over `num_train_steps` timesteps."""

    num_train_steps: int = 50

    def __post_init__(self) -> None:
        if self.num_train_steps < 1:
            raise ValueError(f"num_diffusion_steps_train is {self.num_train_steps}; it must be at least 1")

    @property
    def betas(self) -> torch.Tensor:
        """float32 [num_train_steps]: variance that each timestep adds."""

        def signal(time: float) -> float:
            return math.cos((time + _OFFSET) / (1 + _OFFSET) * math.pi / 2) ** 2

        count = self.num_train_steps
        return torch.tensor([min(1 - signal((t + 1) / count) / signal(t / count), _MAX_BETA) for t in range(count)])

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """float32 [num_train_steps]: a_t."""
        return torch.cumprod(1 - self.betas, dim=0)

    def timesteps(self, num_steps: int) -> list[int]:
        """The timesteps that `num_steps` denoising steps visit, highest first ("leading" spacing: multiples of T // num_steps).

        Raises:
            ValueError: more steps than the model was trained with, or none.
        """
        if not 1 <= num_steps <= self.num_train_steps:
            raise ValueError(
                f"{num_steps} denoising steps; choose 1 to {self.num_train_steps}, the number that the policy was trained with"
            )
        return [i * (self.num_train_steps // num_steps) for i in reversed(range(num_steps))]

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t [B, ...] of clean actions and noise [B, ...] at timesteps int64 [B]."""
        share = _shares_on(self, clean.device)[timesteps].view(-1, *[1] * (clean.ndim - 1))
        return share.sqrt() * clean + (1 - share).sqrt() * noise

    def step(self, noise: torch.Tensor, timestep: int, noisy: torch.Tensor, num_steps: int) -> torch.Tensor:
        """x at the next of `num_steps` timesteps, from x at `timestep` and the noise predicted there."""
        return ddim_step(noise, noisy, *self._shares(timestep, num_steps))

    def table(self, num_steps: int) -> torch.Tensor:
        """float32 [num_steps, 3]: each step's timestep, its share of signal and the next one's, for `ddim_step`."""
        rows = [torch.stack([torch.tensor(float(t)), *self._shares(t, num_steps)]) for t in self.timesteps(num_steps)]
        return torch.stack(rows)

    def _shares(self, timestep: int, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        shares = torch.cat([self.alphas_cumprod, torch.ones(1)])  # beyond the last step (index -1) nothing but signal is left
        return shares[timestep], shares[max(timestep - self.num_train_steps // num_steps, -1)]


@lru_cache(maxsize=8)
def _shares_on(schedule: DDIMSchedule, device: torch.device) -> torch.Tensor:
    """float32 [num_train_steps]: a_t; kept, because a CUDA graph cannot upload them."""
    with torch.inference_mode(False):
        return schedule.alphas_cumprod.to(device)


def ddim_step(noise: torch.Tensor, noisy: torch.Tensor, share: torch.Tensor, next_share: torch.Tensor) -> torch.Tensor:
    """x where the share of signal is `next_share`, from x where it is `share` and the noise predicted there."""
    clean = ((noisy - (1 - share).sqrt() * noise) / share.sqrt()).clamp(-1, 1)
    return next_share.sqrt() * clean + (1 - next_share).sqrt() * noise


def timestep_embedding(timesteps: torch.Tensor, dim: int) -> torch.Tensor:
    """[sin | cos] of timesteps [B] at dim/2 frequencies, float32 [B, dim]; the last frequency is 1/10000 (Vaswani et al. 2017)."""
    half = dim // 2
    exponents = torch.arange(half, device=timesteps.device, dtype=torch.float32) / (half - 1)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
