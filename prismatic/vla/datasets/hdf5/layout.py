"""Which files a folder holds, and in which of the two layouts. Letters: T steps, A action dim, P proprio dim.

    ACT, one episode per file (`act`)                    LIBERO and robomimic, one file per task (`robomimic`)
    /action                       [T, A]                 /data/demo_0/actions              [T, A]
    /observations/qpos, qvel ...  [T, P]                 /data/demo_0/obs/ee_states ...    [T, ...]
    /observations/images/<name>   see `images`           /data/demo_0/obs/agentview_rgb    uint8 [T, H, W, 3]
    /compress_len                 [cameras, T]           /data attribute problem_info      JSON with language_instruction

Where instructions may stand: `instructions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUFFIXES = (".hdf5", ".h5")


def find_files(folder: Path) -> list[Path]:
    """Every HDF5 file under `folder`, sorted by path; hidden ones are somebody's temporary files.

    Raises:
        ValueError: the folder is missing or holds none.
    """
    paths = [path for suffix in SUFFIXES for path in folder.rglob(f"*{suffix}")]
    paths = sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not paths:
        mcap = next(folder.rglob("*.mcap"), None)
        if mcap is not None:
            raise ValueError(f"{mcap} is an MCAP recording, which is not supported; export it to HDF5 or LeRobot with the recorder's tools")
        state = "holds no *.hdf5 file" if folder.is_dir() else "does not exist"
        raise ValueError(f"{folder} {state}; record demonstrations first, or pass the folder that holds them")
    return paths


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """The open h5py.File.

    Raises:
        ValueError: not an HDF5 file, damaged, or used in a wrong way inside; the message names the file.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as HDF5 ({error}); copy it again, or record the episode anew") from error
    try:
        with file:
            yield file
    except OSError as error:
        if error.errno is not None:  # about another file, or the machine: the disk is full
            raise
        raise ValueError(f"{path}: damaged ({error}); copy it again, or record the episode anew") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_robomimic(file: Any) -> bool:
    """True for one file per task (/data/demo_0 ...), False for one file per episode.

    Raises:
        ValueError: neither layout.
    """
    if "data" in file:
        return True
    for part in ("action", "observations/qpos", "observations/images"):
        if part not in file:
            raise ValueError(
                f"/{part} is missing; found {sorted(file)} (expected the layout of ACT: /action, /observations/qpos, /observations/images, "
                "or of robomimic: /data/demo_0/...)"
            )
    return False
