"""Action states -> normalised actions. Letters: B batch, H chunk, A action dim, K = H x A slots, D width of the language model.

The states [B, K, D] are in row-major order (chunk, dimension); the A states of one time step are read together.
Source: OpenVLA-OFT (Kim et al. 2025, arXiv:2502.19645); parameter names are those of its checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class MLPResNetBlock(nn.Module):
    """x + relu(Linear(LayerNorm(x))), [..., D] -> [..., D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ffn(x)


class MLPResNet(nn.Module):
    """[..., input_dim] -> [..., output_dim] through two residual blocks."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.mlp_resnet_blocks = nn.ModuleList(MLPResNetBlock(hidden_dim) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1RegressionActionHead(nn.Module):
    """Action states [B, K, D] -> normalised actions float32 [B, H, A], not clipped; trained with the mean absolute error."""

    def __init__(self, llm_dim: int, num_actions_chunk: int, action_dim: int) -> None:
        super().__init__()
        self.num_actions_chunk = num_actions_chunk
        self.action_dim = action_dim
        self.model = MLPResNet(input_dim=action_dim * llm_dim, hidden_dim=llm_dim, output_dim=action_dim)

    def forward(self, action_states: torch.Tensor) -> torch.Tensor:
        steps = action_states.unflatten(1, (self.num_actions_chunk, self.action_dim)).flatten(2)  # [B, H, A*D]
        return self.model(steps.to(self.model.fc1.weight.dtype)).float()
