"""A policy -> files that small computers run without this project: the whole call as one program, and a description of its inputs.

    policy.pt2               torch.export's program; runs with torch alone                      torch.export.load
    policy.aoti.pt2          the same, compiled for the machine that exports it                 torch._inductor.aoti_load_package
    policy.onnx              for ONNX Runtime, TensorRT (trtexec) and others                    onnxruntime.InferenceSession
    processor.json           what goes in and comes out: shapes, image steps, prompt, statistics
    tokenizer.json           for the package `tokenizers`
    run_policy.py            a class that does all of it, from camera images to the robot's units

Letters: N cameras, S image side, L prompt length (free), H chunk, A action dim, P proprio dim.

    images uint8 [1, N, S, S, 3], prompt_ids int64 [1, L], proprio float32 [1, P], noise float32 [1, H, A] -> actions float32 [1, H, A]

Proprio and actions are normalised; a policy without proprio takes none, and only a diffusion policy takes noise. Adapters are merged.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prismatic.models.action_heads import DiffusionActionHead
from prismatic.models.action_model import ActionInputs
from prismatic.models.processor import pixel_constants
from prismatic.policy import run_policy
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.inference.quantization import is_quantized
from prismatic.policy.policy import Policy
from prismatic.vla.datasets.locks import LockedError, locked
from prismatic.vla.images import CROP_AREA_FRACTION, ImageRecipe

FORMATS = ("torch", "onnx", "aoti")
_LONGEST_PROMPT = 256  # tokens
_SAMPLE_LENGTH = 24
_MANY_STEPS = 10  # of denoising
Example = dict[str, torch.Tensor]

logger = logging.getLogger(__name__)


class ExportedCall(nn.Module):
    """`Policy.predict` between prepared images and normalised actions."""

    scale: torch.Tensor
    shift: torch.Tensor
    schedule: torch.Tensor  # [steps, 3], of a diffusion policy only

    def __init__(self, parts: PolicyParts) -> None:
        super().__init__()
        self.model = parts.model
        self._token_ids = parts.config.token_ids
        if isinstance(head := parts.model.action_head, DiffusionActionHead):  # a program holds the schedule's numbers, not their origin
            num_steps = parts.spec.heads.num_diffusion_steps_inference or head.schedule.num_train_steps
            self.register_buffer("schedule", head.schedule.table(num_steps))
        scale, shift = pixel_constants()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(
        self, images: torch.Tensor, prompt_ids: torch.Tensor, proprio: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalised actions float32 [1, H, A]."""
        channels = images.permute(0, 1, 4, 2, 3).unsqueeze(2)  # [1, N, 1, 3, S, S]
        dtype = next(self.model.parameters()).dtype
        pixels = (channels.float() * self.scale - self.shift).flatten(1, 3)
        own = None if proprio is None else proprio.to(dtype)
        inputs = ActionInputs.from_prompts(pixels.to(dtype), prompt_ids, None, own, self.model.num_action_tokens, self._token_ids)
        if noise is None:
            return self.model.predict(inputs).float()
        observed = self.model.observe(inputs)
        for row in self.schedule:
            noise = self.model.denoise(observed, noise, row)
        return noise.float()


def example_inputs(parts: PolicyParts, prompt_length: int = _SAMPLE_LENGTH) -> Example:
    """Random inputs of the call, the same in every call, in the order of its arguments."""
    generator = torch.Generator().manual_seed(0)
    spec, ids = parts.spec, parts.config.token_ids
    size = (1, len(spec.cameras), spec.image.size, spec.image.size, 3)
    text = torch.randint(0, ids.action_token_begin_idx, (1, prompt_length - 2), generator=generator)
    example = {
        "images": torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
        "prompt_ids": torch.cat([torch.tensor([[ids.bos]]), text, torch.tensor([[ids.empty]])], dim=1),
    }
    if spec.heads.use_proprio:
        example["proprio"] = torch.rand(1, spec.platform.proprio_dim, generator=generator) * 2 - 1
    if spec.heads.action_head == "diffusion":
        example["noise"] = torch.randn(1, spec.platform.num_actions_chunk, spec.platform.action_dim, generator=generator)
    return example


def check_export(folder: Path, formats: Sequence[str]) -> None:
    """Returns if programs in these formats can be written into `folder`, as far as that is known before the policy is read.

    Raises:
        ValueError: the folder exists, no format is named, or a package or compiler is missing.
    """
    if os.path.lexists(folder):
        raise ValueError(f"{folder} exists already; choose another folder, or delete it first")
    if not formats:
        raise ValueError(f"no format was named, so nothing would run; choose among {', '.join(FORMATS)}")
    if "onnx" in formats:
        _check_onnx()
    if "aoti" in formats and shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
        raise ValueError(f"aoti needs a C++ compiler, and there is no {compiler} here; install it, or name another in CXX")


