"""README.md and README_EN.md say the same; every documented command has flags that exist."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from prismatic.commands import convert_aloha, convert_libero
from prismatic.commands.deploy import DeployConfig
from prismatic.commands.doctor import DoctorConfig
from prismatic.commands.inspect_dataset import InspectConfig
from prismatic.commands.merge import MergeConfig
from prismatic.commands.plot_run import PlotConfig
from prismatic.commands.push_to_hub import PushConfig
from prismatic.training.config import FinetuneConfig

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "README_EN.md")
GUIDES = ("ALOHA.md", "LIBERO.md")


def _commands(page: str) -> list[str]:
    """The shell commands of a page, each on one line."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def _module(path: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(Path(path).stem + "_documented", ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


ALOHA = "experiments/robot/aloha"
LIBERO = "experiments/robot/libero"
CONFIGS = {
    f"{ALOHA}/run_aloha_eval.py": lambda: _module(f"{ALOHA}/run_aloha_eval.py").AlohaEvalConfig,
    f"{ALOHA}/record_demos.py": lambda: _module(f"{ALOHA}/record_demos.py").RecordConfig,
    f"{ALOHA}/preprocess_split_aloha_data.py": lambda: _module(f"{ALOHA}/preprocess_split_aloha_data.py").PreprocessConfig,
    f"{LIBERO}/run_libero_eval.py": lambda: _module(f"{LIBERO}/run_libero_eval.py").EvalConfig,
    f"{LIBERO}/record_demos.py": lambda: _module(f"{LIBERO}/record_demos.py").RecordConfig,
    f"{LIBERO}/regenerate_libero_dataset.py": lambda: _module(f"{LIBERO}/regenerate_libero_dataset.py").RegenerateConfig,
    "scripts/convert/libero_hdf5_to_rlds.py": lambda: convert_libero.ConvertConfig,
    "scripts/compare_runs.py": lambda: _module("scripts/compare_runs.py").CompareConfig,
    "scripts/make_base.py": lambda: _module("scripts/make_base.py").MakeBaseConfig,
    "benchmarks/rollout.py": lambda: _module("benchmarks/rollout.py").RolloutBenchmarkConfig,
    "vla-scripts/deploy.py": lambda: DeployConfig,
    "vla-scripts/finetune.py": lambda: FinetuneConfig,
    "vla-scripts/merge_lora_weights_and_save.py": lambda: MergeConfig,
    "scripts/convert/aloha_hdf5_to_rlds.py": lambda: convert_aloha.ConvertConfig,
    "scripts/inspect_dataset.py": lambda: InspectConfig,
    "scripts/plot_run.py": lambda: PlotConfig,
    "scripts/doctor.py": lambda: DoctorConfig,
    "scripts/push_to_hub.py": lambda: PushConfig,
    "experiments/robot/metaworld/run_metaworld_eval.py": lambda: _module("experiments/robot/metaworld/run_metaworld_eval.py").EvalConfig,
}


def test_both_languages_have_the_same_headings_and_commands() -> None:
    levels = [[len(mark) for mark in re.findall(r"^(#+) ", (ROOT / page).read_text(), re.M)] for page in PAGES]
    assert levels[0] == levels[1]
    assert _commands(PAGES[0]) == _commands(PAGES[1]) != []


@pytest.mark.parametrize("command", [command for page in ("README_EN.md", *GUIDES) for command in _commands(page)])
def test_documented_commands_exist_with_their_flags(command: str) -> None:
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.M)
        return
    script = next((word for word in command.split() if word.endswith(".py")), None)
    assert script in CONFIGS, f"no configuration known for {command!r}"
    known = {item.name for item in fields(CONFIGS[script]())} | {"config_path"}  # of every script
    used = {word[2:] for word in command[command.index(script) :].split() if word.startswith("--")}
    assert used <= known, f"{script} has no flag {sorted(used - known)}"


@pytest.mark.parametrize("page", [*PAGES, *GUIDES])
def test_links_and_pictures_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert (ROOT / target).exists(), f"{page} links to {target}"
