"""A run that begins with a fine-tuned checkpoint goes on with all of it: heads, projectors, FiLM, adapters, statistics."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prismatic.models.base import TinySizes, write_tiny_base
from prismatic.policy.policy import Policy
from prismatic.training.config import FinetuneConfig
from prismatic.training.loop import finetune
from prismatic.vla.datasets.rlds.oxe import mixtures
from prismatic.vla.types import Observation

ROOT = Path(__file__).parents[2]
DATASET, ADDED = "libero_spatial_no_noops", "libero_object_no_noops"  # the same recordings under two names of the registry
SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=2, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
DIFFUSION = {"use_l1_regression": False, "use_diffusion": True, "num_diffusion_steps_train": 10}
VARIANTS: dict[str, dict[str, Any]] = {
    "l1": {},
    "discrete": {"use_l1_regression": False},
    "film_diffusion": {"use_film": True, **DIFFUSION},
    "adapters": {"merge_lora_during_training": False},
    "film_adapters": {"use_film": True, "merge_lora_during_training": False},
    "full": {"use_lora": False, "use_film": True},
}
UNMERGED = ("adapters", "film_adapters")
STANDING_STILL = {"learning_rate": 1e-9, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continuing")
    write_tiny_base(folder / "base", SIZES, seed=0)
    record_episodes(folder / "few", DATASET, 3)
    record_episodes(folder / "more", DATASET, 5)
    return folder


@pytest.fixture(scope="module")
def checkpoint(workplace: Path) -> Callable[[str], Path]:
    """Name of a variant -> a checkpoint whose adapters, FiLM and heads have moved far from where they began."""

    def train(name: str) -> Path:
        folder = workplace / f"{name}--3_chkpt"
        if not folder.exists():
            finetune(config_of(workplace, name, max_steps=3, save_freq=3, learning_rate=0.02, **VARIANTS[name]))
        return folder

    return train


def record_episodes(root: Path, name: str, count: int, scale: float = 1.0) -> None:
    """A data set of the first `count` recorded episodes."""
    source = ROOT / "tests/golden/data/rlds" / DATASET / "1.0.0"
    target = root / name / "1.0.0"
    target.mkdir(parents=True)
    content = (source / f"{DATASET}-train.tfrecord-00000-of-00001").read_bytes()
    end = 0
    for _ in range(count):  # a record is its length (8 bytes), a checksum (4), the content and another checksum (4)
        end += 8 + 4 + struct.unpack_from("<Q", content, end)[0] + 4
    (target / f"{name}-train.tfrecord-00000-of-00001").write_bytes(content[:end])
    shutil.copy(source / "features.json", target)
    info = json.loads((source / "dataset_info.json").read_text()) | {"name": name}
    info["splits"][0] |= {"shardLengths": [str(count)], "numBytes": str(end)}
    (target / "dataset_info.json").write_text(json.dumps(info))


def config_of(workplace: Path, name: str, **flags: Any) -> FinetuneConfig:
    defaults: dict[str, Any] = {
        **{"vla_path": str(workplace / "base"), "data_root_dir": workplace / "few", "dataset_name": DATASET, "run_root_dir": workplace},
        **{"run_id_override": name, "num_images_in_input": 2, "use_proprio": True, "batch_size": 4, "max_steps": 1, "save_freq": 1},
        **{"wandb_log_freq": 1, "num_workers": 0, "lora_rank": 4, "image_aug": False},
    }
    return FinetuneConfig.from_flags(**defaults | flags)


def losses(workplace: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def act(folder: Path) -> np.ndarray:
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for camera in ("primary", "wrist")}
    seen = Observation(images=images, instruction="pick up the bowl", proprio=np.zeros(8))
    return Policy.from_pretrained(folder, device="cpu").predict([seen], seeds=[0])[0].actions


def continued(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "policy.json").read_text())["provenance"]["continued"]


def statistics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset_statistics.json").read_text())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_continued_policy_acts_as_it_did(workplace: Path, checkpoint: Callable[[str], Path], name: str) -> None:
    folder, flags = checkpoint(name), {**VARIANTS[name], **STANDING_STILL}
    finetune(config_of(workplace, f"{name}_on", vla_path=str(folder), data_root_dir=workplace / "more", **flags))
    on = workplace / f"{name}_on--1_chkpt"
    before, after, untrained = act(folder), act(on), act(fresh(workplace, name))
    assert np.abs(after - before).max() < 0.1 * np.abs(untrained - before).max()
    assert statistics(on) == statistics(folder)
    record = continued(on)
    assert record["checkpoint"] == str(folder)
    assert record["statistics"] == {DATASET: "of the checkpoint"}
    assert ("LoRA adapters" in record["taken_over"]) == (name in UNMERGED)
    assert ("FiLM" in record["taken_over"]) == VARIANTS[name].get("use_film", False)
    assert ("noisy-action projector" in record["taken_over"]) == (name == "film_diffusion")
    assert record["beyond_statistics"][DATASET]["num_steps"] > 0


def fresh(workplace: Path, name: str) -> Path:
    """The policy of a run that has just begun with the base."""
    folder = workplace / f"{name}_fresh--1_chkpt"
    if not folder.exists():
        finetune(config_of(workplace, f"{name}_fresh", **{**VARIANTS[name], **STANDING_STILL}))
    return folder


def test_the_loss_goes_on_when_demonstrations_are_added(workplace: Path) -> None:
    common = {"batch_size": 8, "lora_rank": 4, "learning_rate": 2e-3}
    finetune(config_of(workplace, "first", max_steps=60, save_freq=60, **common))
    earlier = losses(workplace, "first")
    finetune(config_of(workplace, "second", vla_path=str(workplace / "first--60_chkpt"), data_root_dir=workplace / "more", **common))
    finetune(
        config_of(
            workplace,
            "anew",
            vla_path=str(workplace / "first--60_chkpt"),
            data_root_dir=workplace / "more",
            fresh_heads=True,
            **common,
        )
    )
    last, on, anew = np.mean(earlier[-10:]), losses(workplace, "second")[0], losses(workplace, "anew")[0]
    assert on - last < 0.4 * (anew - last), (last, on, anew)
    assert continued(workplace / "anew--1_chkpt")["new"] == ["action head", "proprio projector", "LoRA adapters"]
    assert (
        statistics(workplace / "anew--1_chkpt")[DATASET]["num_trajectories"]
        > statistics(workplace / "first--60_chkpt")[DATASET]["num_trajectories"]
    )


@pytest.mark.parametrize("name", ["film_adapters", "film_diffusion"])
def test_a_continued_run_resumes_exactly(workplace: Path, checkpoint: Callable[[str], Path], name: str) -> None:
    # What is frozen is not in the trainer's state: towers and adapters of the checkpoint must come back from elsewhere.
    flags = {**VARIANTS[name], "vla_path": str(checkpoint(name)), "freeze_vision_backbone": True, "learning_rate": 0.01}
    finetune(config_of(workplace, f"{name}_whole", max_steps=3, save_freq=3, **flags))
    finetune(config_of(workplace, f"{name}_parts", max_steps=1, **flags))
    base = {**flags, "vla_path": str(workplace / "base")}
    if name == "film_adapters":  # whose weights come from the base: that is what --vla_path may say, too
        flags = base
    else:
        with pytest.raises(ValueError, match=r"is not the model that the run in .* was started from"):
            finetune(config_of(workplace, f"{name}_parts", max_steps=3, save_freq=3, resume=True, **base))
    finetune(config_of(workplace, f"{name}_parts", max_steps=3, save_freq=3, resume=True, **flags))
    assert losses(workplace, f"{name}_parts") == losses(workplace, f"{name}_whole")
    whole, parts = (workplace / f"{name}_{kind}--3_chkpt" for kind in ("whole", "parts"))
    one, other = (load_file(folder / "trainer_state/trainable.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[key], other[key]) for key in one)
    np.testing.assert_array_equal(act(whole), act(parts))
    assert continued(parts) == continued(whole)


def test_adapters_over_a_policy_with_film_are_continued_twice(workplace: Path, checkpoint: Callable[[str], Path]) -> None:
    flags = {"use_film": True, **DIFFUSION, "merge_lora_during_training": False, "learning_rate": 0.02}
    finetune(config_of(workplace, "over", vla_path=str(checkpoint("film_diffusion")), max_steps=2, save_freq=2, **flags))
    flags |= STANDING_STILL
    finetune(config_of(workplace, "over_on", vla_path=str(workplace / "over--2_chkpt"), **flags))
    first, second = workplace / "over--2_chkpt", workplace / "over_on--1_chkpt"
    assert np.abs(act(second) - act(first)).max() < 0.1 * np.abs(act(first) - act(checkpoint("film_diffusion"))).max()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("l1", DIFFUSION, "its action head is l1 .*this run's diffusion.*--fresh_heads True"),
        ("l1", {"use_proprio": False}, "--use_proprio was True, is False"),
        ("film_diffusion", {**DIFFUSION, "use_film": False}, "--use_film was True, is False"),
        ("film_diffusion", {**VARIANTS["film_diffusion"], "num_diffusion_steps_train": 20}, "--num_diffusion_steps_train was 10, is 20"),
        ("adapters", {"lora_rank": 8}, "adapters of rank 4 .*the run has --lora_rank 8. Pass --lora_rank 4 .*merge_lora_weights"),
        ("adapters", {"use_lora": False}, "the run has --use_lora False"),
    ],
)
def test_what_does_not_fit_is_said(workplace: Path, checkpoint: Callable[[str], Path], name: str, flags: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(config_of(workplace, "misfit", vla_path=str(checkpoint(name)), **flags))
    assert not (workplace / "misfit--1_chkpt").exists()


def test_a_robot_of_another_width_is_told(workplace: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(checkpoint("l1"), workplace / "wider")
    policy = json.loads((folder / "policy.json").read_text())
    policy["platform"] |= {"num_actions_chunk": 5}
    (folder / "policy.json").write_text(json.dumps(policy))
    with pytest.raises(ValueError, match="num_actions_chunk of its robot platform LIBERO was 5, that of LIBERO is 8"):
        finetune(config_of(workplace, "misfit", vla_path=str(folder)))


def test_new_statistics_say_what_they_do_to_the_heads(
    workplace: Path, checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(workplace, "renewed", vla_path=str(checkpoint("l1")), data_root_dir=workplace / "more", new_statistics=True)
    with caplog.at_level("INFO"):
        finetune(config)
    folder = workplace / "renewed--1_chkpt"
    assert statistics(folder)[DATASET]["num_trajectories"] > statistics(checkpoint("l1"))[DATASET]["num_trajectories"]
    changed = continued(folder)["changed_statistics"][DATASET]["action"]
    assert changed
    name = next(iter(changed))
    low, high = (statistics(checkpoint("l1"))[DATASET]["action"][key][0] for key in ("q01", "q99"))
    if name == "dx":
        assert changed[name].startswith(f"[{low:.4g}, {high:.4g}] -> ")
    assert "changes what the heads say until they have learnt it anew" in caplog.text


def test_actions_that_statistics_cannot_express_are_refused(workplace: Path, checkpoint: Callable[[str], Path]) -> None:
    folder = shutil.copytree(checkpoint("l1"), workplace / "narrow")
    narrow = statistics(folder)
    for key in ("min", "max", "q01", "q99"):
        narrow[DATASET]["action"][key][0] = 7.0  # never seen to move
    (folder / "dataset_statistics.json").write_text(json.dumps(narrow))
    with pytest.raises(ValueError, match=r"dx 100.0 % of the actions are beyond .*--new_statistics True"):
        finetune(config_of(workplace, "misfit", vla_path=str(folder)))


def test_advice_about_clipped_actions_fits_whose_statistics_they_are(
    workplace: Path, checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(checkpoint("l1"), workplace / "narrower")
    narrow = statistics(folder)
    for key in ("min", "q01"):
        narrow[DATASET]["action"][key][1] *= 0.3
    (folder / "dataset_statistics.json").write_text(json.dumps(narrow))
    begun = config_of(workplace, "clipped", vla_path=str(folder), **STANDING_STILL)
    for config in (begun, config_of(workplace, "clipped", vla_path=str(folder), resume=True, max_steps=2, **STANDING_STILL)):
        caplog.clear()
        finetune(config)
        assert "They move beyond what the checkpoint was trained on, by whose statistics they are normalised" in caplog.text
        assert "record more" not in caplog.text


def test_a_new_data_set_beside_the_old_one_gets_its_own_statistics(
    workplace: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = workplace / "both"
    record_episodes(both, DATASET, 3)
    record_episodes(both, ADDED, 5)
    monkeypatch.setitem(mixtures.OXE_NAMED_MIXTURES, "both", ((DATASET, 1.0), (ADDED, 1.0)))
    finetune(config_of(workplace, "mixed", vla_path=str(checkpoint("l1")), data_root_dir=both, dataset_name="both"))
    folder = workplace / "mixed--1_chkpt"
    assert continued(folder)["statistics"] == {DATASET: "of the checkpoint", ADDED: "computed from this run's data"}
    assert statistics(folder)[DATASET] == statistics(checkpoint("l1"))[DATASET]
    assert statistics(folder)[ADDED]["num_transitions"] > statistics(folder)[DATASET]["num_transitions"]
    finetune(config_of(workplace, "renamed", vla_path=str(checkpoint("l1")), data_root_dir=both, dataset_name=ADDED))
    renamed = workplace / "renamed--1_chkpt"
    assert statistics(renamed) == {ADDED: statistics(checkpoint("l1"))[DATASET]}  # one set alone: the heads speak in the old one's
    assert continued(renamed)["statistics"] == {ADDED: f"of the checkpoint's data set {DATASET}"}


def test_whose_statistics_go_on_is_never_guessed(
    workplace: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The heads of a policy of two data sets would have gone on in ranges that they have not learnt, without a word."""
    new = ("libero_goal_no_noops", "libero_10_no_noops")
    for name in new:
        record_episodes(workplace / "new", name, 3)
    monkeypatch.setitem(mixtures.OXE_NAMED_MIXTURES, "new", tuple((name, 1.0) for name in new))
    flags = {"vla_path": str(checkpoint("l1")), "data_root_dir": workplace / "new", **STANDING_STILL}
    finetune(config_of(workplace, "two_of_one", dataset_name="new", **flags))
    one = workplace / "two_of_one--1_chkpt"
    known = statistics(checkpoint("l1"))[DATASET]
    assert statistics(one) == dict.fromkeys(new, known)
    assert continued(one)["statistics"] == dict.fromkeys(new, f"of the checkpoint's data set {DATASET}")
    record_episodes(workplace / "added", ADDED, 5)
    flags |= {"vla_path": str(one), "data_root_dir": workplace / "added", "dataset_name": ADDED}
    with pytest.raises(
        ValueError, match=rf"the statistics of {', '.join(new)}, and the run has none .* but {ADDED}.*--new_statistics True"
    ):
        finetune(config_of(workplace, "misfit", **flags))
    finetune(config_of(workplace, "one_of_two", new_statistics=True, **flags))
    changed = continued(workplace / "one_of_two--1_chkpt")["changed_statistics"]
    assert list(changed) == [f"{ADDED}, learnt as {name}" for name in new]
    assert f"data set {ADDED} (learnt as {new[0]}): --new_statistics True changes what the heads say" in caplog.text


