"""d_unnormalize: actions back to robot units, proprio to [-1, 1], with both kinds of statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_cases import load_case, load_json, parametrize_cases

from prismatic.vla.constants import NormalizationType
from prismatic.vla.normalization import Bounds, normalize_proprio_published, unnormalize


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_cases(metafunc, {"case": "*.d_unnormalize"})


def _split_name(name: str, prefix: str) -> tuple[NormalizationType, str]:
    """`unnormalized_bounds_q99_libero_masked` -> (BOUNDS_Q99, "libero_masked")."""
    rest = name.removeprefix(f"{prefix}_")
    kind = NormalizationType.BOUNDS_Q99 if rest.startswith("bounds_q99_") else NormalizationType.BOUNDS
    return kind, rest.removeprefix(f"{kind.value}_")


def test_actions(golden_dir: Path, case: str) -> None:
    settings, recorded = load_case(golden_dir, case)
    statistics = load_json(golden_dir, settings["statistics"])
    names = [name for name in recorded if name.startswith("unnormalized_")]
    assert names
    for name in names:
        kind, key = _split_name(name, "unnormalized")
        found = unnormalize(recorded["normalized_actions_f64"].numpy(), Bounds.from_statistics(statistics[key]["action"], kind))
        np.testing.assert_allclose(found, recorded[name].numpy(), rtol=0, atol=1e-12, err_msg=name)


def test_proprio(golden_dir: Path, case: str) -> None:
    settings, recorded = load_case(golden_dir, case)
    statistics = load_json(golden_dir, settings["statistics"])
    names = [name for name in recorded if name.startswith("proprio_")]
    assert names
    for name in names:
        kind, key = _split_name(name, "proprio")
        entry = dict(statistics[settings["keys"][0] if key.startswith("with_mask") else key]["proprio"])
        if key == "with_mask_last_false":
            entry["mask"] = [True] * (len(entry["min"]) - 1) + [False]
        found = normalize_proprio_published(recorded["raw_proprio_f64"].numpy(), Bounds.from_statistics(entry, kind))
        np.testing.assert_allclose(found, recorded[name].numpy(), rtol=0, atol=1e-12, err_msg=name)
