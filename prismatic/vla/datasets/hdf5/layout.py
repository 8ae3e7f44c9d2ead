"""Which files a folder holds, and in which of the two layouts. Letters: T steps, A action dim, P proprio dim.

    ACT, one episode per file (`act`)                    LIBERO and robomimic, one file per task (`robomimic`)
    /action                       [T, A]                 /data/demo_0/actions              [T, A]
    /observations/qpos, qvel ...  [T, P]                 /data/demo_0/obs/ee_states ...    [T, ...]
    /observations/images/<name>   see `images`           /data/demo_0/obs/agentview_rgb    uint8 [T, H, W, 3]
    /base_action                  [T, 2]                 /data attribute problem_info      JSON with language_instruction
    /compress_len                 [cameras, T]           /mask/train, /mask/valid          names of demonstrations

Where instructions may stand: `instructions`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prismatic.vla.datasets.broken_files import file_problem
from prismatic.vla.datasets.hdf5.columns import is_group
from prismatic.vla.datasets.repairs import Repairs
from prismatic.vla.datasets.split_names import usual_split

SUFFIXES = (".hdf5", ".h5")
_UNOPENED = "Unable to"  # begins what h5py says of a damaged member, as of an absent one
_NO_LOCK = "unable to lock file"  # stands in what h5py says of a file that another program writes
OBSERVATION_GROUPS = ("observations", "observation")  # of ACT's files; the second name is a variant of some recorders


def find_files(folder: Path, repairs: Repairs | None = None) -> list[Path]:
    """Every HDF5 file under `folder`, those behind symbolic links included, sorted by path; each real file once.

    Hidden files are somebody's temporary files and are left out.

    Raises:
        ValueError: the folder is missing or holds none.
    """
    repairs = repairs if repairs is not None else Repairs()
    found: dict[str, Path] = {}
    for path in files_below(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.name.startswith("."):
            repairs.note("hidden files are left out", str(path))
            continue
        if not path.is_file():
            repairs.note("links to files that are not there are left out", str(path))
            continue
        real = os.path.realpath(path)
        known = found.setdefault(real, path)
        if known != path:
            repairs.note("recordings that are linked several times are read once", f"{path} and {known}")
            found[real] = min(known, path, key=lambda item: (not _names_split(item, folder), item))
    if not found:
        raise ValueError(_nothing_found(folder))
    return sorted(found.values())


def files_below(folder: Path) -> Iterator[Path]:
    """Every file under `folder`, links to folders followed; nothing in hidden folders."""
    yield from _files_below(folder, ())


def _files_below(folder: Path, parents: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in parents or not os.path.isdir(real):  # a link to a folder above itself
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not _is_folder(entry):
            yield Path(entry.path)
        elif not entry.name.startswith("."):
            yield from _files_below(Path(entry.path), (*parents, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _nothing_found(folder: Path) -> str:
    mcap = next((path for path in files_below(folder) if path.suffix == ".mcap"), None)
    if mcap is not None:
        return f"{mcap} is an MCAP recording, which is not supported; export it to HDF5 or LeRobot with the recorder's tools"
    state = "holds no *.hdf5 file" if folder.is_dir() else "is a file, not a folder" if folder.exists() else "does not exist"
    return f"{folder} {state}; record demonstrations first, or pass the folder that holds them"


def split_folders(paths: list[Path], folder: Path) -> dict[Path, str]:
    """path -> split: "val" below a folder called val (valid, validation, eval), "test" below test where there is train, else "train"."""
    named = {path: _names_split(path, folder) for path in paths}
    has_train = "train" in named.values()
    return {path: "train" if split is None or (split == "test" and not has_train) else split for path, split in named.items()}


def _names_split(path: Path, folder: Path) -> str | None:
    """The split that a folder on the way from `folder` to `path` is called after; the nearest counts."""
    parts = [usual_split(part) for part in path.relative_to(folder).parts[:-1]]
    return next((split for split in reversed(parts) if split is not None), None)


def open_h5(path: Path) -> Any:
    """The h5py.File, for reading; the caller closes it.

    Raises:
        ValueError: not an HDF5 file, or damaged; the message names it.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        problem = (
            file_problem(path) or _lock_problem(error) or f"cannot be read as HDF5 ({error}); copy it again, or record the episode anew"
        )
        raise ValueError(f"{path}: {problem}") from error


def _lock_problem(error: OSError) -> str:
    """Why HDF5 could not lock a file, with what to do about it; "" if that was not what failed."""
    if _NO_LOCK not in str(error):
        return ""
    if os.strerror(errno.EAGAIN) in str(error):
        return "is open for writing in another program: wait until that has closed it, and touch the file if it has not changed since"
    return f"lies on a disk that cannot lock files ({error}): set HDF5_USE_FILE_LOCKING=FALSE in the environment, or copy it elsewhere"


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """The open h5py.File.

    Raises:
        ValueError: not an HDF5 file, damaged, or used in a wrong way inside; the message names the file.
    """
    with open_h5(path) as file, named_errors(path):
        yield file


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """What goes wrong with the open file `path` is a ValueError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # about another file, or the machine: the disk is full
            raise
        raise _damaged(path, error) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (KeyError, RuntimeError) as error:  # of h5py, where what holds the file together is damaged
        if isinstance(error, KeyError) and not str(error.args[0]).startswith(_UNOPENED):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: damaged ({error.args[0] if error.args else error}); copy it again, or record the episode anew")


def is_robomimic(file: Any) -> bool:
    """True for demonstrations in groups (/data/demo_0 ...), False for one episode in the layout of ACT.

    Raises:
        ValueError: neither layout.
    """
    if any(name in file for name in OBSERVATION_GROUPS):
        return False
    if demo_root(file) is None:
        raise ValueError(
            f"/observations is missing; found {sorted(map(str, file))} (expected the layout of ACT: /action, /observations/qpos, "
            "/observations/images, or of robomimic: /data/demo_0/...)"
        )
    return True


def demo_root(file: Any) -> str | None:
    """The group that holds one group per demonstration: "data", or "" for the file itself; None in files of ACT."""
    if any(name in file for name in OBSERVATION_GROUPS):
        return None
    if is_group(file.get("data")):
        return "data"
    return "" if any(is_group(item) and {"actions", "obs"} <= set(item) for item in file.values()) else None
