"""Observations -> action chunks: the one door to a trained policy, for simulators, servers and robots.

    policy = Policy.from_pretrained("runs/my-run--10000_chkpt")
    chunk = policy.predict([Observation(images={"primary": image}, instruction="pick up the cup", proprio=state)])[0]

Letters: B batch, H chunk, A action dim, P proprio dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismatic.policy.checkpoint.loading import LoadOptions, load_parts
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.inference.engine import EagerEngine, Engine, EngineInputs, nothing
from prismatic.policy.inference.facts import describe_parts
from prismatic.policy.inference.graphs import make_engine
from prismatic.policy.watching import ObservationWatch
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.images import round_trip
from prismatic.vla.normalization import Bounds, bounds_from_statistics, normalize, normalize_proprio_published, unnormalize
from prismatic.vla.prompts import tokenize_prompt
from prismatic.vla.reference import ObservationCheck
from prismatic.vla.types import ActionChunk, Observation, select_cameras


def default_device(wanted: torch.device | str | None = None) -> torch.device:
    """`wanted`; by default the GPU if there is one.

    Raises:
        ValueError: torch knows no such device, or does not see it here.
    """
    num_gpus = torch.cuda.device_count()
    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device {wanted!r} is unknown to torch; pass cuda, cuda:1 (of several GPUs) or cpu") from error
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        seen = f"torch sees {num_gpus} GPU{'s' if num_gpus > 1 else ''} here, from cuda:0 on" if num_gpus else "torch sees no GPU here"
        raise ValueError(f"device {str(wanted)!r}: {seen} (scripts/doctor.py says more); pass another, or leave it out")
    return device


def default_dtype(device: torch.device) -> torch.dtype:
    """The dtype that `device` computes fastest in without changing what the policy does: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


DEFAULT_FRAME_SIZE = (256, 256)  # height and width of a camera image, where nobody says
_USUAL_FRAME_SIZES = ((224, 224), DEFAULT_FRAME_SIZE, (480, 640), (720, 1280))  # what cameras and simulators give
_USUAL_INSTRUCTION_TOKENS = 48  # the longest instruction of LIBERO has 40
_SHORT = "a"  # an instruction of one token
_MAX_KNOWN_PROMPTS = 1024
_NOISE_SEED = 7  # of a diffusion policy's own noise: a run can be repeated


