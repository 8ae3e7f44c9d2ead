"""The model of a policy in CUDA graphs: captured once per shape, replayed with one launch, the same time in every call.

Letters: B batch, N cameras, S image side, L prompt length, H chunk, A action dim, P proprio dim.

    frames [F, height, width, 3]   --upload--> image program --> images [F, S, S, 3]       one per frame size and number F
    prompts, proprio, noise        --upload--> action program --> actions [B, H, A]         one per batch size and prompt length

A single observation runs at its prompt's own length: nothing is padded, so that the fastest attention kernels apply. Several are padded
to a multiple of eight prompt tokens; their lengths are data, not shapes. Frames of one size go through together, those of several
observations in powers of two, whatever their order and number: 5 as 4 and 1. Compiled blocks take any length, so a new one is captured in
a moment and never compiled again. A diffusion policy has a third program, one denoising step, replayed as often as needed. Once an engine
is sealed, as a server's is after its warm-up, nothing is captured any more: what is new runs plainly, a few milliseconds slower, and
nobody waits for a capture.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from prismatic.models.action_heads import DiffusionActionHead
from prismatic.models.action_model import ActionInputs
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.inference.compilation import NO_COMPILER, compile_blocks, has_compiler
from prismatic.policy.inference.engine import ENGINES, EagerEngine, Engine, EngineInputs, group_by_size, idle_inputs, make_inputs
from prismatic.policy.inference.fp8 import Fp8Linear
from prismatic.policy.inference.frames import MAX_PART_BYTES, scatter_images, split_frames
from prismatic.policy.inference.quantization import QuantizedLinear
from prismatic.policy.inference.recent import Recent
from prismatic.policy.inference.stacking import stack_projections
from prismatic.vla.constants import near_names
from prismatic.vla.images import ImageRecipe, prepare_frames

_PROMPT_STEP = 8  # tokens; padding of prompts in a batch
# Programs kept besides those that were asked for ahead, so that clients with ever other images or prompts cannot fill the memory.
_MAX_IMAGE_PROGRAMS = 64
_MAX_ACTION_PROGRAMS = 192
_ALIGNMENT = 16  # bytes

logger = logging.getLogger(__name__)

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Bucket:
    """The shape of an action program."""

    batch_size: int
    prompt_length: int
    padded: bool  # lengths differ, or may


class GraphEngine:
    """Captured programs, made when they are first needed; one call at a time."""

    def __init__(self, parts: PolicyParts, compiled: bool, max_batch_size: int = 16) -> None:
        self._parts = parts
        self._plain = EagerEngine(parts)
        self._device = next(parts.model.parameters()).device
        self.batch_sizes = batch_sizes_up_to(max_batch_size)
        self._lock = threading.Lock()
        self.kind = "compiled" if compiled else "graph"
        self.left: dict[str, str] = {} if compiled else {"compiled": "--engine graph" if has_compiler() else NO_COMPILER}
        if self._device.type != "cuda":
            self.left["recorded"] = "there is no CUDA device"
        self.plain_calls: Counter[str] = Counter()
        self._is_sealed = False
        self._image_programs: Recent[ImageProgram] = Recent(_MAX_IMAGE_PROGRAMS)
        self._action_programs: Recent[ActionProgram] = Recent(_MAX_ACTION_PROGRAMS)
        self._images: dict[int, torch.Tensor] = {}
        self._recorder = Recorder(self._device)
        stack_projections(parts.model.bare_vla)
        parts.model.bare_vla.bare_vision_backbone.side_by_side = True
        if compiled:
            compile_blocks(parts.model.bare_vla)

    def __call__(self, inputs: EngineInputs) -> np.ndarray:
        """Normalised actions float32 [B, H, A]."""
        bucket = find_bucket([len(row) for row in inputs.prompts], self.batch_sizes)
        with self._lock, torch.inference_mode(), self._recorder.stream():
            if bucket is None or (self._is_sealed and bucket not in self._action_programs):
                self.plain_calls["a larger batch than prepared for" if bucket is None else "a shape that was not warmed up"] += 1
                return self._plain(inputs)
            self._prepare_images(inputs.frames, bucket.batch_size, inputs.recipe(self._parts.spec.image))
            return self._action_program(bucket).run(inputs)[: len(inputs)]

    def seal(self, frame_sizes: Sequence[tuple[int, int]], batch_size: int) -> None:
        """Captures the programs of images of these sizes, as they are and as JPEG files, and from then on nothing more."""
        recipe, num_cameras = self._parts.spec.image, len(self._parts.spec.cameras)
        wanted: list[tuple[ImageRecipe, tuple[int, ...], int]] = []
        with self._lock, torch.inference_mode(), self._recorder.stream():
            for size in frame_sizes:
                shape = (*size, 3)
                counts: set[int] = set()
                for most in range(1, batch_size * num_cameras + 1):
                    counts.update(map(len, split_frames(range(most), math.prod(shape), num_cameras)))
                for kind in {recipe, replace(recipe, jpeg_round_trip=False)} if recipe.jpeg_round_trip else {recipe}:
                    wanted += [(kind, shape, count) for count in sorted(counts)]
            self._image_programs.reserve(wanted)
            for key in wanted:
                self._image_program(*key)
            self._recorder.wait()
        self._is_sealed = True
        self._report_missing()

    def warm_up(self, batch_sizes: Sequence[int], frame_sizes: Sequence[tuple[int, int]], prompt_lengths: Sequence[int]) -> None:
        """Captures the programs of these batch sizes and of prompts of these lengths, which then stay."""
        found = {find_bucket([length] * count, self.batch_sizes) for count in batch_sizes for length in prompt_lengths}
        buckets = sorted(filter(None, found), key=lambda bucket: (bucket.batch_size, bucket.prompt_length))
        self._action_programs.reserve(buckets)
        for bucket in buckets:
            self(idle_inputs(self._parts, bucket.batch_size, frame_sizes, bucket.prompt_length))
        if self._is_sealed:
            self._report_missing()

    def _report_missing(self) -> None:
        """Says which of the programs that were asked for ahead are not there: their calls run plainly for as long as the engine lives."""
        missing = [*self._action_programs.missing(), *self._image_programs.missing()]
        if missing:
            self.left["recorded"] = f"{len(missing)} shapes that the warm-up asked for were not recorded, such as {missing[0]}"
            logger.warning("%s; their calls run plainly", self.left["recorded"])

    def _prepare_images(self, frames: Sequence[np.ndarray], batch_size: int, recipe: ImageRecipe) -> None:
        """Fills the images of `batch_size` observations; what `frames` lacks repeats the last ones."""
        images, num_cameras = self._buffer(batch_size).flatten(0, 1), len(self._parts.spec.cameras)  # [B*N, S, S, 3]
        used: set[Hashable] = set()
        has_huge = False
        for group in group_by_size(frames):
            shape = frames[group[0]].shape
            for part in split_frames(group, math.prod(shape), num_cameras):
                key = (recipe, shape, len(part))
                if math.prod(shape) > MAX_PART_BYTES or (self._is_sealed and key not in self._image_programs):
                    stacked = torch.from_numpy(np.stack([frames[number] for number in part])).to(self._device)
                    prepared = prepare_frames(stacked, recipe)
                    has_huge |= math.prod(shape) > MAX_PART_BYTES
                else:
                    if key in used:
                        self._recorder.wait()  # its memory on the host is still being uploaded
                    used.add(key)
                    prepared = self._image_program(recipe, shape, len(part)).run([frames[number] for number in part])
                scatter_images(prepared, images, part)
        for start in range(len(frames), len(images), num_cameras):
            images[start : start + num_cameras].copy_(images[len(frames) - num_cameras : len(frames)])
        if has_huge and self._device.type == "cuda":
            torch.cuda.empty_cache()  # what one huge picture needed must not stay claimed

    def _image_program(self, recipe: ImageRecipe, shape: tuple[int, ...], count: int) -> ImageProgram:
        side = self._parts.spec.image.size
        return self._image_programs.recall(
            (recipe, shape, count), lambda: ImageProgram(recipe, (count, *shape), side, self._device, self._recorder)
        )

    def _action_program(self, bucket: Bucket) -> ActionProgram:
        images = self._buffer(bucket.batch_size)
        return self._action_programs.recall(bucket, lambda: ActionProgram(self._parts, images, bucket, self._recorder))

    def _buffer(self, batch_size: int) -> torch.Tensor:
        """uint8 [B, N, S, S, 3]: where the image program writes and the action program reads."""
        if batch_size not in self._images:
            spec = self._parts.spec
            shape = (batch_size, len(spec.cameras), spec.image.size, spec.image.size, 3)
            self._images[batch_size] = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        return self._images[batch_size]


def batch_sizes_up_to(largest: int) -> list[int]:
    """Every one: padding to the next power of two would cost up to 78 % (9 as 16)."""
    return list(range(1, largest + 1))


def find_bucket(prompt_lengths: Sequence[int], batch_sizes: Sequence[int]) -> Bucket | None:
    """The smallest bucket that holds prompts of these lengths; None if the batch is too large for any."""
    count, longest = len(prompt_lengths), max(prompt_lengths)
    if count > max(batch_sizes):
        return None
    if count == 1:
        return Bucket(1, longest, padded=False)
    return Bucket(min(size for size in batch_sizes if size >= count), -(-longest // _PROMPT_STEP) * _PROMPT_STEP, padded=True)


class Block:
    """Tensors side by side, on the host (page-locked) and on the device, so that one copy uploads them all."""

    def __init__(self, fields: Fields, device: torch.device) -> None:
        sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, (shape, dtype) in fields.items()}
        starts, end = {}, 0
        for name, size in sizes.items():
            starts[name] = end
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        self._host = torch.zeros(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._on_device = self._host if device.type == "cpu" else torch.zeros(end, dtype=torch.uint8, device=device)
        places = {name: (starts[name], starts[name] + sizes[name], *fields[name]) for name in fields}
        self.host, self.tensors = (
            {name: whole[start:stop].view(dtype).view(shape) for name, (start, stop, shape, dtype) in places.items()}
            for whole in (self._host, self._on_device)
        )

    def write(self, name: str, values: np.ndarray) -> None:
        """Fills a tensor on the host, repeating the last row where `values` has fewer."""
        rows = self.host[name].numpy()
        rows[: len(values)] = values
        rows[len(values) :] = values[-1]

    def upload(self) -> None:
        if self._on_device is not self._host:
            self._on_device.copy_(self._host, non_blocking=True)


class ImageProgram:
    """F frames of one size -> images uint8 [F, S, S, 3]."""

    def __init__(self, recipe: ImageRecipe, shape: tuple[int, ...], side: int, device: torch.device, recorder: Recorder) -> None:
        """`shape`: [F, height, width, 3]; `side`: S."""
        self._block = Block({"frames": (shape, torch.uint8)}, device)
        self._images = torch.zeros((shape[0], side, side, 3), dtype=torch.uint8, device=device)
        self._replay = recorder.record(lambda: self._images.copy_(prepare_frames(self._block.tensors["frames"], recipe)))

    def run(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """The images, until the next call."""
        for row, frame in zip(self._block.host["frames"].numpy(), frames, strict=True):
            np.copyto(row, frame)
        self._block.upload()
        self._replay()
        return self._images


class ActionProgram:
    """Prompts, proprio and prepared images -> actions, for one bucket."""

    def __init__(self, parts: PolicyParts, images: torch.Tensor, bucket: Bucket, recorder: Recorder) -> None:
        self._parts, self._bucket = parts, bucket
        self._block = Block(_fields(parts, bucket), images.device)
        self._block.host["prompt_ids"].fill_(parts.config.token_ids.pad)
        if bucket.padded:
            self._block.host["lengths"].fill_(bucket.prompt_length - 1)
        self._block.upload()
        platform = parts.spec.platform
        shape = (bucket.batch_size, platform.num_actions_chunk, platform.action_dim)
        self._actions = torch.zeros(shape, device=images.device)
        self._result = torch.zeros(shape, pin_memory=images.is_cuda)
        self._recorder = recorder
        if isinstance(parts.model.action_head, DiffusionActionHead):
            self._replays = self._record_diffusion(parts.model.action_head, images, recorder)
        else:
            self._replays = [recorder.record(lambda: self._actions.copy_(parts.model.predict(self._inputs(images))))]

    def run(self, inputs: EngineInputs) -> np.ndarray:
        """Normalised actions float32 [batch size of the bucket, H, A]."""
        pad = self._parts.config.token_ids.pad
        length = self._bucket.prompt_length
        self._block.write("prompt_ids", np.array([[*row, *[pad] * (length - len(row))] for row in inputs.prompts]))
        if self._bucket.padded:
            self._block.write("lengths", np.array([len(row) for row in inputs.prompts]))
        for name, values in (("proprio", inputs.proprio), ("noise", inputs.noise)):
            if values is not None:
                self._block.write(name, values)
        self._block.upload()
        if not self._recorder.is_asynchronous:
            inputs.meanwhile()
        for replay in self._replays:
            replay()
        self._result.copy_(self._actions, non_blocking=True)
        if self._recorder.is_asynchronous:
            inputs.meanwhile()
        self._recorder.wait()
        return self._result.numpy().copy()

    def _inputs(self, images: torch.Tensor) -> ActionInputs:
        tensors = self._block.tensors
        ids, mask = tensors["prompt_ids"], None
        if self._bucket.padded:
            mask = torch.arange(self._bucket.prompt_length, device=ids.device) < tensors["lengths"][:, None]
        return make_inputs(self._parts, images, ids, mask, tensors.get("proprio"))

    def _record_diffusion(self, head: DiffusionActionHead, images: torch.Tensor, recorder: Recorder) -> list[Callable[[], None]]:
        """What is seen, encoded once; then a denoising step, as often as there are steps. The step's number lies on the device."""
        model, num_steps = self._parts.model, self._parts.spec.heads.num_diffusion_steps_inference or head.schedule.num_train_steps
        table = head.schedule.table(num_steps).to(images.device)
        number = torch.zeros(1, dtype=torch.int64, device=images.device)
        observed = model.observe(self._inputs(images))

        def observe() -> None:
            observed.copy_(model.observe(self._inputs(images)))
            self._actions.copy_(self._block.tensors["noise"])
            number.zero_()

        def denoise() -> None:
            self._actions.copy_(model.denoise(observed, self._actions, table[number][0]))
            number.add_(1)

        first, step = recorder.record(observe), recorder.record(denoise, before=number.zero_)
        return [first, *[step] * num_steps]


