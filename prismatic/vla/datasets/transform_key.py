"""A trajectory transform -> a key that changes with everything that its results follow from, and with nothing else.

    code        of the function, of those it calls and of the classes it uses, as far as they are not part of an installed package;
                without comments, docstrings and layout
    values      constants of modules, default values, what a closure or a functools.partial holds, fields of a callable object or a function

Names are looked up wherever code is nested: in comprehensions, inner functions, lambdas, imports inside a function.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import io
import logging
import pickle
import re
import sys
import sysconfig
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from prismatic.vla.datasets.rlds.oxe.materialize import NumpyTransform

_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice, PurePath, re.Pattern)


def transform_key(transform: Callable[..., Any]) -> str:
    """hex, the same in every process and on every machine with the same code and values."""
    while isinstance(transform, NumpyTransform):
        transform = inspect.unwrap(transform, stop=lambda inner: not isinstance(inner, NumpyTransform))
    return hashlib.sha256(_Description(transform).text.encode()).hexdigest()


class _Description:
    """A text that says what a function is made of."""

    def __init__(self, root: Callable[..., Any]) -> None:
        self._package = _package(root)
        self._known: dict[int, str] = {}
        self._alive: list[Any] = []  # what `_known` numbers by id must live as long
        self.text = self.of(root)

    def of(self, value: Any) -> str:
        """The text of any value; of one that was met before, only where."""
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if id(value) in self._known:
            return self._known[id(value)]
        self._known[id(value)] = f"<{len(self._known)}>"
        self._alive.append(value)
        return f"{self._known[id(value)]}={self._new(value)}"

    def _new(self, value: Any) -> str:
        if isinstance(value, np.generic):
            return f"{value.dtype.str} {value.item()!r}"
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"array {value.dtype.str} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name} {self.of(value.value)}"
        if isinstance(value, Mapping):
            factory = f" else {self.of(value.default_factory)}" if isinstance(value, defaultdict) else ""
            return "{" + ", ".join(f"{self.of(key)}: {self.of(item)}" for key, item in value.items()) + factory + "}"
        if isinstance(value, (set, frozenset)):
            return _set_text(value)
        if isinstance(value, (list, tuple, np.ndarray)):
            return f"{type(value).__name__} [" + ", ".join(self.of(item) for item in value) + "]"
        return self._code(value)

    def _code(self, value: Any) -> str:
        """Of functions, classes and objects."""
        if isinstance(value, functools.partial):
            return f"partial {self.of(value.func)} {self.of(value.args)} {self.of(value.keywords)}"
        if isinstance(value, MethodType):
            return f"method {self.of(value.__func__)} of {self.of(value.__self__)}"
        if isinstance(value, (staticmethod, classmethod)):
            return self.of(value.__func__)
        if isinstance(value, property):
            return f"property {self.of(value.fget)}"
        if isinstance(value, FunctionType):
            return self._function(value) if self._is_own(value) else _name(value)
        if isinstance(value, ModuleType):
            return f"module {value.__name__}"  # what is taken out of it stands with the code that takes it
        if isinstance(value, type):
            return self._class(value) if self._is_own(value) else _name(value)
        if isinstance(value, (BuiltinFunctionType, np.ufunc, logging.Logger)):
            return _name(value)
        return self._object(value)

    def _function(self, function: FunctionType) -> str:
        closure = dict(zip(function.__code__.co_freevars, (_content(cell) for cell in function.__closure__ or ()), strict=True))
        parts = [
            _name(function),
            _source(function.__code__),
            self.of(function.__defaults__),
            self.of(function.__kwdefaults__ or None),
            self.of(closure),
            *([self.of(vars(function))] if vars(function) else []),
        ]
        names = dict.fromkeys(name for code in _nested(function.__code__) for name in code.co_names)
        for name in names:
            if name in function.__globals__:
                parts.append(f"{name}: {self._used(function.__globals__[name], names)}")
        for name, value in self._late_imports(function):
            parts.append(f"{name}: {self._used(value, names)}")
        return "(" + "; ".join(parts) + ")"

    def _used(self, value: Any, names: Mapping[str, None], within: tuple[Any, ...] = ()) -> str:
        """A global; of a module of one's own, and of modules in it, everything that has one of the names used beside it."""
        if not isinstance(value, ModuleType) or not self._is_own(value) or value in within:
            return self.of(value)
        taken = [f"{name}: {self._used(vars(value)[name], names, (*within, value))}" for name in names if name in vars(value)]
        return f"module {value.__name__} ({'; '.join(taken)})"

    def _class(self, value: type) -> str:
        members = {name: item for name, item in vars(value).items() if not name.startswith("__") or callable(item)}
        bases = [self.of(base) for base in value.__bases__ if base is not object]
        return f"class {_name(value)} {bases} (" + "; ".join(f"{name}: {self.of(item)}" for name, item in members.items()) + ")"

    def _object(self, value: Any) -> str:
        if hasattr(value, "__wrapped__") and not self._is_own(type(value)):
            return f"{_name(type(value))} of {self.of(value.__wrapped__)}"  # functools.cache and its like
        if hasattr(value, "__dict__") and self._is_own(type(value)):
            return f"object {self.of(type(value))} {self.of(dict(sorted(vars(value).items())))}"
        if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):  # a tensor's pickle differs each time
            return f"tensor {value.dtype} {self.of(value.detach().cpu().float().numpy())}"
        known = dict(self._known)
        try:
            return f"object {self.of(type(value))} {hashlib.sha256(_pickled(value, self)).hexdigest()}"
        except Exception:  # whatever the class does not like
            self._known = known
        return f"object {self.of(type(value))} {self.of(dict(sorted(getattr(value, '__dict__', {}).items())))}"

    def _is_own(self, value: Any) -> bool:
        """Whether somebody edits the code of a function, class or module: it is in the root's package, or not installed."""
        name = value.__name__ if isinstance(value, ModuleType) else value.__module__
        return name is not None and (name.partition(".")[0] == self._package or not _is_installed(_place(sys.modules.get(name))))

    def _late_imports(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        """(name, value) of what is imported inside the function, from packages of one's own: others may be slow to import."""
        definition = _parsed(function.__code__)
        for node in ast.walk(definition) if definition is not None else ():
            if isinstance(node, ast.Import):
                names: list[tuple[str, str | None]] = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = "." * node.level + (node.module or "")
                names = [(start, alias.name) for alias in node.names]
            else:
                continue
            for module, name in names:
                with contextlib.suppress(ImportError, ValueError):  # running it will say so
                    module = importlib.util.resolve_name(module, function.__globals__.get("__package__"))
                    top = module.partition(".")[0]
                    if top == self._package or not _is_installed(_place(importlib.util.find_spec(top))):
                        yield name or module, _imported(module, name)


class _Pickler(pickle.Pickler):
    """Writes functions and classes of one's own as what they are made of; pickle alone writes their names."""

    def __init__(self, file: io.BytesIO, description: _Description) -> None:
        super().__init__(file, protocol=4)
        self._description = description

    def persistent_id(self, value: Any) -> str | None:
        is_code = isinstance(value, (FunctionType, type)) and self._description._is_own(value)
        return self._description.of(value) if is_code else None


def _pickled(value: Any, description: _Description) -> bytes:
    file = io.BytesIO()
    _Pickler(file, description).dump(value)
    return file.getvalue()


def _imported(module: str, name: str | None) -> Any:
    """What `import module` or `from module import name` binds."""
    found = importlib.import_module(module)
    if name is None:
        return found
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")


def _place(module: Any) -> str | None:
    """Where a module, or its specification, lies; of a folder without __init__.py that folder. None for what is built in."""
    folders = getattr(module, "__path__", None) or getattr(module, "submodule_search_locations", None) or ()
    return getattr(module, "__file__", None) or getattr(module, "origin", None) or next(iter(folders), None)


def _is_installed(file: str | None) -> bool:
    """Whether the file of a module belongs to Python or to an installed package; built-in modules have none."""
    return file is None or any(Path(file).resolve().is_relative_to(folder) for folder in _INSTALLED)


def _package(value: Any) -> str:
    """The outermost package of a function, class, object or module."""
    while isinstance(value, functools.partial):
        value = value.func
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or type(value).__module__
    return name.partition(".")[0]


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _parsed(code: CodeType) -> ast.FunctionDef | None:
    """The definition in its file; None for a lambda, and for code that is in no file."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError):
        return None
    definition = tree.body[0] if len(tree.body) == 1 else None
    return definition if isinstance(definition, ast.FunctionDef) and definition.name == code.co_name else None


def _source(code: CodeType) -> str:
    """The code as text, the same however it is laid out; compiled code where there is no text."""
    definition = _parsed(code)
    if definition is None:
        inner = [_source(item) for item in code.co_consts if isinstance(item, CodeType)]
        others = [item for item in code.co_consts if not isinstance(item, CodeType)]
        constants = [_set_text(item) if isinstance(item, frozenset) else repr(item) for item in others]
        return f"{code.co_code.hex()} {constants} {code.co_names} {inner}"
    definition.decorator_list = []  # what they made of the function is looked at itself
    for node in ast.walk(definition):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(definition)


def _set_text(values: Iterable[Any]) -> str:
    """In an order that does not change from process to process."""
    return "{" + ", ".join(sorted(f"{type(item).__name__} {item!r}" for item in values)) + "}"
