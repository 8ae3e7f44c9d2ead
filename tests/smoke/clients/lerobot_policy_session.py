"""The policy plugin in LeRobot's own functions: a data set's description, make_policy, predict_action as LeRobot's loops call it.

Arguments: SERVER FOLDER NUM_STEPS. Writes actions.npz; then waits for a line, by which time the server is gone, and goes on.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_policy_config, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

from prismatic.acting.client import ServerUnavailableError

try:
    from lerobot.common.control_utils import predict_action  # 0.6.1
except ImportError:
    from lerobot.utils.control_utils import predict_action  # 0.4.4

server, folder, num_steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
NAMES = ["wrist_roll.pos", "gripper.pos", "shoulder_pan.pos"]  # LeRobot's order is not the policy's
STATE = {"dtype": "float32", "shape": (3,), "names": NAMES}
CAMERAS = ("observation.images.front", "observation.images.wrist")
WAITS = ("connect_wait_s", "reply_timeout_s", "stop_after_s")
IMAGE = {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}


def observation(rng: np.random.Generator) -> dict[str, np.ndarray]:
    pictures = {name: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in CAMERAS}
    return {"observation.state": rng.normal(size=3).astype(np.float32), **pictures}


def step(policy, processors, seen: dict[str, np.ndarray], task: str = "pick the cube") -> np.ndarray:
    device = torch.device("cpu")
    return predict_action(seen, policy, device, *processors, use_amp=False, task=task, robot_type="simulated_so101")[0].numpy().copy()


def message(call) -> str:
    try:
        return repr(call())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


register_third_party_plugins()
data = LeRobotDataset.create(
    "me/eval_set", 25, {"action": STATE, "observation.state": STATE, **dict.fromkeys(CAMERAS, IMAGE)}, root=folder / "set", use_videos=False
)
flags = {"server": server, "ignore_warnings": True, "stop_after_s": 1.0, "reply_timeout_s": 30.0, "connect_wait_s": 0.2}
config = make_policy_config("openvla_oft_remote", **flags)
policy = make_policy(config, ds_meta=data.meta)
processors = make_pre_post_processors(config, dataset_stats=None)
rng = np.random.default_rng(0)
actions = np.stack([step(policy, processors, observation(rng)) for _ in range(num_steps)])

policy.save_pretrained(folder / "policy")
for pipeline in processors:
    pipeline.save_pretrained(folder / "policy")
loaded = PreTrainedConfig.from_pretrained(folder / "policy")
loaded.pretrained_path = folder / "policy"
again = make_policy(loaded, ds_meta=data.meta)
overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
stored = make_pre_post_processors(loaded, pretrained_path=str(folder / "policy"), preprocessor_overrides=overrides)
first = observation(np.random.default_rng(0))
resumed = step(again, stored, first)
again.reset()
batch = {name: torch.from_numpy(np.stack([value, value])) for name, value in first.items() if name == "observation.state"}
batch |= {name: torch.from_numpy(np.stack([first[name]] * 2)).permute(0, 3, 1, 2).float() / 255 for name in CAMERAS}
two = again.predict_action_chunk({**batch, "task": ["pick the cube"] * 2}, inference_delay=2, prev_chunk_left_over=torch.zeros(10, 3))


def make(**changes):
    return make_policy(make_policy_config("openvla_oft_remote", **{**flags, **changes}), ds_meta=data.meta)


def ask_two_of_which_one_fails() -> str:
    asked, clients = make(), []

    class Client:
        is_asked = False

        def infer(self, *_) -> np.ndarray:
            assert not self.is_asked, "a second time"
            if self is clients[0]:
                raise ServerUnavailableError("the first")
            self.is_asked = True
            time.sleep(0.3)
            self.is_asked = False
            return np.zeros((10, 3))

    clients += [Client(), Client()]
    asked._clients = clients
    told = message(lambda: asked.predict_action_chunk({**batch, "task": ["pick the cube"] * 2}))
    return f"{told}, {clients[1].is_asked}"


far = {**first, "observation.state": first["observation.state"] + 50}
asking = make(ignore_warnings=False)
asking.info = replace(asking.info, demonstrated=replace(asking.info.demonstrated, start_low=(), start_high=()))  # as of older servers
told = {
    "no task": message(lambda: step(make(), processors, first, task="")),
    "no camera": message(lambda: step(again, stored, {name: value for name, value in first.items() if "wrist" not in name})),
    "begins elsewhere": message(lambda: step(make(ignore_warnings=False), processors, far)),
    "warned": message(lambda: step(asking, processors, far)),  # by the server
    "too many": message(lambda: make(num_open_loop_steps=99)),
    "no server": message(lambda: make(server="ws://127.0.0.1:9")),
    **{name: message(lambda name=name: replace(config, **{name: float("nan")})) for name in WAITS},
    "one of two": ask_two_of_which_one_fails(),
}
data.meta.features["action"] = {**STATE, "names": ["a.pos", "gripper.pos", "shoulder_pan.pos"]}
told["other names"] = message(make)
np.savez(folder / "actions.npz", actions=actions, resumed=resumed, two=two.numpy())
print(json.dumps(told), flush=True)

sys.stdin.readline()
policy.reset()
held = [step(policy, processors, first) for _ in range(3)]


def ask_for_long() -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        step(policy, processors, first)


end = message(ask_for_long)
print(json.dumps({"held": np.stack(held).tolist(), "state": first["observation.state"].tolist(), "end": end}))
