"""push_to_hub.py against a real HTTP server that speaks the Hub's upload endpoints, through the real client."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from policy_server import write_checkpoint

from prismatic.commands.push_to_hub import PushConfig, main
from prismatic.policy.checkpoint.files import fingerprint
from prismatic.publishing.card import CardOptions, build_card
from prismatic.publishing.upload import files_to_upload, require_whole

ROOT = Path(__file__).parents[2]
BINARY = (".safetensors", ".pt")


class Hub(BaseHTTPRequestHandler):
    """Creates repositories, takes large files by LFS and the others within the commit; keeps them in `server.files`."""

    server: HubServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_secret":
            return self._reply(401, {"error": "Invalid credentials"})
        self.server.requests.append(self.path)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created = asked
            return self._reply(200, {"url": f"{self.server.address}/me/{asked['name']}", "id": f"me/{asked['name']}"})
        if self.path == "/api/validate-yaml":  # of the card's head
            return self._reply(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            modes = [{"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._reply(200, {"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self._reply(200, {"transfer": "basic", "objects": [self._upload_action(item) for item in json.loads(body)["objects"]]})
        if "/commit/" in self.path:
            self._commit(body)
            return self._reply(200, {"commitUrl": f"{self.server.address}/me/p/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True})
        return self._reply(404, {"error": f"no such endpoint {self.path}"})

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            held = self.server.files.items()
            return self._reply(200, [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in held])
        return self._reply(404, {"error": f"no such endpoint {self.path}"})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self._reply(200, {})

    def _upload_action(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "actions": {"upload": {"href": f"{self.server.address}/objects/{item['oid']}"}}}

    def _commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.server.files[value["path"]]
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.objects[value["oid"]]
            else:
                self.server.message = value["summary"]

    def _reply(self, status: int, content: dict[str, Any] | list[dict[str, Any]]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class HubServer(ThreadingHTTPServer):
    """What was asked of it and what it holds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.created: dict[str, Any] = {}
        self.message = ""


