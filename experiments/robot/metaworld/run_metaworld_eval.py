"""Evaluates a checkpoint (or the scripted expert) in closed loop on MetaWorld tasks, on object positions that no demonstration has seen.

python experiments/robot/metaworld/run_metaworld_eval.py --pretrained_checkpoint runs/demo/checkpoint --num_trials_per_task 40
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from experiments.robot.controls import make_control
from experiments.robot.interfaces import EpisodeSpec
from experiments.robot.metaworld.environment import MetaWorldSimulator
from experiments.robot.metaworld.tasks import DEMO_TASKS, get_metaworld_task
from experiments.robot.rendering import configure_rendering
from experiments.robot.report import Report, console_table, write_report
from experiments.robot.rollout import EXPERT_RUN, ChunkPolicy, EpisodeResult, PlannedEpisode, Rollout, RolloutOptions
from prismatic.cli import run_script


@dataclass
class EvalConfig:
    """Flags of the evaluation."""

    pretrained_checkpoint: str = ""  # folder of a checkpoint; its policy.json says everything about it
    policy: str = "checkpoint"  # "checkpoint", or "expert": MetaWorld's scripted policies instead
    task_names: list[str] = field(default_factory=lambda: list(DEMO_TASKS))  # see experiments/robot/metaworld/tasks.py
    num_trials_per_task: int = 40  # episodes
    control: str = "none"  # none, grey, wrong_instruction; several with commas: none,grey,wrong_instruction
    num_control_trials_per_task: int | None = None  # episodes of each control; as many as without control by default
    with_expert: bool = False  # play the same episodes with the scripted expert, too
    num_envs: int = 2  # simulator processes
    num_open_loop_steps: int | None = None  # actions executed per query; all that the policy predicts by default
    batch_size: int = 1  # observations per policy call
    engine: str = "auto"  # see prismatic/policy/engine.py
    image_size: int = 64  # pixels; as in the demonstrations
    fast_rendering: bool = True  # as in the demonstrations
    seed: int = 7
    save_video: str = "none"  # none, failures, all, first_<number per task>
    num_pictures: int = 6  # episodes per task whose first and last frame the page shows
    local_log_dir: Path = Path("runs/metaworld_eval")  # report.json, report.html, videos/
    stages_file: Path | None = None  # JSON list of {stage, command, seconds}: what came before, for the report

    def __post_init__(self) -> None:
        if self.policy not in ("checkpoint", "expert"):
            raise ValueError(f"--policy is {self.policy!r}, expected checkpoint or expert")
        if self.policy == "checkpoint" and not self.pretrained_checkpoint:
            raise ValueError("--pretrained_checkpoint is missing; pass the checkpoint's folder, or --policy expert")
        if self.num_trials_per_task < 1:
            raise ValueError(f"--num_trials_per_task is {self.num_trials_per_task}, must be at least 1")

    @property
    def runs(self) -> list[str]:
        """Names of the runs of the report, in order."""
        if self.policy == "expert":
            return [EXPERT_RUN]
        names = list(dict.fromkeys(name.strip() for name in self.control.split(",")))
        return names + ([EXPERT_RUN] if self.with_expert else [])

    def num_trials(self, run: str) -> int:
        if run in ("none", EXPERT_RUN) or self.num_control_trials_per_task is None:
            return self.num_trials_per_task
        return self.num_control_trials_per_task


def evaluate(config: EvalConfig) -> Report:
    """Plays all runs and writes the report."""
    configure_rendering()
    earlier = json.loads(config.stages_file.read_text()) if config.stages_file else []
    started = time.perf_counter()
    tasks = [get_metaworld_task(name).name for name in config.task_names]
    simulator = MetaWorldSimulator(config.image_size, config.fast_rendering)
    controls = {run: make_control(run, simulator, tasks) for run in config.runs if run != EXPERT_RUN}
    policy = _load_policy(config) if controls else None
    loaded = time.perf_counter()
    results = _with_progress(Rollout(simulator, policy, controls, _options(config)), plan_episodes(config, tasks))
    report = Report(
        title=f"MetaWorld: {config.pretrained_checkpoint if controls else 'scripted experts'}",
        runs={run: [result for result in results if result.run == run] for run in config.runs},
        settings={item.name: _plain(getattr(config, item.name)) for item in dataclasses.fields(config)} | {"task_names": tasks},
        commands=[*(stage["command"] for stage in earlier), shlex.join(["python", *sys.argv])],
        timings_s={stage["stage"]: stage["seconds"] for stage in earlier}
        | {"load the policy": loaded - started, "play the episodes": time.perf_counter() - loaded},
    )
    write_report(report, config.local_log_dir)
    return report


def plan_episodes(config: EvalConfig, tasks: list[str]) -> list[PlannedEpisode]:
    """Task after task, so that workers seldom change their environment; within a task, run after run over the same episodes."""
    return [
        PlannedEpisode(EpisodeSpec(task, index, config.seed), run)
        for task in tasks
        for run in config.runs
        for index in range(config.num_trials(run))
    ]


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _options(config: EvalConfig) -> RolloutOptions:
    return RolloutOptions(
        num_envs=config.num_envs,
        num_open_loop_steps=config.num_open_loop_steps,
        batch_size=config.batch_size,
        save_video=config.save_video,
        video_dir=config.local_log_dir / "videos",
        num_pictures=config.num_pictures,
        filmed_run=config.runs[0],
    )


def _load_policy(config: EvalConfig) -> ChunkPolicy:
    from prismatic.policy.loading import LoadOptions
    from prismatic.policy.policy import Policy  # imports torch and transformers

    return Policy.from_pretrained(config.pretrained_checkpoint, options=LoadOptions(engine=config.engine))


def _with_progress(rollout: Rollout, episodes: list[PlannedEpisode]) -> list[EpisodeResult]:
    """Results by task and number, whatever order they finished in; the bar shows the running success of each run."""
    results: list[EpisodeResult] = []
    with tqdm(total=len(episodes), desc="evaluating", unit="episode", mininterval=0.5) as bar:
        for result in rollout.run(episodes):
            results.append(result)
            bar.set_postfix({run: f"{100 * rate:.0f}%" for run, rate in _running_success(results).items()}, refresh=False)
            bar.update()
    return sorted(results, key=lambda result: (result.task, result.index))


def _running_success(results: list[EpisodeResult]) -> dict[str, float]:
    by_run: dict[str, list[bool]] = {}
    for result in results:
        by_run.setdefault(result.run, []).append(result.success)
    return {run: sum(successes) / len(successes) for run, successes in by_run.items()}


def main(config: EvalConfig) -> None:
    report = evaluate(config)
    print(console_table(report))
    print(f"\nreport: {config.local_log_dir / 'report.html'}")


if __name__ == "__main__":
    run_script(main, EvalConfig)
