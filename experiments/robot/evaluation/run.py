"""Plays a planned evaluation: one policy, progress, a journal to resume from, the report."""

from __future__ import annotations

import importlib.util
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from experiments.robot.evaluation.actors import NO_HELP
from experiments.robot.evaluation.backlog import PlannedEpisode
from experiments.robot.evaluation.contact_sheet import write_contact_sheet
from experiments.robot.evaluation.controls import Control, borrowed_instructions, make_control
from experiments.robot.evaluation.journal import Journal, journal_files, read_journals
from experiments.robot.evaluation.plan import Benchmark, EvaluationFlags, outcome_settings, plan_episodes, recorded_facts
from experiments.robot.evaluation.policies import SeededPolicy
from experiments.robot.evaluation.report import VIDEOS, Report, console_table, write_report
from experiments.robot.evaluation.rollout import EXPERT_RUN, ChunkPolicy, EpisodeResult, Rollout, RolloutOptions
from experiments.robot.evaluation.shards import parse_shard
from experiments.robot.simulators.changed import perturbed
from experiments.robot.simulators.interfaces import Simulator
from experiments.robot.simulators.paraphrases import paraphrases
from experiments.robot.simulators.perturbations import LANGUAGE_AXIS
from prismatic.acting.recorder import RECORDINGS
from prismatic.vla.constants import get_robot_platform
from prismatic.vla.datasets.locks import locked

logger = logging.getLogger(__name__)

_LOADING, _PLAYING = "load the policy", "play the episodes"  # of the report's timings


def run_evaluation(config: EvaluationFlags, benchmark: Benchmark) -> Report:
    """Plays what the journal lacks and writes the report, also when it is interrupted; waits where another process plays the same."""
    if config.use_wandb:
        _check_wandb()
    simulator = checked_simulator(config, benchmark)
    benchmark = replace(benchmark, simulator=simulator, load_policy=cache(benchmark.load_policy))
    controls = {run: make_control(run, simulator, benchmark.tasks) for run in config.runs if run != EXPERT_RUN}
    earlier = _read_stages(config.stages_file) if config.stages_file else []
    report = Report(
        title=_title(config, benchmark),
        runs={},
        settings=config.settings() | {"task_names": benchmark.tasks, "split": benchmark.split, "expert_help": benchmark.expert_help},
        changes=[change.describe() for change in config.perturbations],
        commands=[*(stage["command"] for stage in earlier), shlex.join(["python", *sys.argv])],
        timings_s={stage["stage"]: stage["seconds"] for stage in earlier},
    )
    with _only_one(config):
        _fill(report, config, benchmark, controls)
    if config.use_wandb and report.runs:
        _log_to_wandb(report, config)
    return report


def _read_stages(path: Path) -> list[dict[str, Any]]:
    """What came before the evaluation.

    Raises:
        ValueError: `path` is no such list.
    """
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--stages_file {path} cannot be read ({error})") from error
    if not isinstance(stages, list) or not all(_is_stage(stage) for stage in stages):
        raise ValueError(f"--stages_file {path} is no list of stages, each with a text as stage and as command, and a number of seconds")
    return stages


def _is_stage(stage: object) -> bool:
    kinds = {"stage": str, "command": str, "seconds": int | float}
    return isinstance(stage, dict) and all(isinstance(stage.get(name), kind) for name, kind in kinds.items())


def checked_simulator(config: EvaluationFlags, benchmark: Benchmark) -> Simulator:
    """The benchmark's simulator, with the changes of the scenes that are wanted.

    Raises:
        ValueError: it cannot make one of them, a task's instruction has no other words, or an expert is to act and there is none.
    """
    if EXPERT_RUN in config.runs:
        benchmark.simulator.check_expert()
    return perturbed(benchmark.simulator, config.perturbations, benchmark.tasks)


def _title(config: EvaluationFlags, benchmark: Benchmark) -> str:
    """What was played by whom: "MetaWorld, collection, with the expert's help (takeover): runs/demo/train/demo"."""
    parts = [benchmark.title]
    if benchmark.split != Benchmark.split:
        parts.append(benchmark.split)
    if benchmark.expert_help != NO_HELP:
        parts.append(f"with the expert's help ({benchmark.expert_help})")
    if config.perturb:
        parts.append(f"changed scenes ({', '.join(map(str, config.perturbations))})")
    return f"{', '.join(parts)}: {'scripted experts' if config.policy == 'expert' else config.pretrained_checkpoint}"


