"""Deliberate mistakes between training and evaluation: what is reported before the first action, and what the mistake costs.

python benchmarks/mismatches.py --pretrained_checkpoint runs/demo/train/demo --num_trials_per_task 7 --json mismatches.json

Mistakes with a policy are made with a MetaWorld checkpoint (`make demo` leaves one), the gripper's sign with the scripted expert of
gym-aloha, mistakes in data with a few of its demonstrations. "Refused": loading or evaluation ends with that message. "Warned": the
message is on the screen, in the report and in the server's /info before the first action; the episodes are played nevertheless.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
from mismatch_cases import DATA_CASES, DataCase, PolicyCase, policy_cases

from experiments.robot.aloha.environment import AlohaSimulator
from experiments.robot.evaluation.backlog import PlannedEpisode
from experiments.robot.evaluation.controls import make_control
from experiments.robot.evaluation.policies import SeededPolicy, check_policy
from experiments.robot.evaluation.rollout import EXPERT_RUN, Rollout, RolloutOptions
from experiments.robot.evaluation.statistics import wilson_interval
from experiments.robot.metaworld.environment import CAMERAS, MetaWorldSimulator
from experiments.robot.metaworld.tasks import DEMO_TASKS
from experiments.robot.recording.record import RecordingOptions, record_demonstrations
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Environment, Expert, Simulator
from experiments.robot.simulators.rendering import configure_rendering
from prismatic.cli import run_script
from prismatic.vla.cameras import TWO_ARMS
from prismatic.vla.types import ActionChunk, Observation

if TYPE_CHECKING:  # imports torch, for which simulator processes would wait
    from prismatic.policy.policy import Policy
    from prismatic.vla.datasets.inspection.view import DatasetView
    from prismatic.vla.reference import Reference

_ALOHA_SET, _ALOHA_TASK = "aloha_sim_transfer_cube_scripted", "transfer_cube"
_NUM_DEMONSTRATIONS = 8


@dataclass
class MismatchConfig:
    """Flags of the suite."""

    pretrained_checkpoint: Path  # folder of a MetaWorld checkpoint
    task_names: list[str] = field(default_factory=lambda: list(DEMO_TASKS))
    num_trials_per_task: int = 7  # episodes of each mistake that is not refused
    cases: list[str] = field(default_factory=list)  # names of the mistakes to make; all by default
    num_envs: int = 2  # simulator processes
    seed: int = 7
    aloha: bool = True  # the gripper's sign and mistakes in data, too
    json: Path | None = None  # where the table is written, too

    def __post_init__(self) -> None:
        if self.num_trials_per_task < 1:
            raise ValueError(f"--num_trials_per_task is {self.num_trials_per_task}, must be at least 1")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    mistake: str
    told: str  # refused, warned, -
    message: str
    num_successes: int | None = None  # None: not played
    num_trials: int = 0


def main(config: MismatchConfig) -> None:
    """Makes every mistake and prints the table."""
    from prismatic.policy.checkpoint.spec import PolicySpec

    configure_rendering()
    spec = PolicySpec.load(config.pretrained_checkpoint)
    check_policy(config.pretrained_checkpoint, spec, "METAWORLD", CAMERAS)
    rows: list[Row] = []
    for case in policy_cases(spec.image.center_crop):
        if not config.cases or case.name in config.cases:
            rows.append(make_mistake(case, config))
            print(_line(rows[-1]), flush=True)
    if config.aloha:
        for row in (*gripper_rows(config), *data_rows()):
            rows.append(row)
            print(_line(row), flush=True)
    if config.json:
        config.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print("\n" + markdown(rows))


def make_mistake(case: PolicyCase, config: MismatchConfig) -> Row:
    """Loads the policy, perhaps a changed one, and plays with what `case` shows it."""
    from prismatic.policy.checkpoint.flags import PolicyFlags
    from prismatic.policy.checkpoint.loading import LoadOptions
    from prismatic.policy.policy import Policy

    options = LoadOptions(flags=PolicyFlags(**case.flags))
    with tempfile.TemporaryDirectory() as folder, _heard_warnings() as heard:
        checkpoint = Path(shutil.copytree(config.pretrained_checkpoint, Path(folder) / "checkpoint"))
        if case.edit is not None:
            case.edit(checkpoint)
        try:
            with _causal_attention() if case.causal else _nothing():
                policy = Policy.from_pretrained(checkpoint, "cpu", unnorm_key=case.unnorm_key, options=options)
        except ValueError as error:
            return Row(case.name, "refused", " ".join(str(error).replace(f"{folder}/", "").split()))
        results = _play(policy, case, config)
    told = [text.replace(f"{folder}/", "") for text in (*heard, *(text for text in policy.watch.warnings if text not in heard))]
    return Row(case.name, "warned" if told else "-", "; ".join(told), sum(results), len(results))


class _Shown:
    """A policy that is shown something else."""

    def __init__(self, policy: Policy, case: PolicyCase) -> None:
        self._policy, self._case = SeededPolicy(policy), case

    def predict(self, observations: list[Observation], seeds: list[int]) -> list[ActionChunk]:
        return self._policy.predict([self._case.show(observation) for observation in observations], seeds)


def _play(policy: Policy, case: PolicyCase, config: MismatchConfig) -> list[bool]:
    """Successes."""
    simulator = MetaWorldSimulator()
    episodes = [
        PlannedEpisode(EpisodeSpec(task, index, config.seed), "none")
        for task in config.task_names
        for index in range(config.num_trials_per_task)
    ]
    options = RolloutOptions(num_envs=config.num_envs)
    controls = {"none": make_control("none", simulator, config.task_names)}
    return [result.success for result in Rollout(simulator, _Shown(policy, case), controls, options).run(episodes)]


@contextmanager
def _heard_warnings() -> Iterator[list[str]]:
    """What loggers warn of within the block."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("prismatic")
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _causal_attention() -> Iterator[None]:
    """torch's attention, looking back only."""
    import torch

    original = torch.nn.functional.scaled_dot_product_attention
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", lambda q, k, v, attn_mask=None: original(q, k, v, is_causal=True)):
        yield


