"""A checkpoint folder (or Hub id) -> `PolicyParts`; strict, so that nothing is missing in silence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from prismatic.models.action_heads import DiscreteActionHead
from prismatic.models.action_model import ActionModel
from prismatic.models.attention import get_attention
from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.json_files import described_in, read_object
from prismatic.models.processor import PrismaticProcessor, check_tokenizer
from prismatic.models.self_test import check_bidirectional
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.models.weight_files import check_finite
from prismatic.policy.checkpoint.base_files import check_base, named_base
from prismatic.policy.checkpoint.files import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    VISION_BACKBONE,
    check_keys,
    find_component,
    load_component,
    load_strictly,
    read_component,
)
from prismatic.policy.checkpoint.flags import PolicyFlags, apply_flags
from prismatic.policy.checkpoint.parts import PolicyParts, build_action_model, head_components
from prismatic.policy.checkpoint.prismatic_layout import is_prismatic, prismatic_config, prismatic_processor
from prismatic.policy.checkpoint.published import describe_published
from prismatic.policy.checkpoint.spec import POLICY_FILE, LoraSpec, PolicySpec
from prismatic.policy.checkpoint.stored_weights import WEIGHT_FILES, has_weights, open_weights
from prismatic.policy.checkpoint.told import load_reference, load_statistics, newest_checkpoint, warn_of_changes, warn_of_newer
from prismatic.policy.inference.quantization import quantize_model
from prismatic.policy.lora.adapters import (
    FILM_PREFIX,
    adapter_ranks,
    add_lora,
    load_adapter,
    lora_rank,
    merge_adapter,
    merge_component,
    read_adapter,
)
from prismatic.policy.lora.scaling import AdapterScaling

# Of a model folder: weights of the model, in any format.
_HEAVY_FILES = ["model*.safetensors", "pytorch_model*", "*.bin", "*.gguf", "checkpoints/*.pt"]
_SAY_WHICH = "Say where it lies now: deploy.py takes --base_model, merge_lora_weights_and_save.py --base_checkpoint"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseModel:
    """A vision-language model with its processor."""

    vla: OpenVLAForActionPrediction
    processor: PrismaticProcessor


@dataclass(frozen=True)
class LoadedModel:
    """A vision-language model as a checkpoint has it, perhaps in PEFT's wrapper, with its processor."""

    vla: nn.Module
    processor: PrismaticProcessor


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is read."""

    flags: PolicyFlags = field(default_factory=PolicyFlags)  # what the user says about it
    unnorm_key: str | None = None  # helps to tell the robot of a published checkpoint trained on several data sets
    quantization: str = "none"  # of the language model, see prismatic.policy.inference.quantization
    attn_implementation: str = "sdpa"  # see prismatic.models.attention
    keep_adapters: bool = False  # leave LoRA unmerged, in PEFT's wrapper
    engine: str = "eager"  # see prismatic.policy.inference.engine
    max_batch_size: int = 16  # observations in one call that the engine prepares for; larger ones run plainly
    base_model: str | None = None  # folder or Hub id, where the checkpoint's own note of it is not valid here


def resolve_folder(name_or_path: str | Path, with_weights: bool = True, is_here: bool = False) -> Path:
    """A local folder as it is; a Hub id as the folder that it was downloaded to, on request without the model's weights.

    `is_here`: it was downloaded before, and nothing is asked of the network.

    Raises:
        ValueError: neither.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    with _explained_download(name_or_path):
        left_out = None if with_weights else _HEAVY_FILES
        return Path(snapshot_download(str(name_or_path), ignore_patterns=left_out, local_files_only=is_here))


def chunk_length(name_or_path: str | Path) -> int | None:
    """How many actions the policy predicts a call, as policy.json says; None where that is not known: loading says what is wrong."""
    if not name_or_path:
        return None
    try:
        folder = resolve_folder(name_or_path, with_weights=False)
    except ValueError:
        return None
    return PolicySpec.load(folder).platform.num_actions_chunk if (folder / POLICY_FILE).is_file() else None


def list_files(name_or_path: str | Path) -> frozenset[str]:
    """The files of a local folder or a Hub id, with `/` between folders; what is not downloaded yet among them.

    Raises:
        ValueError: neither.
    """
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        from huggingface_hub import constants, list_repo_files

        if not constants.HF_HUB_OFFLINE:
            with _explained_download(name_or_path):
                return frozenset(list_repo_files(str(name_or_path)))
        folder = resolve_folder(name_or_path)
    return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextmanager
