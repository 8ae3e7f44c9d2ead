"""The files of a checkpoint folder, in the published layout, and nothing half-written.

model.safetensors (or shards + index), config.json, generation_config.json     the model, adapters merged
lora_adapter/                                                                   the adapters alone
action_head--<suffix>, proprio_projector--<suffix>,                             the modules beside it
noisy_action_projector--<suffix>, vision_backbone--<suffix>                     (the latter with FiLM, adapters unmerged)
tokenizer files, preprocessor_config.json, dataset_statistics.json
policy.json, trainer_state/                                                     ours
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for a file that is no checkpoint, or that would run code

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

STATISTICS_FILE = "dataset_statistics.json"
ADAPTER_FOLDER = "lora_adapter"
ADAPTER_FILE = "adapter_model.safetensors"
ACTION_HEAD = "action_head"
PROPRIO_PROJECTOR = "proprio_projector"
NOISY_ACTION_PROJECTOR = "noisy_action_projector"
VISION_BACKBONE = "vision_backbone"

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
        is_film = component == VISION_BACKBONE and (".scale." in key or ".shift." in key)
        state[prefix + key] = value.detach().to("cpu", torch.float32 if is_film else _COMPONENT_DTYPES[component])
    torch.save(state, folder / f"{component}--{suffix}")


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
        raise ValueError(
            f"{folder} must hold exactly one file {component}--*checkpoint.pt, found {names}; "
            "the policy needs it, copy the whole checkpoint folder"
        )
    return found[0]


def read_component(folder: Path, component: str) -> dict[str, torch.Tensor]:
    """The state dict in the file of `component`, on the CPU.

    Raises:
        ValueError: the file is absent or unreadable.
    """
    path = find_component(folder, component)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}); copy it again") from error
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


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Returns if `folder`'s disk can take `num_bytes` more.

    Raises:
        ValueError: it cannot; the message gives both figures.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise ValueError(
            f"a checkpoint in {folder} needs {num_bytes / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB free; "
            "free some, choose another --run_root_dir, or pass --save_latest_checkpoint_only True"
        )


@contextmanager
def atomic_folder(final: Path, keep: tuple[str, ...] = ()) -> Iterator[Path]:
    """An empty folder to fill; when the block ends without an error it takes the place of `final`, all at once.

    Files of an existing `final` named in `keep` move along. After an error `final` is as it was.
    """
    temporary, previous = final.with_name(f".{final.name}.tmp"), previous_folder(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush_to_disk(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():
        for name in keep:
            if (final / name).exists():
                shutil.copy2(final / name, temporary / name)
        shutil.rmtree(previous, ignore_errors=True)
        final.rename(previous)
    temporary.rename(final)
    shutil.rmtree(previous, ignore_errors=True)


def previous_folder(final: Path) -> Path:
    """Where `atomic_folder` keeps the old `final` while the new one takes its place."""
    return final.with_name(f".{final.name}.previous")


def recover_folder(final: Path) -> None:
    """Puts the old `final` back if a process died between the two renames of `atomic_folder`."""
    if not final.exists() and previous_folder(final).exists():
        previous_folder(final).rename(final)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
