"""Who acts in an episode: the policy of the parent process, a scripted expert, or the policy with the expert's help. Letters: A action dim.

    relabel     the policy acts; what is recorded beside what it saw is the expert's action there (DAgger, Ross et al. 2011)
    takeover    the policy acts until it drifts, then the expert to the end of the episode (HG-DAgger, Kelly et al. 2019)

The policy has drifted where its actions and the expert's disagree for a while. An expert that follows a plan of its own cannot be asked
beside the policy: it takes over at a step that is drawn (as in AggreVaTe, Ross and Bagnell 2014), and has the time of a whole episode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from experiments.robot.evaluation.stepping import SteppedActor
from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Environment, Expert
from prismatic.vla.constants import near_names
from prismatic.vla.rollout_record import Commander
from prismatic.vla.types import Observation

NO_HELP, RELABEL, TAKEOVER = "none", "relabel", "takeover"
HELP = (NO_HELP, RELABEL, TAKEOVER)
_DRIFT = 0.5  # difference of policy and expert in the dimension where it is largest, mean over steps; units of the actions
_DRIFT_STEPS = 10  # that it is measured over
_LATEST_TAKEOVER = 0.6  # of an episode's steps, where the step is drawn


def check_help(name: str) -> None:
    """Raises ValueError where there is no such help."""
    if name not in HELP:
        raise ValueError(f"--expert_help is {name!r}; {near_names(name, HELP)}")


@dataclass(frozen=True)
class Command:
    """What happens at a step."""

    executed: np.ndarray  # [A]
    by: Commander  # of `recorded`
    recorded: np.ndarray | None = None  # [A], what is taught instead of what is executed
    chunk: int = 0  # of the policy, counted from 1; 0: of none
    delay_s: float = np.nan  # of that chunk
    observation: Observation | None = None  # if it was looked at for this step
    is_intervention: bool = False
    is_held: bool = False  # nobody wants the robot to be held: it is not recorded


class Actor(Protocol):
    """Decides what happens at each step."""

    max_steps: int  # of the episode, as it stands

    def next(self) -> Command:
        """The command of the next step."""
        ...


class ExpertActor:
    """A scripted expert, alone."""

    def __init__(self, expert: Expert, max_steps: int) -> None:
        self._expert, self.max_steps = expert, max_steps

    def next(self) -> Command:
        return Command(self._expert.act(), Commander.EXPERT)


class PolicyActor:
    """A policy whose chunks become commands by a `SteppedActor`."""

    def __init__(self, stepped: SteppedActor, environment: Environment) -> None:
        self.stepped, self._environment, self.max_steps = stepped, environment, environment.max_steps
        self._num_steps = 0
        self.seen: list[np.ndarray] = []  # primary images of the queries, for who keeps them; costs no rendering

    def next(self) -> Command:
        said = self.stepped.tick(self._num_steps, self._environment.observe)
        self._num_steps += 1
        return Command(
            said.action,
            Commander.POLICY,
            chunk=self.stepped.num_chunks,
            delay_s=self.stepped.delay_s,
            observation=self.stepped.observation,
            is_held=said.by is None,
        )


class RelabelledActor:
    """The policy acts, the expert says at every step what it would have done."""

    def __init__(self, policy: PolicyActor, expert: Expert) -> None:
        self._policy, self._expert, self.max_steps = policy, expert, policy.max_steps

    def next(self) -> Command:
        command = self._policy.next()
        label = self._expert.act()
        return replace(command, by=Commander.EXPERT, recorded=label)


class AssistedActor:
    """The policy acts until it drifts, then the expert does."""

    def __init__(self, policy: PolicyActor, make_expert: Callable[[], Expert], spec: EpisodeSpec, can_compare: bool) -> None:
        """`make_expert`: one that begins with the present state; `can_compare`: it can be asked while the policy acts."""
        self._policy, self._make_expert, self.max_steps = policy, make_expert, policy.max_steps
        self._watching = make_expert() if can_compare else None
        self._latest = int(spec.rng("takeover").integers(1, max(2, int(_LATEST_TAKEOVER * policy.max_steps))))
        self._differences: deque[float] = deque(maxlen=_DRIFT_STEPS)
        self._expert: Expert | None = None
        self._num_steps = 0

    def next(self) -> Command:
        if self._expert is None and self._has_drifted():
            self._expert = self._make_expert()
            self.max_steps = self._num_steps + self._policy.max_steps
        self._num_steps += 1
        if self._expert is not None:
            return Command(self._expert.act(), Commander.EXPERT, is_intervention=True)
        command = self._policy.next()
        if self._watching is not None:
            self._differences.append(float(np.abs(command.executed - self._watching.act()).max()))
        return command

    def _has_drifted(self) -> bool:
        if self._watching is None:
            return self._num_steps >= self._latest
        return len(self._differences) == _DRIFT_STEPS and float(np.mean(self._differences)) > _DRIFT
