"""README.md and README_EN.md say the same; every documented command has flags that exist.

That the commands run is the matter of tests/smoke/test_documented_commands.py.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import fields
from itertools import pairwise

import pytest
from script_modules import ROOT, load_script

from experiments.robot.run_robot import RobotConfig
from prismatic.cli_sections import flag_names
from prismatic.commands import convert_aloha, convert_lerobot, convert_libero
from prismatic.commands.deploy import DeployConfig
from prismatic.commands.doctor import DoctorConfig
from prismatic.commands.inspect_dataset import InspectConfig
from prismatic.commands.make_manifest import ManifestConfig
from prismatic.commands.merge import MergeConfig
from prismatic.commands.plot_run import PlotConfig
from prismatic.commands.push_to_hub import PushConfig
from prismatic.doctor.software import EXTRAS
from prismatic.training.config import FinetuneConfig
from prismatic.training.sections import OptimizationConfig, SavingConfig
from prismatic.vla.constants import get_robot_platform
from prismatic.vla.datasets.rlds.oxe.configs import OXE_DATASET_CONFIGS, DatasetEntry, find_entry

sys.path.insert(0, str(ROOT / "tests" / "smoke"))
from documents import page_commands

PAGES = ("README.md", "README_EN.md")
GUIDES = ("ALOHA.md", "LIBERO.md")
RECORDINGS, ROLLOUTS = "docs/recordings.md", "docs/rollouts.md"
COMING, COMING_ZH = "docs/from_openvla_oft.md", "docs/from_openvla_oft.zh.md"
DOORS = (COMING, "docs/lerobot.md", "docs/hdf5_rlds.md", "docs/laptop.md")  # one for each kind of newcomer
CLAIMS, SECURITY = "docs/claims.md", "SECURITY.md"
EVALUATIONS = ("docs/changed_scenes.md", "docs/reproductions/README.md")
OWN_ROBOT = "docs/own_robot.md"  # followed by tests/smoke/test_own_robot.py
SETUP_PAGES = ("SETUP.md", "CONTRIBUTING.md")  # among lines of shell that only a machine to be set up can run


ALOHA = "experiments/robot/aloha"
LIBERO = "experiments/robot/libero"
CONFIGS = {
    "scripts/run_robot.py": lambda: RobotConfig,
    "scripts/convert/lerobot_to_rlds.py": lambda: convert_lerobot.ConvertConfig,
    f"{ALOHA}/run_aloha_eval.py": lambda: load_script(f"{ALOHA}/run_aloha_eval.py").AlohaEvalConfig,
    f"{ALOHA}/run_aloha_sim_eval.py": lambda: load_script(f"{ALOHA}/run_aloha_sim_eval.py").EvalConfig,
    f"{ALOHA}/record_demos.py": lambda: load_script(f"{ALOHA}/record_demos.py").RecordConfig,
    f"{ALOHA}/preprocess_split_aloha_data.py": lambda: load_script(f"{ALOHA}/preprocess_split_aloha_data.py").PreprocessConfig,
    f"{LIBERO}/run_libero_eval.py": lambda: load_script(f"{LIBERO}/run_libero_eval.py").EvalConfig,
    f"{LIBERO}/record_demos.py": lambda: load_script(f"{LIBERO}/record_demos.py").RecordConfig,
    f"{LIBERO}/regenerate_libero_dataset.py": lambda: load_script(f"{LIBERO}/regenerate_libero_dataset.py").RegenerateConfig,
    "scripts/convert/libero_hdf5_to_rlds.py": lambda: convert_libero.ConvertConfig,
    "scripts/collect.py": lambda: load_script("scripts/collect.py").CollectConfig,
    "scripts/improve.py": lambda: load_script("scripts/improve.py").ImproveConfig,
    "scripts/make_manifest.py": lambda: ManifestConfig,
    "scripts/compare_runs.py": lambda: load_script("scripts/compare_runs.py").CompareConfig,
    "scripts/robustness.py": lambda: load_script("scripts/robustness.py").RobustnessConfig,
    "scripts/learning.py": lambda: load_script("scripts/learning.py").LearningConfig,
    "scripts/convert/prismatic_to_base.py": lambda: load_script("scripts/convert/prismatic_to_base.py").ConvertConfig,
    "scripts/export.py": lambda: load_script("scripts/export.py").ExportConfig,
    "scripts/make_base.py": lambda: load_script("scripts/make_base.py").MakeBaseConfig,
    "benchmarks/improvement.py": lambda: load_script("benchmarks/improvement.py").ImprovementBenchmarkConfig,
    "benchmarks/rollout.py": lambda: load_script("benchmarks/rollout.py").RolloutBenchmarkConfig,
    "vla-scripts/deploy.py": lambda: DeployConfig,
    "vla-scripts/finetune.py": lambda: FinetuneConfig,
    "vla-scripts/merge_lora_weights_and_save.py": lambda: MergeConfig,
    "scripts/convert/aloha_hdf5_to_rlds.py": lambda: convert_aloha.ConvertConfig,
    "scripts/inspect_dataset.py": lambda: InspectConfig,
    "scripts/plot_run.py": lambda: PlotConfig,
    "scripts/doctor.py": lambda: DoctorConfig,
    "scripts/push_to_hub.py": lambda: PushConfig,
    "openvla-doctor": lambda: DoctorConfig,
    "openvla-deploy": lambda: DeployConfig,
    "experiments/robot/metaworld/run_metaworld_eval.py": lambda: (
        load_script("experiments/robot/metaworld/run_metaworld_eval.py").EvalConfig
    ),
}


# The same headings in both languages, in order.
HEADINGS = {
    "让 OpenVLA-OFT 学会你自己的机器人": "Teach OpenVLA-OFT your own robot",
    "你从哪里来": "Where you come from",
    "它替你解决什么": "What it does for you",
    "安装": "Install",
    "从检查点到动作": "From a checkpoint to actions",
    "使用你自己的数据": "Your own data",
    "训练": "Train",
    "评测": "Evaluate",
    "结果": "Results",
    "与其他工具比较": "Compared with other tools",
    "测试": "Tests",
    "引用": "Citing",
    "许可证": "Licence",
}


def _headings(page: str) -> list[tuple[int, str]]:
    """(level, text) of a page, lines of code left out."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.S | re.M)
    return [(len(marks), heading) for marks, heading in re.findall(r"^(#+) (.+)$", text, re.M)]


