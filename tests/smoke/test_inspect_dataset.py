"""The real inspect_dataset.py, started as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import launching
import pytest
from adapter_checkpoints import write_base, write_run

from prismatic.policy.checkpoint.spec import HeadSpec

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/golden/data/rlds"


def inspect(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "scripts/inspect_dataset.py", *flags]
    return launching.run(command, env=environment)


@pytest.mark.parametrize("name", ["libero_spatial_no_noops", "aloha1_put_X_into_pot_300_demos"])
def test_a_page_is_written(tmp_path: Path, name: str) -> None:
    result = inspect("--dataset_name", name, "--data_root_dir", str(DATA), "--output", str(tmp_path / "page.html"))
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "page.html").read_text()
    assert name in text
    assert "data:image/jpeg;base64," in text
    assert text.count("<svg") > 20
    assert str(tmp_path / "page.html") in result.stdout


def test_a_policy_of_several_data_sets_is_asked_in_the_units_of_the_one_that_is_inspected(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_base(tmp_path / "base"), 1, HeadSpec(use_proprio=True))
    statistics, spec = (json.loads((run / name).read_text()) for name in ("dataset_statistics.json", "policy.json"))
    (run / "dataset_statistics.json").write_text(json.dumps({"other": statistics["arm"], "libero_spatial_no_noops": statistics["arm"]}))
    (run / "policy.json").write_text(json.dumps({**spec, "unnorm_key": None}))
    flags = ("--data_root_dir", str(DATA), "--output", str(tmp_path / "page.html"), "--checkpoint", str(run))
    result = inspect("--dataset_name", "libero_spatial_no_noops", *flags)
    assert result.returncode == 0, result.stderr
    assert "isagreement" in (tmp_path / "page.html").read_text()
    refused = inspect("--dataset_name", "aloha1_put_X_into_pot_300_demos", *flags)
    assert refused.returncode == 2
    assert "unnorm_key 'aloha1_put_X_into_pot_300_demos' is not in" in refused.stderr


def test_a_folder_gets_an_entry() -> None:
    by_folder = inspect("--suggest", str(DATA / "libero_spatial_no_noops"))
    by_name = inspect("--suggest", "True", "--dataset_name", "libero_spatial_no_noops", "--data_root_dir", str(DATA))
    assert by_folder.returncode == by_name.returncode == 0, by_folder.stderr + by_name.stderr
    assert by_folder.stdout == by_name.stdout
    assert '"libero_spatial_no_noops": DatasetEntry(' in by_folder.stdout
    assert 'robot_platform="LIBERO"' in by_folder.stdout


def test_mistakes_are_one_line() -> None:
    for flags, message in (
        ((), "--dataset_name is missing"),
        (("--dataset_name", "libero_spatial_no_noop", "--data_root_dir", str(DATA)), "did you mean libero_spatial_no_noops"),
        (("--suggest", str(ROOT / "scripts")), "holds no recordings"),
    ):
        result = inspect(*flags)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
