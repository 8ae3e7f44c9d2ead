"""Weights & Biases with its real package: offline as it is, and one clear line on a machine without an account."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import launching
import pytest

from prismatic.models.base import TinySizes, write_tiny_base
from prismatic.training.config import FinetuneConfig
from prismatic.training.sinks import WandbSink

ROOT = Path(__file__).parents[2]
DATASET = "libero_spatial_no_noops"
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=2, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wandb")
    write_tiny_base(folder / "base", SIZES, seed=0)
    shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, folder / "data" / DATASET)
    return folder


def train(workplace: Path, *flags: str, processes: int = 1, **variables: str) -> subprocess.CompletedProcess[str]:
    """The published torchrun command with its W&B flags, on a machine without an account."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc-per-node", str(processes)]
    command += ["vla-scripts/finetune.py", "--vla_path", str(workplace / "base"), "--data_root_dir", str(workplace / "data")]
    command += ["--dataset_name", DATASET, "--run_root_dir", str(workplace / "runs"), "--run_id_override", "run", "--batch_size", "2"]
    command += ["--save_freq", "2", "--max_steps", "2", "--num_workers", "0", "--lora_rank", "4", "--wandb_log_freq", "1"]
    command += ["--use_val_set", "True", "--val_freq", "2", "--wandb_entity", "your-wandb-entity", "--wandb_project", "your-wandb-project"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(workplace / "home"), "NETRC": str(workplace / "home/.netrc"), **variables}
    (workplace / "home").mkdir(exist_ok=True)
    return launching.run([*command, *flags], env=environment, timeout=280)


def sent(folder: Path) -> list[dict[str, Any]]:
    """The rows in the file of an offline run."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    path = next(folder.glob("*.wandb"))
    for _ in range(300):  # the package writes the rest in a process of its own, a moment after the run's end
        store, found, kinds = DataStore(), [], set()
        store.open_for_scan(str(path))
        while data := store.scan_data():
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kinds.add(record.WhichOneof("record_type"))
            if record.WhichOneof("record_type") == "history":
                found.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
        if "exit" in kinds:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def test_offline_runs_hold_what_metrics_jsonl_holds_and_a_requeued_job_goes_on_in_the_same(workplace: Path) -> None:
    ids = []
    for max_steps in ("2", "4"):
        done = train(workplace, "--auto_resume", "True", "--max_steps", max_steps, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
        ids.append((workplace / "runs/run/wandb_run_id.txt").read_text().strip())
    assert ids[0] == ids[1]
    folders = sorted((workplace / "runs/wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
    assert [path.name.rpartition("-")[2] for path in folders] == ids
    rows = [json.loads(line) for line in (workplace / "runs/run/metrics.jsonl").read_text().splitlines()]
    received = [row for folder in folders for row in sent(folder)]
    assert {row["step"] for row in received} == {1, 2, 3, 4}
    for row in rows:
        for name in row.keys() - {"step", "seconds"}:
            assert any(other.get(name) == row[name] and other["step"] == row["step"] for other in received), (row["step"], name)


def test_rows_of_an_earlier_step_are_kept(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation's come late, and a run that is resumed goes back to its last checkpoint."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    flags = {"run_id_override": "earlier", "wandb_entity": "nobody", "wandb_project": "nothing", "run_root_dir": workplace / "earlier"}
    config = FinetuneConfig.from_flags(vla_path=str(workplace / "base"), data_root_dir=workplace / "data", dataset_name=DATASET, **flags)
    config.run_dir.mkdir(parents=True)
    sink = WandbSink(config, 0)
    for step, values in ((5, {"train/loss": 0.5}), (3, {"eval/success_rate": 0.25}), (4, {"train/loss": 0.75})):
        sink.log(step, values)
    sink.close(failed=False)
    rows = sent(next((workplace / "earlier/wandb").glob("offline-run-*")))
    found = [{name: value for name, value in row.items() if name == "step" or "/" in name} for row in rows]
    assert found == [{"step": 5, "train/loss": 0.5}, {"step": 3, "eval/success_rate": 0.25}, {"step": 4, "train/loss": 0.75}]


def test_no_account_is_one_line_before_anything_expensive(workplace: Path) -> None:
    refused = train(workplace, "--run_id_override", "nobody", "--vla_path", str(workplace / "nowhere"), processes=2)
    assert refused.returncode != 0
    told = [line for line in refused.stderr.splitlines() if "error: --wandb_project" in line]
    assert len(told) == 1, refused.stderr
    assert "not logged in to Weights & Biases; run `wandb login`, or set WANDB_MODE=offline" in told[0]
    assert not re.search(r'File ".*(prismatic|vla-scripts)/', refused.stderr)  # the only stack trace is torchrun's own
    assert not (workplace / "runs/nobody").exists()


class Refusing(BaseHTTPRequestHandler):
    """Knows no key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_a_key_that_is_refused_is_one_line(workplace: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        refused = train(workplace, "--run_id_override", "refused", WANDB_API_KEY="a" * 40, WANDB_BASE_URL=address)
        server.shutdown()
    assert refused.returncode != 0
    assert f"error: --wandb_project: {address} cannot be reached, or refuses the key of this machine" in refused.stderr
    assert not (workplace / "runs/refused").exists()
