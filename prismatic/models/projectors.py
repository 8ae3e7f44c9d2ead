"""Small MLPs that bring vision features, proprioception and noisy actions to the width of the language model.

Letters: B batch, P patches, K action slots, D width of the language model, V width of the vision features.
Every GELU is the exact (erf) one.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class VisionProjector(nn.Module):
    """Vision features [B, P, V] -> tokens [B, P, D]."""

    def __init__(self, vision_dim: int, llm_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class ProprioProjector(nn.Module):
    """Normalised proprioception [B, proprio_dim] -> one token [B, 1, D]."""

    def __init__(self, llm_dim: int, proprio_dim: int) -> None:
        super().__init__()
        self.proprio_dim = proprio_dim
        self.fc1 = nn.Linear(proprio_dim, llm_dim)
        self.fc2 = nn.Linear(llm_dim, llm_dim)

    def forward(self, proprio: torch.Tensor) -> torch.Tensor:
        if proprio.ndim != 2 or proprio.shape[1] != self.proprio_dim:
            raise ValueError(f"proprio must be [batch, {self.proprio_dim}], found {list(proprio.shape)}")
        return self.fc2(F.gelu(self.fc1(proprio.to(self.fc1.weight.dtype)))).unsqueeze(1)


class NoisyActionProjector(nn.Module):
    """Noisy actions [B, K], one number per slot -> embeddings [B, K, D] (diffusion only)."""

    def __init__(self, llm_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(1, llm_dim)
        self.fc2 = nn.Linear(llm_dim, llm_dim)

    def forward(self, noisy_actions: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(noisy_actions.unsqueeze(-1).to(self.fc1.weight.dtype))))
