"""The run itself: steps, accumulation, validation, saving, resuming.

One optimizer step takes `grad_accumulation_steps` micro-batches of `batch_size` samples on every process. Validation and
saving happen between steps, after the step whose number they carry.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn.parallel import DistributedDataParallel

from prismatic.models.action_heads import DiffusionActionHead
from prismatic.models.action_model import ActionInputs
from prismatic.policy.files import atomic_folder, check_free_space
from prismatic.policy.loading import StoredWeights, resolve_folder
from prismatic.policy.saving import save_policy
from prismatic.training.capture import CapturedPass, uses_cuda_graphs
from prismatic.training.checkpoint import (
    TrainerState,
    checkpoint_folder,
    find_checkpoint,
    gather_random_states,
    load_trainer_state,
    save_trainer_state,
)
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import barrier, mean_over_ranks, process_group, sum_over_ranks
from prismatic.training.logging import METRICS_FILE, RunLogger, peak_memory
from prismatic.training.objectives import action_errors, metric_names, training_objective
from prismatic.training.optim import build_optimizer, learning_rate_factor, set_learning_rate
from prismatic.training.setup import Run, prepare_run
from prismatic.vla.images import prepare_on_device
from prismatic.vla.types import Batch

logger = logging.getLogger(__name__)


def finetune(config: FinetuneConfig) -> None:
    """Runs the training that `config` describes, on the processes that torchrun started (or on this one alone).

    Raises:
        ValueError: something the user asked for does not fit; raised before the base model is loaded wherever that is possible.
    """
    with process_group() as ranks:
        run = prepare_run(config, ranks)
        Trainer(run).train()


class Trainer:
    """One run on one process."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.ranks = run, run.config, run.ranks
        self.model = run.parts.model
        self.trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.optimizer = build_optimizer(self.trained.values(), self.config.learning_rate, self.config.weight_decay, self.config.optimizer)
        self.step = 0
        if self.config.resume:
            self._resume()
        check_free_space(self.config.run_dir, self._checkpoint_bytes())
        self.forward: torch.nn.Module = self.model
        self.captured = CapturedPass(self.accumulate, self.trained.values()) if uses_cuda_graphs(self.config, self.ranks) else None
        if self.captured is None and self.ranks.world_size > 1:
            device_ids = [self.ranks.device] if self.ranks.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.model, device_ids=device_ids, gradient_as_bucket_view=True)

    def train(self) -> None:
        """Optimizer steps until `max_steps`, with all that happens in between."""
        config = self.config
        with RunLogger(config, self.step, self.ranks.is_main) as log:
            log.message(self.run.summary())
            if self.step >= config.max_steps:
                log.message(f"nothing to do: the run is at step {self.step}, --max_steps is {config.max_steps}")
            batches = self.batches()
            window = _Window()
            self.model.train()
            while self.step < config.max_steps:
                window.add(self.optimizer_step(batches))
                self.step += 1
                log.step()
                if self.step % config.wandb_log_freq == 0 or self.step == config.max_steps:
                    log.metrics(self.step, self._train_metrics(window))
                    window = _Window()
                if config.use_val_set and (self.step % config.val_freq == 0 or self.step == config.max_steps):
                    log.metrics(self.step, self._validate())
                if self.step % config.save_freq == 0 or self.step == config.max_steps:
                    log.message(f"saved {self._save()}")

    def batches(self) -> Iterator[Batch]:
        """Training batches on the device, for ever, from where the sampler stands."""
        for batch in self.run.train_loader():
            yield self._on_device(batch)

    def _on_device(self, batch: Batch) -> Batch:
        """`batch` on the training device, its images as the model takes them."""
        if batch.attention_mask is not None and bool(
            batch.attention_mask.all()
        ):  # asked before the batch moves: asking the device would wait for it
            batch = replace(batch, attention_mask=None)
        batch = batch.to(self.ranks.device)
        return prepare_on_device(batch, self.run.parts.spec.image.size) if self.config.device_augmentation else batch

    def optimizer_step(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """One update of the weights; its mean metrics, still on the device."""
        config = self.config
        factor = learning_rate_factor(self.step, config.lr_warmup_steps, config.num_steps_before_decay)
        set_learning_rate(self.optimizer, config.learning_rate * factor)
        metrics: dict[str, torch.Tensor] = {}
        for micro_step in range(config.grad_accumulation_steps):
            batch = next(batches)
            with self._gradient_exchange(is_last=micro_step == config.grad_accumulation_steps - 1):
                found = self.accumulate(batch) if self.captured is None else self.captured(batch)
            self.run.train_sampler.advance(config.batch_size * self.ranks.world_size)
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0) + value / config.grad_accumulation_steps
        if self.captured is not None:
            self.captured.gradients.average(self.ranks.world_size)
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.values(), config.max_grad_norm)
        self.optimizer.step()
        if self.captured is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self.captured.gradients.zero()
        if isinstance(self.model.action_head, DiffusionActionHead) and self.step % config.diffusion_sample_freq == 0:
            metrics.update(self._denoising_errors(batch))
        return metrics

    def accumulate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Adds one micro-batch's share to the gradients; its metrics."""
        with self._autocast():
            objective = training_objective(self.forward, self.model, batch, self.run.token_ids)
        (objective.loss / self.config.grad_accumulation_steps).backward()
        return objective.metrics

    @torch.compiler.set_stance("force_eager")
    def _denoising_errors(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Errors of the actions that a diffusion policy takes on a training batch, denoised to the end."""
        self.model.eval()
        with self._autocast():
            actions = self.model.predict(ActionInputs.from_batch(batch, self.run.token_ids))
        self.model.train()
        return action_errors(actions, batch.actions)

    def _autocast(self) -> torch.autocast:
        # No weight is used twice in a pass, so that there is nothing to cache; and a CUDA graph must hold the casts themselves.
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.run.autocast, cache_enabled=False)

    def _gradient_exchange(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """DDP exchanges gradients at the last micro-batch of a step only."""
        if isinstance(self.forward, DistributedDataParallel) and not is_last:
            return self.forward.no_sync()
        return contextlib.nullcontext()

    def _train_metrics(self, window: _Window) -> dict[str, float]:
        config = self.config
        values = mean_over_ranks(window.means(), self.ranks)
        if not math.isfinite(values["loss"]):
            raise ValueError(
                f"the loss became {values['loss']} at step {self.step}; lower --learning_rate, add --lr_warmup_steps or --max_grad_norm, "
                "and check the data for outliers. The last checkpoint is untouched"
            )
        samples = window.steps * config.batch_size * config.grad_accumulation_steps * self.ranks.world_size
        return {
            **{f"train/{name}": value for name, value in values.items()},
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/samples_per_second": samples / window.seconds(),
            **peak_memory(),
        }

    @torch.inference_mode()
    @torch.compiler.set_stance("force_eager")  # other shapes and modes than in training are not worth compiling
    def _validate(self) -> dict[str, float]:
        """Mean metrics over the validation samples, each counted once, for at most `val_time_limit` seconds."""
        self.model.eval()
        deadline = time.monotonic() + self.config.val_time_limit
        generator = torch.Generator(self.ranks.device).manual_seed(self.config.seed)  # the same noise at every validation
        names = metric_names(self.model.action_head)
        totals = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.ranks.device)  # sums of the metrics, number of samples
        for batch in self.run.val_loader():
            metrics = self._validation_metrics(self._on_device(batch), generator)
            one = torch.ones_like(totals[0])
            totals += torch.stack([*(metrics[name].double() for name in names), one]) * len(batch.actions)
            if time.monotonic() > deadline:
                break
        self.model.train()
        totals = sum_over_ranks(totals)
        return dict(zip((f"val/{name}" for name in names), (totals[:-1] / totals[-1]).tolist(), strict=True))

    def _validation_metrics(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The objective's metrics; for a diffusion policy also the errors of the actions that it would take."""
        with self._autocast():
            metrics = training_objective(self.model, self.model, batch, self.run.token_ids, generator).metrics
            if isinstance(self.model.action_head, DiffusionActionHead):
                noise = torch.randn(batch.actions.shape, device=batch.actions.device, generator=generator)
                actions = self.model.predict(ActionInputs.from_batch(batch, self.run.token_ids), noise)
                metrics.update(action_errors(actions, batch.actions))
        return metrics

    def _save(self) -> str:
        """Writes the checkpoint of this step; every process must call it, the main one writes."""
        random_states = gather_random_states(self.ranks)
        folder = checkpoint_folder(self.config, self.step)
        if self.ranks.is_main:
            check_free_space(folder.parent, self._checkpoint_bytes())
            suffix_step = None if self.config.save_latest_checkpoint_only else self.step
            parts = self.run.parts_at(self.step)
            with atomic_folder(folder, keep=(METRICS_FILE,)) as temporary:
                originals = StoredWeights(resolve_folder(self.run.base_path)) if self.config.quantize_base != "none" else None
                save_policy(parts, temporary, suffix_step, self.config.merge_lora_during_training, originals)
                save_trainer_state(temporary, self._state(), self.trained, self.optimizer, random_states)
        barrier()
        return str(folder)

    def _state(self) -> TrainerState:
        flags = {name: value if isinstance(value, int | float | None) else str(value) for name, value in vars(self.config).items()}
        flags["vla_path"] = self.run.base_path
        return TrainerState(self.step, self.run.train_sampler.state_dict(), self.ranks.world_size, flags)

    def _resume(self) -> None:
        folder = find_checkpoint(self.config)
        state = load_trainer_state(folder, self.trained, self.optimizer, self.ranks)
        self.run.train_sampler.load_state_dict(dict(state.sampler))
        self.step = state.step
        logger.info("resumed %s at step %d", folder, self.step)

    def _checkpoint_bytes(self) -> int:
        """What one checkpoint takes on the disk: the model in bfloat16, trained weights and two moments in their own dtype."""
        whole = sum(parameter.numel() for parameter in self.model.parameters()) * 2
        trained = sum(parameter.numel() * (3 * parameter.element_size() + 2) for parameter in self.trained.values())
        return whole + trained + 2**24


class _Window:
    """Metrics since the last log line; they stay on the device until somebody reads them."""

    def __init__(self) -> None:
        self.steps = 0
        self._started = time.monotonic()
        self._totals: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        self.steps += 1
        for name, value in metrics.items():
            self._totals[name] = self._totals.get(name, 0) + value
            self._counts[name] += 1

    def means(self) -> dict[str, float]:
        return {name: float(value) / self._counts[name] for name, value in self._totals.items()}

    def seconds(self) -> float:
        return time.monotonic() - self._started
