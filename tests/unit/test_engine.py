"""Programs of fixed shapes give the actions of the plain engine, whatever the batch size, prompt length and camera size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_policies import HEADS, INSTRUCTIONS, make_observations, make_parts, predict

from prismatic.models.sizes import BACKBONES
from prismatic.policy.inference import graphs
from prismatic.policy.inference.engine import EagerEngine
from prismatic.policy.inference.frames import split_frames
from prismatic.policy.inference.graphs import (
    Block,
    Bucket,
    GraphEngine,
    Recorder,
    batch_sizes_up_to,
    find_bucket,
    make_engine,
)
from prismatic.policy.inference.quantization import quantize_model
from prismatic.policy.inference.recent import Recent
from prismatic.policy.inference.stacking import stack_projections
from prismatic.policy.policy import Policy
from prismatic.vla.images import ImageRecipe, prepare_frames, prepare_image
from prismatic.vla.types import Observation


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_programs_agree_with_the_plain_engine(head: str, backbone: str) -> None:
    plain, parts = Policy(make_parts(head, backbone)), make_parts(head, backbone)
    policy = Policy(parts, engine=GraphEngine(parts, compiled=False, max_batch_size=4))
    # One, at its own length; three in the bucket of four, of different lengths; the same again; more than any bucket holds.
    for count in (1, 3, 2, 3, 5):
        observations = make_observations(count)
        np.testing.assert_allclose(predict(policy, observations), predict(plain, observations), atol=1e-5)


@pytest.mark.parametrize("head", ["l1", "diffusion"])
def test_prompts_that_fill_their_bucket_have_no_padding_to_hide(head: str) -> None:
    plain, parts = Policy(make_parts(head)), make_parts(head)
    policy = Policy(parts, engine=GraphEngine(parts, compiled=False, max_batch_size=2))
    policy.warm_up([2])
    text = next(text for count in range(1, 20) if policy.num_prompt_tokens(text := " ".join(["push"] * count)) % 8 == 0)
    observations = [replace(item, instruction=text) for item in make_observations(2)]
    np.testing.assert_allclose(predict(policy, observations), predict(plain, observations), atol=1e-5)


def test_cameras_of_other_sizes_get_a_program_of_their_own() -> None:
    plain, parts = Policy(make_parts("l1")), make_parts("l1")
    policy = Policy(parts, engine=GraphEngine(parts, compiled=False))
    for wrist_size in ((30, 40), (28, 28), (56, 20), (30, 40)):
        observations = make_observations(2, wrist_size)
        np.testing.assert_allclose(predict(policy, observations), predict(plain, observations), atol=1e-5)


def test_a_warm_engine_records_nothing_for_usual_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_parts("l1")
    policy = Policy(parts, engine=GraphEngine(parts, compiled=False, max_batch_size=2))
    assert policy.warm_up(frame_size=(30, 40)) > 0

    def fail(*args: Any) -> None:
        raise AssertionError("a program was recorded")

    monkeypatch.setattr(Recorder, "record", fail)
    for observation in make_observations(3):
        assert np.isfinite(predict(policy, [observation])).all()
    assert np.isfinite(predict(policy, make_observations(2))).all()


def test_other_units_share_the_engine() -> None:
    parts = make_parts("l1")
    wide = {"action": {name: [2 * value for value in values] for name, values in parts.norm_stats["arm"]["action"].items()}}
    parts = replace(parts, norm_stats={**parts.norm_stats, "wide": {**parts.norm_stats["arm"], **wide}})
    policy, observations = Policy(parts, engine=GraphEngine(parts, compiled=False)), make_observations(1)
    np.testing.assert_allclose(predict(policy.with_unnorm_key("wide"), observations), 2 * predict(policy, observations), rtol=1e-6)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([23], Bucket(1, 23, padded=False)),
        ([23, 23], Bucket(2, 24, padded=True)),
        ([17, 25, 8], Bucket(3, 32, padded=True)),
        ([24] * 6, Bucket(6, 24, padded=True)),
        ([24] * 7, None),
    ],
)
def test_the_smallest_bucket_that_holds_a_batch(lengths: list[int], expected: Bucket | None) -> None:
    assert batch_sizes_up_to(6) == [1, 2, 3, 4, 5, 6]
    assert find_bucket(lengths, batch_sizes_up_to(6)) == expected


def test_a_block_keeps_its_tensors_apart() -> None:
    block = Block({"a": ((3,), torch.uint8), "b": ((2, 2), torch.float32), "c": ((2,), torch.int64)}, torch.device("cpu"))
    block.write("a", np.array([1, 2], np.uint8))
    block.write("b", np.full((2, 2), 0.5, np.float32))
    block.write("c", np.array([-1]))
    block.upload()
    assert [tensor.tolist() for tensor in block.tensors.values()] == [[1, 2, 2], [[0.5, 0.5], [0.5, 0.5]], [-1, -1]]


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_stacked_projections_change_neither_names_nor_outputs(quantization: str) -> None:
    vla = make_parts("l1").model.bare_vla
    quantize_model(vla, quantization, torch.device("cpu"), torch.float32)
    embeddings = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    expected, names = vla.language_model(embeddings), list(vla.state_dict())
    numbers = sum(parameter.numel() for parameter in vla.parameters())
    stack_projections(vla)
    torch.testing.assert_close(vla.language_model(embeddings), expected)
    assert list(vla.state_dict()) == names
    assert sum(parameter.numel() for parameter in vla.parameters()) == numbers
    attention: Any = vla.language_model.model.layers[0].self_attn
    with torch.no_grad():  # the projections and the stack are the same memory
        for parameter in attention.k_proj.parameters():
            parameter.zero_()
    assert not torch.equal(vla.language_model(embeddings), expected)


def test_states_that_are_not_read_are_not_needed() -> None:
    language_model = make_parts("l1").model.bare_vla.language_model
    embeddings = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([[9], [7]])
    rows = torch.tensor([[2, 8], [0, 3]])
    for hidden in (None, mask):
        everything = language_model(embeddings, hidden)
        torch.testing.assert_close(language_model(embeddings, hidden, rows), everything[torch.arange(2)[:, None], rows])


def test_tokens_lie_one_after_the_other_in_both_towers() -> None:
    """Otherwise each norm reads across memory, and a GPU spends as long on them as on the matrix products."""
    backbone = make_parts("l1").model.bare_vla.bare_vision_backbone
    for tower in (backbone.featurizer, backbone.fused_featurizer):
        tokens = tower.embed(torch.randn(2, 3, 28, 28))
        assert tokens.is_contiguous()
        assert tower.blocks[0](tokens).is_contiguous()


def test_frames_prepared_as_a_batch_are_those_prepared_one_by_one() -> None:
    images = [item.images["wrist"] for item in make_observations(3, (64, 80))]
    recipe = ImageRecipe(28, jpeg_round_trip=True, center_crop=True)
    expected = np.stack([prepare_image(image, recipe) for image in images]).astype(int)
    found = prepare_frames(torch.from_numpy(np.stack(images)), recipe).numpy()
    assert np.abs(found - expected).max() <= 1


def test_only_the_latest_programs_are_kept() -> None:
    recent: Recent[str] = Recent(2)
    made: list[str] = []

    def recall(key: str) -> str:
        return recent.recall(key, lambda: (made.append(key), key.upper())[1])

    assert [recall(key) for key in ("a", "b", "a", "c", "a", "b")] == ["A", "B", "A", "C", "A", "B"]
    assert made == ["a", "b", "c", "b"]
    recent.reserve(["x", "b", "y", "z"])
    assert recent.missing() == ["x", "y", "z"]
    for key in ("x", "y", "d", "e", "f", "e"):
        recall(key)
    assert made[4:] == ["x", "y", "d", "e", "f"]
    assert recent.missing() == ["z"]
    for key in ("b", "x", "y"):
        recall(key)
    assert made[4:] == ["x", "y", "d", "e", "f"]
    assert "d" not in recent


def test_nothing_that_the_warm_up_asked_for_is_evicted_however_large_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MAX_ACTION_PROGRAMS", "_MAX_IMAGE_PROGRAMS"):
        monkeypatch.setattr(graphs, name, 3)
    parts = make_parts("l1")
    engine = GraphEngine(parts, compiled=False, max_batch_size=3)
    policy = Policy(parts, engine=engine)
    policy.warm_up()  # instructions of up to 48 tokens, alone and in batches
    policy.seal(3)
    assert policy.in_use()["left"] == {name: engine.left[name] for name in ("compiled", "recorded")}
    assert engine.left["recorded"] == "there is no CUDA device"
    for count in (1, 2, 3):
        for size in ((224, 224), (480, 640)):
            for words in (1, 12, 24):
                images = {name: np.zeros((*size, 3), np.uint8) for name in parts.spec.cameras}
                policy.predict([Observation(images, "put " * words, np.zeros(4))] * count)
    assert not policy.plain_calls


def test_a_sealed_engine_says_what_it_was_asked_for_and_has_not(caplog: pytest.LogCaptureFixture) -> None:
    parts = make_parts("l1")
    engine = GraphEngine(parts, compiled=False, max_batch_size=2)
    policy = Policy(parts, engine=engine)
    policy.warm_up([1], (30, 40), INSTRUCTIONS)
    policy.seal(1)
    assert not caplog.messages
    policy.warm_up([2], (30, 40), INSTRUCTIONS[:1])
    assert "1 shapes that the warm-up asked for were not recorded, such as Bucket(batch_size=2" in policy.in_use()["left"]["recorded"]
    assert "their calls run plainly" in caplog.text


def test_an_unknown_engine_or_one_that_needs_a_gpu_is_named() -> None:
    parts = make_parts("l1")
    assert isinstance(make_engine(parts, "auto"), EagerEngine)
    with pytest.raises(ValueError, match="--engine 'compile' is unknown; did you mean compiled"):
        make_engine(parts, "compile")
    with pytest.raises(ValueError, match="--engine graph needs a CUDA device, the policy is on cpu"):
        make_engine(parts, "graph")


def test_frames_go_through_in_powers_of_two_within_a_bound() -> None:
    assert [len(part) for part in split_frames(range(13), 1000, 3)] == [8, 4, 1]
    assert [len(part) for part in split_frames(range(3), 1000, 3)] == [3]  # one observation's
    assert [len(part) for part in split_frames(range(7), 3 << 20, 3)] == [2, 2, 2, 1]
    assert [len(part) for part in split_frames(range(3), 1 << 30, 3)] == [1, 1, 1]
    assert [number for part in split_frames([3, 1, 4, 8, 5], 9, 2) for number in part] == [3, 1, 4, 8, 5]


def test_frames_of_many_sizes_in_any_order_record_nothing_once_sealed() -> None:
    parts = make_parts("l1")
    engine = GraphEngine(parts, compiled=False, max_batch_size=4)
    recorded: list[object] = []
    record = engine._recorder.record
    engine._recorder.record = lambda *given: (recorded.append(given), record(*given))[1]  # type: ignore[method-assign]
    policy, plain = Policy(parts, engine=engine), Policy(parts)
    sizes = [(30, 40), (32, 32), (24, 60), (2000, 1500)]  # one beyond what is recorded
    policy.warm_up(range(1, 5), (30, 40), INSTRUCTIONS)
    policy.seal(4)
    before, rng = len(recorded), np.random.default_rng(0)
    for count in (1, 2, 3, 4, 3):
        seen = [replace(make_observations(count)[number]) for number in range(count)]
        for number, item in enumerate(seen):
            images = {name: rng.integers(0, 256, (*sizes[rng.integers(4)], 3), dtype=np.uint8) for name in item.images}
            seen[number] = replace(item, images=images)
        np.testing.assert_allclose(predict(policy, seen), predict(plain, seen), atol=2e-2)  # an image may differ by one level
    long = replace(make_observations(1)[0], instruction="push the block " * 20)
    np.testing.assert_allclose(predict(policy, [long]), predict(plain, [long]), atol=2e-2)
    assert len(recorded) == before
