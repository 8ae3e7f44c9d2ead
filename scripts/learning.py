"""Learns a benchmark from scratch and proves it in closed loop: scripted demonstrations -> tiny model -> success rate, with ablations.

python scripts/learning.py --benchmark libero_object --output_dir runs/learning_object
python scripts/learning.py --benchmark libero_spatial --variants "[l1,diffusion,film]" --num_parallel 3

A thin driver like scripts/demo.py: it prints and runs commands that could be typed one by one, and leaves learning.md and learning.json.
Training reads the recordings as they are, so that nothing here needs TensorFlow. What is there already is not made again: the same
command goes on where it was interrupted. Made for one GPU and 16 cores.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prismatic.cli import parse_flags, run_script
from prismatic.interrupts import STOPPED
from prismatic.models.sizes import TinySizes
from prismatic.stages import keep_settings, read_note, seen_from_root
from prismatic.vla.aside import put_aside
from prismatic.vla.constants import near_names

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class BenchmarkEntry:
    """Where demonstrations come from and what evaluates."""

    dataset_name: str
    num_cameras: int
    record: tuple[str, ...]  # command without flags that every benchmark has
    evaluate: tuple[str, ...]
    controls: str  # what remains if the policy sees nothing, or is told something else
    size_flag: str  # of the evaluation: pixels of the rendered images
    num_demonstrations: int  # per task, unless the user says how many
    most_trials: int | None = None  # per task, where the initial states are fixed


def _libero(suite: str) -> BenchmarkEntry:
    record = ("experiments/robot/libero/record_demos.py", "--task_suite_name", suite, "--env_img_res")
    evaluate = ("experiments/robot/libero/run_libero_eval.py", "--task_suite_name", suite, "--fast_rendering", "True")
    return BenchmarkEntry(f"{suite}_scripted", 2, record, evaluate, "none,grey,wrong_instruction", "--env_img_res", 30, 50)


BENCHMARKS = {
    "libero_object": _libero("libero_object"),
    "libero_spatial": _libero("libero_spatial"),
    "aloha_transfer_cube": BenchmarkEntry(
        dataset_name="aloha_sim_transfer_cube_scripted",
        num_cameras=3,
        record=(
            *("experiments/robot/aloha/record_demos.py", "--task_names", "[transfer_cube]"),
            *("--noise_scale", "0.02", "--noise_correlation", "0.9", "--image_size"),
        ),
        evaluate=("experiments/robot/aloha/run_aloha_sim_eval.py", "--task_names", "[transfer_cube]"),
        controls="none,grey",  # there is one instruction
        size_flag="--image_size",
        num_demonstrations=300,
    ),
    "metaworld": BenchmarkEntry(
        dataset_name="metaworld_demo",
        num_cameras=2,
        record=("experiments/robot/metaworld/record_demos.py", "--image_size"),
        evaluate=("experiments/robot/metaworld/run_metaworld_eval.py",),
        controls="none,grey,wrong_instruction",
        size_flag="--image_size",
        num_demonstrations=50,
    ),
}
# Variant -> how its training differs from "l1": L1 regression, every camera, proprioception.
VARIANTS: dict[str, dict[str, str]] = {
    "l1": {},
    "no_proprio": {"use_proprio": "False"},
    "no_wrist": {"num_images_in_input": "1"},
    "film": {"use_film": "True"},
    "diffusion": {"use_l1_regression": "False", "use_diffusion": "True"},
    "discrete": {"use_l1_regression": "False"},
}


# Flags that may change between calls with one folder: they say what is run, and how fast. More steps train on.
_FREE = {
    *("variants", "num_parallel", "output_dir", "num_trials_per_task", "num_control_trials_per_task", "max_steps", "max_train_s"),
    *("compile", "cuda_graphs", "frame_cache_dir", "num_loaders", "num_envs", "engine"),
}


@dataclass(frozen=True)
class LearningConfig(TinySizes):
    """The sizes of the model, and these."""

    # Sizes of the model
    image_size: int = 128  # pixels, also of the recordings
    vision_dim: int = 256
    vision_layers: int = 4
    vision_heads: int = 4
    llm_dim: int = 384
    llm_layers: int = 6
    llm_heads: int = 6
    llm_mlp_dim: int = 1024

    # What is learnt
    benchmark: str = "libero_object"  # libero_object, libero_spatial, aloha_transfer_cube or metaworld
    task_names: list[str] = field(default_factory=list)  # names or numbers; all of the suite by default
    variants: list[str] = field(default_factory=lambda: ["l1"])  # l1, no_proprio, no_wrist, film, diffusion, discrete
    num_parallel: int = 1  # variants that are trained and evaluated beside each other
    output_dir: Path = Path("runs/learning")  # data/, base/, one folder per variant, learning.md, learning.json
    num_demonstrations: int | None = None  # per task; by default 30 for LIBERO, 300 for aloha_transfer_cube, 50 for metaworld
    num_trials_per_task: int = 50  # evaluation episodes per task; LIBERO has 50 fixed initial states
    num_control_trials_per_task: int = 10  # episodes with grey images and with a wrong instruction, of the first variant
    max_steps: int = 5000  # optimizer steps
    batch_size: int = 64  # samples per step
    learning_rate: float = 3e-4  # of AdamW
    max_train_s: float | None = None  # a training that takes longer stops; a sixth of its steps at the decayed rate follows
    compile: str = "False"  # see vla-scripts/finetune.py; recorded steps of a small model gain little by it, and it takes a minute
    cuda_graphs: str = "auto"  # see vla-scripts/finetune.py
    frame_cache_dir: Path | None = None  # where resized frames are kept; in output_dir by default
    num_loaders: int = 8  # processes that load data, per training
    num_envs: int = 16  # simulator processes, for recording and for each evaluation
    engine: str = "graph"  # of the evaluation, see prismatic/policy/inference/engine.py; on a CPU the plain one is taken
    seed: int = 7  # of everything

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"--benchmark is {self.benchmark!r}; {near_names(self.benchmark, BENCHMARKS)}")
        for name in self.variants:
            if name not in VARIANTS:
                raise ValueError(f"--variants names {name!r}; {near_names(name, VARIANTS)}")
        if not self.variants:
            raise ValueError(f"--variants is empty; name some of {', '.join(VARIANTS)}")
        if self.task_names and self.benchmark == "aloha_transfer_cube":
            raise ValueError("--task_names is for suites; aloha_transfer_cube is one task")
        counts = ("num_parallel", "num_demonstrations", "num_trials_per_task", "num_control_trials_per_task", "max_steps", "num_envs")
        for name in counts:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        most = max(self.num_trials_per_task, self.num_control_trials_per_task)
        if self.entry.most_trials is not None and most > self.entry.most_trials:  # told before hours of training
            raise ValueError(f"{most} trials are wanted; {self.benchmark} has {self.entry.most_trials} fixed initial states a task")

    @property
    def entry(self) -> BenchmarkEntry:
        return BENCHMARKS[self.benchmark]

    @property
    def demonstrations(self) -> int:
        return self.num_demonstrations or self.entry.num_demonstrations

    def train_dir(self, variant: str) -> Path:
        return self.output_dir / variant / "train"

    def trained_file(self, variant: str) -> Path:
        """Says for how many steps a training was meant that has ended, be it early."""
        return self.output_dir / variant / "trained.json"

    def report_dir(self, variant: str) -> Path:
        """Where the evaluation's report lands."""
        folder = self.output_dir / variant / "eval"
        return folder / f"EVAL-{self.benchmark}-train" if self.benchmark.startswith("libero") else folder


