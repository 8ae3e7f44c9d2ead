"""A model that is cut over the processes (here: one) computes and learns as the whole one, in both forms of the language model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from engine_policies import make_parts

from prismatic.models.action_model import ActionInputs, ActionModel
from prismatic.models.sizes import BACKBONES
from prismatic.training.distributed import Ranks
from prismatic.training.sharding import shard, whole_model


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


def _loss(model: ActionModel, inputs: ActionInputs) -> torch.Tensor:
    loss = model(inputs).float().square().mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_sharded_training_is_whole_training(backbone: str, ranks: Ranks, tmp_path: Path) -> None:
    parts = make_parts("discrete", backbone)  # its token head is used, which Qwen's form ties to the embeddings
    whole = parts.model.requires_grad_(True).train()
    whole.bare_vla.freeze_unused(uses_lm_head=True)
    sharded = copy.deepcopy(whole)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.tensor([[parts.config.token_ids.bos, 40, 41, 42, parts.config.token_ids.empty]])
    pixels = torch.randn(1, 12, 28, 28, generator=generator)
    inputs = ActionInputs.from_prompts(pixels, prompt, None, None, whole.num_action_tokens, parts.config.token_ids)
    skeleton = shard(sharded, ranks, compute_dtype=None)
    torch.testing.assert_close(_loss(sharded, inputs), _loss(whole, inputs))
    expected = {name: value.grad for name, value in whole.named_parameters() if value.grad is not None}
    found = {name: value.grad.full_tensor() for name, value in sharded.named_parameters() if value.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert list(whole_model(sharded, skeleton, ranks).state_dict()) == list(whole.state_dict())
