"""Flags of the policy: --policy.type=openvla_oft_remote --policy.server=ws://..."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig


@PreTrainedConfig.register_subclass("openvla_oft_remote")
@dataclass
class OpenVLAOFTRemoteConfig(PreTrainedConfig):
    """Where the policy is, and what LeRobot calls what it needs."""

    server: str = "ws://127.0.0.1:8777"  # of vla-scripts/deploy.py, with ?adapter=NAME where it serves several
    task: str = ""  # the instruction where LeRobot gives none
    cameras: dict[str, str] = field(default_factory=dict)  # the policy's camera -> LeRobot's, where names do not say it: {"primary": "top"}
    # LeRobot's order of values where it is not the policy's; taken from the data set where there is one
    action_names: list[str] = field(default_factory=list)
    state_names: list[str] = field(default_factory=list)
    num_open_loop_steps: int | None = None  # actions executed per query; all that the policy predicts by default
    ignore_warnings: bool = False  # act although the policy sees something else than in training
    jpeg_images: bool = False  # pictures travel as JPEG: for slow networks
    connect_wait_s: float = 60.0  # how long to wait for the server at the start
    reply_timeout_s: float = 2.0  # a request unanswered for so long is given up
    stop_after_s: float = 5.0  # after holding for so long without an answer the rollout ends

    def __post_init__(self) -> None:
        self.device = "cpu"  # of the pictures; the policy has its own computer
        super().__post_init__()
        if self.num_open_loop_steps is not None and self.num_open_loop_steps < 1:
            raise ValueError(f"--policy.num_open_loop_steps is {self.num_open_loop_steps}, must be at least 1")
        for name in ("connect_wait_s", "reply_timeout_s", "stop_after_s"):
            if not getattr(self, name) >= 0:  # of NaN every comparison is False: the waiting would have no end
                raise ValueError(f"--policy.{name} is {getattr(self, name)}, must be a number of seconds, 0 or more")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> Any:
        raise NotImplementedError("openvla_oft_remote is not trained here: train with vla-scripts/finetune.py")

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """What the policy needs is compared with each observation."""
