"""features.json of a TFDS folder -> how each leaf of a step is stored. Source: tensorflow_datasets/core/features/*."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STEPS = "steps"


@dataclass(frozen=True)
class StepFeature:
    """How one leaf of a step is stored."""

    kind: str  # "image", "text", "texts" or "tensor"
    dtype: str
    shape: tuple[int, ...]  # of one step
    encoding: str = "none"  # tensors only: "none", "bytes" or "zlib"


def step_features(features: Mapping[str, Any], folder: Path) -> dict[str, StepFeature]:
    """Path of a leaf ("observation/state") -> how it is stored, for all leaves of a step.

    Raises:
        ValueError: features.json describes no steps.
    """
    top = features.get("featuresDict", {}).get("features", {})
    step = top.get(STEPS, {}).get("sequence", {}).get("feature")
    if step is None:
        found = ", ".join(sorted(top)) or "nothing"
        raise ValueError(f"{folder / 'features.json'} describes no data set of steps: not an RLDS data set; it describes: {found}")
    leaves = dict(_leaves(step, ""))
    for path, feature in leaves.items():
        if feature.kind == "tensor":
            _check_dtype(path, feature.dtype, folder)
    return leaves


def _check_dtype(path: str, dtype: Any, folder: Path) -> None:
    try:
        number_type(dtype)
    except TypeError as error:
        raise ValueError(
            f"{folder / 'features.json'} says that {path} is of the dtype {dtype!r}, which NumPy does not know; copy the data set "
            "again, or store it as another one"
        ) from error


def number_type(dtype: str) -> np.dtype:
    """Of the values of a tensor; bfloat16, which TFDS stores as float32, is that.

    Raises:
        TypeError: there is none of that name.
    """
    return np.dtype(dtype if dtype != "bfloat16" else "float32")


def _leaves(feature: Mapping[str, Any], path: str) -> Iterator[tuple[str, StepFeature]]:
    if "featuresDict" in feature:
        for name, child in feature["featuresDict"]["features"].items():
            yield from _leaves(child, f"{path}/{name}" if path else name)
    elif "image" in feature:
        yield path, StepFeature("image", feature["image"].get("dtype", "uint8"), ())
    elif "text" in feature:
        yield path, StepFeature("text", "string", ())
    elif "classLabel" in feature:
        yield path, StepFeature("tensor", "int64", ())
    elif "tensor" in feature:
        tensor = feature["tensor"]
        shape = tuple(int(length) for length in tensor.get("shape", {}).get("dimensions", []))
        is_text = tensor["dtype"] in ("string", "object")
        if min(shape, default=0) >= 0:
            yield path, StepFeature("text" if is_text else "tensor", tensor["dtype"], shape, tensor.get("encoding", "none").lower())
        elif is_text and len(shape) == 1:
            yield path, StepFeature("texts", "string", shape)
    elif "text" in feature.get("sequence", {}).get("feature", {}):
        yield path, StepFeature("texts", "string", (-1,))
    # Other kinds (video, audio, other nested sequences, rows of changing width) are left out: an entry that asks for one is told
    # which keys exist.
