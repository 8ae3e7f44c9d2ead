"""scripts/demo.py: its commands exist with their flags; LoRA on the pretrained base, or every weight from scratch."""

from __future__ import annotations

from pathlib import Path

import pytest
from script_modules import ROOT, load_script

from experiments.robot.metaworld.record_demos import RecordConfig
from experiments.robot.metaworld.run_metaworld_eval import EvalConfig
from prismatic.cli_sections import flag_names
from prismatic.commands.convert_aloha import ConvertConfig
from prismatic.training.config import FinetuneConfig

demo = load_script("scripts/demo.py")
CONFIGS = {
    "record_demos.py": RecordConfig,
    "aloha_hdf5_to_rlds.py": ConvertConfig,
    "make_base.py": load_script("scripts/make_base.py").MakeBaseConfig,
    "finetune.py": FinetuneConfig,
    "run_metaworld_eval.py": EvalConfig,
}


def _flags(command: list[str]) -> dict[str, str]:
    after = next(index for index, word in enumerate(command) if word.endswith(".py")) + 1
    return {name[2:]: value for name, value in zip(command[after::2], command[after + 1 :: 2], strict=True)}


@pytest.mark.parametrize("from_scratch", [False, True])
def test_every_command_has_flags_that_exist(from_scratch: bool) -> None:
    for command in demo.demo_commands(demo.DemoConfig(from_scratch=from_scratch)).values():
        script = next(word for word in command if word.endswith(".py"))
        known = set(flag_names(CONFIGS[Path(script).name]))
        assert set(_flags(command)) <= known, f"{script} has no flag {sorted(set(_flags(command)) - known)}"


@pytest.mark.parametrize("script", ["demo", "aloha_smoke", "libero_smoke"])
def test_a_folder_of_other_things_is_not_emptied(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--output_dir runs, or a dot, and everything in there was gone."""

    class EndedHereError(Exception):
        pass

    def end(*arguments: object, **more: object) -> None:
        raise EndedHereError

    module = load_script(f"scripts/{script}.py")
    for name in ("run_stage", "run"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, end)
    monkeypatch.setattr("subprocess.run", end)
    folder = tmp_path / "runs"
    (folder / "my_run").mkdir(parents=True)
    config = getattr(module, "DemoConfig" if script == "demo" else "SmokeConfig")(output_dir=folder)
    with pytest.raises(ValueError, match=rf"--output_dir {folder} is emptied first, and holds what no earlier call has made \(my_run\)"):
        module.main(config)
    assert (folder / "my_run").is_dir()
    (folder / ("stages.json" if script == "demo" else "untrained")).touch()  # as an earlier call leaves it
    with pytest.raises(EndedHereError):
        module.main(config)
    assert not (folder / "my_run").exists()


def test_lora_begins_with_the_shipped_base() -> None:
    commands = demo.demo_commands(demo.DemoConfig())
    flags = _flags(commands["fine-tune"])
    assert (ROOT / flags["vla_path"] / "model.safetensors").exists()
    assert flags["use_lora"] == "True"
    assert "make a tiny base" not in commands


def test_from_scratch_trains_every_random_weight() -> None:
    commands = demo.demo_commands(demo.DemoConfig(from_scratch=True))
    flags = _flags(commands["fine-tune"])
    assert flags["vla_path"] == _flags(commands["make a tiny base"])["output_dir"]
    assert flags["use_lora"] == "False"


def test_the_small_qwen_form_is_trained_from_scratch() -> None:
    commands = demo.demo_commands(demo.DemoConfig(from_scratch=True, backbone="qwen"))
    assert _flags(commands["make a tiny base"])["backbone"] == "qwen"
    for wrong, message in (({}, "pass --from_scratch True"), ({"backbone": "gemma"}, "choose one of llama, qwen")):
        with pytest.raises(ValueError, match=message):
            demo.DemoConfig(**{"backbone": "qwen", **wrong})


def test_steps_are_what_is_asked_for() -> None:
    flags = _flags(demo.demo_commands(demo.DemoConfig(max_steps=10))["fine-tune"])
    assert (flags["max_steps"], flags["num_steps_before_decay"]) == ("10", "8")
    with pytest.raises(ValueError, match=r"--max_steps is 0; it must be at least 1"):
        demo.DemoConfig(max_steps=0)


def test_the_figure_from_scratch_is_that_of_the_pages() -> None:
    figure = demo.FROM_SCRATCH.split(";")[0]  # 82 % (99/120
    for page in ("README.md", "README_EN.md", "benchmarks/README.md"):
        assert f"{figure})" in (ROOT / page).read_text(), page
