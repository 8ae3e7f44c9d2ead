"""Drives the unmodified connection of vla-eval 0.8.0 as its runners do; prints what it saw as JSON. Arguments: URL."""

import json
import sys

import anyio
import numpy as np
from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark
from vla_eval.connection import Connection
from vla_eval.specs import DimSpec, check_specs


async def main() -> None:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    observation = {"images": images, "task_description": "pick up the bowl", "states": np.zeros(8)}
    seen = {}
    async with Connection(sys.argv[1]) as connection:
        info = connection.server_info
        seen["hello"] = info
        own = [{name: DimSpec.from_dict(spec) for name, spec in info[kind].items()} for kind in ("action_spec", "observation_spec")]
        benchmark = LIBEROBenchmark.__new__(LIBEROBenchmark)
        benchmark.send_wrist_image, benchmark.send_state, benchmark.absolute_action = True, True, False
        seen["spec_warnings"] = check_specs(own[0], benchmark.get_action_spec(), own[1], benchmark.get_observation_spec())
        seen["actions"] = []
        for _ in range(2):
            await connection.start_episode({"task": {"name": "pick up the bowl"}})
            seen["actions"] += [(await connection.act(observation))["actions"].tolist() for _ in range(10)]
            await connection.end_episode({"success": False})
        await connection.start_episode({"task": {}})
        try:
            await connection.act({**observation, "images": {"behind": images["wrist"]}})
        except RuntimeError as error:
            seen["error"] = str(error)
        seen["after_error"] = len((await connection.act(observation))["actions"])
    print(json.dumps(seen))


anyio.run(main)
