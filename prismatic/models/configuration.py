"""OpenVLAConfig: every size of the model, read from a published config.json or built from a preset.

A published config names its two vision towers (`timm_model_ids`) and leaves their sizes to the reader: `PUBLISHED_TOWERS`
holds them. A config written here says them itself, in `vision_towers`, so that towers of any size are possible.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from prismatic.models.decoder_sizes import TEXT_CONFIGS, DecoderSizes, TextConfig
from prismatic.models.sizes import TinySizes
from prismatic.vla.constants import NUM_ACTION_BINS, PROMPT_TEMPLATE, QWEN_PROMPT_TEMPLATE, TokenIds, near_names


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of one Vision Transformer."""

    image_size: int  # pixels, square
    patch_size: int  # pixels, square
    embed_dim: int
    depth: int  # number of blocks, the last of which is never computed
    num_heads: int
    mlp_hidden_dim: int
    num_register_tokens: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attn_pool: bool = False  # an unused pooling head that published SigLIP weights carry

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "embed_dim", "num_heads", "mlp_hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"vision tower: {name} is {getattr(self, name)}; it must be at least 1")
        if self.image_size % self.patch_size:
            raise ValueError(f"vision tower: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"vision tower: embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.depth < 2:
            raise ValueError(f"vision tower: depth is {self.depth}; features come from the second-to-last block, so at least 2 are needed")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_prefix_tokens(self) -> int:
        return int(self.class_token) + self.num_register_tokens

    @classmethod
    def dino(cls, image_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int) -> TowerConfig:
        """DINOv2 with four registers, MLP four times as wide as the tower."""
        return cls(image_size, patch_size, embed_dim, depth, num_heads, 4 * embed_dim, 4, class_token=True, layer_scale=True)

    @classmethod
    def siglip(cls, image_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int) -> TowerConfig:
        """SigLIP So400m, MLP 3.7362 times as wide as the tower."""
        return cls(image_size, patch_size, embed_dim, depth, num_heads, int(3.7362 * embed_dim), attn_pool=True)


# Sizes that timm gives these ids; the image size follows from the config's `image_sizes`.
PUBLISHED_TOWERS: dict[str, TowerConfig] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": TowerConfig.dino(224, 14, embed_dim=1024, depth=24, num_heads=16),
    "vit_so400m_patch14_siglip_224": TowerConfig.siglip(224, 14, embed_dim=1152, depth=27, num_heads=16),
}
_PUBLISHED_IDS = tuple(PUBLISHED_TOWERS)
_ROPE_THETA = 10000.0
# Fields that a published config.json always holds.
_PUBLISHED_FIELDS = (
    "arch_specifier", "hf_llm_id", "image_resize_strategy", "image_sizes", "llm_backbone_id", "llm_max_length", "n_action_bins",
    "norm_stats", "pad_to_multiple_of", "pad_token_id", "timm_model_ids", "use_fused_vision_backbone", "vision_backbone_id",
)  # fmt: skip
_PUBLISHED_TEXT_FIELDS = (
    "hidden_size", "intermediate_size", "model_type", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id",
    "vocab_size",
)  # fmt: skip


