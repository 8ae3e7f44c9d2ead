"""Whether the processes of a run were started alike: the same flags, the same code, the same base model.

Each node starts processes of its own, from a command, an installation and disks of its own. What differs there would not stop a run:
gradients of any batches can be averaged, so that another seed or learning rate on one node would be found in the results, if ever; and
where one process takes more steps than the others, all of them wait for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from prismatic.cli_sections import plain_values
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import Ranks, gather_objects, raise_together

PACKAGES = ("torch", "transformers", "peft", "numpy")
# Where things lie may differ from node to node; what lies there is compared by itself. And no number depends on who loads samples.
_OF_A_NODE = (
    "vla_path", "data_root_dir", "run_root_dir", "frame_cache_dir", "exclude_episodes", "episode_weights", "paraphrases", "num_workers",
)  # fmt: skip
_SHOWN = 3


def check_started_alike(config: FinetuneConfig, ranks: Ranks) -> None:
    """Returns if all processes have the same flags and the same code.

    Raises:
        ValueError: one has others than the first process; the message names them.
    """
    flags = {name: value for name, value in plain_values(config).items() if name not in _OF_A_NODE}
    found = gather_objects((flags, _code(), {name: version(name) for name in PACKAGES}), ranks)
    for number, (other, code, versions) in enumerate(found):
        first, first_code, first_versions = found[0]
        odd = [f"--{name} {other[name]!r} instead of {first[name]!r}" for name in first if first[name] != other[name]]
        told = f"was started with {_some(odd)} of process 0; start all processes with the same flags" if odd else None
        odd = [f"{name} {versions[name]} instead of {first_versions[name]}" for name in PACKAGES if versions[name] != first_versions[name]]
        told = told or (f"has {_some(odd)} of process 0; install the same versions on every node" if odd else None)
        odd = sorted(name for name in first_code.keys() | code.keys() if first_code.get(name) != code.get(name))
        told = told or (f"runs other code than process 0: {_some(odd)}; install the same version on every node" if odd else None)
        raise_together(ValueError(f"process {number} {told}") if told else None, ranks)


def check_same_base(described: Mapping[str, str], ranks: Ranks) -> None:
    """Returns if all processes found the same base model; `described` is what `describe_base` says of this one's.

    Raises:
        ValueError: one found another model than the first process.
    """
    first, *others = gather_objects(dict(described), ranks)
    for number, other in enumerate(others, start=1):
        odd = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        error = ValueError(f"process {number} has another base model than process 0: {_some(odd)}; copy --vla_path to every node")
        raise_together(error if odd else None, ranks)


def _code() -> dict[str, int]:
    """File of this package -> checksum."""
    root = Path(__file__).parents[1]
    return {path.relative_to(root.parent).as_posix(): zlib.crc32(path.read_bytes()) for path in root.rglob("*.py")}


def _some(odd: list[str]) -> str:
    """The first of them."""
    rest = len(odd) - _SHOWN
    return ", ".join(odd[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
