"""How every script starts: flags -> dataclass, log lines that can be read, one line instead of a stack trace for a user's mistake."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import errno
import gc
import itertools
import json
import logging
import math
import os
import re
import select
import shlex
import signal
import sys
import threading
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO, TypeVar

from prismatic.cli_sections import flag_names, flat_class, from_flags

T = TypeVar("T")

USER_ERROR = 2  # exit status
_UNREAD = 141  # exit status of programs that SIGPIPE ends, as shells give it
_OUR_LOGGERS = ("prismatic", "experiments", "__main__")
_PIP_NAMES = {"PIL": "pillow", "yaml": "pyyaml"}  # where pip calls a package otherwise
_REPEAT_S = 0.05
_FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk; the error does not say which file
_PLAIN_WORDS = ("true", "false", "yes", "no", "on", "off", "null")  # in lower case: not quoted
_TYPED = "\u2060"  # stands before a text that the parser would take for its command to include a file
_KINDS = {type(None): "no flags", list: "a list"}
_DEBUG, _DEBUG_FLAG = "PRISMATIC_DEBUG", "--debug"

logger = logging.getLogger(__name__)


def run_script(main: Callable[[T], None], config_class: type[T], positional: str | None = None) -> None:
    """Calls `main` with a `config_class` made from the command line; arguments before the first flag fill the list `positional`.

    A ValueError, a file that cannot be read or written, or a package that is not installed becomes one line on stderr and exit status 2;
    --debug, or PRISMATIC_DEBUG=1, shows where it came from. Where nobody reads the output any more (`| head`), the script ends without
    a word.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != _DEBUG_FLAG]
    if _DEBUG_FLAG in sys.argv:
        os.environ[_DEBUG] = "1"  # child processes see it, too
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _prepare_process()
    atexit.register(_flush_output)
    atexit.register(gc.freeze)  # the last collection would walk through all that torch has made: seconds in which nothing is freed
    try:
        if {"-h", "--help"} & set(arguments):
            from prismatic.cli_help import render_help

            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends quietly
            print(render_help(config_class, Path(sys.argv[0]).name, positional, sys.modules[main.__module__].__doc__ or ""))
            return
        main(parse_flags(config_class, arguments if positional is None else _name_positional(arguments, positional)))
    except ValueError as error:
        if os.environ.get(_DEBUG):
            raise
        logger.error("error: %s", error)
        sys.exit(USER_ERROR)
    except ModuleNotFoundError as error:
        package = _missing_package(error)
        if os.environ.get(_DEBUG) or package is None:
            raise
        logger.error("error: the package %s is not installed: pip install %s (--debug shows what needs it)", package, package)
        sys.exit(USER_ERROR)
    except BrokenPipeError:
        if os.environ.get(_DEBUG) or not (_is_unread(sys.stdout) or _is_unread(sys.stderr)):
            raise
        sys.exit(_UNREAD)
    except OSError as error:
        if os.environ.get(_DEBUG) or (error.filename is None and error.errno not in _FULL):
            raise
        logger.error("error: %s%s (--debug shows where)", "" if error.filename is None else f"{error.filename}: ", error.strerror)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)


def _missing_package(error: ModuleNotFoundError) -> str | None:
    """What pip calls the package that is not installed; None: it is, and lacks a part, or it is ours."""
    name = (error.name or "").partition(".")[0]
    if not name or name in _OUR_LOGGERS or sys.modules.get(name) is not None:
        return None
    return _PIP_NAMES.get(name, name)


def parse_flags(config_class: type[T], arguments: Sequence[str]) -> T:
    """A `config_class` from flags, on top of those that the YAML file of --config_path sets.

    Raises:
        ValueError: a flag is unknown, has no value or a wrong one, or the dataclass refuses the combination.
    """
    import draccus
    import yaml
    from draccus.utils import DecodingError, DraccusException, ParsingError

    flat = flat_class(config_class)  # sections are for the code, the parser sees one list of flags
    draccus.decode.register(Path, lambda text, _: Path(expand_home(str(text).removeprefix(_TYPED))))  # of the YAML file
    draccus.decode.register(str, lambda text, _: str(text).removeprefix(_TYPED))
    words = [expand_home(argument) for argument in _complete_switches(_gather_lists(arguments, flat), flat)]
    words = _with_config_path(words)
    _check_tables(words, flat)
    try:
        parsed: Any = draccus.parse(flat, args=_quote_texts(words, flat), exit_on_error=False)
    except yaml.YAMLError as error:
        raise ValueError(f"{_unread(error, words)} cannot be read ({_in_short(error)}); close brackets and quotes") from error
    except DecodingError as error:
        flag = "".join(f"--{name}: " for name in error.key_path if not str(name).isdigit())  # of an item
        if table := re.search(r"value='(.*)' into field .* of type (dict|mapping)", error.message, re.IGNORECASE | re.DOTALL):
            raise ValueError(f"{flag}{table[1]!r} is no table; write it as '{{name: value, other: value}}'") from error
        raise ValueError(f"{flag}{_explain(error.message, config_class)}") from error
    except ParsingError as error:  # wraps what the dataclass itself refused
        raise ValueError(str(error.__cause__ or error)) from error
    except (DraccusException, argparse.ArgumentError) as error:
        raise ValueError(_explain(str(error), config_class)) from error
    for name, value in vars(parsed).items():
        if isinstance(value, float) and math.isnan(value):  # comparisons with it are all False, and a range lets it through
            raise ValueError(f"--{name} is nan; give a number")
    if flat is config_class:
        return parsed
    values = {name: expand_home(value) if isinstance(value, str) else value for name, value in vars(parsed).items()}
    return from_flags(config_class, **values)


