"""docs/own_robot.md from the first line to the last, as it is written, for both robots; only the training is shorter."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import launching
import pytest
from documents import ROOT, add_entry, copy_checkout, environment, page_commands, page_files

PAGE = "docs/own_robot.md"
COMMANDS = page_commands(PAGE)
SHORT_TRAINING = " --max_steps 2 --save_freq 2 --num_workers 0"
pytestmark = pytest.mark.rlds


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    for name, content in page_files(PAGE).items():
        (folder / name).write_text(content)
    return folder


def _run(checkout: Path, command: str, kind: str = "") -> str:
    """What a command prints; with a `kind` from the forking process, which knows the checkout as it is when it first serves."""
    started, variables = time.monotonic(), environment(checkout)
    if kind:
        program, *words = shlex.split(command)
        words = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[program] + words
        done = launching.run([sys.executable, *words], checkout, variables, 200, kind, checkout)
    else:
        done = subprocess.run(command, shell=True, cwd=checkout, env=variables, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    print(f"{time.monotonic() - started:6.1f} s  {command[:110]}")
    return done.stdout


@contextmanager
def _serving(checkout: Path, command: str) -> Iterator[str]:
    """The address of the server that `command` starts."""
    program, *words = shlex.split(command)
    assert program == "python"
    log = checkout / "server.log"
    log.unlink(missing_ok=True)
    server = launching.start([sys.executable, *words, "--port", "0"], log, environment(checkout), checkout)
    try:
        found = next(filter(None, (re.search(r"serving on http://([\d.]+:\d+)", line) for line in server.lines())), None)
        assert found is not None, server.text()
        yield f"ws://{found[1]}"
    finally:
        if server.is_running():
            server.kill(signal.SIGTERM)
        server.wait(30)


def _assert_shown(suggestion: str) -> None:
    """What was printed, without its comments, stands in the page."""
    for part in suggestion.split("\n\n"):
        assert "\n".join(line for line in part.splitlines() if not line.startswith("#")) in (ROOT / PAGE).read_text()


@pytest.mark.timeout(600)
def test_the_page_leads_both_robots_from_recording_to_acting(checkout: Path) -> None:
    is_registered = False
    for command in COMMANDS:
        if "deploy.py" in command:
            continue  # needed by the control loop, which comes after it
        if "run_robot.py" in command:
            robot = "desk_arm" if "DeskArm" in command else "two_arms"
            serve = next(item for item in COMMANDS if "deploy.py" in item).replace("desk_arm", robot)
            with _serving(checkout, serve) as address:
                assert "ws://127.0.0.1:8777" in command
                printed = _run(checkout, command.replace("ws://127.0.0.1:8777", address), launching.TORCH)
            assert "(out of steps), 30 steps in" in printed
            continue
        kind = launching.TENSORFLOW if "convert/" in command else launching.TORCH
        kind = kind if is_registered or command.startswith("python scripts/convert") else ""
        printed = _run(checkout, command + (SHORT_TRAINING if "finetune.py" in command else ""), kind)
        if "--suggest" in command:
            add_entry(checkout, printed)
            is_registered = "two_arms" in command
            if "desk_arm" in command:
                _assert_shown(printed)
    written = {f"{robot}.{suffix}" for robot in ("desk_arm", "two_arms") for suffix in ("html", "weights.json")}
    assert {item.name for item in (checkout / "runs/inspection").iterdir()} == written
