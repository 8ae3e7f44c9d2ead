"""The table of fast paths: every reference exists, and every test that it names takes its bound from it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest

from prismatic.policy.inference.fast_paths import FAST_PATHS

ROOT = Path(__file__).parents[2]


def _find(dotted: str) -> Any:
    parts = dotted.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise AssertionError(dotted)


@pytest.mark.parametrize("name", FAST_PATHS)
def test_reference_and_tests_exist(name: str) -> None:
    path = FAST_PATHS[name]
    assert callable(_find(path.plain))
    assert path.tests
    for test in path.tests:
        file, function = test.split("::")
        source = (ROOT / file).read_text()
        assert function in {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}, test
        assert f'FAST_PATHS["{name}"]' in source or path.tolerance == 0, f"{test} has a bound of its own"