def _with_config_path(arguments: Sequence[str]) -> list[str]:
    """The arguments with the path of --config_path as YAML quotes it, after a look whether that file holds flags.

    Raises:
        ValueError: there is no such file, it cannot be read, or holds something else.
    """
    flag, checked = "--config_path", list(arguments)
    for number, argument in enumerate(arguments):
        if argument.startswith(f"{flag}=") or (number and arguments[number - 1] == flag and not argument.startswith("--")):
            path = argument.removeprefix(f"{flag}=")
            _read_file(path)
            checked[number] = argument[: len(argument) - len(path)] + json.dumps(os.path.abspath(path), ensure_ascii=False)
    return checked


def flags_of_file(arguments: Sequence[str]) -> set[str]:
    """Names of the flags that the file of --config_path among `arguments` sets.

    Raises:
        ValueError: see `parse_flags`.
    """
    joined = "--config_path="
    given = itertools.pairwise(["", *arguments])
    paths = [word.removeprefix(joined) for before, word in given if before == joined[:-1] or word.startswith(joined)]
    return {str(name) for path in paths for name in _read_file(expand_home(path))}


def _read_file(path: str) -> Mapping[str, Any]:
    from draccus.cfgparsing import load_config
    from draccus.utils import ParsingError

    try:
        with open(path, encoding="utf-8") as file:
            content = load_config(file, file=path)
    except FileNotFoundError as error:
        raise ValueError(f"--config_path: there is no file {path}") from error
    except ParsingError as error:
        raise ValueError(f"--config_path: {path} cannot be read ({_in_short(error.__cause__ or error)})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"--config_path: {path} holds {_KINDS.get(type(content), 'one value')}; expected lines such as max_steps: 100")
    if not path.endswith(".toml") and (twice := _said_twice(Path(path).read_text(encoding="utf-8"))):
        name, first, second = twice
        raise ValueError(f"--config_path: {path} says {name} in the lines {first} and {second}, of which the last would count; keep one")
    return content


def _check_tables(arguments: Sequence[str], config_class: type) -> None:
    """Raises ValueError where a table as a flag's value, `{a: 1, b: 2}`, says one name twice: YAML keeps the last without a word."""
    import yaml

    tables = {f"--{name}" for name, kind in typing.get_type_hints(config_class).items() if typing.get_origin(kind) in (dict, Mapping)}
    for before, argument in itertools.pairwise(["", *arguments]):
        flag, _, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
        if flag in tables and value:
            with contextlib.suppress(yaml.YAMLError):  # which the parser will name
                if twice := _said_twice(value):
                    raise ValueError(f"{flag} says {twice[0]} twice, of which the last would count; keep one")


def _said_twice(text: str) -> tuple[str, int, int] | None:
    """The first key of the YAML mapping `text` that stands there twice, and its lines; None if none does."""
    import yaml

    lines: dict[str, int] = {}
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, _ in root.value if isinstance(root, yaml.MappingNode) else ():
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            return name, lines[name], line
        lines[name] = line
    return None


def _quote_texts(arguments: Sequence[str], config_class: type) -> list[str]:
    """The arguments with the values of texts and paths as YAML quotes them, for the parser reads every value as YAML: of "cube #3" it
    would take "cube", of 2026_11_30 a number without lines, of "pick: the cup" a table.

    yes, no and null stay what they are: some flags take them beside words, as --compile does.
    """
    texts = {f"--{name}" for name, kind in typing.get_type_hints(config_class).items() if _is_text(kind)}
    quoted: list[str] = []
    for before, argument in itertools.pairwise(["", *arguments]):
        flag, is_joined, value = argument.partition("=")
        if before in texts and not argument.startswith("--"):
            quoted.append(_quote(argument))
        else:
            quoted.append(flag + is_joined + _quote(value) if flag in texts else argument)
    return quoted


def _is_text(kind: Any) -> bool:
    """Whether the type of a flag is a text or a path, or either or none."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return set(typing.get_args(kind) if is_union else [kind]) <= {str, Path, types.NoneType}


def _quote(text: str) -> str:
    if not text or text.lower() in _PLAIN_WORDS:
        return text
    return json.dumps(f"{_TYPED}{text}" if text.startswith("include") else text, ensure_ascii=False)


def _unread(error: Exception, arguments: Sequence[str]) -> str:
    """The flag and the value that the parser of YAML stumbled over."""
    text = str(getattr(getattr(error, "problem_mark", None), "buffer", None) or "").rstrip("\0")
    flag = next((before for before, argument in itertools.pairwise(["", *arguments]) if argument == text), "")
    flag = flag or next((argument.partition("=")[0] for argument in arguments if text and argument.endswith(f"={text}")), "")
    return f"{flag} {text}".strip() or "a flag"


def _in_short(error: BaseException) -> str:
    """What is wrong, on one line."""
    place = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or " ".join(str(error).split())
    return str(said) if place is None else f"line {place.line + 1}, column {place.column + 1}: {said}"


def split_flags(flag: str, text: str) -> list[str]:
    """The words of the flags that `flag` gives in one text.

    Raises:
        ValueError: a quotation has no end.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{flag} {text!r}: {error}") from error


def expand_home(text: str) -> str:
    """`text` with ~ as the home folder where a path begins so, which shells do not see in "--flag=~/x" and "name=~/x,other=~/y"."""
    return re.sub(r"(^|[=,])(~[\w.-]*)(?=/|,|$)", lambda found: found[1] + os.path.expanduser(found[2]), text)


def _gather_lists(arguments: Sequence[str], config_class: type) -> list[str]:
    """The arguments with the words behind every flag of a list as one: `--seeds 7 8 9` is `--seeds "[7, 8, 9]"`."""
    kinds = {f"--{item.name}": found[1] for item in fields(config_class) if (found := re.match(r"list\[([\w.]+)\]", str(item.type)))}
    gathered: list[str] = []
    rest = list(arguments)
    while rest:
        flag, is_joined, value = rest.pop(0).partition("=")
        if flag not in kinds:
            gathered.append(flag + is_joined + value)
            continue
        words = [value] if is_joined else list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
        rest = rest if is_joined else rest[len(words) :]
        gathered += [flag, _as_list(words, kinds[flag])] if words else [flag]
    return gathered


def _as_list(words: Sequence[str], kind: str) -> str:
    if words[0].startswith("["):  # as YAML writes it
        return " ".join(words)
    if kind in ("int", "float"):
        return f"[{', '.join(re.split(r'[ ,]+', ' '.join(words)))}]"
    return json.dumps([expand_home(word) for word in words])


def _complete_switches(arguments: Sequence[str], config_class: type) -> list[str]:
    """The arguments with True behind every yes-or-no flag that stands alone."""
    switches = {f"--{item.name}" for item in fields(config_class) if item.type in (bool, "bool")}
    completed = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue="--"):
        completed += [argument, "True"] if argument in switches and following.startswith("--") else [argument]
    return completed


