"""What every protocol shares: the policy behind its batcher, the limits, the API key, and the facts that clients may ask for."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import hmac
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from prismatic.policy.policy import Policy
from prismatic.serving.batching import Batcher, BatchingOptions, PolicyCalls
from prismatic.serving.clients import Client, ClientGoneError, Clients, Listener
from prismatic.serving.decoding import Decoders
from prismatic.serving.describing import describe_policy
from prismatic.serving.health import PolicyHealth
from prismatic.serving.measuring import idle_observations, measure_costs
from prismatic.serving.metrics import ServerMetrics
from prismatic.serving.observations import ObservationReader, PolicyRequest, RequestGroup
from prismatic.serving.places import Place
from prismatic.serving.senders import check_origin
from prismatic.serving.waiting import answer_of
from prismatic.vla.constants import ActionKind, near_names
from prismatic.vla.grippers import to_robosuite
from prismatic.vla.types import ActionChunk, Observation
from prismatic.wire.errors import RequestError, SlowPredictionError, UnauthorizedError, UnknownAdapterError
from prismatic.wire.policy_info import ROBOSUITE_UNITS, ROBOT_UNITS, PolicyInfo

_MAX_WARNINGS = 64
_PROBE_S = 5.0  # for a prediction that only finds out whether there is one
_PROBE_AGAIN_S = 0.5  # until there is another one
_ADAPTER = "adapter"  # parameter of a query


@dataclass(frozen=True)
class ServiceOptions:
    """Limits of one server."""

    batching: BatchingOptions = field(default_factory=BatchingOptions)
    max_body_bytes: int = 32 << 20
    request_timeout_s: float = 30.0
    api_key: str | None = field(default=None, repr=False)
    num_open_loop_steps: int | None = None  # first actions of each chunk that are sent; None: all
    use_relative_actions: bool = False  # actions are changes, whatever their names say
    seed: int | None = None  # of a diffusion policy's noise; None: the policy's own
    robosuite_gripper: bool = True  # openpi and vla-eval clients of a LIBERO policy: -1 open, +1 close, as the simulator takes it

    def check_chunk(self, length: int) -> None:
        """Accepts a policy that predicts so many actions.

        Raises:
            ValueError: more are to be sent.
        """
        if self.num_open_loop_steps is not None and self.num_open_loop_steps > length:
            raise ValueError(
                f"--num_open_loop_steps is {self.num_open_loop_steps}, the policy predicts {length} actions; choose 1 to {length}"
            )


class ServedPolicy:
    """One policy that the server answers with: what its observations must hold, and its units."""

    def __init__(self, policy: Policy, options: ServiceOptions, adapter: str | None = None) -> None:
        self.policy, self.adapter, self._options = policy, adapter, options
        options.check_chunk(policy.spec.platform.num_actions_chunk)
        if options.seed is not None:
            policy.reseed(options.seed)
        self.reader = ObservationReader(policy.spec, tuple(policy.norm_stats), adapter)
        self.converts_gripper = options.robosuite_gripper and policy.spec.platform.name == "LIBERO"
        self.last_seen: tuple[float, str, Observation] | None = None  # when, by whom, what
        self._warnings: dict[str, None] = {}
        self._doors: dict[str | None, Policy] = {None: policy, policy.unnorm_key: policy}
        self._doors_lock = threading.Lock()

    def describe(self, action_units: str = ROBOT_UNITS) -> PolicyInfo:
        """What the robot's computer must know."""
        info = describe_policy(self.policy, action_units)
        if self._options.num_open_loop_steps is not None:
            info = replace(info, num_actions_chunk=self._options.num_open_loop_steps)
        return info.as_changes() if self._options.use_relative_actions else info

    def info(self, action_units: str = ROBOT_UNITS) -> dict[str, Any]:
        """What a client may want to know before it asks, in plain values: `describe`, and what is for people."""
        spec, foreign = self.policy.spec, self.simulator_units
        described = self.describe(action_units)
        return {
            **described.content(),
            "policy": asdict(spec),
            "proprio_dim": spec.platform.proprio_dim,
            "relative_actions": [kind is ActionKind.MOTION for kind in described.action_kinds],
            "unnorm_keys": list(self.reader.unnorm_keys),
            "action_units_by_protocol": dict.fromkeys(("act", "policy"), ROBOT_UNITS) | dict.fromkeys(("openpi", "vla-eval"), foreign),
            "ignored_images": sorted(self.reader.ignored_names),
            "warnings": list(self._warnings),
            "in_use": self.policy.in_use(),
        }

    @property
    def simulator_units(self) -> str:
        """In which openpi and vla-eval clients get their actions, which they pass to the simulator as they are."""
        return ROBOSUITE_UNITS if self.converts_gripper else ROBOT_UNITS

    def simulator_actions(self, chunk: ActionChunk) -> np.ndarray:
        """Actions [H, A] in `simulator_units`."""
        return to_robosuite(chunk.actions) if self.converts_gripper else chunk.actions

    def sized(self, request: PolicyRequest) -> PolicyRequest:
        """`request`, which knows whether its prompt is longer than what is prepared for.

        Raises:
            RequestError: it is longer than what the language model can read, or there are no statistics that fit.
        """
        door, text = self.door(request.unnorm_key), request.observation.instruction
        try:
            door.check_prompt(text)
        except ValueError as error:
            raise RequestError(str(error)) from error
        return replace(request, is_long=door.num_prompt_tokens(text) > door.max_usual_tokens)

    def look(self, request: PolicyRequest, client: Client) -> None:
        """Compares what `client` sends with the data set in whose units it is answered.

        Raises:
            RequestError: there are no statistics of that data set that fit.
        """
        self.last_seen = (time.monotonic(), client.name, request.observation)
        if request.begins:
            client.begin()
        client.look(request.observation, (self.adapter, request.unnorm_key), lambda: self.door(request.unnorm_key).make_watch())

    def fresh_warnings(self, client: Client, visit: int) -> list[str]:
        """What `client` has not been told yet, for an answer on its connection `visit`; kept for people who look at /info, too."""
        warnings = client.take_warnings(visit)
        for warning in warnings:
            if len(self._warnings) < _MAX_WARNINGS:
                self._warnings[warning] = None
        return warnings

    def door(self, unnorm_key: str | None) -> Policy:
        """The policy in the units of that data set.

        Raises:
            RequestError: its statistics do not fit.
        """
        with self._doors_lock:
            if unnorm_key not in self._doors:
                try:
                    self._doors[unnorm_key] = door = self.policy.with_unnorm_key(unnorm_key)
                    if self._options.seed is not None:
                        door.reseed(self._options.seed)
                except ValueError as error:
                    raise RequestError(f"unnorm_key {unnorm_key!r}: {error}") from error
            return self._doors[unnorm_key]