def export_policy(parts: PolicyParts, folder: Path, formats: tuple[str, ...]) -> None:
    """Writes the new folder `folder`, complete or not at all; the policy lies on the CPU.

    Raises:
        ValueError: `check_export`'s, another process writes there, the policy is quantized, or its statistics do not fit it.
    """
    check_export(folder, formats)
    if is_quantized(parts.model):
        raise ValueError("a quantized policy cannot be exported; load it plainly (TensorRT and ONNX Runtime quantize themselves)")
    for key in parts.norm_stats if parts.spec.unnorm_key is None else [parts.spec.unnorm_key]:
        Policy(parts, key)  # run_policy.py takes their numbers as they are
    call, example = ExportedCall(parts).eval(), example_inputs(parts)
    if (repeats := len(getattr(call, "schedule", ()))) > _MANY_STEPS:
        logger.warning(
            "the program repeats the language model %d times, once for each step of denoising, and takes as long to write and to open; "
            "--num_diffusion_steps_inference %d makes fewer of them",
            repeats,
            _MANY_STEPS,
        )
    with _new_folder(folder) as partial:
        for name in formats:
            _WRITERS[name](call, example, partial)
        for name, content in parts.processor.tokenizer_files.items():
            (partial / name).write_bytes(content)
        shutil.copyfile(run_policy.__file__, partial / "run_policy.py")
        (partial / "processor.json").write_text(json.dumps(describe_call(parts, example), indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which is called `folder` once the block ends without an error; what a killed export left there goes.

    Raises:
        ValueError: another process fills it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, lock = (folder.with_name(f".{folder.name}.{ending}") for ending in ("exporting", "exporting.lock"))
    try:
        with locked(lock):
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                yield partial
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except LockedError as error:
        raise ValueError(f"{error} exports into {folder}; wait for it, or choose another folder") from error


def describe_call(parts: PolicyParts, example: Example) -> dict[str, Any]:
    """The content of processor.json: all that stands between a camera image and an input, and between an output and the robot."""
    spec, ids = parts.spec, parts.config.token_ids
    inputs: dict[str, dict[str, Any]] = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")} for name, value in example.items()
    }
    inputs["prompt_ids"]["shape"] = [1, "L"]
    return {
        "inputs": inputs,
        "outputs": {"actions": {"shape": [1, spec.platform.num_actions_chunk, spec.platform.action_dim], "dtype": "float32"}},
        "images": {
            **asdict(spec.image),
            "cameras": list(spec.cameras),
            "crop_area": CROP_AREA_FRACTION,
            "steps": ", ".join(_image_steps(spec.image)),
        },
        "prompt": {
            "template": spec.prompt,
            "instruction": "in lower case",
            "first_id": ids.bos,
            "last_id": ids.empty,
            "longest": _LONGEST_PROMPT,
        },
        "normalization": {
            "kind": spec.platform.normalization.value,
            "range": [-1, 1],
            "unnorm_key": spec.unnorm_key,
            "published": spec.published_normalization,  # of dimensions that never change: as in the published code
            "statistics": parts.norm_stats,
        },
        "platform": {
            "name": spec.platform.name,
            "control_hz": spec.platform.control_hz,
            "action_names": list(spec.platform.action_names),
            "proprio_names": list(spec.platform.proprio_names),
        },
    }


def _image_steps(recipe: ImageRecipe) -> list[str]:
    """What is done to a camera image, in words; run_policy.py does it."""
    steps = {
        "JPEG round trip (quality 95, 4:2:0)": recipe.jpeg_round_trip,
        "lanczos3 with antialiasing to size x size, rounded": True,
        "the middle with crop_area of the area, bilinear back to size x size, floor(255.5 x)": recipe.center_crop,
        "uint8 RGB": True,
    }
    return [step for step, is_done in steps.items() if is_done]


def export_program(call: nn.Module, example: Example) -> torch.export.ExportedProgram:
    """The call as torch.export's program, for prompts of 4 to 256 tokens."""
    length = torch.export.Dim("prompt_length", min=4, max=_LONGEST_PROMPT)
    shapes = {name: {1: length} if name == "prompt_ids" else None for name in example}
    with torch.no_grad():
        call(**example)  # constants that are kept after a first call are to be numbers, not marks of a trace
        return torch.export.export(call, (), dict(example), dynamic_shapes=shapes)


def _write_torch(call: nn.Module, example: Example, folder: Path) -> None:
    torch.export.save(export_program(call, example), folder / "policy.pt2")


def _write_aoti(call: nn.Module, example: Example, folder: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(export_program(call, example), package_path=str(folder / "policy.aoti.pt2"))


def _write_onnx(call: nn.Module, example: Example, folder: Path) -> None:
    torch.onnx.export(
        export_program(call, example), (), folder / "policy.onnx", output_names=["actions"], external_data=True, verbose=False
    )


_WRITERS: dict[str, Callable[[nn.Module, Example, Path], None]] = {"torch": _write_torch, "onnx": _write_onnx, "aoti": _write_aoti}


def _check_onnx() -> None:
    import importlib.util

    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ValueError(f'ONNX files need the packages {" and ".join(missing)}; pip install "openvla-oft-robot[export]"')
