"""scripts/learning.py: its commands exist with their flags, and say what a variant changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from script_modules import load_script

from prismatic.cli_sections import flag_names
from prismatic.stages import seen_from_root
from prismatic.training.config import FinetuneConfig

learning = load_script("scripts/learning.py")
CONFIGS = {
    "experiments/robot/libero/record_demos.py": "RecordConfig",
    "experiments/robot/aloha/record_demos.py": "RecordConfig",
    "experiments/robot/metaworld/record_demos.py": "RecordConfig",
    "experiments/robot/libero/run_libero_eval.py": "EvalConfig",
    "experiments/robot/aloha/run_aloha_sim_eval.py": "EvalConfig",
    "experiments/robot/metaworld/run_metaworld_eval.py": "EvalConfig",
    "scripts/make_base.py": "MakeBaseConfig",
}


@pytest.mark.parametrize("benchmark", list(learning.BENCHMARKS))
def test_every_command_has_flags_that_exist(benchmark: str, tmp_path: Path) -> None:
    config = learning.LearningConfig(benchmark=benchmark, output_dir=tmp_path, variants=list(learning.VARIANTS))
    commands = [*learning.shared_commands(config).values()]
    for variant in config.variants:
        commands += [learning.train_command(config, variant), learning.evaluate_command(config, variant)]
    for _, script, *rest in commands:
        known = set(flag_names(getattr(load_script(script), CONFIGS[script]) if script in CONFIGS else FinetuneConfig))
        used = {word[2:] for word in rest if word.startswith("--")}
        assert used
        assert used <= known, f"{script} has no flag {sorted(used - known)}"


def test_variants_differ_from_the_first_in_what_their_names_say(tmp_path: Path) -> None:
    config = learning.LearningConfig(output_dir=tmp_path)
    flags = {variant: _flags(learning.train_command(config, variant)[2:]) for variant in learning.VARIANTS}
    changed = {
        variant: {name for name, value in own.items() if value != flags["l1"].get(name) and name != "run_root_dir"}
        for variant, own in flags.items()
    }
    assert changed["no_wrist"] == {"num_images_in_input"}
    assert changed["no_proprio"] == {"use_proprio"}
    assert changed["film"] == {"use_film"}
    assert changed["diffusion"] == {"use_l1_regression", "use_diffusion"}
    assert changed["discrete"] == {"use_l1_regression"}


def _flags(words: list[str]) -> dict[str, str]:
    return {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_only_the_first_variant_is_evaluated_under_controls(tmp_path: Path) -> None:
    config = learning.LearningConfig(output_dir=tmp_path, variants=["film", "l1"])
    assert "--control" in learning.evaluate_command(config, "film")
    assert "--control" not in learning.evaluate_command(config, "l1")


def test_one_task_alone_is_not_given_a_wrong_instruction(tmp_path: Path) -> None:
    for names, controls in ((["0"], "none,grey"), (["0", "1"], "none,grey,wrong_instruction"), ([], "none,grey,wrong_instruction")):
        config = learning.LearningConfig(output_dir=tmp_path, task_names=names)
        assert _flags(learning.evaluate_command(config, "l1")[2:])["control"] == controls


def test_the_table_is_made_of_the_reports(tmp_path: Path) -> None:
    config = learning.LearningConfig(output_dir=tmp_path, benchmark="aloha_transfer_cube", variants=["l1", "film"])
    folder = config.report_dir("l1")
    folder.mkdir(parents=True)
    episodes = [{"success": number < 9} for number in range(10)]
    summary = {"none": {"transfer_cube": {"rate": 0.9}, "mean": {"rate": 0.9}}}
    (folder / "report.json").write_text(json.dumps({"episodes": {"none": episodes}, "summary": summary}))
    learning.write_results(config, [{"stage": "train l1", "seconds": 1.0}])
    table = (tmp_path / "learning.md").read_text()
    assert "| l1 | none | 90 % (9/10) | 60 - 98 % |" in table
    assert "film" not in table
    (row,) = json.loads((tmp_path / "learning.json").read_text())["rows"]
    assert (row["tasks"], row["crashed"]) == ({"transfer_cube": 0.9}, 0)
    assert "rashed" not in table
    episodes[9]["error"] = "the simulator died"
    (folder / "report.json").write_text(json.dumps({"episodes": {"none": episodes}, "summary": summary}))
    learning.write_results(config, [])
    assert "played again by the same command: l1, none: 1 episodes." in (tmp_path / "learning.md").read_text()


def test_a_mistake_names_the_flag() -> None:
    with pytest.raises(ValueError, match=r"--variants names 'filme'.*film"):
        learning.LearningConfig(variants=["filme"])
    with pytest.raises(ValueError, match=r"--benchmark is 'libero_objects'.*libero_object"):
        learning.LearningConfig(benchmark="libero_objects")
    with pytest.raises(ValueError, match="51 trials are wanted; libero_object has 50 fixed initial states a task"):
        learning.LearningConfig(num_trials_per_task=51)
    with pytest.raises(ValueError, match="aloha_transfer_cube is one task"):
        learning.LearningConfig(benchmark="aloha_transfer_cube", task_names=["insertion"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 60}, "--image_size is 60, no multiple of --patch_size 16; take 48 or 64"),
        ({"image_size": 8}, "--image_size is 8, no multiple of --patch_size 16; take 16"),
        ({"vision_heads": 3}, "--vision_dim is 256, no multiple of --vision_heads 3; take 255 or 258"),
        ({"patch_size": 0}, "--patch_size is 0; it must be at least 1"),
        ({"learning_rate": -1e-3}, "--learning_rate is -0.001; it must be above 0"),
        ({"batch_size": 0}, "--batch_size is 0; it must be at least 1"),
        ({"seed": -1}, "--seed is -1; it must be a whole number from 0"),
    ],
)
def test_sizes_and_flags_of_training_are_refused_before_anything_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    """The base and the training refused them, after hours of demonstrations, and the folder was bound to them."""

    def run(*arguments: Any) -> bool:
        raise AssertionError("nothing is to be run")

    monkeypatch.setattr(learning.Stages, "run", run)
    with pytest.raises(ValueError, match=message):
        learning.main(learning.LearningConfig(output_dir=tmp_path / "out", benchmark="metaworld", **changes))
    assert not (tmp_path / "out").exists()


def test_a_stage_that_takes_too_long_is_asked_to_stop(tmp_path: Path) -> None:
    stops = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('up', flush=True); time.sleep(60)"
    stages = learning.Stages(tmp_path)
    assert not stages.run("train l1", ["python", "-c", stops], max_seconds=3.0)
    assert stages.done[0]["seconds"] < 30
    assert (tmp_path / "logs" / "train_l1.log").read_text() == "up\n"


def test_a_stage_that_fails_shows_its_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'evaluate l1' failed(.|\n)*no such checkpoint"):
        learning.Stages(tmp_path).run("evaluate l1", ["python", "-c", "raise SystemExit('no such checkpoint')"])


def test_a_training_that_ran_out_of_time_ends_at_the_decayed_rate_and_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorded(learning.Stages):
        def run(self, stage: str, command: list[str], max_seconds: float | None = None) -> bool:
            flags = _flags(command[2:])
            runs.append((stage, int(flags["num_steps_before_decay"]), int(flags["max_steps"]), max_seconds))
            return max_seconds is None

    runs: list[tuple[str, int, int, float | None]] = []
    monkeypatch.setattr(learning, "_trained_steps", lambda config, variant: 300)
    config = learning.LearningConfig(output_dir=tmp_path, max_steps=700, max_train_s=100.0)
    (tmp_path / "l1").mkdir()
    learning.train(config, "l1", Recorded(tmp_path))
    assert runs == [("train l1", 600, 700, 100.0), ("finish l1", 300, 351, None)]
    learning.train(config, "l1", Recorded(tmp_path))
    assert len(runs) == 2
    learning.train(learning.LearningConfig(output_dir=tmp_path, max_steps=701, max_train_s=100.0), "l1", Recorded(tmp_path))
    assert len(runs) == 4
    with pytest.raises(ValueError, match="--max_steps is 300, l1 was trained for 701; choose another --output_dir"):
        learning.train(learning.LearningConfig(output_dir=tmp_path, max_steps=300), "l1", Recorded(tmp_path))


def test_policies_of_other_settings_are_not_taken_for_those_that_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were reused without a word: another learning rate, other demonstrations."""
    monkeypatch.setattr(learning, "shared_commands", lambda config: {})
    monkeypatch.setattr(learning, "train", lambda *arguments: None)
    monkeypatch.setattr(learning.Stages, "run", lambda *arguments: True)
    config = learning.LearningConfig(output_dir=tmp_path, benchmark="metaworld")
    learning.main(config)
    learning.main(dataclasses.replace(config, num_trials_per_task=5, num_demonstrations=50, num_envs=2))
    with pytest.raises(ValueError, match=r"with other flags \(--learning_rate was 0.0003, is 0.001; --seed was 7, is 8\); choose another"):
        learning.main(dataclasses.replace(config, learning_rate=1e-3, seed=8))


