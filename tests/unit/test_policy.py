"""A checkpoint folder says all that a policy needs; what is missing, damaged or contradictory is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from experiments.robot.openvla_utils import GenerateConfig, get_processor, get_vla, get_vla_action
from prismatic.doctor.checkpoint import check_checkpoint
from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes
from prismatic.models.sizes import BACKBONES
from prismatic.policy.checkpoint.files import atomic_folder
from prismatic.policy.checkpoint.flags import PolicyFlags
from prismatic.policy.checkpoint.loading import LoadOptions, load_base
from prismatic.policy.checkpoint.parts import PolicyParts, build_action_model
from prismatic.policy.checkpoint.saving import save_policy
from prismatic.policy.checkpoint.spec import HeadSpec, LoraSpec, PolicySpec
from prismatic.policy.checkpoint.told import load_statistics
from prismatic.policy.checkpoint.verification import verify_checkpoint
from prismatic.policy.lora.adapters import add_lora, published_state
from prismatic.policy.policy import Policy
from prismatic.vla.constants import PROMPT_TEMPLATE, ROBOT_PLATFORMS
from prismatic.vla.diagnosis import Status
from prismatic.vla.images import ImageRecipe, round_trip
from prismatic.vla.reference import Reference, small_picture
from prismatic.vla.types import Observation

SIZES = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
STATISTICS: dict[str, Any] = {
    "arm": {
        "action": {
            "min": [-1.0, -2.0, 0.0, 1.0],
            "max": [1.0, 2.0, 4.0, 1.0],
            "q01": [-1.0, -2.0, 0.0, 1.0],
            "q99": [1.0, 2.0, 4.0, 1.0],
            "mask": [True, True, True, False],
        },
        "proprio": {"min": [0.0] * 4, "max": [1.0] * 4, "q01": [0.0] * 4, "q99": [1.0] * 4},
    }
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> PolicyParts:
    """A policy of a METAWORLD arm with random weights; its fourth action dimension never changed in the data."""
    return make_parts(tmp_path_factory.mktemp("base") / "base", "llama")


def make_parts(folder: Path, backbone: str) -> PolicyParts:
    write_tiny_base(folder, replace(SIZES, backbone=backbone), seed=0)
    base = load_base(folder, torch.float32)
    heads, platform = HeadSpec(use_proprio=True), ROBOT_PLATFORMS["METAWORLD"]
    torch.manual_seed(0)
    image = ImageRecipe(size=28, jpeg_round_trip=True, center_crop=True)
    prompt = base.vla.config.token_ids.prompt_template
    spec = PolicySpec(platform, ("primary", "wrist"), image, unnorm_key="arm", heads=heads, prompt=prompt)
    model = build_action_model(base.vla, base.vla.config, spec)
    return PolicyParts(model.eval(), base.vla.config, base.processor, spec, STATISTICS)


@pytest.fixture
def folder(parts: PolicyParts, tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    target.mkdir()
    save_policy(parts, target, step=3)
    return target


def observation(instruction: str = "open the door", **changes: Any) -> Observation:
    rng = np.random.default_rng(1)
    images = {name: rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for name in ("wrist", "primary")}
    return Observation(**{"images": images, "instruction": instruction, "proprio": np.array([0.1, 0.5, 0.9, 0.3]), **changes})


def test_saving_and_loading_is_a_round_trip(parts: PolicyParts, folder: Path) -> None:
    loaded = Policy.from_pretrained(folder, device="cpu")
    assert loaded.spec == parts.spec
    expected, found = (policy.predict([observation()])[0].actions for policy in (Policy(parts), loaded))
    np.testing.assert_allclose(found, expected, atol=0.02)  # weights are stored in bfloat16


def test_a_policy_of_qwens_form_is_saved_loaded_and_keeps_its_prompt(tmp_path: Path) -> None:
    parts, folder = make_parts(tmp_path / "base", "qwen"), tmp_path / "checkpoint"
    folder.mkdir()
    save_policy(parts, folder, step=3)
    loaded = Policy.from_pretrained(folder, device="cpu")
    assert loaded.spec.prompt.startswith("<|im_start|>system\nYou are Qwen")
    expected, found = (policy.predict([observation()])[0].actions for policy in (Policy(parts), loaded))
    np.testing.assert_allclose(found, expected, atol=0.02)
    text = (folder / "policy.json").read_text()
    described = json.loads(text)
    (folder / "policy.json").write_text(json.dumps({**described, "prompt": PROMPT_TEMPLATE}))
    with pytest.raises(ValueError, match=r"policy\.json says the prompt 'In: What action .* the files belong to different checkpoints"):
        Policy.from_pretrained(folder, device="cpu")
    (folder / "policy.json").write_text(text)
    write_tiny_base(tmp_path / "llama", SIZES, seed=0)
    shutil.copy(tmp_path / "llama" / "tokenizer.json", folder)
    with pytest.raises(ValueError, match=r"the language model is Qwen's, but its tokenizer has not <\|im_start\|> at"):
        Policy.from_pretrained(folder, device="cpu")


def test_pictures_that_were_jpeg_files_on_their_way_give_the_same_actions_to_the_bit(folder: Path) -> None:
    policy, seen = Policy.from_pretrained(folder, device="cpu"), observation()
    tripped = {name: round_trip(image) for name, image in seen.images.items()}
    travelled = replace(seen, images=tripped, is_round_tripped=True)
    expected = policy.predict([seen])[0].actions
    np.testing.assert_array_equal(policy.predict([travelled])[0].actions, expected)
    one, other = policy.predict([seen, travelled])  # of two robots, one of which sends raw pictures
    np.testing.assert_array_equal(one.actions, other.actions)
    assert (policy.predict([replace(seen, images=tripped)])[0].actions != expected).any(), "a second round trip changes pixels"


def test_what_training_saw_comes_along_and_warns_before_the_first_action(
    parts: PolicyParts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng, sizes = np.random.default_rng(0), {"primary": 60, "wrist": 180}
    bright = {name: np.clip(rng.normal(level, 30, (40, 40, 3)), 0, 255).astype(np.uint8) for name, level in sizes.items()}
    reference = Reference({name: small_picture(image)[None] for name, image in bright.items()}, ("open the door",))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_policy(replace(parts, reference=reference), folder, step=3)
    policy = Policy.from_pretrained(folder, device="cpu")
    policy.predict([observation(images=bright)])
    assert policy.watch.warnings == []
    exchanged = {"primary": bright["wrist"], "wrist": bright["primary"]}
    policy.predict([observation("close the window", images=exchanged, proprio=np.array([0.1, 0.5, 900.0, 0.3]))])
    cameras, instruction, state = policy.watch.warnings
    assert cameras.startswith("the cameras primary and wrist are exchanged")
    assert instruction.startswith("the instruction 'close the window' was not among the 1 of training")
    assert "z [m] = 900 (training: 0 to 1). It looks like millimetres" in state
    assert all(text in caplog.text for text in policy.watch.warnings)


def test_policy_json_with_cameras_in_another_order_than_training_is_refused(parts: PolicyParts, tmp_path: Path) -> None:
    frames = {name: np.zeros((2, 32, 32, 3), np.uint8) for name in ("wrist", "primary")}
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_policy(replace(parts, reference=Reference(frames)), folder, step=3)
    with pytest.raises(ValueError, match=r"policy\.json lists the cameras primary, wrist, training had wrist, primary"):
        Policy.from_pretrained(folder, device="cpu")


def test_a_library_that_makes_attention_causal_keeps_a_policy_from_being_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = F.scaled_dot_product_attention

    def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        return attend(query, key, value, is_causal=True)

    monkeypatch.setattr(F, "scaled_dot_product_attention", causal)
    with pytest.raises(ValueError, match="causal attention: the first token does not see the last one"):
        Policy.from_pretrained(folder, device="cpu")


def test_a_description_that_was_edited_is_reported_and_impossible_statistics_are_refused(
    parts: PolicyParts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoint"
    with atomic_folder(folder) as temporary:
        save_policy(parts, temporary, step=3)
    Policy.from_pretrained(folder, device="cpu")
    assert caplog.text == ""
    path = folder / "policy.json"
    path.write_text(path.read_text().replace("bounds_q99", "bounds"))
    Policy.from_pretrained(folder, device="cpu")
    assert "policy.json changed since training saved it" in caplog.text
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    action = statistics["arm"]["action"]
    action["max"], action["q99"] = action["q99"], [3.0, *action["max"][1:]]
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ValueError, match=r"q99 3 is above max 1 in dimension 0.*Were the keys exchanged"):
        Policy.from_pretrained(folder, device="cpu")


def test_a_sample_is_the_same_alone_and_beside_a_longer_prompt(folder: Path) -> None:
    policy = Policy.from_pretrained(folder, device="cpu")
    short, long = observation("push"), observation("slowly push the small red block to the left of the big green bowl")
    together = policy.predict([short, long])
    for alone, chunk in zip((short, long), together, strict=True):
        np.testing.assert_allclose(chunk.actions, policy.predict([alone])[0].actions, atol=1e-5)


def test_predicting_changes_nothing_and_ignores_the_order_of_cameras(folder: Path) -> None:
    policy = Policy.from_pretrained(folder, device="cpu")
    seen = observation()
    before = {name: image.copy() for name, image in seen.images.items()}
    reordered = replace(seen, images={name: seen.images[name] for name in ("primary", "wrist")})
    np.testing.assert_array_equal(policy.predict([seen])[0].actions, policy.predict([reordered])[0].actions)
    assert all(np.array_equal(before[name], seen.images[name]) for name in before)
    np.testing.assert_array_equal(seen.proprio, [0.1, 0.5, 0.9, 0.3])


def test_a_dimension_that_never_changed_keeps_its_value(folder: Path) -> None:
    actions = Policy.from_pretrained(folder, device="cpu").predict([observation()])[0].actions
    assert actions.shape == (8, 4)
    np.testing.assert_array_equal(actions[:, 3], 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"primary": np.zeros((4, 4, 3), np.uint8)}}, "lacks camera 'wrist'"),
        ({"proprio": None}, "proprio must hold 4 values .* found none"),
        ({"proprio": np.zeros(7)}, "proprio must hold 4 values .* found 7 values"),
        ({"instruction": " "}, "instruction is empty"),
        ({"instruction": b"open"}, r"the instruction must be a text \(str\), found bytes b'open'; decode bytes first"),
        ({"instruction": None}, r"the instruction must be a text \(str\), found NoneType None"),
    ],
)
def test_an_observation_that_does_not_fit_is_described(folder: Path, changes: dict[str, Any], message: str) -> None:
    policy = Policy.from_pretrained(folder, device="cpu")
    with pytest.raises(ValueError, match=message):
        policy.predict([observation(**changes)])


def test_an_image_that_is_no_image_is_described() -> None:
    with pytest.raises(ValueError, match=r"camera 'primary': expected a uint8 RGB array .* found float32 \[4, 4, 3\]"):
        observation(images={"primary": np.zeros((4, 4, 3), np.float32)})


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("policy.json", "has no policy.json"),
        ("action_head--3_checkpoint.pt", "exactly one file action_head--"),
        ("proprio_projector--3_checkpoint.pt", "exactly one file proprio_projector--"),
        ("model.safetensors", "holds neither model.safetensors nor lora_adapter/"),
        ("config.json", "lacks config.json"),
        ("preprocessor_config.json", "lacks preprocessor_config.json"),
        ("tokenizer.json", "lacks tokenizer.json"),
    ],
)
def test_a_missing_file_is_named(folder: Path, file: str, message: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ValueError, match=message):
        Policy.from_pretrained(folder, device="cpu")


def test_statistics_that_the_models_config_carries_stand_in_for_their_file(folder: Path) -> None:
    before = Policy.from_pretrained(folder, device="cpu").predict([observation()])[0].actions
    (folder / "dataset_statistics.json").unlink()
    np.testing.assert_array_equal(Policy.from_pretrained(folder, device="cpu").predict([observation()])[0].actions, before)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_stats": None}))
    with pytest.raises(ValueError, match=r"lacks dataset_statistics.json"):
        Policy.from_pretrained(folder, device="cpu")


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be read"):
        Policy.from_pretrained(folder, device="cpu")


def test_weights_that_lack_a_key_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["projector.fc1.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its config.json:\n  missing projector.fc1.bias \[128\]"):
        Policy.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.pop("cameras"), "lacks the field 'cameras'"),
        (lambda spec: spec["heads"].update(colour=1), "HeadSpec has no field colour"),
        (lambda spec: spec.update(format_version=9), "format_version 9"),
        (lambda spec: spec.update(prompt="Do {instruction}"), "trained with the prompt 'Do {instruction}'"),
        (lambda spec: spec["heads"].update(action_head="magic"), "action head 'magic' is unknown"),
    ],
)
def test_a_policy_json_that_was_edited_wrongly_is_described(folder: Path, change: Any, message: str) -> None:
    content = json.loads((folder / "policy.json").read_text())
    change(content)
    (folder / "policy.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Policy.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", r"policy\.json holds a JSON list, expected an object; copy"),
        (b"null", r"policy\.json holds a JSON NoneType, expected an object"),
        (b"\xff\xfe", r"policy\.json is not valid JSON"),
        (b'{"format_version": 1, "platform": []}', r"policy\.json lacks the field 'normalization'"),
    ],
)
def test_a_policy_json_that_is_something_else_is_named(folder: Path, content: bytes, message: str) -> None:
    (folder / "policy.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Policy.from_pretrained(folder, device="cpu")
    assert any(finding.status == Status.PROBLEM for finding in verify_checkpoint(folder))


def test_a_published_folder_knows_its_data_sets_by_name(folder: Path) -> None:
    (folder / "policy.json").unlink()
    options = LoadOptions(flags=PolicyFlags(num_images_in_input=1))
    with pytest.raises(ValueError, match=r"unnorm_key 'leg' is not in the statistics of .*checkpoint; known: arm"):
        Policy.from_pretrained(folder, device="cpu", unnorm_key="leg", options=options)


def test_the_doctor_wants_the_tokenizer_that_loading_wants(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    [found] = [finding for finding in verify_checkpoint(folder) if finding.status == Status.PROBLEM]
    assert found.found == "lacks tokenizer.json"
    with pytest.raises(ValueError, match=r"lacks tokenizer\.json"):
        Policy.from_pretrained(folder, device="cpu")


def test_an_unknown_unnorm_key_lists_the_known_ones(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unnorm_key 'leg' .* \['arm'\]"):
        Policy.from_pretrained(folder, device="cpu", unnorm_key="leg")


def test_familiar_functions_answer_in_the_units_that_are_asked_for_now(folder: Path) -> None:
    wide = {
        part: {name: row if name == "mask" else [10 * value for value in row] for name, row in entry.items()}
        for part, entry in STATISTICS["arm"].items()
    }
    (folder / "dataset_statistics.json").write_text(json.dumps({**STATISTICS, "wide": {**wide, "proprio": STATISTICS["arm"]["proprio"]}}))
    cfg = GenerateConfig(pretrained_checkpoint=folder, engine="eager", unnorm_key="arm")
    vla, seen = get_vla(cfg), observation()
    obs = {"full_image": seen.images["primary"], "wrist_image": seen.images["wrist"], "state": seen.proprio}

    def act() -> np.ndarray:
        return np.stack(get_vla_action(cfg, vla, get_processor(cfg), obs, "open the door"))

    narrow = act()
    cfg.unnorm_key = "wide"
    np.testing.assert_allclose(act(), 10 * narrow, rtol=1e-5, atol=1e-6)
    cfg.unnorm_key = "arm"
    np.testing.assert_array_equal(act(), narrow)
    cfg.unnorm_key = "leg"
    with pytest.raises(ValueError, match="unnorm_key 'leg' is not in"):
        get_vla_action(cfg, vla, vla.parts.processor, obs, "open the door")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_statistics_that_are_no_numbers_are_refused(parts: PolicyParts, value: float | None) -> None:
    action = {**STATISTICS["arm"]["action"], "q99": [1.0, 2.0, value, 1.0]}
    with pytest.raises(ValueError, match=rf"q99 is {value} in dimension 2, expected a finite number, one for each dimension; take"):
        Policy(replace(parts, norm_stats={"arm": {**STATISTICS["arm"], "action": action}}))


def _edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dataset_statistics.json", lambda all_: all_.update(arm=-1), "statistics of 'arm' lack 'action'; found -1"),
        ("dataset_statistics.json", lambda all_: all_["arm"]["action"].update(q01=None), "q01 is None, expected a list of numbers"),
        ("dataset_statistics.json", lambda all_: all_["arm"]["action"].update(max=-1), "max is -1, expected a list of numbers"),
        (
            "dataset_statistics.json",
            lambda all_: all_["arm"]["action"].update(mask=True),
            "mask is True, expected a list of true and false",
        ),
        ("dataset_statistics.json", lambda all_: all_["arm"]["action"].update(mask=[None] * 4), r"mask is \[None, .* true and false"),
        ("dataset_statistics.json", lambda all_: all_["arm"]["proprio"].update(q01=[{}] * 4), r"q01 is \[{}, .*expected a list of numbers"),
        ("dataset_statistics.json", lambda all_: all_["arm"]["action"]["max"].__setitem__(0, 0), "q99 1 is above max 0 in dimension 0"),
        ("policy.json", lambda spec: spec.update(cameras={"primary": 1}), r"cameras is .*, expected tuple\[str, \.\.\.\]"),
        ("policy.json", lambda spec: spec.update(cameras=[1.5]), r"cameras is \[1\.5\], expected tuple\[str, \.\.\.\]"),
        ("policy.json", lambda spec: spec.update(base_model={"a": 1}), r"base_model is .*, expected str \| None"),
        ("policy.json", lambda spec: spec.update(base_files=-1), r"base_files is -1, expected Mapping\[str, str\]"),
        ("policy.json", lambda spec: spec.update(provenance=0), r"provenance is 0, expected Mapping\[str, Any\]"),
        ("policy.json", lambda spec: spec["platform"].update(num_actions_chunk=1.5), "num_actions_chunk is 1.5, expected int"),
        ("policy.json", lambda spec: spec["platform"].update(action_names="abcd"), r"action_names is 'abcd', expected tuple\[str"),
        ("policy.json", lambda spec: spec["image"].update(center_crop="no"), "center_crop is 'no', expected bool"),
        ("policy.json", lambda spec: spec["heads"].update(use_proprio=1), "use_proprio is 1, expected bool"),
    ],
)
def test_values_of_another_kind_are_named_by_loading_and_by_the_doctor(folder: Path, name: str, change: Any, message: str) -> None:
    _edit(folder / name, change)
    with pytest.raises(ValueError, match=message):
        Policy.from_pretrained(folder, device="cpu")
    assert any(finding.status == Status.PROBLEM for finding in verify_checkpoint(folder))


def test_images_of_another_size_than_the_models_are_refused_when_it_loads(folder: Path) -> None:
    _edit(folder / "policy.json", lambda spec: spec["image"].update(size=56))
    with pytest.raises(ValueError, match=r"policy\.json says images of the size 56, its model was made for 28; the files belong to"):
        Policy.from_pretrained(folder, device="cpu")


def test_familiar_functions_see_what_training_saved_below_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    cfg = GenerateConfig(pretrained_checkpoint=f"~/{folder.name}", engine="eager")
    vla = get_vla(cfg)
    assert get_vla(cfg) is vla
    _edit(folder / "dataset_statistics.json", lambda all_: all_["arm"]["action"]["q99"].__setitem__(0, 0.5))
    assert get_vla(cfg).action_bounds.high[0] == 0.5


def test_a_manifest_that_is_none_is_not_compared_with(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"sizes": [1]}))
    Policy.from_pretrained(folder, device="cpu")
    assert not [finding for finding in verify_checkpoint(folder) if finding.status == Status.PROBLEM]


def test_statistics_without_extremes_are_enough_to_act_and_to_look_at_states(parts: PolicyParts) -> None:
    bounds = {"q01": [0.0] * 4, "q99": [1.0] * 4}
    policy = Policy(replace(parts, norm_stats={"arm": {"action": bounds, "proprio": bounds}}))
    assert np.isfinite(policy.predict([observation()])[0].actions).all()
    assert policy.watch.warnings == []
    policy.predict([observation("close the door", proprio=np.full(4, 90.0))])
    assert "the state is far from all that training saw" in policy.watch.warnings[0]
    assert policy.demonstrated.action_low == (0.0,) * 4


def test_statistics_of_another_robots_state_are_refused(parts: PolicyParts) -> None:
    proprio = {name: row[:3] for name, row in STATISTICS["arm"]["proprio"].items()}
    with pytest.raises(ValueError, match="statistics of 'arm' describe 3 proprio dimensions, platform METAWORLD has 4"):
        Policy(replace(parts, norm_stats={"arm": {**STATISTICS["arm"], "proprio": proprio}}))


def test_a_policy_of_several_data_sets_asks_for_one(parts: PolicyParts) -> None:
    with pytest.raises(ValueError, match="pass unnorm_key, one of arm"):
        Policy(replace(parts, spec=replace(parts.spec, unnorm_key=None)))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_merging_gives_what_the_adapters_give(tmp_path: Path, backbone: str) -> None:
    write_tiny_base(tmp_path / "base", replace(SIZES, backbone=backbone), seed=0)
    base = load_base(tmp_path / "base", torch.float32)
    plain = {key: value.clone() for key, value in base.vla.state_dict().items()}
    adapted = add_lora(base.vla, LoraSpec(rank=4))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    merged = published_state(adapted, torch.float32)
    expected = adapted.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys() == plain.keys()
    for key in merged:
        torch.testing.assert_close(merged[key], expected[key], atol=1e-6, rtol=1e-5)
    if backbone == "qwen":  # whose token head is the embeddings, and is not adapted
        assert not any("lm_head" in key for key in merged)
    else:
        assert not torch.equal(merged["language_model.lm_head.weight"], plain["language_model.lm_head.weight"])


def test_a_policy_in_a_runs_folder_is_told_from_newer_ones_beside_it(
    parts: PolicyParts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """--save_latest_checkpoint_only for a while, then --resume True without it."""
    for name, step in (("run", 4), ("run--2_chkpt", 2)):
        (tmp_path / name).mkdir()
        spec = replace(parts.spec, provenance={"step": step})
        save_policy(replace(parts, spec=spec), tmp_path / name, step=None)
    for name in (".run.tmp", "run--20_chkpt.left1"):
        shutil.copytree(tmp_path / "run--2_chkpt", tmp_path / name)
    with pytest.raises(ValueError, match=rf"holds no checkpoint: pass {tmp_path / 'run'}$"):
        load_statistics(tmp_path)
    Policy.from_pretrained(tmp_path / "run", device="cpu")
    assert "holds the policy of step" not in caplog.text
    newer = (tmp_path / "run--2_chkpt").rename(tmp_path / "run--10_chkpt")
    Policy.from_pretrained(newer, device="cpu")
    assert "holds the policy of step" not in caplog.text
    Policy.from_pretrained(tmp_path / "run", device="cpu")
    told = f"{tmp_path / 'run'} holds the policy of step 4, which is taken; {newer} is of step 10"
    assert told in caplog.text
    assert told in [finding.found for finding in check_checkpoint(tmp_path / "run")]


def test_a_base_that_is_named_for_a_whole_model_is_said_not_to_be_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Policy.from_pretrained(folder, device="cpu", options=LoadOptions(base_model="some/base"))
    assert f"{folder} holds a whole model, which is what acts; the base model some/base is not read" in caplog.text


def test_neither_folder_nor_hub_id(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
        Policy.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize(("device", "message"), [("gpu", "'gpu' is unknown to torch; pass cuda"), ("cuda:99", "'cuda:99': torch sees ")])
def test_a_device_that_is_not_here_is_named(folder: Path, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"device {message}"):
        Policy.from_pretrained(folder, device)
