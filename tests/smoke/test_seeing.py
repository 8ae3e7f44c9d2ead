"""What a run shows and guards: validation, frozen parts, losses that are not finite, loggers, the debug recipe, closed-loop evaluation."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launching
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prismatic.cli import parse_flags
from prismatic.cli_sections import flag_values
from prismatic.models.action_model import ActionInputs
from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import process_group
from prismatic.training.finite import NON_FINITE_FILE, NonFiniteLossError
from prismatic.training.loop import Trainer, finetune
from prismatic.training.objectives import training_objective
from prismatic.training.setup import prepare_run
from prismatic.training.validation import Validation, own_samples
from prismatic.vla.images import center_crop
from prismatic.vla.normalization import unnormalize

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))
from rlds_writer import make_episode, write_dataset  # noqa: E402

DATASET = "libero_spatial_no_noops"
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
PARTS = ("vision_backbone", "projector", "language_model")
DISCRETE = {"use_l1_regression": False}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    write_tiny_base(folder / "base", SIZES, seed=0)
    shutil.copytree(ROOT / "tests/golden/data/rlds" / DATASET, folder / "data" / DATASET)
    return folder


def make_config(workplace: Path, name: str, **flags: Any) -> FinetuneConfig:
    defaults: dict[str, Any] = {
        **{"vla_path": str(workplace / "base"), "data_root_dir": workplace / "data", "dataset_name": DATASET},
        **{"run_root_dir": workplace / "runs", "run_id_override": name, "num_images_in_input": 2, "use_proprio": True, "num_workers": 0},
        **{"batch_size": 4, "max_steps": 2, "save_freq": 2, "wandb_log_freq": 1, "lora_rank": 4},
    }
    return FinetuneConfig.from_flags(**{**defaults, **flags})


def rows(config: FinetuneConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def run_script(script: str, *flags: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return (
        launching.run(command, env=environment, timeout=240) if processes == 1 else launching.run_ranks(command, processes, env=environment)
    )


def as_flags(config: FinetuneConfig) -> list[str]:
    """The command line that gives `config`."""
    default = flag_values(FinetuneConfig())
    changed = {name: value for name, value in flag_values(config).items() if value != default[name]}
    return [word for name, value in changed.items() for word in (f"--{name}", str(value))]


# Freezing


@pytest.mark.parametrize(("use_lora", "frozen"), [(True, "vision_backbone"), (True, "language_model"), (False, "projector")])
def test_frozen_parts_stay_as_they_are(workplace: Path, use_lora: bool, frozen: str) -> None:
    flags: dict[str, Any] = {f"freeze_{frozen}": True, "use_lora": use_lora, "learning_rate": 0.05}
    config = make_config(workplace, f"frozen_{frozen}", **flags)
    finetune(config)
    folder = config.run_dir.with_name(f"{config.run_id}--2_chkpt")
    base, tuned = load_file(workplace / "base" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert base.keys() == tuned.keys()
    changed = {key.split(".")[0] for key in base if not torch.equal(base[key].bfloat16(), tuned[key])}
    assert changed == set(PARTS) - {frozen}
    assert PolicySpec.load(folder).provenance["frozen"] == [frozen]
    if use_lora:  # the adapters have the published keys; those of the frozen part never left zero
        adapters = load_file(folder / "lora_adapter" / "adapter_model.safetensors")
        ups = {key: value.abs().max() for key, value in adapters.items() if "lora_B" in key}
        assert all(value == 0 for key, value in ups.items() if f".{frozen}." in key)
        assert any(value > 0 for value in ups.values())


@pytest.mark.parametrize("head", [{}, DISCRETE, {"use_film": True}], ids=["l1", "discrete", "film"])
@pytest.mark.parametrize("use_lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("frozen", [("vision_backbone",), ("vision_backbone", "language_model"), PARTS], ids=len)
def test_every_trained_weight_gets_a_gradient(workplace: Path, head: dict[str, Any], use_lora: bool, frozen: tuple[str, ...]) -> None:
    """DDP waits for a gradient of every one of them; with FiLM its new layers learn although the towers are frozen."""
    config = make_config(workplace, "gradients", use_lora=use_lora, **{f"freeze_{part}": True for part in frozen}, **head)
    with process_group() as ranks:
        trainer = Trainer(prepare_run(config, ranks))
        batch = next(iter(trainer.run.train_loader()))
    training_objective(trainer.model, trainer.model, batch, trainer.run.token_ids).loss.backward()
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    without = [name for name, parameter in trainer.model.named_parameters() if name in trained and parameter.grad is None]
    assert without == []
    assert not [name for name in trained for part in frozen if f".{part}." in name and ".scale." not in name and ".shift." not in name]
    assert any(".scale." in name for name in trained) == config.model.use_film


# Validation


def validation_trainer(workplace: Path, **flags: Any) -> Trainer:
    config = make_config(workplace, "validation", use_val_set=True, **flags)
    with process_group() as ranks:
        return Trainer(prepare_run(config, ranks))


@pytest.mark.parametrize("head", [{}, DISCRETE], ids=["l1", "discrete"])
def test_errors_are_those_of_single_samples_in_both_units(workplace: Path, head: dict[str, Any]) -> None:
    trainer = validation_trainer(workplace, **head)
    assert trainer.validator is not None
    found = trainer.validator()
    run, errors, raw_errors = trainer.run, [], []
    assert run.data.val is not None
    trainer.model.eval()
    for number in range(len(run.data.val)):
        sample = run.data.val[number]
        sample = replace(sample, images=np.stack([center_crop(image) for image in sample.images]))  # what evaluation looks at
        batch = run.collator([sample])
        actions = trainer.model.predict(ActionInputs.from_batch(batch, run.token_ids))[0].numpy()
        bounds = run.data.val.parts[0].action_bounds
        errors.append(np.abs(actions - sample.actions))
        raw_errors.append(np.abs(unnormalize(actions, bounds) - unnormalize(sample.actions, bounds)))
    assert found.num_samples == len(errors) == 17
    np.testing.assert_allclose(found.errors, np.mean(errors, axis=0), atol=1e-5)
    np.testing.assert_allclose(found.raw_errors, np.mean(raw_errors, axis=0), atol=1e-5)
    values = found.metrics(run.parts.spec.platform.action_names)
    assert values["val/l1/gripper"] == pytest.approx(np.mean(errors, axis=(0, 1))[-1], abs=1e-5)
    assert values["val/l1_position/07"] == pytest.approx(np.mean(errors, axis=(0, 2))[-1], abs=1e-5)
    assert values["val/action_l1_loss"] == pytest.approx(np.mean(errors), abs=1e-5)
    if not head:
        assert values["val/loss"] == pytest.approx(values["val/action_l1_loss"], abs=1e-6)


def test_a_time_limit_leaves_the_same_samples_every_time(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = validation_trainer(workplace)
    validator = trainer.validator
    assert validator is not None
    clock = iter(range(0, 10**9, 100))  # 100 s a look, the limit is 180 s
    own_clock = SimpleNamespace(monotonic=lambda: next(clock))  # of validation alone: other threads look at the time, too
    monkeypatch.setattr("prismatic.training.validation.time", own_clock)
    first, second = validator(), validator()
    assert first.num_samples == second.num_samples == 4 * first.num_batches < 17
    np.testing.assert_array_equal(first.errors, second.errors)
    first.write(workplace / "validation.jsonl", 7, trainer.run.parts.spec.platform.action_names)
    resumed = validation_trainer(workplace).validator
    assert resumed is not None
    resumed.restore(workplace / "validation.jsonl")
    np.testing.assert_array_equal(resumed().errors, first.errors)


def test_a_validation_that_ran_out_of_time_does_not_shorten_later_ones(workplace: Path) -> None:
    path = workplace / "cut_short.jsonl"
    written = ({"step": 1, "num_samples": 8, "num_batches": 2}, {"step": 2, "num_samples": 4, "num_batches": 1})
    path.write_text("".join(json.dumps(row) + "\n" for row in written) + '{"step": 3, "num_sam')
    resumed = validation_trainer(workplace).validator
    assert resumed is not None
    resumed.restore(path)
    assert resumed().num_samples == 8


def test_a_run_goes_on_over_what_a_kill_left_of_its_rows(workplace: Path) -> None:
    config = make_config(workplace, "torn", use_val_set=True, val_freq=1, save_freq=1)
    finetune(config)
    torn = {name: config.run_dir / name for name in ("metrics.jsonl", "validation.jsonl")}
    for path in torn.values():
        with path.open("a") as file:
            file.write('{"step": 3, "num_batches": 5, "val/action_l1')
    (config.run_dir / "best.json").write_text('{"checkpoint": "to')
    finetune(make_config(workplace, "torn", use_val_set=True, val_freq=1, save_freq=1, max_steps=4, resume=True, keep_checkpoints=3))
    for path in torn.values():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted({row["step"] for row in lines}) == [1, 2, 3, 4]
    assert json.loads((config.run_dir / "best.json").read_text())["checkpoint"].startswith("torn--")


def test_processes_share_the_samples_out() -> None:
    shares = [own_samples(17, rank, 3) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(17))
    assert own_samples(17, 0, 1)[:6] == [shares[place % 3][place // 3] for place in range(6)]  # a cut leaves the same ones
    assert own_samples(17, 0, 1) != sorted(own_samples(17, 0, 1))


def test_two_processes_validate_like_one_with_frozen_parts(workplace: Path) -> None:
    """17 samples in batches of 4: one process has a batch more than the other. DDP would refuse a weight without gradient."""
    flags: dict[str, Any] = {"use_val_set": True, "image_aug": False, "freeze_vision_backbone": True, "freeze_projector": True}
    one, two = make_config(workplace, "val_one", batch_size=8, **flags), make_config(workplace, "val_two", batch_size=4, **flags)
    finetune(one)
    done = run_script("vla-scripts/finetune.py", *as_flags(two), processes=2)
    assert done.returncode == 0, done.stderr
    first, second = ({key: value for key, value in rows(config)[-1].items() if key.startswith("val/")} for config in (one, two))
    assert first.keys() == second.keys()
    assert first["val/num_samples"] == second["val/num_samples"] == 17
    np.testing.assert_allclose(list(first.values()), list(second.values()), atol=2e-5)


def test_the_best_checkpoint_is_marked(workplace: Path) -> None:
    config = make_config(workplace, "best", use_val_set=True, val_freq=2, max_steps=6, learning_rate=0.02)
    finetune(config)
    found = {row["step"]: row["val/action_l1_loss"] for row in rows(config) if "val/action_l1_loss" in row}
    assert set(found) == {2, 4, 6}
    best = min(found, key=found.__getitem__)
    assert json.loads((config.run_dir / "best.json").read_text()) == {
        **{"checkpoint": f"best--{best}_chkpt", "step": best, "metric": "val/action_l1_loss", "value": found[best]}
    }
    written = [json.loads(line) for line in (config.run_dir / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [2, 4, 6]
    assert np.shape(written[0]["l1"]) == np.shape(written[0]["l1_raw"]) == (8, 7)
    assert (config.run_dir / "curves.png").stat().st_size > 10_000
    training = [row for row in rows(config) if "train/loss" in row]
    assert all(0 <= row["train/data_wait"] < 1 and row["train/samples_per_second"] > 0 for row in training)


# Losses


def test_a_diverging_run_stops_and_lists_its_samples(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(workplace, "diverging", use_lora=False, learning_rate=1e30, max_steps=50, save_freq=1, wandb_log_freq=20)
    with pytest.raises(NonFiniteLossError, match=f"the loss became nan at step 2 .*{DATASET}, train episode.*{NON_FINITE_FILE}.*Lower"):
        finetune(config)
    content = json.loads((config.run_dir / NON_FINITE_FILE).read_text())
    assert content["step"] == 2
    assert [(batch["step"], batch["loss"]) for batch in content["batches"]][1] == (2, "nan")
    with process_group() as ranks:
        run = prepare_run(FinetuneConfig.from_flags(**{**flag_values(config), "run_id_override": "another"}), ranks)
    order = [key.sample for key, _ in zip(run.train_sampler, range(8), strict=False)]
    assert [sample["sample"] for batch in content["batches"] for sample in batch["samples"]] == order
    for sample in (sample for batch in content["batches"] for sample in batch["samples"]):
        part = run.data.train.parts[0]
        step = int(part.index.episode_starts[sample["episode"]]) + sample["step"]
        assert step == part.locate(sample["sample"])[0]
    names = [path.name for path in config.saving.run_root_dir.iterdir() if path.name.startswith("diverging")]
    assert sorted(names) == ["diverging", "diverging--1_chkpt"]  # nothing was saved after the loss was lost


def test_a_loss_above_the_guidance_is_reported_at_the_end(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        finetune(make_config(workplace, "plateau"))
    assert "the training L1 loss ends at" in caplog.text
    assert "until it is below 0.01" in caplog.text
    assert "step 2/2, loss" in caplog.text
    caplog.clear()
    finetune(make_config(workplace, "no_plateau", **DISCRETE))
    assert "the training L1 loss ends at" not in caplog.text


# Loggers and recipes


def test_tensorboard_holds_what_metrics_jsonl_holds(workplace: Path) -> None:
    pytest.importorskip("tensorboard")
    had_tensorflow = "tensorflow" in sys.modules
    config = make_config(workplace, "board", logger="tensorboard", use_val_set=True)
    finetune(config)
    assert had_tensorflow or "tensorflow" not in sys.modules  # which tensorboard imports where it can
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workplace / "runs" / "tensorboard" / "board"))
    events.Reload()
    for row in rows(config):
        for name in row.keys() - {"step", "seconds"}:
            written = {event.step: event.value for event in events.Scalars(name.replace(" ", "_").replace("[", "_").replace("]", "_"))}
            assert written[row["step"]] == pytest.approx(row[name], rel=1e-6), name


def test_a_logger_that_is_not_installed_is_reported_before_anything_loads(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as for Python a module that is not installed
    with pytest.raises(ValueError, match=r"--logger wandb: the package is not installed; pip install wandb"):
        finetune(make_config(workplace, "missing", wandb_project="p", vla_path="/nowhere"))


def test_the_debug_recipe_trains_two_steps_and_resumes_to_four(workplace: Path) -> None:
    recipe = ["--config_path", str(ROOT / "vla-scripts/recipes/debug.yaml"), "--vla_path", str(workplace / "base")]
    recipe += ["--data_root_dir", str(workplace / "data"), "--run_root_dir", str(workplace / "recipe")]
    for more in ([], ["--resume", "True", "--max_steps", "4"]):
        finetune(parse_flags(FinetuneConfig, [*recipe, *more]))
    assert {path.name for path in (workplace / "recipe").iterdir()} == {"debug", "debug--2_chkpt", "debug--4_chkpt"}
    written = [json.loads(line) for line in (workplace / "recipe/debug/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written if "train/loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in written if "val/loss" in row] == [2, 4]
    done = run_script("scripts/plot_run.py", str(workplace / "recipe/debug"), "--output", str(workplace / "debug.png"))
    assert done.returncode == 0, done.stderr
    assert (workplace / "debug.png").stat().st_size > 10_000


@pytest.mark.sim
def test_a_simulator_plays_with_a_checkpoint_while_training_goes_on(workplace: Path) -> None:
    write_dataset(workplace / "data", "metaworld_demo", {"train": [make_episode(12, seed=seed, size=32) for seed in range(2)]})
    command = f"python {ROOT}/experiments/robot/metaworld/run_metaworld_eval.py --task_names [button-press-topdown] --num_envs 1"
    command += " --num_trials_per_task 1 --num_pictures 0 --pretrained_checkpoint {checkpoint} --local_log_dir {output_dir}"
    config = make_config(workplace, "closed_loop", dataset_name="metaworld_demo", save_freq=10, eval_every=2, eval_command=command)
    done = run_script("vla-scripts/finetune.py", *as_flags(config))
    assert done.returncode == 0, done.stderr
    found = {row["step"]: row for row in rows(config) if "eval/success_rate" in row}
    assert set(found) == {2}  # saved for the evaluation, although --save_freq is 10
    for step, row in found.items():
        assert row["eval/num_episodes"] == 1
        assert row["eval/success_rate"] in (0.0, 1.0)
        assert math.isclose(row["eval/success_rate/button-press-topdown"], row["eval/success_rate"])
        assert list((workplace / f"runs/closed_loop--eval/step_{step}").rglob("report.html"))
        assert (workplace / f"runs/closed_loop--{step}_chkpt").is_dir()
    assert "evaluation of step 2: success" in done.stdout


def test_validation_rows_keep_units_in_their_names() -> None:
    found = Validation(2, 1, {"loss": 0.5}, np.array([[0.1, 0.3]]), np.array([[0.01, 0.3]]))
    values = found.metrics(("x [m]", "gripper"))
    assert values["val/l1/x"] == pytest.approx(0.1)
    assert values["val/l1_raw/x [m]"] == pytest.approx(0.01)
    assert values["val/l1_position/00"] == pytest.approx(0.2)
