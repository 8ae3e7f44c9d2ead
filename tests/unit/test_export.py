"""An exported policy gives the policy's own actions, in a process that knows neither this project nor transformers nor peft."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_policies import make_observations, make_parts
from script_modules import load_script

from prismatic.cli import run_script
from prismatic.models.base import tokenizer_texts
from prismatic.policy.checkpoint.loading import load_parts
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.checkpoint.saving import save_policy
from prismatic.policy.export import ExportedCall, example_inputs, export_policy, export_program
from prismatic.policy.policy import Policy
from prismatic.policy.run_policy import ExportedPolicy
from prismatic.vla.datasets.locks import locked

LENGTHS = (24, 37)  # of the prompt; the first is the one that the program was traced with

_RUN = """
import json, sys
from pathlib import Path
import numpy as np
folder, kind = Path(sys.argv[1]), sys.argv[2]
samples = [np.load(folder.parent / f"inputs_{length}.npz") for length in (24, 37)]
wanted = set(json.loads((folder / "processor.json").read_text())["inputs"])
if kind == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(str(folder / "policy.onnx"), providers=["CPUExecutionProvider"])
    assert {item.name for item in session.get_inputs()} == wanted
    results = [session.run(["actions"], {name: sample[name] for name in wanted})[0] for sample in samples]
else:
    import torch
    program = torch.export.load(folder / "policy.pt2").module()
    results = [program(**{name: torch.from_numpy(sample[name]) for name in wanted}).numpy() for sample in samples]
sys.path.insert(0, str(folder))
from run_policy import ExportedPolicy
seen = dict(np.load(folder.parent / "observation.npz"))
policy = ExportedPolicy(folder, {"onnx": "policy.onnx", "torch": "policy.pt2"}[kind])
told = ("Push the BLOCK", seen.pop("proprio"), seen.pop("noise", None))
results.append(policy.act(seen, *told))
refused = (
    ({**seen, "wrist": seen["wrist"][..., 0]}, *told),
    ({"primary": seen["primary"]}, *told),
    (seen, "push " * 300, *told[1:]),
    (seen, " ", *told[1:]),
    (seen, told[0], told[1][:2], told[2]),
    (seen, told[0], told[1] * float("nan"), told[2]),
)
for observation in refused:
    try:
        policy.act(*observation)
    except ValueError as error:
        print(error)
