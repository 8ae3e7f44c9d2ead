"""Where the checkpoints of a run lie, which of them are whole, and which may go.

    <run_root_dir>/<run_id>/                   logs; with --save_latest_checkpoint_only the checkpoint too
    <run_root_dir>/<run_id>--<step>_chkpt/     numbered checkpoints
    <run_root_dir>/.<name>.tmp, .previous      left by a process that died while it saved; the next start puts them right
    <run_root_dir>/.<run_id>.lock              names the one process that writes all these; see prismatic.training.run_lock

Only the main process calls these functions: on several machines the others may not even see the folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from prismatic.cli_sections import plain_values
from prismatic.models.json_files import is_of_kind, read_object
from prismatic.policy.checkpoint.files import (
    MANIFEST_FILE,
    TRAINER_STATE_FOLDER,
    check_free_space,
    find_damage,
    format_bytes,
    recover_folder,
    remove_folder,
)
from prismatic.policy.checkpoint.spec import POLICY_FILE
from prismatic.training.config import FinetuneConfig
from prismatic.vla.aside import put_aside

STATE_FILE = "state.json"
BEST_FILE = "best.json"  # in the run's folder; its "checkpoint" names the best one, which is never pruned; see prismatic.training.best

# Flags that a resumed run must share with its beginning: they decide what the weights are and which samples come next.
_FIXED_FLAGS = (
    "dataset_name", "use_lora", "lora_rank", "use_l1_regression", "use_diffusion", "num_diffusion_steps_train", "use_film", "use_proprio",
    "num_images_in_input", "image_aug", "stride", "use_val_set", "default_instruction", "freeze_vision_backbone", "freeze_projector",
    "freeze_language_model", "optimizer", "seed", "fresh_heads", "new_statistics", "published_tail", "published_statistics",
    "published_crop", "augmentation", "freeze_heads",
)  # fmt: skip
# Flags that a resumed run reads of its beginning, whatever its own are.
_NEEDED_FLAGS = {"vla_path": str, "batch_size": int, "grad_accumulation_steps": int, "seed": int}
# Files whose content is compared, with the episodes, wherever they lie; see prismatic.training.resumed_data.
_FILES = ("paraphrases",)

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # what a best.json that says something else leads to

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerState:
    """How far a run has come; the tensors are beside it."""

    step: int  # optimizer steps done
    sampler: Mapping[str, Any]  # the sampler's state_dict
    world_size: int
    flags: Mapping[str, Any]  # `plain_values` of the FinetuneConfig
    meters: list[dict[str, Any]] = field(default_factory=list)  # by process: what has been metered since the last log line
    owes_validation: bool = False  # a signal came before the validation that was due
    base: Mapping[str, str] = field(default_factory=dict)  # `describe_base` of the model at flags["vla_path"]
    owed_evaluations: list[int] = field(default_factory=list)  # steps whose closed-loop evaluations had not ended
    episodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # `describe_episodes` of the data

    @classmethod
    def parse(cls, content: dict[str, Any]) -> TrainerState:
        """The state that JSON has as `content`.

        Raises:
            ValueError: a value is of another kind, or a flag is missing that every run has.
            TypeError: a field is missing or unknown.
        """
        kinds = get_type_hints(cls)
        for name, value in content.items():
            if name in kinds and not is_of_kind(value, kinds[name]):
                raise ValueError(f"{name} is {repr(value)[:80]}, expected {cls.__annotations__[name]}")
        state = cls(**content)
        for name, kind in _NEEDED_FLAGS.items():
            if not is_of_kind(found := state.flags.get(name), kind):
                raise ValueError(f"the flag {name} is {repr(found)[:80]}, expected {kind.__name__}")
        return state

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step."""
        return self.flags["batch_size"] * self.flags["grad_accumulation_steps"] * self.world_size


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint that a run can be resumed from."""

    folder: Path
    state: TrainerState


def checkpoint_folder(config: FinetuneConfig, step: int) -> Path:
    """Where the checkpoint of `step` goes."""
    if config.saving.save_latest_checkpoint_only:
        return config.run_dir
    return config.run_dir.with_name(f"{config.run_dir.name}--{step}_chkpt")


def open_run(config: FinetuneConfig, world_size: int) -> Checkpoint | None:
    """Puts right what a killed process left, and returns the checkpoint to resume from; None for a new run.

    Raises:
        ValueError: there is no checkpoint to resume from, it belongs to a run with other flags, or a
            new run would mix its checkpoints with those of an earlier one, or overwrite them.
    """
    recover_run(config)
    found = find_checkpoints(config)
    if not found and (policies := [folder for folder in run_folders(config) if holds_policy(folder)]):
        if (policies[-1] / POLICY_FILE).is_file():
            read_object(policies[-1] / POLICY_FILE)  # a damaged one is no policy to continue either
        raise ValueError(
            f"run {config.run_id!r} has policies in {config.run_dir.parent} ({', '.join(folder.name for folder in policies)}) "
            f"that cannot be resumed, since {TRAINER_STATE_FOLDER}/ is missing or damaged in all of them, and that a new run of this name "
            "would overwrite. Give the run a name of its own with --run_id_override, without --resume; with --vla_path "
            f"{policies[-1]} it continues that policy (heads and statistics are taken over)"
        )
    if not (config.saving.resume or config.saving.auto_resume):
        if found:
            raise ValueError(
                f"run {config.run_id!r} has checkpoints in {config.run_dir.parent} already (steps {_list(found)}); --resume True goes on "
                "from the newest, --run_id_note or --run_id_override give a new run a name of its own"
            )
        return None
    if config.saving.auto_resume and not found:
        return None
    checkpoint = _choose(config, found)
    check_flags(config, checkpoint, world_size)
    now, then = config.model.quantize_base, checkpoint.state.flags.get("quantize_base", "none")
    if now != then:
        logger.warning(
            "--quantize_base is %s, it was %s up to step %d: the adapters go on over a base that is rounded otherwise",
            *(now, then, checkpoint.state.step),
        )
    return checkpoint


def recover_run(config: FinetuneConfig) -> None:
    """Ends replacements of the run's folders that a process began and did not live to end; removes half-written checkpoints."""
    parent, name = config.run_dir.parent, re.escape(config.run_dir.name)
    leftover = re.compile(rf"\.({name}(?:--\d+_chkpt)?)\.(?:tmp|previous)")
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        if (match := leftover.fullmatch(path.name)) and path.exists():
            logger.info("%s was left by a process that died while it saved; putting that right", path)
            recover_folder(path.with_name(match[1]))


