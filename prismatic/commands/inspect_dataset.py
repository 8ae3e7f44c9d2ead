"""Looks at recorded data before a model does.

python scripts/inspect_dataset.py --dataset_name X --data_root_dir D      an HTML page with pictures, histograms and warnings
python scripts/inspect_dataset.py --dataset_name X ... --checkpoint C     also how much a policy disagrees with each episode
python scripts/inspect_dataset.py --suggest FOLDER                        a ready registry entry for an unregistered folder
python scripts/inspect_dataset.py --caches [--remove]                     indexes and frame caches, and which of them nothing uses
"""

from __future__ import annotations

import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic.cli import run_script
from prismatic.vla.constants import file_part
from prismatic.vla.datasets.rlds.oxe.materialize import resolve_datasets
from prismatic.vla.datasets.sources import find_dataset_folder

if TYPE_CHECKING:
    from prismatic.vla.datasets.inspection.view import DatasetView

_NUM_IN_RERUN = 10  # episodes


@dataclass
class InspectConfig:
    """Which data to look at."""

    dataset_name: str | None = None  # a data set (or name:version) or a mixture
    data_root_dir: Path = Path("datasets/rlds")  # folder that holds the data sets
    output: Path | None = None  # the page; None: runs/inspection/<dataset_name>.html
    checkpoint: Path | None = None  # a policy, whose disagreement with each episode counts in the scores, too
    rerun: Path | None = None  # write the episodes with the worst scores into this file for Rerun's viewer
    robot_platform: str | None = None  # overrides the entry's; a name of prismatic/vla/constants.py
    stride: str | None = None  # use every n-th recorded step, as in training; None: as the entry says
    suggest: str | None = None  # an unregistered folder, or True for that of --dataset_name: print an entry instead of the page
    control_hz: float | None = None  # --suggest only: actions per second of the robot; None: as recorded, else 25

    caches: bool = False  # list caches instead: the user's, those in --data_root_dir and those in --frame_cache_dir
    frame_cache_dir: Path | None = None  # --caches only: the folder that training was given
    remove: bool = False  # --caches only: delete those that nothing uses

    def __post_init__(self) -> None:
        if (self.remove or self.frame_cache_dir is not None) and not self.caches:
            raise ValueError("--remove and --frame_cache_dir belong to --caches; add it")
        if self.caches:
            return
        if self.suggest in (None, "False", "True") and not self.dataset_name:
            raise ValueError("--dataset_name is missing: name a data set to look at, or pass --suggest FOLDER for an unregistered one")
        if self.output is not None and self.output.is_dir():
            raise ValueError(f"--output {self.output} is a folder; name the page in it, such as {self.output / 'page.html'}")
        if self.control_hz is not None and not 0 < self.control_hz < math.inf:
            raise ValueError(f"--control_hz is {self.control_hz}; it must be above 0 and finite, such as 25")


def main(config: InspectConfig) -> None:
    """Writes the page and prints the warnings, or prints an entry, or the caches."""
    if config.caches:
        _list_caches(config)
        return
    if config.suggest not in (None, "False"):
        _print_suggestion(config)
        return
    from prismatic.vla.datasets.inspection.page import inspect_dataset, write_page
    from prismatic.vla.datasets.inspection.rerun_file import check_rerun, write_rerun
    from prismatic.vla.datasets.inspection.scores import write_weights

    if config.rerun is not None:
        check_rerun()
    started = time.monotonic()
    assert config.dataset_name is not None
    specs = resolve_datasets(config.dataset_name, config.data_root_dir, config.robot_platform, stride=config.stride)
    ask_policy = None if config.checkpoint is None else _policy_asker(config.checkpoint)
    inspections = [inspect_dataset(spec, ask_policy) for spec in specs]
    output = config.output or Path("runs/inspection") / f"{file_part(config.dataset_name).replace(':', '_')}.html"
    write_page(inspections, config.dataset_name, shlex.join(["python", *sys.argv]), output, started)
    for inspection in inspections:
        for finding in inspection.findings:
            print(f"- {inspection.view.name}: {finding}")
    weights = output.with_suffix(".weights.json")
    num_doubtful = write_weights({item.view.name: (item.view, item.scores) for item in inspections}, weights)
    if config.rerun is not None:
        write_rerun(inspections[0].view, [item.episode for item in inspections[0].scores[:_NUM_IN_RERUN]], config.rerun)
        print(f"wrote {config.rerun}; look at it with: rerun {config.rerun}")
    if not any(inspection.findings for inspection in inspections):
        print("nothing looks wrong in the numbers and the sampled pictures; look at the page all the same")
    doubtful = f"{num_doubtful} doubtful episodes have the weight 0 in {weights}" if num_doubtful else "no episode is doubtful"
    print(f"wrote {output} in {time.monotonic() - started:.1f} s; {doubtful}")


