"""The sample entries of the fork that users come from, pasted into configs.py as they are: two training steps each, no platform named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, copy_checkout, environment

from prismatic.models.base import write_tiny_base
from prismatic.models.configuration import TinySizes

sys.path.insert(0, str(ROOT / "tests" / "unit"))
from lerobot_writer import make_episode as lerobot_episode
from lerobot_writer import write_v3
from rlds_writer import make_episode, write_dataset

CONFIGS = "prismatic/vla/datasets/rlds/oxe/configs.py"
COMMENT = """    ########################################################
    # Your own data: single arm and dual arm, joint angles or
    # end-effector poses. Adapt the keys to your recordings.
    ########################################################
"""
SINGLE = """        "image_obs_keys": {"primary": "image", "secondary": "image_1", "wrist": None},
        "depth_obs_keys": {"primary": None, "secondary": None, "wrist": None},
"""
DUAL = """        "image_obs_keys": {"primary": "image", "left_wrist": "left_wrist_image", "right_wrist": "right_wrist_image"},
        "depth_obs_keys": {"primary": None, "left_wrist": None, "right_wrist": None},
"""
# Name -> (lines of the entry, platform that follows, action dim, state dim as stored, stored cameras).
FORMS = {
    "single_joint_task_sample": (
        f'{SINGLE}        "state_obs_keys": ["state", None, None, None],\n'
        '        "state_encoding": StateEncoding.JOINT,\n        "action_encoding": ActionEncoding.JOINT_POS,\n',
        "SINGLE_JOINT", 8, 5, ("image", "image_1"),
    ),
    "single_eef_task_sample": (
        f'{SINGLE}        "state_obs_keys": ["state"],\n'
        '        "state_encoding": StateEncoding.POS_EULER,\n        "action_encoding": ActionEncoding.EEF_POS,\n',
        "SINGLE_EEF", 7, 7, ("image", "image_1"),
    ),
    "dual_joint_task_sample": (
        f'{DUAL}        "state_obs_keys": ["state"],\n'
        '        "state_encoding": StateEncoding.JOINT_BIMANUAL,\n        "action_encoding": ActionEncoding.JOINT_POS_BIMANUAL,\n',
        "DUAL_JOINT", 16, 16, ("image", "left_wrist_image", "right_wrist_image"),
    ),
    "dual_eef_task_sample": (
        f'{DUAL}        "state_obs_keys": ["state"],\n'
        '        "state_encoding": StateEncoding.NONE,\n        "action_encoding": ActionEncoding.DUAL_EEF_POS,\n',
        "DUAL_EEF", 14, 14, ("image", "left_wrist_image", "right_wrist_image"),
    ),
    # A LeRobot folder, in this project's own form; trained on by the name of its repository.
    "so101_pick": (
        '        "image_obs_keys": {"primary": "observation.images.top", "wrist": "observation.images.wrist"},\n'
        '        "state_obs_keys": ["observation.state"],\n'
        '        "state_encoding": StateEncoding.JOINT,\n        "action_encoding": ActionEncoding.JOINT_POS,\n        "fps": 25,\n',
        "SINGLE_JOINT", 8, 8, ("observation.images.top", "observation.images.wrist"),
    ),
}  # fmt: skip
LEROBOT = "so101_pick"


def pasted(*names: str) -> str:
    """The entries as text, with the comment block above them."""
    return COMMENT + "".join(f'    "{name}": {{\n{FORMS[name][0]}    }},\n' for name in names)


def paste_at(checkout: Path, place: str, text: str) -> int:
    """Puts `text` behind the only occurrence of `place` in configs.py; the line where it begins."""
    path = checkout / CONFIGS
    content = path.read_text()
    assert content.count(place) == 1
    path.write_text(content.replace(place, place + text))
    return content[: content.index(place)].count("\n") + place.count("\n") + 1


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pasted")
    sizes = TinySizes(image_size=28, patch_size=14, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_heads=2, llm_mlp_dim=64)
    write_tiny_base(folder / "base", sizes, seed=0)
    write_v3(folder / "data" / "me" / LEROBOT, [lerobot_episode(8, seed, cameras=FORMS[LEROBOT][4], dim=8) for seed in range(2)])
    for name, (_, _, action_dim, state_dim, cameras) in FORMS.items():
        if name == LEROBOT:
            continue
        episodes = [make_episode(8, seed=seed, action_dim=action_dim, state_dim=state_dim, cameras=cameras, size=32) for seed in range(2)]
        write_dataset(folder / "data", name, {"train": episodes})
    return folder


RUN_ALL = """
import json, runpy, sys
for flags in json.loads(sys.argv[1]):
    sys.argv = ["vla-scripts/finetune.py", *flags]
    runpy.run_path("vla-scripts/finetune.py", run_name="__main__")
