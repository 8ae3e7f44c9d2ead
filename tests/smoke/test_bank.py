"""Adapters that share one base in memory act like the policies that they were saved as."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_checkpoints import write_base, write_run

from prismatic.policy.checkpoint.files import STATISTICS_FILE, atomic_folder
from prismatic.policy.checkpoint.loading import LoadOptions
from prismatic.policy.checkpoint.spec import HeadSpec
from prismatic.policy.lora.bank import load_adapter_policies
from prismatic.policy.policy import Policy
from prismatic.vla.types import Observation

CPU = torch.device("cpu")
HEADS = {
    "plain": HeadSpec(use_proprio=True),
    "words": HeadSpec("discrete"),
    "noise": HeadSpec("diffusion", num_diffusion_steps_train=4),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    base = write_base(folder / "base")
    for seed, (name, heads) in enumerate(HEADS.items()):
        write_run(folder / name, base, seed, heads, rank=4 + seed, limit=1 + seed)
    write_run(folder / "film", base, 7, HeadSpec(use_film=True))
    return folder


def observation() -> Observation:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Observation({"primary": image}, "push the block", np.linspace(-1, 1, 8))


def actions(policy: Policy) -> np.ndarray:
    return policy.predict([observation()], seeds=[0])[0].actions


def test_each_adapter_acts_like_its_own_policy(workplace: Path) -> None:
    policies = load_adapter_policies({name: workplace / name for name in HEADS}, CPU, torch.float32)
    assert len({id(policy.parts.model.bare_vla) for policy in policies.values()}) == 1
    for name in [*HEADS, *reversed(HEADS)]:  # each after each other
        found = actions(policies[name])
        apart = Policy.from_pretrained(workplace / name, CPU, options=LoadOptions(keep_adapters=True, base_model=str(workplace / "base")))
        np.testing.assert_allclose(found, actions(apart), atol=1e-5)
        if name == "plain":  # merged weights are stored in bfloat16
            np.testing.assert_allclose(found, actions(Policy.from_pretrained(workplace / name, CPU)), atol=0.1)
    for name, other in (("plain", "words"), ("words", "noise"), ("noise", "plain")):
        assert np.abs(actions(policies[name]) - actions(policies[other])).max() > 0.3


def test_the_data_set_that_is_asked_for_counts_where_an_adapter_has_it(workplace: Path, tmp_path: Path) -> None:
    shutil.copytree(workplace / "plain", tmp_path / "both")
    path = tmp_path / "both" / STATISTICS_FILE
    statistics = json.loads(path.read_text())
    wide = {part: {name: [10.0 * value for value in row] for name, row in entry.items()} for part, entry in statistics["arm"].items()}
    path.write_text(json.dumps({**statistics, "wide": wide}))
    folders = {"both": tmp_path / "both", "plain": workplace / "plain"}

    def load(key: str | None) -> dict[str, Policy]:
        return load_adapter_policies(folders, CPU, torch.float32, LoadOptions(unnorm_key=key))

    own, asked = load(None), load("wide")
    assert [policy.unnorm_key for policy in own.values()] == ["arm", "arm"]
    assert [policy.unnorm_key for policy in asked.values()] == ["wide", "arm"]
    np.testing.assert_allclose(actions(asked["plain"]), actions(own["plain"]))
    np.testing.assert_allclose(asked["both"].action_bounds.high, 10 * own["both"].action_bounds.high)
    assert [policy.unnorm_key for policy in load("arm").values()] == ["arm", "arm"]
    with pytest.raises(ValueError, match="--unnorm_key 'wiede' is in no adapter's statistics; did you mean wide"):
        load("wiede")


def test_statistics_that_were_edited_are_warned_of(workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with atomic_folder(tmp_path / "run") as folder:
        shutil.copytree(workplace / "plain", folder, dirs_exist_ok=True)
    load_adapter_policies({"plain": tmp_path / "run"}, CPU, torch.float32)
    assert "changed since training" not in caplog.text
    path = tmp_path / "run" / STATISTICS_FILE
    statistics = json.loads(path.read_text())
    statistics["arm"]["action"]["max"][0] = statistics["arm"]["action"]["q99"][0] = 3
    path.write_text(json.dumps(statistics))
    load_adapter_policies({"plain": tmp_path / "run"}, CPU, torch.float32)
    assert f"{STATISTICS_FILE} changed since training saved it; actions may have other units" in caplog.text


def test_the_base_may_be_quantized(workplace: Path) -> None:
    exact, coarse = (
        load_adapter_policies({"plain": workplace / "plain"}, CPU, torch.float32, LoadOptions(quantization=kind))["plain"]
        for kind in ("none", "fp8")
    )
    expected, found = actions(exact), actions(coarse)
    share = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 0 < share < 0.4, share  # observed 0.14: tiny random weights with strong adapters make much of rounding


def test_what_cannot_be_shared_is_named(workplace: Path, tmp_path: Path) -> None:
    def load(**folders: Path) -> None:
        load_adapter_policies(folders, CPU, torch.float32)

    with pytest.raises(ValueError, match="uses FiLM, whose modulation is no low-rank delta"):
        load(plain=workplace / "plain", film=workplace / "film")
    other = write_run(tmp_path / "other", write_base(tmp_path / "base", seed=1), 0, HEADS["plain"])
    with pytest.raises(ValueError, match=r"adapters over one base model were expected, found plain: .*bank.*; other: .*base"):
        load(plain=workplace / "plain", other=other)
    shutil.copytree(workplace / "plain", tmp_path / "large")
    path = tmp_path / "large" / "policy.json"
    path.write_text(path.read_text().replace('"size": 28', '"size": 56'))
    with pytest.raises(ValueError, match="says images of the size 56, its model was made for 28"):
        load(large=tmp_path / "large")
    with pytest.raises(ValueError, match="lacks dataset_statistics"):
        load(base=workplace / "base")
