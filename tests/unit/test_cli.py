"""Flags on the command line and in a file; what --help shows; how mistakes are reported."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from experiments.robot.metaworld.record_demos import RecordConfig
from prismatic.acting.client import PolicyClient
from prismatic.cli import parse_flags, run_script
from prismatic.cli_help import flag_groups, render_help
from prismatic.cli_sections import SECTION, flag_names, flag_values, from_flags
from prismatic.commands.doctor import DoctorConfig
from prismatic.training.config import FinetuneConfig

ROOT = Path(__file__).parents[2]


@dataclass
class Base:
    """Says what it does."""

    # First things
    size: int = 3  # pixels
    note: str | None = None


@dataclass
class Derived(Base):
    """More."""

    # Second things
    names: list[str] = field(default_factory=lambda: ["a", "b"])  # of the things


@dataclass
class Holder:
    """Has another as a field."""

    base: Base = field(default_factory=Base)
    count: int = 1  # of them


@dataclass
class Sectioned:
    """Has another as a section."""

    base: Base = field(default_factory=Base, metadata=SECTION)
    count: int = 1  # of them


def test_a_switch_may_stand_alone() -> None:
    assert parse_flags(DoctorConfig, []).json is False
    assert parse_flags(DoctorConfig, ["--json"]).json is True
    config = parse_flags(DoctorConfig, ["--json", "--machine", "False", "--data", "data"])
    assert (config.json, config.machine, config.data) == (True, False, Path("data"))
    with pytest.raises(ValueError, match="--data"):  # flags with a value still need one
        parse_flags(DoctorConfig, ["--data", "--json"])


@dataclass
class Lists:
    """Several at once."""

    names: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    size: int = 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--names", "camera", "--size", "4"], Lists(["camera"], size=4)),
        (["--names", "camera", "light", "--seeds", "7", "8", "9", "--size=4"], Lists(["camera", "light"], [7, 8, 9], size=4)),
        (["--names=camera", "--seeds=7,8"], Lists(["camera"], [7, 8])),
        (["--names", "[camera, light]", "--seeds", "[7]"], Lists(["camera", "light"], [7])),
        (["--names", "[camera,", "light]"], Lists(["camera", "light"])),  # without quotes the shell makes two words of it
        (["--names", "3", "a b", "-x: y"], Lists(["3", "a b", "-x: y"])),
        (["--names", "[]", "--seeds", "-1"], Lists([], [-1])),
        (["--folders", "~/a", "b"], Lists(folders=[Path.home() / "a", Path("b")])),
    ],
)
def test_a_list_may_be_written_as_words(arguments: list[str], expected: Lists) -> None:
    assert parse_flags(Lists, arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--names", "--size", "4"], "--names: expected one argument"),
        (["--seeds", "7", "eight"], "^--seeds: Couldn't parse 'eight' into an int"),
        (["--size", "3", "4"], "unrecognized arguments: 4"),
    ],
)
def test_words_that_are_no_list_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_flags(Lists, arguments)


@pytest.mark.parametrize(
    "text",
    [
        "pick: the cup",
        "cube #3",
        "# 3",
        "2026_11_30",
        "007",
        "12:30",
        "1e5",
        "[cube]",
        "{a: b}",
        '"red" cup',
        "it's",
        "*",
        "a=b",
        "include the cup",
        "included",
        "杯子😀",
        "a\\b",
    ],
)
def test_a_text_is_what_was_typed(text: str) -> None:
    for arguments in (["--note", text], [f"--note={text}"]):
        assert parse_flags(Base, arguments).note == text
        assert parse_flags(Sectioned, arguments).base.note == text
    assert parse_flags(DoctorConfig, ["--data", text]).data == Path(text)


def test_a_file_of_flags_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("include.yaml", "my: recipe #2.yaml", "配方.yaml", "2026_11_30"):
        Path(name).write_text("size: 7\n", encoding="utf-8")
        assert parse_flags(Base, ["--config_path", name]).size == parse_flags(Base, [f"--config_path={name}"]).size == 7


def test_words_of_yaml_that_some_flags_take_beside_texts() -> None:
    assert parse_flags(FinetuneConfig, ["--compile", "true"]).speed.compile == "True"
    assert parse_flags(Base, ["--note", "null"]).note is None
    assert parse_flags(Base, ["--note="]).note == ""


@dataclass
class Table:
    """Names and values."""

    ports: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("text", ["port=/dev/ttyACM0", "[1]", "3"])
def test_what_is_no_table_is_one_line(text: str) -> None:
    assert parse_flags(Table, ["--ports", '{"port": "/dev/ttyACM0", "id": 3}']).ports == {"port": "/dev/ttyACM0", "id": 3}
    with pytest.raises(ValueError, match=rf"^--ports: '{re.escape(text)}' is no table; write it as '{{name: value, other: value}}'$"):
        parse_flags(Table, ["--ports", text])


def test_help_has_groups_of_the_source_with_default_and_comment() -> None:
    groups = {heading: [(flag.name, flag.default, flag.text) for flag in flags] for heading, flags in flag_groups(Derived).items()}
    own, inherited = [("names", "[a,b]", "of the things")], [("size", "3", "pixels"), ("note", "-", "")]
    assert list(groups.items()) == [("Second things", own), ("First things", inherited)]


def test_help_names_the_flags_of_a_group_that_is_a_field() -> None:
    assert [flag.name for flag in flag_groups(Holder)["First things"]] == ["base.size", "base.note"]
    assert parse_flags(Holder, ["--base.size", "5"]).base.size == 5


def test_flags_of_a_section_are_flat(tmp_path: Path) -> None:
    assert flag_names(Sectioned) == ("size", "note", "count")
    assert {heading: [flag.name for flag in flags] for heading, flags in flag_groups(Sectioned).items()} == {
        "First things": ["size", "note"],
        "Flags": ["count"],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("size: 4\nnote: x\n")
    config = parse_flags(Sectioned, ["--config_path", str(recipe), "--size", "5", "--count", "2"])
    assert config == Sectioned(Base(5, "x"), 2)
    assert flag_values(config) == {"size": 5, "note": "x", "count": 2}
    assert from_flags(Sectioned, **flag_values(config)) == config
    with pytest.raises(ValueError, match=r"--base\.size"):
        parse_flags(Sectioned, ["--base.size", "5"])
    with pytest.raises(TypeError, match="Sectioned has no flag 'sise'; did you mean 'size'"):
        from_flags(Sectioned, sise=3)


def test_every_training_flag_is_one_explained_line_of_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "170")
    shown = render_help(FinetuneConfig, "finetune.py")
    assert max(map(len, shown.splitlines())) <= 170
    for name in flag_names(FinetuneConfig):
        rows = re.findall(rf"^  --{name} +(\S+)  +(\S.*)$", shown, re.M)
        assert len(rows) == 1, f"{name} has no default or no comment in --help"
    headings = [line for line in shown.splitlines() if line and not line.startswith(" ")]
    assert {"Model", "LoRA", "Freezing", "Data", "Optimization", "Saving and resuming", "Logging"} <= set(headings)


def test_narrow_terminals_wrap_below_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert max(map(len, render_help(FinetuneConfig, "finetune.py").splitlines())) <= 90


def test_flags_on_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("batch_size: 3\nlearning_rate: 1.0e-4\nuse_film: true\n")
    config = parse_flags(FinetuneConfig, ["--config_path", str(recipe), "--batch_size", "5"])
    assert (config.optimization.batch_size, config.optimization.learning_rate, config.model.use_film, config.optimization.max_steps) == (
        5,
        1e-4,
        True,
        200_000,
    )


def test_flags_that_must_be_given_are_named_as_flags() -> None:
    with pytest.raises(ValueError, match=r"^--output_dir missing; --help explains all flags$"):
        parse_flags(RecordConfig, ["--num_episodes", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batchsize", "3"], "unrecognized arguments: --batchsize 3; did you mean --batch_size? --help lists all flags"),
        (["--zzz", "3"], "unrecognized arguments: --zzz 3; --help lists all flags"),
        (["--batch_size"], "argument --batch_size: expected one argument (one that begins with -- is written with ="),
        (["--batch_size", "many"], "--batch_size: Couldn't parse 'many' into an int"),
        (["--learning_rate", "nan"], "--learning_rate is nan"),
        (["--config_path", "nowhere.yaml"], "--config_path: there is no file nowhere.yaml"),
        (["--use_diffusion", "True"], "--use_l1_regression and --use_diffusion are both True"),
    ],
)
def test_mistakes_name_the_flag(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_flags(FinetuneConfig, arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"max_steps: 3\n use_film: true\n", "cannot be read (line 2, column 10: mapping values are not allowed here)"),
        (b"use_film: [true", "cannot be read (line 1, column 16: expected ',' or ']', but got '<stream end>')"),
        (b"\xff\xfe\x00", "cannot be read ('utf-8' codec can't decode"),
        (b"- max_steps\n", "holds a list; expected lines such as max_steps: 100"),
        (b"# max_steps: 3\n", "holds no flags; expected"),
        (b"max_steps=3\n", "holds one value; expected"),
        (b"max_steps: 3\nseed: 1\n\nmax_steps: 5\n", "says max_steps in the lines 1 and 4, of which the last would count; keep one"),
    ],
)
def test_a_file_that_holds_no_flags_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    recipe = tmp_path / "my recipe #2.yaml"
    recipe.write_bytes(content)
    for arguments in (["--config_path", str(recipe)], [f"--config_path={recipe}"]):
        with pytest.raises(ValueError, match=re.escape(f"--config_path: {recipe} {message}")):
            parse_flags(FinetuneConfig, arguments)


@pytest.mark.parametrize("arguments", [["--names", "[camera,", "light"], ["--names=[camera, light"]])
def test_brackets_that_are_not_closed_are_named(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^--names \[camera, light cannot be read \(line 1, column 15: expected ',' or '\]'"):
        parse_flags(Lists, arguments)


def test_an_unknown_key_of_a_file_is_named_with_its_neighbour(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_step: 3\n")
    with pytest.raises(ValueError, match=r"max_step.*did you mean --max_steps"):
        parse_flags(FinetuneConfig, ["--config_path", str(recipe)])


SCRIPTS = sorted(
    path
    for folder in ("vla-scripts", "scripts", "experiments")
    for path in (ROOT / folder).rglob("*.py")
    if "__main__" in path.read_text() and ("run_script(main" in path.read_text() or "import run\n" in path.read_text())
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_comes_at_once_and_explains_every_flag(script: Path) -> None:
    code = f"import runpy, sys; sys.argv = ['{script.name}', '--help']; runpy.run_path(r'{script}', run_name='__main__')"
    code += "; assert not {'torch', 'transformers', 'tensorflow', 'mujoco'} & set(sys.modules), 'heavy imports before the flags are read'"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "170"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    about, *_ = done.stdout.splitlines()[2:]
    assert len(about) > 25, f"the help does not say what the program does: {about!r}"
    rows = [line for line in done.stdout.splitlines() if line.startswith("  --")]
    assert len(rows) > 3
    assert [row for row in rows if not re.match(r"  --[\w.]+ +\S+ +\S", row)] == []


@pytest.mark.parametrize("script", ["vla-scripts/deploy.py", "scripts/inspect_dataset.py", "experiments/robot/aloha/run_aloha_eval.py"])
def test_a_mistake_is_one_line_and_debug_shows_the_trace(script: str) -> None:
    command = [sys.executable, script, "--no_such_flag", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = [
        subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
        for more in ([], ["--debug"])
    ]
    assert [run.stdout for run in done] == ["", ""]
    assert (done[0].returncode, done[0].stderr.count("\n")) == (2, 1)
    assert done[0].stderr.startswith("error: unrecognized arguments: --no_such_flag 1")
    assert done[1].returncode != 0
    assert "Traceback" in done[1].stderr


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["x.py", "--data_root_dir", str(tmp_path / "file" / "below")])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit) as ended:
        run_script(lambda config: config.data_root_dir.mkdir(), _Paths)
    assert ended.value.code == 2
    assert caplog.messages == [f"error: {tmp_path / 'file' / 'below'}: Not a directory (--debug shows where)"]
    for error in (ConnectionResetError, BrokenPipeError):  # of no file, and of another pipe than that of the output
        with pytest.raises(error):
            run_script(lambda config, error=error: (_ for _ in ()).throw(error()), _Paths)


def test_a_package_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py"])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    for module in ("PIL", "PIL.Image", "websockets.exceptions", "websockets"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not there

    def ask(_: _Paths) -> None:
        PolicyClient("ws://127.0.0.1:9").connect()

    with pytest.raises(SystemExit) as ended:
        run_script(ask, _Paths)
    assert ended.value.code == 2
    assert caplog.messages == ["error: the package websockets is not installed: pip install websockets (--debug shows what needs it)"]
    caplog.clear()
    with pytest.raises(SystemExit):
        run_script(lambda _: importlib.import_module("PIL.Image"), _Paths)
    assert "the package pillow is not installed: pip install pillow" in caplog.text
    for own in ("prismatic.nothing", "json.nothing"):  # a mistake of ours, and a part that an installed package lacks
        with pytest.raises(ModuleNotFoundError):
            run_script(lambda _, own=own: importlib.import_module(own), _Paths)


@dataclass
class _Paths:
    """Flags that are paths."""

    data_root_dir: Path = Path()  # a folder
    vla_path: str = ""  # a folder or a Hub id
    adapters: str = ""  # name=folder
    config: Path | None = None  # another


def test_a_path_below_home_is_found_however_the_flag_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    written = ["--data_root_dir=~/x", "--vla_path", "~/base", "--adapters=a=~/one,b=~/two"]
    parsed = parse_flags(_Paths, written)
    assert (parsed.data_root_dir, parsed.vla_path) == (Path("/home/me/x"), "/home/me/base")
    assert parsed.adapters == "a=/home/me/one,b=/home/me/two"
    (tmp_path / "flags.yaml").write_text("config: ~/from_file\n")
    assert parse_flags(_Paths, ["--config_path", str(tmp_path / "flags.yaml")]).config == Path("/home/me/from_file")
    (tmp_path / "run.yaml").write_text("run_root_dir: ~/runs\ndata_root_dir: ~/data\n")
    config = parse_flags(FinetuneConfig, ["--config_path", str(tmp_path / "run.yaml"), "--dataset_name", "a~b"])
    assert (config.data.data_root_dir, config.saving.run_root_dir) == (Path("/home/me/data"), Path("/home/me/runs"))
    assert config.data.dataset_name == "a~b"


SWALLOWING = """
import signal, time
from dataclasses import dataclass
from prismatic.cli import run_script
@dataclass
class Config:
    size: int = 3  # pixels
class CleanUp:
    def __del__(self):  # whatever is raised here is lost
        signal.raise_signal(signal.SIGINT)
def main(config):
    CleanUp()
    time.sleep(60)
    print("it was lost")
run_script(main, Config)
"""


def test_ctrl_c_in_a_clean_up_is_not_lost() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SWALLOWING], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 130, done.stderr
    assert "lost" not in done.stdout
    assert "Traceback" not in done.stderr


PRINTING = """
import sys
from dataclasses import dataclass
from prismatic.cli import run_script
@dataclass
class Config:
    lines: int = 1  # printed
def main(config):
    for _ in range(config.lines):
        print("a line")
run_script(main, Config)
"""


@pytest.mark.parametrize(("lines", "status"), [("1", 0), ("100000", 141)])
def test_output_that_nobody_reads_any_more_ends_a_script_without_a_trace(lines: str, status: int) -> None:
    unread, output = os.pipe()
    os.close(unread)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", PRINTING, "--lines", lines]
    done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(output)
    assert (done.returncode, done.stderr) == (status, "")
