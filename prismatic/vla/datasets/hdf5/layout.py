"""What stands where in the HDF5 files of ALOHA (ACT) and of LIBERO / robomimic. Letters: T steps, A action dim, P proprio dim.

    ACT, one episode per file                            LIBERO and robomimic, one file per task
    /action                       [T, A]                 /data/demo_0/actions              [T, A]
    /observations/qpos, qvel ...  [T, P]                 /data/demo_0/obs/ee_states ...    [T, ...]
    /observations/images/<name>   see below              /data/demo_0/obs/agentview_rgb    uint8 [T, H, W, 3]
    /compress_len                 [cameras, T]           /data attribute problem_info      JSON with language_instruction

Images of ACT files are raw, uint8 [T, H, W, 3], or JPEG files padded with zeros to one length, uint8 [T, L], whose true lengths are in
/compress_len. The zeros are cut off, which is exact because a JPEG file ends with a marker that is not zero; /compress_len itself does not
say which of its rows belongs to which camera. Colours are what the JPEG file says, as LeRobot's and openpi's readers take them.

The language instruction of an ACT file is its attribute language_instruction, or its data set /language_raw, or the folder's
instructions.json {file name or stem, or "*": text}, or the folder's instruction.txt. LIBERO's is in problem_info, else in the file's name.

LIBERO stores images as OpenGL renders them, upside down. Policies see them rotated by 180 degrees, so the frames read here are
rotated. Other robomimic files are upright already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.images import decode_image
from prismatic.vla.types import check_image

SUFFIXES = (".hdf5", ".h5")
INSTRUCTIONS_FILE, INSTRUCTION_FILE = "instructions.json", "instruction.txt"
# Names that recorders use for a camera -> the name that the registry's entries use.
CAMERA_ALIASES = {
    "cam_high": "image",
    "cam_low": "secondary_image",
    "cam_left_wrist": "left_wrist_image",
    "cam_right_wrist": "right_wrist_image",
    "primary": "image",
    "secondary": "secondary_image",
    "wrist": "wrist_image",
    "left_wrist": "left_wrist_image",
    "right_wrist": "right_wrist_image",
    "agentview_rgb": "image",
    "eye_in_hand_rgb": "wrist_image",
    "agentview_image": "image",
    "robot0_eye_in_hand_image": "wrist_image",
}
_SCENE = re.compile(r"^[A-Z_]+SCENE\d+_")  # KITCHEN_SCENE3_turn_on_the_stove


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


def is_upside_down(file: Any) -> bool:
    """True for LIBERO's files, whose images are as OpenGL renders them."""
    if "problem_info" in file["data"].attrs:
        return True
    return any("agentview_rgb" in demo.get("obs", {}) for _, demo in zip(range(1), file["data"].values(), strict=False))


def demo_numbers(file: Any) -> list[int]:
    """The numbers of /data/demo_<number>, ascending."""
    numbers = []
    for name in file["data"]:
        if not re.fullmatch(r"demo_\d+", name):
            raise ValueError(f"/data/{name} is not called demo_<number>, as robomimic calls episodes")
        numbers.append(int(name.removeprefix("demo_")))
    return sorted(numbers)


def act_instruction(file: Any, path: Path) -> str:
    """The language instruction of an ACT file; "" if there is none."""
    if "language_instruction" in file.attrs:
        return as_text(file.attrs["language_instruction"])
    if "language_raw" in file:
        return as_text(file["language_raw"][()])
    return folder_instruction(path)


def folder_instruction(path: Path) -> str:
    """What instructions.json or instruction.txt beside the file says about it; "" if nothing."""
    table = path.parent / INSTRUCTIONS_FILE
    if table.is_file():
        return instruction_from_table(table, path)
    single = path.parent / INSTRUCTION_FILE
    return single.read_text().strip() if single.is_file() else ""


def instruction_from_table(table: Path, path: Path) -> str:
    """What the JSON file `table` says about the recording `path`; "" if nothing.

    Raises:
        ValueError: `table` is not a JSON object of texts.
    """
    try:
        texts = json.loads(table.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{table}: cannot be read ({error}); expected a JSON object {{file name: instruction}}") from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{table}: expected a JSON object {{file name, stem, or '*': instruction}}")
    return next((texts[key] for key in (path.name, path.stem, "*") if key in texts), "")


def libero_instruction(file: Any, path: Path) -> str:
    """LIBERO's instruction: from problem_info, else, as its files are called after the task, from the name."""
    if "problem_info" in file["data"].attrs:
        info = json.loads(as_text(file["data"].attrs["problem_info"]))
        text = info.get("language_instruction", "")
        text = "".join(text) if isinstance(text, list) else str(text)
        return text.strip().strip('"')
    beside = folder_instruction(path)
    if beside or not is_upside_down(file):
        return beside
    return _SCENE.sub("", path.stem.removesuffix("_demo")).replace("_", " ").strip()


def as_text(value: Any) -> str:
    """The text of an HDF5 string, stored in any way: str, bytes, an array of one of them."""
    array = np.asarray(value).ravel()
    if array.size == 0:
        return ""
    first = array[0]
    return (first.decode() if isinstance(first, bytes) else str(first)).strip()


def read_frame(stored: Any, row: int, upside_down: bool = False) -> np.ndarray:
    """uint8 RGB [H, W, 3]: one row of an image data set, raw or JPEG-compressed.

    Raises:
        ValueError: the data set holds no images, or the row is damaged.
    """
    if stored.ndim == 4:
        image = stored[row]
        check_image(stored.name, image)
        return np.ascontiguousarray(image[::-1, ::-1]) if upside_down else image
    if stored.ndim not in (1, 2):
        raise ValueError(
            f"{stored.name} has shape {list(stored.shape)}, expected raw images [steps, height, width, 3] or JPEG files [steps, bytes]"
        )
    encoded = np.asarray(stored[row]).view(np.uint8).tobytes()
    return decode_image(encoded.rstrip(b"\0"))


def read_frames(stored: Any) -> np.ndarray:
    """uint8 RGB [T, H, W, 3]: all rows."""
    return stored[()] if stored.ndim == 4 else np.stack([read_frame(stored, row) for row in range(len(stored))])
