"""One trial per task of a LIBERO suite with a tiny policy that has learnt nothing: shows that everything runs, not that it succeeds.

A thin driver like scripts/demo.py: it prints and runs commands that could be typed one by one.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from prismatic.cli import run_script
from prismatic.stages import empty_folder, seen_from_root

ROOT = Path(__file__).parents[1]


@dataclass
class SmokeConfig:
    """What `make libero-smoke` does."""

    output_dir: Path = Path("runs/libero_smoke")  # emptied first
    task_suite_name: str = "libero_spatial"  # libero_spatial, libero_object, libero_goal, libero_10, libero_90
    num_trials_per_task: int = 1  # episodes
    num_envs: int = 2  # simulator processes
    max_steps: int | None = None  # per episode; as published for the suite by default


def smoke_commands(config: SmokeConfig) -> list[list[str]]:
    """In order."""
    checkpoint = str(config.output_dir / "untrained")
    evaluate = ["experiments/robot/libero/run_libero_eval.py", "--pretrained_checkpoint", checkpoint]
    evaluate += ["--task_suite_name", config.task_suite_name, "--num_trials_per_task", str(config.num_trials_per_task)]
    evaluate += ["--num_envs", str(config.num_envs), "--fast_rendering", "True", "--num_pictures", "1"]
    evaluate += ["--local_log_dir", str(config.output_dir)]
    if config.max_steps is not None:
        evaluate += ["--max_steps", str(config.max_steps)]
    return [["scripts/make_untrained_policy.py", "--output_dir", checkpoint, "--robot_platform", "LIBERO"], evaluate]


def main(config: SmokeConfig) -> None:
    """Runs every command; stops at the first that fails."""
    config = replace(config, output_dir=seen_from_root(config.output_dir))
    empty_folder(config.output_dir, "untrained")
    started = time.monotonic()
    for command in smoke_commands(config):
        print(f"\n$ {shlex.join(['python', *command])}", flush=True)
        if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
            raise ValueError("the command above failed; its message is above, too")
    print(f"\n{time.monotonic() - started:.0f} s; the policy is untrained, so no success is expected")


if __name__ == "__main__":
    run_script(main, SmokeConfig)