@contextmanager
def _only_one(config: EvaluationFlags) -> Iterator[None]:
    """Holds the evaluation, or its shard, for this process; another one waits, and says for whom."""
    path = config.folder / f".lock{parse_shard(config.shard).suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, lambda owner: logger.info("waiting for %s, which plays the same episodes", owner)):
        yield


@contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    """Shards that end at the same time write the one report one after the other, so that the last tells of all their episodes."""
    with locked(folder / ".lock.report", lambda owner: logger.info("waiting for %s, which writes the report", owner)):
        yield


def _fill(report: Report, config: EvaluationFlags, benchmark: Benchmark, controls: Mapping[str, Control]) -> None:
    """Plays what the journal lacks; `report` holds and its files say what there is, also when it is interrupted."""
    config = with_batch_size(config, benchmark)
    report.settings["batch_size"] = config.batch_size
    settings = outcome_settings(config, benchmark)
    report.settings |= {name: settings[name] for name in ("checkpoint_content",) if name in settings}
    facts = recorded_facts(settings, benchmark) if config.record else {}
    options = _options(config, get_robot_platform(benchmark.robot).control_hz, facts, benchmark.expert_help)
    shard = parse_shard(config.shard)
    forgotten = _warnings_of(config.folder) if config.restart else []
    planned = plan_episodes(config, benchmark)
    if not planned:  # of a file of initial states in which the first demonstrations failed
        raise ValueError(f"no task has a start whose number is below --num_trials_per_task {config.num_trials_per_task}; choose more")
    own = shard.of(planned)
    started = time.perf_counter()
    load_policy = cache(_timed(partial(_prepared_policy, config, benchmark, options), report.timings_s))
    if config.restart and _needs_policy(own):
        load_policy()  # nothing is forgotten for a policy that cannot be loaded
    journal = Journal(config.folder, settings, config.restart, shard, own)
    words = {run: borrowed_instructions(run, benchmark.simulator, benchmark.tasks) for run in controls}
    outdated = _outdated(journal.results, words)
    if outdated:
        logger.info("%d episodes were told another instruction than they would be with these tasks; they do not count", len(outdated))
    again = [episode for episode in own if (episode.run, episode.spec.task, episode.spec.index, episode.spec.seed) in outdated]
    lacking = {*journal.missing(own), *again, *_unrecorded(own, options)}
    missing, played = ([episode for episode in own if (episode in lacking) == is_missing] for is_missing in (True, False))
    _say_unfilmed(own, lacking, journal, options)
    rollout = Rollout(benchmark.simulator, None, controls, options)
    try:
        _play(rollout, missing, journal, played, load_policy if _needs_policy(missing) else None)
    finally:
        playing = _PLAYING if missing == planned else f"{_PLAYING} (of this call: {len(missing)} of {len(planned)})"
        report.timings_s[playing] = time.perf_counter() - started - report.timings_s.get(_LOADING, 0.0)
        report.padded_share = rollout.num_padded_rows / rollout.num_rows if rollout.num_rows else None
        told = rollout.policy.warnings if isinstance(rollout.policy, SeededPolicy) else []
        with _reporting(config.folder):
            journal.refresh()
            told_others = [warning for warning in _warnings_of(config.folder) if warning not in forgotten]
            report.warnings = list(dict.fromkeys([*told_others, *told]))
            outdated = _outdated(journal.results, words)
            results = [item for item in journal.results if (item.run, item.task, item.index, item.seed) not in outdated]
            _conclude(report, _by_run(config.runs, planned, results), len(planned), config)


def _needs_policy(episodes: list[PlannedEpisode]) -> bool:
    return any(episode.run != EXPERT_RUN for episode in episodes)