class Policy:
    """A trained policy on one device."""

    def __init__(self, parts: PolicyParts, unnorm_key: str | None = None, engine: Engine | None = None) -> None:
        """`unnorm_key` names the data set whose statistics count; needed only where the checkpoint was trained on several.

        `engine` runs the model (by default plainly). Raises:
            ValueError: no or another key is needed, or the statistics do not fit the platform.
        """
        spec = parts.spec
        key = unnorm_key or spec.unnorm_key
        if key is None:
            raise ValueError(f"the policy was trained on several data sets; pass unnorm_key, one of {', '.join(parts.norm_stats)}")
        self._parts = parts
        self.unnorm_key = key
        self._engine = engine or EagerEngine(parts)
        tokenize = partial(tokenize_prompt, parts.processor.tokenizer, token_ids=parts.config.token_ids)
        self._tokenize = lru_cache(maxsize=_MAX_KNOWN_PROMPTS)(tokenize)  # control loops repeat their instruction
        self._random = torch.Generator().manual_seed(_NOISE_SEED)
        self.action_bounds = bounds_from_statistics(parts.norm_stats, key, "action", spec.platform.normalization)
        self._check_width("action", self.action_bounds, spec.platform.action_dim)
        if spec.published_normalization:
            self.action_bounds = replace(self.action_bounds, constant=np.zeros(self.action_bounds.dim, bool))
        self._proprio_bounds = None
        if spec.heads.use_proprio:
            self._proprio_bounds = bounds_from_statistics(parts.norm_stats, key, "proprio", spec.platform.normalization)
            self._check_width("proprio", self._proprio_bounds, spec.platform.proprio_dim)
        self.watch = self.make_watch()  # of whatever `predict` is shown

    def _check_width(self, quantity: str, bounds: Bounds, width: int) -> None:
        if bounds.dim != width:
            raise ValueError(
                f"statistics of {self.unnorm_key!r} describe {bounds.dim} {quantity} dimensions, "
                f"platform {self.spec.platform.name} has {width}"
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        unnorm_key: str | None = None,
        options: LoadOptions | None = None,
    ) -> Policy:
        """The policy of a checkpoint folder or Hub id, ours or published (then `options` must say what its files do not).

        Raises:
            ValueError: a file is missing or damaged, does not fit the others, or a flag contradicts them.
        """
        target = default_device(device)
        options = replace(options or LoadOptions(), unnorm_key=unnorm_key)
        parts = load_parts(name_or_path, target, dtype or default_dtype(target), options)
        return cls(parts, unnorm_key, make_engine(parts, options.engine, options.max_batch_size))

    def with_unnorm_key(self, unnorm_key: str | None) -> Policy:
        """The same model in the units of another data set that it was trained on.

        Raises:
            ValueError: there is no such data set, or its statistics do not fit.
        """
        return Policy(self._parts, unnorm_key, self._engine)

    def reseed(self, seed: int) -> None:
        """Begins a diffusion policy's own noise anew."""
        self._random.manual_seed(seed)

    def make_watch(self) -> ObservationWatch:
        """What compares observations with those of training."""
        seen_state = None
        if self._proprio_bounds is not None:
            low, high = self._extremes("proprio", self._proprio_bounds)
            seen_state = {"min": low, "max": high}
        return ObservationWatch(ObservationCheck(self._parts.reference, seen_state, self.spec.platform.proprio_names))

    def knows(self, instruction: str) -> bool:
        """Whether the sentence was among those of training, or the checkpoint does not say which these were."""
        return ObservationCheck(self._parts.reference, {}, ()).knows(instruction)

    @property
    def parts(self) -> PolicyParts:
        """Model, processor, statistics and specification."""
        return self._parts

    @property
    def demonstrated(self) -> Demonstrated:
        """What the robot of the data set `unnorm_key` did; of checkpoints that do not say it, the ranges alone."""
        if self.unnorm_key in self.spec.demonstrated:
            return self.spec.demonstrated[self.unnorm_key]
        unknown = (None,) * self.spec.platform.action_dim
        return Demonstrated(*self._extremes("action", self.action_bounds), max_step=unknown, max_gap=unknown)

    def _extremes(self, quantity: str, bounds: Bounds) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The smallest and largest values in training; of statistics that do not say them, the ends of `bounds`."""
        statistics = self.norm_stats[self.unnorm_key][quantity]
        return tuple(statistics.get("min", bounds.low)), tuple(statistics.get("max", bounds.high))

    def in_use(self) -> dict[str, Any]:
        """How it is computed: device, dtype, engine, attention, padding, how many layers are quantized and how, what is left and why, calls
        that ran plainly, and the device's memory."""
        facts = describe_parts(self._parts)
        return {"engine": self._engine.kind, **facts, "left": dict(self._engine.left), "plain_calls": dict(self.plain_calls)}

    @property
    def plain_calls(self) -> Mapping[str, int]:
        """How many calls ran plainly where others are recorded, by reason."""
        return self._engine.plain_calls

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Observations in one call that the engine prepares for."""
        return self._engine.batch_sizes

    def seal(self, batch_size: int) -> None:
        """From now on no call waits for what a first one of its kind has to do: what was not warmed up runs plainly, and somewhat slower.

        Images of the usual sizes, in any order, are prepared for in batches of up to `batch_size`.
        """
        self._engine.seal(_USUAL_FRAME_SIZES, batch_size)

    def num_prompt_tokens(self, instruction: str) -> int:
        """L of the prompt for `instruction`.

        Raises:
            ValueError: the instruction is empty.
        """
        return len(self._tokenize(instruction))

    @property
    def max_usual_tokens(self) -> int:
        """The largest L that a warm-up without instructions prepares for."""
        return self.num_prompt_tokens(_SHORT) + _USUAL_INSTRUCTION_TOKENS - 1

    @property
    def max_prompt_tokens(self) -> int:
        """The largest L with which images, state, actions and the stop token fit into the length that the language model was made for."""
        config, heads = self._parts.config, self.spec.heads
        inserted = len(self.spec.cameras) * config.num_patches + int(heads.use_proprio) + int(heads.action_head == "diffusion")
        return config.llm_max_length - inserted - self._parts.model.num_action_tokens - 1

    def check_prompt(self, instruction: str) -> None:
        """Accepts an instruction that the language model can read.

        Raises:
            ValueError: it is empty or too long.
        """
        if (count := self.num_prompt_tokens(instruction)) > (most := self.max_prompt_tokens):
            raise ValueError(f"the instruction makes {count:,} tokens, the policy reads at most {most:,}; say it in fewer words")

    def check_device(self) -> None:
        """Returns if the policy's device computes.

        Raises:
            RuntimeError: it does not; after some CUDA errors nothing in this process does any more.
        """
        device = next(self._parts.model.parameters()).device
        torch.ones(1, device=device).add_(1).item()

    @property
    def llm_dim(self) -> int:
        """Width of the language model."""
        return self._parts.config.hidden_size

    @property
    def norm_stats(self) -> dict[str, Any]:
        """The content of dataset_statistics.json."""
        return self._parts.norm_stats

    @property
    def spec(self) -> PolicySpec:
        """What the checkpoint says about itself."""
        return self._parts.spec

    def predict(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int] | None = None,
        is_watched: bool = False,
        meanwhile: Callable[[], None] = nothing,
    ) -> list[ActionChunk]:
        """One chunk of H actions in the robot's units for each observation; the observations stay as they are.

        `is_watched`: somebody else has looked whether they are as in training. `meanwhile` is called once, while a GPU computes (unless
        the observations are refused before).

        A diffusion policy starts from noise: `seeds`, one per observation, make it repeatable and independent of the batch.

        Raises:
            ValueError: an observation lacks a camera or proprio, has proprio of another width, or an instruction that is too long.
        """
        if not observations:
            return []
        for item in observations:
            self.check_prompt(item.instruction)
        if not is_watched:
            self.watch.look(observations)
        is_round_tripped = self.spec.image.jpeg_round_trip and any(item.is_round_tripped for item in observations)
        inputs = EngineInputs(
            frames=[image for item in observations for image in self._frames(item, is_round_tripped)],
            prompts=[self._tokenize(item.instruction) for item in observations],
            proprio=self._proprio(observations),
            noise=self._noise(len(observations), seeds),
            is_round_tripped=is_round_tripped,
            meanwhile=meanwhile,
        )
        return [ActionChunk(unnormalize(chunk, self.action_bounds)) for chunk in self._engine(inputs)]

    def warm_up(
        self,
        batch_sizes: Sequence[int] | None = None,
        frame_size: tuple[int, int] = DEFAULT_FRAME_SIZE,
        instructions: Sequence[str] = (),
    ) -> float:
        """Seconds that it took to prepare for calls of these batch sizes, so that none of them pays for it.

        `batch_sizes` are the engine's own by default; `frame_size` (height, width) is that of the camera images. Without `instructions`,
        prompts of any usual length are prepared for.
        """
        started = time.perf_counter()
        lengths = sorted({len(self._tokenize(text)) for text in instructions or (_SHORT,)})
        if not instructions:
            lengths = [lengths[0] + more for more in range(_USUAL_INSTRUCTION_TOKENS)]
        self._engine.warm_up(batch_sizes or self._engine.batch_sizes, [frame_size] * len(self.spec.cameras), lengths)
        return time.perf_counter() - started

    def prepare(self, batch_size: int) -> float:
        """Seconds of preparing for a robot, or as many as `batch_size` at once: prompts and pictures of every usual size. From then on no
        call waits for what a first one of its kind has to do."""
        started = time.perf_counter()
        self.warm_up([size for size in self.batch_sizes if size <= batch_size])
        self.seal(batch_size)
        return time.perf_counter() - started

    def _frames(self, observation: Observation, is_round_tripped: bool) -> list[np.ndarray]:
        """The observation's images in the policy's order; where others of the batch were JPEG files already, its own become so, too."""
        frames = select_cameras(observation.images, self.spec.cameras)
        return [round_trip(frame) for frame in frames] if is_round_tripped and not observation.is_round_tripped else frames

    def _noise(self, count: int, seeds: Sequence[int] | None) -> np.ndarray | None:
        """Where denoising starts, float32 [B, H, A]; None for a policy that does not denoise."""
        if self.spec.heads.action_head != "diffusion":
            return None
        if seeds is not None and len(seeds) != count:
            raise ValueError(f"{count} observations but {len(seeds)} seeds")
        platform = self.spec.platform
        generators = [self._random] * count if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (platform.num_actions_chunk, platform.action_dim)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).numpy()

    def _proprio(self, observations: Sequence[Observation]) -> np.ndarray | None:
        """Normalised proprio float32 [B, P]."""
        if self._proprio_bounds is None:
            return None
        to_model_range = normalize_proprio_published if self.spec.published_normalization else normalize
        rows = []
        for item in observations:
            if item.proprio is None or len(item.proprio) != self._proprio_bounds.dim:
                found = "none" if item.proprio is None else f"{len(item.proprio)} values"
                names = ", ".join(self.spec.platform.proprio_names)
                raise ValueError(f"observation: proprio must hold {self._proprio_bounds.dim} values ({names}), found {found}")
            rows.append(to_model_range(np.asarray(item.proprio, np.float32), self._proprio_bounds))
        return np.stack(rows).astype(np.float32)