foreign = {"transformers", "peft", "prismatic"} & set(sys.modules)
assert not foreign, foreign
np.savez(folder.parent / f"results_{kind}.npz", *results)
"""


REFUSED = """camera 'wrist': expected a uint8 RGB array [height, width, 3], found uint8 [30, 40]
camera 'wrist': expected a uint8 RGB array [height, width, 3], found nothing
the instruction makes a prompt of
the instruction is empty; say what the robot should do, for example 'open the drawer'
proprio must hold 4 finite numbers (x [m], y [m], z [m], gripper), found
proprio must hold 4 finite numbers (x [m], y [m], z [m], gripper), found""".splitlines()


def _whole(head: str, backbone: str) -> PolicyParts:
    """A policy with the files of its tokenizer, and with units: a gripper that is not normalised, a dimension that never changed."""
    parts = make_parts(head, backbone)
    files = tokenizer_texts(parts.processor.tokenizer)
    low, high, mask = [-2.0, 0.5, 0.0, -1.0], [3.0, 0.5, 1.0, 1.0], [True, True, True, False]
    bounds = {"min": low, "max": high, "q01": low, "q99": high, "mask": mask}
    units = {"arm": {"action": bounds, "proprio": bounds}}
    return replace(parts, norm_stats=units, processor=replace(parts.processor, tokenizer_files=files))


def _check(parts: PolicyParts, folder: Path, kind: str) -> None:
    call = ExportedCall(parts).eval()
    for length in LENGTHS:
        np.savez(folder.parent / f"inputs_{length}.npz", **{name: value.numpy() for name, value in example_inputs(parts, length).items()})
    policy, observation = Policy(parts), make_observations(1)[0]
    noise = {} if parts.spec.heads.action_head != "diffusion" else {"noise": policy._noise(1, [3])}
    np.savez(folder.parent / "observation.npz", **observation.images, proprio=observation.proprio, **noise)
    command = [sys.executable, "-I", "-c", _RUN, str(folder), kind]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    refused = REFUSED if parts.spec.heads.use_proprio else REFUSED[:4]
    assert all(line.startswith(start) for line, start in zip(said, refused, strict=True)), said
    found = np.load(folder.parent / f"results_{kind}.npz")
    acted = policy.predict([replace(observation, instruction="Push the BLOCK")], seeds=[3])[0].actions
    np.testing.assert_allclose(found[found.files[-1]], acted, atol=1e-3)  # a pixel may be rounded otherwise
    for length, name in zip(LENGTHS, found.files[:-1], strict=True):
        with torch.no_grad():
            expected = call(**example_inputs(parts, length))
        np.testing.assert_allclose(found[name], expected.numpy(), atol=1e-4)


def test_both_programs_of_a_checkpoint_act_alone(tmp_path: Path) -> None:
    script, checkpoint, folder = load_script("scripts/export.py"), tmp_path / "checkpoint", tmp_path / "exported"
    checkpoint.mkdir()
    save_policy(_whole("l1", "qwen"), checkpoint, step=None)
    config = script.ExportConfig(str(checkpoint), folder)
    script.main(config)
    parts = load_parts(checkpoint, torch.device("cpu"), torch.float32)
    assert {"policy.pt2", "processor.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    described = json.loads((folder / "processor.json").read_text())
    assert described["inputs"]["prompt_ids"] == {"shape": [1, "L"], "dtype": "int64"}
    assert described["images"]["cameras"] == ["primary", "wrist"]
    assert described["prompt"]["template"].startswith("<|im_start|>")
    assert described["normalization"]["statistics"] == parts.norm_stats
    for kind in ("torch", "onnx"):
        _check(parts, folder, kind)
    with pytest.raises(ValueError, match="exists already"):
        script.main(config)


def test_a_published_checkpoint_is_exported_with_the_flags_that_its_messages_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script, checkpoint, folder = load_script("scripts/export.py"), tmp_path / "checkpoint", tmp_path / "exported"
    checkpoint.mkdir()
    save_policy(_whole("diffusion", "llama"), checkpoint, step=None)
    (checkpoint / "policy.json").unlink()
    flags = ["--pretrained_checkpoint", str(checkpoint), "--output_dir", str(folder), "--formats", "torch"]

    def export(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["export.py", *flags, *more])
        run_script(script.main, script.ExportConfig)

    with pytest.raises(SystemExit):
        export("--robot_platform", "METAWORLD")
    assert "pass --num_images_in_input, as in training" in caplog.text
    steps = ("--num_diffusion_steps_train", "10", "--num_diffusion_steps_inference", "2")
    export("--robot_platform", "METAWORLD", "--num_images_in_input", "2", "--published_normalization", "True", *steps)
    described = json.loads((folder / "processor.json").read_text())
    assert described["normalization"]["published"]
    assert described["images"]["cameras"] == ["primary", "wrist"]


def test_statistics_that_do_not_fit_are_not_exported(tmp_path: Path) -> None:
    parts = _whole("l1", "llama")
    bounds = parts.norm_stats["arm"]["action"]
    for action, message in (
        ({**bounds, "q99": [3.0, float("nan"), 1.0, 1.0]}, "q99 is nan in dimension 1"),
        ({name: row[:3] for name, row in bounds.items()}, "describe 3 action dimensions, platform METAWORLD has 4"),
    ):
        units = {"arm": {**parts.norm_stats["arm"], "action": action}}
        with pytest.raises(ValueError, match=message):
            export_policy(replace(parts, norm_stats=units), tmp_path / "exported", ("torch",))
    assert not list(tmp_path.iterdir())


def test_flags_that_cannot_be_are_refused(tmp_path: Path) -> None:
    script = load_script("scripts/export.py")
    for flags, message in (
        ({"formats": []}, "--formats is empty, so nothing would run"),
        ({"formats": ["tflite"]}, "--formats: tflite is unknown; choose among torch, onnx, aoti"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16: ONNX Runtime does not open such a program; pass float16, or --formats torch"),
        ({"dtype": "int8"}, "--dtype is 'int8'; choose one of float32"),
        ({"pretrained_checkpoint": ""}, "--pretrained_checkpoint missing"),
    ):
        with pytest.raises(ValueError, match=message):
            script.ExportConfig(**{"pretrained_checkpoint": "runs/x", "output_dir": tmp_path / "y", **flags})


def test_onnx_runtime_denoises_as_the_policy_does(tmp_path: Path) -> None:
    parts, folder = _whole("diffusion", "qwen"), tmp_path / "exported"
    heads = replace(parts.spec.heads, num_diffusion_steps_inference=2)  # each step is a copy of the model's operations
    parts = replace(parts, spec=replace(parts.spec, heads=heads))
    export_policy(parts, folder, ("onnx",))
    _check(parts, folder, "onnx")


@pytest.mark.parametrize("head", ["film", "discrete"])
def test_programs_of_other_heads_give_the_same_actions(head: str) -> None:
    parts = make_parts(head)
    call, example = ExportedCall(parts).eval(), example_inputs(parts)
    program = export_program(call, example).module()
    for length in LENGTHS:
        example = example_inputs(parts, length)
        torch.testing.assert_close(program(**example), call(**example), atol=1e-4, rtol=0)


def test_what_the_tokenizer_was_last_used_with_does_not_matter(tmp_path: Path) -> None:
    """tokenizer.json keeps padding and truncation, which transformers leaves out of account: prompts were cut off, or filled up."""
    parts, folder = _whole("l1", "llama"), tmp_path / "exported"
    export_policy(parts, folder, ("torch",))
    seen = make_observations(1)[0]
    expected = ExportedPolicy(folder).act(seen.images, "push the block", seen.proprio)
    content = json.loads((folder / "tokenizer.json").read_text())
    filled = {
        "strategy": {"Fixed": 60},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    cut = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_text(json.dumps({**content, "padding": filled, "truncation": cut}))
    np.testing.assert_array_equal(ExportedPolicy(folder).act(seen.images, "push the block", seen.proprio), expected)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"lacks tokenizer\.json; pass the whole folder"):
        ExportedPolicy(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "processor.json").write_text('{"inputs": ')  # cut off by a copy that did not end
    with pytest.raises(ValueError, match=r"processor\.json is damaged .* copy the whole folder again"):
        ExportedPolicy(folder)


def test_actions_that_are_no_numbers_reach_no_robot(tmp_path: Path) -> None:
    """As a policy's that overflows in float16; a server does not send them either."""
    parts, seen = _whole("l1", "llama"), make_observations(1)[0]
    for parameter in parts.model.action_head.parameters():
        parameter.fill_(1e30)
    export_policy(parts, tmp_path / "exported", ("torch",))
    with pytest.raises(ValueError, match=r"predicted actions that are not finite.* --dtype float32"):
        ExportedPolicy(tmp_path / "exported").act(seen.images, "push", seen.proprio)


