"""Evaluates a checkpoint (or the scripted experts) in closed loop on a LIBERO suite, as published: 50 fixed initial states a task.

python experiments/robot/libero/run_libero_eval.py --pretrained_checkpoint runs/my-run--10000_chkpt --task_suite_name libero_spatial

Results land in <local_log_dir>/EVAL-<suite>-<checkpoint>[--<run_id_note>]: episodes.jsonl, report.json, report.html, failures.png, videos/.
An interrupted evaluation goes on when the same command is run again; --num_envs does not change the results.

The familiar flags are all there. Those that a checkpoint answers itself may be left out; one that contradicts it is refused.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags
from experiments.robot.evaluation.policies import SeededPolicy, check_policy, choose_unnorm_key
from experiments.robot.evaluation.report import Report
from experiments.robot.evaluation.rollout import ChunkPolicy
from experiments.robot.evaluation.run import print_report, run_evaluation
from experiments.robot.libero.environment import CAMERAS, LiberoSimulator
from experiments.robot.libero.tasks import (
    LiberoTask,
    check_suite,
    choose_tasks,
    load_initial_states,
    original_suite,
    prepare_libero,
    suite_tasks,
)
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script
from prismatic.policy.checkpoint.flags import PolicyFlags
from prismatic.vla.run_names import check_note
from prismatic.vla.types import check_side

_DEFAULT_STATES = "DEFAULT"  # the familiar spelling


@dataclass(frozen=True)
class EvalConfig(PolicyFlags, EvaluationFlags):
    """Plays LIBERO with a checkpoint; what stays None is read from it."""

    # LIBERO
    task_suite_name: str = "libero_spatial"  # libero_spatial, _object, _goal, _10, _90, or of LIBERO-PRO: libero_goal_swap
    task_names: list[str] = field(default_factory=list)  # names or numbers of tasks; all of the suite by default
    num_steps_wait: int = 10  # no-op steps first, while objects fall onto the table
    initial_states_path: str = _DEFAULT_STATES  # "DEFAULT": the 50 fixed states; else a metainfo.json of regenerate_libero_dataset.py
    env_img_res: int = 256  # pixels, rendered at this size
    fast_rendering: bool = False  # no anti-aliasing, shadows or reflections; published checkpoints need the slow default
    seed: int = 7  # of a policy that draws, and of changed scenes; the states are fixed, so an L1 policy does the same with any
    max_steps: int | None = None  # per episode; as published for the suite by default (220, 280, 300, 520, 400)
    allow_newer_mujoco: bool = False  # evaluate with a MuJoCo in which LIBERO looks and acts differently
    run_id_note: str | None = None  # ends the folder's name
    local_log_dir: Path = Path("runs/libero_eval")  # the folder EVAL-<suite>-<checkpoint> appears in it

    # The checkpoint, in the familiar words
    model_family: str = "openvla"  # nothing else is known; accepted because the familiar commands pass it
    unnorm_key: str | None = None  # whose statistics count; that of the suite by default
    load_in_8bit: bool = False  # the same as --quantization int8
    load_in_4bit: bool = False  # the same as --quantization nf4
    engine: str = "auto"  # see prismatic/policy/inference/engine.py

    def __post_init__(self) -> None:
        super().__post_init__()
        check_suite("--task_suite_name", self.task_suite_name)
        check_note(self.run_id_note)
        if self.model_family != "openvla":
            raise ValueError(f"--model_family is {self.model_family!r}; the only one is openvla")
        for name, smallest in (("num_steps_wait", 0), ("env_img_res", 1), ("max_steps", 1)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"--{name} is {value}, must be at least {smallest}")
        check_side("--env_img_res", self.env_img_res)

    @property
    def folder(self) -> Path:
        who = "expert" if self.policy == "expert" else Path(self.pretrained_checkpoint).name
        note = f"--{self.run_id_note}" if self.run_id_note else ""
        return self.local_log_dir / f"EVAL-{self.task_suite_name}-{who}{note}"

    @property
    def data_sets(self) -> list[str]:
        """Those of the suite, the likeliest first."""
        suite = original_suite(self.task_suite_name)
        return [f"{suite}_no_noops", suite, f"{suite}_scripted"]

    @property
    def states_path(self) -> Path | None:
        return None if self.initial_states_path == _DEFAULT_STATES else Path(self.initial_states_path)


@dataclass(frozen=True)
class InPlaceConfig(EvalConfig):
    """The same for a collection, which has one suite and one policy: everything lies in local_log_dir itself."""

    @property
    def folder(self) -> Path:
        return self.local_log_dir


def evaluate(config: EvalConfig) -> Report:
    """Plays what has not been played yet and writes the report."""
    return run_evaluation(config, make_benchmark(config))


def make_benchmark(config: EvalConfig) -> Benchmark:
    """The suite's tasks, and the checkpoint's policy on them.

    Raises:
        ValueError: an unknown task, or more trials than the benchmark has initial states.
    """
    configure_rendering()
    prepare_libero(config.allow_newer_mujoco)
    tasks = choose_tasks("--task_names", suite_tasks(config.task_suite_name), config.task_names)
    numbers = partial(episode_numbers, {task.name: task for task in tasks}, config.states_path)
    if not isinstance(config, InPlaceConfig):  # whose starts are drawn
        for task, run in itertools.product(tasks, config.runs):
            numbers(task.name, config.num_trials(run), flag=config.trials_flag(run))
    simulator = LiberoSimulator(
        suite=config.task_suite_name,
        tasks=tasks,
        image_size=config.env_img_res,
        fast_rendering=config.fast_rendering,
        num_steps_wait=config.num_steps_wait,
        initial_states_path=config.states_path,
        max_steps=config.max_steps,
        allow_newer_mujoco=config.allow_newer_mujoco,
    )
    return Benchmark(
        title=config.task_suite_name,
        robot="LIBERO",
        simulator=simulator,
        tasks=[task.name for task in tasks],
        load_policy=partial(load_policy, config),
        image_size=config.env_img_res,
        rendering={"fast_rendering": config.fast_rendering, "env_img_res": config.env_img_res},
        files={} if config.states_path is None else {"initial_states_path": config.states_path},
        episode_numbers=numbers,
    )


def episode_numbers(
    tasks: dict[str, LiberoTask], states_path: Path | None, task: str, count: int, flag: str = "num_trials_per_task"
) -> list[int]:
    """The first `count` initial states of a task, for which `flag` asks.

    Raises:
        ValueError: there are fewer, and they are the benchmark's own; a file may lack those whose demonstration failed.
    """
    numbers = list(load_initial_states(tasks[task], states_path))
    if count > len(numbers) and states_path is None:
        raise ValueError(f"--{flag} is {count}; {task} has {len(numbers)} fixed initial states")
    return [number for number in numbers if states_path is None or number < count][:count]


def load_policy(config: EvalConfig) -> ChunkPolicy:
    """The checkpoint's policy, its gripper as the simulator takes it.

    Raises:
        ValueError: it drives another robot, or looks through cameras that LIBERO lacks.
    """
    from experiments.robot.openvla_utils import get_vla  # imports torch and transformers
    from experiments.robot.robot_utils import set_seed_everywhere
    from prismatic.vla.grippers import to_robosuite
    from prismatic.vla.types import ActionChunk

    set_seed_everywhere(config.seed)
    unnorm_key = choose_unnorm_key(config.pretrained_checkpoint, config.unnorm_key, config.data_sets)
    policy = get_vla(replace(config, unnorm_key=unnorm_key))
    check_policy(config.pretrained_checkpoint, policy.spec, "LIBERO", CAMERAS)
    return SeededPolicy(policy, lambda chunk: ActionChunk(to_robosuite(chunk.actions)))


def main(config: EvalConfig) -> None:
    print_report(evaluate(config), config)


def run() -> None:
    """Entry point."""
    run_script(main, EvalConfig)


if __name__ == "__main__":
    run()
