"""Safetensors files written one tensor at a time, so that nobody holds them all.

8 bytes: length of the header; the header, JSON: name -> dtype, shape, place; then the bytes of every tensor, one behind the other
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(path: Path, like: Mapping[str, torch.Tensor], tensors: Iterable[torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes `path`: `tensors` come in the order of `like`, which says their names, dtypes and (whole) shapes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, tensor in like.items():
        end = place + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for expected, tensor in zip(like.values(), tensors, strict=True):
            assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype)
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
