"""LoRA adapters as the published recipe places them: on every linear layer, the patch convolutions and the LM head included.

alpha = min(rank, 16), A ~ N(0, 1/rank^2), B = 0 (golden group g_lora). Modules that never receive a gradient (the last ViT
block, the attention pool, the LM head under an L1 head) are wrapped too, so that adapter files have the published keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prismatic.policy.spec import LoraSpec

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# What PEFT 0.11's "all-linear" resolved to for OpenVLA; later versions leave out the output layer, so the names are spelled out.
LORA_TARGET_MODULES = (
    "down_proj", "fc1", "fc2", "fc3", "gate_proj", "k_proj", "kv", "lm_head", "o_proj", "proj", "q", "q_proj", "qkv", "up_proj", "v_proj",
)  # fmt: skip


def add_lora(model: PreTrainedModel, lora: LoraSpec) -> PeftModel:
    """`model` with trainable adapters on frozen weights; the modules are wrapped in place."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(LORA_TARGET_MODULES),
        init_lora_weights="gaussian",
    )
    return get_peft_model(model, config)