class PolicyService:
    """One policy, or several adapters over one base, that many connections ask."""

    def __init__(self, policies: Policy | Mapping[str, Policy], options: ServiceOptions) -> None:
        """Several policies go by the name of their adapter, and the first one answers who names none."""
        self.options = options
        self.metrics = ServerMetrics()
        self.clients = Clients()
        self.health = PolicyHealth(options.request_timeout_s)
        self.on_fault: Callable[[], None] = lambda: None  # called when the device is lost
        self.decoding = Decoders(self.metrics.dropped.labels("client gone").inc)
        named = policies.items() if isinstance(policies, Mapping) else [(None, policies)]
        self._served = {name: ServedPolicy(policy, options, name) for name, policy in named}
        self._default = next(iter(self._served.values()))
        self._probe: asyncio.Future[None] | None = None  # the latest prediction that only finds out whether there is one,
        self._probed = -math.inf  # and when it began [s, time.monotonic]
        self.unsent = 0  # messages of websockets whose answers have not been sent
        calls = PolicyCalls(self._predict, self._default.policy.check_device, lambda: self.on_fault())
        self.batcher = Batcher(calls, options.batching, self.metrics, self.health)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """From a websocket's message until its answer has been sent: a place is left as soon as the answer is known."""
        self.unsent += 1
        try:
            yield
        finally:
            self.unsent -= 1

    def asked_for(self, query: Mapping[str, str]) -> ServedPolicy:
        """The policy that the query of a request chooses.

        Raises:
            RequestError: a parameter looks like a misspelt adapter, which must not be taken for none.
            UnknownAdapterError: there is none of that name.
        """
        for name in query:
            if name != _ADAPTER and difflib.get_close_matches(name[:80].lower(), [_ADAPTER], cutoff=0.8):
                raise RequestError(f"the parameter {name[:80]!r} is unknown; did you mean {_ADAPTER}?")
        return self.find(query.get(_ADAPTER))

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

    def check_sender(self, headers: Mapping[str, str], query: Mapping[str, str]) -> None:
        """Accepts who may ask for actions: programs with the API key, no web page of another site.

        Raises:
            UnauthorizedError: the key is missing or wrong.
            ForeignPageError: a browser sends this for such a page.
        """
        check_origin(headers)
        self.check_key(headers, query)

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

    async def answer(self, decode: Callable[[], PolicyRequest], listener: Listener, place: Place) -> ActionChunk:
        """The chunk for what `decode` reads (in a thread, which queues it, too: images take milliseconds) and `listener` waits for.

        Raises:
            RequestError: a request that does not fit, no answer in time, or a policy that failed.
            ClientGoneError: nobody waits.
        """
        read = functools.partial(self._read_and_queue, decode, listener, place)
        job = self.decoding.submit(listener.client, read, listener.address)
        chunk = await answer_of(job, lambda: listener.seconds_left, _too_slow)
        return ActionChunk(chunk.actions[: self.options.num_open_loop_steps])

    def _read_and_queue(self, decode: Callable[[], PolicyRequest], listener: Listener, place: Place) -> Future[ActionChunk]:
        return self.batcher.submit(self._read_and_look(decode, listener, place), listener.until, place)

    def _read_and_look(self, decode: Callable[[], PolicyRequest], listener: Listener, place: Place) -> PolicyRequest:
        place.check()
        try:
            listener.check()
        except ClientGoneError:
            self.metrics.dropped.labels("client gone").inc()
            raise
        except SlowPredictionError:
            self.metrics.dropped.labels("too late").inc()
            raise
        with self.metrics.reading.time():
            request = decode()
            served = self._served[request.adapter]
            request = served.sized(request)  # what does not fit is found before queueing
            served.look(request, listener.client)
        return request

    def warm_up(self) -> float:
        """Seconds of preparing for batches and prompts of every usual size, so that no client pays for it, and of measuring them.

        Raises:
            ValueError: the policy cannot predict.
        """
        started = time.perf_counter()
        for name, served in self._served.items():
            self.batcher.costs[name] = measure_costs(served.policy, self.options.batching)
            served.policy.prepare(self.batcher.cap(name))
        self.metrics.tell({name or "": served.policy.in_use() for name, served in self._served.items()})
        self.health.is_warm = True
        return time.perf_counter() - started

    def metrics_page(self) -> bytes:
        """The text that Prometheus scrapes."""
        for name, served in self._served.items():
            self.metrics.count_plain_calls(name or "", served.policy.plain_calls)
        return self.metrics.page()

    async def ready_problem(self) -> str | None:
        """Why a request would not be answered now. Where only the last prediction failed, another one is tried, one for all who ask: else
        nobody would find out that the policy works again."""
        problem = self.health.ready_problem()
        if problem is None or self.health.failure is None or self.health.alive_problem() is not None:
            return problem
        if self._probe is None or self._probe.done():
            self._probe = asyncio.ensure_future(self._try_again())
        await asyncio.shield(self._probe)
        return self.health.ready_problem()

    async def _try_again(self) -> None:
        """A prediction of nothing, not too soon after the one before: anybody may ask for it, without the key."""
        await asyncio.sleep(max(0.0, self._probed + _PROBE_AGAIN_S - time.monotonic()))
        self._probed = time.monotonic()
        request = PolicyRequest(idle_observations(self._default.policy, 1)[0], adapter=self._default.adapter)
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError, RequestError):
            await asyncio.wait_for(asyncio.wrap_future(self.batcher.submit(request, self._probed + _PROBE_S)), _PROBE_S)

    @property
    def served(self) -> Sequence[ServedPolicy]:
        """Every policy."""
        return list(self._served.values())

    def info(self, served: ServedPolicy, for_simulator: bool = False) -> dict[str, Any]:
        """The facts of one adapter's policy, and the names of all."""
        names = {"adapter": served.adapter, "adapters": [name for name in self._served if name is not None]}
        return {**served.info(served.simulator_units if for_simulator else ROBOT_UNITS), **names}

    def close(self) -> None:
        """Ends the threads."""
        self.batcher.close()
        self.decoding.close()

    def _predict(self, group: RequestGroup, observations: Sequence[Observation], meanwhile: Callable[[], None]) -> Sequence[ActionChunk]:
        return self._served[group.adapter].door(group.unnorm_key).predict(observations, is_watched=True, meanwhile=meanwhile)


def _too_slow() -> SlowPredictionError:
    return SlowPredictionError("no answer in the time that the client or --request_timeout_s gives; the server is overloaded")
