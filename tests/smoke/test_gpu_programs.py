"""Recorded programs on an accelerator: of a policy in float8, and of adapters that share one base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_checkpoints import write_base, write_run

from prismatic.policy.checkpoint.loading import LoadOptions
from prismatic.policy.checkpoint.spec import HeadSpec
from prismatic.policy.inference.fast_paths import FAST_PATHS
from prismatic.policy.lora.bank import load_adapter_policies
from prismatic.policy.policy import Policy
from prismatic.vla.types import Observation

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

INSTRUCTIONS = ("push the block", "lift", "slowly push the small red block")
ENGINES = ("graph", "compiled")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of different rank over one base, each saved with its merged weights."""
    folder = tmp_path_factory.mktemp("programs")
    base = write_base(folder / "base")
    write_run(folder / "one", base, 0, HeadSpec(use_proprio=True), rank=4, limit=1)
    write_run(folder / "two", base, 1, HeadSpec(use_proprio=True), rank=8, limit=2)
    return folder


def actions(policy: Policy, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    observations = [
        Observation({"primary": rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)}, INSTRUCTIONS[i % 3], np.linspace(-1, 1, 8))
        for i in range(count)
    ]
    return np.stack([chunk.actions for chunk in policy.predict(observations)])


def share(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("engine", ENGINES)
def test_programs_act_like_the_plain_engine(workplace: Path, engine: str) -> None:
    """Adapters in a bank: each after each other, alone and in batches, by programs that know nothing of the other's numbers."""
    fast, plain = (
        load_adapter_policies({name: workplace / name for name in ("one", "two")}, torch.device("cuda"), torch.bfloat16, options)
        for options in (LoadOptions(engine=engine, max_batch_size=2), LoadOptions(engine="eager"))
    )
    for _ in range(2):
        for name in ("one", "two", "one"):
            for count in (1, 2):
                found, expected = actions(fast[name], count), actions(plain[name], count)
                assert share(found, expected) < FAST_PATHS["recorded programs"].tolerance, (name, count)
    assert share(actions(fast["one"], 1), actions(fast["two"], 1)) > 0.3
    assert fast["one"].in_use()["engine"] == engine
    assert "recorded" not in fast["one"].in_use()["left"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_float8_policy_acts_like_the_bfloat16_one(workplace: Path, engine: str) -> None:
    plain = Policy.from_pretrained(workplace / "one", torch.device("cuda"), options=LoadOptions(engine="eager"))
    options = LoadOptions(engine=engine, quantization="fp8", max_batch_size=2)
    policy = Policy.from_pretrained(workplace / "one", torch.device("cuda"), options=options)
    for count in (1, 2, 1):
        assert 0 < share(actions(policy, count), actions(plain, count)) < FAST_PATHS["fp8 policy"].tolerance
    assert set(policy.in_use()["quantized_layers"]) == {"Fp8Linear"}
    assert np.array_equal(actions(policy, 1), actions(policy, 1))


def test_a_call_that_no_program_serves_is_counted(workplace: Path) -> None:
    policy = Policy.from_pretrained(workplace / "one", torch.device("cuda"), options=LoadOptions(engine="graph", max_batch_size=2))
    actions(policy, 1)
    assert policy.plain_calls == {}
    actions(policy, 3)
    assert policy.plain_calls == {"a larger batch than prepared for": 1}
