"""Scripts, which lie in folders that are no packages, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load_script(path: str) -> ModuleType:
    """The script at `path`, counted from the repository's root; its main function is not called."""
    specification = importlib.util.spec_from_file_location(f"script_{Path(path).stem}", ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    if (folder := str((ROOT / path).parent)) not in sys.path:
        sys.path.append(folder)  # as where the script is started: what lies beside it can be imported
    specification.loader.exec_module(module)
    return module