def shared_commands(config: LearningConfig) -> dict[str, list[str]]:
    """Stage -> command for what all variants use; stages that are done are left out."""
    entry, seed = config.entry, str(config.seed)
    record = ["python", *entry.record, str(config.image_size), "--output_dir", str(config.output_dir / "data" / entry.dataset_name)]
    record += [*_tasks(config), "--num_episodes", str(config.demonstrations), "--num_workers", str(config.num_envs), "--seed", seed]
    base = ["python", "scripts/make_base.py", "--output_dir", str(config.output_dir / "base"), "--seed", seed]
    for item in dataclasses.fields(TinySizes):
        base += [f"--{item.name}", str(getattr(config, item.name))]
    stages = {"record demonstrations": record}  # which skips what is there
    return stages if (config.output_dir / "base").is_dir() else stages | {"make a base": base}


def train_command(config: LearningConfig, variant: str, num_steps_before_decay: int | None = None) -> list[str]:
    """Trains a variant, or goes on with it; the last seventh of the steps at the decayed learning rate."""
    max_steps, before_decay = config.max_steps, config.max_steps * 6 // 7
    if num_steps_before_decay is not None:
        max_steps, before_decay = num_steps_before_decay * 7 // 6 + 1, num_steps_before_decay
    flags = {
        "vla_path": str(config.output_dir / "base"),
        "data_root_dir": str(config.output_dir / "data"),
        "dataset_name": config.entry.dataset_name,
        "run_root_dir": str(config.output_dir / variant),
        "run_id_override": "train",
        "save_latest_checkpoint_only": "True",
        "auto_resume": "True",
        "use_l1_regression": "True",
        "use_lora": "False",
        "image_aug": "False",  # a fixed simulated camera needs none
        "num_images_in_input": str(config.entry.num_cameras),
        "use_proprio": "True",
        "batch_size": str(config.batch_size),
        "learning_rate": str(config.learning_rate),
        "lr_warmup_steps": str(max(1, config.max_steps // 30)),
        "num_steps_before_decay": str(before_decay),
        "max_grad_norm": "1.0",
        "max_steps": str(max_steps),
        "num_workers": str(config.num_loaders),
        "frame_cache_dir": str(config.frame_cache_dir or config.output_dir / "frames"),
        "compile": config.compile,
        "cuda_graphs": config.cuda_graphs,
        "wandb_log_freq": "100",
        "seed": str(config.seed),
    } | VARIANTS[variant]
    return ["python", "vla-scripts/finetune.py", *(part for name, value in flags.items() for part in (f"--{name}", value))]


def check_training(config: LearningConfig) -> None:
    """Accepts flags that the trainer takes, too: it would refuse them after hours of recording.

    Raises:
        ValueError: it does not; the message names the flag.
    """
    from prismatic.training.config import FinetuneConfig

    for variant in config.variants:
        parse_flags(FinetuneConfig, train_command(config, variant)[2:])


def evaluate_command(config: LearningConfig, variant: str) -> list[str]:
    """Plays a variant's episodes; of the first also the controls."""
    entry = config.entry
    command = ["python", *entry.evaluate, "--pretrained_checkpoint", str(config.train_dir(variant)), *_tasks(config)]
    command += [entry.size_flag, str(config.image_size), "--num_trials_per_task", str(config.num_trials_per_task)]
    if variant == config.variants[0]:
        controls = entry.controls.removesuffix(",wrong_instruction") if len(config.task_names) == 1 else entry.controls  # it takes two
        command += ["--control", controls, "--num_control_trials_per_task", str(config.num_control_trials_per_task)]
    command += ["--num_envs", str(config.num_envs), "--batch_size", str(min(8, config.num_envs))]
    command += ["--engine", config.engine if _has_gpu() else "eager"]
    return [*command, "--num_pictures", "1", "--local_log_dir", str(config.output_dir / variant / "eval"), "--seed", str(config.seed)]


def _tasks(config: LearningConfig) -> list[str]:
    return ["--task_names", json.dumps(config.task_names)] if config.task_names else []


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class Stages:
    """Runs commands and keeps what each took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done = folder, list[dict[str, Any]]()
        self._lock = threading.Lock()

    def run(self, stage: str, command: list[str], max_seconds: float | None = None) -> bool:
        """Runs one command, its output in logs/<stage>.log; False if it was asked to save and stop after `max_seconds`.

        Raises:
            ValueError: it failed; the end of its output is in the message.
        """
        log = self.folder / "logs" / f"{stage.replace(' ', '_')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"=== {stage}\n$ {shlex.join(command)}", flush=True)
        started = time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen([sys.executable, *command[1:]], cwd=ROOT, stdout=file, stderr=file)
            try:
                code = process.wait(max_seconds)
            except subprocess.TimeoutExpired:
                process.terminate()
                code = process.wait()
        is_stopped = max_seconds is not None and code == STOPPED
        seconds = round(time.monotonic() - started, 1)
        print(f"=== {stage}: {seconds} s", flush=True)
        if code and not is_stopped:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ValueError(f"the stage {stage!r} failed after {seconds} s; the command alone:\n  {shlex.join(command)}\n{end}")
        with self._lock:
            self.done.append({"stage": stage, "command": shlex.join(command), "seconds": seconds})
        return not is_stopped


def main(config: LearningConfig) -> None:
    """Runs every stage; a variant that fails is reported after the others have ended.

    Raises:
        ValueError: a stage failed, or the folder holds policies of other settings.
    """
    config = dataclasses.replace(
        config,
        output_dir=seen_from_root(config.output_dir),
        frame_cache_dir=config.frame_cache_dir and seen_from_root(config.frame_cache_dir),
    )
    check_training(config)
    fixed = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in _FREE}
    fixed["num_demonstrations"] = config.demonstrations
    keep_settings(config.output_dir / "settings.json", fixed, f"choose another --output_dir, or remove {config.output_dir}")
    stages = Stages(config.output_dir)
    for stage, command in shared_commands(config).items():
        stages.run(stage, command)

    def learn(variant: str) -> None:
        train(config, variant, stages)
        stages.run(f"evaluate {variant}", evaluate_command(config, variant))
        write_results(config, stages.done)

    with ThreadPoolExecutor(config.num_parallel) as pool:
        futures = [pool.submit(learn, variant) for variant in config.variants]
    for future in futures:
        future.result()
    print(f"\n{(config.output_dir / 'learning.md').read_text()}")


def train(config: LearningConfig, variant: str, stages: Stages) -> None:
    """Trains a variant unless that has been done; one that runs out of time ends at the decayed learning rate.

    Raises:
        ValueError: it was trained for more steps than are wanted now.
    """
    file = config.trained_file(variant)
    trained = _steps_said(file) if file.is_file() else 0
    if trained > config.max_steps:
        raise ValueError(f"--max_steps is {config.max_steps}, {variant} was trained for {trained}; choose another --output_dir")
    if trained == config.max_steps:
        return
    if (evaluation := config.output_dir / variant / "eval").is_dir():  # of fewer steps; another policy's episodes do not go on
        print(f"=== the evaluation after {trained} steps is kept in {put_aside(evaluation)}", flush=True)
    if not stages.run(f"train {variant}", train_command(config, variant), config.max_train_s):
        stages.run(f"finish {variant}", train_command(config, variant, _trained_steps(config, variant)))
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"max_steps": config.max_steps}) + "\n")
    temporary.replace(file)  # it is read back: whole or absent


def _steps_said(file: Path) -> int:
    """For how many steps a training was meant that has ended."""
    remedy = "delete it: the training then goes on where it stopped"
    steps = read_note(file, remedy).get("max_steps")
    if not isinstance(steps, int):
        raise ValueError(f"{file} is damaged (it says max_steps {steps!r}, expected a number); {remedy}")
    return steps


def _trained_steps(config: LearningConfig, variant: str) -> int:
    from prismatic.training.run_folder import read_checkpoint

    checkpoint = read_checkpoint(config.train_dir(variant))
    assert checkpoint is not None, "a training that stopped has saved"
    return checkpoint.state.step


_writing = threading.Lock()


def write_results(config: LearningConfig, stages: list[dict[str, Any]]) -> None:
    """learning.json and learning.md of the variants that have been evaluated."""
    with _writing:
        rows = [row for variant in config.variants for row in _rows(config, variant)]
        settings = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
        content = {"settings": settings, "stages": stages, "rows": rows}
        (config.output_dir / "learning.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
        (config.output_dir / "learning.md").write_text(_table(config, rows))


def _rows(config: LearningConfig, variant: str) -> list[dict[str, Any]]:
    """One row per run of a variant's evaluation: without control, and under each."""
    from experiments.robot.evaluation.statistics import wilson_interval

    path = config.report_dir(variant) / "report.json"
    if not path.is_file():
        return []
    report, rows = read_note(path, "delete it: the evaluation then writes it again from its journal"), []
    for run, episodes in report["episodes"].items():
        successes = sum(episode["success"] for episode in episodes)
        tasks = {task: score["rate"] for task, score in report["summary"][run].items() if task != "mean"}
        interval = wilson_interval(successes, len(episodes))
        rows.append({"variant": variant, "control": run, "successes": successes, "trials": len(episodes), "interval_95": interval})
        rows[-1] |= {"tasks": tasks, "crashed": sum(episode.get("error") is not None for episode in episodes)}
    return rows


def _table(config: LearningConfig, rows: list[dict[str, Any]]) -> str:
    steps = f"at most {config.max_steps} steps of {config.batch_size}"
    lines = [f"{config.benchmark}, {config.demonstrations} demonstrations a task, {steps}", ""]
    lines += ["| variant | control | success | 95 % interval |", "|---|---|---|---|"]
    for row in rows:
        low, high = (round(100 * bound) for bound in row["interval_95"])
        share = f"{100 * row['successes'] / row['trials']:.0f} % ({row['successes']}/{row['trials']})"
        lines.append(f"| {row['variant']} | {row['control']} | {share} | {low} - {high} % |")
    crashed = [f"{row['variant']}, {row['control']}: {row['crashed']} episodes" for row in rows if row["crashed"]]
    if crashed:
        lines += ["", f"Crashed in the simulator, count as failures, and are played again by the same command: {'; '.join(crashed)}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(main, LearningConfig)
