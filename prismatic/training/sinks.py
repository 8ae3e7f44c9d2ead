"""Who receives the metrics beside metrics.jsonl: Weights & Biases and TensorBoard, when asked.

What they need is looked at before anything expensive. Once a run goes on, none of them can end it: metrics.jsonl has everything.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

from prismatic.cli_sections import plain_values
from prismatic.training.config import FinetuneConfig

_WANDB_ID_FILE = "wandb_run_id.txt"  # in the run's folder: where a run that is resumed goes on
_WANDB_AXIS = "step"
_VERIFY_TIMEOUT_S = 15  # for the answer of Weights & Biases whether a key is valid

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Receives what metrics.jsonl receives."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Takes one row."""

    def close(self, failed: bool) -> None:
        """Ends."""


def check_loggers(config: FinetuneConfig) -> None:
    """Returns if what the run is to log to is installed and lets it in.

    Raises:
        ValueError: it is not, or does not; the message says what to do.
    """
    for name in config.logging.logger_names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without an origin it is a folder of that name, such as W&B leaves
            raise ValueError(
                f"--logger {name}: the package is not installed; pip install {name}, or leave it out of --logger "
                f"{'and leave out --wandb_project ' if name == 'wandb' else ''}to log to metrics.jsonl alone"
            )
    if "wandb" in config.logging.logger_names:
        check_wandb("--wandb_project")


def check_wandb(flag: str) -> None:
    """Returns if the package wandb, which is installed, may log: it is told to stay offline, or has a key that is accepted.

    Raises:
        ValueError: neither; the message begins with `flag`.
    """
    import wandb

    settings = wandb.setup().settings
    if settings.mode != "online" or getattr(settings, "identity_token_file", None):
        return
    remedies = "run `wandb login`, or set WANDB_MODE=offline to keep the run here (wandb sync sends it later), or leave the flag out"
    if not wandb.api.api_key:
        raise ValueError(f"{flag}: this machine is not logged in to Weights & Biases; {remedies}")
    try:
        wandb.login(verify=True, timeout=_VERIFY_TIMEOUT_S)
    except wandb.errors.Error as error:
        raise ValueError(
            f"{flag}: {settings.base_url} cannot be reached, or refuses the key of this machine ({error}); {remedies}"
        ) from error


class WandbSink:
    """Weights & Biases; a run that is resumed, or begun again by its scheduler, goes on in its page."""

    def __init__(self, config: FinetuneConfig, first_step: int) -> None:
        import wandb

        id_file = config.run_dir / _WANDB_ID_FILE
        goes_on = config.saving.resume or config.saving.auto_resume
        known = id_file.read_text().strip() if goes_on and id_file.exists() else None
        self._run: Any = wandb.init(
            entity=config.logging.wandb_entity,
            project=config.logging.wandb_project,
            name=f"ft+{config.run_id}",
            id=known,
            resume="allow" if known else None,
            dir=str(config.run_dir.parent),
            config=plain_values(config),
        )
        id_file.write_text(self._run.id + "\n")
        self._run.define_metric(_WANDB_AXIS)
        for group in ("train", "val", "eval"):
            self._run.define_metric(f"{group}/*", step_metric=_WANDB_AXIS)

    def log(self, step: int, values: dict[str, float]) -> None:
        """W&B's own step may only rise, and it drops a row where it does not; evaluations come late, and a resumed run begins at its last
        checkpoint, so the optimizer step is an axis of ours."""
        self._run.log({**values, _WANDB_AXIS: step})

    def close(self, failed: bool) -> None:
        """Uploads the rest."""
        self._run.finish(exit_code=int(failed))


class TensorboardSink:
    """Event files in <run_root_dir>/tensorboard/<run>, so that one --logdir shows all runs."""

    def __init__(self, config: FinetuneConfig, first_step: int) -> None:
        # Marks tensorboard as the variant that runs without TensorFlow, which it would import wherever it is installed.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        from torch.utils.tensorboard import SummaryWriter

        folder = config.run_dir.parent / "tensorboard" / config.run_dir.name
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def log(self, step: int, values: dict[str, float]) -> None:
        """One scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        """Closes the file."""
        self._writer.close()


_SINKS: dict[str, Callable[[FinetuneConfig, int], Sink]] = {"wandb": WandbSink, "tensorboard": TensorboardSink}


def open_sinks(config: FinetuneConfig, first_step: int) -> list[Sink]:
    """Those that the flags name; one that cannot be opened is reported and left out."""
    opened = []
    for name in config.logging.logger_names:
        try:
            opened.append(_SINKS[name](config, first_step))
        except Exception as problem:
            logger.warning("%s cannot be opened and gets nothing; the run goes on with metrics.jsonl: %s", name, problem)
    return opened
