"""The main job, end to end, on a CPU: demonstrations -> RLDS -> fine-tuning -> closed-loop success rate.

A thin driver: it prints and runs commands that could be typed one by one, and gathers what they wrote into runs/demo/report.json.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from prismatic.cli import run_script

ROOT = Path(__file__).parents[1]
TASKS = ("faucet-open", "faucet-close", "button-press-topdown")


@dataclass
class DemoConfig:
    """What `make demo` does."""

    output_dir: Path = Path("runs/demo")  # replaced if it exists
    num_demonstrations: int = 50  # per task
    num_trials_per_task: int = 40  # evaluation episodes per task, on positions that no demonstration has
    num_control_trials_per_task: int = 20  # episodes per task and control
    max_steps: int = 700  # optimizer steps
    seed: int = 7
    num_envs: int = 2  # simulator processes


@dataclass
class Driver:
    """Runs commands and remembers how long each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)

    def run(self, stage: str, *command: str) -> None:
        """Prints `command`, runs it, and stops everything if it fails."""
        python = command[0] == "python"
        shown = shlex.join(command)
        print(f"\n=== {stage}\n$ {shown}", flush=True)
        started = time.monotonic()
        actual = [sys.executable, *command[1:]] if python else [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        if subprocess.run(actual, cwd=ROOT, check=False).returncode:
            raise ValueError(f"the stage {stage!r} failed; its message is above. Run its command alone to look into it:\n  {shown}")
        self.seconds[stage] = round(time.monotonic() - started, 1)
        self.commands[stage] = shown
