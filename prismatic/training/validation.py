"""How far the policy's actions are from the recorded ones on episodes that it is not trained on.

Letters: B batch, H chunk, A action dim.

Every validation looks at the same samples in the same order: one fixed permutation, shared out over the processes, so that a time limit
cuts off a fair sample of all episodes. The first validation finds out how many batches the limit allows, later ones take as many (and at
most twice the time). Images are seen as at evaluation: never augmented, the centre crop where the policy takes it. Noise is the same.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Subset

from prismatic.models.action_heads import DiffusionActionHead
from prismatic.models.action_model import ActionInputs
from prismatic.training.distributed import gather_objects, raise_together, sum_over_ranks
from prismatic.training.loading import SteadyBatches, data_loader, iterate
from prismatic.training.objectives import action_errors, metric_names, training_objective
from prismatic.training.rows import append_row, read_rows
from prismatic.training.setup import Run
from prismatic.vla.images import center_crop_batch
from prismatic.vla.normalization import raw_units
from prismatic.vla.types import Batch

_ORDER_SEED = 0  # the samples of a validation are the same whatever the seed of the run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """What one validation found, over all processes."""

    num_samples: int
    num_batches: int  # per process
    means: dict[str, float]  # of the objective's metrics
    errors: np.ndarray  # [H, A]: mean absolute error of normalised actions
    raw_errors: np.ndarray  # [H, A]: the same in the robot's units

    def metrics(self, action_names: tuple[str, ...]) -> dict[str, float]:
        """A row of metrics.jsonl: the means, then the errors per action dimension and per position in the chunk."""
        by_dimension, by_position = self.errors.mean(axis=0), self.errors.mean(axis=1)
        return {
            **{f"val/{name}": value for name, value in self.means.items()},
            "val/action_l1_loss": float(self.errors.mean()),
            "val/num_samples": float(self.num_samples),
            **{f"val/l1/{name.split(' [')[0]}": float(value) for name, value in zip(action_names, by_dimension, strict=True)},
            **{f"val/l1_raw/{name}": float(value) for name, value in zip(action_names, self.raw_errors.mean(axis=0), strict=True)},
            **{f"val/l1_position/{number:02d}": float(value) for number, value in enumerate(by_position)},
        }

    def write(self, path: Path, step: int, action_names: tuple[str, ...]) -> None:
        """Appends everything, the errors of every dimension at every position among it, as one line."""
        row = {
            "step": step,
            "num_samples": self.num_samples,
            "num_batches": self.num_batches,
            "action_names": action_names,
            "l1": self.errors.round(6).tolist(),
            "l1_raw": self.raw_errors.round(6).tolist(),
        }
        append_row(path, row)


class Validator:
    """Validates one run, time after time, on the same samples."""

    def __init__(self, run: Run, prepare: Callable[[Batch], Batch], autocast: Callable[[], contextlib.AbstractContextManager]) -> None:
        """`prepare` brings a batch to the device."""
        assert run.data.val is not None
        self.run, self._prepare, self._autocast = run, prepare, autocast
        self.num_batches: int | None = None  # fixed by the first validation
        self._raw_units = torch.tensor(np.stack([raw_units(part.action_bounds) for part in run.data.val.parts]), device=run.ranks.device)
        self._part_ends = torch.tensor(run.data.val.part_starts[1:], device=run.ranks.device)

    def restore(self, path: Path) -> None:
        """After resuming: as many samples as the run's earlier validations took, unless time cut them short. Every process must call it."""
        known = [row.get("num_samples", 0) for row in read_rows(path)] if self.run.ranks.is_main else []
        num_samples = max(gather_objects(max(known, default=0), self.run.ranks))
        self.num_batches = math.ceil(num_samples / (self.run.config.optimization.batch_size * self.run.ranks.world_size)) or None

    @torch.inference_mode()
    @torch.compiler.set_stance("force_eager")  # other shapes and modes than in training are not worth compiling
    def __call__(self) -> Validation:
        """Every process must call it."""
        model, device, config = self.run.parts.model, self.run.ranks.device, self.run.config
        model.eval()
        deadline = time.monotonic() + config.evaluation.val_time_limit * (1 if self.num_batches is None else 2)
        generator = torch.Generator(device).manual_seed(config.optimization.seed)
        names = metric_names(model.action_head)
        shape = (model.action_head.num_actions_chunk, model.action_head.action_dim)
        totals = torch.zeros(1 + len(names) + 2 * math.prod(shape), dtype=torch.float64, device=device)
        num_done = 0
        batches = SteadyBatches(self._batches(), self.run.ranks)
        for batch, is_counted in batches:
            totals += self._sums(batch, names, generator) * is_counted
            num_done += 1
            is_late = self._is_late(deadline, batches.failure)
            if self.num_batches is None and is_late:
                logger.info(
                    "validation takes %d batches in --val_time_limit %d s; later ones take the same",
                    num_done,
                    config.evaluation.val_time_limit,
                )
                break
            if num_done == self.num_batches or is_late:
                break
        if self.num_batches is not None and num_done < self.num_batches:
            logger.warning("validation ran out of time after %d of %d batches; this value is of fewer samples", num_done, self.num_batches)
        self.num_batches = self.num_batches or num_done
        model.train()
        count, *means = (totals := sum_over_ranks(totals, self.run.ranks))[: 1 + len(names)].tolist()
        errors, raw_errors = (totals[1 + len(names) :] / count).view(2, *shape).cpu().numpy()
        return Validation(int(count), num_done, {name: mean / count for name, mean in zip(names, means, strict=True)}, errors, raw_errors)

    def _batches(self) -> Generator[tuple[Batch, bool], None, None]:
        """(batch, whether it counts): this process's share; every process gets the same number of batches, as collectives need it."""
        config, ranks, data = self.run.config, self.run.ranks, self.run.data.val
        assert data is not None
        own = own_samples(len(data), ranks.rank, ranks.world_size)
        num_counted = math.ceil(len(own) / config.optimization.batch_size)
        num_batches = math.ceil(math.ceil(len(data) / ranks.world_size) / config.optimization.batch_size)
        fillers = own_samples(len(data), 0, 1)[: num_batches - num_counted]  # at most one, a batch of its own
        for number, batch in enumerate(iterate(data_loader(Subset(data, [*own, *fillers]), config, self.run.collator, sampler=None))):
            yield self._as_evaluated(self._prepare(batch)), number < num_counted

    def _as_evaluated(self, batch: Batch) -> Batch:
        crops = self.run.parts.spec.image.center_crop
        return replace(batch, images=center_crop_batch(batch.images)) if crops else batch

    def _sums(self, batch: Batch, names: tuple[str, ...], generator: torch.Generator) -> torch.Tensor:
        """float64: number of samples, sums of the metrics `names`, sums of the errors [H, A] normalised and in raw units; flat."""
        model, token_ids = self.run.parts.model, self.run.token_ids
        with self._autocast():
            objective = training_objective(model, model, batch, token_ids, generator)
            metrics, actions = objective.metrics, objective.actions
            if isinstance(model.action_head, DiffusionActionHead):
                noise = torch.randn(batch.actions.shape, device=batch.actions.device, generator=generator)
                actions = model.predict(ActionInputs.from_batch(batch, token_ids), noise)
                metrics = {**metrics, **action_errors(actions, batch.actions)}
        assert actions is not None
        errors = (actions - batch.actions).abs().double()  # [B, H, A]
        units = self._raw_units[torch.bucketize(batch.sample_ids, self._part_ends, right=True)]  # [B, A]
        means = torch.stack([torch.ones_like(errors[0, 0, 0]), *(metrics[name].double() for name in names)])
        return torch.cat([means * len(errors), errors.sum(0).flatten(), (errors * units[:, None]).sum(0).flatten()])

    def _is_late(self, deadline: float, failure: Exception | None) -> bool:
        """Whether any process is; all of them get the same answer, or leave together if one could not load its batch."""
        ranks = self.run.ranks
        is_late, has_failed = sum_over_ranks(
            torch.tensor([float(time.monotonic() > deadline), float(failure is not None)], device=ranks.device), ranks
        ).tolist()
        if has_failed:
            raise_together(failure, ranks)
        return bool(is_late)


def own_samples(num_samples: int, rank: int, world_size: int) -> list[int]:
    """The validation samples of one process, in the order in which it looks at them."""
    return np.random.default_rng(_ORDER_SEED).permutation(num_samples)[rank::world_size].tolist()
