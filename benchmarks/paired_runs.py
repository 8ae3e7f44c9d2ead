"""What the benchmarks of learning in MetaWorld share: commands with logs, a small policy's training, rows of paired tables."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.comparison import Comparison, PairedTable, format_p
from experiments.robot.evaluation.statistics import wilson_interval
from experiments.robot.improvement.phases import flag_words

ROOT = Path(__file__).parents[1]


def train_flags(manifest: Path, run_dir: Path, num_steps: int, seed: int) -> dict[str, Any]:
    """Of vla-scripts/finetune.py, as scripts/demo.py trains its policy."""
    return {
        "vla_path": "assets/tiny_base",
        "dataset_name": manifest,
        "run_root_dir": run_dir.parent,
        "run_id_override": run_dir.name,
        "save_latest_checkpoint_only": True,
        "auto_resume": True,
        "image_aug": False,
        "use_l1_regression": True,
        "use_lora": True,
        "learning_rate": 1e-3,
        "max_steps": num_steps,
        "num_steps_before_decay": num_steps * 4 // 5,
        "lr_warmup_steps": 20,
        "max_grad_norm": 1.0,
        "num_images_in_input": 2,
        "use_proprio": True,
        "batch_size": 16,
        "num_workers": 0,
        "seed": seed,
    }


def command_line(script: str, flags: Mapping[str, Any]) -> list[str]:
    """Of a script of this repository, without the interpreter."""
    return [script, *flag_words(flags)]


def run(command: list[str], log: Path) -> None:
    """Runs a command with its output in a file.

    Raises:
        ValueError: it failed; the end of its output is in the message.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ {shlex.join(['python', *command])}", flush=True)
    with log.open("w") as file:
        code = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=file, stderr=file, check=False).returncode
    if code:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ValueError(f"failed, see {log}: {shlex.join(['python', *command])}\n{end}")


def add_tables(tables: Sequence[PairedTable]) -> PairedTable:
    """Of all seeds together."""
    return PairedTable(*(sum(getattr(table, item.name) for table in tables) for item in fields(PairedTable)))


def describe_pair(name: str, seeds: Sequence[Comparison]) -> dict[str, Any]:
    """A row for JSON, with its `line` of markdown: both rates with 95 % intervals, their difference and its test, of all `seeds` together.

    Episodes that crashed in the simulator count as failures, and are told with the name.
    """
    table, shares = add_tables([found.total for found in seeds]), []
    crashed = [sum(found.num_crashed[side] for found in seeds) for side in (0, 1)]
    told = f"{name} (crashed: {crashed[0]} and {crashed[1]})" if any(crashed) else name
    for count in (table.both + table.only_a, table.both + table.only_b):
        low, high = (100 * bound for bound in wilson_interval(count, table.num_pairs))
        shares.append(f"{100 * count / table.num_pairs:.0f} % ({count}/{table.num_pairs}, {low:.0f}-{high:.0f})")
    low, high = (100 * bound for bound in table.interval)
    change = f"{100 * table.difference:+.0f} points ({low:+.0f} to {high:+.0f})"
    line = f"| {told} | {shares[0]} | {shares[1]} | {change} | {format_p(table.p_value)} |"
    counts = {item.name: getattr(table, item.name) for item in fields(PairedTable)}
    tested = {"difference": table.difference, "interval_95": table.interval, "p": table.p_value}
    return {"name": name, **counts, "num_crashed": crashed, **tested, "line": line}
