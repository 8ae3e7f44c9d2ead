"""Every command of the documents is run, here or by the test that documented.py names, or is marked there with the reason why not.

Commands run as they are written, in page order, in a copy of the checkout with a tiny model in the place of the 7B one, small data, and two
registry entries pasted in as a user would. Only flags that make them short are added.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import launching
import pytest
from documented import FOLLOWED_BY_A_TEST_OF_ITS_OWN, PAGES, RULES, Elsewhere, Here, find_rule
from documents import ROOT, add_entry, copy_checkout, environment, page_commands

from prismatic.vla.datasets.suggestion.suggest import suggest_entry

sys.path.insert(0, str(ROOT / "tests" / "unit"))
from hdf5_files import write_aloha, write_libero
from lerobot_writer import write_so101
from rlds_writer import make_episode, write_dataset

ENTRIES = """
    "my_robot": DatasetEntry(
        state_encoding=StateEncoding.JOINT_BIMANUAL,
        action_encoding=ActionEncoding.JOINT_POS_BIMANUAL,
        image_obs_keys=_THREE_CAMERAS,
        robot_platform="ALOHA",
    ),
    "fold_shirt": DatasetEntry(
        image_obs_keys={"primary": "image", "left_wrist": "left_wrist_image", "right_wrist": "right_wrist_image"},
        state_encoding=StateEncoding.JOINT_BIMANUAL,
        action_encoding=ActionEncoding.JOINT_POS_BIMANUAL,
        robot_platform="ALOHA",
    ),
"""
_STEPS_OF_THE_PAGES = r"--(100?000)_chkpt"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with what the documents take for granted: a base model, a trained policy, recordings."""
    folder = tmp_path_factory.mktemp("documented")
    copy_checkout(folder)
    registry = folder / "prismatic/vla/datasets/rlds/oxe/configs.py"
    registry.write_text(registry.read_text().replace("    # Templates to copy", f"{ENTRIES}    # Templates to copy", 1))
    suggested = suggest_entry(write_so101(folder / ".cache/huggingface/lerobot/me/so101_pick"), "so101_pick", None).text()
    (shown,) = re.findall(r'^```\n( +"so101_pick.*?)^```', (ROOT / "docs/lerobot.md").read_text(), re.S | re.M)
    assert shown in suggested
    assert '"wrist_roll.pos [deg]", "gripper.pos [0-100]")' in suggested
    add_entry(folder, suggested)
    _run(folder, "python scripts/make_base.py --output_dir openvla/openvla-7b --image_size 28 --patch_size 14 --llm_layers 1")
    _run(folder, "python scripts/make_untrained_policy.py --output_dir runs/demo/train/demo --robot_platform METAWORLD")
    (folder / "runs/demo/stages.json").write_text("[]")  # as `make demo` leaves that folder, which it empties
    for number in range(3):
        write_aloha(folder / f"recordings/episode_{number}.hdf5", 30, number, instruction="fold the shirt")
        write_aloha(folder / f"raw/fold_shirt/episode_{number}.hdf5", 30, number)
    write_libero(folder / "regenerated/libero_spatial_no_noops/put_the_bowl_on_the_plate_demo.hdf5")
    episodes = [make_episode(12, seed=seed, action_dim=7, state_dim=8, size=32) for seed in range(2)]
    write_dataset(folder / "data", "libero_object_scripted", {"train": episodes})
    return folder


