"""An exported policy on a small computer: camera images, instruction and state -> actions in the robot's units.

    policy = ExportedPolicy("my_policy_exported")            # the folder that this file was written into
    actions = policy.act({"primary": image, "wrist": image}, "pick up the cup", state)       # float64 [H, A]

scripts/export.py copies this file beside the programs, so it imports nothing of its project: numpy, pillow, simplejpeg and tokenizers,
and onnxruntime (policy.onnx) or torch (policy.pt2, policy.aoti.pt2). A test holds it to the policy that was exported.

Letters: N cameras, S image side, H chunk, A action dim, P proprio dim. Images are uint8 RGB [height, width, 3] of any size.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

# Program -> the package that runs it; the first that is there, with its package, is taken.
PROGRAMS = {"policy.onnx": "onnxruntime", "policy.aoti.pt2": "torch", "policy.pt2": "torch"}
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # of ONNX Runtime; TensorRT's would build an engine for every prompt length
_PACKAGES = {"pillow": "PIL", "simplejpeg": "simplejpeg", "tokenizers": "tokenizers"}  # package -> its module
_EPSILON = 1e-8


class ExportedPolicy:
    """One exported policy, its inputs checked and prepared as processor.json says."""

    def __init__(self, folder: str | Path, program: str | None = None, unnorm_key: str | None = None) -> None:
        """`unnorm_key` names the data set whose units count; needed only where the policy was trained on several.

        Raises:
            ValueError: the folder lacks a file, a package is missing, or a name is unknown.
        """
        self.folder = Path(folder)
        for name in ("processor.json", "tokenizer.json"):
            if not (self.folder / name).is_file():
                raise ValueError(f"{folder} lacks {name}; pass the whole folder that scripts/export.py wrote")
        try:
            self.described: dict[str, Any] = json.loads((self.folder / "processor.json").read_text())
        except ValueError as error:
            raise ValueError(f"{self.folder / 'processor.json'} is damaged ({error}); copy the whole folder again") from error
        program = _choose(self.folder, program)
        from tokenizers import Tokenizer

        statistics = self.described["normalization"]["statistics"]
        key = unnorm_key or self.described["normalization"]["unnorm_key"]
        if key not in statistics:
            raise ValueError(f"unnorm_key is {key!r}; choose one of {', '.join(statistics)}")
        self._statistics: dict[str, Any] = statistics[key]
        self._tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self._tokenizer.no_padding()  # a file keeps what its tokenizer was last used with
        self._tokenizer.no_truncation()
        self._call = _open(self.folder / program)
        self._random = np.random.default_rng(7)

    def act(self, images: Mapping[str, np.ndarray], instruction: str, proprio: Any = None, noise: np.ndarray | None = None) -> np.ndarray:
        """Actions float64 [H, A] in the robot's units; a diffusion policy draws its `noise` [1, H, A] itself.

        Raises:
            ValueError: a camera or the state is missing or has another shape, the instruction is empty or too long, or the actions are
                not finite.
        """
        wanted, inputs = self.described["inputs"], {"images": self._images(images), "prompt_ids": self._prompt(instruction)}
        if "proprio" in wanted:
            inputs["proprio"] = self._proprio(proprio)
        if "noise" in wanted:
            drawn = self._random.standard_normal(wanted["noise"]["shape"]) if noise is None else noise
            inputs["noise"] = np.asarray(drawn, np.float32)
        actions = self._call(inputs)[0].astype(np.float64)
        if not np.isfinite(actions).all():
            raise ValueError("the program predicted actions that are not finite, which no robot may get; export it with --dtype float32")
        low, high, mask, constant = self._bounds("action")
        scaled = 0.5 * (actions + 1) * (high - low + _EPSILON) + low
        return np.where(constant, low, np.where(mask, scaled, actions))

    def _images(self, images: Mapping[str, np.ndarray]) -> np.ndarray:
        """uint8 [1, N, S, S, 3]."""
        steps, prepared = self.described["images"], []
        for name in steps["cameras"]:
            image = np.asarray(images[name]) if name in images else None
            if image is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                found = "nothing" if image is None else f"{image.dtype} {list(image.shape)}"
                raise ValueError(f"camera {name!r}: expected a uint8 RGB array [height, width, 3], found {found}")
            image = _jpeg_round_trip(image) if steps["jpeg_round_trip"] else image
            image = _resize(image, steps["size"])
            prepared.append(_crop(image, steps["crop_area"]) if steps["center_crop"] else image)
        return np.stack(prepared)[None]

    def _prompt(self, instruction: str) -> np.ndarray:
        """int64 [1, L]."""
        described = self.described["prompt"]
        if not isinstance(instruction, str):
            raise ValueError(
                f"the instruction must be a text (str), found {type(instruction).__name__} {instruction!r}; decode bytes first"
            )
        if not instruction.strip():
            raise ValueError("the instruction is empty; say what the robot should do, for example 'open the drawer'")
        ids = self._tokenizer.encode(described["template"].format(instruction=instruction.lower())).ids
        ids = ids if ids[-1] == described["last_id"] else [*ids, described["last_id"]]
        if ids[0] != described["first_id"]:
            raise ValueError(f"tokenizer.json begins prompts with {ids[0]}, the policy with {described['first_id']}; copy the folder again")
        if len(ids) > described["longest"]:
            raise ValueError(f"the instruction makes a prompt of {len(ids)} tokens, the program takes {described['longest']}; shorten it")
        return np.array([ids], np.int64)

    def _proprio(self, proprio: Any) -> np.ndarray:
        """Normalised, float32 [1, P]."""
        low, high, mask, constant = self._bounds("proprio")
        if proprio is None or np.shape(proprio) != low.shape or not np.isfinite(proprio).all():
            names = ", ".join(self.described["platform"]["proprio_names"])
            raise ValueError(f"proprio must hold {len(low)} finite numbers ({names}), found {proprio}")
        values = np.asarray(proprio, np.float64)
        scaled = np.clip(2 * (values - low) / (high - low + _EPSILON) - 1, -1, 1)
        if self.described["normalization"]["published"]:
            return np.clip(np.where(mask, scaled, values), -1, 1).astype(np.float32)[None]
        return np.where(constant, 0, np.where(mask, scaled, values)).astype(np.float32)[None]

    def _bounds(self, quantity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Low, high, whether a dimension is normalised, and whether it never changed in training, of "action" or "proprio"."""
        described, statistics = self.described["normalization"], self._statistics[quantity]
        names = {"bounds": ("min", "max"), "bounds_q99": ("q01", "q99")}[described["kind"]]
        low, high = (np.asarray(statistics[name], np.float64) for name in names)
        constant = np.asarray(statistics.get("min", low)) == np.asarray(statistics.get("max", high))
        mask = np.asarray(statistics.get("mask", np.ones(len(low))), bool)
        return low, high, mask, constant & (not described["published"])


