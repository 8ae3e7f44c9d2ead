"""How every script starts: flags -> dataclass, log lines that can be read, one line instead of a stack trace for a user's mistake."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

USER_ERROR = 2  # exit status

logger = logging.getLogger(__name__)


def run_script(main: Callable[[T], None], config_class: type[T]) -> None:
    """Calls `main` with a `config_class` made from the command line.

    A ValueError becomes one line on stderr and exit status 2; set PRISMATIC_DEBUG=1 to see where it came from.
    """
    _prepare_process()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        main(_parse(config_class))
    except ValueError as error:
        if os.environ.get("PRISMATIC_DEBUG"):
            raise
        logger.error("error: %s", error)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)


def _parse(config_class: type[T]) -> T:
    import draccus
    from draccus.utils import DecodingError, ParsingError

    try:
        return draccus.parse(config_class)
    except DecodingError as error:
        flag = "".join(f"--{name}: " for name in error.key_path)
        raise ValueError(f"{flag}{error.message}") from error
    except ParsingError as error:  # wraps what the dataclass itself refused
        raise ValueError(str(error.__cause__ or error)) from error


def _prepare_process() -> None:
    """Sets what libraries read when they are imported, and hides chatter that a user can do nothing about."""
    # Threads that wait for each other should soon sleep: with libgomp's long spinning, a training step on a CPU takes 10-20 times as
    # long as soon as another program uses a core; this costs 8 % on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
    for noisy in ("httpx", "absl", "matplotlib", "huggingface_hub", "OpenGL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for imported_by_peft in ("torchao", "torch.utils._pytree"):  # the first warns of every kernel built for another torch
        logging.getLogger(imported_by_peft).setLevel(logging.ERROR)
