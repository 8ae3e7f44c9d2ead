"""What the policy plugin adds to a step of LeRobot's loop, the server's answer and the pictures' conversion apart; in its environment.

python benchmarks/lerobot_client.py --server ws://127.0.0.1:8777

The server's policy may be any: pictures are noise, states are zeros. Prints JSON, times in milliseconds by the clock, which other
programs on the machine lengthen, and of the processor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lerobot_policy_openvla_oft_remote import OpenVLAOFTRemoteConfig
from lerobot_policy_openvla_oft_remote import modeling_openvla_oft_remote as modeling
from lerobot_policy_openvla_oft_remote.processor_openvla_oft_remote import make_openvla_oft_remote_pre_post_processors

try:
    from lerobot.common.control_utils import predict_action  # 0.6.1
except ImportError:
    from lerobot.utils.control_utils import predict_action  # 0.4.4


class Stopwatch:
    """Adds up the time of the calls of a function since it was last asked: by the clock, and of the processor in this thread."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._clock, self._processor = function, 0.0, 0.0

    def __call__(self, *arguments: Any) -> Any:
        clock, processor = time.perf_counter(), time.thread_time()
        try:
            return self._function(*arguments)
        finally:
            self._processor += time.thread_time() - processor
            self._clock += time.perf_counter() - clock

    def take(self) -> np.ndarray:
        """[2], seconds."""
        taken, self._clock, self._processor = np.array([self._clock, self._processor]), 0.0, 0.0
        return taken


def summary(seconds: list[np.ndarray]) -> dict[str, Any]:
    clock, processor = 1e3 * np.array(seconds).T
    ranks = {
        name: {f"p{rank}": round(float(np.percentile(values, rank)), 3) for rank in (50, 99, 100)}
        for name, values in (("clock", clock), ("processor", processor))
    }
    return {"count": len(seconds), **ranks}


def measure(server: str, num_steps: int, height: int, width: int) -> dict[str, Any]:
    config = OpenVLAOFTRemoteConfig(server=server, ignore_warnings=True, task="pick the cube", reply_timeout_s=30)
    policy = modeling.OpenVLAOFTRemotePolicy(config)
    processors = make_openvla_oft_remote_pre_post_processors(config)
    rng, info = np.random.default_rng(0), policy.info
    seen = {f"observation.images.{slot}": rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for slot in info.cameras}
    seen |= {"observation.state": np.zeros(len(info.proprio_names), np.float32)}
    policy.config.cameras = {slot: slot for slot in info.cameras}
    answers, pictures, steps = Stopwatch(policy._clients[0].infer), Stopwatch(modeling._as_pictures), Stopwatch(policy.select_action)
    policy._clients[0].infer, modeling._as_pictures, policy.select_action = answers, pictures, steps  # type: ignore[method-assign]
    found: dict[str, list[np.ndarray]] = {"step": [], "queued_step": [], "asking_step": [], "answer": [], "pictures": []}
    for _ in range(num_steps):
        predict_action(seen, policy, torch.device("cpu"), *processors, use_amp=False, task="pick the cube")
        waited, converted, took = answers.take(), pictures.take(), steps.take()
        if waited.any():
            found["answer"].append(waited)
            found["pictures"].append(converted)
        found["step"].append(took - waited - converted)
        found["asking_step" if waited.any() else "queued_step"].append(took - waited - converted)
    return {name: summary(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="ws://127.0.0.1:8777")
    parser.add_argument("--num_steps", type=int, default=1000)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    flags = parser.parse_args()
    print(json.dumps(measure(flags.server, flags.num_steps, flags.height, flags.width), indent=1))


if __name__ == "__main__":
    main()
