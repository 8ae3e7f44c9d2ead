"""Posts to /act with requests and json_numpy 2.1.1 as the ALOHA, LIBERO and OpenVLA clients do; prints what it saw. Arguments: port."""

import json
import sys

import json_numpy
import numpy as np
import requests

url = f"http://127.0.0.1:{sys.argv[1]}/act"
rng = np.random.default_rng(0)
image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
wrist = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
body = {"full_image": image, "wrist_image": wrist, "state": np.zeros(8), "instruction": "pick up the bowl"}
headers = {"Content-Type": "application/json"}

plain = requests.post(url, data=json_numpy.dumps(body), headers=headers)
actions = [step.tolist() for step in json_numpy.loads(plain.text)]

json_numpy.patch()
doubled = requests.post(url, json={"encoded": json_numpy.dumps(body)})
twice = [step.tolist() for step in json_numpy.loads(json_numpy.loads(doubled.text))]

flat = requests.post(url, json=body)  # the patched json module encodes the arrays
patched = [step.tolist() for step in flat.json()]

openvla = requests.post(
    url, json={"image": image, "wrist": wrist, "instruction": "pick up the bowl", "unnorm_key": "arm", "state": np.zeros(8)}
)
print(json.dumps({"actions": actions, "twice": twice, "patched": patched, "openvla": openvla.json().tolist()}))
