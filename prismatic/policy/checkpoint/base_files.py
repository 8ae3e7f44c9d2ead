"""Which base model a run's adapters belong to, told by its files: another one of the same shape would load, and act at random.

A file is known by its name, its size and a digest of samples of all tensors; config.json by what training depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from prismatic.models.json_files import read_object
from prismatic.policy.checkpoint.files import ADAPTER_FOLDER, format_bytes, read_samples
from prismatic.policy.checkpoint.spec import POLICY_FILE
from prismatic.policy.checkpoint.stored_weights import weight_paths

_CONFIG = "config.json"
_NOT_OF_THE_MODEL = ("norm_stats", "transformers_version", "auto_map", "_name_or_path", "torch_dtype", "dtype")  # keys of config.json


def named_base(folder: Path) -> str | None:
    """The base model, folder or Hub id, that the adapters in `folder` name; None: there are none, or they name none.

    Raises:
        ValueError: adapter_config.json is damaged.
    """
    path = folder / ADAPTER_FOLDER / "adapter_config.json"
    named = read_object(path).get("base_model_name_or_path") if path.is_file() else None
    if not isinstance(named, str | None):
        raise ValueError(f"{path}: base_model_name_or_path is {str(named)[:80]}, expected a text; copy it again")
    return named or None


def describe_base(folder: Path) -> dict[str, str]:
    """File -> "<bytes> <digest>" of what makes the model in `folder`, as far as it is there."""
    described = {}
    for path in weight_paths(folder):
        described[path.name] = f"{path.stat().st_size} {_digest(read_samples(path))}"
    if (folder / _CONFIG).is_file():
        content = json.loads((folder / _CONFIG).read_text())
        kept = {key: value for key, value in content.items() if key not in _NOT_OF_THE_MODEL}
        described[_CONFIG] = f"0 {_digest(json.dumps(kept, sort_keys=True).encode())}"
    return described


def differences(known: Mapping[str, str], found: Mapping[str, str], is_whole: bool) -> list[str]:
    """What of the files in `known` is otherwise in `found`; absent ones count only where all would be there."""
    told = []
    for name, description in known.items():
        if name not in found:
            told += [f"{name} is missing"] if is_whole else []
        elif found[name] != description:
            (size, _), (other_size, _) = (text.split() for text in (description, found[name]))
            sizes = f" ({format_bytes(int(size))} then, {format_bytes(int(other_size))} now)" if size != other_size else ""
            told.append(f"{name} differs{sizes}")
    told += [f"{name} is new" for name in found if known and name not in known]
    return told


def check_base(folder: Path, known: Mapping[str, str], base: str, base_folder: Path) -> None:
    """Returns if the model in `base_folder`, which the user knows as `base`, is the one that the adapters in `folder` were trained over.

    `known` is what policy.json says of it; checkpoints of earlier versions say nothing, and any base of the right shape is taken.

    Raises:
        ValueError: it is another one; every file that differs is named.
    """
    if told := differences(known, describe_base(base_folder), is_whole=True):
        raise ValueError(
            f"{base} is not the base model that the adapters in {folder} were trained over: {'; '.join(told)}. Pass a copy of that one. "
            f"If it is the same model, stored anew (other shards or precision), delete base_files from {folder / POLICY_FILE}"
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
