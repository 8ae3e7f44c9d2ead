"""LeRobot in an environment of its own, with plugins installed as a user installs them.

lerobot 0.4.4 is the newest for Python 3.11. Its environment takes two liberties, so that it needs neither CUDA nor an FFmpeg of the
system: torch 2.13 instead of 2.10, with the torchcodec that fits it, and the FFmpeg libraries that PyAV ships, under the names by which
torchcodec asks for them. LeRobot's other decoder ("pyav") is torchvision's VideoReader, which that torchvision no longer has.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from policy_server import ROOT

PACKAGES = [
    "torch==2.13.0",
    "numpy<2.3",
    "av>=15,<16",
    "datasets>=4,<5",
    "huggingface-hub>=0.34.2,<0.36",
    *("draccus==0.10.0", "deepdiff<9", "gymnasium<2", "accelerate<2", "jsonlines", "packaging", "einops", "termcolor", "imageio"),
    *("setuptools", "pyserial", "feetech-servo-sdk<2", "opencv-python-headless<4.13", "diffusers<0.36", "rerun-sdk<0.27"),
    *("gym-aloha==0.1.5", "dm-control==1.0.28", "mujoco==3.3.0"),
    *("msgpack", "websockets", "scipy", "h5py"),  # for run_robot.py and the policy plugin
]
UNPINNED = ["lerobot==0.4.4", "torchvision==0.28.0", "torchcodec==0.11.1"]
# torchvision's operators have no build for torch without CUDA, and LeRobot does not call them: two of their names are enough to import it.
_AT_THE_START = """
import torch
for name in ("nms", "qnms") if torch.version.cuda is None else ():
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


class LeRobot:
    """The environment."""

    def __init__(self, python: Path, folder: Path) -> None:
        """`folder`, which must be empty, takes what is added to it."""
        self.python, self.folder, self._site = python, folder, folder / "site"
        self._site.mkdir()
        (self._site / "sitecustomize.py").write_text(_AT_THE_START)
        libraries = folder / "ffmpeg"
        libraries.mkdir()
        (bundled,) = python.parents[1].glob("lib/python*/site-packages/av.libs")
        for path in bundled.iterdir():
            name = re.sub(r"-[0-9a-f]{8}(\.so\.\d+).*", r"\1", path.name)
            if name.startswith(("libav", "libsw")):
                (libraries / name).symlink_to(path)
        self.environment = {
            "LD_LIBRARY_PATH": str(libraries),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hub"),
            "HF_LEROBOT_HOME": str(folder / "lerobot"),
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{self._site}",
            "OMP_NUM_THREADS": "1",
            "MUJOCO_GL": os.environ.get("MUJOCO_GL", "osmesa"),  # there is no display
        }

    def install(self, project: Path) -> None:
        """Installs a plugin from its folder."""
        copy = self.folder / "projects" / project.name  # building leaves files beside the source
        shutil.copytree(project, copy)
        command = [str(self.python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(self._site)]
        done = subprocess.run([*command, str(copy)], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """A process of this environment's Python in the checkout."""
        command = [str(self.python), *map(str, arguments)]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, **pipes)

    def run(self, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """A process that has ended."""
        command = [str(self.python), *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False)
