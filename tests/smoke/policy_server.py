"""A tiny checkpoint, deploy.py as a process that serves it, and a proxy with faults before that."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

import launching
import torch

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.checkpoint.loading import load_base
from prismatic.policy.checkpoint.parts import PolicyParts, build_action_model
from prismatic.policy.checkpoint.saving import save_policy
from prismatic.policy.checkpoint.spec import HeadSpec, PolicySpec
from prismatic.vla.cameras import ONE_ARM, TWO_ARMS
from prismatic.vla.constants import ROBOT_PLATFORMS, RobotPlatform
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.images import ImageRecipe

API_KEY = "secret"
ROOT = Path(__file__).parents[2]
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
CAMERAS = {"LIBERO": ONE_ARM, "ALOHA": TWO_ARMS}


def write_checkpoint(folder: Path, platform_name: str) -> Path:
    """A policy of a known platform, with random weights; its actions are within [-1, 1]."""
    return write_policy(folder, ROBOT_PLATFORMS[platform_name], CAMERAS[platform_name])


def write_policy(folder: Path, platform: RobotPlatform, cameras: tuple[str, ...], demonstrated: Demonstrated | None = None) -> Path:
    """A policy with random weights, whose demonstrations did what `demonstrated` says."""
    write_tiny_base(folder / "base", SIZES, seed=0)
    base = load_base(folder / "base", torch.float32)
    torch.manual_seed(0)
    image = ImageRecipe(size=28, jpeg_round_trip=True, center_crop=True)
    heads = HeadSpec(use_proprio=True)
    seen = {} if demonstrated is None else {"arm": demonstrated}
    spec = PolicySpec(platform=platform, cameras=cameras, image=image, unnorm_key="arm", heads=heads, demonstrated=seen)

    def bounds(dim: int) -> dict[str, list[float]]:
        return {"min": [-1.0] * dim, "max": [1.0] * dim, "q01": [-1.0] * dim, "q99": [1.0] * dim}

    statistics = {"arm": {"action": bounds(platform.action_dim), "proprio": bounds(platform.proprio_dim)}}
    model = build_action_model(base.vla, base.vla.config, spec).eval()
    target = folder / "checkpoint"
    target.mkdir()
    save_policy(PolicyParts(model, base.vla.config, base.processor, spec, statistics), target, step=1)
    return target


class Server:
    """A running deploy.py."""

    def __init__(self, checkpoint: Path | None, *flags: str, api_key: str = "") -> None:
        command = [
            sys.executable,
            "vla-scripts/deploy.py",
            *([] if checkpoint is None else ["--pretrained_checkpoint", str(checkpoint)]),
            "--port",
            "0",
            "--device",
            "cpu",
            *flags,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PRISMATIC_API_KEY": api_key}
        self._folder = tempfile.TemporaryDirectory()
        self.process = launching.start(command, Path(self._folder.name, "printed.txt"), environment)
        self.lines: list[str] = []
        printed = self.process.lines()
        for line in printed:
            self.lines.append(line)
            if found := re.search(r"serving on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("".join(self.lines))
        threading.Thread(target=lambda: self.lines.extend(printed), daemon=True).start()

    def request(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str, dict[str, str]]:
        call = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers or {})
        try:
            with urllib.request.urlopen(call, timeout=30) as reply:
                return reply.status, reply.read().decode(), dict(reply.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)

    def stop(self) -> int:
        self.process.kill(signal.SIGTERM)
        return self.process.wait(30)


class FaultyProxy:
    """A running faulty_proxy.py before a server."""

    def __init__(self, target: int) -> None:
        command = [sys.executable, str(Path(__file__).parent / "faulty_proxy.py"), str(target)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def do(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        assert self._line() == "done\n"

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
