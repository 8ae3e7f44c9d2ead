"""Predictions and a batch -> the loss to minimise and the numbers to watch. Letters: B batch, H chunk, A action dim."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def metric_names(num_actions_chunk: int) -> tuple[str, ...]:
    """The metrics that an objective gives for chunks of that length."""
    return ("loss", "curr_action_l1_loss") + (("next_actions_l1_loss",) if num_actions_chunk > 1 else ())


@dataclass(frozen=True)
class Objective:
    """A loss with its metrics, all scalars on the training device (reading them would wait for it)."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


def l1_objective(predicted: torch.Tensor, actions: torch.Tensor) -> Objective:
    """Mean absolute error of normalised actions [B, H, A]; the first action of the chunk and the rest are watched apart, as published."""
    error = (predicted - actions).abs()
    loss = error.mean()
    detached = error.detach()
    metrics = {"loss": loss.detach(), "curr_action_l1_loss": detached[:, 0].mean()}
    if error.shape[1] > 1:
        metrics["next_actions_l1_loss"] = detached[:, 1:].mean()
    return Objective(loss, metrics)
