"""One task of a simulator with changed scenes, as a program: prints what each change did.

python tests/smoke/changed_scenes.py metaworld faucet-open
"""

from __future__ import annotations

import json
import sys

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.interfaces import Simulator
from experiments.robot.simulators.perturbations import SCENE_AXES, Perturbation


def make_simulator(name: str) -> Simulator:
    if name == "metaworld":
        from experiments.robot.metaworld.environment import MetaWorldSimulator

        return MetaWorldSimulator()
    if name == "aloha":
        from experiments.robot.aloha.environment import AlohaSimulator

        return AlohaSimulator(image_size=64)
    from experiments.robot.libero.environment import LiberoSimulator
    from experiments.robot.libero.tasks import prepare_libero, suite_tasks

    prepare_libero()
    return LiberoSimulator("libero_spatial", suite_tasks("libero_spatial"), image_size=64, num_steps_wait=1, fast_rendering=True)


def main(name: str, task: str) -> None:
    """Distances of pictures and state to the unchanged ones, by axis and severity, and of a reset without changes."""
    simulator = make_simulator(name)
    task = simulator.tasks[int(task)].name if name == "libero" else task  # type: ignore[attr-defined]
    environment, found = simulator.make_environment(task), {}
    episode = EpisodeSpec(task, 0, 7)
    environment.reset(episode)
    before = environment.observe()
    assert before.proprio is not None
    changes = [(f"{axis}:{severity}", (Perturbation(axis, severity),)) for axis in simulator.scene_axes for severity in (1, 3)]
    for label, change in (*changes, ("none", ())):
        environment.reset(episode, change)
        seen = environment.observe()
        assert seen.proprio is not None
        pictures = {slot: float(np.abs(image.astype(int) - before.images[slot]).mean()) for slot, image in seen.images.items()}
        found[label] = {**pictures, "state": float(np.abs(seen.proprio - before.proprio).max())}
    environment.close()
    assert set(simulator.scene_axes) <= set(SCENE_AXES)
    assert "torch" not in sys.modules
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
