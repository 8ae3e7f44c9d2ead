"""The episodes of an evaluation as they end, so that an interrupted one goes on where it stopped.

    <folder>/episodes.jsonl     first line: what the outcomes depend on (suite, checkpoint, flags); then one episode per line
    <folder>/episodes.shard-2-of-8.jsonl   the same, of a part of the evaluation (`shards`); all that lie in the folder belong together
    <folder>/pictures/...png    what the report shows of an episode, side by side

A line is written at once; one that a kill cut short is dropped. An episode is known by run, task, number and seed; of one that was played
again the latest line of a file counts, and of several files the one that did not crash, or else ended last. The first line must be the
same when the evaluation goes on, unless no episode follows it: episodes of two settings never mix.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robot.evaluation.backlog import PlannedEpisode
from experiments.robot.evaluation.report import VIDEOS
from experiments.robot.evaluation.rollout import EpisodeResult
from experiments.robot.evaluation.shards import Shard
from prismatic.acting.recorder import RECORDINGS
from prismatic.vla.aside import put_aside
from prismatic.vla.datasets.locks import locked

logger = logging.getLogger(__name__)

JOURNAL_FILE = "episodes.jsonl"
_PICTURES = {"pictures": "pictures", "failure_frames": "failures"}  # field of EpisodeResult -> folder
_SAID = {"run": str, "task": str, "index": int, "seed": int, "success": bool, "num_steps": int}  # what every row says, and in which kind
# Setting that says where something lies -> the one that says what it holds, which decides where both journals know it.
_BY_CONTENT = {"pretrained_checkpoint": "checkpoint_content", "initial_states_path": "initial_states_path_content"}
_ANEW = "play that evaluation anew with --restart True"
_ENDED = "ended_s"  # when an episode ended [s since 1970]; in rows alone, and not in those of earlier versions
_Key = tuple[str, str, int, int]  # run, task, number, seed


class JournalError(ValueError):
    """The journal cannot be continued; the message says why."""

    def __init__(self, problem: str, remedy: str) -> None:
        """`remedy`: what to do, in the flags of an evaluation script."""
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem


class Journal:
    """Appends episodes to a folder's journal and knows those that are there."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        restart: bool = False,
        shard: Shard | None = None,
        own: Sequence[PlannedEpisode] = (),
    ) -> None:
        """`settings` is all that outcomes depend on; `restart` forgets what is there, or of a `shard` its `own` episodes, whichever
        journal holds them, and all episodes of other settings.

        Raises:
            JournalError: the folder's episodes were played with other settings, or its journal is damaged.
        """
        self.folder, self._path = folder, _path_of(folder, shard or Shard())
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._rows: dict[Path, list[dict[str, Any]]] = {}
        self._counting: dict[_Key, dict[str, Any]] = {}  # the row of each episode that counts
        self._results: dict[_Key, EpisodeResult] = {}
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, shard):
            if restart and shard and shard.count > 1:
                self._forget_shard(own)
            elif restart:
                _forget(folder)
            self._rows[self._path] = []
            self._take_in(journal_files(folder))
            _write_rows(self._path, self._settings, self._rows[self._path])  # without a line that was cut short

    def _forget_shard(self, own: Sequence[PlannedEpisode]) -> None:
        """Other shards may be told to begin anew as well, at the same time: what they have written with these settings stays."""
        forgotten = {_planned_key(episode) for episode in own}
        for path in journal_files(self.folder):
            try:
                stored, rows = read_journal(path)
            except JournalError as error:
                logger.warning("%s is forgotten: %s", path, error.problem)
                path.unlink()
                continue
            is_forgotten = path == self._path or bool(_list_changes(stored, self._settings))
            kept = [] if is_forgotten else [row for row in rows if _key_of(row) not in forgotten]
            _forget_files(self.folder, [row for row in rows if row not in kept])
            if is_forgotten:
                path.unlink()
            elif len(kept) < len(rows):
                _write_rows(path, stored, kept)

    def refresh(self) -> None:
        """Takes in what other shards have written meanwhile."""
        self._take_in([path for path in journal_files(self.folder) if path != self._path])

    def _take_in(self, paths: Iterable[Path]) -> None:
        """Reads journals of the folder, whose rows become results.

        Raises:
            JournalError: one is of another evaluation, or damaged.
        """
        for path in paths:
            stored, rows = read_journal(path)
            listed = _list_changes(stored, self._settings)
            if listed and rows:
                raise JournalError(
                    f"{path} holds episodes of another evaluation ({listed})",
                    "choose another folder (--output_dir, or --local_log_dir and --run_id_note), or pass --restart True to forget them",
                )
            self._rows[path] = rows
        for key, row in _merge(self._rows[path] for path in sorted(self._rows, key=_file_order)).items():
            if self._counting.get(key) != row:
                self._counting[key], self._results[key] = row, self._from_row(row)

    @property
    def results(self) -> list[EpisodeResult]:
        """What has been played, the latest of an episode that crashed and was played again."""
        return list(self._results.values())

    def missing(self, episodes: list[PlannedEpisode]) -> list[PlannedEpisode]:
        """Those of `episodes` that have not been played, or whose simulator died."""

        def done(planned: PlannedEpisode) -> bool:
            result = self._results.get(_planned_key(planned))
            return result is not None and result.error is None

        return [planned for planned in episodes if not done(planned)]

    def add(self, result: EpisodeResult) -> None:
        """Writes an episode down.

        Raises:
            JournalError: the journal is no longer there.
        """
        for name in _PICTURES:
            if pictures := getattr(result, name):
                _save_strip(self._strip(name, result), pictures)
            else:  # of the episode as it was played before
                self._strip(name, result).unlink(missing_ok=True)
        row = {item.name: getattr(result, item.name) for item in dataclasses.fields(result) if item.name not in _PICTURES}
        line = json.dumps(row | {_ENDED: time.time()})
        try:
            with open(self._path, "a", encoding="utf-8", opener=_open_existing) as file:
                file.write(line + "\n")
        except FileNotFoundError as error:
            raise JournalError(
                f"{self._path} is gone: it was removed, or another process has begun anew with --restart True", "start this one again"
            ) from error
        row = json.loads(line)
        self._rows[self._path].append(row)
        self._counting[_key_of(row)], self._results[_key_of(row)] = row, result

    def _from_row(self, row: dict[str, Any]) -> EpisodeResult:
        try:
            values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
            values.pop(_ENDED, None)
            result = EpisodeResult(**values)
        except TypeError as error:
            raise JournalError(f"{self._path} holds an episode of another version ({error})", _ANEW) from error
        pictures, frames = (_load_strip(self._strip(name, result)) for name in ("pictures", "failure_frames"))
        return dataclasses.replace(result, pictures=pictures, failure_frames=frames)

    def _strip(self, name: str, result: EpisodeResult) -> Path:
        return _strip_path(self.folder / _PICTURES[name], (result.run, result.task, result.index, result.seed))