class _InvertedExpert:
    """ALOHA's expert, its grippers opened where they should close."""

    def __init__(self, expert: Expert) -> None:
        self._expert = expert

    def act(self) -> np.ndarray:
        action = self._expert.act()
        action[[6, 13]] = 1 - action[[6, 13]]
        return action


@dataclass(frozen=True)
class _InvertedAloha(AlohaSimulator):
    """gym-aloha with that expert."""

    def make_expert(self, environment: Environment) -> Expert:  # type: ignore[override]
        return _InvertedExpert(super().make_expert(environment))


def gripper_rows(config: MismatchConfig) -> Iterator[Row]:
    """The gripper's sign at the robot, which nobody can see before something is gripped."""
    count = len(config.task_names) * config.num_trials_per_task
    episodes = [PlannedEpisode(EpisodeSpec(_ALOHA_TASK, index, config.seed), EXPERT_RUN) for index in range(count)]
    simulators: dict[str, Simulator] = {"none": AlohaSimulator(), "gripper sign reversed at the robot": _InvertedAloha()}
    for name, simulator in simulators.items():
        results = [result.success for result in Rollout(simulator, None, {}, RolloutOptions(num_envs=config.num_envs)).run(episodes)]
        yield Row(f"ALOHA, scripted expert: {name}", "-", "", sum(results), len(results))


def data_rows() -> Iterator[Row]:
    """Mistakes in ALOHA demonstrations, as training and inspect_dataset.py look at them, and as compared with a checkpoint's training."""
    from prismatic.vla.datasets.dataset import DatasetOptions
    from prismatic.vla.datasets.inspection.view import training_views
    from prismatic.vla.datasets.reference_frames import make_reference
    from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
    from prismatic.vla.datasets.training_data import load_training_data

    with tempfile.TemporaryDirectory() as folder:
        options = RecordingOptions(Path(folder), num_episodes=_NUM_DEMONSTRATIONS, noise_scale=0.0)
        list(record_demonstrations(AlohaSimulator(image_size=64), [_ALOHA_TASK], options))
        (Path(folder) / _ALOHA_TASK).rename(Path(folder) / _ALOHA_SET)
        specs = resolve_datasets(_ALOHA_SET, Path(folder))
        data = load_training_data(specs, DatasetOptions(TWO_ARMS, image_size=64, use_proprio=True))
        (view,), reference = training_views(data, specs), make_reference(data.train)
        usual = set(_inspect(DATA_CASES[0], view, reference))
        for case in DATA_CASES:
            found = {what: refused for what, refused in _inspect(case, view, reference).items() if what not in usual}
            told = "refused" if any(found.values()) else "warned" if found else "-"
            yield Row(f"ALOHA data: {case.name}", told, "; ".join(found))


def _inspect(case: DataCase, view: DatasetView, reference: Reference) -> dict[str, bool]:
    """What is found -> whether training refuses it."""
    from prismatic.vla.datasets.inspection.against import check_against
    from prismatic.vla.datasets.inspection.checks import check_arrays
    from prismatic.vla.datasets.inspection.frames import check_frames, read_strips
    from prismatic.vla.datasets.inspection.view import DatasetView
    from prismatic.vla.diagnosis import Status

    index = view.index
    actions, proprio, cameras = case.change(np.asarray(index.actions), np.asarray(index.proprio), index.cameras)
    changed = DatasetView.of(view.spec, replace(index, actions=actions, proprio=proprio, cameras=cameras))
    strips, _ = read_strips(changed, _NUM_DEMONSTRATIONS, 4)
    findings = [*check_arrays(changed), *check_frames(strips), *check_against(changed, reference, view.statistics)]
    return {finding.found: finding.status == Status.PROBLEM for finding in findings}


def _line(row: Row) -> str:
    return f"{row.mistake:52s} {row.told:8s} {_success(row):18s} {row.message[:120]}"


def _success(row: Row) -> str:
    if row.num_successes is None or not row.num_trials:
        return ""
    low, high = wilson_interval(row.num_successes, row.num_trials)
    return f"{row.num_successes}/{row.num_trials} ({100 * low:.0f}-{100 * high:.0f} %)"


def markdown(rows: list[Row]) -> str:
    """The table for a page."""
    lines = ["| mistake | reported before the first action | success | message |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.mistake} | {row.told} | {_success(row)} | {row.message} |" for row in rows)])


if __name__ == "__main__":
    run_script(main, MismatchConfig)
