"""A policy of LeRobot whose chunks of actions come from a server.

Letters: B robots or environments at once, H chunk, A action dim, P proprio dim.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_openvla_oft_remote.configuration_openvla_oft_remote import OpenVLAOFTRemoteConfig
from prismatic.acting.client import ConnectionOptions, PolicyClient, PolicyInfo, ServerUnavailableError
from prismatic.acting.start_check import check_start
from prismatic.vla.constants import ActionKind
from prismatic.vla.types import Observation

STATE, IMAGES = "observation.state", "observation.images."

logger = logging.getLogger(__name__)


class OpenVLAOFTRemotePolicy(PreTrainedPolicy):
    """Asks the server for a chunk when the last one has been executed; without an answer the robot holds, and then LeRobot's loop ends."""

    config_class = OpenVLAOFTRemoteConfig
    name = "openvla_oft_remote"

    def __init__(self, config: OpenVLAOFTRemoteConfig, dataset_stats: Any = None, dataset_meta: Any = None, **_: Any) -> None:
        """Connects. `dataset_meta` says in which order LeRobot has its values; `dataset_stats` do not matter.

        Raises:
            ValueError: no server in time, or LeRobot's values are not those of its policy.
        """
        super().__init__(config)
        self._options = ConnectionOptions(reply_timeout_s=config.reply_timeout_s, jpeg_images=config.jpeg_images)
        self._clients = [PolicyClient(config.server, self._options)]  # one for each of B
        try:
            info = self._clients[0].connect(config.connect_wait_s)
        except ServerUnavailableError as error:
            raise ValueError(f"--policy.server {config.server}: no server within {config.connect_wait_s:g} s ({error})") from error
        self.info: PolicyInfo = info
        features = getattr(dataset_meta, "features", {})
        self._action_order = _order("action", info.action_names, _names(features, "action") or config.action_names)
        self._state_order = _order("state", info.proprio_names, _names(features, STATE) or config.state_names) if info.needs_state else []
        self._num_steps = config.num_open_loop_steps or info.num_actions_chunk
        if self._num_steps > info.num_actions_chunk:
            raise ValueError(f"--policy.num_open_loop_steps is {self._num_steps}, but the policy predicts {info.num_actions_chunk} actions")
        self._names_of_keys: tuple[str, ...] = ()  # of the batch that these were found in
        self._keys: dict[str, str] = {}  # camera of the policy -> LeRobot's key
        self._pool = ThreadPoolExecutor(thread_name_prefix="openvla-oft")
        self.reset()

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, config: Any = None, **more: Any) -> OpenVLAOFTRemotePolicy:
        """The policy of a folder that `save_pretrained` wrote; there are no weights in it."""
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path)
        return cls(config, **more).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: Any = None) -> None:
        self.config._save_pretrained(save_directory)

    def get_optim_params(self) -> dict:
        return {}

    def forward(self, batch: Mapping[str, Tensor]) -> Any:
        raise NotImplementedError("openvla_oft_remote is not trained here: train with vla-scripts/finetune.py")

    def supports_rtc(self) -> bool:
        """LeRobot may ask ahead and drop the actions that come too late; chunks are joined as they are."""
        return True

    def reset(self) -> None:
        """A rollout begins."""
        self._queue: deque[np.ndarray] = deque()  # of actions [B, A]
        self._last: Tensor | None = None  # action [B, A]
        self._begins = True
        self._held_since: float | None = None

    def select_action(self, batch: Mapping[str, Any], **_: Any) -> Tensor:
        """float64 [B, A] in LeRobot's order and the robot's units.

        Raises:
            ValueError: the observation does not fit the policy, or is unlike what training saw.
            ServerUnavailableError: there has been no answer for `stop_after_s`.
        """
        if not self._queue:
            try:
                chunks = self._ask(batch)
            except ServerUnavailableError as error:
                return self._hold(batch, error)
            self._held_since = None
            self._queue.extend(chunks[:, : self._num_steps].swapaxes(0, 1))
        self._last = torch.from_numpy(self._queue.popleft())
        return self._last

    def predict_action_chunk(
        self,
        batch: Mapping[str, Any],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
        **_: Any,
    ) -> Tensor:
        """float64 [B, H, A] in LeRobot's order and the robot's units.

        The three fields of LeRobot's real-time chunking change nothing: a regressed chunk cannot be steered by what is left over of the
        last one (which LeRobot fills up with zeros), and LeRobot itself leaves out the first `inference_delay` actions.

        Raises:
            ValueError: the observation does not fit the policy, or is unlike what training saw.
            ServerUnavailableError: no answer this time.
        """
        return torch.from_numpy(self._ask(batch))

    def _ask(self, batch: Mapping[str, Any]) -> np.ndarray:
        """float64 [B, H, A], as `predict_action_chunk` says."""
        observations = self._observations(batch)
        while len(self._clients) < len(observations):
            self._clients.append(PolicyClient(self.config.server, self._options))
        if self._begins:
            self._heed([sentence for seen in observations for sentence in check_start(seen.proprio, self.info)], "before the start")
        clients = self._clients[: len(observations)]
        if len(observations) == 1:
            chunks = [clients[0].infer(observations[0], self._begins)]
        else:
            asked = [self._pool.submit(client.infer, seen, self._begins) for client, seen in zip(clients, observations, strict=True)]
            wait(asked)  # also where one has failed: a client that is still at work must not be asked again
            chunks = [answer.result() for answer in asked]
        self._begins = False
        self._heed([warning for client in clients for warning in client.take_warnings()])
        actions = chunks[0][None] if len(chunks) == 1 else np.stack(chunks)
        return actions.take(self._action_order, 2)

    def _observations(self, batch: Mapping[str, Any]) -> list[Observation]:
        """One for each of B."""
        if self._names_of_keys != (names := tuple(batch)):
            self._keys = {slot: self._image_key(slot, batch) for slot in self.info.cameras}
            self._names_of_keys = names
        keys = self._keys
        first = batch[next(iter(keys.values()))]
        num = len(first) if first.ndim == 4 else 1
        states: Any = [None] * num
        if self.info.needs_state:
            if STATE not in batch:
                raise ValueError(f"the policy needs the state ({', '.join(self.info.proprio_names)}), LeRobot gives none")
            states = batch[STATE].cpu().numpy().reshape(num, -1)
            if states.shape[1] != len(self._state_order):
                raise ValueError(f"the policy needs a state of {len(self._state_order)} numbers, LeRobot gives {states.shape[1]}")
            states = states.take(self._state_order, 1).astype(np.float64)
        tasks = batch.get("task") or ""
        tasks = [tasks] * num if isinstance(tasks, str) else tasks
        if not all(tasks) and not self.config.task:
            raise ValueError("LeRobot gives no task text here; say what the robot is to do: --policy.task")
        images = {slot: _as_pictures(batch[key]) for slot, key in keys.items()}  # last: it takes what is small out of the caches
        return [
            Observation({slot: pictures[row] for slot, pictures in images.items()}, tasks[row] or self.config.task, states[row])
            for row in range(num)
        ]

    def _image_key(self, slot: str, batch: Mapping[str, Any]) -> str:
        """LeRobot's key of the policy's camera `slot`: as is said, as the recordings called it, or the only one."""
        own = [key for key in batch if key.startswith("observation.image") and isinstance(batch[key], Tensor)]
        said = self.config.cameras.get(slot)
        wanted = [said] if said else [self.info.demonstrated.cameras.get(slot, slot), slot]
        for name in wanted:
            if (key := name if name in own else f"{IMAGES}{name}") in own:
                return key
        if not said and len(own) == len(self.info.cameras) == 1:
            return own[0]
        raise ValueError(
            f"the policy's camera {slot} (called {wanted[0]!r}) is none of LeRobot's ({', '.join(own) or 'none'}); say which it is: "
            f'--policy.cameras=\'{{"{slot}": "..."}}\''
        )

    def _heed(self, warnings: Sequence[str], whose: str = "the policy's server warns") -> None:
        """Nothing moves on what training did not see, unless a person has allowed it."""
        for warning in warnings:
            logger.warning("%s: %s", whose, warning)
        if warnings and not self.config.ignore_warnings:
            raise ValueError(f"{' / '.join(warnings)} To act in spite of it: --policy.ignore_warnings=true")

    def _hold(self, batch: Mapping[str, Any], error: ServerUnavailableError) -> Tensor:
        """What holds the robot still: its last targets, or where it is; 0 for motions and velocities."""
        now = time.monotonic()
        if self._held_since is None:
            self._held_since = now
            logger.warning("no actions, the robot holds: %s", error)
        is_target = [self.info.action_kinds[dim] is ActionKind.TARGET for dim in self._action_order]
        stays = self._last if self._last is not None else self._position(batch)
        if stays is None or now - self._held_since > self.config.stop_after_s:
            raise error
        return torch.where(torch.tensor(is_target), stays, 0.0)

    def _position(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Where the robot is, float64 [B, A], where its state has the names of its actions."""
        if not self.info.needs_state or set(self.info.proprio_names) != set(self.info.action_names) or STATE not in batch:
            return None
        own = [self.info.proprio_names.index(self.info.action_names[dim]) for dim in self._action_order]
        return batch[STATE].double()[:, [self._state_order[dim] for dim in own]]


def _as_pictures(images: Tensor) -> np.ndarray:
    """uint8 [B, height, width, 3] of LeRobot's floats [B, 3, height, width], 0 to 1: the very bytes that it made them of."""
    if images.ndim == 3:
        images = images[None]
    if images.dtype == torch.uint8:
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
    num, _, height, width = images.shape
    pictures = np.empty((num, height, width, 3), np.uint8)
    for channel in range(3):  # half the time of a permuted copy of all of them
        plane = (images[:, channel].float() * 255).round_().clamp_(0, 255)
        np.copyto(pictures[..., channel], plane.cpu().numpy(), casting="unsafe")
    return pictures


def _names(features: Mapping[str, Any], column: str) -> list[str]:
    """The names that a data set of LeRobot gives the dimensions of a column; none where it has none."""
    names = features.get(column, {}).get("names") or []
    if isinstance(names, Mapping):
        names = next((value for value in names.values() if isinstance(value, list)), list(names))
    return list(names)


def _order(what: str, wanted: Sequence[str], own: Sequence[str]) -> list[int]:
    """Of actions: the policy's dimension for each of LeRobot's; of states: LeRobot's for each of the policy's.

    Raises:
        ValueError: they are not the same values.
    """
    if not own:
        return list(range(len(wanted)))
    plain = [_plain(name) for name in wanted]
    found = [_plain(name) for name in own]
    if sorted(plain) != sorted(found):
        raise ValueError(f"the policy's {what}s are {', '.join(wanted)}; LeRobot's are {', '.join(own)}")
    return [plain.index(name) for name in found] if what == "action" else [found.index(name) for name in plain]


def _plain(name: str) -> str:
    """ "elbow_flex" of "elbow_flex.pos [deg]"."""
    return name.partition(" [")[0].removesuffix(".pos")
