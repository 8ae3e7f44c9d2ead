"""How long a policy's answers take, in control steps: a number, or what was measured on a robot.

--delay_steps 4                                     always
--delay_steps runs/robot/EVAL-.../recordings        drawn from the delays of those rollouts (hdf5 files, /rollout/delay_s)
--delay_steps delays.json                           drawn from a list of milliseconds: [81.5, 84.0, 120.3]
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

from prismatic.vla.rollout_record import GROUP

_ROUNDING = 1e-6  # of a step: a delay that was stored as float32 and is a whole number of steps stays it


def read_delays(text: str, control_hz: float) -> tuple[int, ...]:
    """Steps from an observation to its actions, each as likely as the others; a part of a step counts as a whole one.

    Raises:
        ValueError: neither a number of steps nor a file of delays.
    """
    if text.strip().isdecimal():
        return (int(text),)
    path = Path(text)
    if path.is_dir():
        files = sorted(path.rglob("*.hdf5"))
    elif path.is_file():
        files = [path]
    else:
        raise ValueError(f"--delay_steps is {text!r}: no number of steps (0, 1, 2, ...), and no file or folder of that name")
    seconds = [delay for file in files for delay in (_of_recording(file) if file.suffix == ".hdf5" else _of_list(file))]
    if not seconds:
        raise ValueError(f"--delay_steps {text} holds no measured delay; a recording of run_robot.py does, or a JSON list [ms]")
    return tuple(sorted(math.ceil(delay * control_hz - _ROUNDING * control_hz) for delay in seconds))


def _of_recording(path: Path) -> list[float]:
    """[s] of each chunk of a recorded rollout."""
    import h5py

    try:
        with h5py.File(path) as file:
            chunks, delays = np.asarray(file[f"{GROUP}/chunk"]), np.asarray(file[f"{GROUP}/delay_s"], np.float64)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--delay_steps: {path} is no recording of a rollout ({error})") from error
    if chunks.ndim != 1 or chunks.shape != delays.shape:
        raise ValueError(
            f"--delay_steps: {path} is damaged: it has chunks {list(chunks.shape)} and delays {list(delays.shape)}, one each a step"
        )
    found = delays[np.unique(chunks, return_index=True)[1]]
    if (found < 0).any():
        raise ValueError(f"--delay_steps: {path} holds a delay of {found.min():g} s; no answer comes before it was asked for")
    measured = [float(delay) for delay in found if np.isfinite(delay)]
    if measured and not any(measured):
        raise ValueError(
            f"--delay_steps: {path} is of a simulation that waited for its policy: all its delays are 0; pass a recording of run_robot.py "
            "or run_aloha_eval.py, which measure them"
        )
    return measured


def _of_list(path: Path) -> list[float]:
    """[s] out of a JSON list of milliseconds."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--delay_steps {path} cannot be read ({error}); expected a JSON list of milliseconds") from error
    if not isinstance(values, list):
        raise ValueError(f"--delay_steps {path} holds no list; expected milliseconds, such as [81.5, 84.0]")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
            raise ValueError(f"--delay_steps {path} holds {value!r}; expected milliseconds, finite and not negative")
    return [value / 1e3 for value in values]