class OpenVLAConfig(PreTrainedConfig):
    """Sizes and token ids of an OpenVLA model; field names as in published config.json files."""

    model_type = "openvla"

    text_config: dict | TextConfig | None = None  # sizes of the language model; absent ones are those of Llama-2 7B
    timm_model_ids: list[str] | tuple[str, ...] = _PUBLISHED_IDS
    image_sizes: list[int] | tuple[int, ...] | int = (224, 224)
    vision_towers: list | tuple | None = None  # two TowerConfig as dictionaries; None: by timm_model_ids
    use_fused_vision_backbone: bool = True
    image_resize_strategy: str = "resize-naive"
    norm_stats: dict | None = None  # dataset_statistics.json of the training data
    n_action_bins: int = NUM_ACTION_BINS
    pad_to_multiple_of: int = 64  # rows that vocab_size has beyond the tokenizer's base vocabulary
    pad_token_id: int | None = 32000
    empty_token_id: int = 29871  # the lone space before the action characters
    vision_backbone_id: str = "dinosiglip-vit-so-224px"
    llm_backbone_id: str = "llama2-7b-pure"
    hf_llm_id: str = "meta-llama/Llama-2-7b-hf"
    arch_specifier: str = "no-align+fused-gelu-mlp"
    llm_max_length: int = 2048
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None or isinstance(self.text_config, dict):
            self.text_config = _text_config(self.text_config or {}, self.pad_token_id)
        elif not isinstance(self.text_config, (LlamaConfig, Qwen2Config)):
            raise ValueError(f"text_config is a {type(self.text_config).__name__}; expected an object with the language model's sizes")
        if not self.use_fused_vision_backbone:
            raise ValueError(
                "use_fused_vision_backbone is false: only checkpoints with both vision towers (DINOv2 and SigLIP) are supported"
            )
        if self.vision_towers is None:
            self.vision_towers = [asdict(tower) for tower in self._published_towers()]
        super().__post_init__(**kwargs)
        self._check()

    def _published_towers(self) -> list[TowerConfig]:
        sizes = [self.image_sizes] * 2 if isinstance(self.image_sizes, int) else list(self.image_sizes)
        towers = []
        for model_id, image_size in zip(self.timm_model_ids, sizes, strict=True):
            if model_id not in PUBLISHED_TOWERS:
                raise ValueError(f"timm_model_ids names the unknown vision tower {model_id!r}; {near_names(model_id, PUBLISHED_TOWERS)}")
            towers.append(replace(PUBLISHED_TOWERS[model_id], image_size=image_size))
        return towers

    def _check(self) -> None:
        dino, siglip = self.towers
        if dino.num_patches != siglip.num_patches or dino.image_size != siglip.image_size:
            raise ValueError(
                f"the vision towers must cut the same image into the same patches; found {dino.image_size} px / {dino.patch_size} px "
                f"and {siglip.image_size} px / {siglip.patch_size} px"
            )
        sizes = self.decoder_sizes
        stated = {name: getattr(self.language, name) for name in ("bos_token_id", "eos_token_id")}
        stated |= {name: getattr(self, name) for name in ("pad_token_id", "empty_token_id")}
        for name, value in stated.items():
            if not isinstance(value, int):
                raise ValueError(f"{name} is {value}; expected the id of one token")
        if not 0 <= self.empty_token_id < sizes.vocab_size:
            raise ValueError(f"empty_token_id is {self.empty_token_id}; it must be from 0 to less than vocab_size {sizes.vocab_size}")
        if not isinstance(self.llm_max_length, int) or self.llm_max_length < 1:
            raise ValueError(f"llm_max_length is {self.llm_max_length}; expected a number of tokens, such as 2048")
        if self.n_action_bins != NUM_ACTION_BINS:
            raise ValueError(f"n_action_bins is {self.n_action_bins}; action tokens stand for {NUM_ACTION_BINS} bins")
        ids = self.token_ids
        others = {"pad_token_id": ids.pad, "bos_token_id": ids.bos, "eos_token_id": ids.stop}
        actions = range(ids.action_token_begin_idx + 1, ids.base_vocab_size)
        wrong = {name: value for name, value in others.items() if not 0 <= value < sizes.vocab_size or value in actions}
        if wrong or not NUM_ACTION_BINS < ids.base_vocab_size <= sizes.vocab_size:
            named = ", ".join(f"{name} {value}" for name, value in (wrong or {"pad_token_id": ids.pad}).items())
            raise ValueError(
                f"vocab_size {sizes.vocab_size} less pad_to_multiple_of {self.pad_to_multiple_of} must leave more than {NUM_ACTION_BINS} "
                f"tokens, the last of which stand for actions; {named} must lie within vocab_size and be none of these"
            )

    @property
    def language(self) -> TextConfig:
        """`text_config`, typed."""
        assert isinstance(self.text_config, (LlamaConfig, Qwen2Config))
        return self.text_config

    @property
    def decoder_sizes(self) -> DecoderSizes:
        """What the language model is made of."""
        return DecoderSizes.of(self.language)

    @property
    def is_qwen(self) -> bool:
        """Whether the language model, its tokenizer and its prompt are Qwen's; else they are Llama's."""
        return isinstance(self.text_config, Qwen2Config)

    @property
    def hidden_size(self) -> int:
        """Width of the language model, which projectors and heads share."""
        return self.language.hidden_size

    @property
    def towers(self) -> tuple[TowerConfig, TowerConfig]:
        """DINOv2 (first three channels of an image) and SigLIP (last three)."""
        assert self.vision_towers is not None
        known = {item.name for item in fields(TowerConfig)}
        if len(self.vision_towers) != 2:
            raise ValueError(f"vision_towers describes {len(self.vision_towers)} towers; expected two, DINOv2's and SigLIP's")
        for tower in self.vision_towers:
            if unknown := set(tower) - known:
                raise ValueError(f"vision_towers has unknown sizes {sorted(unknown)}; known: {sorted(known)}")
        dino, siglip = (TowerConfig(**tower) for tower in self.vision_towers)
        return dino, siglip

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the towers take."""
        return self.towers[0].image_size

    @property
    def num_patches(self) -> int:
        """Tokens that one image becomes."""
        return self.towers[0].num_patches

    @property
    def token_ids(self) -> TokenIds:
        """The prompt and the ids that the token layout relies on."""
        language = self.language
        assert isinstance(language.bos_token_id, int)
        assert isinstance(language.eos_token_id, int)
        assert self.pad_token_id is not None
        return TokenIds(
            base_vocab_size=language.vocab_size - self.pad_to_multiple_of,
            bos=language.bos_token_id,
            stop=language.eos_token_id,
            empty=self.empty_token_id,
            pad=self.pad_token_id,
            prompt_template=QWEN_PROMPT_TEMPLATE if self.is_qwen else PROMPT_TEMPLATE,
        )

    def save_published(self, folder: Path) -> None:
        """Writes config.json and generation_config.json in the published form, which transformers 4.40 with the published code reads too.

        Not `save_pretrained`: newer versions of transformers write other names (dtype, rope_parameters) than older ones read.
        """
        content = {
            **{name: getattr(self, name) for name in _PUBLISHED_FIELDS},
            "architectures": ["OpenVLAForActionPrediction"],
            "auto_map": {
                "AutoConfig": "configuration_prismatic.OpenVLAConfig",
                "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
            },
            "model_type": self.model_type,
            "output_projector_states": False,
            "text_config": self._published_text_config(),
            "timm_override_act_layers": [None, None],
            "torch_dtype": "bfloat16",
        }
        if self.empty_token_id != OpenVLAConfig.empty_token_id:
            content["empty_token_id"] = self.empty_token_id
        if not set(self.timm_model_ids) <= set(PUBLISHED_TOWERS) or list(self.towers) != self._published_towers():
            content["vision_towers"] = self.vision_towers
        _write_json(folder / "config.json", content)
        ids = self.token_ids
        generation = {"_from_model_config": True, "bos_token_id": ids.bos, "eos_token_id": ids.stop, "pad_token_id": ids.pad}
        _write_json(folder / "generation_config.json", generation)

    def _published_text_config(self) -> dict[str, Any]:
        """The sizes of the language model, and whatever else differs from the defaults of its family."""
        own, default = self.language.to_dict(), type(self.language)().to_dict()
        kept = [key for key in own if key in _PUBLISHED_TEXT_FIELDS or own[key] != default.get(key)]
        content = {key: own[key] for key in kept}
        sizes = self.decoder_sizes
        if sizes.rope_theta != _ROPE_THETA:
            content["rope_theta"] = sizes.rope_theta
        for key in ("rope_parameters", "head_dim", "dtype", "transformers_version", "architectures", "layer_types"):
            content.pop(key, None)
        if sizes.head_dim * sizes.num_heads != sizes.hidden_size:  # else every reader finds it
            content["head_dim"] = sizes.head_dim
        return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def openvla_7b() -> OpenVLAConfig:
    """The sizes of openvla/openvla-7b: 7,541,237,184 parameters."""
    return OpenVLAConfig()


def prismatic_qwen25_0_5b() -> OpenVLAConfig:
    """The sizes of prism-qwen25-extra-dinosiglip-224px-0_5b: Qwen2.5-0.5B with 256 extra tokens for actions behind its own 151,665.

    BOS and stop are what stands first and last in a sample there: the chat's <|im_start|> and <|im_end|>.
    """
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    return OpenVLAConfig(
        text_config=_qwen_text_config(sizes, vocab_size=151936, bos=151644, stop=151645, pad=151643),
        pad_to_multiple_of=15,
        pad_token_id=151643,  # <|endoftext|>
        empty_token_id=198,  # the line break before the action tokens
        llm_backbone_id="qwen25-0_5b-extra",
        hf_llm_id="Qwen/Qwen2.5-0.5B",
    )


def _qwen_text_config(sizes: dict[str, Any], vocab_size: int, bos: int, stop: int, pad: int) -> dict[str, Any]:
    """A text_config of Qwen2.5's small models, whose token head is tied to the embeddings."""
    ids = {"bos_token_id": bos, "eos_token_id": stop, "pad_token_id": pad}
    return {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6, **sizes, "vocab_size": vocab_size, **ids}