"""


def finetune(workplace: Path, checkout: Path, *names: str, data: str = "data") -> subprocess.CompletedProcess[str]:
    """Two steps for each of `names`, with every camera of the entry, in one process: most of the time goes into importing."""
    flags = [
        [
            *("--vla_path", str(workplace / "base"), "--data_root_dir", str(workplace / data), "--dataset_name"),
            f"me/{name}" if name == LEROBOT else name,
            *("--run_root_dir", str(checkout / "runs"), "--run_id_override", name, "--use_proprio", "True", "--image_aug", "False"),
            *("--num_images_in_input", str(len(FORMS[name][4])), "--batch_size", "2", "--max_steps", "2", "--save_freq", "2"),
            *("--num_workers", "0", "--lora_rank", "4"),
        ]
        for name in names
    ]
    command = [sys.executable, "-c", RUN_ALL, json.dumps(flags)]
    return subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True, timeout=280, check=False)


TABLE = "OXE_DATASET_CONFIGS: dict[str, DatasetEntry | Mapping[str, Any]] = {\n"
AMONG_OURS = '    "single_eef_task_sample": DatasetEntry(state_encoding=StateEncoding.POS_EULER, robot_platform="SINGLE_EEF"),\n'


@pytest.mark.timeout(300)
def test_two_steps_without_naming_a_platform(workplace: Path, tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    behind_ours = "single_eef_task_sample"
    paste_at(tmp_path, f"\n{TABLE}", pasted(*(name for name in FORMS if name != behind_ours)))
    paste_at(tmp_path, AMONG_OURS, pasted(behind_ours))
    done = finetune(workplace, tmp_path, *FORMS)
    assert done.returncode == 0, done.stderr
    for name, (_, platform, action_dim, _, cameras) in FORMS.items():
        assert f"data set {name}: robot platform {platform} follows from its entry and actions of {action_dim}" in done.stderr
        spec = json.loads((tmp_path / "runs" / f"{name}--2_chkpt" / "policy.json").read_text())
        assert spec["platform"]["name"] == platform
        assert len(spec["cameras"]) == len(cameras)


def inspect(workplace: Path, checkout: Path, name: str, data: str = "data") -> str:
    """What scripts/inspect_dataset.py says of a data set that it refuses."""
    command = [sys.executable, "scripts/inspect_dataset.py", "--dataset_name", name, "--data_root_dir", str(workplace / data)]
    done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_messages_point_at_the_pasted_line_not_at_ours(workplace: Path, tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    line = paste_at(tmp_path, f"\n{TABLE}", pasted("single_joint_task_sample")) + COMMENT.count("\n")
    episode = make_episode(4, action_dim=8, state_dim=8, cameras=("image", "image_1"))
    write_dataset(workplace / "wide", "single_joint_task_sample", {"train": [episode]})
    said = inspect(workplace, tmp_path, "single_joint_task_sample", data="wide")
    assert "does not say which robot it is, and none fits JOINT_POS, JOINT, actions of 8 and states of 11 dimensions; nearest: " in said
    assert "nearest: SINGLE_JOINT (but its states have 8 dimensions)" in said
    assert f'Either write "state_obs_keys": ["state"], into its entry in {CONFIGS}:{line}, or pass --robot_platform; platforms: ' in said


def test_an_entry_that_a_later_line_hides_is_refused(workplace: Path, tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    first = paste_at(tmp_path, "SHIPPED_CONFIGS: dict[str, DatasetEntry | Mapping[str, Any]] = {\n", pasted("single_eef_task_sample"))
    lines = rf"in the lines {first + COMMENT.count(chr(10))} and \d+, of which Python takes the last"
    assert re.search(f"has several entries in one table of {CONFIGS}, {lines}", inspect(workplace, tmp_path, "single_eef_task_sample"))