def test_both_languages_have_the_same_headings_and_commands() -> None:
    chinese, english = (_headings(page) for page in PAGES)
    assert [(level, HEADINGS[heading]) for level, heading in chinese] == english
    assert [heading for _, heading in chinese] == list(HEADINGS)
    assert page_commands(PAGES[0]) == page_commands(PAGES[1]) != []


def test_both_languages_have_tables_of_the_same_rows_and_the_same_links() -> None:
    chinese, english = ((ROOT / page).read_text() for page in PAGES)
    assert len(re.findall(r"^\|", chinese, re.M)) == len(re.findall(r"^\|", english, re.M)) > 30
    assert set(re.findall(r"\]\((\S+?)\)", chinese.replace(COMING_ZH, COMING))) == set(re.findall(r"\]\((\S+?)\)", english))


def test_the_readme_opens_a_short_page_for_every_kind_of_newcomer() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text()
        doors = re.findall(r"^\| [^|]+ \| \[[^]]+\]\((\S+?)\)", text, re.M)
        assert tuple(doors) == (COMING_ZH if page == "README.md" else COMING, *DOORS[1:])
        assert text.index("make demo") < text.index(doors[0]) < text.index("make install")
    for page in (*DOORS, COMING_ZH):
        assert len((ROOT / page).read_text().splitlines()) <= 120, page


def test_what_those_who_come_from_openvla_oft_read_is_the_same_in_both_languages_and_there() -> None:
    chinese, english = ((ROOT / page).read_text() for page in (COMING_ZH, COMING))
    assert page_commands(COMING_ZH) == page_commands(COMING) != []
    tables = [re.findall(r"^\| (.+) \| (.+) \|$", text, re.M) for text in (chinese, english)]
    assert len(tables[0]) == len(tables[1]) > 20
    for rows in zip(*tables, strict=True):
        words = [sorted(re.findall(r"`([^`]+)`", " ".join(row))) for row in rows]
        assert words[0] == words[1]
    names = {name for row in tables[1] for cell in row for name in re.findall(r"`([^`]+)`", cell)}
    files = [path for folder in ("prismatic", "experiments", "vla-scripts") for path in (ROOT / folder).rglob("*.py")]
    paths = {str(path.relative_to(ROOT)) for path in files}
    here = {name for _, cell in tables[1] for name in re.findall(r"`([\w/]+\.py)`", cell)}
    assert not [name for name in here if not any(f"/{path}".endswith(f"/{name}") for path in paths)]
    code = "\n".join(path.read_text() for path in files)
    for name in names - here:
        if re.fullmatch(r"[A-Za-z]\w+", name) and name not in GONE:
            assert re.search(rf"\b{name}\b", code), f"nothing here is called {name}"


# Names of the published code that its users look up and that have another one here.
GONE = {"RLDSDataset", "RLDSBatchTransform", "tensorflow_graphics", "dlimp", "timm", "torchaudio", "fastapi"}


