"""A checkpoint folder -> what is right and wrong with it, without reading a weight: names, sizes and shapes tell.

Every part is looked at, so that one look names all that is missing; loading (`prismatic.policy.checkpoint.loading`) stops at the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prismatic.models.configuration import OpenVLAConfig
from prismatic.models.json_files import read_object
from prismatic.models.vla import OpenVLAForActionPrediction
from prismatic.policy.checkpoint.base_files import named_base
from prismatic.policy.checkpoint.files import (
    ACTION_HEAD,
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    MANIFEST_FILE,
    NOISY_ACTION_PROJECTOR,
    PROPRIO_PROJECTOR,
    STATISTICS_FILE,
    TRAINER_STATE_FOLDER,
    VISION_BACKBONE,
    changed_texts,
    check_keys,
    has_component,
    read_component,
    read_manifest,
)
from prismatic.policy.checkpoint.loading import check_weights, load_config
from prismatic.policy.checkpoint.parts import build_action_model, head_components
from prismatic.policy.checkpoint.spec import POLICY_FILE, PolicySpec
from prismatic.policy.checkpoint.stored_weights import WEIGHT_FILES
from prismatic.policy.checkpoint.told import other_than_checkpoint
from prismatic.policy.lora.adapters import merge_component, stored_ranks
from prismatic.policy.lora.scaling import AdapterScaling
from prismatic.vla.diagnosis import Finding, Status
from prismatic.vla.normalization import bounds_from_statistics

_COPY_AGAIN = "Copy or download the whole checkpoint folder again."
_BINARY = (".safetensors", ".pt")
_COMPONENTS = (ACTION_HEAD, PROPRIO_PROJECTOR, NOISY_ACTION_PROJECTOR, VISION_BACKBONE)


def verify_checkpoint(folder: Path) -> list[Finding]:
    """One finding per part of the folder; a checkpoint without a problem among them loads."""
    if (other := _recognise_other(folder)) is not None:
        return [other]
    spec, findings = _verify_spec(folder)
    config, found = _verify_config(folder)
    findings += [found, _verify_processor(folder), *_verify_manifest(folder)]
    if config is not None or _holds_adapters_alone(folder):
        findings.append(_attempt("weights", lambda: _describe_weights(folder, config, spec)))
    if spec is None:
        findings += [Finding("components", Status.NOTE, f"{_listed(folder)}; shapes not checked without {POLICY_FILE}")]
    elif config is not None:
        findings += _verify_components(folder, config, spec)
    findings.append(_attempt("statistics", lambda: _describe_statistics(folder, spec)))
    return findings


def _recognise_other(folder: Path) -> Finding | None:
    """What `folder` is, if it is something else than a checkpoint."""
    if not folder.is_dir():
        remedy = "Pass the folder of a checkpoint; one on the Hub is downloaded with hf download."
        return Finding("folder", Status.PROBLEM, f"{folder} is not a folder", remedy)
    if (other := other_than_checkpoint(folder)) is not None:
        what, remedy = other
        return Finding("folder", Status.PROBLEM, f"{folder} {what}", f"{remedy[:1].upper()}{remedy[1:]}.")
    return None


def _attempt(subject: str, describe: Callable[[], str]) -> Finding:
    """What `describe` says, or the reason that it gives for not being able to."""
    try:
        return Finding(subject, Status.OK, describe())
    except ValueError as error:
        return Finding(subject, Status.PROBLEM, str(error), _COPY_AGAIN)


def _verify_spec(folder: Path) -> tuple[PolicySpec | None, list[Finding]]:
    if not (folder / POLICY_FILE).is_file():
        remedy = (
            "A published checkpoint has none: pass --num_images_in_input (and --robot_platform for a data set outside the registry) to "
            f"every command. A checkpoint of this project is incomplete without it. {_COPY_AGAIN}"
        )
        return None, [Finding("policy.json", Status.WARNING, "absent; the checkpoint does not describe itself", remedy)]
    try:
        spec = PolicySpec.load(folder)
    except ValueError as error:
        return None, [Finding("policy.json", Status.PROBLEM, str(error), _COPY_AGAIN)]
    platform, heads = spec.platform, spec.heads
    extras = [name for name, used in (("FiLM", heads.use_film), ("proprio", heads.use_proprio)) if used]
    step = spec.provenance.get("step")
    found = (
        f"{platform.name}, {platform.num_actions_chunk} x {platform.action_dim} actions, {heads.action_head} head"
        f"{''.join(f', {name}' for name in extras)}; cameras {', '.join(spec.cameras)}{'' if step is None else f'; step {step:,}'}"
    )
    return spec, [Finding("policy.json", Status.OK, found)]


def _verify_manifest(folder: Path) -> list[Finding]:
    """The files against manifest.json, where there is one; a trainer state that was left behind as a whole is not missed."""
    manifest = read_manifest(folder) or {}
    has_state = (folder / TRAINER_STATE_FOLDER).is_dir()
    sizes = {name: size for name, size in manifest.items() if has_state or not name.startswith(f"{TRAINER_STATE_FOLDER}/")}
    lost = [f"{name} is missing" for name in sizes if not (folder / name).is_file()]
    changed = [name for name, size in sizes.items() if (folder / name).is_file() and (folder / name).stat().st_size != size]
    changed += [name for name in changed_texts(folder) if name in sizes and name not in changed]
    cut = [f"{name} has another size than when it was saved" for name in changed if name.endswith(_BINARY)]
    if lost or cut:
        return [Finding("files", Status.PROBLEM, "; ".join([*lost, *cut]), _COPY_AGAIN)]
    if changed:
        remedy = "Nothing to do if it was edited on purpose."
        return [Finding("files", Status.WARNING, f"{', '.join(changed)}: changed since the checkpoint was saved", remedy)]
    return [Finding("files", Status.OK, f"all {len(sizes)} of {MANIFEST_FILE}")] if sizes else []


def _verify_config(folder: Path) -> tuple[OpenVLAConfig | None, Finding]:
    try:
        source = folder
        if not (folder / "config.json").is_file() and _holds_adapters_alone(folder) and (base := named_base(folder)):
            source = Path(base).expanduser()
            if not source.is_dir():  # nothing is downloaded for a look
                return None, Finding("config.json", Status.OK, f"that of the base model {base}")
        config = load_config(source)
    except (ValueError, OSError, KeyError) as error:  # transformers raises OSError for text that is no JSON
        return None, Finding("config.json", Status.PROBLEM, str(error), _COPY_AGAIN)
    layers = config.get_text_config().num_hidden_layers
    found = f"language model of {layers} layer{'' if layers == 1 else 's'}, {config.hidden_size} wide; images of {config.image_size} pixels"
    return config, Finding("config.json", Status.OK, found)


def _verify_processor(folder: Path) -> Finding:
    """Tokenizer and image processor; adapters alone take those of their base."""
    is_whole = any((folder / name).is_file() for name in WEIGHT_FILES)
    absent = [] if (folder / "preprocessor_config.json").is_file() else ["preprocessor_config.json"]
    if not (folder / "tokenizer.json").is_file():
        absent.append("tokenizer.json")
    if absent and is_whole:
        return Finding("processor", Status.PROBLEM, f"lacks {', '.join(absent)}", _COPY_AGAIN)
    return Finding("processor", Status.OK, "tokenizer and image processor" if not absent else "those of the base model")


def _describe_weights(folder: Path, config: OpenVLAConfig | None, spec: PolicySpec | None) -> str:
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        assert config is not None
        check_weights(folder, config)
        return f"the whole model, {_gigabytes(folder.glob('model*.safetensors'))}"
    adapter = folder / ADAPTER_FOLDER / ADAPTER_FILE
    base = (spec.base_model if spec else None) or named_base(folder)
    if not adapter.is_file() or not base:
        raise ValueError(f"{folder} holds neither {WEIGHT_FILES[0]} nor {ADAPTER_FOLDER}/ with a known base model")
    check_adapter_file(adapter)
    return f"adapters alone, {_gigabytes([adapter])}, of {base}"


def check_adapter_file(path: Path) -> None:
    """Returns if the file of the adapters is whole and adapter_config.json beside it fits.

    Raises:
        ValueError: one of them is damaged, or there is no adapter, or one of another rank or kind.
    """
    ranks, scaling = stored_ranks(path), AdapterScaling.read(path.parent)
    if not ranks:
        raise ValueError(f"{path} holds no adapter")
    for module, rank in ranks.items():
        scaling.of(module, rank)


def _holds_adapters_alone(folder: Path) -> bool:
    return not any((folder / name).is_file() for name in WEIGHT_FILES) and (folder / ADAPTER_FOLDER / ADAPTER_FILE).is_file()


def adapter_base(folder: Path) -> str | None:
    """The base model, folder or Hub id, that a checkpoint needs because it holds adapters alone; None for any other checkpoint."""
    if not _holds_adapters_alone(folder):
        return None
    named = PolicySpec.load(folder).base_model if (folder / POLICY_FILE).is_file() else None
    return named or named_base(folder)


def _verify_components(folder: Path, config: OpenVLAConfig, spec: PolicySpec) -> list[Finding]:
    """One finding per module beside the model that policy.json promises: there once, readable, of the right width."""
    with torch.device("meta"):
        modules = head_components(build_action_model(nn.Identity(), config, spec))
        if spec.heads.use_film:
            vla = OpenVLAForActionPrediction(config)
            vla.add_film()
            modules[VISION_BACKBONE] = vla.vision_backbone

    def describe(component: str, module: nn.Module) -> str:
        source = f"the file of {component}"
        state = merge_component(read_component(folder, component, torch.device("meta")), source)
        check_keys(module.state_dict(), state, f"{source} does not fit {POLICY_FILE}")
        return f"{sum(value.numel() for value in state.values()):,} parameters"

    return [_attempt(component, lambda c=component, m=module: describe(c, m)) for component, module in modules.items()]  # type: ignore[misc]


def _describe_statistics(folder: Path, spec: PolicySpec | None) -> str:
    """Statistics of the right widths, in order and finite."""
    path = folder / STATISTICS_FILE
    if not path.is_file():
        raise ValueError(f"{STATISTICS_FILE} is absent; without it actions have no units")
    statistics = read_object(path)
    key = spec.unnorm_key if spec else None
    if key is not None and key not in statistics:
        raise ValueError(
            f"{STATISTICS_FILE} has no data set {key!r}, which {POLICY_FILE} names; it holds {', '.join(statistics) or 'none'}"
        )
    for name in statistics if key is None else [key]:
        try:
            _check_statistics(statistics[name], name, spec)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{STATISTICS_FILE} holds something else than lists of numbers for data set {name!r} ({error})") from error
    return f"of {', '.join(statistics)}"


def _check_statistics(entry: dict[str, Any], name: str, spec: PolicySpec | None) -> None:
    expected = (
        {"action": spec.platform.action_dim, "proprio": spec.platform.proprio_dim if spec.heads.use_proprio else None} if spec else {}
    )
    for quantity in ("action", "proprio"):
        values = {key: value for key, value in entry.get(quantity, {}).items() if key in ("min", "max", "q01", "q99", "mean", "std")}
        width = expected.get(quantity)
        if not values and (quantity == "action" or width is not None):
            raise ValueError(f"{STATISTICS_FILE} has no {quantity} of data set {name!r}")
        for key, numbers in values.items():
            if width is not None and len(numbers) != width:
                raise ValueError(
                    f"{quantity}.{key} of data set {name!r} has {len(numbers)} dimensions, {POLICY_FILE} expects {width}"
                )  # fmt: skip
            if not all(math.isfinite(number) for number in numbers):
                raise ValueError(f"{quantity}.{key} of data set {name!r} holds NaN or infinity")
        if spec is not None and values and (quantity == "action" or width is not None):
            bounds_from_statistics({name: entry}, name, quantity, spec.platform.normalization)  # as loading reads them
        for low, high in (("min", "max"), ("q01", "q99")):
            if any(a > b for a, b in zip(values.get(low, []), values.get(high, []), strict=True)):
                raise ValueError(f"{quantity} of data set {name!r} has {low} above {high}")


def _listed(folder: Path) -> str:
    return ", ".join(name for name in _COMPONENTS if has_component(folder, name)) or "none"


def _gigabytes(paths: Any) -> str:
    total = sum(path.stat().st_size for path in paths)
    return f"{total / 1e9:.1f} GB" if total >= 1e8 else f"{total / 1e6:.1f} MB"