def test_validation_episodes_that_the_policy_may_know_are_told_of(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags: dict[str, Any] = {"use_val_set": True, "val_fraction": 0.34}
    finetune(config_of(workplace, "validated", **flags))
    flags |= {"vla_path": str(workplace / "validated--1_chkpt"), **STANDING_STILL}
    told = "validation episodes are not those that"
    finetune(config_of(workplace, "as_before", **flags))
    assert told not in caplog.text
    finetune(config_of(workplace, "not_validated", data_root_dir=workplace / "more", **flags | {"use_val_set": False}))
    assert told not in caplog.text
    flags |= {"val_fraction": 0.7, "data_root_dir": workplace / "more"}
    finetune(config_of(workplace, "grown", **flags))
    assert f"{told} {workplace}/validated--1_chkpt was validated on. It may have been trained on some of them" in caplog.text
    finetune(config_of(workplace, "grown", resume=True, **flags))
    assert caplog.text.count(told) == 1  # where the run began


def test_another_crop_of_the_images_is_told(workplace: Path, checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    flags: dict[str, Any] = {"vla_path": str(checkpoint("l1")), **STANDING_STILL}
    finetune(config_of(workplace, "uncropped", **flags))
    assert "--image_aug" not in caplog.text
    finetune(config_of(workplace, "cropped", image_aug=True, **flags))
    assert "was trained with --image_aug False and sees its images whole, this run has True: from now on it sees crops of" in caplog.text


def test_a_quantized_base_continues_adapters_and_heads(workplace: Path, checkpoint: Callable[[str], Path]) -> None:
    for name in ("l1", "adapters"):
        flags = {**VARIANTS[name], **STANDING_STILL, "quantize_base": "int8"}
        finetune(config_of(workplace, f"{name}_small", vla_path=str(checkpoint(name)), **flags))
        before, after, untrained = act(checkpoint(name)), act(workplace / f"{name}_small--1_chkpt"), act(fresh(workplace, name))
        assert np.abs(after - before).max() < 0.2 * np.abs(untrained - before).max()


def test_sharded_processes_continue_a_policy(workplace: Path, checkpoint: Callable[[str], Path]) -> None:
    flags = {"--vla_path": checkpoint("film_adapters"), "--data_root_dir": workplace / "few", "--dataset_name": DATASET}
    flags |= {"--run_root_dir": workplace, "--run_id_override": "sharded", "--num_images_in_input": 2, "--use_proprio": True}
    flags |= {"--use_film": True, "--merge_lora_during_training": False, "--lora_rank": 4, "--batch_size": 2, "--max_steps": 1}
    flags |= {
        "--save_freq": 1,
        "--num_workers": 0,
        "--image_aug": False,
        "--strategy": "fsdp",
        "--learning_rate": 1e-9,
        "--weight_decay": 0,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    done = launching.run_ranks([sys.executable, "vla-scripts/finetune.py", *words], 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("taken over: action head, proprio projector, FiLM, LoRA adapters") == 1
    before, untrained = act(checkpoint("film_adapters")), act(fresh(workplace, "film_adapters"))
    assert np.abs(act(workplace / "sharded--1_chkpt") - before).max() < 0.1 * np.abs(untrained - before).max()


EYES_ALONE = {"freeze_projector": True, "freeze_language_model": True, "freeze_heads": True}


@pytest.mark.parametrize("name", ["l1", "film_diffusion"])
def test_eyes_and_film_alone_learn_a_new_view(workplace: Path, checkpoint: Callable[[str], Path], name: str) -> None:
    """Adaptation to another camera: language model, projector and heads stay to the bit."""
    before = checkpoint(name)
    run = f"{name}_eyes"
    finetune(config_of(workplace, run, vla_path=str(before), learning_rate=0.02, **VARIANTS[name], **EYES_ALONE))
    after = workplace / f"{run}--1_chkpt"
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    changed = {key.split(".")[0] for key in old if not torch.equal(old[key], new[key])}
    assert changed == {"vision_backbone"}
    heads = [path.name for path in before.glob("*--*_checkpoint.pt") if "vision_backbone" not in path.name]
    assert heads
    for head in heads:
        (twin,) = after.glob(f"{head.split('--')[0]}--*_checkpoint.pt")
        kept, now = (torch.load(path, weights_only=True) for path in (before / head, twin))
        assert all(torch.equal(kept[key], now[key]) for key in kept), head
    assert json.loads((after / "policy.json").read_text())["provenance"]["frozen"] == ["projector", "language_model", "heads"]


def test_heads_that_have_not_learnt_are_not_frozen(workplace: Path) -> None:
    with pytest.raises(ValueError, match="--freeze_heads True needs a fine-tuned checkpoint as --vla_path"):
        finetune(config_of(workplace, "heads_of_a_base", **EYES_ALONE))
