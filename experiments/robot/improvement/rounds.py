"""Rounds of acting and learning: collect with the present policy, merge, fine-tune it further, evaluate, until it no longer helps.

Everything that is decided follows from files, so that a call after an interruption, be it kill -9, comes to the same end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from experiments.robot.evaluation.benchmarks import make_evaluation
from experiments.robot.evaluation.collecting import MANIFEST_FILE, dataset_of
from experiments.robot.evaluation.comparison import compare
from experiments.robot.evaluation.journal import fingerprint, read_journal
from experiments.robot.improvement.config import FRESH, ImproveConfig
from experiments.robot.improvement.judging import Round, best_of, reason_to_stop
from experiments.robot.improvement.phases import (
    DONE_FILE,
    collect_command,
    evaluate_command,
    journal_folder,
    merge,
    run_phase,
    train_command,
    write_json,
)
from experiments.robot.improvement.results import Results, write_results
from prismatic.cli import parse_flags
from prismatic.policy.checkpoint.spec import POLICY_FILE, PolicySpec
from prismatic.stages import read_settings
from prismatic.vla.datasets.locks import locked

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"


def improve(config: ImproveConfig) -> str:
    """Plays what is missing of the rounds and of the last evaluations; returns the table, which is also in improve.md.

    Raises:
        ValueError: the policy cannot be continued, nobody can help it, the data do not fit, the folder holds another improvement, or a
            phase failed.
    """
    dataset, spec = check_inputs(config)
    with _only_one(config.folder):
        _keep_settings(config)
        rounds = [_evaluated(config, Round(0, config.start, Path(), 0, 0), None)]
        while (stopped := reason_to_stop(rounds, config.num_rounds, config.patience)) is None:
            write_results(Results(config, rounds))
            rounds.append(_play_round(config, len(rounds), best_of(rounds), dataset, spec))
        write_results(Results(config, rounds, stopped))
        best = best_of(rounds)
        first = _play_fresh(config, config.start, "start")
        last = _play_fresh(config, best.checkpoint, f"round_{best.number}") if best.number else first
        final = compare(last, first)
        num_crashed = sum(final.num_crashed[: 2 if best.number else 1])
        return write_results(Results(config, rounds, stopped, final.total, num_crashed))


def check_inputs(config: ImproveConfig) -> tuple[str, PolicySpec]:
    """(registry entry that reads the rollouts, what the policy is), found without any expensive work.

    Raises:
        ValueError: the policy is none that can be continued, the simulator has no expert that can help, or the demonstrations do not fit.
    """
    start = Path(config.start)
    if not (start / POLICY_FILE).is_file():
        raise ValueError(
            f"--pretrained_checkpoint {config.pretrained_checkpoint} cannot be continued: it has no {POLICY_FILE}; pass the folder of a "
            "policy that was fine-tuned here, such as runs/demo/train/demo"
        )
    spec = PolicySpec.load(start)
    most = max(config.num_trials, config.num_final_trials)  # of which a benchmark may have too few
    flags = config.simulator_flags() | {"pretrained_checkpoint": config.start, "num_trials_per_task": most}
    _, benchmark, usual = make_evaluation(config.simulator, flags)
    replace(benchmark, expert_help=config.expert_help)  # which refuses experts that cannot
    dataset = dataset_of(start, usual)
    _check_continued(config, dataset, spec)
    return dataset, spec


def _check_continued(config: ImproveConfig, dataset: str, spec: PolicySpec) -> None:
    """Accepts a policy that a round can continue, with demonstrations that it can be trained on further."""
    from prismatic.training.config import FinetuneConfig
    from prismatic.training.origin import find_origin
    from prismatic.vla.datasets.opening import check_trainable
    from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets

    manifest = merge(config, 0, dataset)
    flags = parse_flags(FinetuneConfig, train_command(config, 1, manifest, spec)[2:])
    specs = resolve_datasets(str(manifest), manifest.parent, flags.data.robot_platform, flags.model.use_proprio)
    find_origin(flags, specs[0].platform, spec.cameras, [item.name for item in specs], None)
    check_trainable(specs, flags.model.use_proprio)


def _keep_settings(config: ImproveConfig) -> None:
    """Writes down what a later call must share, or compares it.

    Raises:
        ValueError: the folder holds an improvement with other settings, or the file that says with which is damaged.
    """
    path = config.folder / SETTINGS_FILE
    settings = json.loads(json.dumps(config.fixed() | {"checkpoint_content": fingerprint(Path(config.start))}, default=str))
    if not path.is_file():
        write_json(path, settings)
        return
    remedy = "choose another --output_dir, or remove that folder"
    stored = read_settings(path, remedy)
    changed = [name for name in sorted(stored.keys() | settings.keys()) if stored.get(name) != settings.get(name)]
    if changed:
        listed = "; ".join(f"{name} was {stored.get(name)!r}, is {settings.get(name)!r}" for name in changed)
        raise ValueError(f"{config.folder} holds another improvement ({listed}); {remedy}")


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; another one waits, and says for whom."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", lambda owner: logger.info("waiting for %s, which improves in the same folder", owner)):
        yield


def _play_round(config: ImproveConfig, number: int, best: Round, dataset: str, spec: PolicySpec) -> Round:
    """Collects, trains and evaluates one round."""
    folder = config.round_folder(number)
    seconds = run_phase(f"round {number}: collect", collect_command(config, number), folder / "collected")
    rows = read_journal(journal_folder(folder / "collected") / "episodes.jsonl")[1]
    last = {(row["task"], row["index"], row["seed"]): row for row in rows}
    successes = [row["success"] for row in last.values() if row.get("error") is None]  # one that crashed left no recording
    manifest = folder / MANIFEST_FILE
    if not (folder / "train" / DONE_FILE).is_file():  # afterwards it says what the round was trained on
        merge(config, number, dataset)
    seconds += run_phase(f"round {number}: train", train_command(config, number, manifest, spec), folder / "train")
    found = Round(number, config.checkpoint(number), Path(), 0, 0, None, len(successes), sum(successes), seconds)
    return _evaluated(config, found, best)


def _evaluated(config: ImproveConfig, item: Round, best: Round | None) -> Round:
    """The round with its evaluation, compared with the best policy before it."""
    folder = config.round_folder(item.number) / "eval"
    command = evaluate_command(config, item.checkpoint, folder, config.seed, config.num_trials)
    seconds = item.seconds + run_phase(f"{'round ' + str(item.number) if item.number else 'start'}: evaluate", command, folder)
    evaluation = journal_folder(folder)
    found = compare(evaluation, evaluation if best is None else best.evaluation)
    return replace(
        item,
        evaluation=evaluation,
        num_successes=found.total.both + found.total.only_a,
        num_trials=found.total.num_pairs,
        against_best=None if best is None else found.total,
        seconds=seconds,
        num_crashed=found.num_crashed[0],
    )


def _play_fresh(config: ImproveConfig, checkpoint: str, name: str) -> Path:
    """Evaluates a policy on starts by which nothing was decided."""
    folder = config.folder / "final" / name
    command = evaluate_command(config, checkpoint, folder, config.seed + FRESH, config.num_final_trials)
    run_phase(f"fresh starts: {name}", command, folder, must_match=("--num_trials_per_task",))
    return journal_folder(folder)
