"""The forward and backward pass of a micro-batch as one CUDA graph: the processor launches it at once, rather than thousands of kernels.

A graph fixes every shape and address. So one is recorded for each shape of batch (prompts differ in length), all in one memory pool, and
gradients are summed in one flat buffer, which several processes average by a single message. What is computed is the same, kernel by
kernel. Method: "whole-network capture" in torch's notes on CUDA graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist

from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import Ranks, gather_objects, raise_together
from prismatic.training.setup import uses_compiler
from prismatic.vla.types import Batch

logger = logging.getLogger(__name__)

Metrics = dict[str, torch.Tensor]
_Shape = tuple[tuple[int, ...] | None, ...]
_MAX_GRAPHS = 64  # further shapes run without one


def uses_cuda_graphs(config: FinetuneConfig, ranks: Ranks) -> bool:
    """Whether steps are recorded; every process must ask. Raises as `recording_obstacle`."""
    return recording_obstacle(config, ranks) is None


def recording_obstacle(config: FinetuneConfig, ranks: Ranks) -> str | None:
    """Why steps are not recorded; None if they are: on a GPU, where nothing in them waits for the processor. Every process must ask.

    It also decides how gradients are exchanged (by one message after a recorded step, else during the backward pass), so that all
    processes get one answer: steps are recorded if nothing on any of them speaks against it.

    Raises:
        ValueError: they were asked for where that is impossible.
    """
    answers = gather_objects((_obstacle(config, ranks), _is_untried(config, ranks)), ranks)
    obstacle = next((f"{text}{f' (process {rank})' * (rank > 0)}" for rank, (text, _) in enumerate(answers) if text), None)
    wish = config.speed.cuda_graphs
    if wish == "True" and obstacle:
        raise_together(ValueError(f"--cuda_graphs True: {obstacle}; leave the flag out"), ranks)
    if wish == "False":
        return "--cuda_graphs False"
    return obstacle or ("untried here, see --cuda_graphs" if wish == "auto" and any(untried for _, untried in answers) else None)


def _is_untried(config: FinetuneConfig, ranks: Ranks) -> bool:
    """What "auto" leaves alone: its recorded losses were not compared with plain ones on GPUs (tests/smoke/test_gpu_training.py)."""
    saves_memory = config.speed.gradient_checkpointing or config.model.quantize_base != "none"
    return ranks.num_nodes > 1 or (saves_memory and not uses_compiler(config, ranks))


def _obstacle(config: FinetuneConfig, ranks: Ranks) -> str | None:
    if ranks.device.type != "cuda":
        return "there is no CUDA device"
    if config.model.quantize_base == "int8":
        return "--quantize_base int8 looks for outliers on the processor"
    if config.recomputes_dropout:
        return "--gradient_checkpointing with --lora_dropout restores random numbers on the processor"
    if ranks.world_size > 1 and config.shards_model:
        return "the model is sharded"
    others = [other for other in range(ranks.local_world_size) if other != ranks.device.index]
    if not all(torch.cuda.can_device_access_peer(ranks.device, other) for other in others):
        return "gradients of GPUs without a direct link are better exchanged during the backward pass"
    return None


class GradientBuffer:
    """One flat float32 tensor that holds the gradients of all `parameters`; each parameter's `grad` is a view of it."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        owned = list(parameters)
        assert {parameter.dtype for parameter in owned} == {torch.float32}
        sizes = [parameter.numel() for parameter in owned]
        self._flat = torch.zeros(sum(sizes), device=owned[0].device)
        self._views = [(one, part.view_as(one)) for one, part in zip(owned, self._flat.split(sizes), strict=True)]
        self._show()

    def _show(self) -> None:
        for parameter, view in self._views:
            parameter.grad = view

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Adds the gradients of the backward pass inside all at once: a few launches for hundreds of parameters, not one for each."""
        for parameter, _ in self._views:
            parameter.grad = None
        try:
            yield
            found = [(view, parameter.grad) for parameter, view in self._views if parameter.grad is not None]
            if found:
                torch._foreach_add_([view for view, _ in found], [gradient for _, gradient in found])
        finally:
            self._show()

    def zero(self) -> None:
        """Sets every gradient to 0; they stay where they are."""
        self._flat.zero_()

    def average(self, world_size: int) -> None:
        """Replaces the gradients by their mean over all processes."""
        if world_size > 1:
            dist.all_reduce(self._flat, dist.ReduceOp.AVG)


@dataclass(frozen=True)
class _Recording:
    """A recorded pass with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    metrics: Metrics

    def replay(self, batch: Batch) -> Metrics:
        for own, new in zip(_tensors(self.batch), _tensors(batch), strict=True):
            if own is not None and new is not None:
                own.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.metrics


class CapturedPass:
    """Calls `run`, which adds to the gradients of `parameters` and returns metrics, by replaying recordings of it."""

    def __init__(self, run: Callable[[Batch], Metrics], parameters: Iterable[torch.nn.Parameter]) -> None:
        self.gradients = GradientBuffer(parameters)
        self.counts = {"recorded": 0, "plain": 0}  # passes computed
        self._run = run
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._recordings: dict[_Shape, _Recording] = {}
        self._compiled: set[bool] = set()  # whether padded (True) and unpadded batches ran before

    def __call__(self, batch: Batch) -> Metrics:
        """The metrics of `batch`, which lies on the device; they are overwritten by a later call."""
        shape = tuple(None if value is None else tuple(value.shape) for value in _tensors(batch))
        is_padded = batch.attention_mask is not None
        if shape not in self._recordings and is_padded in self._compiled and len(self._recordings) < _MAX_GRAPHS:
            recording = self._record(batch)
            if recording is not None:
                self._recordings[shape] = recording
        if shape in self._recordings:
            self.counts["recorded"] += 1
            return self._recordings[shape].replay(batch)
        self.counts["plain"] += 1
        self._compiled.add(is_padded)
        return self._run_plainly(batch)

    def release(self) -> None:
        """Frees the recordings and their memory, once the device is done with them; nothing can be computed afterwards.

        Left to themselves they would go when the interpreter ends, behind the connections between the processes and the device's state.
        """
        torch.cuda.synchronize()
        for recording in self._recordings.values():
            recording.graph.reset()
        self._recordings.clear()
        torch.cuda.empty_cache()

    def _run_plainly(self, batch: Batch) -> Metrics:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            metrics = self._compute(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return metrics

    def _compute(self, batch: Batch) -> Metrics:
        with self.gradients.gathering():
            return self._run(batch)

    def _record(self, batch: Batch) -> _Recording | None:
        """The recorded pass, not yet computed; None if something had to be compiled first, which a recording does not allow."""
        tensors: dict[str, Any] = {item.name: value for item, value in zip(fields(batch), _tensors(batch), strict=True)}
        own = replace(batch, **{name: value.clone() for name, value in tensors.items() if value is not None})
        graph = torch.cuda.CUDAGraph()
        options = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}  # the data loader's threads go on
        try:
            with torch.compiler.set_stance("fail_on_recompile"), torch.cuda.graph(graph, **options):  # type: ignore[arg-type]
                metrics = self._compute(own)
        except RuntimeError as error:
            if "recompile" not in str(error):
                raise
            return None
        return _Recording(graph, own, metrics)


def _tensors(batch: Batch) -> list[torch.Tensor | None]:
    values = [getattr(batch, item.name) for item in fields(batch)]
    return [value if isinstance(value, torch.Tensor) else None for value in values]
