"""What an evaluation is: the flags that all scripts share, the benchmark, the episodes to play.

A script of a benchmark adds its own flags to `EvaluationFlags`, says with a `Benchmark` how its simulator and policy are made, and
calls `run.run_evaluation`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.actors import NO_HELP, RELABEL
from experiments.robot.evaluation.backlog import PlannedEpisode
from experiments.robot.evaluation.controls import check_control
from experiments.robot.evaluation.delays import read_delays
from experiments.robot.evaluation.journal import fingerprint
from experiments.robot.evaluation.rollout import EXPERT_RUN, ChunkPolicy
from experiments.robot.evaluation.shards import parse_shard
from experiments.robot.evaluation.stepping import ActingOptions
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Simulator
from experiments.robot.simulators.perturbations import Perturbation, changes_version, parse_perturbations
from prismatic.acting.execution import ExecutionOptions
from prismatic.acting.recorder import check_recording_packages
from prismatic.vla.constants import get_robot_platform

# Flags without influence on how an episode ends: they may change when an evaluation goes on.
_FREE_FLAGS = {
    *("num_trials_per_task", "control", "num_control_trials_per_task", "with_expert", "policy", "task_names", "num_envs"),
    "shard",
    *("save_video", "num_pictures", "record", "local_log_dir", "stages_file", "restart", "run_id_note"),
    *("use_wandb", "wandb_entity", "wandb_project"),
}


# Flags that say how a policy is asked: the scripted expert decides at every step, without delay.
_OF_POLICY = ("control", "num_open_loop_steps", "delay_steps", "prefetch_steps", "num_blend_steps", "ensemble_decay")
# Journals older than these flags go on: at its default, a flag is not written down.
_LATER_FLAGS = ("delay_steps", "prefetch_steps", "num_blend_steps", "ensemble_decay", "perturb", "quantization")


@dataclass(frozen=True)
class EvaluationFlags:
    """Flags of every evaluation."""

    # Policy
    pretrained_checkpoint: str | Path = ""  # folder or Hub id of a checkpoint; its policy.json says everything about it
    policy: str = "checkpoint"  # "checkpoint", or "expert": the benchmark's scripted experts instead
    num_open_loop_steps: int | None = None  # actions executed per query; all that the policy predicts by default
    batch_size: int = 1  # observations per policy call; part of the outcome, unlike num_envs; 0: measured, the fastest
    quantization: str = "none"  # weights of the language model, see prismatic/policy/inference/quantization.py

    # Time, in steps: what is asked at one step is known some steps later, and the robot goes on or holds meanwhile, as a real one does
    delay_steps: str = "0"  # from an observation to its actions; or measured ones to draw from: a recording, a JSON list of milliseconds
    prefetch_steps: int = 0  # ask for the next chunk so many steps before the actions run out
    num_blend_steps: int = 0  # pass from one chunk to the next over so many steps
    ensemble_decay: float | None = None  # ACT's temporal ensembling, for instance 0.01; ask often then: --num_open_loop_steps 5

    # Episodes
    num_trials_per_task: int = 50  # episodes
    control: str = "none"  # none, grey, wrong_instruction; several with commas: none,grey,wrong_instruction
    num_control_trials_per_task: int | None = None  # episodes of each control; as many as without control by default
    with_expert: bool = False  # play the same episodes with the scripted expert, too
    seed: int = 7  # of the starts, and of a policy that draws
    num_envs: int = 2  # simulator processes
    shard: str = ""  # play a part: 2/8 is the second of eight; without it, what lies in the folder is merged
    restart: bool = False  # forget the episodes that local_log_dir holds; without it an interrupted evaluation goes on

    # Changed scenes
    perturb: str = ""  # axis:severity, several with commas: camera:2,light:1 (experiments/robot/simulators/perturbations.py)

    # Results
    local_log_dir: Path = Path("runs/eval")  # episodes.jsonl, report.json, report.html, failures.png, videos/
    save_video: str = "none"  # none, failures, all, first_<number per task>
    record: bool = False  # every episode becomes a recording that training reads, in recordings/; renders at every step
    num_pictures: int = 6  # episodes per task whose first and last frame the page shows
    stages_file: Path | None = None  # JSON list of {stage, command, seconds}: what came before, for the report
    use_wandb: bool = False  # log success rates to Weights & Biases, too
    wandb_entity: str | None = None  # account or team
    wandb_project: str | None = None  # needed with --use_wandb

    def __post_init__(self) -> None:
        if self.policy not in ("checkpoint", "expert"):
            raise ValueError(f"--policy is {self.policy!r}, expected checkpoint or expert")
        if self.policy == "checkpoint" and not self.pretrained_checkpoint:
            raise ValueError("--pretrained_checkpoint is missing; pass the checkpoint's folder, or --policy expert")
        for name in ("num_trials_per_task", "num_control_trials_per_task"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, must be at least 1")
        for name in self._controls:
            check_control(name)
        self._check_expert()
        self._acting(1.0)  # checks the flags that make it up
        self.perturbations  # noqa: B018  (checks the spelling)
        if self.batch_size < 0:
            raise ValueError(f"--batch_size is {self.batch_size}; must be at least 1, or 0 to measure it")
        if parse_shard(self.shard).count > 1 and self.batch_size == 0:
            raise ValueError("--batch_size 0 would be measured by each shard anew; pass the number that one of them recommends")
        if self.record:
            check_recording_packages()
        if self.use_wandb and not self.wandb_project:
            raise ValueError("--use_wandb True needs --wandb_project")

    def _check_expert(self) -> None:
        if self.policy != "expert":
            return
        for name in _OF_POLICY:
            if getattr(self, name) != getattr(EvaluationFlags, name):
                raise ValueError(
                    f"--{name} is {getattr(self, name)}, which is for a checkpoint's policy; the scripted expert acts at every step and "
                    "without delay, whatever a policy would be shown; leave it out with --policy expert"
                )

    @property
    def _controls(self) -> list[str]:
        return list(dict.fromkeys(name.strip() for name in self.control.split(",")))

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return parse_perturbations(self.perturb)

    @property
    def runs(self) -> list[str]:
        """Names of the runs of the report, in order."""
        if self.policy == "expert":
            return [EXPERT_RUN]
        return self._controls + ([EXPERT_RUN] if self.with_expert else [])

    @property
    def folder(self) -> Path:
        """Where this evaluation's files land."""
        return self.local_log_dir

    def acting(self, control_hz: float) -> ActingOptions:
        """How chunks become commands on a robot with so many steps a second.

        Raises:
            ValueError: the flags contradict each other, name no delays, or one for which the robot would hold until it is stopped for good.
        """
        options, most = self._acting(control_hz), ExecutionOptions.stop_after_s
        longest = max(options.delays)
        if (longest - 1) / control_hz >= most:  # what is held begins with the first of these steps
            raise ValueError(
                f"--delay_steps {self.delay_steps} has {longest} steps, {longest / control_hz:.1f} s at {control_hz:g} Hz; "
                f"a robot that has held its position for {most:g} s is stopped for good, so that no episode could succeed; "
                f"choose at most {control_hz * most:g}"
            )
        return options

    def _acting(self, control_hz: float) -> ActingOptions:
        delays = read_delays(self.delay_steps, control_hz)
        return ActingOptions(self.num_open_loop_steps, delays, self.prefetch_steps, self.num_blend_steps, self.ensemble_decay)

    def trials_flag(self, run: str) -> str:
        """The name of the flag that says how many episodes of a task a run has."""
        is_main = run in ("none", EXPERT_RUN) or self.num_control_trials_per_task is None
        return "num_trials_per_task" if is_main else "num_control_trials_per_task"

    def num_trials(self, run: str) -> int:
        """Episodes of each task."""
        return int(getattr(self, self.trials_flag(run)))

    def settings(self) -> dict[str, Any]:
        """Every flag as a plain value."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}


@dataclass(frozen=True)
class Benchmark:
    """What a script evaluates on."""

    title: str
    robot: str  # a name of ROBOT_PLATFORMS: what actions and states are
    simulator: Simulator
    tasks: list[str]  # in the order of the report
    load_policy: Callable[[], ChunkPolicy]  # actions in the simulator's units
    image_size: int = 256  # pixels of the square pictures that it will see
    rendering: Mapping[str, Any] = field(default_factory=dict)  # flag -> value, of `vla.rendering.RENDERING`
    split: str = "evaluation"  # where starts are drawn, see simulators.episodes.SPLITS
    episode_numbers: Callable[[str, int], list[int]] = lambda task, count: list(range(count))  # the first `count` that a task has
    files: Mapping[str, Path] = field(default_factory=dict)  # flag -> a file whose content decides about the episodes
    expert_help: str = NO_HELP  # what the scripted expert does while the policy acts (`actors.HELP`)

    def __post_init__(self) -> None:
        if self.expert_help == NO_HELP:
            return
        self.simulator.check_expert()
        if self.expert_help == RELABEL and not self.simulator.has_reactive_expert:
            raise ValueError(
                f"the expert of {self.title} follows a plan of its own and cannot say what to do where a policy has brought the robot; "
                "let it take over instead: --expert_help takeover (of improve.py: --method takeover)"
            )


def plan_episodes(config: EvaluationFlags, benchmark: Benchmark) -> list[PlannedEpisode]:
    """Task after task, so that workers seldom change their environment; within a task, run after run over the same episodes."""
    return [
        PlannedEpisode(EpisodeSpec(task, index, config.seed, benchmark.split), run)
        for task in benchmark.tasks
        for run in config.runs
        for index in benchmark.episode_numbers(task, config.num_trials(run))
    ]


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def outcome_settings(config: EvaluationFlags, benchmark: Benchmark) -> dict[str, Any]:
    """What the episodes of one journal must have in common; `batch_size` as it was measured, if it was."""
    settings = {name: value for name, value in config.settings().items() if name not in _FREE_FLAGS}
    for name in _LATER_FLAGS:
        if settings[name] == getattr(EvaluationFlags, name):
            del settings[name]
    if "perturb" in settings:
        settings["perturb"] = sorted(map(str, config.perturbations))
        if (version := changes_version(config.perturbations)) > 1:  # journals of earlier versions do not go on
            settings["perturb_version"] = version
    if "delay_steps" in settings:  # what was drawn from, not where it lies
        delays = config.acting(get_robot_platform(benchmark.robot).control_hz).delays
        settings["delay_steps"] = {str(steps): delays.count(steps) for steps in sorted(set(delays))}
    settings["benchmark"] = benchmark.title
    if benchmark.split != Benchmark.split:
        settings["split"] = benchmark.split
    if benchmark.expert_help != NO_HELP:
        settings["expert_help"] = benchmark.expert_help
    if content := _content_of(str(config.pretrained_checkpoint)):
        settings["checkpoint_content"] = content
    for name, path in benchmark.files.items():
        if path.is_file():
            settings[f"{name}_content"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return settings


def _content_of(checkpoint: str) -> str:
    """Changes with the policy: of a folder with its files, of a Hub id with the commit that it stands for now; "" where none is known."""
    if not checkpoint:
        return ""
    if Path(checkpoint).is_dir():
        return fingerprint(Path(checkpoint))
    from prismatic.policy.checkpoint.loading import resolve_folder

    try:
        return resolve_folder(checkpoint, with_weights=False).name
    except ValueError:  # said when it is loaded
        return ""


def recorded_facts(settings: Mapping[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    """What every recording of an evaluation with these `outcome_settings` says (`vla.rollout_record.ATTRIBUTES`)."""
    platform = get_robot_platform(benchmark.robot)
    return {
        "perturb": ",".join(settings.get("perturb", ())),
        "checkpoint": settings.get("pretrained_checkpoint", ""),
        "checkpoint_content": settings.get("checkpoint_content"),
        "robot": benchmark.title,
        "robot_platform": platform.name,
        "action_names": platform.action_names,
        "state_names": platform.proprio_names,
        **benchmark.rendering,
    }
