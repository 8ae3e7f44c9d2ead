"""The deliberate mistakes of benchmarks/mismatches.py: between what a policy was trained on and what it is given, and in data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.types import Observation

Show = Callable[[Observation], Observation]
Images = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class PolicyCase:
    """One mistake with a MetaWorld policy."""

    name: str
    show: Show = lambda observation: observation  # what the policy is shown instead
    edit: Callable[[Path], None] | None = None  # of a copy of the checkpoint
    flags: Mapping[str, Any] = field(default_factory=dict)  # of prismatic.policy.checkpoint.flags
    unnorm_key: str | None = None
    causal: bool = False  # attention looks back only, as a library update may make it
    is_mistake: bool = True  # False: has to stay silent


def _images(change: Images) -> Show:
    return lambda seen: replace(seen, images={name: np.ascontiguousarray(image) for name, image in change(dict(seen.images)).items()})


def _state(change: Callable[[np.ndarray], np.ndarray]) -> Show:
    return lambda seen: replace(seen, proprio=None if seen.proprio is None else change(seen.proprio))


def _instruction(change: Callable[[str], str]) -> Show:
    return lambda seen: replace(seen, instruction=change(seen.instruction))


def edit_json(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """An edit of a JSON file of a checkpoint."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")

    return edit


def _exchange_bounds(statistics: dict[str, Any]) -> None:
    for entry in statistics.values():
        for quantity in (entry["action"], entry["proprio"]):
            for one, other in (("min", "q01"), ("max", "q99")):
                quantity[one], quantity[other] = quantity[other], quantity[one]


def _other_bounds(spec: dict[str, Any]) -> None:
    spec["platform"]["normalization"] = "bounds"


def _more_actions(spec: dict[str, Any]) -> None:
    spec["platform"]["action_dim"] = 7
    spec["platform"]["action_names"] = [f"joint_{number}" for number in range(7)]


def _crop(is_on: bool) -> Callable[[dict[str, Any]], None]:
    return lambda spec: spec["image"].update(center_crop=is_on)


def policy_cases(center_crop: bool) -> list[PolicyCase]:
    """`center_crop`: whether the checkpoint was trained for it."""
    return [
        PolicyCase("none", is_mistake=False),
        PolicyCase("INSTRUCTION IN CAPITALS", _instruction(str.upper), is_mistake=False),
        PolicyCase("cameras exchanged", _images(lambda seen: {"primary": seen["wrist"], "wrist": seen["primary"]})),
        PolicyCase("one camera sent twice", _images(lambda seen: {"primary": seen["primary"], "wrist": seen["primary"]})),
        PolicyCase("a camera sends grey", _images(lambda seen: {**seen, "primary": np.full_like(seen["primary"], 128)})),
        PolicyCase("180-degree rotation missing", _images(lambda seen: {name: image[::-1, ::-1] for name, image in seen.items()})),
        PolicyCase("BGR for RGB", _images(lambda seen: {name: image[..., ::-1] for name, image in seen.items()})),
        PolicyCase("state in millimetres", _state(lambda state: state * np.float32(1000))),
        PolicyCase("state in another order", _state(lambda state: state[::-1].copy())),
        PolicyCase("instruction in other words", _instruction(lambda text: f"please {text} as fast as you can")),
        PolicyCase("min/max for q01/q99 (policy.json edited)", edit=edit_json("policy.json", _other_bounds)),
        PolicyCase("min/max for q01/q99 (keys exchanged)", edit=edit_json("dataset_statistics.json", _exchange_bounds)),
        PolicyCase("other centre crop (flag)", flags={"center_crop": not center_crop}),
        PolicyCase("other centre crop (policy.json edited)", edit=edit_json("policy.json", _crop(not center_crop))),
        PolicyCase("cameras in another order (policy.json edited)", edit=edit_json("policy.json", lambda spec: spec["cameras"].reverse())),
        PolicyCase("another number of cameras (flag)", flags={"num_images_in_input": 1}),
        PolicyCase("unnorm_key of another data set", unnorm_key="bridge_orig"),
        PolicyCase("another robot (flag)", flags={"robot_platform": "LIBERO"}),
        PolicyCase("action dimension 7 for 4 (policy.json edited)", edit=edit_json("policy.json", _more_actions)),
        PolicyCase("attention made causal by another library version", causal=True),
    ]


Columns = tuple[np.ndarray, np.ndarray, tuple[str, ...]]  # actions [M, 14], proprio [M, 14], cameras


@dataclass(frozen=True)
class DataCase:
    """One mistake in ALOHA demonstrations."""

    name: str
    change: Callable[[np.ndarray, np.ndarray, tuple[str, ...]], Columns]


def _inverted(rows: np.ndarray) -> np.ndarray:
    changed = rows.copy()
    changed[:, [6, 13]] = 1 - rows[:, [6, 13]]
    return changed


def _degrees(rows: np.ndarray) -> np.ndarray:
    return np.where(np.isin(np.arange(14), [6, 13]), rows, np.rad2deg(rows)).astype(rows.dtype)


_EXCHANGED: Mapping[str, str] = {"primary": "left_wrist", "left_wrist": "primary", "right_wrist": "right_wrist"}
_SIDES: Mapping[str, str] = {"primary": "primary", "left_wrist": "right_wrist", "right_wrist": "left_wrist"}

DATA_CASES = [
    DataCase("none", lambda actions, states, cameras: (actions, states, cameras)),
    DataCase("gripper sign reversed", lambda actions, states, cameras: (_inverted(actions), states, cameras)),
    DataCase("state and actions in degrees", lambda actions, states, cameras: (_degrees(actions), _degrees(states), cameras)),
    DataCase("camera keys exchanged", lambda actions, states, cameras: (actions, states, tuple(_EXCHANGED[name] for name in cameras))),
    DataCase("left and right wrist exchanged", lambda actions, states, cameras: (actions, states, tuple(_SIDES[name] for name in cameras))),
    DataCase("relative actions declared absolute", lambda actions, states, cameras: (actions - states, states, cameras)),
    DataCase("action dimension 13 for 14", lambda actions, states, cameras: (actions[:, :13], states, cameras)),
]