def _fields(parts: PolicyParts, bucket: Bucket) -> Fields:
    platform, heads = parts.spec.platform, parts.spec.heads
    fields: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"prompt_ids": ((bucket.batch_size, bucket.prompt_length), torch.int64)}
    if bucket.padded:
        fields["lengths"] = ((bucket.batch_size,), torch.int64)
    if heads.use_proprio:
        fields["proprio"] = ((bucket.batch_size, platform.proprio_dim), torch.float32)
    if heads.action_head == "diffusion":
        fields["noise"] = ((bucket.batch_size, platform.num_actions_chunk, platform.action_dim), torch.float32)
    return fields


def make_engine(parts: PolicyParts, kind: str, max_batch_size: int = 16) -> Engine:
    """The engine called `kind`.

    Raises:
        ValueError: there is none, or not on the policy's device.
    """
    device = next(parts.model.parameters()).device
    if kind not in ENGINES:
        raise ValueError(f"--engine {kind!r} is unknown; {near_names(kind, ENGINES)}")
    obstacle = _obstacle(parts, device) if kind == "auto" else None
    if obstacle is not None or kind == "eager":
        return EagerEngine(parts, obstacle or "--engine eager")
    if kind == "auto":
        kind = "compiled" if has_compiler() else "graph"
    if kind == "graph" and device.type != "cuda":
        raise ValueError(f"--engine graph needs a CUDA device, the policy is on {device}; use eager or compiled")
    return GraphEngine(parts, compiled=kind == "compiled", max_batch_size=max_batch_size)


