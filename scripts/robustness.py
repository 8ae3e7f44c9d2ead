"""How a policy stands changed scenes: clean episodes, and the same ones along every axis at every severity; one table, one picture.

python scripts/robustness.py --pretrained_checkpoint runs/demo/train/demo --simulator metaworld --num_trials_per_task 10

Axes and severities: experiments/robot/simulators/perturbations.py. LIBERO-PRO's four changed suites are played, too, where the suite has
them. An interrupted run goes on when the same command is given again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.benchmarks import check_simulator, find_evaluation
from experiments.robot.evaluation.plan import EvaluationFlags
from experiments.robot.evaluation.robustness import Finding, available_axes, make_conditions, markdown, measure, write_findings
from experiments.robot.simulators.perturbations import AXES, SEVERITIES
from prismatic.cli import flags_of_file, parse_flags, run_script, split_flags
from prismatic.vla.constants import near_names

_OWN_FLAGS = ("pretrained_checkpoint", "num_trials_per_task", "local_log_dir", "perturb", "shard")


@dataclass
class RobustnessConfig:
    """What is measured."""

    pretrained_checkpoint: str = ""  # folder or Hub id of a checkpoint
    simulator: str = "metaworld"  # metaworld, libero, aloha
    num_trials_per_task: int = 10  # episodes of each task under each condition
    axes: list[str] = field(default_factory=list)  # all that the simulator can change by default
    severities: list[int] = field(default_factory=lambda: list(SEVERITIES))  # 1, 2, 3
    pro_suites: bool = True  # libero: play LIBERO-PRO's changes of the suite, too; no scripted expert knows them
    output_dir: Path = Path("runs/robustness")  # robustness.md, .json, .png, and a folder per condition
    evaluation_flags: str = ""  # further flags of the simulator's evaluation script, in one text: "--num_envs 8 --batch_size 0"

    def __post_init__(self) -> None:
        check_simulator(self.simulator, {})
        for axis in self.axes:
            if axis not in AXES:
                raise ValueError(f"--axes names {axis!r}; {near_names(axis, AXES)}")
        if not self.severities:
            raise ValueError("--severities is empty; choose from 1, 2, 3")
        for severity in self.severities:
            if severity not in SEVERITIES:
                raise ValueError(f"--severities names {severity}; choose from 1, 2, 3")
        words = split_flags("--evaluation_flags", self.evaluation_flags)
        for flag in _OWN_FLAGS:
            if f"--{flag}" in (word.partition("=")[0] for word in words):
                raise ValueError(f"--evaluation_flags has --{flag}; that is a matter of this script")
        if said := [flag for flag in _OWN_FLAGS if flag in flags_of_file(words)]:
            raise ValueError(f"--evaluation_flags: its --config_path sets {', '.join(said)}; that is a matter of this script")


def changed_suites(clean: EvaluationFlags) -> list[str]:
    """LIBERO-PRO's changes of the suite that is evaluated; none for the scripted expert, which does not know them.

    Raises:
        ValueError: the clean episodes begin in the states of a file, which would put objects back that a suite has moved.
    """
    from experiments.robot.libero.tasks import CHANGES, SUITES

    suite = getattr(clean, "task_suite_name", "")
    if clean.policy == "expert":
        return []
    names = [name for change in CHANGES if (name := f"{suite}_{change}") in SUITES]
    if names and getattr(clean, "states_path", None) is not None:
        raise ValueError(
            "--evaluation_flags has --initial_states_path, whose states are those of the suite without LIBERO-PRO's changes; "
            "add --pro_suites False, or leave it out"
        )
    return names


def clean_flags(config: RobustnessConfig, flags_class: type[Any]) -> Any:
    """The flags of the clean episodes, from which all conditions differ in their change alone.

    Raises:
        ValueError: they are no flags of that script.
    """
    own = ["--num_trials_per_task", str(config.num_trials_per_task), "--local_log_dir", str(config.output_dir), "--num_pictures", "1"]
    if config.pretrained_checkpoint:
        own += ["--pretrained_checkpoint", config.pretrained_checkpoint]
    return parse_flags(flags_class, [*own, *split_flags("--evaluation_flags", config.evaluation_flags)])


def title_of(simulator: str, clean: EvaluationFlags) -> str:
    """Who was measured where."""
    return f"Changed scenes, {simulator}: {'scripted experts' if clean.policy == 'expert' else clean.pretrained_checkpoint}"


def main(config: RobustnessConfig) -> None:
    flags_class, make_benchmark = find_evaluation(config.simulator)
    clean = clean_flags(config, flags_class)
    axes = config.axes or available_axes(make_benchmark(clean).simulator)
    suites = changed_suites(clean) if config.simulator == "libero" and config.pro_suites else []
    title = title_of(config.simulator, clean)
    conditions = make_conditions(clean, axes, config.severities, suites)

    def write(so_far: list[Finding]) -> None:
        write_findings(so_far, title, config.output_dir, len(conditions) - len(so_far))

    findings = measure(conditions, make_benchmark, write)
    print(markdown(findings, title))
    print(f"table and picture: {config.output_dir / 'robustness.md'}, {config.output_dir / 'robustness.png'}")


if __name__ == "__main__":
    run_script(main, RobustnessConfig)
