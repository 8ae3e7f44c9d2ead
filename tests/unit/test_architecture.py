"""Who may import whom, read from the syntax trees: data walks forward through the rooms and never turns back.

Every rule is a function of (module name -> source), so that each is also shown to fail on a planted violation.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A room may import the rooms listed; a module belongs to the longest prefix that fits it.
ROOMS: dict[str, set[str]] = {
    "prismatic.vla": set(),
    "prismatic.vla.datasets": {"prismatic.vla"},
    "prismatic.models": {"prismatic.vla"},
    "prismatic.policy": {"prismatic.vla", "prismatic.models", "prismatic.vla.datasets"},
    "prismatic.training": {"prismatic.vla", "prismatic.models", "prismatic.vla.datasets", "prismatic.policy"},
    "prismatic.wire": {"prismatic.vla"},
    "prismatic.serving": {"prismatic.vla", "prismatic.models", "prismatic.policy", "prismatic.wire"},
    "prismatic.acting": {"prismatic.vla", "prismatic.wire"},
    "prismatic.conversion": {"prismatic.vla", "prismatic.models", "prismatic.policy", "prismatic.vla.datasets"},
    "prismatic.publishing": {"prismatic.vla", "prismatic.policy"},
    "prismatic.doctor": {"prismatic.vla", "prismatic.models", "prismatic.policy", "prismatic.vla.datasets"},
    "prismatic.cli": set(),
    "prismatic.cli_help": set(),
    "prismatic.cli_sections": set(),
    "prismatic.interrupts": set(),
    "prismatic.stages": set(),
}
# Any room may use the command line's helpers.
_SMALL = {"prismatic.cli", "prismatic.cli_help", "prismatic.cli_sections", "prismatic.interrupts", "prismatic.stages"}
ROOMS["prismatic.commands"] = set(ROOMS)  # what the scripts call
ROOMS["experiments"] = set(ROOMS)
TOP = ("prismatic", "experiments")
HEAVY = {"torch", "transformers", "tensorflow", "tensorflow_datasets", "metaworld", "mujoco", "wandb", "peft", "bitsandbytes"}
HEAVY |= {"matplotlib", "av", "pyarrow", "starlette", "uvicorn", "scipy", "h5py", "numba"}
LATE_ONLY = HEAVY - {"torch", "transformers", "starlette", "uvicorn", "scipy", "h5py", "numba"}  # these belong to some rooms' daily work
WITHOUT_TORCH = ("prismatic.wire", "prismatic.acting")  # a robot's computer has numpy, websockets and msgpack

# Modules that subclass something of a heavy package; they are imported late themselves.
IMPORTED_LATE = {"prismatic.policy.lora.adapted_linear": "peft"}

Sources = Mapping[str, str]  # module name -> source code


@cache
def _sources(*folders: str) -> Sources:
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name] = path.read_text()
    return found


@cache
def _packages(modules: frozenset[str]) -> set[str]:
    """Everything that a module's name begins with."""
    return {name.rsplit(".", depth)[0] for name in modules for depth in range(1, name.count(".") + 1)}


@cache
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: classes, branches and `try` included, functions and `if TYPE_CHECKING` not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _at_import(node)


def _named_import(node: ast.AST) -> str | None:
    """The module that importlib.import_module("...") or __import__("...") loads."""
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
        return None
    function = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return str(node.args[0].value) if function in ("import_module", "__import__") else None


