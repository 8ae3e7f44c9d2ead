"""The table of checks, how they are run, and the screen and the JSON that they end in."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from prismatic.doctor.machine import check_disk, check_gpu, check_hub, check_memory, check_shared_memory
from prismatic.doctor.simulators import check_rendering, check_simulators
from prismatic.doctor.software import (
    check_attention,
    check_extras,
    check_python,
    check_tensorflow,
    check_torch,
    check_versions,
)
from prismatic.vla.diagnosis import Finding, Status

Check = Callable[[], list[Finding]]
Section = list[Finding]

# Heading -> subject and check, in the order of the screen; the subject stands for a check that itself fails.
MACHINE_CHECKS: dict[str, dict[str, Check]] = {
    "Software": {
        "Python": check_python,
        "torch": check_torch,
        "versions": check_versions,
        "extras": check_extras,
        "attention": check_attention,
        "TensorFlow": check_tensorflow,
        "simulators": check_simulators,
        "rendering": check_rendering,
    },
    "Machine": {
        "memory": check_memory,
        "shared memory": check_shared_memory,
        "disk": check_disk,
        "GPU": check_gpu,
        "Hub": check_hub,
    },
}
_MARKS = {Status.OK: "ok", Status.NOTE: "note", Status.WARNING: "warning", Status.PROBLEM: "PROBLEM"}
_COLOURS = {Status.OK: "32", Status.NOTE: "2", Status.WARNING: "33", Status.PROBLEM: "31;1"}  # ANSI
_SUBJECT_COLUMN, _TEXT_COLUMN = 11, 27
_MAX_LINES = 4  # of what was found
_SMALLEST_WIDTH, _LARGEST_WIDTH = 80, 120


def run_checks(checks: Mapping[str, Check]) -> Section:
    """The findings of every check; one that breaks is a finding itself, so that a damaged installation still gets its screen."""
    return [finding for subject, check in checks.items() for finding in run_check(subject, check)]


def run_check(subject: str, check: Check) -> Section:
    """The findings of one check."""
    try:
        return check()
    except ModuleNotFoundError as error:
        name = (error.name or str(error)).partition(".")[0]
        remedy = f"Install it: pip install {name}; in a checkout, make install brings everything."
        return [Finding(subject, Status.PROBLEM, f"the package {name} is missing", remedy)]
    except Exception as error:  # whatever a damaged installation raises
        remedy = "Install the packages again (make install in a checkout); --debug shows where this came from."
        if os.environ.get("PRISMATIC_DEBUG"):
            raise
        return [Finding(subject, Status.PROBLEM, f"the check failed: {type(error).__name__}: {error}", remedy)]


def count_problems(sections: Mapping[str, Section]) -> int:
    return sum(finding.status == Status.PROBLEM for findings in sections.values() for finding in findings)


def to_json(sections: Mapping[str, Section]) -> str:
    """{"problems": n, "sections": {heading: [{"subject", "status", "found", "remedy"}]}}."""
    plain = {heading: [asdict(finding) for finding in findings] for heading, findings in sections.items()}
    return json.dumps({"problems": count_problems(sections), "sections": plain}, indent=2, ensure_ascii=False)


def to_text(sections: Mapping[str, Section], colour: bool) -> str:
    """The screen, as wide as the terminal allows."""
    width = min(max(shutil.get_terminal_size().columns, _SMALLEST_WIDTH), _LARGEST_WIDTH)
    lines = []
    for heading, findings in sections.items():
        lines += [_paint(heading, "1", colour)]
        lines += [line for finding in findings for line in _lines(finding, width, colour)]
        lines += [""]
    return "\n".join([*lines, summary(sections)])


def summary(sections: Mapping[str, Section]) -> str:
    """The last line."""
    counts = Counter(finding.status for findings in sections.values() for finding in findings)
    parts = [
        f"{counts[status]} {word}{'' if counts[status] == 1 else 's'}"
        for status, word in ((Status.PROBLEM, "problem"), (Status.WARNING, "warning"))
        if counts[status]
    ]
    return f"{' and '.join(parts)}; an arrow says what to do." if parts else "Everything is in order."


def _lines(finding: Finding, width: int, colour: bool) -> Iterator[str]:
    """The finding with its remedy below it."""
    mark = _paint(f"  {_MARKS[finding.status]:<{_SUBJECT_COLUMN - 2}}", _COLOURS[finding.status], colour)
    text, indent = _wrap(_shorten(finding.found), width), " " * _TEXT_COLUMN
    if len(finding.subject) < _TEXT_COLUMN - _SUBJECT_COLUMN:
        yield f"{mark}{finding.subject:<{_TEXT_COLUMN - _SUBJECT_COLUMN}}{text[0]}"
        yield from (indent + line for line in text[1:])
    else:  # a data set's name
        yield mark + finding.subject
        yield from (indent + line for line in text)
    if finding.remedy:
        first, *rest = _wrap(finding.remedy, width - 3)
        yield f"{indent}-> {first}"
        yield from (f"{indent}   {line}" for line in rest)


def _shorten(text: str) -> str:
    """The first lines of a long list."""
    lines = text.splitlines()
    return text if len(lines) <= _MAX_LINES else "\n".join([*lines[:_MAX_LINES], f"... and more; --json shows {len(lines)} lines"])


def _wrap(text: str, width: int) -> Sequence[str]:
    """Lines for the last column; words (paths) that are longer stay whole, so that they can be copied."""
    lines = [
        line
        for paragraph in text.splitlines()
        for line in textwrap.wrap(paragraph, width - _TEXT_COLUMN, break_long_words=False, break_on_hyphens=False)
    ]
    return lines or [""]


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text