def _text_config(content: dict[str, Any], pad_token_id: int | None) -> TextConfig:
    family = content.get("model_type", "llama")
    if family not in TEXT_CONFIGS:
        raise ValueError(f"text_config: model_type {family!r} is not supported; {near_names(str(family), TEXT_CONFIGS)}")
    own = {"vocab_size": 32064} if family == "llama" else {}
    return TEXT_CONFIGS[family](**{**own, "pad_token_id": pad_token_id, **content})


def tiny(sizes: TinySizes, base_vocab_size: int, empty_token_id: int, chat_ids: tuple[int, int, int] = (1, 2, 0)) -> OpenVLAConfig:
    """The OpenVLA architecture at any size; the vocabulary is that of the tokenizer that goes with it.

    `chat_ids`: where Qwen's form has <|im_start|>, <|im_end|> and <|endoftext|>.
    """
    tower = (sizes.image_size, sizes.patch_size, sizes.vision_dim, sizes.vision_layers + 1, sizes.vision_heads)
    language = {
        "hidden_size": sizes.llm_dim,
        "num_hidden_layers": sizes.llm_layers,
        "num_attention_heads": sizes.llm_heads,
        "intermediate_size": sizes.llm_mlp_dim,
    }
    vocab_size = base_vocab_size + 64
    if sizes.backbone == "qwen":
        bos, stop, pad = chat_ids
        shared = {"num_key_value_heads": sizes.llm_heads // 2 if sizes.llm_heads % 2 == 0 else 1}
        language = _qwen_text_config(language | shared, vocab_size, bos, stop, pad)
    else:
        language, pad = {**language, "vocab_size": vocab_size}, base_vocab_size
    return OpenVLAConfig(
        vision_towers=[asdict(TowerConfig.dino(*tower)), asdict(TowerConfig.siglip(*tower))],
        image_sizes=[sizes.image_size] * 2,
        timm_model_ids=["tiny-dinov2", "tiny-siglip"],
        vision_backbone_id=f"tiny-dinosiglip-{sizes.image_size}px",
        llm_backbone_id=f"tiny-{sizes.backbone}",
        hf_llm_id=f"tiny-{sizes.backbone}",
        text_config=language,
        pad_token_id=pad,
        empty_token_id=empty_token_id,
    )