def _explain(message: str, config_class: type) -> str:
    """`message` about flags, with near names where one is unknown."""
    if missing := re.findall(r"`(\w+)`", message) if message.startswith("Missing required") else []:
        return f"{', '.join(f'--{name}' for name in missing)} missing; --help explains all flags"
    if message.endswith("expected one argument"):
        return f"{message} (one that begins with -- is written with =, such as --flag='--more 2')"
    names = flag_names(config_class)
    unknown = re.findall(r"--(\w+)", message) if "unrecognized arguments" in message else re.findall(r"`(\w+)`", message)
    unknown = [name for name in unknown if name not in names]
    near = [f"did you mean --{match}?" for name in unknown for match in difflib.get_close_matches(name, names, n=1)]
    return f"{message}; {' '.join([*near, '--help lists all flags'])}" if unknown else message


def _name_positional(arguments: Sequence[str], name: str) -> list[str]:
    """The arguments before the first flag, as the flag `name`."""
    count = next((i for i, argument in enumerate(arguments) if argument.startswith("--")), len(arguments))
    named = [f"--{name}", json.dumps(list(arguments[:count]))] if count else []
    return [*named, *arguments[count:]]


def _prepare_process() -> None:
    """Sets what libraries read when they are imported, and hides their chatter unless --debug asks for it."""
    # Threads that wait for each other should soon sleep: with libgomp's long spinning, a training step on a CPU takes 10-20 times as
    # long as soon as another program uses a core; this costs 8 % on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.unraisablehook = _repeat_interrupt
    if os.environ.get(_DEBUG):
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_ours_or_a_warning)
    # The first warns of every kernel built for another torch, the last of kernels that it would like to download.
    for imported_by_peft in ("torchao", "torch.utils._pytree", "bitsandbytes.backends"):
        logging.getLogger(imported_by_peft).setLevel(logging.ERROR)


def _is_unread(stream: TextIO) -> bool:
    """Whether `stream` is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # closed, or none of the system's files
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush_output() -> None:
    """Writes what was printed before the interpreter does so, which shows a trace where nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is left
    except ValueError:  # closed
        return


def _repeat_interrupt(swallowed: sys.UnraisableHookArgs) -> None:
    """Repeats a Ctrl-C that struck where nothing can be raised (the clean-up of some object) and so would be lost: a moment later, since
    nothing can be raised here, either."""
    if not issubclass(swallowed.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(swallowed)
        return
    again = threading.Timer(_REPEAT_S, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    again.daemon = True
    with contextlib.suppress(RuntimeError):  # the interpreter is ending anyway
        again.start()


def _is_ours_or_a_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OUR_LOGGERS
