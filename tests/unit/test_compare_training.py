"""scripts/compare_training.py: its runs differ in what is compared alone, the verdict follows from their losses, and it runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from script_modules import load_script

from prismatic.cli_sections import flag_names
from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.training.config import FinetuneConfig

script = load_script("scripts/compare_training.py")
RLDS = Path(__file__).parents[1] / "golden" / "data" / "rlds"


def config(folder: Path, **flags: Any) -> Any:
    second = {"quantize_base": "fp8"}
    return script.CompareTrainingConfig(
        **{"vla_path": str(folder / "base"), "data_root_dir": RLDS, "dataset_name": "libero_spatial_no_noops", "output_dir": folder / "out"}
        | {"second": second}
        | flags
    )


def test_the_sides_differ_in_what_is_compared(tmp_path: Path) -> None:
    one, other = (script.training_flags(config(tmp_path), side, 8) for side in script.SIDES)
    assert {name for name in one | other if one.get(name) != other.get(name)} == {"quantize_base", "run_id_override"}
    assert set(one) <= set(flag_names(FinetuneConfig))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"second": {}}, "--first and --second are both {}"),
        ({"seeds": [7, 7]}, r"--seeds is \[7, 7\]"),
        ({"max_steps": 0}, "--max_steps is 0"),
        ({"flags": {"seed": 3}}, "--flags holds seed, which is the same in all runs"),
        ({"second": {"run_root_dir": "elsewhere"}}, "--second holds run_root_dir"),
    ],
)
def test_what_cannot_be_compared_is_refused(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **flags)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"use_l1_regression": False, "use_diffusion": True}, "--use_l1_regression True and False, --use_diffusion False and True: their"),
        ({"use_val_set": True}, "--use_val_set False and True"),
        ({"robot_platform": "ALOHA"}, "--robot_platform None and ALOHA"),
    ],
)
def test_losses_of_other_kinds_are_not_compared(second: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--first and --second have {told}"):
        script.main(config(tmp_path, second=second))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("second", "learns"), [(0.100, True), (0.1009, True), (0.102, False), (0.05, True)])
def test_the_verdict_follows_from_the_means(second: float, learns: bool, tmp_path: Path) -> None:
    runs = {"first": [{"training loss": 0.09, "seconds a step": 2.0}, {"training loss": 0.11, "seconds a step": 2.0}]}
    runs["second"] = [{"training loss": second, "seconds a step": 1.0}] * 2
    chosen = config(tmp_path, seeds=[7, 8])
    content = script.compare(chosen, runs)
    assert content["learns_as_well"] is learns
    assert ("does NOT learn as well" in script.table(chosen, runs, content)) is not learns


def test_two_short_trainings(tmp_path: Path) -> None:
    sizes = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=2, llm_heads=2, llm_mlp_dim=64)
    write_tiny_base(tmp_path / "base", sizes, seed=0)
    as_documented = {"num_images_in_input": "2", "use_proprio": "True"}  # texts
    flags = as_documented | {"batch_size": 1, "num_workers": 0, "learning_rate": 1e-3}
    chosen = config(tmp_path, flags=flags, seeds=[7], max_steps=2)
    script.main(chosen)
    content = json.loads((chosen.output_dir / "comparison.json").read_text())
    assert content["ratios"]["training loss"] == pytest.approx(1, abs=0.5)
    assert content["ratios"]["training loss"] != 1
    in_use = {side: json.loads((chosen.output_dir / f"{side}-7" / "in_use.json").read_text()) for side in script.SIDES}
    assert in_use["first"]["quantized_layers"] == {}
    assert in_use["first"]["left"] == {
        "compiled": "there is no CUDA device",
        "recorded": "there is no CUDA device",
        "fp8 base": "--quantize_base none",
    }
    assert in_use["second"]["quantized_layers"] == {"Fp8FrozenLinear": 7}
    assert "fp8 base" not in in_use["second"]["left"]
    assert content["in_use"] == in_use
    before = (chosen.output_dir / "comparison.md").read_text()
    assert 'In use, quantized_layers: first {}, second {"Fp8FrozenLinear": 7}.' in before
    (record := chosen.output_dir / "first-7" / "in_use.json").write_text(
        json.dumps({**in_use["first"], "device": "the one that it ran on"})
    )
    script.main(chosen)  # nothing is trained again
    assert json.loads(record.read_text())["device"] == "the one that it ran on", "where nothing is computed, nothing is in use"
    assert (chosen.output_dir / "comparison.md").read_text().startswith(before[: before.index("In use")])
    for flags, told in (
        ({"second": {"quantize_base": "nf4"}}, r"second-7 was trained with --quantize_base fp8, not nf4; choose another --output_dir"),
        ({"max_steps": 1}, r"first-7 was trained with 2 steps, not 1"),
    ):
        with pytest.raises(ValueError, match=told):
            script.main(dataclasses.replace(chosen, **flags))