def _mode(path: str) -> str:
    return "lfs" if path.endswith(BINARY) else "regular"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path, "ALOHA")
    path = folder / "policy.json"
    provenance = {
        "command": "vla-scripts/finetune.py --dataset_name arm", "vla_path": "openvla/openvla-7b", "step": 1500, "seed": 7,
        "num_processes": 2, "python": "3.11.7", "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    }  # fmt: skip
    path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": provenance}))
    (folder / "trainer_state").mkdir()
    (folder / "trainer_state/optimizer.pt").write_bytes(b"large")
    (folder / ".hidden").write_text("no")
    return folder


def push(checkpoint: Path, *flags: str, endpoint: str = "http://127.0.0.1:9", token: str = "hf_secret") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    command = [sys.executable, "scripts/push_to_hub.py", "--checkpoint", str(checkpoint), "--repo_id", "me/p", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_checkpoint_arrives_whole(hub: HubServer, checkpoint: Path) -> None:
    result = push(checkpoint, "--private", "True", endpoint=hub.address)
    assert result.returncode == 0, result.stderr
    assert f"uploaded to {hub.address}/me/p" in result.stdout
    expected = {path.as_posix() for path in files_to_upload(checkpoint, with_trainer_state=False)}
    assert set(hub.files) == {*expected, "README.md"}
    assert {"model.safetensors", "policy.json", "action_head--1_checkpoint.pt"} <= expected
    assert all(hub.files[name] == (checkpoint / name).read_bytes() for name in expected)
    assert b"openvla/openvla-7b" in hub.files["README.md"]
    assert not (checkpoint / "README.md").exists()  # an upload leaves the folder as it was
    assert hub.created["name"] == "p"
    assert hub.created.get("visibility") == "private" or hub.created.get("private")  # newer clients, older clients
    assert hub.message == "Upload checkpoint"


def test_weights_of_an_earlier_upload_go_with_the_new_ones(hub: HubServer, checkpoint: Path) -> None:
    old = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "action_head--latest_checkpoint.pt", "lora_adapter/x.json")
    hub.files = {**dict.fromkeys(old, b"old"), "model.safetensors": b"old", "notes.md": b"mine", "media/model.safetensors": b"mine"}
    result = push(checkpoint, endpoint=hub.address)
    assert result.returncode == 0, result.stderr
    assert not set(old) & set(hub.files)
    assert hub.files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert {"notes.md", "media/model.safetensors"} <= set(hub.files)


def test_an_evaluation_in_the_folder_stays_here(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every file went along: videos of an evaluation, logs with the name of the machine."""
    before = files_to_upload(checkpoint, with_trainer_state=False)
    for name in ("eval/report.json", "eval/videos/lift/episode_000.mp4", "videos/episode_000.mp4", "wandb/run/files/metadata.json"):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text("{}")
    for name in ("report.json", "report.html", "episodes.jsonl", "failures.png", ".lock"):
        (checkpoint / name).write_text("{}")
    (checkpoint / "curves.png").write_text("of the training")
    (checkpoint / "lora_adapter").mkdir()
    (checkpoint / "lora_adapter/adapter_config.json").write_text("{}")
    with caplog.at_level("INFO"):
        found = files_to_upload(checkpoint, with_trainer_state=False)
    assert found == sorted([*before, Path("curves.png"), Path("lora_adapter/adapter_config.json")])
    assert "not uploaded: episodes.jsonl, eval, failures.png, report.html, report.json, videos, wandb" in caplog.text
    with_state = files_to_upload(checkpoint, with_trainer_state=True)
    assert set(with_state) - set(found) == {Path("trainer_state/optimizer.pt")}


def test_a_refusal_of_the_hub_is_one_line(hub: HubServer, checkpoint: Path) -> None:
    result = push(checkpoint, endpoint=hub.address, token="hf_wrong")
    assert result.returncode == 2
    assert "the Hub did not take me/p" in result.stderr
    assert "401" in result.stderr
    assert "Traceback" not in result.stderr
    assert not hub.files


@pytest.mark.parametrize(("name", "message"), [("../..", "cannot start or end with"), ("me/p.git", "cannot end by"), ("p", "owner/name")])
def test_a_name_that_the_hub_cannot_have_is_refused_in_a_dry_run_too(name: str, message: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=f"--repo_id.*{message}"):
        PushConfig(checkpoint, name, dry_run=True)


def test_a_dry_run_writes_the_card_and_then_keeps_it(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PushConfig(checkpoint, "me/p", dry_run=True)
    main(config)
    printed = capsys.readouterr().out
    assert "nothing was uploaded" in printed
    assert "model.safetensors" in printed
    assert "optimizer.pt" not in printed
    assert (checkpoint / "README.md").read_text() == build_card(checkpoint, CardOptions("me/p"))
    (checkpoint / "README.md").write_text("my own words")
    main(config)
    assert "is taken as it is" in capsys.readouterr().out
    assert (checkpoint / "README.md").read_text() == "my own words"


def test_the_card_says_what_others_need(checkpoint: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    score = {"num_successes": 9, "num_trials": 10, "rate": 0.9, "interval_95": [0.596, 0.982]}
    runs = {"none": {"lift": score, "mean": {"rate": 0.9}}, "grey": {"lift": score}}
    episodes = {"none": [{"instruction": 'lift the "red" cube'}] * 2}
    report.write_text(json.dumps({"title": "ALOHA, 10 trials", "summary": runs, "episodes": episodes}))
    card = build_card(checkpoint, CardOptions("me/p", report, "mit"))
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "license: mit" in head
    assert "base_model: openvla/openvla-7b" in head
    for text in ("| Optimizer steps | 1,500 |", "| lift | 90% (9/10) | 60-98 % |", "| mean | 90% |",
                 "vla-scripts/finetune.py --dataset_name arm",
                 "Python 3.11.7, torch 2.13.0, peft 0.21.2; 2 processes, seed 7.", "| left_gripper | -1 | 1 |"):  # fmt: skip
        assert text in body
    (code,) = re.findall(r"```python\n(.*?)```", body, re.S)
    compile(code, "card", "exec")
    assert 'instruction="lift the \\"red\\" cube"' in code
    report.write_text("{}")
    with pytest.raises(ValueError, match="is not the report of a policy"):
        build_card(checkpoint, CardOptions("me/p", report))


def write_report(path: Path, **changes: Any) -> Path:
    score = {"num_successes": 9, "num_trials": 10, "rate": 0.9, "interval_95": [0.596, 0.982]}
    content = {"title": "MetaWorld: p", "summary": {"none": {"lift": score, "mean": {"rate": 0.9, "interval_95": [0.6, 0.98]}}}}
    path.write_text(json.dumps(content | {"episodes": {"none": [{"instruction": "lift"}]}} | changes))
    return path


@pytest.mark.parametrize("settings", [{"expert_help": "takeover", "split": "collection"}, {"split": "collection"}])
def test_what_an_expert_helped_to_solve_is_not_published(checkpoint: Path, tmp_path: Path, settings: dict[str, str]) -> None:
    report = write_report(tmp_path / "report.json", settings=settings)
    with pytest.raises(ValueError, match="tells of a collection of rollouts, in which an expert may have helped"):
        build_card(checkpoint, CardOptions("me/p", report))
    (checkpoint / "README.md").write_text("my own words")
    with pytest.raises(ValueError, match="tells of a collection"):
        main(PushConfig(checkpoint, "me/p", report, dry_run=True))


def test_the_card_says_what_was_changed_and_is_of_this_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    own = {"settings": {"checkpoint_content": fingerprint(checkpoint), "split": "evaluation", "expert_help": "none"}}
    report = write_report(
        tmp_path / "report.json", changes=["camera:2: turned by 8 degrees"], num_missing_episodes=3, num_crashed_episodes=1, **own
    )
    card = build_card(checkpoint, CardOptions("me/p", report))
    assert "- Changed on purpose: camera:2: turned by 8 degrees\n- 3 planned episodes had not been played.\n" in card
    assert "- 1 episode crashed in the simulator and counts as a failure.\n\n| Task |" in card
    assert "| mean | 90% | 60-98 % |" in card
    told = {"episodes": {"none": [{"instruction": words} for words in ("lift", "raise it", "up with it")]}}
    report = write_report(tmp_path / "report.json", changes=["language:2: other words"], **told, **own)
    card = build_card(checkpoint, CardOptions("me/p", report))
    assert "raise it" not in card, "other words on purpose are no three tasks"
    assert "policy for" not in card
    command = "python experiments/robot/libero/run_libero_eval.py --pretrained_checkpoint p --max_steps 600 --delay_steps 4"
    report = write_report(tmp_path / "report.json", commands=["python scripts/demo.py", command], **own)
    assert f"| mean | 90% | 60-98 % |\n\n```bash\n{command}\n```\n\n## Data" in build_card(checkpoint, CardOptions("me/p", report))
    report = write_report(tmp_path / "report.json", **own)
    assert "Changed on purpose" not in build_card(checkpoint, CardOptions("me/p", report))
    (checkpoint / "dataset_statistics.json").write_text((checkpoint / "dataset_statistics.json").read_text() + "\n")
    with pytest.raises(ValueError, match="is of another policy"):
        build_card(checkpoint, CardOptions("me/p", report))


def test_a_broken_checkpoint_is_refused(checkpoint: Path) -> None:
    (checkpoint / "proprio_projector--1_checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=r"proprio_projector: .* found none"):
        require_whole(checkpoint)
    (checkpoint / "policy.json").unlink()
    with pytest.raises(ValueError, match=r"has no policy\.json"):
        require_whole(checkpoint)
    with pytest.raises(ValueError, match="is not a folder"):
        require_whole(checkpoint / "nothing")


def test_the_folder_of_a_run_is_answered_with_its_newest_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    saved = checkpoint.rename(tmp_path / "run--500_chkpt")
    for folder in (tmp_path / "run", tmp_path):
        with pytest.raises(ValueError, match=f"holds no checkpoint: pass {saved}"):
            require_whole(folder)
