"""The doctor, started as a user starts it, on sound and broken machines, checkpoints and data."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from policy_server import write_checkpoint

from prismatic.doctor.checkpoint import check_checkpoint
from prismatic.doctor.data import check_data
from prismatic.doctor.machine import check_gpu
from prismatic.doctor.screen import count_problems, run_check, to_text
from prismatic.doctor.simulators import _judge
from prismatic.doctor.software import EXTRAS
from prismatic.vla.diagnosis import Finding, Status

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/golden/data/rlds"
# Runs the doctor as if a package were not installed.
BLOCKED = """
import importlib.abc, runpy, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv[0] = "scripts/doctor.py"
runpy.run_path("scripts/doctor.py", run_name="__main__")
"""


def doctor(*flags: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    start = ["-c", BLOCKED.format(names=blocked)] if blocked else ["scripts/doctor.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, *start, *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("doctor"), "ALOHA")


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    ("free", "told"),
    [
        (4, "The least is 5 GiB, to fine-tune the small base"),
        (7.5, "enough to fine-tune the small base (--config_path vla-scripts/recipes/small_8gb_card.yaml), or to serve a 7B policy"),
        (80, "enough to fine-tune with LoRA, --batch_size 8"),
    ],
)
def test_a_small_card_is_told_of_the_base_that_it_can_train(monkeypatch: pytest.MonkeyPatch, free: float, told: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (int(free * 2**30), 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "card")
    (finding,) = check_gpu()
    assert told in f"{finding.found} {finding.remedy}"
    assert (ROOT / "vla-scripts/recipes/small_8gb_card.yaml").is_file()


def problems(findings: list[Finding]) -> dict[str, str]:
    return {finding.subject: finding.found for finding in findings if finding.status == Status.PROBLEM}


def test_the_whole_screen(sound: Path, tmp_path: Path) -> None:
    data = shutil.copytree(DATA, tmp_path / "data")
    result = doctor("--checkpoint", str(sound), "--data", str(data), "--dataset_name", "libero_spatial_no_noops")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100 or str(tmp_path) in result.stdout
    assert "Traceback" not in result.stderr
    for subject in ("Python", "torch", "versions", "extras", "attention", "rendering", "memory", "disk", "Hub", "action_head"):
        assert any(subject in line for line in lines), subject
    assert "looks both ways, tried on" in result.stdout
    assert "RLDS, 5 episodes (5 train), 91 steps; platform LIBERO" in " ".join(result.stdout.split())
    assert lines[-1].endswith("an arrow says what to do.")


def test_missing_packages_are_findings_not_traces() -> None:
    result = doctor("--json", blocked=("torch", "mujoco", "packaging"))
    assert result.returncode == 1, result.stderr
    found = json.loads(result.stdout)
    software = {item["subject"]: item for item in found["sections"]["Software"]}
    assert software["torch"] == {
        "subject": "torch", "status": "problem", "found": "the package torch is missing",
        "remedy": "Install it: pip install torch; in a checkout, make install brings everything.",
    }  # fmt: skip
    assert software["attention"]["status"] == software["versions"]["status"] == "problem"
    assert found["problems"] == sum(item["status"] == "problem" for items in found["sections"].values() for item in items)
    assert found["sections"]["Machine"][0]["subject"] == "memory"


def test_a_python_without_the_project_is_told_how_to_get_to_the_right_one() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", "scripts/doctor.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "has no package prismatic" in line
    assert "source .venv/bin/activate" in line


@pytest.mark.parametrize("flags", [("--dataset_name", "x"), ("--machine", "False"), ("--chekpoint", "x")])
def test_wrong_flags_exit_with_2(flags: tuple[str, ...]) -> None:
    result = doctor(*flags)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_checkpoint_without_a_component_or_statistics(checkpoint: Path) -> None:
    (checkpoint / "action_head--1_checkpoint.pt").unlink()
    (checkpoint / "dataset_statistics.json").unlink()
    (checkpoint / "tokenizer.json").unlink()
    found = problems(check_checkpoint(checkpoint))
    assert set(found) == {"action_head", "statistics", "processor"}
    assert "exactly one file action_head--*checkpoint.pt, found none" in found["action_head"]


def test_a_checkpoint_of_another_width(checkpoint: Path) -> None:
    path = checkpoint / "policy.json"
    content = json.loads(path.read_text())
    platform = content["platform"]
    content["platform"] = platform | {"action_dim": 13, "action_names": platform["action_names"][:13]}
    for key in ("action_kinds", "limits"):  # what names do not say is left out
        content["platform"].pop(key, None)
    content.pop("demonstrated")
    path.write_text(json.dumps(content))
    found = problems(check_checkpoint(checkpoint))
    assert set(found) == {"action_head", "statistics"}
    assert "expected [416], found [448]" in found["action_head"]
    assert "has 14 dimensions, policy.json expects 13" in found["statistics"]


def test_damaged_weights_and_configuration(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    head = checkpoint / "action_head--1_checkpoint.pt"
    head.write_bytes(head.read_bytes()[:1000])
    found = problems(check_checkpoint(checkpoint))
    assert set(found) == {"weights", "action_head"}
    assert "cannot be read" in found["weights"]
    (checkpoint / "config.json").write_text("{")
    assert "config.json" in problems(check_checkpoint(checkpoint))


def test_a_checkpoint_that_does_not_describe_itself(checkpoint: Path) -> None:
    (checkpoint / "policy.json").unlink()
    findings = check_checkpoint(checkpoint)
    assert not problems(findings)
    assert [finding.subject for finding in findings if finding.status == Status.WARNING] == ["policy.json"]
    assert "--num_images_in_input" in findings[0].remedy


def test_files_that_contradict_the_manifest(checkpoint: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    write = (checkpoint / "manifest.json").write_text
    write(json.dumps({**sizes, "trainer_state/optimizer.pt": 9}))  # left behind when the checkpoint was copied for use
    assert not problems(check_checkpoint(checkpoint))
    assert "all 11 of manifest.json" in [finding.found for finding in check_checkpoint(checkpoint)]
    write(json.dumps({**sizes, "policy.json": 1}))
    assert [finding.subject for finding in check_checkpoint(checkpoint) if finding.status == Status.WARNING] == ["files"]
    write(json.dumps({**sizes, "model.safetensors": 1, "model-2.safetensors": 1}))
    found = "model-2.safetensors is missing; model.safetensors has another size than when it was saved"
    assert problems(check_checkpoint(checkpoint)) == {"files": found}


def test_folders_that_are_something_else(sound: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    (tmp_path / "run--100_chkpt").mkdir()
    for folder, found, remedy in (
        (sound.parent / "base", "is a base model", "Fine-tune it first"),
        (run, "holds no checkpoint", f"Pass {run}--100_chkpt"),
        (tmp_path / "nothing", "is not a folder", "hf download"),
    ):
        (finding,) = check_checkpoint(folder)
        assert finding.status == Status.PROBLEM
        assert found in finding.found
        assert remedy in finding.remedy


def test_adapters_whose_base_is_gone(checkpoint: Path) -> None:
    from safetensors.torch import save_file

    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "lora_adapter").mkdir()
    save_file({"x.lora_A.weight": torch.zeros(2, 2)}, checkpoint / "lora_adapter/adapter_model.safetensors")
    path = checkpoint / "policy.json"
    base = checkpoint.parent / "base"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model": str(base)}))
    assert problems(check_checkpoint(checkpoint)) == {"base model": f"{base}, which the adapters belong to, is not here"}
    shutil.copytree(checkpoint, base)
    (base / "model.safetensors").write_bytes(b"")
    assert not problems(check_checkpoint(checkpoint))


def test_data_that_cannot_be_read(tmp_path: Path) -> None:
    data = Path(shutil.copytree(DATA, tmp_path / "data"))
    shard = next(data.glob("libero*/*/*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-50])
    found = problems(check_data(data, None, None))
    assert set(found) == {"libero_spatial_no_noops"}
    assert shard.name in found["libero_spatial_no_noops"]
    refused = [item for item in check_data(data, "aloha1_put_X_into_pot_300_demos", "LIBERO") if item.status == Status.PROBLEM]
    assert "actions of 14 dimensions, robot platform LIBERO expects 7" in refused[0].found


def test_folders_without_data_or_entry(tmp_path: Path) -> None:
    assert "holds no recordings; it holds nothing" in problems(check_data(tmp_path, None, None))["folder"]
    shutil.copytree(DATA / "libero_spatial_no_noops", tmp_path / "my_arm")
    for folder in (tmp_path, tmp_path / "my_arm"):
        (finding,) = check_data(folder, None, None)
        assert finding.status == Status.WARNING
        assert "RLDS, 5 episodes; not in the registry" in finding.found
        assert finding.remedy.endswith(f"--suggest {tmp_path / 'my_arm'}")
    assert "neither an entry" in problems(check_data(tmp_path, "my_arm", None))["my_arm"]


def test_every_extra_is_explained() -> None:
    text = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert set(re.findall(r"^(\w+) = \[", text, re.M)) == set(EXTRAS)


def test_a_renderer_that_crashes_or_fails() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    crashed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    finding = _judge(crashed.returncode, crashed.stdout, crashed.stderr)
    assert (finding.status, finding.found) == (Status.PROBLEM, "the process died of SIGSEGV")
    failed = subprocess.run([sys.executable, "-c", "import sys; sys.exit('error: no OpenGL')"], capture_output=True, text=True, check=False)
    assert _judge(failed.returncode, failed.stdout, failed.stderr).found == "no OpenGL"


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken() -> list[Finding]:
        raise OSError("no such library")

    (finding,) = run_check("torch", broken)
    assert (finding.subject, finding.status, finding.found) == ("torch", Status.PROBLEM, "the check failed: OSError: no such library")
    screen = to_text({"Software": [finding]}, colour=True)
    assert count_problems({"Software": [finding]}) == 1
    assert "\x1b[31;1m  PROBLEM" in screen
    assert screen.endswith("1 problem; an arrow says what to do.")
    long = Finding("weights", Status.PROBLEM, "\n".join(f"missing key_{number}" for number in range(20)), "Copy it again.")
    screen = to_text({"Checkpoint": [long]}, colour=False)
    assert "key_3" in screen
    assert "key_4" not in screen
    assert "--json shows 20 lines" in screen
