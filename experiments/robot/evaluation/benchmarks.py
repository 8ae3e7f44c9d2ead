"""A simulator's name -> its evaluation script, its flags and its benchmark, for programs that work with any of them."""

from __future__ import annotations

from collections.abc import Mapping
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


def make_evaluation(simulator: str, flags: Mapping[str, Any]) -> tuple[EvaluationFlags, Benchmark, str]:
    """The flags of the simulator's evaluation, its benchmark, and the registry entry of its scripted demonstrations.

    `flags` are those of the evaluation script; `image_size` stands for what it calls that.
    """
    given = dict(flags)
    if "image_size" in given:
        given[SIMULATORS[simulator].size_flag] = given.pop("image_size")
    if simulator == "metaworld":
        from experiments.robot.metaworld import run_metaworld_eval as metaworld

        metaworld_flags = metaworld.EvalConfig(**given)
        return metaworld_flags, metaworld.make_benchmark(metaworld_flags), "metaworld_demo"
    if simulator == "aloha":
        from experiments.robot.aloha import run_aloha_sim_eval as aloha

        aloha_flags = aloha.EvalConfig(**given)
        return aloha_flags, aloha.make_benchmark(aloha_flags), f"aloha_sim_{aloha_flags.task_names[0]}_scripted"
    from experiments.robot.libero import run_libero_eval as libero

    libero_flags = libero.EvalConfig(**given)
    return libero_flags, libero.make_benchmark(libero_flags), f"{libero_flags.task_suite_name}_scripted"