def _explained_download(name_or_path: str | Path) -> Iterator[None]:
    """Errors of the Hub's client, in words.

    Raises:
        ValueError: the name is no Hub id, or cannot be reached.
    """
    if Path(name_or_path).is_absolute() or str(name_or_path).count("/") != 1 or str(name_or_path).startswith((".", "~")):
        raise ValueError(f"{name_or_path} is neither a folder nor a Hub id (owner/name)")
    try:
        yield
    except Exception as error:  # the client raises many kinds, all of which mean the same here
        raise ValueError(
            f"{name_or_path} is not a folder here, and could not be downloaded from the Hub ({type(error).__name__}). "
            "Check the spelling and the network, or pass the folder of a downloaded model"
        ) from error


def load_config(name_or_path: str | Path) -> OpenVLAConfig:
    """The sizes of the model in a folder or Hub id, without its weights.

    Raises:
        ValueError: no such model, or no config.json in it.
    """
    folder = resolve_folder(name_or_path, with_weights=False)
    if not (folder / "config.json").is_file():
        saved = newest_checkpoint(folder)
        raise ValueError(f"{folder} lacks config.json; {f'pass {saved}' if saved else 'copy the whole model folder'}")
    with described_in(folder / "config.json"):
        return prismatic_config(folder) if is_prismatic(folder) else OpenVLAConfig.from_pretrained(folder)


def load_base(name_or_path: str | Path, dtype: torch.dtype, attn_implementation: str = "sdpa", with_weights: bool = True) -> BaseModel:
    """The model of a folder or Hub id in the published layout (OpenVLA's or Prismatic's), on the CPU; without weights on the meta device.

    Raises:
        ValueError: no such model or attention backend, a file is missing or damaged, weights are not finite or do not fit; every
            key that differs is listed.
    """
    get_attention(attn_implementation)
    folder = resolve_folder(name_or_path)
    if not has_weights(folder):
        if (folder / "config.json").is_file():
            read_object(folder / "config.json")  # a damaged one does not tell whose layout it is
        raise ValueError(f"{folder} holds none of {', '.join(WEIGHT_FILES)}; it is not a model folder, or its download is incomplete")
    config = load_config(folder)
    config._attn_implementation = attn_implementation
    processor = _load_processor(folder, config)
    check_tokenizer(processor.tokenizer, config.token_ids, str(folder))
    if processor.image_processor.image_size != config.image_size:
        raise ValueError(
            f"{folder}: preprocessor_config.json makes images of {processor.image_processor.image_size} pixels, config.json describes "
            f"vision towers for {config.image_size}; copy both files from the same base"
        )
    if not with_weights:
        with torch.device("meta"):
            empty = OpenVLAForActionPrediction(config)
        for parameter in empty.parameters():
            parameter.data = parameter.data.to(dtype)
        return BaseModel(empty, processor)
    vla = _load_vla(folder, config, dtype)
    check_finite(dict(vla.named_parameters()), f"the model in {folder}")
    return BaseModel(vla, processor)


def _load_processor(folder: Path, config: OpenVLAConfig) -> PrismaticProcessor:
    """The processor of a base; Prismatic's folders have no tokenizer, which then comes from the language model's own."""
    if not is_prismatic(folder):
        return PrismaticProcessor.from_pretrained(folder)
    if (folder / "tokenizer.json").is_file():
        return prismatic_processor(folder, folder, config)
    try:
        source = resolve_folder(config.hf_llm_id, with_weights=False)
    except ValueError as error:
        raise ValueError(
            f"{folder} lacks tokenizer.json, as every base in Prismatic's layout; copy tokenizer.json and tokenizer_config.json of "
            f"{config.hf_llm_id} into it (hf download {config.hf_llm_id} tokenizer.json tokenizer_config.json --local-dir {folder})"
        ) from error
    return prismatic_processor(folder, source, config)


