"""The suite of deliberate mistakes, as a user runs it, with a policy that has learnt nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import launching
import pytest

TOLD = {
    "none": ("-", ""),
    "state in millimetres": ("warned", "It looks like millimetres"),
    "unnorm_key of another data set": ("refused", "unnorm_key 'bridge_orig' is not in"),
    "another robot (flag)": ("refused", "--robot_platform LIBERO (the checkpoint: METAWORLD)"),
    "action dimension 7 for 4 (policy.json edited)": ("refused", "action_kinds lists 4 items for 7 dimensions"),
    "attention made causal by another library version": ("refused", "causal attention: the first token does not see the last one"),
}


@pytest.mark.sim
def test_mistakes_are_reported_before_the_first_action(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return launching.run([sys.executable, *words], timeout=250)

    checkpoint = str(tmp_path / "untrained")
    assert run("scripts/make_untrained_policy.py", "--output_dir", checkpoint, "--robot_platform", "METAWORLD").returncode == 0
    words = [
        "--pretrained_checkpoint",
        checkpoint,
        "--task_names",
        "[button-press-topdown]",
        "--num_trials_per_task",
        "1",
        "--num_envs",
        "1",
    ]
    cases = f"[{', '.join(f'{name!r}' for name in TOLD)}]"
    done = run("benchmarks/mismatches.py", *words, "--aloha", "False", "--cases", cases, "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr
    rows = {row["mistake"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert set(rows) == set(TOLD)
    for name, (told, message) in TOLD.items():
        assert rows[name]["told"] == told, rows[name]
        assert message in rows[name]["message"]
        assert rows[name]["num_trials"] == (told != "refused")