def test_a_small_computer_runs_what_it_has_the_package_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch in the place of onnxruntime, as SETUP.md says; both this and a missing simplejpeg ended in a trace."""
    folder, seen = tmp_path / "exported", make_observations(1)[0]
    export_policy(_whole("l1", "llama"), folder, ("torch",))
    (folder / "policy.onnx").write_bytes(b"not opened")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert ExportedPolicy(folder).act(seen.images, "push", seen.proprio).shape == (8, 4)
    with pytest.raises(ValueError, match=r"not installed here, and needed to run .*exported: onnxruntime; get it with pip install"):
        ExportedPolicy(folder, "policy.onnx")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="simplejpeg, onnxruntime or torch; get it with pip install"):
        ExportedPolicy(folder)


def test_what_a_killed_export_left_goes_with_the_next(tmp_path: Path) -> None:
    """Hidden beside the output, and as large as the policy, it stayed for good."""
    left = tmp_path / ".exported.exporting"
    left.mkdir()
    (left / "policy.pt2").write_bytes(b"half")
    with locked(tmp_path / ".exported.exporting.lock"), pytest.raises(ValueError, match=r"exports into .*exported; wait for it"):
        export_policy(_whole("l1", "llama"), tmp_path / "exported", ("torch",))
    assert left.is_dir()
    export_policy(_whole("l1", "llama"), tmp_path / "exported", ("torch",))
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert (tmp_path / "exported" / "policy.pt2").stat().st_size > len(b"half")


def test_what_keeps_a_policy_from_being_exported_is_said_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("scripts/export.py")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="aoti needs a C\\+\\+ compiler, and there is no no-such-compiler here"):
        script.main(script.ExportConfig("no/policy", tmp_path / "exported", ["aoti"]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="ONNX files need the packages onnx and onnxscript"):
        script.main(script.ExportConfig("no/policy", tmp_path / "exported", ["onnx"]))


def test_without_the_packages_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'ONNX files need the packages onnx and onnxscript; pip install "openvla-oft-robot\[export\]"'):
        export_policy(make_parts("l1"), tmp_path / "exported", ("onnx",))
    assert not list(tmp_path.iterdir())
