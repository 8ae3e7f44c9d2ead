"""Single keys from a real terminal (a pty), which is always left as it was."""

from __future__ import annotations

import io
import os
import pty
import termios
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, TextIO

import pytest

from prismatic.acting.keyboard import Keyboard


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    master, slave = pty.openpty()
    with os.fdopen(slave, "r") as stream:
        yield master, stream
    os.close(master)


def settings(stream: TextIO) -> list[Any]:
    return termios.tcgetattr(stream)


def test_keys_come_without_enter_and_the_terminal_is_restored(terminal: tuple[int, TextIO]) -> None:
    master, stream = terminal
    before = settings(stream)
    with Keyboard(stream) as keyboard:
        assert not settings(stream)[3] & (termios.ICANON | termios.ECHO)
        assert settings(stream)[3] & termios.ISIG  # Ctrl-C still interrupts
        assert not settings(stream)[0] & termios.IXON  # Ctrl-S would stop what is printed, and the robot's loop with it
        os.write(master, b"\x1a")  # Ctrl-Z would stop the loop
        assert keyboard.pressed() == "\x1a"
        assert keyboard.pressed() == ""
        os.write(master, b"P s")
        assert [keyboard.pressed() for _ in range(4)] == ["p", " ", "s", ""]
        os.write(master, b"xyc")
        assert keyboard.wait("cq") == "c"
        os.write(master, b"cc")
        keyboard.forget()  # typed ahead: no answer to the next question
        assert keyboard.pressed() == ""
    assert settings(stream) == before
    assert keyboard.pressed() == ""


def test_a_key_that_is_held_down_counts_once(terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("prismatic.acting.keyboard.time", SimpleNamespace(monotonic=lambda: now[0]))
    with Keyboard(terminal[1]) as keyboard:
        pressed = []
        for pause in (0.66, *[0.04] * 20):  # as a terminal repeats it
            os.write(terminal[0], b"t")
            pressed.append(keyboard.pressed())
            now[0] += pause
        os.write(terminal[0], b"ttttp")  # a loop that was late finds several at once, and what matters is not behind them
        pressed.append(keyboard.pressed())
        now[0] += 0.8
        os.write(terminal[0], b"p")
        pressed.append(keyboard.pressed())
    assert [key for key in pressed if key] == ["t", "p", "p"]


@pytest.mark.parametrize(
    "sent",
    [b"\x1b[C", b"\x1b[F", b"\x1bOP", b"\x1bOS", b"\x1b[1;5C", b"\x1b[15~", b"\x1b[[C", b"\x1bO5C", b"\x1bO2S", b"\x1bO "],
    ids=ascii,
)
def test_arrows_and_function_keys_are_no_letters(terminal: tuple[int, TextIO], sent: bytes) -> None:
    """The right arrow's C would let a paused robot go on."""
    with Keyboard(terminal[1]) as keyboard:
        os.write(terminal[0], sent + b"q")
        assert [keyboard.pressed() for _ in range(2)] == ["q", ""]
        for sent_first, key in ((2, b"p"), (len(sent) - 1, b"s")):
            os.write(terminal[0], sent[:sent_first])  # over a slow line
            assert keyboard.pressed() == ""
            os.write(terminal[0], sent[sent_first:] + key)
            assert [keyboard.pressed() for _ in range(2)] == [key.decode(), ""]


def test_a_key_after_escape_is_not_lost(terminal: tuple[int, TextIO]) -> None:
    with Keyboard(terminal[1]) as keyboard:
        os.write(terminal[0], b"\x1bp")
        keyboard.wait("p")
        os.write(terminal[0], b"\x1b")
        assert keyboard.pressed() == ""
        os.write(terminal[0], b"q")
        keyboard.wait("q")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_terminal_is_restored_after_errors(terminal: tuple[int, TextIO], error: type[BaseException]) -> None:
    before = settings(terminal[1])

    def interrupted() -> None:
        with Keyboard(terminal[1]):
            assert settings(terminal[1]) != before
            raise error

    with pytest.raises(error):
        interrupted()
    assert settings(terminal[1]) == before


def test_a_line_is_typed_as_usual(terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings(terminal[1])
    with Keyboard(terminal[1]) as keyboard:
        raw = settings(terminal[1])

        def typed(prompt: str) -> str:
            assert settings(terminal[1]) == before
            return "  fold the shirt "

        monkeypatch.setattr("builtins.input", typed)
        assert keyboard.line("instruction: ") == "fold the shirt"
        assert settings(terminal[1]) == raw


def test_without_a_terminal_no_key_is_pressed() -> None:
    with Keyboard(io.StringIO("pppp")) as keyboard:
        assert not keyboard.is_terminal
        assert keyboard.pressed() == ""


def test_a_terminal_that_is_closed_interrupts_in_place_of_waiting_for_ever() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stream, Keyboard(stream) as keyboard:
        os.close(master)
        with pytest.raises(KeyboardInterrupt, match="the terminal was closed"):
            keyboard.wait("s")
