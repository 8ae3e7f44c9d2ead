"""Who may import whom, read from the syntax trees: data walks forward through the rooms and never turns back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A room may import the rooms listed; a path belongs to the longest prefix that fits it.
ROOMS = {
    "prismatic/vla": set(),
    "prismatic/vla/datasets": {"prismatic/vla"},
    "prismatic/models": {"prismatic/vla"},
    "prismatic/policy": {"prismatic/vla", "prismatic/models", "prismatic/vla/datasets"},
    "prismatic/training": {"prismatic/vla", "prismatic/models", "prismatic/vla/datasets", "prismatic/policy"},
    "prismatic/wire": {"prismatic/vla"},
    "prismatic/serving": {"prismatic/vla", "prismatic/models", "prismatic/policy", "prismatic/wire"},
    "prismatic/acting": {"prismatic/vla", "prismatic/wire"},
    "prismatic/conversion": {"prismatic/vla", "prismatic/models", "prismatic/policy", "prismatic/vla/datasets"},
    "prismatic/publishing": {"prismatic/vla", "prismatic/policy"},
    "prismatic/doctor": {"prismatic/vla", "prismatic/models", "prismatic/policy", "prismatic/vla/datasets"},
}
ROOMS["prismatic/commands"] = set(ROOMS)  # what the scripts call
HEAVY = {"tensorflow", "tensorflow_datasets", "metaworld", "mujoco", "wandb", "peft", "bitsandbytes", "matplotlib", "av", "pyarrow"}

# Modules that subclass something of a heavy package; they are imported late themselves.
IMPORTED_LATE = {"prismatic.policy.lora.adapted_linear": "peft"}


def _room(path: str) -> str | None:
    fits = [room for room in ROOMS if path == room or path.startswith(f"{room}/") or path == f"{room}.py"]
    return max(fits, key=len) if fits else None


def _imports(tree: ast.AST) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names += [node.module]
    return names


def _sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", _sources("prismatic"), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_the_rooms_before_them(path: Path) -> None:
    own = _room(str(path.relative_to(ROOT)))
    imported = {_room(name.replace(".", "/")) for name in _imports(ast.parse(path.read_text())) if name.startswith("prismatic.")}
    allowed = ROOMS.get(own, set()) | {own, None} if own else {None}
    assert imported <= allowed, f"{own} imports {sorted(map(str, imported - allowed))}"


def test_a_broken_direction_would_be_seen() -> None:
    assert _room("prismatic/vla/datasets/rlds/source.py") == "prismatic/vla/datasets"
    assert _room("prismatic/vla/types") == "prismatic/vla"
    assert "prismatic/training" not in ROOMS["prismatic/policy"]


@pytest.mark.parametrize("path", _sources("prismatic"), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_are_imported_late_and_experiments_never(path: Path) -> None:
    tree = ast.parse(path.read_text())
    top_level = _imports(ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], []))
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert not {name.split(".")[0] for name in top_level} & HEAVY - {IMPORTED_LATE.get(module)}
    assert not set(top_level) & set(IMPORTED_LATE)
    assert not [name for name in _imports(tree) if name.split(".")[0] in ("experiments", "scripts")]


def test_tensorflow_is_imported_by_conversion_only() -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in _sources("prismatic", "experiments", "vla-scripts", "scripts")
        if {name.split(".")[0] for name in _imports(ast.parse(path.read_text()))} & {"tensorflow", "tensorflow_datasets"}
    ]
    assert users
    assert all(user.startswith("prismatic/conversion/") for user in users), users
