"""A base checkpoint with random weights and a small tokenizer, in the layout of openvla/openvla-7b.

The tokenizer is a Llama tokenizer in miniature and keeps what the token layout relies on: ids 0, 1, 2 are <unk>, <s>, </s>; a
space is "▁", put before the text and joined to the word that follows; characters without a piece become bytes, so that any
text encodes without <unk>; the last 256 ids of the base vocabulary are single characters that encode to themselves, and a lone
space before them stays a token of its own; <PAD> follows the base vocabulary.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from prismatic.models.configuration import TinySizes, tiny
from prismatic.models.processor import PrismaticImageProcessor
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.vla.constants import NUM_ACTION_BINS

_SPECIAL_PIECES = ("<unk>", "<s>", "</s>")
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


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of about a thousand pieces; `len(tokenizer) - 1` is the base vocabulary, and that id is <PAD>."""
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [_SPACE + word for word in _WORDS.split()]
    text = list(dict.fromkeys([_SPACE, *characters, *words, "Out", *_FRAGMENTS.split()]))  # each piece once, in this order
    actions = [chr(_FIRST_ACTION_CHARACTER + i) for i in range(NUM_ACTION_BINS)]
    pieces = [*_SPECIAL_PIECES, *byte_pieces, *text, *actions]

    # Equal scores make the segmentation with the fewest pieces the best; bytes are only a last resort.
    scores = [-100.0 if piece in _SPECIAL_PIECES or piece in byte_pieces else -1.0 for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in (*_SPECIAL_PIECES, "<PAD>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<PAD>")


def write_tiny_base(folder: Path, sizes: TinySizes, seed: int) -> None:
    """Writes a base checkpoint with random weights (bfloat16) into the new folder `folder`, complete or not at all.

    Raises:
        ValueError: the folder exists already.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another folder, or delete it first")
    tokenizer = build_tiny_tokenizer()
    base_vocab_size = len(tokenizer) - 1
    config = tiny(sizes, base_vocab_size, empty_token_id=tokenizer.vocab[_SPACE])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OpenVLAForActionPrediction(config)
    model.bfloat16()

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        PrismaticImageProcessor(sizes.image_size).save_pretrained(partial)
        token_ids = config.token_ids
        generation = {"bos_token_id": token_ids.bos, "eos_token_id": token_ids.stop, "pad_token_id": token_ids.pad}
        (partial / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        partial.chmod(0o755)  # mkdtemp keeps other users out
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
