"""Drives the unmodified openpi-client 0.1.2; prints what it saw as JSON. Arguments: port, api key, libero | aloha | bad."""

import json
import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, key, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
rng = np.random.default_rng(0)
image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
wrist = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
if kind == "aloha":
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    images = {name: rng.integers(0, 256, (3, 48, 64), dtype=np.uint8) for name in cameras}
    observation = {"images": images, "state": np.zeros(14), "prompt": "fold the shirt"}
else:
    observation = {
        "observation/image": image,
        "observation/wrist_image": wrist,
        "observation/state": np.zeros(8),
        "prompt": "pick up the bowl",
    }
client = WebsocketClientPolicy("127.0.0.1", port, api_key=key or None)
seen = {"metadata": {name: client.get_server_metadata()[name] for name in ("platform", "cameras", "num_actions_chunk")}}
if kind == "bad":
    observation["observation/state"] = np.full(8, np.nan)
    try:
        client.infer(observation)
    except RuntimeError as error:
        seen["error"] = str(error)
else:
    answers = [client.infer(observation) for _ in range(3)]
    seen["actions"] = answers[0]["actions"].tolist()
    seen["repeatable"] = all(np.allclose(answer["actions"], answers[0]["actions"], atol=1e-5) for answer in answers)
    seen["infer_ms"] = answers[0]["server_timing"]["infer_ms"]
print(json.dumps(seen))
