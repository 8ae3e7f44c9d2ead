"""Predictions and a batch -> the loss to minimise and the numbers to watch.

Letters: B batch, H chunk, A action dim, K = H x A slots, V vocabulary. The first action of a chunk and the rest are watched apart,
as published ("curr" and "next").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from prismatic.models.action_heads import ActionHead, DiffusionActionHead, DiscreteActionHead
from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.sequence import slots_from_labels
from prismatic.vla.constants import TokenIds
from prismatic.vla.types import Batch


@dataclass(frozen=True)
class Objective:
    """A loss with its metrics, all scalars on the training device (reading them would wait for it)."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]
    actions: torch.Tensor | None = None  # [B, H, A], normalised: what the policy would do; None: it takes denoising to know


def metric_names(head: ActionHead) -> tuple[str, ...]:
    """What a validation of a policy with that head tells."""
    kinds = ("action_accuracy", "action_l1_loss") if isinstance(head, DiscreteActionHead) else ("action_l1_loss",)
    has_next = head.num_actions_chunk > 1
    return ("loss", *(name for kind in kinds for name in (_current(kind), *((_next(kind),) if has_next else ()))))


def training_objective(
    forward: Callable[[ActionInputs], torch.Tensor],
    model: ActionModel,
    batch: Batch,
    token_ids: TokenIds,
    generator: torch.Generator | None = None,
) -> Objective:
    """The objective that the model's head is trained with, on one batch; `forward` is the model or its distributed wrapper.

    A diffusion head's noise and timesteps come from `generator` (None: torch's own of the device).
    """
    inputs, head = ActionInputs.from_batch(batch, token_ids), model.action_head
    if isinstance(head, DiffusionActionHead):
        device = batch.actions.device
        noise = torch.randn(batch.actions.shape, device=device, generator=generator)
        timesteps = torch.randint(head.schedule.num_train_steps, (len(noise),), device=device, generator=generator)
        noisy = head.schedule.add_noise(batch.actions, noise, timesteps)
        return diffusion_objective(forward(replace(inputs, noisy_actions=noisy, timesteps=timesteps)), noise)
    if isinstance(head, DiscreteActionHead):
        return discrete_objective(forward(inputs), slot_targets(batch.labels, model.num_action_tokens, token_ids), head)
    return l1_objective(forward(inputs), batch.actions)


def l1_objective(predicted: torch.Tensor, actions: torch.Tensor) -> Objective:
    """Mean absolute error of normalised actions [B, H, A]."""
    loss = (predicted - actions).abs().mean()
    return Objective(loss, {"loss": loss.detach(), **action_errors(predicted, actions)}, predicted.detach())


def diffusion_objective(predicted_noise: torch.Tensor, noise: torch.Tensor) -> Objective:
    """Mean squared error of the noise [B, H, A] (Ho et al. 2020, arXiv:2006.11239, eq. 14)."""
    loss = F.mse_loss(predicted_noise, noise)
    return Objective(loss, {"loss": loss.detach()})


def discrete_objective(logits: torch.Tensor, targets: torch.Tensor, head: DiscreteActionHead) -> Objective:
    """Cross-entropy of logits [B, K + 1, V] against the ids [B, K + 1] of the action tokens and the stop token."""
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    predicted, wanted = logits[:, :-1].detach().argmax(dim=-1), targets[:, :-1]
    is_right = (predicted == wanted).float().unflatten(1, (head.num_actions_chunk, head.action_dim))
    accuracy = _current_and_next(is_right, "action_accuracy")
    actions = head(predicted)
    return Objective(loss, {"loss": loss.detach(), **accuracy, **action_errors(actions, head(wanted))}, actions)


def slot_targets(labels: torch.Tensor, num_action_tokens: int, token_ids: TokenIds) -> torch.Tensor:
    """The ids int64 [B, K + 1] that the labels [B, T] of a batch hold in the action slots and right behind them."""
    start = slots_from_labels(labels, num_action_tokens, token_ids).start
    return labels.gather(1, start[:, None] + torch.arange(num_action_tokens + 1, device=labels.device))


@torch.no_grad()
def action_errors(predicted: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean absolute errors of normalised actions [B, H, A]."""
    return _current_and_next((predicted - actions).abs(), "action_l1_loss")


def whole_chunk_error(metrics: Mapping[str, float], num_actions_chunk: int) -> dict[str, float]:
    """{"action_l1_loss": mean absolute error over all actions of the chunks}, where the errors of the first and the others are known."""
    kind = "action_l1_loss"
    if _current(kind) not in metrics:
        return {}
    others = metrics.get(_next(kind), 0.0) * (num_actions_chunk - 1)
    return {kind: (metrics[_current(kind)] + others) / num_actions_chunk}


def _current_and_next(values: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """The mean over the first action of the chunks and over the others, of `values` [B, H, A]."""
    means = {_current(kind): values[:, 0].mean()}
    if values.shape[1] > 1:
        means[_next(kind)] = values[:, 1:].mean()
    return means


def _current(kind: str) -> str:
    return f"curr_{kind}"


def _next(kind: str) -> str:
    return f"next_{kind.replace('action', 'actions', 1)}"
