"""`PolicySpec` <-> policy.json: all that a checkpoint must say about itself, so that no flag is repeated at evaluation.

platform    what the actions and the proprioception are        cameras   the policy's cameras, in order
image       how a camera image becomes the model's input       heads     which action head and projectors exist
unnorm_key  whose statistics turn actions into real units      lora      adapter settings, if the run used LoRA
prompt      the text around the instruction                    demonstrated   how far and fast the robot of each data set was driven
provenance  how the checkpoint was made (command, data, step, versions)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from prismatic.vla.constants import PROMPT_TEMPLATE, PROMPT_TEMPLATES, NormalizationType, RobotPlatform
from prismatic.vla.demonstrated import Demonstrated
from prismatic.vla.images import ImageRecipe
from prismatic.vla.stated_limits import StatedLimits

POLICY_FILE = "policy.json"
FORMAT_VERSION = 1
ACTION_HEADS = ("l1", "diffusion", "discrete")

_KINDS: Mapping[str, tuple[type, ...]] = {  # beginning of a field's type -> what JSON has for it
    **{"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)},
    **{"tuple": (list, tuple), "Mapping": (dict,)},
}

T = TypeVar("T")


@dataclass(frozen=True)
class HeadSpec:
    """The modules beside the vision-language model."""

    action_head: str = "l1"  # one of ACTION_HEADS
    use_proprio: bool = False
    use_film: bool = False
    num_diffusion_steps_train: int | None = None  # diffusion only
    num_diffusion_steps_inference: int | None = None  # diffusion only; None: as many as in training

    def __post_init__(self) -> None:
        if self.action_head not in ACTION_HEADS:
            raise ValueError(f"action head {self.action_head!r} is unknown; choose one of {', '.join(ACTION_HEADS)}")
        if (self.action_head == "diffusion") != (self.num_diffusion_steps_train is not None):
            raise ValueError(
                f"action head {self.action_head!r} with num_diffusion_steps_train {self.num_diffusion_steps_train}: "
                "a diffusion head needs that number, no other head has one"
            )
        steps, most = self.num_diffusion_steps_inference, self.num_diffusion_steps_train
        if steps is not None and most is None:
            raise ValueError(f"num_diffusion_steps_inference is {steps}; a policy with the {self.action_head} head takes no steps")
        if steps is not None and most is not None and not 1 <= steps <= most:
            raise ValueError(f"num_diffusion_steps_inference is {steps}; choose 1 to {most}, the number of training steps")


@dataclass(frozen=True)
class LoraSpec:
    """Settings of the adapters a run trained (scaling is alpha / rank, alpha = min(rank, 16) as published)."""

    rank: int = 32
    dropout: float = 0.0

    @property
    def alpha(self) -> int:
        return min(self.rank, 16)


@dataclass(frozen=True)
class PolicySpec:
    """Everything needed to turn an observation into actions with the weights of one folder."""

    platform: RobotPlatform
    cameras: tuple[str, ...]
    image: ImageRecipe
    unnorm_key: str | None  # whose statistics give actions their units; None: several data sets were trained together, choose at loading
    heads: HeadSpec = field(default_factory=HeadSpec)
    lora: LoraSpec | None = None
    prompt: str = PROMPT_TEMPLATE
    # As the published evaluation does it: constant proprio dimensions are -1 (training had 0), constant unnormalised actions stay 0.
    published_normalization: bool = False
    base_model: str | None = None  # folder or Hub id that the adapters belong to, where they are not merged
    base_files: Mapping[str, str] = field(default_factory=dict)  # what tells that model from others, see `base_files.describe_base`
    demonstrated: Mapping[str, Demonstrated] = field(default_factory=dict)  # data set -> how far and how fast its robot was driven
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ValueError("a policy needs at least the primary camera")
        if self.prompt not in PROMPT_TEMPLATES:
            built = " or ".join(repr(template) for template in PROMPT_TEMPLATES)
            raise ValueError(f"the policy was trained with the prompt {self.prompt!r}, this version of the code builds {built}")

    def save(self, folder: Path) -> None:
        """Writes policy.json into `folder`."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        (folder / POLICY_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> PolicySpec:
        """The specification in `folder`/policy.json.

        Raises:
            ValueError: the file is absent, is not JSON, is of a newer format, or has missing, unknown or wrong fields.
        """
        path = folder / POLICY_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {POLICY_FILE}: not a checkpoint written by this project. "
                "Pass a folder that vla-scripts/finetune.py saved (its name ends in _chkpt)"
            )
        from prismatic.models.json_files import read_object  # imports the Hub's client, which --help does without

        content = read_object(path)
        version = content.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(f"{path} has format_version {version}; this version of the code reads {FORMAT_VERSION}")
        return _parse(content, path)


def _parse(content: dict[str, Any], path: Path) -> PolicySpec:
    try:
        _check_kinds(PolicySpec, content)
        _check_kinds(RobotPlatform, content["platform"])
        platform = dict(content.pop("platform"))
        platform["normalization"] = NormalizationType(platform["normalization"])
        for key in ("action_names", "proprio_names"):
            platform[key] = tuple(platform[key])
        platform["limits"] = StatedLimits.parse(platform.get("limits"))
        lora = content.pop("lora", None)
        demonstrated = {name: Demonstrated.parse(item) for name, item in content.pop("demonstrated", {}).items()}
        return PolicySpec(
            platform=_build(RobotPlatform, platform),
            cameras=tuple(content.pop("cameras")),
            image=_build(ImageRecipe, content.pop("image")),
            heads=_build(HeadSpec, content.pop("heads")),
            lora=None if lora is None else _build(LoraSpec, lora),
            demonstrated=demonstrated,
            **content,
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks the field {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_kinds(kind: type, values: Mapping[str, Any]) -> None:
    """Returns if every field of `kind` that is a plain value or holds texts is so in `values`, which come from JSON."""
    for item in fields(kind):
        if item.name not in values or (values[item.name] is None and str(item.type).endswith("| None")):
            continue
        value, name = values[item.name], re.split(r"\W", str(item.type))[0]
        is_wrong = name in _KINDS and (not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and name != "bool"))
        texts = {"tuple[str, ...]": value, "Mapping[str, str]": value.values() if isinstance(value, dict) else ()}.get(str(item.type), ())
        if is_wrong or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{item.name} is {repr(value)[:80]}, expected {item.type}")


def _build(kind: type[T], values: Mapping[str, Any]) -> T:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    _check_kinds(kind, values)
    return kind(**values)
