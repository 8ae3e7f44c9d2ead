"""The commands and the files that a page shows, and a checkout to run them in."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CHECKOUT = ("prismatic", "experiments", "scripts", "vla-scripts", "assets")
_ENTRY_PLACE = "    # Templates to copy for your own robot.\n"
_PLATFORM_PLACE = "        # Templates for your own robot, see"


def page_commands(page: str) -> list[str]:
    """The shell commands of a page, each on one line, as they are written."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    lines = (line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [re.sub(r"\s+", " ", line) for line in lines if line]


def page_files(page: str) -> dict[str, str]:
    """Name -> content of the Python files of a page: blocks whose first line is `# name.py`."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    return {found[1]: block for block in blocks if (found := re.match(r"# (\w+\.py)\n", block))}


def copy_checkout(folder: Path) -> None:
    """What the commands need of this checkout, so that registry entries can be added as a user would."""
    import prismatic.vla.image_kernels  # noqa: F401  compiled machine code, which takes a while, is copied along

    for part in _CHECKOUT:
        shutil.copytree(ROOT / part, folder / part)


def add_entry(folder: Path, text: str) -> None:
    """Pastes what `inspect_dataset.py --suggest` prints into the checkout `folder`."""
    entry = re.search(r'^    "\w+": DatasetEntry\(.*?^    \),\n', text, re.S | re.M)
    platform = re.search(r"^        RobotPlatform\(.*?^        \),$", text, re.S | re.M)
    assert entry, text
    _insert(folder / "prismatic/vla/datasets/rlds/oxe/configs.py", entry[0], _ENTRY_PLACE)
    if platform:
        _insert(folder / "prismatic/vla/constants.py", f"{platform[0]}\n", _PLATFORM_PLACE)


def _insert(path: Path, text: str, before: str) -> None:
    content = path.read_text()
    assert content.count(before) == 1
    path.write_text(content.replace(before, text + before))


def environment(folder: Path) -> dict[str, str]:
    """Of a user in the checkout `folder` with the virtual environment of this process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PATH": path}
