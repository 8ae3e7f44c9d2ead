"""How strongly each adapter of a file counts:  W' = W + scaling * B A,  as its adapter_config.json says it.

    scaling = alpha / rank, with use_rslora alpha / sqrt(rank)        (Kalajdzievski 2023, arXiv:2312.03732)

`alpha_pattern` and `rank_pattern` name modules that differ: a key is a regular expression for the end of a module's name, from a dot on;
the first one that fits counts, as in PEFT. Without the file, the published convention holds: alpha = min(rank, 16).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prismatic.policy.checkpoint.spec import LoraSpec

CONFIG_FILE = "adapter_config.json"

# Settings under which an adapter is more than B A beside a weight -> what they are otherwise. Others have no effect on a trained adapter.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": (None, "LORA"),
    "bias": (None, "none"),
    **dict.fromkeys(("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora"), (None, False)),
    **dict.fromkeys(("layer_replication", "alora_invocation_tokens", "trainable_token_indices"), (None, [])),
    **dict.fromkeys(("modules_to_save", "target_parameters", "arrow_config", "monteclora_config", "kasa_config"), (None, [], {})),
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of init_lora_weights whose base weights are others, too


@dataclass(frozen=True)
class AdapterScaling:
    """The scaling of every module that an adapter file adapts."""

    config: Mapping[str, Any] = field(default_factory=dict)  # of adapter_config.json; empty: the published convention
    source: str = ""  # for messages

    @classmethod
    def read(cls, folder: Path) -> AdapterScaling:
        """Of a folder with an adapter file.

        Raises:
            ValueError: adapter_config.json is damaged, or asks for something else than B A beside a weight.
        """
        path = folder / CONFIG_FILE
        if not path.is_file():
            return cls()
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}); copy it again") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} must hold a JSON object; copy it again")
        found = cls(config, str(path))
        found._check()
        return found

    def of(self, module: str, rank: int) -> float:
        """What B A of `module` is multiplied by; `rank` is that of its matrices.

        Raises:
            ValueError: adapter_config.json says another rank.
        """
        if not self.config:
            return LoraSpec(rank).alpha / rank
        said = self._value("rank_pattern", module, self.config.get("r", rank))
        if said != rank:
            raise ValueError(f"{self.source} says rank {said} of {module}, its matrices have {rank}; copy both files again")
        alpha = self._value("alpha_pattern", module, self.config.get("lora_alpha", LoraSpec(rank).alpha))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def is_usual(self, module: str, rank: int) -> bool:
        """Whether it is what training here gives an adapter of that rank."""
        return math.isclose(self.of(module, rank), LoraSpec(rank).alpha / rank)

    def _value(self, pattern: str, module: str, usual: float) -> float:
        table = self.config.get(pattern) or {}
        return next((value for key, value in table.items() if re.fullmatch(rf"(.*\.)?({key})", module)), usual)

    def _check(self) -> None:
        strange = [f"{name} = {self.config[name]!r}" for name, plain in _PLAIN.items() if self.config.get(name) not in plain]
        start = self.config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
            strange.append(f"init_lora_weights = {start!r}")
        if strange:
            raise ValueError(
                f"{self.source}: {', '.join(strange)} is not supported; adapters here are B A beside a weight. Merge the adapter with the "
                "software that trained it, and take the whole model"
            )
        if (said := self.config.get("use_rslora")) not in (None, False, True):
            raise ValueError(f"{self.source}: use_rslora must be true or false, found {said!r}")
        for name in ("rank_pattern", "alpha_pattern"):
            table = self.config.get(name) or {}
            if not isinstance(table, dict) or not all(_is_pattern(key) and _is_positive(value) for key, value in table.items()):
                raise ValueError(f"{self.source}: {name} must map module names to positive numbers, found {str(table)[:120]}")
        for name in ("r", "lora_alpha"):
            if not _is_positive(self.config.get(name, 1)):
                raise ValueError(f"{self.source}: {name} must be a positive number, found {self.config[name]!r}")


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_pattern(key: str) -> bool:
    try:
        re.compile(key)
    except re.error:
        return False
    return True