def _policy_asker(checkpoint: Path) -> Callable[[DatasetView], Mapping[int, Mapping[str, float]]]:
    """What asks the policy of `checkpoint` about the episodes of a data set, in the units of that data set if it has several."""
    from prismatic.policy.checkpoint.loading import resolve_folder
    from prismatic.policy.checkpoint.told import load_statistics
    from prismatic.policy.disagreement import episode_disagreement  # imports torch
    from prismatic.policy.policy import Policy

    known = list(load_statistics(resolve_folder(checkpoint)))
    policy = Policy.from_pretrained(checkpoint, unnorm_key=known[0] if known else None)

    def ask(view: DatasetView) -> Mapping[int, Mapping[str, float]]:
        try:
            own = policy if len(known) == 1 else policy.with_unnorm_key(view.name)
            return episode_disagreement(own, view.index, view.episodes)
        except ValueError as error:
            raise ValueError(
                f"--checkpoint {checkpoint} cannot be asked about data set {view.name}: {error}. Pass a policy of this robot and its "
                "cameras, or leave the flag out"
            ) from error

    return ask


def _list_caches(config: InspectConfig) -> None:
    """Prints every cache with its size; deletes those that nothing uses if asked to."""
    from prismatic.vla.datasets.caches import find_caches

    logging.disable(logging.INFO)
    frame_cache_dir = None if config.frame_cache_dir is None else config.frame_cache_dir.expanduser()
    items = [(item, item.num_bytes) for item in find_caches(config.data_root_dir.expanduser(), frame_cache_dir)]
    for item, num_bytes in items:
        print(f"{num_bytes / 1e6:12,.1f} MB  {item.what}: {item.verdict}\n{'':16}{item.path}")
    unused = [(item, num_bytes) for item, num_bytes in items if not item.is_used]
    size = f"{sum(num_bytes for _, num_bytes in unused) / 1e6:,.1f} MB"
    if config.remove:
        for item, _ in unused:
            item.remove()
        print(f"removed {len(unused)} of {len(items)} caches, {size}")
    else:
        print(f"nothing uses {len(unused)} of {len(items)} caches, {size}{'; --remove deletes them' if unused else ''}")


def _print_suggestion(config: InspectConfig) -> None:
    from prismatic.vla.datasets.suggestion.suggest import suggest_entry

    logging.disable(logging.INFO)
    if config.suggest == "True":
        assert config.dataset_name is not None
        root, name = config.data_root_dir, config.dataset_name
    else:
        folder = Path(str(config.suggest)).expanduser().resolve()
        if not folder.is_dir():
            raise ValueError(f"--suggest {config.suggest} is not a folder; pass that of a data set, such as data/my_robot")
        is_version = folder.name.count(".") == 2 and folder.name.replace(".", "").isdigit()
        root, name = (folder.parents[1], f"{folder.parent.name}:{folder.name}") if is_version else (folder.parent, folder.name)
    print(suggest_entry(find_dataset_folder(root, name), name.partition(":")[0], config.control_hz).text())


def run() -> None:
    """Entry point."""
    run_script(main, InspectConfig)
