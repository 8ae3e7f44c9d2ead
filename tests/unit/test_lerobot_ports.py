"""One program at a time commands an arm."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from experiments.robot.lerobot.ports import hold, release

ROOT = Path(__file__).parents[2]
HOLDING = """
import sys, time
from dataclasses import dataclass
from experiments.robot.lerobot.ports import hold
@dataclass
class Arm:
    port: str
print(len(hold(Arm(sys.argv[1]))), flush=True)
time.sleep(600)
"""


@dataclass
class Arm:
    port: str
    id: str = "my_arm"


@dataclass
class Arms:
    left_arm_config: Arm
    right_arm_config: Arm
    cameras: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def port() -> Iterator[str]:
    main, secondary = os.openpty()
    yield os.ttyname(secondary)
    os.close(main)
    os.close(secondary)


def test_a_second_program_at_the_same_port_is_refused_until_the_first_has_ended(port: str, tmp_path: Path) -> None:
    link = tmp_path / "by-id"
    link.symlink_to(port)
    other = subprocess.Popen([sys.executable, "-c", HOLDING, port], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "1"
        for path in (port, str(link)):
            with pytest.raises(ValueError, match=f"another program commands the arm at {port}"):
                hold(Arm(path))
    finally:
        other.kill()
        other.wait()
    release(hold(Arm(port)))


def test_ports_of_two_arms_are_held_and_let_go_together(port: str) -> None:
    main, secondary = os.openpty()
    both = Arms(Arm(port), Arm(os.ttyname(secondary)))
    held = hold(both)
    assert len(held) == 2
    with pytest.raises(ValueError, match="another program"):
        hold(Arm(both.right_arm_config.port))
    release(held)
    first = hold(both.right_arm_config)
    with pytest.raises(ValueError, match="another program"):
        hold(both)  # of which the other one is then free
    release(hold(both.left_arm_config))
    release(first)
    os.close(main)
    os.close(secondary)


@pytest.mark.parametrize("path", ["/dev/tty_that_is_not_there", "192.168.0.7", "", __file__])
def test_what_is_no_device_is_left_to_the_driver(path: str) -> None:
    assert hold(Arm(path)) == []