def _conclude(report: Report, runs: dict[str, list[EpisodeResult]], num_planned: int, config: EvaluationFlags) -> None:
    """Writes what there is of the planned episodes."""
    report.runs = runs
    report.num_missing = num_planned - sum(len(results) for results in runs.values())
    if runs:
        write_contact_sheet(report.main_run, config.folder)
        write_report(report, config.folder)


def with_batch_size(config: EvaluationFlags, benchmark: Benchmark) -> EvaluationFlags:
    """With the batch size that --batch_size 0 leaves open: that of the episodes that are there, else the fastest."""
    if config.batch_size != 0:
        return config
    if config.policy == "expert":
        return replace(config, batch_size=1)
    if not config.restart and journal_files(config.folder):
        return replace(config, batch_size=read_journals(config.folder)[0]["batch_size"])
    policy = benchmark.load_policy()
    if not isinstance(policy, SeededPolicy):
        return replace(config, batch_size=1)
    times = policy.measure_batch_size(benchmark.image_size, benchmark.simulator.instruction(benchmark.tasks[0]), config.num_envs)
    logger.info("%s", times.line())
    return replace(config, batch_size=times.best)


def _timed(load_policy: Callable[[], ChunkPolicy], timings_s: dict[str, float]) -> Callable[[], ChunkPolicy]:
    """The same, which adds its time to the report's."""

    def load() -> ChunkPolicy:
        started = time.perf_counter()
        policy = load_policy()
        timings_s[_LOADING] = time.perf_counter() - started
        return policy

    return load


def _prepared_policy(config: EvaluationFlags, benchmark: Benchmark, options: RolloutOptions) -> ChunkPolicy:
    """Loaded and, as a server's before its first answer, warmed up for the calls that will come."""
    from prismatic.policy.checkpoint.loading import chunk_length

    if length := chunk_length(config.pretrained_checkpoint):
        options.acting.execution(length)  # what does not fit is told before minutes of loading
    policy = benchmark.load_policy()
    if isinstance(policy, SeededPolicy):
        policy.forget_warnings()
        policy.compare_rendering(benchmark.rendering)
        instructions = [benchmark.simulator.instruction(task) for task in benchmark.tasks]
        if any(change.axis == LANGUAGE_AXIS for change in config.perturbations):
            instructions = [words for instruction in instructions for words in paraphrases(instruction)]
        logger.info("warm-up %.2f s", policy.warm_up(config.batch_size, benchmark.image_size, instructions))
    return policy


def print_report(report: Report, config: EvaluationFlags) -> None:
    """The table, and where the page is."""
    if not report.runs:
        print(f"nothing has been played: of {report.num_missing} episodes this shard has none")
        return
    print(console_table(report))
    if timing := report.timing(report.main_name):
        print(f"\n{timing.line()}")
    if report.padded_share:
        print(f"{100 * report.padded_share:.0f} % of what the policy computed filled up batches; a smaller --batch_size may be faster")
    for line in report.gaps:
        print(line)
    print(f"\nreport: {config.folder / 'report.html'}")


def _warnings_of(folder: Path) -> list[str]:
    """What the policies of the episodes that are there were told, by other shards or earlier calls."""
    try:
        found = json.loads((folder / "report.json").read_text(encoding="utf-8"))["warnings"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(item) for item in found] if isinstance(found, list) else []


def _outdated(results: list[EpisodeResult], words: Mapping[str, Mapping[str, str]]) -> set[tuple[str, str, int, int]]:
    """Episodes that were told otherwise than `words` says (run -> task -> instruction), as with other --task_names before."""
    return {
        (item.run, item.task, item.index, item.seed)
        for item in results
        if item.num_queries and item.instruction != words.get(item.run, {}).get(item.task, item.instruction)
    }


def _unrecorded(planned: list[PlannedEpisode], options: RolloutOptions) -> list[PlannedEpisode]:
    """Episodes whose recording is wanted and not there: played before it was wanted, and to be played again."""
    paths = ((episode, options.recording(episode)) for episode in planned)
    return [episode for episode, path in paths if path is not None and not path.exists()]


