"""Files written tensor by tensor are safetensors files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from prismatic.training.tensor_files import write_tensors


def test_what_is_written_reads_as_safetensors(tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.arange(6, dtype=torch.float32).view(2, 3).t(),
        "step": torch.tensor(3.0),
        "half": torch.randn(5).bfloat16(),
        "state/bytes": torch.arange(7, dtype=torch.uint8),
        "long": torch.tensor([-(2**40)]),
        "empty": torch.zeros(0, 4),
    }
    write_tensors(tmp_path / "file.safetensors", tensors, iter(tensors.values()), {"state/number": "3"})
    found = load_file(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor.contiguous(), rtol=0, atol=0)
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        assert file.metadata() == {"state/number": "3"}


def test_one_tensor_too_few_is_noticed(tmp_path: Path) -> None:
    tensors = {"one": torch.zeros(1), "other": torch.zeros(1)}
    with pytest.raises(ValueError, match="shorter"):
        write_tensors(tmp_path / "file.safetensors", tensors, iter([torch.zeros(1)]), {})