def _choose(folder: Path, program: str | None) -> str:
    """The name of the program to run: `program`, or the first that can be run here.

    Raises:
        ValueError: it is not there, or a package is missing.
    """
    there = [name for name in PROGRAMS if (folder / name).is_file()]
    if not there or (program is not None and program not in there):
        raise ValueError(f"{folder} holds {', '.join(there) or 'no program'}, not {program or ' or '.join(PROGRAMS)}")
    wanted = there if program is None else [program]
    able = [name for name in wanted if find_spec(PROGRAMS[name]) is not None]
    missing = [package for package, module in _PACKAGES.items() if find_spec(module) is None]
    missing += [] if able else [" or ".join(dict.fromkeys(PROGRAMS[name] for name in wanted))]
    if missing:
        raise ValueError(f"not installed here, and needed to run {folder}: {', '.join(missing)}; get it with pip install")
    return able[0]


def _open(program: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """The program as a function of its named inputs."""
    name, path = program.name, str(program)
    if name == "policy.onnx":
        import onnxruntime

        able = onnxruntime.get_available_providers()
        session = onnxruntime.InferenceSession(path, providers=[name for name in _PROVIDERS if name in able])
        return lambda inputs: session.run(["actions"], inputs)[0]
    import torch

    if name == "policy.aoti.pt2":
        call: Callable[..., Any] = torch._inductor.aoti_load_package(path)
    else:
        call = torch.export.load(path).module()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return call(**{key: torch.from_numpy(value) for key, value in inputs.items()}).numpy()

    return run


def _jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """The image as a JPEG file gives it back: training images were such files."""
    import simplejpeg  # its decoder gives TensorFlow's pixels, which training saw
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling="4:2:0", dpi=(300, 300))
    return simplejpeg.decode_jpeg(buffer.getvalue(), "RGB", fastdct=True, fastupsample=False)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [S, S, 3] by the Lanczos window with three lobes, which widens when shrinking."""
    if image.shape[:2] == (size, size):
        return image
    rows, columns = (_lanczos3(length, size) for length in image.shape[:2])
    resized = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float32), columns, optimize=True)
    return np.clip(np.round(resized), 0, 255).astype(np.uint8)


def _lanczos3(length: int, size: int) -> np.ndarray:
    """float32 [size, length]: how much each input pixel adds to each output pixel."""
    scale = length / size
    centers = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(length)[None, :] + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _crop(image: np.ndarray, area: float) -> np.ndarray:
    """uint8 [S, S, 3]: the middle with `area` of it, bilinear back to S; the outer pixel centres lie on the edges of the middle."""
    size, side = len(image), area**0.5
    places = ((1 - side) / 2 + np.linspace(0, side, size)) * (size - 1)
    first = np.minimum(places.astype(int), size - 2)
    share = (places - first).astype(np.float32)
    pixels = image.astype(np.float32) / 255
    rows = pixels[first] * (1 - share)[:, None, None] + pixels[first + 1] * share[:, None, None]
    cropped = rows[:, first] * (1 - share)[:, None] + rows[:, first + 1] * share[:, None]
    return np.minimum(cropped * 255.5, 255).astype(np.uint8)