def _run(folder: Path, command: str, statuses: tuple[int, ...] = (0,)) -> str:
    started, words, variables = time.monotonic(), shlex.split(command), environment(folder)
    if "~/" in command:
        variables["HOME"] = str(folder)
    if words[0] == "python" and words[1].endswith(".py"):
        kind = launching.TENSORFLOW if words[1].startswith("scripts/convert") else launching.TORCH
        done = launching.run([sys.executable, *words[1:]], folder, variables, 250, kind, folder)
    elif words[0] == "torchrun" and (folder / "runs/my_run").exists():  # the first one is torchrun's own
        begin = next(number for number, word in enumerate(words) if word.endswith(".py"))
        count = int(words[words.index("--nproc-per-node") + 1])
        done = launching.run_ranks([sys.executable, *words[begin:]], count, folder, variables, checkout=folder)
    else:
        done = subprocess.run(command, shell=True, cwd=folder, env=variables, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode in statuses, f"{command}\n{done.stdout}\n{done.stderr}"
    print(f"{time.monotonic() - started:6.1f} s  {command[:120]}")
    return done.stdout


def _serve(folder: Path, command: str) -> None:
    """Starts a server, asks it how it is, and ends it."""
    started, (program, *words) = time.monotonic(), shlex.split(command)
    assert program == "python"
    output = folder / "served.txt"
    output.unlink(missing_ok=True)
    process = launching.start([sys.executable, *words], output, environment(folder), folder)
    for line in process.lines():
        if found := re.match(r"serving on http://[\d.]+:(\d+)", line):
            with urlopen(f"http://127.0.0.1:{found[1]}/healthz", timeout=60) as reply:
                assert reply.status == 200
            process.kill(signal.SIGTERM)
    assert process.wait(60) == 0, process.text()
    assert process.text().endswith("\nshutting down: all requests are answered\n"), process.text()
    print(f"{time.monotonic() - started:6.1f} s  {command[:120]}")


def _prepare(folder: Path, command: str) -> None:
    """What an earlier page or a longer run would have left."""
    trained = folder / "runs/my_run--2_chkpt"
    if "--adapters" in command:
        for name in ("bowls", "cups"):
            shutil.copytree(trained, folder / f"runs/{name}--2_chkpt")
    if "compare_runs.py" in command:
        for name in ("mine", "other"):
            shutil.copytree(folder / "runs/metaworld_eval", folder / f"runs/libero_eval/EVAL-libero_spatial-{name}")


def _in_order(page: str) -> list[str]:
    """The commands of a page; one that serves checkpoints of a later command comes last."""
    return sorted(page_commands(page), key=lambda command: "--adapters" in command)


@pytest.mark.rlds
@pytest.mark.sim
@pytest.mark.timeout(900)
def test_commands_run(workplace: Path) -> None:
    for command in dict.fromkeys(command for page in PAGES for command in _in_order(page)):
        _, rule = find_rule(command)
        if not isinstance(rule, Here):
            continue
        command = re.sub(_STEPS_OF_THE_PAGES, "--2_chkpt", re.sub(r"--5000_chkpt", "--2_chkpt", rule.instead or command))
        _prepare(workplace, command)
        if rule.serves:
            _serve(workplace, f"{command} {rule.extra}")
        else:
            _run(workplace, f"{command} {rule.extra}", rule.statuses)
    assert (workplace / "runs/my_run/curves.png").stat().st_size > 10_000
    assert (workplace / "runs/my_run/compared_curves.png").stat().st_size > 10_000


def test_every_command_has_a_rule_and_every_rule_a_command() -> None:
    used = {find_rule(command)[0] for page in PAGES for command in page_commands(page)}
    assert sorted(set(RULES) - used) == []
    with pytest.raises(LookupError, match="does not say how this is tested"):
        find_rule("python scripts/unknown.py --flag 1")


def test_the_tests_that_rules_name_do_what_they_say() -> None:
    for pattern, rule in RULES.items():
        if isinstance(rule, Elsewhere):
            assert rule.names in (ROOT / rule.test).read_text(), pattern


def test_pages_with_commands_are_known() -> None:
    pages = [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("docs/*/*.md"))]
    with_commands = {str(path) for path in pages if path.parts[0] not in ("tests", "runs", ".venv") and page_commands(str(path))}
    assert with_commands == {
        *PAGES,
        *FOLLOWED_BY_A_TEST_OF_ITS_OWN,
        "README.md",
        "docs/from_openvla_oft.zh.md",
    }  # those in Chinese have the commands of the English ones, see test_docs.py


SNIPPET_START = """
import numpy as np
image = wrist_image = np.zeros((64, 64, 3), np.uint8)
state = np.zeros(4)
"""


@pytest.mark.parametrize("page", ["README.md", "README_EN.md"])
def test_the_python_of_the_readme_runs(workplace: Path, page: str) -> None:
    first, second, *_ = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    local = second.replace("moojink/openvla-7b-oft-finetuned-libero-spatial", "runs/demo/train/demo")
    assert local != second
    (workplace / "snippet.py").write_text(SNIPPET_START + first + "print(chunk.actions.shape)\n" + local)
    assert _run(workplace, "python snippet.py") == "(8, 4)\n"
