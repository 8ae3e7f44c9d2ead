"""Streams of the two vision towers come together again, whatever happens in between."""

from __future__ import annotations

import pytest
import torch

from prismatic.models import vision


class RecordedStream:
    """Notes for whom it waits, in place of a stream of a GPU."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: RecordedStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


def test_a_pass_that_fails_on_one_of_two_streams_leaves_none_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a recording that is given up ends with unjoined work, and the device refuses what comes next."""
    log: list[str] = []
    first, second = RecordedStream("first", log), RecordedStream("second", log)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: first)
    monkeypatch.setattr(vision, "_side_stream", lambda device: second)
    with pytest.raises(RuntimeError, match="recompile"), vision._second_stream(torch.device("cuda", 0)):
        raise RuntimeError("a recompile is needed")
    assert log == ["second waits for first", "first waits for second"]
