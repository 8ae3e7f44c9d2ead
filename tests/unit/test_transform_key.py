"""The key of a transform changes with whatever changes its results, and with nothing else; the same in every process."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prismatic.vla.datasets.transform_key import transform_key

# A user's module: its transform is called "transform". `@...@` marks what the cases below change.
MODULE = '''
import dataclasses, enum, functools
import numpy as np
import helpers

SCALE, OFFSETS, NAMES = 1.0, {"arm": [0.0, 1.0]}, {"a", "b", "c"}
MATRIX = np.eye(2)

class Mode(enum.Enum):
    FAST = 1

def double(value):
    return 2 * value

def keep(function):
    @functools.wraps(function)
    def wrapper(trajectory):
        return function(trajectory)
    return wrapper

def times(factor):
    def inner(trajectory):
        """Explains itself."""
        return {key: value * factor for key, value in trajectory.items()}
    return inner

class Callable:
    gain = 1.0
    def __init__(self, offset):
        self.offset = offset
    def __call__(self, trajectory):
        return self.moved(trajectory)
    def moved(self, trajectory):
        return trajectory
'''
HELPERS = "LIMIT = 3.0\n\ndef clip(value):\n    return min(value, LIMIT)\n\ndef unused():\n    return 0\n"


Key = Callable[..., str]


@pytest.fixture
def key_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """(module, helpers) -> the key of the module's transform, both imported anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def key_of(module: str, helpers: str = HELPERS) -> str:
        _write(tmp_path, module, helpers)
        for name in ("user_module", "helpers"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return transform_key(importlib.import_module("user_module").transform)

    return key_of


def _write(folder: Path, module: str, helpers: str = HELPERS) -> None:
    (folder / "user_module.py").write_text(module)
    (folder / "helpers.py").write_text(helpers)


PLAIN = "\ndef transform(trajectory):\n    return [SCALE * row for row in trajectory]\n"


@pytest.mark.parametrize(
    ("transform", "old", "new"),
    [
        pytest.param(PLAIN, "NAMES = 1.0", "NAMES = 2.0", id="constant in a comprehension"),
        pytest.param(
            "\ndef transform(t):\n    return [double(row) for row in t]\n", "2 * value", "3 * value", id="helper in a comprehension"
        ),
        pytest.param(
            "\ndef transform(t):\n    def inner():\n        return OFFSETS\n    return inner()\n",
            "[0.0, 1.0]",
            "[0.0, 2.0]",
            id="value within a container, in an inner function",
        ),
        pytest.param("\ndef transform(t):\n    return MATRIX\n", "np.eye(2)", "np.eye(3)", id="array"),
        pytest.param("\ndef transform(t):\n    return Mode.FAST\n", "FAST = 1", "FAST = 2", id="enumeration"),
        pytest.param("\ntransform = lambda t: SCALE * 2\n", "SCALE * 2", "SCALE * 3", id="lambda"),
        pytest.param("\ntransform = lambda t: SCALE * 2\n", "NAMES = 1.0", "NAMES = 2.0", id="constant in a lambda"),
        pytest.param("\ndef transform(t, gain=SCALE):\n    return gain\n", "NAMES = 1.0", "NAMES = 2.0", id="default value"),
        pytest.param("\ndef transform(t, *, gain=1):\n    return gain\n", "gain=1", "gain=2", id="default of a named argument"),
        pytest.param("\ntransform = times(2)\n", "times(2)", "times(3)", id="closure"),
        pytest.param("\ntransform = functools.partial(times(1), 2)\n", ", 2)", ", 3)", id="argument of a partial"),
        pytest.param(
            "\ntransform = functools.partial(times(1), k=SCALE)\n", "NAMES = 1.0", "NAMES = 2.0", id="named argument of a partial"
        ),
        pytest.param("\ntransform = Callable(1)\n", "Callable(1)", "Callable(2)", id="field of an object"),
        pytest.param(
            "\ntransform = Callable(1)\n", "        return trajectory\n", "        return -trajectory\n", id="method of an object"
        ),
        pytest.param("\ntransform = Callable(1)\n", "gain = 1.0", "gain = 2.0", id="field of a class"),
        pytest.param("\ntransform = Callable(1).moved\n", "Callable(1)", "Callable(2)", id="bound method"),
        pytest.param("\n@keep\ndef transform(t):\n    return t\n", "return function(trajectory)", "return None", id="decorator"),
        pytest.param("\n@keep\ndef transform(t):\n    return SCALE\n", "NAMES = 1.0", "NAMES = 2.0", id="constant under a decorator"),
        pytest.param(
            "\ndef transform(t):\n    return transform.gain\ntransform.gain = 1\n", "gain = 1\n", "gain = 2\n", id="field of a function"
        ),
        pytest.param(
            "\nvector = np.vectorize(times(1))\ndef transform(t):\n    return vector(t)\n",
            "* factor",
            "+ factor",
            id="within an object of numpy",
        ),
        pytest.param(
            "\n@functools.singledispatch\ndef move(x): ...\n@move.register\ndef _(x: int):\n    return 1\n"
            "def transform(t):\n    return move(t)\n",
            *("return 1", "return 2"),
            id="function of a type",
        ),
        pytest.param(
            "\nfrom collections import defaultdict\nGAINS = defaultdict(lambda: 1)\ndef transform(t):\n    return GAINS[t]\n",
            *("lambda: 1", "lambda: 2"),
            id="default of a dictionary",
        ),
        pytest.param("\nimport torch\nGAIN = torch.ones(1)\ndef transform(t):\n    return GAIN\n", "ones(1)", "ones(2)", id="tensor"),
        pytest.param("\n@functools.lru_cache\ndef transform(t):\n    return SCALE\n", "NAMES = 1.0", "NAMES = 2.0", id="cached function"),
    ],
)
def test_what_changes_the_result_changes_the_key(key_of: Key, transform: str, old: str, new: str) -> None:
    module = MODULE + transform
    assert old in module
    assert key_of(module) != key_of(module.replace(old, new))


@pytest.mark.parametrize(
    ("body", "old", "new"),
    [
        pytest.param("return helpers.clip(t)", "3.0", "4.0", id="constant behind a function of a module"),
        pytest.param("return [helpers.LIMIT for _ in t]", "3.0", "4.0", id="constant of a module"),
        pytest.param("from helpers import clip\n    return clip(t)", "min(", "max(", id="imported inside the function"),
    ],
)
def test_so_do_changes_in_other_files_of_the_user(key_of: Key, body: str, old: str, new: str) -> None:
    module = f"{MODULE}\ndef transform(t):\n    {body}\n"
    assert key_of(module) != key_of(module, HELPERS.replace(old, new))


@pytest.mark.parametrize(
    ("body", "is_within"),
    [
        pytest.param("import {0}.deep\ndef transform(t):\n    return {0}.deep.GAIN\n", False, id="module within a package"),
        pytest.param("import hub\ndef transform(t):\n    return hub.deep.GAIN\n", False, id="module that a module imports"),
        pytest.param("def transform(t):\n    from {0} import deep\n    return deep.GAIN\n", False, id="module imported inside"),
        pytest.param("def transform(t):\n    from .deep import GAIN\n    return GAIN\n", True, id="relative import inside"),
        pytest.param("def transform(t):\n    from . import deep\n    return deep.GAIN\n", True, id="relative import of a module"),
    ],
)
@pytest.mark.parametrize("package", ["package", "folder"])  # a folder without __init__.py is one, too
def test_so_do_changes_in_modules_of_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, body: str, is_within: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / package).mkdir()
    if package == "package":
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "hub.py").write_text(f"from {package} import deep\n")
    own = f"{package}.own" if is_within else "own"
    (tmp_path / f"{own.replace('.', '/')}.py").write_text(body.format(package))
    keys = []
    for gain in ("1.0", "2.0", "1.0"):
        (tmp_path / package / "deep.py").write_text(f"GAIN = {gain}\nUNUSED = {len(keys)}\n")
        for name in (package, f"{package}.deep", "hub", own):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        keys.append(transform_key(importlib.import_module(own).transform))
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(
    ("transform", "old", "new"),
    [
        pytest.param(PLAIN, "def transform", "# a note\n\ndef transform", id="comment"),
        pytest.param(PLAIN, "[SCALE * row for row in trajectory]", "[\n        SCALE*row for row in trajectory\n    ]", id="layout"),
        pytest.param(PLAIN, "2 * value", "3 * value", id="helper that is not used"),
        pytest.param("\ntransform = times(2)\n", "Explains itself.", "Explains itself again.", id="docstring"),
        pytest.param("\ndef transform(t):\n    return helpers.clip(t)\n", "gain = 1.0", "gain = 2.0", id="class that is not used"),
    ],
)
def test_nothing_else_does(key_of: Key, transform: str, old: str, new: str) -> None:
    module = MODULE + transform
    assert old in module
    assert key_of(module) == key_of(module.replace(old, new), HELPERS.replace("return 0", "return 1"))


def test_every_process_finds_the_same_key(tmp_path: Path) -> None:
    _write(tmp_path, f'{MODULE}\ntransform = functools.partial(lambda t, *, x: [n for n in t if n in {{"p", "q", "r"}}], x=NAMES)\n')
    program = (
        "import user_module\nfrom prismatic.vla.datasets.transform_key import transform_key\nprint(transform_key(user_module.transform))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    keys = {
        subprocess.run([sys.executable, "-c", program], env={**environment, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in "123"
    }
    assert len(keys) == 1
