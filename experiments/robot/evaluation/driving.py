"""What every script that drives a robot in real time shares: its flags, and the way to a policy, on a server or in this process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from prismatic.acting.client import ConnectionOptions, PolicyClient, ServerUnavailableError
from prismatic.acting.execution import ExecutionOptions
from prismatic.acting.leader import Leader
from prismatic.acting.recorder import check_recording_packages
from prismatic.vla.constants import near_names
from prismatic.vla.run_names import check_note
from prismatic.wire.api_key import read_api_key
from prismatic.wire.policy_info import PolicyInfo

if TYPE_CHECKING:
    from prismatic.policy.policy import Policy
    from prismatic.vla.types import Observation

D = TypeVar("D")
_SLOWEST_HZ, _FASTEST_HZ = 1e-3, 1e6  # frames per second that a video file can state


@dataclass
class DrivingFlags:
    """Flags of rollouts on a robot."""

    # Rollouts
    num_rollouts_planned: int = 50  # after which the run ends
    max_steps: int | None = None  # executed actions per rollout; what the robot says by default
    task_label: str = ""  # the instruction; "": the robot's own, or asked for before each rollout
    run_id_note: str | None = None  # added to the name of the run
    video_hz: float = 12.5  # frames per second of the videos; 0: none
    record: bool = False  # every rollout becomes a recording that training reads, in recordings/; cameras are then read at every step
    leader: str = ""  # module:Class of a leader arm, with which a person takes over after the key t
    leader_args: dict[str, Any] = field(default_factory=dict)  # arguments of the class, as JSON: '{"port": "/dev/ttyACM1"}'

    # Between chunks
    num_open_loop_steps: int | None = None  # actions executed per query; all that the policy predicts by default
    prefetch_steps: int = 0  # ask for the next chunk so many steps before the actions run out, so that the robot need not wait
    num_blend_steps: int = 0  # pass from one chunk to the next over so many steps
    ensemble_decay: float | None = None  # ACT's temporal ensembling, for instance 0.01; ask often then: --num_open_loop_steps 5

    # Safety
    limits: Path | None = None  # JSON file with ranges, speeds and accelerations (prismatic/acting/limit_sources.py)
    limit_mode: str = "clip"  # clip or refuse what goes beyond the limits
    max_observation_age_s: float = 0.5  # with older messages from cameras or joints the robot holds its position
    stop_after_s: float = 5.0  # a rollout ends after holding for so long
    ignore_warnings: bool = False  # act although the policy sees something else than in training, without a person's c

    # Server
    reply_timeout_s: float = 2.0  # a request unanswered for so long is given up and repeated
    jpeg_images: bool = False  # pictures travel as JPEG: for slow networks; the policy sees the same pixels
    connect_wait_s: float = 60.0  # how long to wait for the server at the start
    api_key_file: Path | None = None  # file with the server's key; else the environment variable PRISMATIC_API_KEY, if set

    def __post_init__(self) -> None:
        for name in ("num_rollouts_planned", "max_steps", "num_open_loop_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} is {value}, must be more than 0")
        check_note(self.run_id_note)
        if self.prefetch_steps < 0:
            raise ValueError(f"--prefetch_steps is {self.prefetch_steps}, must not be negative")
        if self.video_hz and not _SLOWEST_HZ <= self.video_hz <= _FASTEST_HZ:
            bounds = f"not negative: 0 for no videos, else {_SLOWEST_HZ:g} to {_FASTEST_HZ:g}"
            raise ValueError(f"--video_hz is {self.video_hz}, must be a finite number and {bounds}")
        self.execution(self.num_open_loop_steps or self.prefetch_steps + 1)  # checks the flags that make it up
        if self.record:
            check_recording_packages()

    def execution(self, num_actions_chunk: int) -> ExecutionOptions:
        """How chunks of so many actions become commands.

        Raises:
            ValueError: the flags ask for more actions than the policy predicts, or contradict each other.
        """
        wanted = self.num_open_loop_steps or num_actions_chunk
        if wanted > num_actions_chunk:
            raise ValueError(f"--num_open_loop_steps is {wanted}, but the policy predicts {num_actions_chunk} actions")
        return ExecutionOptions(
            num_open_loop_steps=wanted,
            prefetch_steps=self.prefetch_steps,
            ensemble_decay=self.ensemble_decay,
            num_blend_steps=self.num_blend_steps,
            max_observation_age_s=self.max_observation_age_s,
            stop_after_s=self.stop_after_s,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All flags, for the summary; none of them is a secret."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def make_device(flag: str, name: str, arguments: Mapping[str, Any], kind: type[D]) -> D:
    """The robot or leader (`kind`) of the class `module:Class`, which --`flag` named, made with `arguments`.

    Raises:
        ValueError: there is no such class, it is none of that kind, or does not take these arguments.
    """
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name):
        raise ValueError(f"--{flag} is {name!r}, expected module:Class, for instance my_robots:DeskArm")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"--{flag} {name}: the module cannot be imported ({error})") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, kind) and value is not kind]
        known = near_names(class_name, classes) if classes else "it has none"
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise ValueError(f"--{flag} {name}: the module has no such class that inherits from {wanted}; {known}")
    try:
        return found(**arguments)
    except TypeError as error:
        raise ValueError(f"--{flag}_args {dict(arguments)}: {error}") from error


def make_leader(flags: DrivingFlags) -> Leader | None:
    """What a person takes over with; None: nothing.

    Raises:
        ValueError: see `make_device`.
    """
    return make_device("leader", flags.leader, flags.leader_args, Leader) if flags.leader else None  # type: ignore[type-abstract]


def connect_to_server(flags: DrivingFlags, url: str, flag: str) -> tuple[PolicyClient, PolicyInfo]:
    """A client of the server at `url`, which --`flag` named, and what that server says of its policy.

    Raises:
        ValueError: no server in time, or one that does not accept this client.
    """
    options = ConnectionOptions(
        reply_timeout_s=flags.reply_timeout_s, jpeg_images=flags.jpeg_images, api_key=read_api_key(flags.api_key_file)
    )
    client = PolicyClient(url, options)
    try:
        return client, client.connect(wait_s=flags.connect_wait_s)
    except ServerUnavailableError as error:
        raise ValueError(f"--{flag} {url}: no server within {flags.connect_wait_s:g} s ({error})") from error


class LocalPolicy:
    """A policy in this process as a source of chunks."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def infer(self, observation: Observation, begins: bool = False) -> np.ndarray:
        """The next actions, finite float64 [H, A].

        Raises:
            ValueError: the observation does not fit the policy.
        """
        if begins:
            self._policy.watch.begin()
        return self._policy.predict([observation])[0].actions

    def take_warnings(self) -> list[str]:
        """What training saw differently, since the last call."""
        return self._policy.watch.take()

    def close(self) -> None:
        """Nothing is open."""


def load_local(checkpoint: str, device: str | None, unnorm_key: str | None) -> tuple[LocalPolicy, PolicyInfo]:
    """The policy of a checkpoint, prepared as a server's is, and what it says of itself.

    Raises:
        ValueError: the checkpoint is damaged, or several data sets need a choice.
    """
    from prismatic.policy.checkpoint.loading import LoadOptions
    from prismatic.policy.policy import Policy
    from prismatic.serving.describing import describe_policy

    options = LoadOptions(engine="auto", max_batch_size=1)  # as a server has it; one robot asks
    policy = Policy.from_pretrained(checkpoint, device, unnorm_key=unnorm_key, options=options)
    policy.prepare(1)
    return LocalPolicy(policy), describe_policy(policy)
