"""Fixtures that several modules share, because a server takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # imports torch, which most modules here leave to the processes that they start
    from lerobot_environment import LeRobot
    from policy_server import Server


@pytest.fixture(scope="session")
def aloha_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ALOHA policy with random weights."""
    from policy_server import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("aloha"), "ALOHA")


@pytest.fixture(scope="session")
def aloha_server(aloha_checkpoint: Path) -> Iterator[Server]:
    """deploy.py with that policy; it wants the API key."""
    from policy_server import API_KEY, Server

    running = Server(aloha_checkpoint, api_key=API_KEY)
    yield running
    assert running.stop() == 0, "".join(running.lines)


@pytest.fixture(scope="session")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> LeRobot:
    """LeRobot's environment, with an arm that our tests simulate and with our policy plugin."""
    from client_environments import client_python
    from lerobot_environment import PACKAGES, UNPINNED, LeRobot
    from policy_server import ROOT

    python = client_python("lerobot", PACKAGES, tmp_path_factory, UNPINNED)
    environment = LeRobot(python, tmp_path_factory.mktemp("lerobot"))
    environment.install(Path(__file__).parent / "clients" / "lerobot_robot_simulated")
    environment.install(ROOT / "integrations" / "lerobot_policy_openvla_oft_remote")
    return environment
