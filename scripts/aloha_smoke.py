"""One rollout per task of gym-aloha with a tiny policy that has learnt nothing: shows that everything runs, not that it succeeds.

First many environments with the policy in one process (and the scripted experts beside it), then the way of a real robot: a server that
holds the policy, and a client that moves the arms at 25 Hz. A thin driver like scripts/demo.py: it prints and runs commands
that could be typed one by one.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from prismatic.cli import run_script
from prismatic.stages import empty_folder, seen_from_root

ROOT = Path(__file__).parents[1]
_TASKS = ("transfer_cube", "insertion")
_SERVING = re.compile(r"serving on http://127\.0\.0\.1:(\d+)")
_PATIENCE_S = 30  # for a server that is told to end


@dataclass
class SmokeConfig:
    """What `make aloha-smoke` does."""

    output_dir: Path = Path("runs/aloha_smoke")  # emptied first
    num_trials_per_task: int = 1  # episodes of each task, through the server and beside the expert
    num_envs: int = 2  # simulator processes


def main(config: SmokeConfig) -> None:
    """Runs every command; stops at the first that fails."""
    config = replace(config, output_dir=seen_from_root(config.output_dir))
    empty_folder(config.output_dir, "untrained")
    started = time.monotonic()
    checkpoint, count = str(config.output_dir / "untrained"), str(config.num_trials_per_task)
    run(["scripts/make_untrained_policy.py", "--output_dir", checkpoint, "--robot_platform", "ALOHA"])
    evaluate = ["experiments/robot/aloha/run_aloha_sim_eval.py", "--pretrained_checkpoint", checkpoint, "--with_expert", "True"]
    evaluate += ["--task_names", f"[{','.join(_TASKS)}]", "--num_trials_per_task", count, "--num_envs", str(config.num_envs)]
    run([*evaluate, "--num_pictures", "1", "--local_log_dir", str(config.output_dir / "sim_eval")])
    with server(["vla-scripts/deploy.py", "--pretrained_checkpoint", checkpoint, "--port", "0"]) as port:
        for task in _TASKS:
            words = ["experiments/robot/aloha/run_aloha_eval.py", "--vla_server_url", f"127.0.0.1:{port}", "--robot", task]
            words += ["--num_rollouts_planned", count, "--prefetch_steps", "8", "--run_id_note", task]
            run([*words, "--local_log_dir", str(config.output_dir / "eval")])
    print(f"\n{time.monotonic() - started:.0f} s; the policy is untrained, so no success but the expert's is expected")


def run(command: list[str]) -> None:
    """Prints and runs one command.

    Raises:
        ValueError: it failed.
    """
    print(f"\n$ {shlex.join(['python', *command])}", flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
        raise ValueError("the command above failed; its message is above, too")


@contextmanager
def server(command: list[str]) -> Iterator[int]:
    """The port of a server that runs within the block.

    Raises:
        ValueError: it does not start.
    """
    print(f"\n$ {shlex.join(['python', *command])} &", flush=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        yield _wait_for_port(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_port(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        if found := _SERVING.search(line):
            threading.Thread(target=lambda: print(process.stderr.read(), end="", file=sys.stderr), daemon=True).start()  # type: ignore[union-attr]
            return int(found[1])
    raise ValueError("the server above did not start; its message is above, too")


if __name__ == "__main__":
    run_script(main, SmokeConfig)
