"""The files of a checkpoint folder, in the published layout, and nothing half-written.

model.safetensors (or shards + index), config.json, generation_config.json     the model, adapters merged
lora_adapter/                                                                   the adapters alone
action_head--<suffix>, proprio_projector--<suffix>,                             the modules beside it
noisy_action_projector--<suffix>, vision_backbone--<suffix>                     (the latter with FiLM, adapters unmerged)
tokenizer files, preprocessor_config.json, dataset_statistics.json
policy.json, reference_frames.png, manifest.json, trainer_state/                ours
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for a file that is no checkpoint, or that would run code
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from prismatic.models.weight_files import check_finite

STATISTICS_FILE = "dataset_statistics.json"
ADAPTER_FOLDER = "lora_adapter"
ADAPTER_FILE = "adapter_model.safetensors"
ACTION_HEAD = "action_head"
PROPRIO_PROJECTOR = "proprio_projector"
NOISY_ACTION_PROJECTOR = "noisy_action_projector"
VISION_BACKBONE = "vision_backbone"
MANIFEST_FILE = "manifest.json"
TRAINER_STATE_FOLDER = "trainer_state"  # needed to resume, not to act

_SIZES, _DIGESTS = "sizes", "sha256"  # of the manifest
# What lies in a checkpoint folder beside the policy.
_BESIDE = {TRAINER_STATE_FOLDER, MANIFEST_FILE, "wandb", "tensorboard"}
# Files of evaluations that were told to write there, too, whatever their ending.
_RESULTS = {"report", "robustness", "improve", "failures", "episodes"}
_FOR_PEOPLE = {".md", ".html", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".mp4", ".jsonl", ".log", ".csv", ".ipynb"}
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|[a-z_]+--[a-z0-9_]*checkpoint\.pt")
_END = 1 << 16  # bytes
_SAMPLE = 4096  # bytes of a tensor
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EISDIR, errno.EBADF)  # of folders, where there is none

# The published dtypes of the component files; the FiLM weights of a vision backbone are float32 like the projectors.
_COMPONENT_DTYPES = {
    ACTION_HEAD: torch.bfloat16,
    PROPRIO_PROJECTOR: torch.float32,
    NOISY_ACTION_PROJECTOR: torch.float32,
    VISION_BACKBONE: torch.bfloat16,
}
# The published code wraps all components but the vision backbone in DDP before it saves them; its loader strips the prefix again.
_WRAPPER_PREFIX = "module."


def component_suffix(step: int | None) -> str:
    """The end of a component's file name: of step `step`, or of the one latest checkpoint."""
    return "latest_checkpoint.pt" if step is None else f"{step}_checkpoint.pt"


def save_component(module: torch.nn.Module, folder: Path, component: str, suffix: str) -> None:
    """Writes `folder`/`component`--`suffix` with the published key prefix and dtypes."""
    prefix = "" if component == VISION_BACKBONE else _WRAPPER_PREFIX
    state = {}
    for key, value in module.state_dict().items():
        is_film = component == VISION_BACKBONE and is_film_layer(key)
        state[prefix + key] = value.detach().to("cpu", torch.float32 if is_film else _COMPONENT_DTYPES[component])
    torch.save(state, folder / f"{component}--{suffix}")


def is_film_layer(name: str) -> bool:
    """Whether a weight of that name modulates a vision tower."""
    return ".scale." in name or ".shift." in name


def has_component(folder: Path, component: str) -> bool:
    """Whether a file of `component` is there."""
    return any(folder.glob(f"{component}--*checkpoint.pt"))


def find_component(folder: Path, component: str) -> Path:
    """The one file of `folder` that holds `component`.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = sorted(path for path in folder.iterdir() if component in path.name and "checkpoint" in path.name)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        remedy = "remove those of other steps" if found else "the policy needs it, copy the whole checkpoint folder"
        raise ValueError(f"{folder} must hold exactly one file {component}--*checkpoint.pt, found {names}; {remedy}")
    return found[0]


def read_component(folder: Path, component: str, device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """The state dict in the file of `component`, on the CPU; on the meta device names and shapes alone.

    Raises:
        ValueError: the file is absent or unreadable, or weights are not finite.
    """
    path = find_component(folder, component)
    try:
        state = torch.load(path, map_location=device or "cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}); copy it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold the weights of {component} by name; copy it again")
    check_finite(state, str(path))
    return {key.removeprefix(_WRAPPER_PREFIX): value for key, value in state.items()}


def load_component(module: torch.nn.Module, folder: Path, component: str) -> None:
    """Fills `module` with the weights of `component`, strictly.

    Raises:
        ValueError: the file is absent or unreadable, or its keys and shapes are not the module's; every difference is listed.
    """
    load_strictly(module, read_component(folder, component), str(find_component(folder, component)))


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: the file is absent or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}); copy or download it again") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "no details"


def load_strictly(module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Fills `module` with `state`, cast to the module's dtypes.

    Raises:
        ValueError: missing, unexpected or misshapen keys, all listed with expected and found shape.
    """
    check_keys(module.state_dict(), state, f"{source} does not fit {type(module).__name__}")
    module.load_state_dict(state)


