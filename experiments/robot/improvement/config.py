"""The flags of scripts/improve.py, and where the files of an improvement lie.

<output_dir>/settings.json            what a later call must share
<output_dir>/start/eval/              evaluation of the policy that it begins with
<output_dir>/round_2/collected/       rollouts of the policy before, with what the method teaches
<output_dir>/round_2/manifest.json    demonstrations and the rollouts of all rounds: what this round trains on
<output_dir>/round_2/train/           the round's policy
<output_dir>/round_2/eval/            its evaluation, on the starts of all rounds
<output_dir>/final/{start,round_2}/   evaluations on fresh starts, of the first policy and the best
<output_dir>/improve.{md,json,png}    table and picture
<phase>/done.json                     that phase is complete: its command and seconds
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.robot.evaluation.actors import NO_HELP, RELABEL, TAKEOVER
from experiments.robot.evaluation.benchmarks import check_simulator
from prismatic.cli import split_flags
from prismatic.vla.constants import near_names

# Method -> how the expert helps in rollouts, and the weights of the rollouts beside those that their manifest says.
METHODS: dict[str, tuple[str, dict[str, float]]] = {
    "takeover": (TAKEOVER, {}),
    "relabel": (RELABEL, {}),
    "filtered": (NO_HELP, {"not success": 0.0}),
}
# Flags that may change between calls: what is there stays true.
_FREE = ("num_rounds", "patience", "num_envs", "num_final_trials", "output_dir")
# Flags of the trainer that --finetune_flags may not have: what a round sets, and what the improvement has a flag for.
_OF_ROUNDS = ("vla_path", "dataset_name", "run_root_dir", "run_id_override", "save_latest_checkpoint_only", "auto_resume", "resume")
_OWN_TOO = ("max_steps", "batch_size", "learning_rate", "seed")
FRESH = 1000  # from the seed of the evaluations of rounds to that of the last ones


@dataclass(frozen=True)
class ImproveConfig:
    """Flags of an improvement in rounds."""

    # Policy and data
    pretrained_checkpoint: str = ""  # the policy to begin with, a folder; each round continues the one before, heads kept
    demonstrations: list[str] = field(default_factory=list)  # what it was trained on: folders of recordings, or manifests
    method: str = "takeover"  # takeover: the expert acts where the policy drifts; relabel: it says what it would do; filtered: successes
    output_dir: Path = Path("runs/improve")  # one folder per round, improve.md, improve.json, improve.png

    # Simulator
    simulator: str = "metaworld"  # metaworld, aloha, libero
    task_names: list[str] = field(default_factory=list)  # those of the simulator's evaluation script by default
    task_suite_name: str | None = None  # libero: libero_spatial by default
    image_size: int | None = None  # pixels, as in the demonstrations; as in the simulator's evaluation by default
    fast_rendering: bool | None = None  # likewise
    num_envs: int = 2  # simulator processes
    eval_batch_size: int = 1  # observations per policy call
    engine: str = "auto"  # see prismatic/policy/inference/engine.py

    # Rounds
    num_rounds: int = 3  # at most
    patience: int = 1  # rounds in a row that do not help before it stops
    num_rollouts: int = 20  # per task and round
    num_trials: int = 40  # evaluation episodes per task after every round, on the same starts
    num_final_trials: int = 40  # per task, of the first and the best policy, on fresh starts
    seed: int = 7  # of everything

    # Fine-tuning of a round
    max_steps: int = 300  # optimizer steps
    batch_size: int = 16  # samples per step
    learning_rate: float = 5e-4  # of AdamW; a tenth of it in the last fifth of the steps
    finetune_flags: str = ""  # more flags of vla-scripts/finetune.py, such as "--lora_rank 8 --frame_cache_dir cache"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"--method is {self.method!r}; {near_names(self.method, METHODS)}")
        check_simulator(self.simulator, {"task_suite_name": self.task_suite_name})
        if not self.pretrained_checkpoint:
            raise ValueError("--pretrained_checkpoint is missing; pass the folder of the policy to improve")
        if not self.demonstrations:
            raise ValueError("--demonstrations is empty; pass what the policy was trained on, such as '[runs/demo/recordings]'")
        for path in self.demonstrations:
            if not Path(path).expanduser().exists():
                raise ValueError(f"--demonstrations: {path} does not exist; pass folders of recordings, or manifests")
        counts = ("num_rounds", "patience", "num_rollouts", "num_trials", "num_final_trials", "max_steps", "num_envs", "eval_batch_size")
        for name in (*counts, "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; it must be at least 0")

    @property
    def folder(self) -> Path:
        """`output_dir`, as it means the same in every working directory."""
        return Path(os.path.abspath(self.output_dir.expanduser()))

    @property
    def start(self) -> str:
        """The policy that it begins with, likewise."""
        return os.path.abspath(os.path.expanduser(self.pretrained_checkpoint))

    @property
    def expert_help(self) -> str:
        return METHODS[self.method][0]

    @property
    def last_starts(self) -> str:
        """What the last evaluations are played on, in words: LIBERO has 50 fixed states, of which the rounds have seen the first."""
        return "the benchmark's fixed starts, those of the rounds among them" if self.simulator == "libero" else "fresh starts"

    def round_folder(self, number: int) -> Path:
        """Of round `number`, from 1; 0 is the start."""
        return self.folder / (f"round_{number}" if number else "start")

    def checkpoint(self, number: int) -> str:
        """The policy after round `number`; of round 0 the one that it begins with."""
        return str(self.round_folder(number) / "train") if number else self.start

    def simulator_flags(self) -> dict[str, Any]:
        """What evaluation and collection are told alike; what is not said keeps its default there."""
        given: dict[str, Any] = {"task_names": self.task_names or None, "task_suite_name": self.task_suite_name}
        given |= {"image_size": self.image_size, "fast_rendering": self.fast_rendering}
        always = {"num_envs": self.num_envs, "batch_size": self.eval_batch_size, "engine": self.engine}
        return {name: value for name, value in given.items() if value is not None} | always

    def own_finetune_flags(self) -> dict[str, str]:
        """`finetune_flags` as flag -> value.

        Raises:
            ValueError: they are no pairs of flag and value.
        """
        said = split_flags("--finetune_flags", self.finetune_flags)
        words = [part for word in said for part in (word.split("=", 1) if word.startswith("--") else [word])]
        names, values = words[::2], words[1::2]
        if len(names) != len(values) or not all(name.startswith("--") for name in names):
            raise ValueError(f"--finetune_flags is {self.finetune_flags!r}; give each flag its value: --lora_rank 8 --image_aug False")
        for name in names:
            if name[2:] in _OF_ROUNDS:
                raise ValueError(f"--finetune_flags has {name}, which each round sets by itself; leave it out")
            if name[2:] in _OWN_TOO:
                raise ValueError(f"--finetune_flags has {name}; this script has that flag itself, pass it without --finetune_flags")
        return {name[2:]: value for name, value in zip(names, values, strict=True)}

    def fixed(self) -> dict[str, Any]:
        """Flags that a later call must share."""
        said = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in _FREE}
        demonstrations = [os.path.abspath(os.path.expanduser(path)) for path in self.demonstrations]
        return said | {"pretrained_checkpoint": self.start, "demonstrations": demonstrations}
