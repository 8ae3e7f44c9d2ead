"""A scripted expert that helps a policy: it says what it would do, or takes over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from toy_simulator import ToyEnvironment, ToyExpert, ToySimulator

from experiments.robot.evaluation.actors import Actor, AssistedActor, PolicyActor, RelabelledActor, check_help
from experiments.robot.evaluation.plan import Benchmark
from experiments.robot.evaluation.stepping import ActingOptions, SteppedActor
from experiments.robot.libero.environment import LiberoSimulator
from experiments.robot.simulators.episodes import EpisodeSpec
from prismatic.vla.rollout_record import Commander
from prismatic.vla.types import Observation

SPEC = EpisodeSpec("right", 0, 7, "collection")


def wrong_way(observation: Observation) -> np.ndarray:
    return np.full((4, 2), -1.0)


def right_way(observation: Observation) -> np.ndarray:
    return np.array([[1.0, 0.0]] * 4)


def make_environment() -> ToyEnvironment:
    environment = ToySimulator().make_environment("right")
    environment.reset(SPEC)
    return environment


def make_policy(ask: Callable[[Observation], np.ndarray], environment: ToyEnvironment) -> PolicyActor:
    return PolicyActor(SteppedActor(ActingOptions(), environment.platform, environment.position(), SPEC, ask), environment)


def play(actor: Actor, environment: ToyEnvironment) -> tuple[list[tuple[Commander, float, float | None, bool]], bool]:
    """(who, executed, recorded, intervention) of every step, and whether the task was solved."""
    steps, success = [], False
    while not success and len(steps) < actor.max_steps:
        command = actor.next()
        recorded = None if command.recorded is None else float(command.recorded[0])
        steps.append((command.by, float(command.executed[0]), recorded, command.is_intervention))
        success = environment.step(command.executed)
    return steps, success


def test_relabelling_executes_the_policy_and_records_the_expert() -> None:
    environment = make_environment()
    steps, success = play(RelabelledActor(make_policy(wrong_way, environment), ToyExpert(environment)), environment)
    assert not success
    assert steps == [(Commander.EXPERT, -1.0, 1.0, False)] * environment.max_steps


def test_the_expert_takes_over_from_a_policy_that_drifts_and_has_the_time_of_an_episode() -> None:
    environment = make_environment()
    policy = make_policy(wrong_way, environment)
    actor = AssistedActor(policy, lambda: ToyExpert(environment), SPEC, can_compare=True)
    steps, success = play(actor, environment)
    assert success
    assert [who for who, *_ in steps[:10]] == [Commander.POLICY] * 10
    assert {(who, is_intervention) for who, _, _, is_intervention in steps[10:]} == {(Commander.EXPERT, True)}
    assert actor.max_steps == 10 + environment.max_steps
    assert len(steps) > environment.max_steps // 2


def test_a_good_policy_is_left_alone() -> None:
    environment = make_environment()
    actor = AssistedActor(make_policy(right_way, environment), lambda: ToyExpert(environment), SPEC, can_compare=True)
    steps, success = play(actor, environment)
    assert success
    assert {who for who, *_ in steps} == {Commander.POLICY}


def test_an_expert_with_a_plan_takes_over_at_a_step_that_follows_from_the_episode() -> None:
    lengths = []
    for spec in (SPEC, SPEC, EpisodeSpec("right", 1, 7, "collection"), EpisodeSpec("right", 2, 7, "collection")):
        environment = make_environment()
        actor = AssistedActor(make_policy(wrong_way, environment), lambda env=environment: ToyExpert(env), spec, can_compare=False)
        steps, success = play(actor, environment)
        assert success
        lengths.append(sum(who is Commander.POLICY for who, *_ in steps))
    assert lengths[0] == lengths[1]
    assert len(set(lengths)) > 1
    assert max(lengths) <= 0.6 * make_environment().max_steps


class PlannedSimulator(ToySimulator):
    has_reactive_expert = False


class Expertless(ToySimulator):
    def check_expert(self) -> None:
        raise ValueError("jumps has no scripted expert; those with one: walks")


def test_experts_that_cannot_help_are_refused_by_name() -> None:
    def benchmark(simulator: ToySimulator, expert_help: str) -> Benchmark:
        return Benchmark("Toy", "METAWORLD", simulator, ["left"], lambda: None, expert_help=expert_help)  # type: ignore[arg-type,return-value]

    with pytest.raises(ValueError, match=r"the expert of Toy follows a plan of its own .* --expert_help takeover"):
        benchmark(PlannedSimulator(), "relabel")
    with pytest.raises(ValueError, match="jumps has no scripted expert; those with one: walks"):
        benchmark(Expertless(), "takeover")
    assert benchmark(PlannedSimulator(), "takeover").expert_help == "takeover"
    assert benchmark(Expertless(), "none").expert_help == "none"
    with pytest.raises(ValueError, match="--expert_help is 'relable'; did you mean relabel"):
        check_help("relable")
    with pytest.raises(ValueError, match=r"libero_goal has no scripted expert; those with one: libero_object, libero_spatial"):
        LiberoSimulator("libero_goal", ()).check_expert()
