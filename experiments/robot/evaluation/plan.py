"""What every evaluation script does: flags, episodes, one policy, progress, a journal to resume from, the report.

A script of a benchmark adds its own flags to `EvaluationFlags`, and says with a `Benchmark` how its simulator and policy are made.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from experiments.robot.evaluation.contact_sheet import write_contact_sheet
from experiments.robot.evaluation.controls import make_control
from experiments.robot.evaluation.journal import Journal, fingerprint
from experiments.robot.evaluation.report import Report, console_table, write_report
from experiments.robot.evaluation.rollout import EXPERT_RUN, ChunkPolicy, EpisodeResult, PlannedEpisode, Rollout, RolloutOptions
from experiments.robot.simulators.interfaces import EpisodeSpec, Simulator
from prismatic.vla.constants import get_robot_platform
from prismatic.vla.types import ActionChunk, Observation

if TYPE_CHECKING:  # imports torch
    from prismatic.policy.checkpoint.spec import PolicySpec

# Flags without influence on how an episode ends: they may change when an evaluation goes on.
_FREE_FLAGS = {
    *("num_trials_per_task", "control", "num_control_trials_per_task", "with_expert", "policy", "task_names", "num_envs"),
    *("save_video", "num_pictures", "local_log_dir", "stages_file", "restart", "run_id_note"),
    *("use_wandb", "wandb_entity", "wandb_project"),
}


@dataclass(frozen=True)
class EvaluationFlags:
    """Flags of every evaluation."""

    # Policy
    pretrained_checkpoint: str | Path = ""  # folder or Hub id of a checkpoint; its policy.json says everything about it
    policy: str = "checkpoint"  # "checkpoint", or "expert": the benchmark's scripted experts instead
    num_open_loop_steps: int | None = None  # actions executed per query; all that the policy predicts by default
    batch_size: int = 1  # observations per policy call; part of the outcome, unlike num_envs

    # Episodes
    num_trials_per_task: int = 50  # episodes
    control: str = "none"  # none, grey, wrong_instruction; several with commas: none,grey,wrong_instruction
    num_control_trials_per_task: int | None = None  # episodes of each control; as many as without control by default
    with_expert: bool = False  # play the same episodes with the scripted expert, too
    seed: int = 7  # of the starts, and of a policy that draws
    num_envs: int = 2  # simulator processes
    restart: bool = False  # forget the episodes that local_log_dir holds; without it an interrupted evaluation goes on

    # Results
    local_log_dir: Path = Path("runs/eval")  # episodes.jsonl, report.json, report.html, failures.png, videos/
    save_video: str = "none"  # none, failures, all, first_<number per task>
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
        if self.num_trials_per_task < 1:
            raise ValueError(f"--num_trials_per_task is {self.num_trials_per_task}, must be at least 1")
        if self.use_wandb and not self.wandb_project:
            raise ValueError("--use_wandb True needs --wandb_project")

    @property
    def runs(self) -> list[str]:
        """Names of the runs of the report, in order."""
        if self.policy == "expert":
            return [EXPERT_RUN]
        names = list(dict.fromkeys(name.strip() for name in self.control.split(",")))
        return names + ([EXPERT_RUN] if self.with_expert else [])

    @property
    def folder(self) -> Path:
        """Where this evaluation's files land."""
        return self.local_log_dir

    def num_trials(self, run: str) -> int:
        if run in ("none", EXPERT_RUN) or self.num_control_trials_per_task is None:
            return self.num_trials_per_task
        return self.num_control_trials_per_task

    def settings(self) -> dict[str, Any]:
        """Every flag as a plain value."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}


@dataclass(frozen=True)
class Benchmark:
    """What a script evaluates on."""

    title: str
    simulator: Simulator
    tasks: list[str]  # in the order of the report
    load_policy: Callable[[], ChunkPolicy]  # actions in the simulator's units
    episode_numbers: Callable[[str, int], list[int]] = lambda task, count: list(range(count))  # the first `count` that a task has


def run_evaluation(config: EvaluationFlags, benchmark: Benchmark) -> Report:
    """Plays what the journal lacks and writes the report, also when it is interrupted."""
    earlier = json.loads(config.stages_file.read_text()) if config.stages_file else []
    started = time.perf_counter()
    options = _options(config)
    controls = {run: make_control(run, benchmark.simulator, benchmark.tasks) for run in config.runs if run != EXPERT_RUN}
    journal = Journal(config.folder, _outcome_settings(config, benchmark), config.restart)
    planned = plan_episodes(config, benchmark)
    missing = journal.missing(planned)
    needs_policy = any(episode.run != EXPERT_RUN for episode in missing)
    policy = benchmark.load_policy() if needs_policy else None
    loaded = time.perf_counter()
    report = Report(
        title=f"{benchmark.title}: {config.pretrained_checkpoint if controls else 'scripted experts'}",
        runs={},
        settings=config.settings() | {"task_names": benchmark.tasks},
        commands=[*(stage["command"] for stage in earlier), shlex.join(["python", *sys.argv])],
    )
    try:
        _play(Rollout(benchmark.simulator, policy, controls, options), missing, journal, len(planned))
    finally:
        report.timings_s = {stage["stage"]: stage["seconds"] for stage in earlier}
        report.timings_s |= {"load the policy": loaded - started, "play the episodes": time.perf_counter() - loaded}
        report.runs = _by_run(config.runs, planned, journal.results)
        report.warnings = policy.warnings if isinstance(policy, SeededPolicy) else []
        if report.runs:
            write_contact_sheet(report.main_run, config.folder)
            write_report(report, config.folder)
    if config.use_wandb:
        _log_to_wandb(report, config)
    return report


def plan_episodes(config: EvaluationFlags, benchmark: Benchmark) -> list[PlannedEpisode]:
    """Task after task, so that workers seldom change their environment; within a task, run after run over the same episodes."""
    return [
        PlannedEpisode(EpisodeSpec(task, index, config.seed), run)
        for task in benchmark.tasks
        for run in config.runs
        for index in benchmark.episode_numbers(task, config.num_trials(run))
    ]


def choose_unnorm_key(checkpoint: str | Path, wanted: str | None, data_sets: Sequence[str]) -> str | None:
    """`wanted`; of a checkpoint trained on several data sets the first of `data_sets` that it knows; else None: there is only one."""
    from prismatic.policy.checkpoint.files import STATISTICS_FILE
    from prismatic.policy.checkpoint.loading import resolve_folder

    statistics = resolve_folder(checkpoint) / STATISTICS_FILE
    if wanted or not statistics.is_file():
        return wanted
    keys = json.loads(statistics.read_text())
    return next((name for name in data_sets if name in keys), None) if len(keys) > 1 else None


def check_policy(checkpoint: str | Path, spec: PolicySpec, robot: str, cameras: Collection[str]) -> None:
    """Accepts a policy that can drive a simulated robot.

    Raises:
        ValueError: it drives another one, or looks through cameras that the simulator lacks.
    """
    own, needed = spec.platform, get_robot_platform(robot)
    is_alike = own.action_dim == needed.action_dim and own.relative_actions == needed.relative_actions
    if not is_alike or (spec.heads.use_proprio and own.proprio_dim != needed.proprio_dim):
        raise ValueError(
            f"{checkpoint} drives {own.name} ({own.action_dim} action, {own.proprio_dim} proprio dimensions: "
            f"{', '.join(own.action_names)}), {robot} has {needed.action_dim} and {needed.proprio_dim}; "
            f"pass a checkpoint that was trained on {robot}"
        )
    if unknown := [camera for camera in spec.cameras if camera not in cameras]:
        raise ValueError(f"{checkpoint} needs the cameras {', '.join(spec.cameras)}; {robot} has no {', '.join(unknown)}")


def print_report(report: Report, config: EvaluationFlags) -> None:
    """The table, and where the page is."""
    print(console_table(report))
    print(f"\nreport: {config.folder / 'report.html'}")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _outcome_settings(config: EvaluationFlags, benchmark: Benchmark) -> dict[str, Any]:
    """What the episodes of one journal must have in common."""
    settings = {name: value for name, value in config.settings().items() if name not in _FREE_FLAGS}
    settings["benchmark"] = benchmark.title
    if config.pretrained_checkpoint and Path(config.pretrained_checkpoint).is_dir():
        settings["checkpoint_content"] = fingerprint(Path(config.pretrained_checkpoint))
    return settings


def _options(config: EvaluationFlags) -> RolloutOptions:
    return RolloutOptions(
        num_envs=config.num_envs,
        num_open_loop_steps=config.num_open_loop_steps,
        batch_size=config.batch_size,
        save_video=config.save_video,
        video_dir=config.folder / "videos",
        num_pictures=config.num_pictures,
        failure_frames=True,
        filmed_run=config.runs[0],
    )


def _play(rollout: Rollout, missing: list[PlannedEpisode], journal: Journal, total: int) -> None:
    """Fills the journal; the bar shows the running success of each run and the time left."""
    done = total - len(missing)
    with tqdm(total=total, initial=done, desc="evaluating", unit="episode", mininterval=0.5) as bar:
        for result in rollout.run(missing):
            journal.add(result)
            bar.set_postfix({run: f"{100 * rate:.0f}%" for run, rate in _running_success(journal.results).items()}, refresh=False)
            bar.update()


def _running_success(results: list[EpisodeResult]) -> dict[str, float]:
    by_run: dict[str, list[bool]] = {}
    for result in results:
        by_run.setdefault(result.run, []).append(result.success)
    return {run: sum(successes) / len(successes) for run, successes in by_run.items()}


def _by_run(runs: list[str], planned: list[PlannedEpisode], results: list[EpisodeResult]) -> dict[str, list[EpisodeResult]]:
    """The planned episodes that were played, by task and number whatever order they finished in; no run without episodes."""
    wanted = {(episode.run, episode.spec.task, episode.spec.index, episode.spec.seed) for episode in planned}
    played = [result for result in results if (result.run, result.task, result.index, result.seed) in wanted]
    played.sort(key=lambda result: (result.task, result.index))
    found = {run: [result for result in played if result.run == run] for run in runs}
    return {run: members for run, members in found.items() if members}


def _log_to_wandb(report: Report, config: EvaluationFlags) -> None:
    try:
        import wandb
    except ImportError as error:
        raise ValueError("--use_wandb is True, but the package wandb is not installed; pip install wandb, or leave the flag out") from error
    run = wandb.init(entity=config.wandb_entity, project=config.wandb_project, name=config.folder.name, dir=str(config.folder))
    values = {f"success_rate/{task}": report.score(report.main_name, task).rate for task in report.tasks}
    run.log(values | {"success_rate/total": report.score(report.main_name).rate, "num_episodes/total": len(report.main_run)})
    run.finish()


class SeededPolicy:
    """A loaded policy for `Rollout`, its actions turned into the simulator's units."""

    def __init__(self, policy: Any, to_simulator: Callable[[ActionChunk], ActionChunk] = lambda chunk: chunk) -> None:
        self.policy, self._to_simulator = policy, to_simulator

    @property
    def warnings(self) -> list[str]:
        """What it was shown and training never saw."""
        return self.policy.watch.warnings

    def predict(self, observations: list[Observation], seeds: list[int]) -> list[ActionChunk]:
        return [self._to_simulator(chunk) for chunk in self.policy.predict(observations, seeds)]
