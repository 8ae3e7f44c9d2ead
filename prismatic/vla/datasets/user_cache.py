"""Where caches lie that have no better place."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """This user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prismatic"
