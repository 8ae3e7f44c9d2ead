"""The weights in a model folder, by name, without reading them all: in OpenVLA's layout (safetensors) or in Prismatic's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.json_files import read_object
from prismatic.policy.checkpoint.prismatic_layout import PrismaticWeights, is_prismatic, weights_file

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
_DTYPES = ("F64", "F32", "F16", "BF16")  # of weights, as safetensors names them


def has_weights(folder: Path) -> bool:
    """Whether `folder` holds a whole model."""
    return any((folder / name).is_file() for name in WEIGHT_FILES) or is_prismatic(folder)


def weight_paths(folder: Path) -> list[Path]:
    """The files that hold the weights, as far as they are there."""
    if is_prismatic(folder):
        return [weights_file(folder)] if any((folder / "checkpoints").glob("*.pt")) else []
    return sorted(folder.glob("model*.safetensors"))


def open_weights(folder: Path, config: OpenVLAConfig) -> StoredWeights | PrismaticWeights:
    """The weights of the model in `folder`, whose sizes are `config`.

    Raises:
        ValueError: a file is absent or damaged, or holds other parts than it should.
    """
    return PrismaticWeights.open(folder, config) if is_prismatic(folder) else StoredWeights(folder)


def _listed(index: Path) -> list[str]:
    """The files that an index of weights names."""
    content = read_object(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} has no weight_map of weights and files; copy or download it again")
    if not isinstance(content.get("metadata"), dict):  # transformers wants it
        raise ValueError(
            f'{index} has no "metadata", an object that may be empty; copy or download it again, or write "metadata": {{}} into it'
        )
    return sorted(set(places.values()))


class StoredWeights(Mapping[str, torch.Tensor]):
    """The tensors in a model folder by name, each read from the disk when it is asked for.

    Raises:
        ValueError: a file is absent or damaged.
    """

    def __init__(self, folder: Path) -> None:
        single, index = (folder / name for name in WEIGHT_FILES)
        files = [single.name] if single.is_file() else _listed(index)
        self._paths: dict[str, Path] = {}
        for name in files:
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} lacks {name}, which {index.name} lists; its download is incomplete, continue it or copy the file"
                )
            with self.open_file(folder / name) as file:
                self._paths |= dict.fromkeys(file.keys(), folder / name)

    def __getitem__(self, name: str) -> torch.Tensor:
        with self.open_file(self._paths[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def shapes(self) -> dict[str, torch.Tensor]:
        """Every tensor on the meta device: its shape without its content."""
        shapes: dict[str, torch.Tensor] = {}
        for path in sorted(set(self._paths.values())):
            with self.open_file(path) as file:
                shapes |= {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
        return shapes

    def other_dtypes(self) -> dict[str, str]:
        """Name -> dtype of tensors that are no plain floating-point weights: those of a quantized model."""
        found: dict[str, str] = {}
        for path in sorted(set(self._paths.values())):
            with self.open_file(path) as file:
                found |= {key: str(file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118
        return {key: dtype for key, dtype in found.items() if dtype not in _DTYPES}

    @staticmethod
    @contextmanager
    def open_file(path: Path) -> Iterator[Any]:
        """The safetensors file, its tensors not read yet.

        Raises:
            ValueError: it is absent or damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({error}); copy or download it again") from error
