"""A checkpoint that drives a robot in the robot's own process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapter_checkpoints import write_base, write_run

from experiments.robot.evaluation.driving import load_local
from prismatic.policy import policy as policy_module
from prismatic.policy.checkpoint.parts import PolicyParts
from prismatic.policy.checkpoint.spec import HeadSpec
from prismatic.policy.inference.graphs import GraphEngine
from prismatic.vla.types import Observation


def test_no_frame_of_a_usual_size_is_prepared_for_during_a_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[GraphEngine] = []

    def make_engine(parts: PolicyParts, kind: str, max_batch_size: int) -> GraphEngine:
        assert kind == "auto"  # which would be plain on a CPU
        engines.append(GraphEngine(parts, compiled=False, max_batch_size=max_batch_size))
        return engines[0]

    monkeypatch.setattr(policy_module, "make_engine", make_engine)
    write_run(tmp_path / "run", write_base(tmp_path / "base"), 0, HeadSpec(use_proprio=True))
    local, _ = load_local(str(tmp_path / "run"), "cpu", None)
    recorded: list[object] = []
    record = engines[0]._recorder.record
    monkeypatch.setattr(engines[0]._recorder, "record", lambda *given: (recorded.append(given), record(*given))[1])
    for size in ((480, 640), (720, 1280), (256, 256), (224, 224), (123, 321)):
        seen = Observation({"primary": np.zeros((*size, 3), np.uint8)}, "push the block", np.zeros(8))
        assert np.isfinite(local.infer(seen)).all()
    assert recorded == []
    assert engines[0].plain_calls == {}