def run_folders(config: FinetuneConfig) -> list[Path]:
    """The folders that may hold a checkpoint of the run: its own, then the numbered ones that are there, the newest last."""
    return [config.run_dir, *(folder for _, folder in sorted(_numbered(config)))]


def _numbered(config: FinetuneConfig) -> list[tuple[int, Path]]:
    """(step by its name, folder) of the run's numbered checkpoints, in any state."""
    named = re.compile(rf"{re.escape(config.run_dir.name)}--(\d+)_chkpt")
    matches = ((named.fullmatch(path.name), path) for path in config.run_dir.parent.glob("*_chkpt"))
    return [(int(match[1]), path) for match, path in matches if match]


def holds_policy(folder: Path) -> bool:
    """Whether a checkpoint was ever completed in `folder`, whatever is left of it."""
    return any((folder / name).is_file() for name in (POLICY_FILE, MANIFEST_FILE))


def find_checkpoints(config: FinetuneConfig) -> dict[int, Checkpoint]:
    """Step -> checkpoint, of all complete ones of the run; others are named in the log."""
    found = (read_checkpoint(folder) for folder in run_folders(config))
    return {checkpoint.state.step: checkpoint for checkpoint in found if checkpoint is not None}


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`; None if it holds no trainer state, or not all of it, or a damaged policy.json."""
    path = folder / TRAINER_STATE_FOLDER / STATE_FILE
    if not path.is_file():
        return None
    if damage := find_damage(folder, part=f"{TRAINER_STATE_FOLDER}/"):
        logger.warning("%s cannot be resumed: %s", folder, damage)
        return None
    try:
        if (folder / POLICY_FILE).is_file():
            read_object(folder / POLICY_FILE)  # what the run was for stands there
    except ValueError as error:
        logger.warning("%s cannot be resumed: %s", folder, error)
        return None
    try:
        return Checkpoint(folder, TrainerState.parse(read_object(path)))
    except (ValueError, TypeError) as error:
        logger.warning("%s cannot be resumed: %s says something else than expected (%s)", folder, path.name, error)
        return None


def check_flags(config: FinetuneConfig, checkpoint: Checkpoint, world_size: int) -> None:
    """Returns if the run of `checkpoint` can go on with `config` on `world_size` processes.

    Raises:
        ValueError: a flag differs that must not, or every step would take another number of samples.
    """
    state = checkpoint.state
    for flag, now, then in changed_flags(config, state):
        raise ValueError(f"resuming: --{flag} is {now!r}, the run in {checkpoint.folder} was started with {then!r}")
    now = config.optimization.samples_per_step * world_size
    if now != state.global_batch_size:
        sizes = f"{config.optimization.batch_size} x {config.optimization.grad_accumulation_steps} x {world_size} = {now}"
        before = f"{state.flags['batch_size']} x {state.flags['grad_accumulation_steps']} x {state.world_size}"
        raise ValueError(
            f"resuming: a step takes {sizes} samples (--batch_size x "
            f"--grad_accumulation_steps x processes), the run in {checkpoint.folder} took {before} = {state.global_batch_size}; "
            "choose them so that the product stays"
        )


def changed_flags(config: FinetuneConfig, state: TrainerState) -> list[tuple[str, Any, Any]]:
    """(flag, its value now, its value then) of those that a resumed run must share with its beginning, and does not."""
    flags, defaults = plain_values(config), plain_values(FinetuneConfig())
    names = _FIXED_FLAGS if state.episodes else (*_FIXED_FLAGS, *_FILES)  # earlier versions say nothing of the episodes
    pairs = [(flag, flags[flag], state.flags.get(flag, defaults[flag])) for flag in names]  # nor did they know all flags
    return [(flag, now, then) for flag, now, then in pairs if str(now) != str(then)]


def check_disk(config: FinetuneConfig, num_parameters: int) -> None:
    """Returns if the disk has room for one checkpoint of a run of a base with `num_parameters`, adapters apart.

    However the base is stored, checkpoints hold the model in bfloat16.

    Raises:
        ValueError: it has not.
    """
    is_written_whole = config.saving.merge_lora_during_training or not config.model.use_lora
    trained = 0 if config.model.use_lora else 12 * num_parameters  # bytes of weights and two moments in float32
    check_room(config, config.run_dir, trained + (2 * num_parameters if is_written_whole else 0))


def check_room(config: FinetuneConfig, folder: Path, num_bytes: int) -> None:
    """Returns if the disk has room for a checkpoint of `num_bytes` in `folder`.

    An older one goes only once a newer one is complete, so that what pruning or --save_latest_checkpoint_only would free does not count.

    Raises:
        ValueError: it has not; the message says what helps.
    """
    check_free_space(folder, num_bytes, lambda: _how_to_make_room(config))


def _how_to_make_room(config: FinetuneConfig) -> str:
    found = find_checkpoints(config)
    remedies = ["free some" if found else "free some, or choose another --run_root_dir"]
    if config.model.use_lora and config.saving.merge_lora_during_training:
        remedies.append("--merge_lora_during_training False saves adapters without the merged model, which can be made later")
    with contextlib.suppress(*_UNREADABLE):
        if old := _older_than_newest(config, found, 1):
            size = sum(path.stat().st_size for folder in old for path in folder.rglob("*") if path.is_file())
            names = ", ".join(folder.name for folder in old)
            remedies.append(f"of the run, which goes on from the newest, you may delete {names} ({format_bytes(size)})")
    return "; ".join(remedies)


def leave_later_checkpoints(config: FinetuneConfig, step: int) -> list[Path]:
    """Calls checkpoints of the run beyond `step`, from which it goes on another way, otherwise; returns their new places.

    They would pass for the newest: the next start would go on from them, and pruning would keep them and remove the new ones. Those that
    cannot be resumed are policies all the same, which the run would overwrite when it comes to their steps. One in the run's own folder,
    where the logs stay, loses its trainer state to another name: it is a policy, and not resumed.
    """
    numbered, latest = sorted(_numbered(config)), read_checkpoint(config.run_dir)
    later = [folder for number, folder in numbered if number > step and holds_policy(folder)]
    if latest is not None and latest.state.step > step and step in dict(numbered):
        later.append(config.run_dir / TRAINER_STATE_FOLDER)
    return [put_aside(place) for place in later]


def prune_checkpoints(config: FinetuneConfig) -> list[Path]:
    """Removes all but the newest `keep_checkpoints` complete checkpoints and the best one; returns what went.

    Nothing goes as long as it cannot be read which one is the best.
    """
    if config.saving.keep_checkpoints is None:
        return []
    try:
        removed = _older_than_newest(config, find_checkpoints(config), config.saving.keep_checkpoints)
    except _UNREADABLE as error:
        logger.warning("%s cannot be read (%s: %s); no checkpoint is removed", config.run_dir / BEST_FILE, type(error).__name__, error)
        return []
    for folder in removed:
        remove_folder(folder)
    return removed


def _older_than_newest(config: FinetuneConfig, found: Mapping[int, Checkpoint], num_newest: int) -> list[Path]:
    """The folders of numbered checkpoints, of those `found`, that are neither among the newest nor the best one, the oldest first.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be read which one is the best.
    """
    kept = (config.run_dir.name, _best_name(config))
    return [found[step].folder for step in sorted(found)[:-num_newest] if found[step].folder.name not in kept]


def _best_name(config: FinetuneConfig) -> str | None:
    path = config.run_dir / BEST_FILE
    name = json.loads(path.read_text())["checkpoint"] if path.is_file() else None
    return Path(name).name if name else None


def _choose(config: FinetuneConfig, found: Mapping[int, Checkpoint]) -> Checkpoint:
    """`vla_path` itself if it is a checkpoint of this run, else that of `resume_step`, else the newest."""
    folder = Path(config.model.vla_path).expanduser()
    origins = {str(checkpoint.state.flags.get("started_from")) for checkpoint in found.values()}
    is_origin = any(is_same_place(config.model.vla_path, origin) for origin in origins)
    if config.saving.resume and not is_origin and is_of_run(config, folder) and (named := read_checkpoint(folder)):
        if config.saving.resume_step not in (None, named.state.step):
            raise ValueError(
                f"--resume_step is {config.saving.resume_step}, but --vla_path {folder} is of step {named.state.step}; give one"
            )
        return named
    if not found or (config.saving.resume_step is not None and config.saving.resume_step not in found):
        wanted = "" if config.saving.resume_step is None else f" of step {config.saving.resume_step}"
        raise ValueError(
            f"--resume True: no complete checkpoint{wanted} of run {config.run_id!r} in {config.run_dir.parent} (steps found: "
            f"{_list(found)}); check --run_root_dir and --run_id_override, or start without --resume"
        )
    return found[config.saving.resume_step if config.saving.resume_step is not None else max(found)]


def is_of_run(config: FinetuneConfig, folder: Path) -> bool:
    """Whether `folder` is called like a checkpoint of the run; one of another run is what this run has continued."""
    return re.fullmatch(rf"{re.escape(config.run_dir.name)}(--\d+_chkpt)?", folder.name) is not None


def is_same_place(one: str, other: str) -> bool:
    """Whether both name one folder, however each is spelt, or one Hub id."""
    folders = [Path(name).expanduser() for name in (one, other)]
    return one == other or (all(folder.is_dir() for folder in folders) and folders[0].samefile(folders[1]))


def _list(found: Mapping[int, Checkpoint]) -> str:
    return ", ".join(str(step) for step in sorted(found)) or "none"
