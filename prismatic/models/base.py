"""A base checkpoint with random or given weights and a tokenizer, in the layout of openvla/openvla-7b.

The tokenizer is a Llama tokenizer in miniature and keeps what the token layout relies on: ids 0, 1, 2 are <unk>, <s>, </s>; a
space is "▁", put before the text and joined to the word that follows; characters without a piece become bytes, so that any
text encodes without <unk>; the last 256 ids of the base vocabulary are single characters that encode to themselves, and a lone
space before them stays a token of its own; <PAD> follows the base vocabulary.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prismatic.models.chat_tokenizer import CHAT_SPECIAL_TOKENS, build_chat_tokenizer, chat_ids, line_break_id
from prismatic.models.configuration import OpenVLAConfig, TinySizes, tiny
from prismatic.models.processor import TOKENIZER_FILES, PrismaticImageProcessor, check_tokenizer, load_tokenizer
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.models.weight_files import check_finite, write_weights
from prismatic.vla.constants import NUM_ACTION_BINS, TokenIds

_SPECIAL_PIECES = ("<unk>", "<s>", "</s>")
_SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>"}
_SPACE = "▁"
# The first of 256 code points of Unicode's private use area: no instruction contains them.
_FIRST_ACTION_CHARACTER = 0xE000
# Words of robot instructions that are one token; other text falls into fragments, characters or bytes.
_WORDS = """
In What action should the robot take to
a all an and arm around at away back backward behind between both bottom by center clockwise close down first for forward
from front gripper half hand in inside into it its left lower middle near next of off on one onto open out over right second
slowly side that then three top towards two under until up upper upright with
assemble brush clean close cover cut drop empty fill flip fold grab grasp handle hang hold insert lay lift lock move pack peel
pick place plug pour press pull push put reach remove release rotate scoop screw slide sort spread stack stir sweep swing
take throw turn twist unfold unlock unplug wash wipe
apple bag ball banana basin basket bin block board book bottle bowl box bread brick butter button cabinet cable can cap carrot
cheese cloth coffee cookies corn cream cube cup cylinder dial dish dishwasher disassemble door drawer egg faucet fork fruit hammer hole
hoop juice kettle knife knob lemon lever lid machine microwave milk moka mug oven object pan paper peg pen plate plunger
pot pots pudding puck ramen ring sauce shelf shirt sink socket soup spoon sponge stapler stick stove switch table tape tomato
towel toy tray vegetable wall water window wine wooden wrench
black blue brown green grey large long orange pink purple red round small white yellow
"""
_FRAGMENTS = "ing ed er es est ly tion ment able th he in on an re st al en or at is ou le ar ch sh ck ll ss ee oo"


def build_tokenizer(token_ids: TokenIds | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer whose <PAD> follows its base vocabulary: `len(tokenizer) - 1` pieces, the last 256 of which are action characters.

    Without `token_ids` it has about a thousand pieces; with them as many as they say, the lone space at their empty id (unused pieces
    fill the gaps), so that it goes with a model of the published sizes.

    Raises:
        ValueError: the vocabulary of `token_ids` is too small.
    """
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [_SPACE + word for word in _WORDS.split()]
    text = list(dict.fromkeys([_SPACE, *characters, *words, "Out", *_FRAGMENTS.split()]))  # each piece once, in this order
    actions = [chr(_FIRST_ACTION_CHARACTER + i) for i in range(NUM_ACTION_BINS)]
    pieces = _fill_up([*_SPECIAL_PIECES, *byte_pieces, *text], token_ids) + actions

    # Equal scores make the segmentation with the fewest pieces the best; bytes are only a last resort.
    last_resort = {*_SPECIAL_PIECES, *byte_pieces}
    scores = [-100.0 if piece in last_resort else -1.0 for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in (*_SPECIAL_PIECES, "<PAD>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL_TOKENS)


def build_tokenizer_for(config: OpenVLAConfig) -> PreTrainedTokenizerFast:
    """A tokenizer in miniature whose ids are those of `config`, of either family."""
    return build_chat_tokenizer(_WORDS.split(), config.token_ids) if config.is_qwen else build_tokenizer(config.token_ids)


def _fill_up(pieces: list[str], token_ids: TokenIds | None) -> list[str]:
    """`pieces` with unused ones among them, so that the action pieces that follow end the base vocabulary of `token_ids`."""
    if token_ids is None:
        return pieces
    count = token_ids.base_vocab_size - NUM_ACTION_BINS
    if len(pieces) > count or not len(pieces) <= token_ids.empty + 1 <= count:
        raise ValueError(
            f"a base vocabulary of {token_ids.base_vocab_size} with the empty token at {token_ids.empty} has no room for "
            f"{len(pieces)} pieces and {NUM_ACTION_BINS} actions"
        )
    rest = [piece for piece in pieces if piece != _SPACE]
    unused = (f"\ue200unused{i}" for i in range(count))  # no text begins with that private character
    before = [*rest, *islice(unused, token_ids.empty - len(rest)), _SPACE]
    return [*before, *islice(unused, count - len(before))]


def write_base(folder: Path, config: OpenVLAConfig, weights: Mapping[str, torch.Tensor], tokenizer: Path | PreTrainedTokenizerBase) -> None:
    """Writes a base checkpoint (bfloat16) into the new folder `folder`, complete or not at all; `tokenizer` may be a folder to copy from.

    Raises:
        ValueError: the folder exists already, the weights are not finite, or the tokenizer is another model's.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another folder, or delete it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_tokenizer(partial, tokenizer)
        check_tokenizer(load_tokenizer(partial), config.token_ids, str(folder))
        state = {key: value.detach().to("cpu", torch.bfloat16).contiguous() for key, value in weights.items()}
        check_finite(state, "the weights for a base")
        write_weights(state, partial)
        config.save_published(partial)
        PrismaticImageProcessor(config.image_size, config.image_resize_strategy).save_pretrained(partial)
        partial.chmod(0o755)  # mkdtemp keeps other users out
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def random_weights(config: OpenVLAConfig, seed: int, device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Weights of a model that was never trained."""
    with torch.random.fork_rng(devices=[] if device is None or device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        with torch.device(device or "cpu"):
            return OpenVLAForActionPrediction(config).state_dict()


def write_tiny_base(folder: Path, sizes: TinySizes, seed: int) -> None:
    """Writes a base checkpoint with random weights and a tokenizer of its own into the new folder `folder`.

    Raises:
        ValueError: the folder exists already.
    """
    config, tokenizer = tiny_base(sizes)
    write_base(folder, config, {} if folder.exists() else random_weights(config, seed), tokenizer)


def tiny_base(sizes: TinySizes) -> tuple[OpenVLAConfig, PreTrainedTokenizerFast]:
    """The configuration of a tiny model and the tokenizer made for it."""
    if sizes.backbone == "qwen":
        tokenizer = build_chat_tokenizer(_WORDS.split())
        return tiny(sizes, len(tokenizer), line_break_id(tokenizer), chat_ids(tokenizer)), tokenizer
    tokenizer = build_tokenizer()
    return tiny(sizes, base_vocab_size=len(tokenizer) - 1, empty_token_id=tokenizer.vocab[_SPACE]), tokenizer


def write_tokenizer(folder: Path, tokenizer: Path | PreTrainedTokenizerBase) -> None:
    """The tokenizer's files in a form that transformers 4.40 reads too (newer ones name a class that it does not have)."""
    if isinstance(tokenizer, Path):
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copy(tokenizer / name, folder / name)
        load_tokenizer(folder)
        return
    for name, content in tokenizer_texts(tokenizer).items():
        (folder / name).write_bytes(content)


def tokenizer_texts(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """File name -> content of a tokenizer that was made or extended here."""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    special = CHAT_SPECIAL_TOKENS if "<|im_start|>" in tokenizer.get_vocab() else _SPECIAL_TOKENS
    described = {**special, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": tokenizer.backend_tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(described, indent=2) + "\n").encode(),
        "special_tokens_map.json": (json.dumps(special, indent=2) + "\n").encode(),
    }
