"""What caches hold, what it belongs to, and whether anything uses it: indexes, frame caches, tables of video frames, leftovers.

An index is used if the registry's entry, the transform and the data still give its key; a frame cache if a used index has its key.
What cannot be told stays: data on a disk that is not mounted now, an entry of somebody else's registry, a process of another machine.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prismatic.vla.datasets.frame_cache import NOTE_SUFFIX
from prismatic.vla.datasets.frame_cache import SUFFIX as FRAMES
from prismatic.vla.datasets.index import CACHE_FOLDER, index_key
from prismatic.vla.datasets.index_files import UNFINISHED, read_description, unfinished
from prismatic.vla.datasets.rlds.oxe.configs import find_entry
from prismatic.vla.datasets.rlds.oxe.materialize import NumpyTransform
from prismatic.vla.datasets.rlds.oxe.rates import for_form
from prismatic.vla.datasets.rlds.oxe.transforms import find_transform
from prismatic.vla.datasets.sources import describe_recordings, open_source
from prismatic.vla.datasets.user_cache import user_cache

_KEY = re.compile(r"[0-9a-f]{24}")
_Verdicts = dict[tuple[str, str], dict[str, str]]  # data set and its folder -> key of frames -> verdict on an index that may be used
_LIFELESS_S = 24 * 3600.0  # a process of another machine that has written nothing for so long counts as gone


@dataclass(frozen=True)
class CacheItem:
    """One cache."""

    path: Path
    what: str  # what it is and what it belongs to
    verdict: str  # whether something uses it, or why not
    is_used: bool  # or may be

    @property
    def num_bytes(self) -> int:
        """What it takes on the disk."""
        paths = [self.path, *self._beside, *(self.path.rglob("*") if self.path.is_dir() else ())]
        return sum(path.lstat().st_blocks * 512 for path in paths if path.exists())

    @property
    def _beside(self) -> list[Path]:
        """The note of a frame cache."""
        return [self.path.with_name(self.path.name + NOTE_SUFFIX)] if self.path.name.endswith(FRAMES) else []

    def remove(self) -> None:
        """Deletes it."""
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
        for path in (self.path, *self._beside):
            path.unlink(missing_ok=True)


def find_caches(data_root_dir: Path, frame_cache_dir: Path | None) -> list[CacheItem]:
    """Those of the user, of the data sets in `data_root_dir`, and the frames in `frame_cache_dir`.

    Raises:
        ValueError: `frame_cache_dir` is no folder.
    """
    if frame_cache_dir is not None and not frame_cache_dir.is_dir():
        raise ValueError(f"--frame_cache_dir {frame_cache_dir} is not a folder")
    parents = [user_cache() / "index"]
    parents += sorted(path for pattern in ("", "*/", "*/*/") for path in data_root_dir.glob(f"{pattern}{CACHE_FOLDER}"))
    of_indexes: _Verdicts = {}
    found = [item for parent in parents for item in _indexes(parent, of_indexes)]
    if frame_cache_dir is not None:
        found += [_frames(path, of_indexes) for path in sorted(frame_cache_dir.glob(f"*{FRAMES}"))]
    tables = user_cache() / "frame_tables"
    for path in sorted(tables.glob("*.npz")):
        is_part = path.name.startswith(UNFINISHED)
        is_lifeless = is_part and time.time() - path.stat().st_mtime > _LIFELESS_S
        verdict = "small, kept" if not is_part else "no sign of life for a day" if is_lifeless else "being written"
        found.append(CacheItem(path, "frame tables of LeRobot videos", verdict, not is_lifeless))
    return found


def _indexes(parent: Path, of_indexes: _Verdicts) -> Iterator[CacheItem]:
    """The indexes in one folder; notes the frames of those that may be used."""
    for path in sorted(item for item in parent.glob("*") if _KEY.fullmatch(item.name)):
        description = read_description(path)
        about = {} if description is None else description.get("about", {})
        if description is None or not about:
            yield CacheItem(path, "index", "cut off, or of an earlier version", False)
            continue
        what = f"index of {about['dataset'] or 'a data set without a name'} ({about['folder']}), made {about['made']}"
        verdict, is_used = _judge(about, path.name)
        if parent.name == CACHE_FOLDER and (parent.parent / "meta" / "info.json").is_file():
            verdict, is_used = "not used: push_to_hub would upload it with the data set", False
        elif is_used:
            of_indexes.setdefault((about["dataset"], about["folder"]), {}).update(dict.fromkeys(description["frame_keys"], verdict))
        yield CacheItem(path, what, verdict, is_used)
    for path, owner in unfinished(parent):
        newest = max(item.stat().st_mtime for item in (path, *path.rglob("*")))
        is_dead = owner.is_gone() if owner is not None else False
        is_lifeless = time.time() - newest > _LIFELESS_S
        verdict = "left behind" if is_dead else "no sign of life for a day" if is_lifeless else "being built"
        yield CacheItem(path, f"unfinished index of {owner or 'a process'}", verdict, not (is_dead or is_lifeless))


def _judge(about: Mapping[str, Any], key: str) -> tuple[str, bool]:
    """(verdict, whether it may be used) of an index."""
    folder = Path(about["folder"])
    if not folder.exists():
        if folder.parent.is_dir():
            return "its data are gone", False
        return "its data are not there now (a disk that is not mounted?)", True
    try:
        written = find_entry(about["dataset"])
    except ValueError:
        return f"no entry {about['dataset']!r} in this registry: somebody else's, or your code's", True
    try:
        entry = replace(for_form(about["dataset"], written, describe_recordings(folder)), stride=about["stride"])
        transform = NumpyTransform(find_transform(about["dataset"], entry.transform))
        current = index_key(open_source(folder, entry), entry, transform)
    except (ValueError, OSError) as error:
        return f"its data cannot be read: {error}", True
    return ("used", True) if current == key else ("data, entry or transform have changed since", False)


def _frames(path: Path, of_indexes: _Verdicts) -> CacheItem:
    """A file of frames."""
    try:
        note = json.loads(path.with_name(path.name + NOTE_SUFFIX).read_text())
        dataset, folder, key = note["dataset"], note["folder"], note["frame_key"]
    except (OSError, ValueError, KeyError):
        return CacheItem(path, "frames", "of an earlier version; nothing says what it belongs to", False)
    what = f"frames of {dataset} ({folder}), camera {note['camera']}, {note['image_size']} px"
    verdicts = of_indexes.get((dataset, folder))
    if verdicts is not None:
        return CacheItem(path, what, verdicts.get(key, "data have changed since"), key in verdicts)
    if not Path(folder).exists() and Path(folder).parent.is_dir():
        return CacheItem(path, what, "its data are gone", False)
    return CacheItem(path, what, "cannot be told without a current index; inspect the data set first", True)