def _obstacle(parts: PolicyParts, device: torch.device) -> str | None:
    """Why compiling and capturing is not sure to work; None if it is."""
    if device.type != "cuda":
        return "there is no CUDA device"
    if (found := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"compute capability {found[0]}.{found[1]}; it was tried from 8.0 on"
    if any(isinstance(module, QuantizedLinear) and not isinstance(module.layer, Fp8Linear) for module in parts.model.modules()):
        return "layers quantized by other packages may look at values on the way"
    return None


class Recorder:
    """Captures CUDA graphs that share their memory and one stream; on a CPU it runs what it was given."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = self.is_asynchronous = device.type == "cuda"
        if self._cuda:
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    def stream(self) -> torch.cuda.StreamContext:
        """The context in which everything must happen."""
        return torch.cuda.stream(self._stream if self._cuda else None)

    def wait(self) -> None:
        """Until everything is done."""
        if self._cuda:
            self._stream.synchronize()

    def record(self, compute: Callable[[], object], before: Callable[[], object] = lambda: None) -> Callable[[], None]:
        """A function that does again what `compute` does; `before` each of the runs that precede the capture."""
        if not self._cuda:
            return lambda: (compute(), None)[1]
        before()
        compute()  # compiles, and lets libraries choose their kernels
        before()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(self._pool, capture_error_mode="thread_local")
        try:
            compute()
        finally:
            graph.capture_end()
        return _Replay(graph, compute)


@dataclass(frozen=True)
class _Replay:
    """A captured graph. It reads and writes addresses and keeps no tensor, so that what computed it must be kept, too."""

    graph: torch.cuda.CUDAGraph
    compute: Callable[[], object]

    def __call__(self) -> None:
        self.graph.replay()