def load_parts(
    name_or_path: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    options: LoadOptions | None = None,
) -> PolicyParts:
    """Everything in a checkpoint folder, written here or published, in evaluation mode on `device`.

    Raises:
        ValueError: a file is missing or damaged, does not fit the others, or a flag contradicts them.
    """
    options = options or LoadOptions()
    if options.keep_adapters and options.quantization != "none":
        raise ValueError(f"quantization {options.quantization!r} needs merged adapters; leave keep_adapters out")
    folder = resolve_folder(name_or_path)
    norm_stats = load_statistics(folder)
    spec = load_spec(folder, options, norm_stats)
    warn_of_changes(folder)
    warn_of_newer(folder)
    base = _load_model(folder, spec, options, dtype)
    config = (base.vla if isinstance(base.vla, OpenVLAForActionPrediction) else base.vla.get_base_model()).config  # type: ignore[operator]
    check_spec(folder, spec, config)
    model = build_action_model(base.vla, config, spec)
    for component, module in head_components(model).items():
        load_component(module, folder, component)
    model = model.to(dtype).eval().requires_grad_(False)
    quantize_model(model.bare_vla, options.quantization, device, dtype)
    move_used_parts(model, device)
    check_bidirectional(model.bare_vla)
    return PolicyParts(model, config, base.processor, spec, norm_stats, load_reference(folder, spec))


def check_spec(folder: Path, spec: PolicySpec, config: OpenVLAConfig) -> None:
    """Returns if what policy.json in `folder` says of the model's inputs is so in the model's `config`.

    Raises:
        ValueError: the prompt or the size of the images is another one.
    """
    for what, said, made_for in (
        ("the prompt", spec.prompt, config.token_ids.prompt_template),
        ("images of the size", spec.image.size, config.image_size),
    ):
        if said != made_for:
            raise ValueError(
                f"{folder}: {POLICY_FILE} says {what} {said!r}, its model was made for {made_for!r}; "
                "the files belong to different checkpoints, copy the whole folder again"
            )


def move_used_parts(model: ActionModel, device: torch.device) -> None:
    """Moves what predictions depend on to `device`; the rest of a published checkpoint (0.3 GiB of the 7B model) stays where it is."""
    unused = model.bare_vla.unused_modules(uses_lm_head=isinstance(model.action_head, DiscreteActionHead))
    stays = {id(tensor) for module in unused for tensor in module.parameters()}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in stays:
            tensor.data = tensor.data.to(device)


def load_spec(folder: Path, options: LoadOptions, norm_stats: dict[str, Any]) -> PolicySpec:
    """What policy.json says, or the files of a published folder and the flags.

    Raises:
        ValueError: something is missing or contradicts the flags.
    """
    if (folder / POLICY_FILE).is_file():
        return apply_flags(PolicySpec.load(folder), options.flags, f"{folder / POLICY_FILE}")
    if is_prismatic(folder):  # MiniVLA's tokens stand for codes of whole chunks, which its own code turns into actions
        raise ValueError(f"{folder} is a base in Prismatic's layout, whose actions cannot be read here; fine-tune it first")
    config = load_config(config_folder(folder, options.base_model))
    return describe_published(folder, options.flags, config, norm_stats, options.unnorm_key)


def config_folder(folder: Path, base_model: str | None = None) -> Path:
    """Where the config.json of the checkpoint in `folder` lies: the published code leaves that of unmerged adapters to their base.

    Raises:
        ValueError: the base is not here and cannot be downloaded.
    """
    is_adapter = not (folder / "config.json").is_file() and (folder / ADAPTER_FOLDER / ADAPTER_FILE).is_file()
    base = (base_model or named_base(folder)) if is_adapter else None
    return folder if base is None else resolve_base(folder, base, with_weights=False)


def resolve_base(folder: Path, base_model: str, with_weights: bool = True) -> Path:
    """The folder of the base model that the adapters in `folder` belong to.

    Raises:
        ValueError: it is not here and cannot be downloaded; the message says how to name another place.
    """
    try:
        return resolve_folder(base_model, with_weights)
    except ValueError as error:
        raise ValueError(f"{folder} holds adapters of the base model {base_model}: {error}. {_SAY_WHICH}") from error


