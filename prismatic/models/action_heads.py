"""Action states -> normalised actions. Letters: B batch, H chunk, A action dim, K = H x A slots, D width of the language model.

    L1RegressionActionHead    states -> actions, in one pass
    DiffusionActionHead       states of noisy actions -> the noise in them; DDIM turns noise into actions step by step
    DiscreteActionHead        token ids at the slots -> actions; the language model's own lm_head chooses the ids

The states [B, K, D] are in row-major order (chunk, dimension); the A states of one time step are read together.
Source: OpenVLA-OFT (Kim et al. 2025, arXiv:2502.19645); parameter names are those of its checkpoints.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from prismatic.models.diffusion import DDIMSchedule
from prismatic.vla.action_tokenizer import ActionTokenizer
from prismatic.vla.constants import TokenIds


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
        return _narrow_linear(self.fc2, self.layer_norm2(x))


def _narrow_linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """`layer(x)`, computed with its outputs filled up to a multiple of 8: rows of 7 take 0.11 ms on an H200, of 8 less than 0.03."""
    if layer.out_features % 8 == 0:
        return layer(x)
    missing = -layer.out_features % 8
    filled = F.linear(x, F.pad(layer.weight, (0, 0, 0, missing)), F.pad(layer.bias, (0, missing)))
    return filled[..., : layer.out_features]


class L1RegressionActionHead(nn.Module):
    """Action states [B, K, D] -> normalised actions float32 [B, H, A], not clipped; trained with the mean absolute error."""

    def __init__(self, llm_dim: int, num_actions_chunk: int, action_dim: int) -> None:
        super().__init__()
        self.num_actions_chunk = num_actions_chunk
        self.action_dim = action_dim
        self.model = MLPResNet(input_dim=action_dim * llm_dim, hidden_dim=llm_dim, output_dim=action_dim)

    def forward(self, action_states: torch.Tensor) -> torch.Tensor:
        return _per_step(self.model, action_states, self.num_actions_chunk)


class NoisePredictor(nn.Module):
    """Holds the MLP of the diffusion head under its published name."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.mlp_resnet = MLPResNet(input_dim, hidden_dim, output_dim)


class DiffusionActionHead(nn.Module):
    """States [B, K, D] of noisy actions -> the noise in them, float32 [B, H, A]; trained with the mean squared error."""

    def __init__(self, llm_dim: int, num_actions_chunk: int, action_dim: int, num_diffusion_steps_train: int) -> None:
        super().__init__()
        self.num_actions_chunk = num_actions_chunk
        self.action_dim = action_dim
        self.schedule = DDIMSchedule(num_diffusion_steps_train)
        self.noise_predictor = NoisePredictor(input_dim=action_dim * llm_dim, hidden_dim=llm_dim, output_dim=action_dim)

    def forward(self, action_states: torch.Tensor) -> torch.Tensor:
        return _per_step(self.noise_predictor.mlp_resnet, action_states, self.num_actions_chunk)


class DiscreteActionHead(nn.Module):
    """Token ids [B, K] -> normalised actions float32 [B, H, A]; has no weights."""

    def __init__(self, num_actions_chunk: int, action_dim: int, token_ids: TokenIds) -> None:
        super().__init__()
        self.num_actions_chunk = num_actions_chunk
        self.action_dim = action_dim
        self.tokenizer = ActionTokenizer(token_ids)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids that stand for no action give the value of the nearest end: the choice is not restricted to action ids, as published."""
        centers = _bin_centers(self.tokenizer, ids.device)
        index = (self.tokenizer.token_ids.base_vocab_size - ids - 1).clamp(0, len(centers) - 1)
        return centers[index].unflatten(1, (self.num_actions_chunk, self.action_dim))


@lru_cache(maxsize=8)
def _bin_centers(tokenizer: ActionTokenizer, device: torch.device) -> torch.Tensor:
    """float32 [bins]; kept, because a CUDA graph cannot upload them."""
    with torch.inference_mode(False):
        return torch.tensor(tokenizer.bin_centers, device=device, dtype=torch.float32)


ActionHead = L1RegressionActionHead | DiffusionActionHead | DiscreteActionHead


def _per_step(mlp: MLPResNet, action_states: torch.Tensor, num_actions_chunk: int) -> torch.Tensor:
    """float32 [B, H, A]: `mlp` on the A states of each time step."""
    steps = action_states.unflatten(1, (num_actions_chunk, -1)).flatten(2)  # [B, H, A*D]
    return mlp(steps.to(mlp.fc1.weight.dtype)).float()