def _strip_path(folder: Path, key: _Key) -> Path:
    run, task, index, seed = key
    return folder / run / task / f"episode_{index:03d}_seed_{seed}.png"


def _path_of(folder: Path, shard: Shard) -> Path:
    path = folder / JOURNAL_FILE
    return path.with_name(f"{path.stem}{shard.suffix}{path.suffix}")


def journal_files(folder: Path) -> list[Path]:
    """The journals in a folder: of the whole evaluation, and of its shards."""
    path = folder / JOURNAL_FILE
    found = [*([path] if path.is_file() else []), *folder.glob(f"{path.stem}.shard-*{path.suffix}")]
    return sorted(found, key=_file_order)


def read_journals(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and episodes of an evaluation, those of its shards included: of each episode one row, as `Journal` has it, too.

    Raises:
        JournalError: there is none, it is damaged, or files of several evaluations lie there.
    """
    files = journal_files(folder)
    if not files:
        raise JournalError(f"{folder} has no {JOURNAL_FILE}", "pass the folder of an evaluation, the one that holds report.html")
    found = [read_journal(path) for path in files]
    played = [(path, settings) for path, (settings, rows) in zip(files, found, strict=True) if rows]
    for path, settings in played[1:]:
        if listed := _list_changes(played[0][1], settings):
            raise JournalError(
                f"{path} holds episodes of another evaluation than {played[0][0].name} ({listed})",
                "move one of them to a folder of its own",
            )
    return played[0][1] if played else found[0][0], list(_merge(rows for _, rows in found).values())


def _merge(files: Iterable[Sequence[dict[str, Any]]]) -> dict[_Key, dict[str, Any]]:
    """Episode -> its row that counts, of journals that belong together in the order of `journal_files`."""
    merged: dict[_Key, dict[str, Any]] = {}
    for rows in files:
        for key, row in {_key_of(row): row for row in rows}.items():
            if key not in merged or _rank(row) >= _rank(merged[key]):
                merged[key] = row
    return merged


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    return row.get("error") is None, row.get(_ENDED, 0.0)


def _list_changes(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The settings that differ, in words; "" if none does. A checkpoint may lie elsewhere by now, or on another machine."""
    known = {name for name, content in _BY_CONTENT.items() if stored.get(content) and settings.get(content)}
    names = sorted((stored.keys() | settings.keys()) - known)
    changed = [name for name in names if stored.get(name) != settings.get(name)]
    return "; ".join(f"{name} was {stored.get(name)!r}, is {settings.get(name)!r}" for name in changed)


def read_journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and episodes of a journal, without a last line that was cut short.

    Raises:
        JournalError: damaged elsewhere.
    """
    lines = path.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1]):  # what follows the last line break is not complete
        try:
            rows.append(json.loads(line.decode("utf-8")))
        except ValueError as error:
            raise JournalError(f"{path}, line {number + 1} is no JSON ({error})", f"remove that line, or {_ANEW}") from error
        if number and not _is_row(rows[-1]):
            raise JournalError(f"{path}, line {number + 1} is no row of a journal", f"remove that line, or {_ANEW}")
    if not rows or not isinstance(rows[0], dict) or not isinstance(rows[0].get("settings"), dict):
        raise JournalError(f"{path} does not begin with the settings of an evaluation", _ANEW)
    return rows[0]["settings"], rows[1:]


def _open_existing(path: str, flags: int) -> int:
    """A new file would lack the settings, and could not be read."""
    return os.open(path, flags & ~os.O_CREAT)


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in _SAID.items())


def fingerprint(folder: Path) -> str:
    """Changes with the content of a checkpoint, not with where it lies or what lies beside it; reads samples of large files."""
    from prismatic.policy.checkpoint import files  # imports torch

    return files.fingerprint(folder)


def _forget(folder: Path) -> None:
    """Removes what a folder knows of its episodes; their recordings, which are data, are kept under another name, lest they pass for those
    of the episodes to come."""
    for path in journal_files(folder):
        with suppress(JournalError):  # a damaged one names none
            _forget_files(folder, read_journal(path)[1])
        path.unlink(missing_ok=True)
    if (recordings := folder / RECORDINGS).is_dir():
        logger.info("recordings of the episodes before are kept in %s", put_aside(recordings))


def _forget_files(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Removes pictures and videos of `rows`, and nothing else that may lie beside them.

    A video's name says how its episode ended, which may end otherwise when it is played anew.
    """
    for row in rows:
        for kind in _PICTURES.values():
            _strip_path(folder / kind, _key_of(row)).unlink(missing_ok=True)
        if row.get("video"):
            (folder / VIDEOS / row["task"] / Path(row["video"]).name).unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path, shard: Shard | None) -> Iterator[None]:
    """Shards that begin at the same time look at the folder's journals one after the other."""
    if shard is None or shard.count == 1:
        yield
        return
    with locked(folder / ".lock.journals"):
        yield


def _key_of(row: Mapping[str, Any]) -> _Key:
    return row["run"], row["task"], row["index"], row["seed"]


def _planned_key(planned: PlannedEpisode) -> _Key:
    return planned.run, planned.spec.task, planned.spec.index, planned.spec.seed


def _file_order(path: Path) -> tuple[bool, Path]:
    return path.name != JOURNAL_FILE, path


def _write_rows(path: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in ({"settings": settings}, *rows)), encoding="utf-8")
    os.replace(temporary, path)


def _save_strip(path: Path, pictures: tuple[np.ndarray, ...]) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(np.hstack(pictures)).save(temporary, format="PNG")
    os.replace(temporary, path)


def _load_strip(path: Path) -> tuple[np.ndarray, ...]:
    """The square pictures of a strip, () if there is none, or none that can be read."""
    from PIL import Image

    if not path.exists():
        return ()
    try:
        strip = np.asarray(Image.open(path).convert("RGB"))
    except OSError as error:
        logger.warning("%s cannot be read (%s); the report does without it", path, error)
        return ()
    return tuple(np.split(strip, strip.shape[1] // strip.shape[0], axis=1))
