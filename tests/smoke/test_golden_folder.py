"""Golden tests without recordings fail: a mistyped --golden-dir must not look like success."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import launching

ROOT = Path(__file__).parents[2]


def test_a_folder_that_is_not_there_fails_every_test_that_reads_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "tests/golden", "-q", "-p", "no:cacheprovider", "--golden-dir", str(tmp_path / "typo")]
    done = launching.run(command, timeout=250)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    counts = dict(re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1]))
    files = {path.name for path in (ROOT / "tests/golden").glob("test_*.py")}
    assert "skipped" not in counts.values()
    assert {name for name in files if f"tests/golden/{name}" in done.stdout} == files
    assert "is absent in" in done.stdout
