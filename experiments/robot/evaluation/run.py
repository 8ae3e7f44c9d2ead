"""Plays a planned evaluation: one policy, progress, a journal to resume from, the report."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from experiments.robot.evaluation.contact_sheet import write_contact_sheet
from experiments.robot.evaluation.controls import make_control
from experiments.robot.evaluation.journal import Journal
from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags, outcome_settings, plan_episodes, recorded_facts
from experiments.robot.evaluation.policies import SeededPolicy
from experiments.robot.evaluation.report import Report, console_table, write_report
from experiments.robot.evaluation.rollout import EXPERT_RUN, EpisodeResult, PlannedEpisode, Rollout, RolloutOptions
from prismatic.acting.recorder import RECORDINGS


def run_evaluation(config: EvaluationFlags, benchmark: Benchmark) -> Report:
    """Plays what the journal lacks and writes the report, also when it is interrupted."""
    if config.use_wandb:
        _check_wandb()
    earlier = json.loads(config.stages_file.read_text()) if config.stages_file else []
    started = time.perf_counter()
    controls = {run: make_control(run, benchmark.simulator, benchmark.tasks) for run in config.runs if run != EXPERT_RUN}
    settings = outcome_settings(config, benchmark)
    options = _options(config, recorded_facts(settings, benchmark) if config.record else {})
    journal = Journal(config.folder, settings, config.restart)
    planned = plan_episodes(config, benchmark)
    missing = [*journal.missing(planned), *_unrecorded(planned, options)]
    missing = [episode for episode in planned if episode in set(missing)]
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


def print_report(report: Report, config: EvaluationFlags) -> None:
    """The table, and where the page is."""
    print(console_table(report))
    print(f"\nreport: {config.folder / 'report.html'}")


def _unrecorded(planned: list[PlannedEpisode], options: RolloutOptions) -> list[PlannedEpisode]:
    """Episodes whose recording is wanted and not there: played before it was wanted, and to be played again."""
    paths = ((episode, options.recording(episode)) for episode in planned)
    return [episode for episode, path in paths if path is not None and not path.exists()]


def _options(config: EvaluationFlags, facts: Mapping[str, Any]) -> RolloutOptions:
    return RolloutOptions(
        num_envs=config.num_envs,
        num_open_loop_steps=config.num_open_loop_steps,
        batch_size=config.batch_size,
        save_video=config.save_video,
        video_dir=config.folder / "videos",
        num_pictures=config.num_pictures,
        failure_frames=True,
        filmed_run=config.runs[0],
        recording_dir=config.folder / RECORDINGS if config.record else None,
        facts=facts,
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


def _check_wandb() -> None:
    """Returns if success rates can go to Weights & Biases, before any episode is played.

    Raises:
        ValueError: the package is missing, or it is not logged in.
    """
    from prismatic.training.sinks import check_wandb

    if importlib.util.find_spec("wandb") is None:
        raise ValueError("--use_wandb is True, but the package wandb is not installed; pip install wandb, or leave the flag out")
    check_wandb("--use_wandb True")


def _log_to_wandb(report: Report, config: EvaluationFlags) -> None:
    import wandb

    run = wandb.init(entity=config.wandb_entity, project=config.wandb_project, name=config.folder.name, dir=str(config.folder))
    values = {f"success_rate/{task}": report.score(report.main_name, task).rate for task in report.tasks}
    run.log(values | {"success_rate/total": report.score(report.main_name).rate, "num_episodes/total": len(report.main_run)})
    run.finish()
