"""What every protocol shares: the policy behind its batcher, the limits, the API key, and the facts that clients may ask for."""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from prismatic.policy.policy import Policy
from prismatic.policy.watching import ObservationWatch
from prismatic.serving.batching import Batcher, BatchingOptions
from prismatic.serving.describing import describe_policy
from prismatic.serving.metrics import ServerMetrics
from prismatic.serving.observations import ObservationReader, PolicyRequest, RequestGroup
from prismatic.serving.sessions import Sessions
from prismatic.vla.constants import near_names
from prismatic.vla.grippers import to_robosuite
from prismatic.vla.types import ActionChunk, Observation
from prismatic.wire.errors import RequestError, SlowPredictionError, UnauthorizedError, UnknownAdapterError
from prismatic.wire.policy_info import ROBOSUITE_UNITS, ROBOT_UNITS, PolicyInfo


@dataclass(frozen=True)
class ServiceOptions:
    """Limits of one server."""

    batching: BatchingOptions = field(default_factory=BatchingOptions)
    max_body_bytes: int = 32 << 20
    request_timeout_s: float = 30.0
    api_key: str | None = field(default=None, repr=False)
    robosuite_gripper: bool = True  # openpi and vla-eval clients of a LIBERO policy: -1 open, +1 close, as the simulator takes it


class ServedPolicy:
    """One policy that the server answers with: what its observations must hold, and its units."""

    def __init__(self, policy: Policy, options: ServiceOptions, adapter: str | None = None) -> None:
        self.policy, self.adapter = policy, adapter
        self.reader = ObservationReader(policy.spec, tuple(policy.norm_stats), adapter)
        self.converts_gripper = options.robosuite_gripper and policy.spec.platform.name == "LIBERO"
        self.sessions = Sessions(policy.make_watch)
        self._doors: dict[str | None, Policy] = {None: policy, policy.unnorm_key: policy}
        self._doors_lock = threading.Lock()

    def describe(self, action_units: str = ROBOT_UNITS) -> PolicyInfo:
        """What the robot's computer must know."""
        return describe_policy(self.policy, action_units)

    def info(self, action_units: str = ROBOT_UNITS) -> dict[str, Any]:
        """What a client may want to know before it asks, in plain values: `describe`, and what is for people."""
        spec, foreign = self.policy.spec, self.simulator_units
        return {
            **self.describe(action_units).content(),
            "policy": asdict(spec),
            "proprio_dim": spec.platform.proprio_dim,
            "relative_actions": list(spec.platform.relative_actions),
            "unnorm_keys": list(self.reader.unnorm_keys),
            "action_units_by_protocol": dict.fromkeys(("act", "policy"), ROBOT_UNITS) | dict.fromkeys(("openpi", "vla-eval"), foreign),
            "ignored_images": sorted(self.reader.ignored_names),
            "warnings": self.sessions.warnings,
        }

    @property
    def simulator_units(self) -> str:
        """In which openpi and vla-eval clients get their actions, which they pass to the simulator as they are."""
        return ROBOSUITE_UNITS if self.converts_gripper else ROBOT_UNITS

    def simulator_actions(self, chunk: ActionChunk) -> np.ndarray:
        """Actions [H, A] in `simulator_units`."""
        return to_robosuite(chunk.actions) if self.converts_gripper else chunk.actions

    def fresh_warnings(self, watch: ObservationWatch) -> list[str]:
        """What the client of `watch` has not been told yet."""
        warnings = watch.take()
        self.sessions.note(warnings)
        return warnings

    def door(self, unnorm_key: str | None) -> Policy:
        """The policy in the units of that data set.

        Raises:
            RequestError: its statistics do not fit.
        """
        with self._doors_lock:
            if unnorm_key not in self._doors:
                try:
                    self._doors[unnorm_key] = self.policy.with_unnorm_key(unnorm_key)
                except ValueError as error:
                    raise RequestError(f"unnorm_key {unnorm_key!r}: {error}") from error
            return self._doors[unnorm_key]


class PolicyService:
    """One policy, or several adapters over one base, that many connections ask."""

    def __init__(self, policies: Policy | Mapping[str, Policy], options: ServiceOptions) -> None:
        """Several policies go by the name of their adapter, and the first one answers who names none."""
        self.options = options
        self.metrics = ServerMetrics()
        named = policies.items() if isinstance(policies, Mapping) else [(None, policies)]
        self._served = {name: ServedPolicy(policy, options, name) for name, policy in named}
        self._default = next(iter(self._served.values()))
        self.batcher = Batcher(self._predict, options.batching, self.metrics)

    def find(self, adapter: str | None) -> ServedPolicy:
        """The policy of that adapter; without a name the first one.

        Raises:
            UnknownAdapterError: there is none of that name.
        """
        if not adapter:
            return self._default
        if adapter not in self._served:
            raise UnknownAdapterError(f"adapter {adapter[:80]!r} is not served here; {self._describe_adapters(adapter[:80])}")
        return self._served[adapter]

    def _describe_adapters(self, wanted: str) -> str:
        names = [name for name in self._served if name is not None]
        return near_names(wanted, names) if names else "this server has one policy, leave ?adapter= out"

    def check_key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> None:
        """Accepts the API key as `Authorization: Api-Key|Bearer KEY`, `X-API-Key: KEY`, or `?api_key=KEY` for clients without headers.

        Raises:
            UnauthorizedError: it is missing or wrong.
        """
        if self.options.api_key is None:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() not in ("api-key", "bearer"):
            given = headers.get("x-api-key", "") or query.get("api_key", "")
        if not hmac.compare_digest(given.strip().encode(), self.options.api_key.encode()):
            found = "another key" if given else "none"
            raise UnauthorizedError(f"this server needs its API key ({found} was sent); send the header 'Authorization: Api-Key KEY'")

    async def answer(self, decode: Callable[[], PolicyRequest], watch: ObservationWatch) -> ActionChunk:
        """The chunk for what `decode` reads (in a thread: images take milliseconds), and `watch`, its client's, looks at.

        Raises:
            RequestError: a request that does not fit, no answer in time, or a policy that failed.
        """
        request = await asyncio.to_thread(_read_and_look, decode, watch)
        if request.unnorm_key is not None:  # statistics that do not fit are found before queueing
            await asyncio.to_thread(self._served[request.adapter].door, request.unnorm_key)
        future = self.batcher.submit(request)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.options.request_timeout_s)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise SlowPredictionError(f"no answer within {self.options.request_timeout_s:g} s; the server is overloaded") from error

    def warm_up(self) -> float:
        """Seconds of preparing for batches and prompts of every usual size, so that no client pays for it.

        Raises:
            ValueError: the policy cannot predict.
        """
        return sum(served.policy.warm_up() for served in self._served.values())

    def info(self, adapter: str | None, for_simulator: bool = False) -> dict[str, Any]:
        """The facts of one adapter's policy, and the names of all.

        Raises:
            UnknownAdapterError: there is none of that name.
        """
        served = self.find(adapter)
        names = {"adapter": served.adapter, "adapters": [name for name in self._served if name is not None]}
        return {**served.info(served.simulator_units if for_simulator else ROBOT_UNITS), **names}

    def _predict(self, group: RequestGroup, observations: Sequence[Observation]) -> Sequence[ActionChunk]:
        return self._served[group.adapter].door(group.unnorm_key).predict(observations, is_watched=True)


def _read_and_look(decode: Callable[[], PolicyRequest], watch: ObservationWatch) -> PolicyRequest:
    request = decode()
    if request.begins:
        watch.begin()
    watch.look([request.observation])
    return request