@pytest.mark.parametrize("page", PAGES)
def test_the_readme_explains_samples_and_fields_of_the_registry(page: str) -> None:
    text = (ROOT / page).read_text()
    samples = [name for name in OXE_DATASET_CONFIGS if name.endswith("_task_sample")]
    assert len(samples) == 4
    for name in samples:
        entry = find_entry(name)
        platform = get_robot_platform(str(entry.robot_platform))
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert re.search(rf"`{platform.name}` ?[(（]{platform.action_dim}[)）]", row), row
    documented = {item.name for item in fields(DatasetEntry)} - {"depth_obs_keys", "aux_kwargs"}  # accepted for old entries only
    assert {name for name in documented if f"| `{name}` |" in text} == documented


def _commands(*pages: str) -> list[str]:
    """Of all pages together, each once; programs of LeRobot and pip are no flags of ours."""
    commands = dict.fromkeys(command for page in pages for command in page_commands(page))
    return [command for command in commands if not re.match(r"lerobot-|pip |python -m lerobot_", command)]


@pytest.mark.parametrize("command", _commands("README_EN.md", *GUIDES, ROLLOUTS, *DOORS, *EVALUATIONS))
def test_documented_commands_exist_with_their_flags(command: str) -> None:
    _check_command(command)


@pytest.mark.parametrize("page", SETUP_PAGES)
def test_commands_of_setting_up_exist_with_their_flags(page: str) -> None:
    ours = [
        line for line in page_commands(page) if re.match(r"(\w+=\S+ )?make ", line) or any(script in line.split() for script in CONFIGS)
    ]
    assert len(ours) >= 3
    for command in ours:
        _check_command(command[max(0, command.find("make ")) :])


def _check_command(command: str) -> None:
    if command == "source .venv/bin/activate":
        return
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.M)
        return
    script = next((word for word in command.split() if word.endswith(".py") or word in CONFIGS), None)
    assert script in CONFIGS, f"no configuration known for {command!r}"
    known = set(flag_names(CONFIGS[script]())) | {"config_path"}  # of every script
    words = shlex.split(command[command.index(script) :])
    used = {word[2:] for word in words if word.startswith("--") and " " not in word}
    assert used <= known, f"{script} has no flag {sorted(used - known)}"
    if "--finetune_flags" in words:
        passed = {word[2:] for word in words[words.index("--finetune_flags") + 1].split() if word.startswith("--")}
        trainer = set(flag_names(CONFIGS["vla-scripts/finetune.py"]()))
        assert passed <= trainer, f"the trainer has no flag {sorted(passed - trainer)}"


_CHECKPOINT_FLAGS = ("--pretrained_checkpoint", "--vla_path", "--checkpoint", "--lora_finetuned_checkpoint_dir")


def _saved_checkpoints(commands: list[str]) -> set[str]:
    """Folders that these commands leave, in `runs/`, and that take the place of a checkpoint or a base."""
    found = set()
    for words in map(shlex.split, commands):
        said = dict(pairwise(words))
        if "vla-scripts/finetune.py" in words and "--run_id_override" in said:
            run, freq = f"runs/{said['--run_id_override']}", int(said.get("--save_freq", SavingConfig.save_freq))
            steps = int(said.get("--max_steps", OptimizationConfig.max_steps))
            found |= {run} if "--save_latest_checkpoint_only" in said else {f"{run}--{step}_chkpt" for step in range(freq, steps + 1, freq)}
        elif any(script.startswith("scripts/make_base") or "prismatic_to_base" in script for script in words):
            found.add(said["--output_dir"])
    return found


def test_checkpoints_that_commands_take_are_left_by_others_of_these_pages() -> None:
    """LIBERO.md evaluated the folder of a run, which holds logs alone, and ALOHA.md a policy that nothing trained."""
    commands = _commands(*PAGES, *GUIDES, *SETUP_PAGES, OWN_ROBOT, ROLLOUTS, *DOORS, *EVALUATIONS)
    saved = _saved_checkpoints(commands)
    taken = {word for words in map(shlex.split, commands) for flag, word in pairwise(words) if flag in _CHECKPOINT_FLAGS}
    wanted = {path for path in taken if re.fullmatch(r"runs/\w+(--\d+_chkpt)?", path)}
    assert len(wanted) > 5
    assert not wanted - saved, f"no command leaves {sorted(wanted - saved)}"


def test_common_failures_are_quoted_as_the_code_says_them() -> None:
    table = (ROOT / "SETUP.md").read_text().partition("## Common failures")[2].partition("Messages of other programs")[0]
    sources = [
        path for folder in ("prismatic", "experiments", "scripts") for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh")
    ]
    code = "\n".join(path.read_text() for path in sources)
    quoted = [message for line in re.findall(r"^\| (`.*?`) \|", table, re.M) for message in re.findall(r"`(.*?)`", line)]
    assert len(quoted) > 10
    for message in quoted:
        for fragment in filter(None, (part.strip(" .,") for part in message.split("..."))):
            assert fragment in code, f"no source says {fragment!r}"


