"""The run itself: steps, accumulation, validation, saving, resuming.

One optimizer step takes `grad_accumulation_steps` micro-batches of `batch_size` samples on every process. Validation and
saving happen between steps, after the step whose number they carry.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import traceback
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from prismatic.cli_sections import plain_values
from prismatic.interrupts import STOPPED, StopRequest
from prismatic.models.action_heads import DiffusionActionHead
from prismatic.models.action_model import ActionInputs
from prismatic.training.alike import check_started_alike
from prismatic.training.bad_samples import BadSampleWatch, bad_samples_allowed
from prismatic.training.best import cadence_note, mark_best
from prismatic.training.capture import CapturedPass, recording_obstacle
from prismatic.training.checkpoint import (
    Trained,
    checkpoint_bytes,
    random_state,
    restore_checkpoint,
    save_checkpoint,
    set_random_state,
)
from prismatic.training.config import FinetuneConfig
from prismatic.training.curves import VALIDATION_FILE
from prismatic.training.distributed import EndedTogether, any_ranks, gather_objects, mean_over_ranks, on_main, process_group, raise_together
from prismatic.training.evaluation import BackgroundEvaluation
from prismatic.training.finite import FiniteWatch
from prismatic.training.in_use import describe_training, write_in_use
from prismatic.training.loading import SteadyBatches, iterate
from prismatic.training.logging import RunLogger, memory_used
from prismatic.training.meter import StepMeter
from prismatic.training.objectives import action_errors, training_objective, whole_chunk_error
from prismatic.training.optim import build_optimizer, learning_rate_factor, set_learning_rate
from prismatic.training.rows import drop_later_rows
from prismatic.training.run_choice import choose_run
from prismatic.training.run_folder import Checkpoint, TrainerState, check_room, leave_later_checkpoints
from prismatic.training.run_lock import only_writer
from prismatic.training.setup import Run, prepare_run
from prismatic.training.sharding import replicate, set_gradient_exchange
from prismatic.training.sinks import check_loggers
from prismatic.training.validation import Validator
from prismatic.vla.images import prepare_on_device
from prismatic.vla.types import Batch

logger = logging.getLogger(__name__)


def finetune(config: FinetuneConfig) -> None:
    """Runs the training that `config` describes, on the processes that torchrun started (or on this one alone).

    Raises:
        ValueError: something the user asked for does not fit; raised before the base model is loaded wherever that is possible.
        SystemExit: with status `STOPPED`, after SIGTERM or SIGINT and a checkpoint.
    """
    try:
        with process_group() as ranks:
            check_started_alike(config, ranks)
            on_main(lambda: check_loggers(config), ranks)
            named = config.as_run(on_main(lambda: choose_run(config), ranks))
            with only_writer(named.run_dir, ranks) as lock:
                is_complete = Trainer(replace(prepare_run(named, ranks), lock=lock)).train()
    except OSError as error:  # a disk that is full or gone, which says so itself
        raise ValueError(str(error)) from error
    if not is_complete:
        raise SystemExit(STOPPED)


class Trainer:
    """One run on one process."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.ranks = run, run.config, run.ranks
        self.model = run.parts.model
        parameters = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        recipe = self.config.optimization
        self.optimizer = build_optimizer(parameters.values(), recipe.learning_rate, recipe.weight_decay, recipe.optimizer)
        self.trained = Trained(parameters, self.optimizer)
        self.step, self.owes_validation, self.owes_evaluation = 0, False, False
        self.evaluation = BackgroundEvaluation(self.config, run.eval_command if self.ranks.is_main else None)
        self.stop, self.is_stopping = StopRequest(self.ranks.is_main), False  # this process has been asked to stop; all stop
        self.is_sound = True  # weights, optimizer and `step` belong together
        self.saved_step = 0  # the newest that was saved, or could not be
        self._begun: tuple[int, torch.Tensor] | None = None  # data position and random state where an unfinished step began
        self.meter = StepMeter(self.ranks.device)
        self.finite = FiniteWatch(run.data.train, self.config.run_dir, self.ranks)
        allowed = bad_samples_allowed(self.config.data.max_bad_samples, run.train_sampler.num_samples_per_epoch)
        self.bad_samples = BadSampleWatch(allowed, self.ranks)
        self.validator = Validator(run, self._on_device, self._autocast) if run.data.val is not None else None
        if run.resumed is not None:
            self._resume(run.resumed)
        if self.ranks.is_main:
            drop_later_rows(self.config.run_dir / VALIDATION_FILE, self.step, lambda row: self.owes_validation)
            for place in leave_later_checkpoints(self.config, self.step) if run.resumed is not None else ():
                logger.info("the run goes on from step %d another way; a later checkpoint of it is kept as %s", self.step, place)
        if self.validator is not None:
            self.validator.restore(self.config.run_dir / VALIDATION_FILE)
        needed = checkpoint_bytes(self.model, self.trained, self.config.saving.merge_lora_during_training)
        on_main(lambda: check_room(self.config, self.config.run_dir, needed), self.ranks)
        self.forward: torch.nn.Module = self.model
        obstacle = recording_obstacle(self.config, self.ranks)
        self.captured = CapturedPass(self.accumulate, parameters.values()) if obstacle is None else None
        self.in_use = describe_training(run, obstacle)
        if self.captured is None and self.ranks.world_size > 1 and run.skeleton is None:
            self.forward = replicate(self.model, self.ranks)

    def train(self) -> bool:
        """Optimizer steps until `max_steps`, with all that happens in between; False if a signal ended it before, with a checkpoint.

        It may also have ended the wait for the last evaluations alone, which are then owed. Whatever else ends it, the last whole step is
        saved first if its state is sound.
        """
        with RunLogger(self.config, self.step, self.ranks.is_main, self.owes_validation) as log, self.evaluation, self.stop:
            try:
                began = self.step
                is_complete = self._take_steps(log)
                if self.step > began:
                    self._write_in_use()
            except Exception as error:
                if self.ranks.world_size == 1 or isinstance(error, EndedTogether):  # no process waits for another one's messages
                    self._save_after(error, log)
                    with contextlib.suppress(RuntimeError):  # of a device that has failed
                        self._release()
                raise
            self._release()
            return is_complete

    def _release(self) -> None:
        """Takes down what computed the steps, in order: the loader is closed, then recordings go, then what exchanged gradients.

        Afterwards the connections between the processes can be closed (`process_group`), and nothing is left for the interpreter's end.
        """
        if self.captured is not None:
            self.captured.release()
        self.captured, self.forward = None, self.model
        gc.collect()  # a recording and the trainer refer to each other

    def _take_steps(self, log: RunLogger) -> bool:
        config = self.config
        self._announce(log)
        self.bad_samples.restore(on_main(log.rows, self.ranks))
        if self.owes_validation:
            self._validate(log)
            self._mark_best(log)  # before a save removes what is not the best
        if self.run.resumed is not None:
            self.evaluation.take_up(self.run.resumed.state.owed_evaluations, log.rows())
        self.model.train()
        self.meter.start([] if self.run.resumed is None else self.run.resumed.state.meters, self.ranks)
        with contextlib.closing(self.batches()) as batches:
            while self.step < config.optimization.max_steps:
                self.meter.add(self.optimizer_step(batches))
                self._count_step()
                log.step()
                if self._is_due(config.logging.wandb_log_freq):
                    self._name_bad_samples(log)
                    log.metrics(self.step, self._train_metrics())
                self.is_stopping &= self.step < config.optimization.max_steps
                self._between_steps(log)
                if self.is_stopping:
                    return False
                batches.failure = batches.failure or log.failure  # reported at the next look
        raise_together(log.failure, self.ranks)
        log.evaluations(self.evaluation.finish(lambda: self.stop.is_set))
        if self.ranks.is_main and (warning := log.plateau_warning()):
            logger.warning(warning)
        return not any_ranks((bool(self.evaluation.pending),), self.ranks)[0]

    def _count_step(self) -> None:
        self.step, self.is_sound, self._begun = self.step + 1, True, None

    def _save_after(self, error: Exception, log: RunLogger) -> None:
        """Saves the last whole step after an error in which all processes leave together, if that is sound and not saved yet."""
        if not self.is_sound or self.step <= self.saved_step:
            return
        for cause in (error, getattr(error, "own", None)):
            traceback.clear_frames(cause.__traceback__ if cause is not None else None)  # what an unfinished pass holds on the device
        try:
            if self._begun is not None:
                position, random = self._begun
                self.run.train_sampler.position = position
                set_random_state(random, self.ranks)
                self.finite.forget(after=self.step)
            self._check_finite(with_weights=True)
            folder = self.save(merge=False)
        except Exception as problem:
            log.message(f"the last step before this error could not be saved: {problem}")
        else:
            log.message(f"saved {folder} after an error; once its cause is gone the same command with --resume True goes on from there")

    def _write_in_use(self) -> None:
        """Tells in the run's folder what computes the steps."""
        passes = {} if self.captured is None else self.captured.counts
        on_main(lambda: write_in_use(self.run, self.in_use, passes), self.ranks)

    def _announce(self, log: RunLogger) -> None:
        log.message(self.run.summary())
        if note := cadence_note(self.config):
            log.message(note)
        if self.step >= self.config.optimization.max_steps:
            log.message(f"nothing to do: the run is at step {self.step}, --max_steps is {self.config.optimization.max_steps}")
        else:
            self._write_in_use()
        if self.config.evaluation.use_val_set:
            self._mark_best(log)  # a resumed run may have gone further before

    def _mark_best(self, log: RunLogger) -> str | None:
        """Marks the best of the checkpoints that there are; the name of its folder."""
        return on_main(lambda: mark_best(self.config, log.rows(), self.saved_step), self.ranks)

    def _between_steps(self, log: RunLogger) -> None:
        """What is due after this step: validation, saving, an evaluation of what was saved. A run that stops saves, and validates later."""
        config = self.config
        self.owes_validation = self.validator is not None and self._is_due(config.evaluation.val_freq)
        self.owes_evaluation = config.evaluation.eval_every > 0 and self._is_due(config.evaluation.eval_every)
        if self.owes_validation and not self.is_stopping:
            self._validate(log)
        is_due = self._is_due(config.saving.save_freq) or self.owes_evaluation
        if is_due or self.is_stopping:
            self._check_finite(with_weights=True)
            self._name_bad_samples(log)
            with self.meter.paused():
                folder = self.save(merge=config.saving.merge_lora_during_training and is_due)
                best = self._mark_best(log) if self.validator is not None else None
                if self.owes_evaluation:
                    self.evaluation.submit(self.step, folder)
                self.owes_evaluation = False
            log.message(f"saved {folder}{', the best so far' if best == folder.name else ''}")
            if self.is_stopping:
                log.message(f"stopped after step {self.step}; the same command with --resume True goes on from {folder}")
        log.evaluations(self.evaluation.results())

    def _name_bad_samples(self, log: RunLogger) -> None:
        """Logs samples that could not be decoded since the last look; ends the run if they are too many."""
        for bad in self.bad_samples.look():
            log.bad_sample(self.step, bad)
        self.bad_samples.check()

    def _is_due(self, every: int) -> bool:
        """Whether what happens every so many steps, and after the last, happens now."""
        return self.step % every == 0 or self.step == self.config.optimization.max_steps

    def batches(self) -> SteadyBatches[Batch]:
        """Training batches on the device, for ever, from where the sampler stands; close it to end the processes that load them."""
        return SteadyBatches(self._load(), self.ranks)

    def _load(self) -> Generator[Batch, None, None]:
        with contextlib.closing(iterate(self.run.train_loader())) as loaded:
            while True:
                with self.meter.waiting():
                    batch = next(loaded)
                yield self._on_device(batch)

    def _on_device(self, batch: Batch) -> Batch:
        """`batch` on the training device, its images as the model takes them."""
        self.bad_samples.add(batch.in_place_of)
        # Asked before the batch moves, since asking the device would wait for it; without padding faster attention kernels apply.
        if batch.attention_mask is not None and bool(batch.attention_mask.all()):
            batch = replace(batch, attention_mask=None)
        batch = batch.to(self.ranks.device)
        return prepare_on_device(batch, self.run.parts.spec.image.size) if self.config.data.device_augmentation else batch

    def optimizer_step(self, batches: SteadyBatches[Batch]) -> dict[str, torch.Tensor]:
        """One update of the weights; its mean metrics, still on the device.

        Raises:
            EndedTogether: a process cannot go on (on a single process its error comes as it is); nothing has changed.
        """
        recipe, sampler = self.config.optimization, self.run.train_sampler
        self._begun = (sampler.position, random_state(self.ranks))
        metrics: dict[str, torch.Tensor] = {}
        for micro_step in range(recipe.grad_accumulation_steps):
            batch = next(batches)
            with self._gradient_exchange(is_last=micro_step == recipe.grad_accumulation_steps - 1):
                found = self.accumulate(batch) if self.captured is None else self.captured(batch)
            self.finite.add(self.step + 1, found["loss"], batch.sample_ids)
            sampler.advance(recipe.batch_size * self.ranks.world_size)
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0) + value / recipe.grad_accumulation_steps
        self._agree(batches.failure)
        self._update_weights()
        if isinstance(self.model.action_head, DiffusionActionHead) and self.step % self.config.evaluation.diffusion_sample_freq == 0:
            metrics.update(self._denoising_errors(batch))
        return metrics

    def _agree(self, failure: Exception | None) -> None:
        """Looks whether any process has been asked to stop or cannot go on; all do, before weights change."""
        self.is_stopping, has_failed = any_ranks((self.stop.is_set, failure is not None), self.ranks)
        if has_failed:
            raise_together(failure, self.ranks)

    def _update_weights(self) -> None:
        """One step of the optimizer along the gradients, which are then gone. Until the step is counted, the state is not sound."""
        recipe = self.config.optimization
        factor = learning_rate_factor(self.step, recipe.lr_warmup_steps, recipe.num_steps_before_decay)
        set_learning_rate(self.optimizer, recipe.learning_rate * factor)
        if self.captured is not None:
            self.captured.gradients.average(self.ranks.world_size)
        if recipe.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.parameters.values(), recipe.max_grad_norm)
        self.is_sound = False
        self.optimizer.step()
        if self.captured is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self.captured.gradients.zero()

    def accumulate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Adds one micro-batch's share to the gradients; its metrics."""
        with self._autocast():
            objective = training_objective(self.forward, self.model, batch, self.run.token_ids)
        (objective.loss / self.config.optimization.grad_accumulation_steps).backward()
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
        """Processes exchange gradients at the last micro-batch of a step only."""
        set_gradient_exchange(self.model, is_last)
        if isinstance(self.forward, DistributedDataParallel) and not is_last:
            return self.forward.no_sync()
        return contextlib.nullcontext()

    def _check_finite(self, with_weights: bool = False) -> None:
        """Returns if the losses since the last look, and if asked the weights, are numbers; else nothing is sound."""
        self.is_sound = False
        self.finite.check()
        if with_weights:
            self.finite.check_weights(self.trained.parameters)
        self.is_sound = True

    def _train_metrics(self) -> dict[str, float]:
        self._check_finite()
        means, rates = self.meter.report(self.config.optimization.samples_per_step * self.ranks.world_size)
        means = mean_over_ranks(means, self.ranks)
        means |= whole_chunk_error(means, self.model.action_head.num_actions_chunk)
        return {
            **{f"train/{name}": value for name, value in means.items()},
            "train/lr": self.optimizer.param_groups[0]["lr"],
            **{f"train/{name}": value for name, value in rates.items()},
            **memory_used(self.ranks.device),
        }

    def _validate(self, log: RunLogger) -> None:
        assert self.validator is not None
        self._check_finite()
        with self.meter.paused():
            found, names = self.validator(), self.run.parts.spec.platform.action_names
            self._name_bad_samples(log)
            on_main(lambda: found.write(self.config.run_dir / VALIDATION_FILE, self.step, names), self.ranks)
            log.metrics(self.step, found.metrics(names))
        self.owes_validation = False

    def save(self, merge: bool) -> Path:
        """The folder of this step's checkpoint, written now; every process must call it. `merge` also writes the whole model."""
        self.saved_step = self.step
        flags = {**plain_values(self.config), "vla_path": self.run.base_path, "started_from": self.run.started_from}
        meters = gather_objects(self.meter.state(), self.ranks)
        position = self.run.train_sampler.state_dict()
        base, episodes = self.run.base_files, self.run.episodes
        owed = [*self.evaluation.pending, *([self.step] if self.owes_evaluation else [])]
        state = TrainerState(self.step, position, self.ranks.world_size, flags, meters, self.owes_validation, base, owed, episodes)
        return save_checkpoint(self.run, self.trained, state, merge)

    def _resume(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        restore_checkpoint(checkpoint, self.trained, self.ranks)
        self.step, self.owes_validation, self.saved_step = state.step, state.owes_validation, state.step
        logger.info("resumed %s at step %d", checkpoint.folder, self.step)