@pytest.mark.parametrize("content", ["", '{"seed": 7', "[7]"])
def test_damaged_files_of_an_earlier_call_are_told_by_their_names(tmp_path: Path, content: str) -> None:
    config = learning.LearningConfig(output_dir=tmp_path, benchmark="metaworld")
    damaged = [tmp_path / "settings.json", tmp_path / "l1" / "trained.json", tmp_path / "l1" / "eval" / "report.json"]
    damaged[2].parent.mkdir(parents=True)
    for path in damaged:
        path.write_text(content)
    with pytest.raises(ValueError, match=rf"{damaged[0]} is damaged .* choose another --output_dir.*delete this file alone"):
        learning.main(config)
    with pytest.raises(ValueError, match=rf"{damaged[1]} is damaged .* delete it: the training then goes on"):
        learning.train(config, "l1", learning.Stages(tmp_path))
    with pytest.raises(ValueError, match=rf"{damaged[2]} is damaged .* delete it: the evaluation then writes it again"):
        learning.write_results(config, [])
    damaged[1].write_text('{"max_steps": "many"}')
    with pytest.raises(ValueError, match=rf"{damaged[1]} is damaged \(it says max_steps 'many'"):
        learning.train(config, "l1", learning.Stages(tmp_path))


def test_more_steps_are_evaluated_anew_and_the_earlier_evaluation_is_kept(tmp_path: Path) -> None:
    """The evaluation refused to go on with another policy, so that more steps ended with an error."""

    class Recorded(learning.Stages):
        def run(self, stage: str, command: list[str], max_seconds: float | None = None) -> bool:
            return True

    evaluation = tmp_path / "l1" / "eval"
    evaluation.parent.mkdir()
    for steps in (700, 700, 900):
        learning.train(learning.LearningConfig(output_dir=tmp_path, max_steps=steps), "l1", Recorded(tmp_path))
        evaluation.mkdir(exist_ok=True)
        (evaluation / f"{steps}").touch()
    assert [path.name for path in evaluation.iterdir()] == ["900"]
    assert [path.name for path in (tmp_path / "l1" / "eval.left1").iterdir()] == ["700"]


def test_a_folder_is_the_same_for_the_script_and_for_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in the repository's root, where a folder of another working directory was looked for."""
    told: list[Path] = []
    monkeypatch.setattr(learning, "shared_commands", lambda config: told.extend((config.output_dir, config.frame_cache_dir)) or {})
    monkeypatch.setattr(learning, "train", lambda *arguments: None)
    monkeypatch.setattr(learning.Stages, "run", lambda *arguments: True)
    config = learning.LearningConfig(output_dir=Path("out"), benchmark="metaworld", frame_cache_dir=Path("frames"))
    monkeypatch.chdir(tmp_path)
    learning.main(config)
    assert told == [tmp_path / "out", tmp_path / "frames"]
    monkeypatch.chdir(learning.ROOT)
    assert seen_from_root(Path("out")) == Path("out")
