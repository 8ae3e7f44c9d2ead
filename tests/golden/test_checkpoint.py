"""Group h_checkpoint: a published checkpoint directory (L1, FiLM, proprio, LoRA) loads, predicts and is written again, key by key."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import assert_matches, golden_path, load_case, load_config, load_json, load_pixels
from safetensors import safe_open

from prismatic.models.action_model import ActionInputs
from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import OpenVLAConfig, TinySizes
from prismatic.models.processor import TOKENIZER_FILES
from prismatic.policy.checkpoint.files import atomic_folder
from prismatic.policy.checkpoint.flags import PolicyFlags
from prismatic.policy.checkpoint.loading import LoadOptions, load_parts
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.checkpoint.saving import save_policy
from prismatic.vla.constants import NormalizationType
from prismatic.vla.normalization import bounds_from_statistics, unnormalize
from prismatic.vla.prompts import append_empty_token

NAME = "h_checkpoint_expected"
STEP = 10


@pytest.fixture(scope="session")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded directory, with what the recording leaves out: a tokenizer, and the sizes of its small vision towers."""
    golden_dir = Path(request.config.getoption("--golden-dir"))
    folder = tmp_path_factory.mktemp("published")
    with tarfile.open(golden_path(golden_dir, "h_checkpoint.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    (checkpoint,) = folder.iterdir()
    write_tiny_base(folder / "base", TinySizes(image_size=28, patch_size=14), seed=0)
    for name in TOKENIZER_FILES:
        if (folder / "base" / name).is_file():
            shutil.copy(folder / "base" / name, checkpoint / name)
    config = json.loads((checkpoint / "config.json").read_text())
    small = load_config(golden_dir)
    config |= {"vision_towers": [asdict(tower) for tower in small.towers], "empty_token_id": small.empty_token_id}
    (checkpoint / "config.json").write_text(json.dumps(config))
    return checkpoint


def _options(settings: dict[str, Any], **changes: Any) -> LoadOptions:
    flags = PolicyFlags(robot_platform="LIBERO", num_images_in_input=settings["num_images"], **changes)
    return LoadOptions(flags=flags, unnorm_key=settings["unnorm_key"])


def _load(golden_dir: Path, checkpoint: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], PolicyParts]:
    settings, recorded = load_case(golden_dir, NAME)
    return settings, recorded, load_parts(checkpoint, torch.device("cpu"), torch.float32, _options(settings))


def _predict(golden_dir: Path, parts: PolicyParts, settings: dict[str, Any], recorded: dict[str, torch.Tensor]) -> torch.Tensor:
    token_ids = parts.config.token_ids
    prompt_ids = torch.tensor([append_empty_token(row, token_ids) for row in recorded["input_ids"].tolist()])
    pixels = load_pixels(golden_dir, settings)
    inputs = ActionInputs.from_prompts(pixels, prompt_ids, None, recorded["proprio"][None], parts.model.num_action_tokens, token_ids)
    bounds = bounds_from_statistics(parts.norm_stats, settings["unnorm_key"], "action", NormalizationType.BOUNDS_Q99)
    return torch.from_numpy(unnormalize(parts.model.predict(inputs)[0].numpy(), bounds))


def test_what_the_files_say(golden_dir: Path, checkpoint: Path) -> None:
    settings, _, parts = _load(golden_dir, checkpoint)
    spec = parts.spec
    assert spec.heads.use_film == settings["film"]
    assert spec.heads.use_proprio
    assert spec.heads.action_head == "l1"
    assert spec.lora is not None
    assert spec.lora.rank == settings["lora_rank"]
    assert len(spec.cameras) == settings["num_images"]
    assert isinstance(parts.config, OpenVLAConfig)


def test_prediction(golden_dir: Path, checkpoint: Path) -> None:
    settings, recorded, parts = _load(golden_dir, checkpoint)
    assert_matches(_predict(golden_dir, parts, settings, recorded), recorded["eval_actions"], "actions")


def test_a_contradicting_flag_is_refused(golden_dir: Path, checkpoint: Path) -> None:
    settings, _ = load_case(golden_dir, NAME)
    with pytest.raises(ValueError, match=r"--use_film False \(the checkpoint: True\)"):
        load_parts(checkpoint, torch.device("cpu"), torch.float32, _options(settings, use_film=False))


def test_written_files_and_keys(golden_dir: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Adapters kept apart and saved again: the published names, keys, shapes and dtypes, and the same policy."""
    settings, recorded, _ = _load(golden_dir, checkpoint)
    layout = load_json(golden_dir, "h_checkpoint_layout.json")["files"]
    options = LoadOptions(**{**vars(_options(settings)), "keep_adapters": True, "base_model": str(checkpoint)})
    parts = load_parts(checkpoint, torch.device("cpu"), torch.float32, options)
    with atomic_folder(tmp_path / f"run--{STEP}_chkpt") as folder:
        save_policy(parts, folder, STEP)
    written = tmp_path / f"run--{STEP}_chkpt"
    names = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    side_effects = {"modeling_prismatic.py", "configuration_prismatic.py"}  # the published code puts them there when it loads
    assert names - {"policy.json", "manifest.json"} == set(layout) - side_effects
    for name, content in layout.items():
        if name.endswith(".safetensors"):
            with safe_open(written / name, "pt") as file:
                found = {key: [list(file.get_slice(key).get_shape()), str(file.get_tensor(key).dtype)] for key in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
            assert found == content["keys"], name
            assert metadata == content["metadata"]
        elif name.endswith(".pt"):
            state = torch.load(written / name, weights_only=True)
            assert {key: [list(value.shape), str(value.dtype)] for key, value in state.items()} == content["keys"], name
        elif "content" in content:
            own = json.loads((written / name).read_text())
            missing = content["content"].keys() - own.keys() - {"_name_or_path", "transformers_version"}
            assert not missing, name
    again = load_parts(written, torch.device("cpu"), torch.float32)
    assert_matches(_predict(golden_dir, again, settings, recorded), _predict(golden_dir, parts, settings, recorded), "actions", 0.1)
