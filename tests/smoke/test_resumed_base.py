"""A run that is started again elsewhere reads its base from where --vla_path says, if it is the same one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launching import Launcher
from safetensors.torch import load_file, save_file
from survival import contents, flags, make_workplace, rows, start_processes, wait_for

from prismatic.policy.checkpoint.base_files import describe_base

LORA_ALONE = ("--merge_lora_during_training", "False")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def launcher(workplace: Path) -> Launcher:
    return Launcher(workplace)


def begin(launcher: Launcher, workplace: Path, name: str, *more: str) -> Path:
    """A run of two steps from a scratch copy of the base; that copy's folder."""
    scratch = workplace / f"{name}_node1" / "base"
    shutil.copytree(workplace / "base", scratch)
    wait_for([launcher.start(flags(workplace, name, "--vla_path", str(scratch), "--max_steps", "2", *more))])
    return scratch


def go_on(workplace: Path, name: str, *more: str) -> list[str]:
    return flags(workplace, name, "--max_steps", "4", "--auto_resume", "True", *more)


def test_a_requeue_with_the_base_on_another_scratch_disk(launcher: Launcher, workplace: Path) -> None:
    old = begin(launcher, workplace, "requeued", *LORA_ALONE)
    new = workplace / "requeued_node2" / "base"
    shutil.move(old, new)
    (new / "README.md").write_text("not of the model")
    wait_for([launcher.start(go_on(workplace, "requeued", "--vla_path", str(new), *LORA_ALONE))])
    wait_for([launcher.start(flags(workplace, "whole", "--max_steps", "4", *LORA_ALONE))])
    assert rows(workplace / "requeued" / "run") == rows(workplace / "whole" / "run")
    ended = workplace / "requeued" / "run--4_chkpt"
    assert contents(ended) == contents(workplace / "whole" / "run--4_chkpt")
    assert json.loads((ended / "policy.json").read_text())["base_model"] == str(new)
    assert json.loads((ended / "trainer_state" / "state.json").read_text())["flags"]["vla_path"] == str(new)


def test_two_processes_take_the_new_place(launcher: Launcher, workplace: Path) -> None:
    old = begin(launcher, workplace, "two", "--batch_size", "4")
    new = workplace / "two_node2" / "base"
    shutil.move(old, new)
    wait_for(start_processes(launcher, go_on(workplace, "two", "--vla_path", str(new)), [workplace] * 2))
    assert [row["step"] for row in rows(workplace / "two" / "run")] == [1, 2, 3, 4]


def test_another_model_is_refused_and_what_differs_is_said(launcher: Launcher, workplace: Path) -> None:
    old = begin(launcher, workplace, "other")
    changed = workplace / "changed"
    shutil.copytree(old, changed)
    weights = changed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"image_sizes": [56, 56]}))
    run = launcher.start(go_on(workplace, "other", "--vla_path", str(changed)))
    assert run.wait() == 2, run.text()
    assert f"resuming: {changed} is not the model that the run in {workplace}/other/run--2_chkpt was started from ({old}): " in run.text()
    assert (
        "config.json differs; model.safetensors differs. " in run.text() or "model.safetensors differs; config.json differs. " in run.text()
    )
    assert "Traceback" not in run.text()
    assert "Loading weights" not in run.text()
    shutil.copy(changed / "model.safetensors", old / "model.safetensors")  # replaced in its own place, nothing said
    run = launcher.start(go_on(workplace, "other", "--vla_path", str(old)))
    assert run.wait() == 2, run.text()
    assert "model.safetensors differs. Pass --vla_path with a copy of that one" in run.text()


def test_a_model_that_differs_in_the_middle_of_its_file_is_another(tmp_path: Path, workplace: Path) -> None:
    """As one with merged adapters, whose embeddings and norms, first and last in the file, are those of its base."""
    one, other = (shutil.copytree(workplace / "base", tmp_path / name) for name in ("one", "other"))
    weights = load_file(other / "model.safetensors")
    changed = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight"))
    save_file({**weights, changed: weights[changed] + 0.01}, other / "model.safetensors", metadata={"format": "pt"})
    before, after = describe_base(one), describe_base(other)
    assert {name: text.split()[0] for name, text in before.items()} == {name: text.split()[0] for name, text in after.items()}
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]


def test_a_base_that_is_gone_is_named_with_the_flag_to_give(launcher: Launcher, workplace: Path) -> None:
    old = begin(launcher, workplace, "gone")
    shutil.rmtree(old)
    run = launcher.start(go_on(workplace, "gone", "--vla_path", str(old)))
    assert run.wait() == 2, run.text()
    assert f"resuming: {old}, which the run in {workplace}/gone/run--2_chkpt was started from, is not there any more" in run.text()
    assert "pass --vla_path with a copy of it" in run.text()


def test_a_checkpoint_of_the_run_as_vla_path_is_no_new_base(launcher: Launcher, workplace: Path) -> None:
    old = begin(launcher, workplace, "named")
    named = ("--vla_path", str(workplace / "named" / "run--2_chkpt"), "--resume", "True", "--max_steps", "4")
    wait_for([launcher.start(flags(workplace, "named", *named))])
    assert [row["step"] for row in rows(workplace / "named" / "run")] == [1, 2, 3, 4]
    adapter = json.loads((workplace / "named" / "run--4_chkpt" / "lora_adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(old)  # not the checkpoint, whose weights have the adapters already


def test_adapters_name_their_base_from_any_folder(launcher: Launcher, workplace: Path) -> None:
    wait_for([launcher.start(flags(workplace, "relative", "--vla_path", "base", "--max_steps", "1", *LORA_ALONE), folder=workplace)])
    folder = workplace / "relative" / "run--1_chkpt"
    assert json.loads((folder / "policy.json").read_text())["base_model"] == str(workplace / "base")
    adapter = json.loads((folder / "lora_adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(workplace / "base")


def test_a_run_that_continued_adapters_goes_on_by_the_same_command(launcher: Launcher, workplace: Path) -> None:
    """--vla_path names the checkpoint that was continued, the weights come from the base of its adapters."""
    begin(launcher, workplace, "first", *LORA_ALONE)
    continued = str(workplace / "first" / "run--2_chkpt")
    for last in ("2", "4"):
        more = ("--vla_path", continued, "--max_steps", last, "--auto_resume", "True", *LORA_ALONE)
        wait_for([launcher.start(flags(workplace, "second", *more))])
    assert [row["step"] for row in rows(workplace / "second" / "run")] == [1, 2, 3, 4]


def test_adapters_are_not_continued_over_another_base(launcher: Launcher, workplace: Path) -> None:
    old = begin(launcher, workplace, "replaced", *LORA_ALONE)
    weights = old / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    continued = workplace / "replaced" / "run--2_chkpt"
    run = launcher.start(flags(workplace, "after", "--vla_path", str(continued), *LORA_ALONE))
    assert run.wait() == 2, run.text()
    assert f"{old} is not the base model that the adapters in {continued} were trained over: model.safetensors differs" in run.text()