def test_the_doctor_and_setup_name_the_same_extras() -> None:
    table = (ROOT / "SETUP.md").read_text().partition("## Extras")[2].partition("\n## ")[0]
    assert {name for cell in re.findall(r"^\| (`.*?`) \|", table, re.M) for name in re.findall(r"`(\w+)`", cell)} == set(EXTRAS)


def test_every_test_that_the_page_of_recordings_names_exists() -> None:
    page = (ROOT / RECORDINGS).read_text()
    defined = {path: set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)) for path in ROOT.glob("tests/*/test_*.py")}
    for chapter in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        homes = re.findall(r"^(?:.* )?Tests: `(tests/[\w/]+\.py)`, where no other", chapter, re.MULTILINE)
        for cell in re.findall(r"\| ([^|]*) \|$", chapter, re.MULTILINE):
            for file, name in re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", cell):
                assert name in defined[ROOT / (file or homes[0])], f"{file or homes[0]} has no {name}"
    assert page.count("`test_") + page.count("::test_") > 40


def test_every_test_that_other_pages_name_exists() -> None:
    defined = {path.stem: re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE) for path in ROOT.glob("tests/*/test_*.py")}
    claims = (ROOT / CLAIMS).read_text()
    rows = re.findall(r"^\| (.+) \| (.+) \|$", claims, re.MULTILINE)
    assert len({claim for claim, _ in rows}) > 150
    rows += re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / SECURITY).read_text(), re.MULTILINE)
    for claim, proof in rows:
        named = re.findall(r"`(test_\w+)(?:::(test_\w+))?`", proof)
        assert named or re.search(
            r"shows it|^Test$|the suite itself|arithmetic|measured|\*not shown\*|by hand|each row|run on|linked", proof
        ), claim
        for file, name in named:
            assert file in defined, f"there is no {file}.py: {claim}"
            assert not name or name in defined[file], f"{file}.py has no {name}: {claim}"
    for page, home in (("docs/robot_safety.md", ""), ("docs/serving.md", "test_serving_faults")):
        for cell in re.findall(r"^\|.*\| (.*) \|$", (ROOT / page).read_text(), re.MULTILINE):
            file = home
            for found, name, rest in re.findall(r"`(?:(test_\w+)\.py)?(?:::)?(test_\w+)?(\.\.\.)?[`_]", cell):
                file = found or file
                assert not name or any(test == name or (rest and test.startswith(name)) for test in defined[file]), f"{page}: {file} {name}"


def test_one_version_stands_everywhere() -> None:
    (version,) = re.findall(r'^version = "([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"openvla_oft_robot-{version}-py3" in (ROOT / "SETUP.md").read_text()
    assert re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version
    for plugin in ROOT.glob("integrations/*/pyproject.toml"):
        assert f'\nversion = "{version}"\n' in plugin.read_text()


def test_what_the_house_names_is_where_it_says() -> None:
    rows = re.findall(r"^\| (an? .*|the .*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(rows) >= 10
    files = [path for folder in ("prismatic", "experiments", "scripts", "tests/unit") for path in (ROOT / folder).rglob("*.py")]
    for row in rows:
        names = [name for name in re.findall(r"`([^`]+)`", row) if ":" not in name]
        paths = [name for name in names if "/" in name or name.endswith(".py")]
        found = {path: [file for file in files if f"/{path}" in f"{file}/" or str(file).endswith(f"/{path}")] for path in paths}
        absent = [path for path in paths if not found[path]]
        assert not absent, f"CONTRIBUTING.md names {absent}, which is not there: {row}"
        code = "\n".join(file.read_text() for path in paths if path.endswith(".py") and "tests" not in path for file in found[path])
        for name in set(names) - set(paths):
            defined = rf'^\s*(class |def )?{name}\b *[=:(]|"{name}"'
            assert re.search(defined, code, re.MULTILINE), f"no file of this row defines {name}: {row}"


@pytest.mark.parametrize("page", [*PAGES, *GUIDES, *SETUP_PAGES, OWN_ROBOT, RECORDINGS, ROLLOUTS, *DOORS, COMING_ZH, CLAIMS, SECURITY])
def test_links_and_pictures_exist(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", (ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            headings = [
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for _, heading in _headings(str(path.resolve().relative_to(ROOT)))
            ]
            assert anchor in headings, f"{page} links to {target}#{anchor}"


@pytest.mark.parametrize("page", [*GUIDES, *SETUP_PAGES, OWN_ROBOT, RECORDINGS, ROLLOUTS, *DOORS[1:], CLAIMS, SECURITY, "CHANGELOG.md"])
def test_english_pages_begin_with_a_chinese_summary(page: str) -> None:
    first = (ROOT / page).read_text().split("\n## ")[0]
    assert "**中文摘要" in first
    assert len(re.findall(r"[\u4e00-\u9fff]", first)) > 50
