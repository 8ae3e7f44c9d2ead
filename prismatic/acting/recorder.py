"""What happened in a rollout, step by step -> an HDF5 file that training reads like any recording (layout of ACT, `vla.rollout_record`).

    recorder = EpisodeRecorder(folder / "rollout_001.hdf5", "open the drawer", {"seed": 7})
    recorder.add(RecordedStep(observation, action, Commander.POLICY))       # what was seen, and what was commanded then
    recorder.close({"success": True})

A file under its name is complete: steps go to disk as they come, into a temporary file that `close` renames. Pictures are stored as the
JPEG files that the policy's image path makes of them, so that training sees what the policy saw. Needs h5py and Pillow.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from prismatic.acting.background import Background
from prismatic.acting.patient_file import PatientFile
from prismatic.vla.jpeg_files import encode_jpeg
from prismatic.vla.rollout_record import ACTING, ATTRIBUTES, COMMANDED_BY, GROUP, Commander
from prismatic.vla.types import Observation

RECORDINGS = "recordings"  # folder of the recordings, in that of the results of a session or an evaluation
_MAX_WAITING = 32  # steps with their pictures; three cameras of 480 x 640 take 90 MB
_ROWS = 64  # of a column, read and written at once
_NAME_LENGTH = 16  # of texts in a column


class RecordingError(ValueError):
    """A rollout cannot be recorded."""


@dataclass(frozen=True)
class RecordedStep:
    """One command, and what was seen and measured when it was given."""

    observation: Observation
    action: np.ndarray  # [A], as commanded
    by: Commander
    mode: str = ACTING
    chunk: int = 0  # number of the chunk that it is from; 0: of none
    delay_s: float = np.nan  # of that chunk
    position: np.ndarray | None = None  # float64 [A]
    executed: np.ndarray | None = None  # [A], where `action` is what should have been done instead


def check_recording_packages() -> None:
    """Returns if this environment can write recordings.

    Raises:
        RecordingError: names the package that is missing.
    """
    missing = [package for package, module in (("h5py", "h5py"), ("pillow", "PIL")) if importlib.util.find_spec(module) is None]
    if missing:
        raise RecordingError(f"--record True needs {' and '.join(missing)}: pip install {' '.join(missing)}, or leave the flag out")


class EpisodeRecorder:
    """Writes one rollout; as a context manager it leaves no file unless it was closed."""

    def __init__(
        self, path: Path, instruction: str, facts: Mapping[str, Any] | None = None, cameras: Mapping[str, str] | None = None
    ) -> None:
        """`facts`: what is known of the rollout before it begins (`ATTRIBUTES`); `cameras`: the policy's name of a camera -> the file's.

        Raises:
            RecordingError: a package is missing.
        """
        check_recording_packages()
        self.path, self.num_steps = path, 0
        self._facts, self._cameras = {"language_instruction": instruction, **(facts or {})}, dict(cameras or {})
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file: Any = None  # h5py.File, from the first step on
        self._disk: PatientFile | None = None  # under it
        self._columns: dict[str, Any] = {}
        self._num_steps_by = dict.fromkeys(Commander, 0)

    def add(self, step: RecordedStep) -> None:
        """Appends a step.

        Raises:
            RecordingError: it has other cameras or widths than the first, or the disk does not take it.
        """
        row = self._row(step)
        if self._file is None:
            self._open(row)
        self._check_alike(row)
        for name, value in row.items():
            self._columns[name].resize(self.num_steps + 1, axis=0)
            self._columns[name][self.num_steps] = value
        self._check_disk()
        self.num_steps += 1
        self._num_steps_by[step.by] += 1

    def close(self, facts: Mapping[str, Any]) -> Path | None:
        """Completes the file with what is known now; None, and no file, where there is no step.

        Raises:
            RecordingError: the disk does not take it.
        """
        if self._file is None:
            return None
        try:
            counts = {f"num_{by.value}_steps": self._num_steps_by[by] for by in (Commander.PERSON, Commander.EXPERT)}
            for name, value in {**self._facts, **counts, **facts}.items():
                assert name in ATTRIBUTES, name
                if value is not None and not (isinstance(value, str | tuple) and not value):
                    self._file.attrs[name] = value
            self._file.close()
            if self._disk is not None:
                self._disk.close()
            self._check_disk()
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise RecordingError(f"{self.path} cannot be written: {error}") from error
        finally:
            self.discard()
        return self.path

    def discard(self) -> None:
        """Leaves no file that is not complete; harmless after `close`."""
        if self._file is not None:
            self._file.close()
        if self._disk is not None:
            self._disk.close()
            self._temporary.unlink(missing_ok=True)
        self._file = self._disk = None

    def _check_disk(self) -> None:
        if self._disk is not None and self._disk.error is not None:
            raise RecordingError(f"{self.path} cannot be written: {self._disk.error}") from self._disk.error

    def __enter__(self) -> EpisodeRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.discard()

    def _row(self, step: RecordedStep) -> dict[str, Any]:
        """Data set -> its value of this step."""
        seen = step.observation
        images = {
            f"observations/images/{self._cameras.get(slot, slot)}": np.frombuffer(encode_jpeg(image), np.uint8)
            for slot, image in seen.images.items()
        }
        row: dict[str, Any] = {"action": np.asarray(step.action, np.float32), **images}
        if seen.proprio is not None:
            row["observations/qpos"] = np.asarray(seen.proprio, np.float32)
        if step.position is not None:
            row[f"{GROUP}/position"] = np.asarray(step.position, np.float64)
        if step.executed is not None:
            row[f"{GROUP}/executed"] = np.asarray(step.executed, np.float32)
        said = {COMMANDED_BY: np.bytes_(step.by.value), "mode": np.bytes_(step.mode)}
        numbers = {"chunk": np.int32(step.chunk), "delay_s": np.float32(step.delay_s)}
        return row | {f"{GROUP}/{name}": value for name, value in (said | numbers).items()}

    def _open(self, row: Mapping[str, Any]) -> None:
        import h5py

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_behind(self.path)
            self._disk = PatientFile(self._temporary)
        except OSError as error:
            raise RecordingError(f"{self.path} cannot be written: {error}") from error
        self._file = h5py.File(self._disk, "w")
        for name, value in row.items():
            if name.startswith("observations/images/"):
                shape, kind = (), h5py.vlen_dtype(np.uint8)
            else:
                shape, kind = value.shape, np.dtype(f"S{_NAME_LENGTH}") if value.dtype.kind == "S" else value.dtype
            options = {"maxshape": (None, *shape), "chunks": (_ROWS, *shape)}
            self._columns[name] = self._file.create_dataset(name, (0, *shape), dtype=kind, **options)

    def _check_alike(self, row: Mapping[str, Any]) -> None:
        if row.keys() != self._columns.keys():
            odd = sorted(row.keys() ^ self._columns.keys())
            raise RecordingError(f"{self.path}: step {self.num_steps} and the first differ in {', '.join(odd)}; every step needs the same")
        for name, value in row.items():
            if "/images/" not in name and value.shape != self._columns[name].shape[1:]:
                raise RecordingError(
                    f"{self.path}: /{name} has {value.shape} numbers at step {self.num_steps}, {self._columns[name].shape[1:]} before"
                )


class BackgroundRecorder:
    """An `EpisodeRecorder` in a thread of its own: `add` never waits; a step for which there is no time is left out and counted."""

    def __init__(self, recorder: EpisodeRecorder) -> None:
        self._recorder = recorder
        self._work = Background(recorder.add, "recorder", _MAX_WAITING)

    def add(self, step: RecordedStep) -> None:
        """Takes a step, with copies of its pictures and state: a camera or a driver may use its memory again."""
        self._work.offer(dataclasses.replace(step, observation=step.observation.copy()))

    @property
    def num_left_out(self) -> int:
        """Steps for which there was no time."""
        return self._work.num_left_out

    def close(self, facts: Mapping[str, Any]) -> Path | None:
        """Completes the file; see `EpisodeRecorder.close`.

        Raises:
            RecordingError: it could not be written, and nothing is left of it.
        """
        with self._recorder:
            try:
                self._work.finish()
            except RecordingError:
                raise
            except Exception as error:  # of the pictures, or of a library
                raise RecordingError(f"{self._recorder.path} cannot be written: {type(error).__name__}: {error}") from error
            return self._recorder.close(facts)


def _remove_left_behind(path: Path) -> None:
    """Temporary files of the same recording whose process is gone."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        owner = left.name.removesuffix(".tmp").rpartition(".")[2]
        try:
            os.kill(int(owner), 0)
        except (ProcessLookupError, ValueError):
            left.unlink(missing_ok=True)
        except PermissionError:  # somebody else's process
            continue