def _say_unfilmed(planned: list[PlannedEpisode], lacking: Set[PlannedEpisode], journal: Journal, options: RolloutOptions) -> None:
    """Says that episodes were played before without the videos that are wanted now: they are not played again for them."""
    wanted = {
        (episode.run, episode.spec.task, episode.spec.index, episode.spec.seed)
        for episode in planned
        if episode not in lacking and options.request(episode).video is not None
    }
    only_failures = options.save_video == "failures"
    played = [item for item in journal.results if (item.run, item.task, item.index, item.seed) in wanted]
    if unfilmed := sum(item.video is None and not (item.success and only_failures) for item in played):
        logger.warning(
            "%d episodes were played before without the videos that --save_video %s asks for; --restart True plays all of them again",
            unfilmed,
            options.save_video,
        )


def _options(config: EvaluationFlags, control_hz: float, facts: Mapping[str, Any], expert_help: str) -> RolloutOptions:
    return RolloutOptions(
        num_envs=config.num_envs,
        acting=config.acting(control_hz),
        batch_size=config.batch_size,
        save_video=config.save_video,
        video_dir=config.folder / VIDEOS,
        num_pictures=config.num_pictures,
        failure_frames=True,
        filmed_run=config.runs[0],
        recording_dir=config.folder / RECORDINGS if config.record else None,
        facts=facts,
        expert_help=expert_help,
    )


def _play(
    rollout: Rollout,
    missing: list[PlannedEpisode],
    journal: Journal,
    played: list[PlannedEpisode],
    load_policy: Callable[[], ChunkPolicy] | None,
) -> None:
    """Fills the journal; the bar shows the running success of each run, of the episodes `played` before as well, and the time left."""
    counting = _of_planned(played, journal.results)
    total = len(played) + len(missing)
    with logging_redirect_tqdm(), tqdm(total=total, initial=len(played), desc="evaluating", unit="episode", mininterval=0.5) as bar:
        for result in rollout.run(missing, load_policy):
            journal.add(result)
            counting.append(result)
            bar.set_postfix({run: f"{100 * rate:.0f}%" for run, rate in _running_success(counting).items()}, refresh=False)
            bar.update()


def _running_success(results: list[EpisodeResult]) -> dict[str, float]:
    by_run: dict[str, list[bool]] = {}
    for result in results:
        by_run.setdefault(result.run, []).append(result.success)
    return {run: sum(successes) / len(successes) for run, successes in by_run.items()}


def _by_run(runs: list[str], planned: list[PlannedEpisode], results: list[EpisodeResult]) -> dict[str, list[EpisodeResult]]:
    """The planned episodes that were played, by task and number whatever order they finished in; no run without episodes."""
    played = _of_planned(planned, results)
    played.sort(key=lambda result: (result.task, result.index))
    found = {run: [result for result in played if result.run == run] for run in runs}
    return {run: members for run, members in found.items() if members}


def _of_planned(planned: list[PlannedEpisode], results: list[EpisodeResult]) -> list[EpisodeResult]:
    wanted = {(episode.run, episode.spec.task, episode.spec.index, episode.spec.seed) for episode in planned}
    return [result for result in results if (result.run, result.task, result.index, result.seed) in wanted]


def _check_wandb() -> None:
    """Returns if success rates can go to Weights & Biases, before any episode is played.

    Raises:
        ValueError: the package is missing, or it is not logged in.
    """
    from prismatic.training.sinks import check_wandb

    if importlib.util.find_spec("wandb") is None:
        raise ValueError("--use_wandb is True, but the package wandb is not installed; pip install wandb, or leave the flag out")
    check_wandb("--use_wandb True")


def wandb_values(report: Report) -> dict[str, float]:
    """Success of the main run: of each task of which it has an episode, and the mean over tasks, "total", as in the table."""
    scores = {task: report.score(report.main_name, task) for task in report.tasks}
    values = {f"success_rate/{task}": score.rate for task, score in scores.items() if score.num_trials}
    return values | {"success_rate/total": report.mean(report.main_name).rate, "num_episodes/total": len(report.main_run)}


def _log_to_wandb(report: Report, config: EvaluationFlags) -> None:
    import wandb

    run = wandb.init(entity=config.wandb_entity, project=config.wandb_project, name=config.folder.name, dir=str(config.folder))
    run.log(wandb_values(report))
    run.finish()
