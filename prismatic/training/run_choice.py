"""Which run a command means that goes on (--resume, --auto_resume) without --run_id_override.

An automatic name says the base, the data set and flags, some of which may be others when the run goes on: samples per process and step,
learning rate, dropout. So the run may have begun under another such name. And where --vla_path is a checkpoint of another run,
runs/X--100_chkpt, the command may mean the run that began with it, by the same command, or X itself, by the familiar way to resume.
Only the main process looks: on several machines the others may not even see the folder.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from prismatic.cli_sections import plain_values
from prismatic.training.config import FinetuneConfig
from prismatic.training.run_folder import Checkpoint, changed_flags, holds_policy, read_checkpoint

_NUMBER = r"[0-9.]+(?:e[+-]?[0-9]+)?"
_IN_NAMES = ("batch_size", "grad_accumulation_steps", "learning_rate", "lora_dropout")  # that may change when a run goes on

logger = logging.getLogger(__name__)


def choose_run(config: FinetuneConfig) -> str:
    """The name of the run that `config` begins or goes on with; nothing is changed in any folder.

    Raises:
        ValueError: several runs may be meant; the message names them, with the flag that chooses one.
    """
    saving = config.saving
    if saving.run_id_override or not (saving.resume or saving.auto_resume):
        return config.run_id
    base = config.model.vla_path.rstrip("/").split("/")[-1]
    if saving.resume and (named := re.fullmatch(r"(.+)--\d+_chkpt", base)):
        return _began_with_or_is(config, named[1])
    if _folders(config, re.escape(config.run_id)) or not (siblings := _siblings(config)):
        return config.run_id
    (name, checkpoint), *others = siblings.items()
    if others or not (saving.resume or _last_went_on_as(config, checkpoint)):
        flag, anew = ("--resume", "leave --resume out") if saving.resume else ("--auto_resume", "give a note by --run_id_note")
        raise ValueError(
            f"{flag} True: there is no run {config.run_id!r} in {config.run_dir.parent}, but {_told(siblings)}, which may have begun with "
            f"other values of flags that may change meanwhile ({', '.join(_IN_NAMES)}). --run_id_override NAME goes on with a run of that "
            f"name; to begin a new one, {anew}"
        )
    logger.info("there is no run %s; going on with %s, which began with other values of flags that may change", config.run_id, name)
    return name


def _began_with_or_is(config: FinetuneConfig, named: str) -> str:
    """The run that began with --vla_path, a checkpoint of the run `named`, if it has checkpoints; else `named`.

    Raises:
        ValueError: both may be meant.
    """
    own = config.run_id
    begun = _folders(config, re.escape(own)).get(own, [])
    if any(holds_policy(folder) for folder in begun):
        logger.info("going on with run %s, which began with --vla_path; --run_id_override %s goes on with the latter's own run", own, named)
        return own
    siblings = _siblings(config)
    if not begun and not siblings:
        return named
    told = f"run {own!r}, which has no checkpoint yet: give its command without --resume" if begun else _told(siblings)
    raise ValueError(
        f"--resume True may mean run {named!r}, of which --vla_path {config.model.vla_path} is a checkpoint, or what began with that "
        f"checkpoint: {told}. Pass --run_id_override {named}, or --run_id_override {own if begun else next(iter(siblings))}"
    )


def _folders(config: FinetuneConfig, names: str) -> dict[str, list[Path]]:
    """Run -> its folders, of all runs in --run_root_dir whose names the regular expression `names` fits; also those being replaced."""
    folder_name = re.compile(rf"\.?({names})(?:--\d+_chkpt)?(?:\.previous)?")
    parent = config.run_dir.parent
    found: dict[str, list[Path]] = {}
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        if (match := folder_name.fullmatch(path.name)) and path.is_dir():
            found.setdefault(match[1], []).append(path)
    return found


def _siblings(config: FinetuneConfig) -> dict[str, Checkpoint]:
    """Run -> its newest checkpoint, of the other runs that `config` could go on with: they differ in flags that may change alone."""
    names = "".join(_NUMBER if may_change else re.escape(text) for text, may_change in config.name_parts)
    found = {}
    for name, folders in _folders(config, names).items():
        checkpoints = [checkpoint for folder in folders if (checkpoint := read_checkpoint(folder)) is not None]
        newest = max(checkpoints, key=lambda checkpoint: checkpoint.state.step, default=None)
        if name != config.run_id and newest is not None and not changed_flags(config, newest.state):
            found[name] = newest
    return found


def _last_went_on_as(config: FinetuneConfig, checkpoint: Checkpoint) -> bool:
    """Whether the run was told to go on with the very flags of `config` before: a scheduler may repeat that command."""
    flags = plain_values(config)
    return all(checkpoint.state.flags.get(flag) == flags[flag] for flag in _IN_NAMES)


def _told(runs: dict[str, Checkpoint]) -> str:
    return ", ".join(f"{name!r} (step {checkpoint.state.step})" for name, checkpoint in runs.items())