def _load_model(folder: Path, spec: PolicySpec, options: LoadOptions, dtype: torch.dtype) -> LoadedModel:
    """The vision-language model with FiLM and adapters, merged or not."""
    has_whole_model = has_weights(folder)
    if has_whole_model and not options.keep_adapters:
        if options.base_model is not None:
            logger.warning("%s holds a whole model, which is what acts; the base model %s is not read", folder, options.base_model)
        base = load_base(folder, dtype, options.attn_implementation)
        if spec.heads.use_film:
            base.vla.add_film()
            _load_film(base.vla, folder)
        return LoadedModel(base.vla, base.processor)
    adapter_path = folder / ADAPTER_FOLDER / ADAPTER_FILE
    base_model = options.base_model or spec.base_model or named_base(folder)
    if not adapter_path.is_file():
        raise ValueError(
            f"{folder} holds a whole model without {ADAPTER_FOLDER}/{ADAPTER_FILE} beside it: there is nothing to merge, take it as it is"
            if has_whole_model
            else f"{folder} holds neither {WEIGHT_FILES[0]} nor {ADAPTER_FOLDER}/{ADAPTER_FILE}; copy the whole checkpoint"
        )
    if not base_model:
        raise ValueError(f"{folder} does not say which base model its adapters belong to. {_SAY_WHICH}")
    check_base(folder, spec.base_files, base_model, resolve_base(folder, base_model))
    base = load_base(base_model, dtype, options.attn_implementation)
    adapter = read_adapter(adapter_path)
    if options.keep_adapters:
        return LoadedModel(_adapted(base.vla, spec, adapter, folder), base.processor)
    if spec.heads.use_film:
        base.vla.add_film()
        _load_film(base.vla, folder)
        adapter = {key: value for key, value in adapter.items() if FILM_PREFIX not in key}  # merged with the component already
    state, scaling = base.vla.state_dict(), AdapterScaling.read(folder / ADAPTER_FOLDER)
    with torch.no_grad():
        for name, merged in merge_adapter(state, adapter, str(adapter_path), scaling):
            state[name].copy_(merged)
    return LoadedModel(base.vla, base.processor)


def _load_film(vla: OpenVLAForActionPrediction, folder: Path) -> None:
    """Fills the modulated vision towers, adapters merged."""
    path = find_component(folder, VISION_BACKBONE)
    scaling = AdapterScaling.read(folder / ADAPTER_FOLDER)
    load_strictly(vla.vision_backbone, merge_component(read_component(folder, VISION_BACKBONE), str(path), scaling), str(path))


def _adapted(vla: OpenVLAForActionPrediction, spec: PolicySpec, adapter: dict[str, torch.Tensor], folder: Path) -> nn.Module:
    """`vla` in PEFT's wrapper, with the adapters (and FiLM) of `folder`, unmerged."""
    rank, scaling = lora_rank(adapter), AdapterScaling.read(folder / ADAPTER_FOLDER)
    dtype = next(vla.parameters()).dtype
    adapted: nn.Module = vla if rank is None else add_lora(vla, LoraSpec(rank), adapter_ranks(adapter))
    adapted.to(dtype=dtype)
    if spec.heads.use_film:
        vla.add_film()
        load_component(vla.vision_backbone, folder, VISION_BACKBONE)
    load_adapter(adapted, adapter, str(folder / ADAPTER_FOLDER / ADAPTER_FILE), scaling)
    return adapted


def check_weights(folder: Path, config: OpenVLAConfig) -> None:
    """Returns if the model's weights in `folder` have the names and shapes that `config` says; reads no weight.

    Raises:
        ValueError: they do not, a file is missing or damaged, or the model was quantized; every key that differs is listed.
    """
    with torch.device("meta"):
        expected = OpenVLAForActionPrediction(config).state_dict()
    weights = open_weights(folder, config)
    check_keys(expected, weights.shapes(), f"the weights in {folder} do not fit its config.json")
    if other := weights.other_dtypes():
        name, dtype = next(iter(other.items()))
        raise ValueError(
            f"the weights in {folder} are not those of a plain model: {len(other)} of {len(expected)} tensors are no float32, float16 or "
            f"bfloat16 ({name} is {dtype}); take the model before it was quantized"
        )


def _load_vla(folder: Path, config: OpenVLAConfig, dtype: torch.dtype) -> OpenVLAForActionPrediction:
    check_weights(folder, config)
    if is_prismatic(folder):
        with torch.device("meta"):
            vla = OpenVLAForActionPrediction(config)
        vla.load_state_dict({name: value.to(dtype) for name, value in open_weights(folder, config).items()}, assign=True)
        return vla.eval()
    try:
        return OpenVLAForActionPrediction.from_pretrained(folder, config=config, dtype=dtype)
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"the weights in {folder} cannot be read ({type(error).__name__}: {error}); copy or download them again"
        ) from error