@cache
def _import_nodes(source: str, late: bool) -> tuple[ast.Import | ast.ImportFrom | str, ...]:
    """What a module imports at any depth, or (not `late`) when it is imported itself."""
    tree = _parse(source)
    found: list[ast.Import | ast.ImportFrom | str] = []
    for node in ast.walk(tree) if late else _at_import(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif (name := _named_import(node)) is not None:
            found.append(name)
    return tuple(found)


def _imports(source: str, modules: Iterable[str], late: bool = True) -> list[str]:
    """The names of what a module imports; `from package import module` counts as that module."""
    known, names = frozenset(modules), []
    packages = _packages(known)
    for node in _import_nodes(source, late):
        if isinstance(node, str):
            names.append(node)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        else:
            assert node.level == 0, "imports are absolute"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_room = full in ROOMS or full in packages
                names.append(full if full in known or is_room else node.module)
    return names


def _room(module: str) -> str | None:
    fits = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(fits, key=len) if fits else None


def wrong_directions(sources: Sources) -> list[str]:
    """Imports of a room that the importing room may not know."""
    wrong = []
    for module, source in sources.items():
        own = _room(module)
        allowed = {own} | (ROOMS[own] if own else set()) | _SMALL
        for name in _imports(source, sources):
            if name.split(".")[0] in TOP and name not in TOP and _room(name) not in allowed:
                wrong.append(f"{module} imports {name}")
            if name in TOP:
                wrong.append(f"{module} imports the whole of {name}")
    return wrong


def heavy_imports(sources: Sources) -> list[str]:
    """Heavy packages that are loaded when a module is imported, or by a room that must not have them at all."""
    wrong = []
    for module, source in sources.items():
        top_level = _imports(source, sources, late=False)
        early = {name.split(".")[0] for name in top_level} & LATE_ONLY - {IMPORTED_LATE.get(module)}
        early |= set(top_level) & set(IMPORTED_LATE)
        if module.startswith(WITHOUT_TORCH):
            early |= {name.split(".")[0] for name in top_level} & HEAVY
            early |= {name.split(".")[0] for name in _imports(source, sources)} & HEAVY - {"h5py"}  # rollouts may be recorded there
        if module.endswith("__init__"):
            early |= set(top_level) - {"__future__"}
        wrong += [f"{module} loads {name}" for name in sorted(early)]
    return wrong


def heavy_on_the_robot(sources: Sources) -> list[str]:
    """Heavy packages that a robot's computer would load with something that its own rooms import, directly or through others."""
    wrong = []
    for start in (module for module in sources if module.startswith(WITHOUT_TORCH)):
        seen, waiting = {start}, [(name, start) for name in _imports(sources[start], sources)]
        while waiting:
            name, importer = waiting.pop()
            if importer != start and name.split(".")[0] in HEAVY:
                wrong.append(f"{start} loads {name} with {importer}")
            if name in sources and name not in seen:
                seen.add(name)
                waiting += [(other, name) for other in _imports(sources[name], sources, late=False)]
    return wrong


def circles(sources: Sources) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others, late imports included (Tarjan 1972)."""
    names = {module.removesuffix(".__init__"): module for module in sources}
    graph = {
        name: {other for other in _imports(sources[module], names) if other in names and other != name} for name, module in names.items()
    }
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return found


def tensorflow_users(sources: Sources) -> list[str]:
    """Modules outside conversion that import TensorFlow, at any depth."""
    heavy = {"tensorflow", "tensorflow_datasets"}
    users = [module for module, source in sources.items() if {name.split(".")[0] for name in _imports(source, sources)} & heavy]
    return [user for user in users if not user.startswith("prismatic.conversion.")]


def test_rooms_import_only_the_rooms_before_them() -> None:
    assert wrong_directions(_sources(*TOP)) == []


def test_heavy_packages_are_imported_late() -> None:
    assert heavy_imports(_sources(*TOP)) == []


def test_nothing_heavy_comes_to_the_robot_through_others() -> None:
    assert heavy_on_the_robot(_sources(*TOP)) == []


def test_no_modules_import_each_other() -> None:
    assert circles(_sources(*TOP)) == []


def test_tensorflow_is_imported_by_conversion_only() -> None:
    sources = _sources(*TOP, "vla-scripts", "scripts")
    assert tensorflow_users(sources) == []
    assert any("import tensorflow" in source for module, source in sources.items() if module.startswith("prismatic.conversion"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("prismatic.models.planted", "from prismatic import training"),
        ("prismatic.models.planted", "import prismatic"),
        ("prismatic.policy.planted", "def late():\n    from prismatic.training.loop import finetune"),
        ("prismatic.policy.planted", "def late():\n    import prismatic.serving.server as server"),
        ("prismatic.vla.planted", "from prismatic.vla.datasets import index"),
        ("prismatic.vla.planted", "from prismatic.vla import datasets"),
        ("prismatic.acting.planted", "from prismatic.policy.policy import Policy"),
        ("prismatic.wire.planted", "from prismatic.serving.service import PolicyService"),
        ("prismatic.training.planted", "from experiments.robot.evaluation import report"),
        ("prismatic.training.planted", "import experiments"),
        ("prismatic.models.planted", "def late():\n    importlib.import_module('prismatic.training.loop')"),
        ("prismatic.vla.planted", "def late():\n    __import__('prismatic.policy.policy')"),
        ("prismatic.vla.planted", "if True:\n    from prismatic.doctor import machine"),
    ],
)
def test_a_planted_wrong_direction_is_seen(module: str, source: str) -> None:
    assert len(wrong_directions({**_sources("prismatic"), module: source})) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("prismatic.training.planted", "import wandb"),
        ("prismatic.training.planted", "try:\n    import wandb\nexcept ImportError:\n    wandb = None"),
        ("prismatic.training.planted", "if True:\n    import peft\nelse:\n    pass"),
        ("prismatic.models.planted", "class Late:\n    import matplotlib"),
        ("prismatic.models.planted", "tables = importlib.import_module('pyarrow')"),
        ("prismatic.vla.datasets.planted", "from pyarrow import parquet"),
        ("prismatic.acting.planted", "def late():\n    import torch"),
        ("prismatic.acting.planted", "import h5py"),
        ("prismatic.wire.planted", "def late():\n    from scipy.stats import norm"),
        ("prismatic.models.planted", "from prismatic.policy.lora import adapted_linear"),
        ("prismatic.planted.__init__", "import numpy"),
    ],
)
def test_a_planted_heavy_import_is_seen(module: str, source: str) -> None:
    assert len(heavy_imports({**_sources("prismatic"), module: source})) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from prismatic.vla.planted import x",
        "def late():\n    from prismatic.vla import planted",
        "import prismatic.vla.planted_between",
    ],
)
def test_a_planted_heavy_import_through_others_is_seen(source: str) -> None:
    planted = {
        "prismatic.acting.planted": source,
        "prismatic.vla.planted": "import torch",
        "prismatic.vla.planted_between": "import prismatic.vla.planted",
    }
    assert heavy_on_the_robot(planted) == ["prismatic.acting.planted loads torch with prismatic.vla.planted"]
    assert heavy_on_the_robot(planted | {"prismatic.vla.planted": "def late():\n    import torch"}) == []


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ("import prismatic.vla.planted_b", "import prismatic.vla.planted_a"),
        ("from prismatic.vla import planted_b", "def late():\n    from prismatic.vla.planted_a import name"),
        ("from prismatic.vla.planted_c import x", "from prismatic.vla.planted_a import x"),
    ],
)
def test_a_planted_circle_is_seen(there: str, back: str) -> None:
    planted = {
        "prismatic.vla.planted_a": there,
        "prismatic.vla.planted_b": back,
        "prismatic.vla.planted_c": "import prismatic.vla.planted_b",
    }
    assert len(circles(planted)) == 1


def test_a_planted_user_of_tensorflow_is_seen() -> None:
    assert tensorflow_users({"prismatic.training.planted": "def late():\n    import tensorflow as tf"}) == ["prismatic.training.planted"]
