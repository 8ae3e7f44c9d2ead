"""A simulator's name -> its evaluation script, its flags and its benchmark, for programs that work with any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags
from prismatic.vla.constants import near_names


@dataclass(frozen=True)
class SimulatorEntry:
    """What differs between the simulators' evaluation scripts."""

    script: str
    size_flag: str = "image_size"  # pixels of the rendered images
    own_flags: tuple[str, ...] = ()  # of those that other simulators lack


SIMULATORS = {
    "metaworld": SimulatorEntry("experiments/robot/metaworld/run_metaworld_eval.py"),
    "aloha": SimulatorEntry("experiments/robot/aloha/run_aloha_sim_eval.py", own_flags=("unnorm_key",)),
    "libero": SimulatorEntry("experiments/robot/libero/run_libero_eval.py", "env_img_res", ("unnorm_key", "task_suite_name")),
}


def check_simulator(name: str, own_flags: Mapping[str, Any]) -> None:
    """Accepts a simulator and flags that belong to it (None: not given).

    Raises:
        ValueError: no such simulator, or a flag of another one.
    """
    if name not in SIMULATORS:
        raise ValueError(f"--simulator is {name!r}; {near_names(name, SIMULATORS)}")
    for flag, value in own_flags.items():
        simulators = [other for other, entry in SIMULATORS.items() if flag in entry.own_flags]
        if value is not None and name not in simulators:
            raise ValueError(f"--{flag} belongs to --simulator {' or '.join(simulators)}; leave it out")


def make_evaluation(simulator: str, flags: Mapping[str, Any], in_place: bool = False) -> tuple[EvaluationFlags, Benchmark, str]:
    """The flags of the simulator's evaluation, its benchmark, and the registry entry of its scripted demonstrations.

    `flags` are those of the evaluation script; `image_size` stands for what it calls that. `in_place`: files land in --local_log_dir
    itself, also where the script would make a folder in it.
    """
    given = dict(flags)
    if "image_size" in given:
        given[SIMULATORS[simulator].size_flag] = given.pop("image_size")
    flags_class, make_benchmark = find_evaluation(simulator)
    if in_place and simulator == "libero":
        from experiments.robot.libero.run_libero_eval import InPlaceConfig as flags_class  # noqa: N813
    found = flags_class(**given)
    datasets = {
        "metaworld": lambda: "metaworld_demo",
        "aloha": lambda: f"aloha_sim_{found.task_names[0]}_scripted",
        "libero": lambda: f"{found.task_suite_name}_scripted",
    }
    return found, make_benchmark(found), datasets[simulator]()


def find_evaluation(simulator: str) -> tuple[type[Any], Callable[[Any], Benchmark]]:
    """The flags of the simulator's evaluation script, and what makes its benchmark of them."""
    if simulator == "metaworld":
        from experiments.robot.metaworld import run_metaworld_eval as metaworld

        return metaworld.EvalConfig, metaworld.make_benchmark
    if simulator == "aloha":
        from experiments.robot.aloha import run_aloha_sim_eval as aloha

        return aloha.EvalConfig, aloha.make_benchmark
    from experiments.robot.libero import run_libero_eval as libero

    return libero.EvalConfig, libero.make_benchmark