def check_keys(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], problem: str) -> None:
    """Returns if both hold the same names with the same shapes.

    Raises:
        ValueError: they do not; the message begins with `problem` and lists every difference.
    """
    lines = [f"missing {key} {list(expected[key].shape)}" for key in expected if key not in found]
    lines += [f"unexpected {key} {list(found[key].shape)}" for key in found if key not in expected]
    lines += [
        f"{key}: expected {list(expected[key].shape)}, found {list(found[key].shape)}"
        for key in expected
        if key in found and expected[key].shape != found[key].shape
    ]
    if lines:
        shown = "\n  ".join(lines[:20]) + (f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise ValueError(f"{problem}:\n  {shown}")


def check_free_space(folder: Path, num_bytes: int, remedy: Callable[[], str] = lambda: "free some") -> None:
    """Returns if `folder`'s disk can take `num_bytes` more.

    Raises:
        ValueError: it cannot; the message gives both figures, and ends with what helps as `remedy` says.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if free < num_bytes:
        raise ValueError(f"a checkpoint in {folder} needs {format_bytes(num_bytes)}, the disk has {format_bytes(free)} free; {remedy()}")


def check_writable(folder: Path) -> None:
    """Returns if files can be made in `folder`, or folders in the place where it will be; leaves no trace.

    Raises:
        ValueError: they cannot.
    """
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(
            f"{place} cannot be written to ({error.strerror}), where {folder} belongs; choose another --run_root_dir"
        ) from error


def format_bytes(count: int) -> str:
    """For people, with the exact count."""
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:.1f} {name} ({count:,} bytes)"


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """An empty folder to fill; when the block ends without an error it takes the place of `final`, all at once and flushed to the disk.

    Its last file is a manifest of the others. What else is in an existing `final` (logs) moves along; the files that its manifest
    lists go, and so do weights, wherever they came from: they would pass for those of the new checkpoint. After an error `final` is as
    it was. After a sudden death at any moment, `recover_folder` finds the old or the new one.
    """
    temporary = temporary_folder(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _write_manifest(temporary)
        for path in (*temporary.rglob("*"), temporary):
            _flush_to_disk(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(previous_folder(final), ignore_errors=True)
        final.rename(previous_folder(final))
    temporary.rename(final)
    _flush_to_disk(final.parent)
    recover_folder(final)


def temporary_folder(final: Path) -> Path:
    """Where `atomic_folder` gathers what will be `final`; nobody needs what a dead process left there."""
    return final.with_name(f".{final.name}.tmp")


def previous_folder(final: Path) -> Path:
    """Where `atomic_folder` keeps the old `final` while the new one takes its place."""
    return final.with_name(f".{final.name}.previous")


def recover_folder(final: Path) -> None:
    """Brings `atomic_folder`'s replacement of `final` to an end, wherever it stopped: the old folder comes back if the new one is not
    in place yet, else its logs move over and it goes."""
    previous = previous_folder(final)
    if previous.exists() and not final.exists():
        previous.rename(final)
    if previous.exists():
        listed = {Path(name).parts[0] for name in read_manifest(previous) or {}} | {MANIFEST_FILE}
        for path in previous.iterdir():
            if path.name not in listed and not is_weights(path.name) and not (final / path.name).exists():
                path.rename(final / path.name)
        remove_folder(previous)
    shutil.rmtree(temporary_folder(final), ignore_errors=True)


def is_weights(name: str) -> bool:
    """Whether the file or folder of a checkpoint that is called so holds weights, or says where they are."""
    return name == ADAPTER_FOLDER or _WEIGHTS.fullmatch(name) is not None


def remove_folder(folder: Path) -> None:
    """Deletes `folder`; a process that dies meanwhile leaves nothing under its name."""
    final = folder.with_name(folder.name.removeprefix(".").removesuffix(".previous"))
    shutil.rmtree(temporary_folder(final), ignore_errors=True)
    folder.rename(temporary_folder(final))
    shutil.rmtree(temporary_folder(final))


def list_weights_anew(folder: Path) -> None:
    """The manifest of `folder`, if it has one, lists its weights as they are now, after they were changed on purpose."""
    content = _manifest(folder)
    if content is None:
        return
    is_old = _SIZES not in content
    sizes = dict(content if is_old else content[_SIZES])
    digests = {} if is_old else dict(content.get(_DIGESTS, {}))
    for name in [name for name in sizes if _WEIGHTS.fullmatch(name)]:
        del sizes[name]
        digests.pop(name, None)
    for path in sorted(path for path in folder.iterdir() if path.is_file() and _WEIGHTS.fullmatch(path.name)):
        sizes[path.name] = path.stat().st_size
        if path.name.endswith(".json") and not is_old:
            digests[path.name] = _digest(path)
    temporary = folder / f".{MANIFEST_FILE}.tmp"
    temporary.write_text(json.dumps(sizes if is_old else {_SIZES: sizes, _DIGESTS: digests}, indent=1) + "\n")
    os.replace(temporary, folder / MANIFEST_FILE)


def read_samples(path: Path) -> bytes:
    """What tells one file of weights from another without reading all of it: of safetensors the header and 4 KiB of every tensor.

    A model that merged adapters changed differs from its base in the middle of the file alone. Of any other file, both ends.
    """
    whole = path.stat().st_size
    with path.open("rb") as file:
        try:
            size = struct.unpack("<Q", file.read(8))[0]
            header = file.read(size if size < whole else 0)
            places = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        except (struct.error, ValueError, TypeError, KeyError, AttributeError):
            file.seek(0)
            start = file.read(_END)
            file.seek(max(len(start), whole - _END))
            return start + file.read(_END)
        samples = [header]
        for start, end in sorted(places):
            file.seek(8 + size + start)
            samples.append(file.read(min(_SAMPLE, end - start)))
    return b"".join(samples)


def read_manifest(folder: Path) -> dict[str, int] | None:
    """File -> size [bytes] of all that `atomic_folder` put into `folder`; None for a folder without a (whole) manifest."""
    content = _manifest(folder)
    return content if content is None else content.get(_SIZES, content)


def _manifest(folder: Path) -> dict[str, Any] | None:
    """{"sizes": {file: bytes}, "sha256": {text: digest}}; of earlier versions {file: bytes}."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    is_whole = isinstance(content, dict) and all(isinstance(content.get(part, {}), dict) for part in (_SIZES, _DIGESTS))
    return content if is_whole else None


def find_damage(folder: Path, part: str = "") -> str | None:
    """What contradicts the manifest of `folder` among its files below `part`, in words; None if all of them are there, whole."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"it has no {MANIFEST_FILE}"
    for name, size in manifest.items():
        if not name.startswith(part):
            continue
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            return f"{name} is missing" if found is None else f"{name} has {found:,} bytes instead of {size:,}"
    return None


def fingerprint(folder: Path) -> str:
    """16 hex digits that change with the content of a checkpoint, not with where it lies or what lies beside it; of large files samples
    are read."""
    digest = hashlib.sha256()
    for path in policy_files(folder):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + read_samples(path))
    return digest.hexdigest()[:16]


def policy_files(folder: Path) -> list[Path]:
    """The files in `folder` that may change what the policy does, by name: no trainer state, logs, pictures and pages for people, and
    nothing of an evaluation in a folder of its own."""
    found = (path for path in (*folder.glob("*"), *(folder / ADAPTER_FOLDER).rglob("*")) if path.is_file())
    inside = ((path, path.relative_to(folder)) for path in found)
    return sorted(
        path for path, name in inside if not _BESIDE.intersection(name.parts) and not is_result(name.name) and not _is_for_people(name)
    )


def is_result(name: str) -> bool:
    """Whether the file that is called so beside a policy tells of an evaluation."""
    return Path(name).stem in _RESULTS and Path(name).suffix in {".json", *_FOR_PEOPLE}


def _is_for_people(name: Path) -> bool:
    return name.suffix.lower() in _FOR_PEOPLE or any(part.startswith(".") for part in name.parts)


def changed_texts(folder: Path) -> list[str]:
    """The texts (policy.json, statistics, ...) whose content is another than when the checkpoint was saved, whatever their size."""
    sizes = {name: size for name, size in (read_manifest(folder) or {}).items() if name.endswith(".json") and (folder / name).is_file()}
    digests = (_manifest(folder) or {}).get(_DIGESTS, {})
    return [
        name
        for name, size in sizes.items()
        if (folder / name).stat().st_size != size or (name in digests and _digest(folder / name) != digests[name])
    ]


def _write_manifest(folder: Path) -> None:
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    digests = {name: _digest(path) for name, path in paths.items() if name.endswith(".json")}
    (folder / MANIFEST_FILE).write_text(json.dumps({_SIZES: sizes, _DIGESTS: digests}, indent=1) + "\n")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush_to_disk(path: Path) -> None:
    """As far as the file system can: some (SMB, object stores mounted as folders) flush files, but do not know it of folders."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_FLUSH:
            raise
