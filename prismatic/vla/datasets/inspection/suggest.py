"""An unregistered folder -> text of a registry entry, guessed from the names and values of its first episodes; and where to paste it.

Letters: T steps, A action dim, P proprio dim.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prismatic.vla.cameras import assign_cameras, looks_from_wrist
from prismatic.vla.constants import ROBOT_PLATFORMS, ActionKind, NormalizationType, near_names
from prismatic.vla.datasets.episodes import IMAGE_REF, Trajectory
from prismatic.vla.datasets.inspection.encodings import kind_by_values
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE, ActionEncoding, DatasetEntry, StateEncoding
from prismatic.vla.datasets.sources import open_source

_CONSTANTS_FILE = "prismatic/vla/constants.py"
_NUM_PEEKED_EPISODES = 5
_DEFAULT_HZ = 25.0
_SAME_HZ = 0.1  # rates that differ by less than this share are the same
_MIN_WIDTH_OF_TWO_ARMS = 12
_WHOLE_STATE = ("state", "proprio", "qpos", "robot_state", "joint_state", "joint_states", "agent_pos")
_STATE_PARTS = re.compile(r"joint|eef|ee_|end_eff|pose|gripper|position|tcp")
_NO_STATE = re.compile(r"vel|effort|torque|force|depth|reward|action|time|index|current")


@dataclass
class Suggestion:
    """What to paste."""

    name: str
    cameras: dict[str, str]  # camera -> stored key
    state_keys: dict[str, int]  # stored key -> width
    action_dim: int
    control_hz: float | None  # None: unknown
    action_encoding: ActionEncoding = ActionEncoding.EEF_POS
    state_encoding: StateEncoding = StateEncoding.NONE
    platform: str = ""
    platform_is_new: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def proprio_dim(self) -> int:
        return sum(self.state_keys.values())

    def entry_text(self) -> str:
        """One line of OXE_DATASET_CONFIGS, as Python that states only what differs from the defaults."""
        default, lines = DatasetEntry(), []
        if self.cameras != dict(default.image_obs_keys):
            lines.append(f"image_obs_keys={_quoted_dict(self.cameras)}")
        if tuple(self.state_keys) != default.state_obs_keys:
            keys = ", ".join(map(_quoted, self.state_keys))
            lines.append(f"state_obs_keys=({keys}{',' if len(self.state_keys) == 1 else ''})")
        for key in ("state_encoding", "action_encoding"):
            if (value := getattr(self, key)) != getattr(default, key):
                lines.append(f"{key}={type(value).__name__}.{value.name}")
        lines.append(f"robot_platform={_quoted(self.platform)}")
        body = "".join(f"        {line},\n" for line in lines)
        return f"    {_quoted(self.name)}: DatasetEntry(\n{body}    ),"

    def platform_text(self) -> str | None:
        """One item of ROBOT_PLATFORMS, or None if a known platform fits."""
        if not self.platform_is_new:
            return None
        is_relative = self.action_encoding in (ActionEncoding.EEF_POS, ActionEncoding.EEF_R6, ActionEncoding.DUAL_EEF_POS)
        normalization = NormalizationType.BOUNDS_Q99 if is_relative else NormalizationType.BOUNDS
        action_names = _numbered("motion" if is_relative else "joint", self.action_dim, self.action_encoding)
        state_names = action_names if not is_relative and self.proprio_dim == self.action_dim else tuple(
            f"state_{number}" for number in range(1, self.proprio_dim + 1)
        )  # fmt: skip
        fields = {
            "name": _quoted(self.platform),
            "num_actions_chunk": str(max(1, round(self.control_hz or _DEFAULT_HZ))),
            "action_dim": str(self.action_dim),
            "proprio_dim": str(self.proprio_dim),
            "normalization": f"NormalizationType.{normalization.name}",
            "control_hz": f"{self.control_hz or _DEFAULT_HZ:g}",
            "action_names": _quoted_tuple(action_names),
            "proprio_names": _quoted_tuple(state_names),
        }
        body = "".join(f"            {key}={value},\n" for key, value in fields.items())
        return f"        RobotPlatform(\n{body}        ),"

    def text(self) -> str:
        """Everything that is printed: valid Python with comments that say where it belongs."""
        parts = [f"# {note}" for note in self.notes]
        if self.notes:
            parts.append("")
        widths = ", ".join(f"{key} {width}" for key, width in self.state_keys.items()) or "none"
        parts += [f"# Actions: {self.action_dim} dimensions. State: {widths}. Guessed; then check with scripts/inspect_dataset.py."]
        parts += [f"# Paste into OXE_DATASET_CONFIGS of {CONFIGS_FILE}:", self.entry_text()]
        if (platform := self.platform_text()) is not None:
            parts += [
                "",
                "# No known platform has these dimensions at this rate. Name the dimensions, with [rad] or [m] where it fits, and",
            ]
            parts += [f"# paste into ROBOT_PLATFORMS of {_CONSTANTS_FILE}:", platform]
        return "\n".join(parts)


def suggest_entry(folder: Path, name: str, control_hz: float | None = None) -> Suggestion:
    """The guess for the data set in `folder`; `control_hz` is actions per second, None: as stored, else 25.

    Raises:
        ValueError: nothing that can be a camera or an action is found; the message lists the keys that are there.
    """
    source = open_source(folder, DatasetEntry())
    peeked = list(itertools.islice(source.episodes(), _NUM_PEEKED_EPISODES))
    trajectories = [raw.trajectory for raw in peeked]
    if not trajectories:
        raise ValueError(f"{folder} holds no episodes; record some, or copy the data set again")
    first = trajectories[0]
    observation = first.get("observation", {})
    notes = [f"{str(repair)[:1].upper()}{str(repair)[1:]}." for repair in source.repairs]
    if texts := next((raw.texts for raw in peeked if len(raw.texts) > 1), ()):
        notes.append(f"The texts of the first such episode: {', '.join(map(_quoted, texts))}.")
    actions = _action_dim(folder, first)
    suggestion = Suggestion(
        name=name,
        cameras=_guess_cameras(folder, observation, actions, notes),
        state_keys=_guess_state(observation, actions, notes),
        action_dim=actions,
        control_hz=control_hz or _stored_hz(folder),
        notes=notes,
    )
    if "language_instruction" not in first:
        notes.append("No language_instruction is stored: pass --default_instruction when training.")
    _guess_encodings(suggestion, trajectories)
    _guess_platform(suggestion)
    return suggestion


def _action_dim(folder: Path, trajectory: Trajectory) -> int:
    action = trajectory.get("action")
    if isinstance(action, Mapping):
        raise ValueError(
            f"{folder}: 'action' is a group of {sorted(action)}; write a trajectory transform in "
            f"{CONFIGS_FILE.replace('configs', 'transforms')} that joins them into one array [steps, dimensions]"
        )
    if action is None:
        raise ValueError(f"{folder}: no key 'action'; a trajectory transform must provide it; {near_names('action', trajectory)}")
    action = np.asarray(action)
    return 1 if action.ndim == 1 else int(action.shape[1])


def _guess_cameras(folder: Path, observation: Mapping[str, Any], action_dim: int, notes: list[str]) -> dict[str, str]:
    stored: dict[int, str] = {}  # one name a camera: some sources offer short names beside the stored one, for the same array
    for key, values in observation.items():
        if getattr(values, "dtype", None) == IMAGE_REF and "depth" not in key.lower():
            stored.setdefault(id(values), key)
    keys = list(stored.values())
    if not keys:
        raise ValueError(f"{folder}: no encoded images directly below 'observation'; found: {', '.join(sorted(observation)) or 'nothing'}")
    cameras, left_over = assign_cameras(keys, two_arms=action_dim >= _MIN_WIDTH_OF_TWO_ARMS)
    if looks_from_wrist(cameras["primary"]):
        notes.append(f"Every camera is on a wrist; {cameras['primary']!r} is taken as the primary one.")
    if left_over:
        notes.append(f"Cameras that find no place: {', '.join(left_over)}.")
    return cameras


def _guess_state(observation: Mapping[str, Any], action_dim: int, notes: list[str]) -> dict[str, int]:
    widths = {key: 1 if np.ndim(values) == 1 else int(np.shape(values)[1]) for key, values in observation.items() if _is_numbers(values)}
    whole = next((key for key in _WHOLE_STATE if key in widths), None)
    if whole is not None:
        return {whole: widths[whole]}
    parts = {key: width for key, width in widths.items() if _STATE_PARTS.search(key.lower()) and not _NO_STATE.search(key.lower())}
    arm = [key for key in parts if "gripper" not in key.lower()]
    grippers = [key for key in parts if "gripper" in key.lower()]
    joints, poses = ([key for key in arm if ("joint" in key.lower()) == is_joint] for is_joint in (True, False))
    options = [[*group, *grippers] for group in (joints, poses) if group]
    chosen = next((keys for keys in options if sum(parts[key] for key in keys) == action_dim), options[0] if options else list(parts))
    if not chosen:
        notes.append(f"No state was found among: {', '.join(sorted(widths)) or 'no numbers'}. Train without --use_proprio.")
    elif len(parts) > len(chosen):
        notes.append(f"Other keys that could be state: {', '.join(key for key in parts if key not in chosen)}.")
    return {key: parts[key] for key in chosen}


def _is_numbers(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "fiu" and values.ndim in (1, 2)


def _guess_encodings(suggestion: Suggestion, trajectories: list[Trajectory]) -> None:
    width, state_dim = suggestion.action_dim, suggestion.proprio_dim
    actions, states, has_next = _join(trajectories, suggestion)
    kinds = [kind_by_values(actions[:, dim], states[:, dim], has_next) for dim in range(min(width, state_dim))]
    num_position = kinds.count(ActionKind.TARGET)
    names_joints = any(re.search(r"joint|qpos", key.lower()) for key in suggestion.state_keys)
    if num_position > len(kinds) / 2 or (names_joints and ActionKind.MOTION not in kinds):
        bimanual = width >= _MIN_WIDTH_OF_TWO_ARMS and width % 2 == 0
        suggestion.action_encoding = ActionEncoding.JOINT_POS_BIMANUAL if bimanual else ActionEncoding.JOINT_POS
        suggestion.state_encoding = StateEncoding.JOINT_BIMANUAL if bimanual else StateEncoding.JOINT
        suggestion.notes.append("Actions follow the state: absolute (joint angles, or poses, which are treated alike).")
    else:
        guesses = {10: ActionEncoding.EEF_R6, 14: ActionEncoding.DUAL_EEF_POS}
        suggestion.action_encoding = guesses.get(width, ActionEncoding.EEF_POS)
        is_quaternion = state_dim >= 7 and np.allclose(np.linalg.norm(states[:, 3:7], axis=1), 1, atol=1e-2)
        if suggestion.action_encoding != ActionEncoding.DUAL_EEF_POS:
            suggestion.state_encoding = StateEncoding.POS_QUAT if is_quaternion else StateEncoding.POS_EULER
        suggestion.notes.append(f"Actions do not repeat the state: relative motion, {suggestion.action_encoding.name}.")
    if not suggestion.state_keys:
        suggestion.state_encoding = StateEncoding.NONE


def _join(trajectories: list[Trajectory], suggestion: Suggestion) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions [M, A], states [M, P] and which rows have a next one [M - 1], over all peeked episodes."""
    actions, states, starts = [], [], []
    for trajectory in trajectories:
        rows = np.asarray(trajectory["action"], np.float32).reshape(-1, suggestion.action_dim)
        columns = [np.asarray(trajectory["observation"][key], np.float32).reshape(len(rows), -1) for key in suggestion.state_keys]
        actions.append(rows)
        states.append(np.concatenate(columns, axis=1) if columns else np.zeros((len(rows), 0), np.float32))
        starts.append(np.arange(len(rows)) > 0)
    return np.nan_to_num(np.concatenate(actions)), np.nan_to_num(np.concatenate(states)), np.concatenate(starts)[1:]


def _guess_platform(suggestion: Suggestion) -> None:
    is_relative = suggestion.action_encoding in (ActionEncoding.EEF_POS, ActionEncoding.EEF_R6, ActionEncoding.DUAL_EEF_POS)
    normalization = NormalizationType.BOUNDS_Q99 if is_relative else NormalizationType.BOUNDS
    fitting = [
        platform
        for platform in ROBOT_PLATFORMS.values()
        if (platform.action_dim, platform.proprio_dim, platform.normalization)
        == (suggestion.action_dim, suggestion.proprio_dim, normalization)
    ]
    hz = suggestion.control_hz
    rate = f"{hz or _DEFAULT_HZ:g} Hz" + (", a guess: --control_hz says the rate of your robot" if hz is None else "")
    at_rate = [platform for platform in fitting if hz is None or abs(platform.control_hz - hz) <= _SAME_HZ * hz]
    if not at_rate:
        suggestion.platform = re.sub(r"\W+", "_", suggestion.name).upper()
        suggestion.platform_is_new = True
        suggestion.notes.append(f"The chunk of the new platform is one second at {rate}.")
        return
    at_rate.sort(key=lambda platform: abs(platform.control_hz - (hz or _DEFAULT_HZ)))
    chosen = at_rate[0]
    suggestion.platform = chosen.name
    suggestion.notes.append(f"{chosen.name} predicts {chosen.num_actions_chunk} actions at {chosen.control_hz:g} Hz.")
    if hz is None:
        suggestion.notes.append("If your robot acts at another rate, say it with --control_hz for a platform of its own.")
    if others := [platform.name for platform in at_rate[1:]]:
        suggestion.notes.append(f"Platforms with the same dimensions: {', '.join(others)}.")


def _stored_hz(folder: Path) -> float | None:
    """Frames per second that a LeRobot data set says of itself."""
    path = folder / "meta" / "info.json"
    fps = json.loads(path.read_text()).get("fps") if path.is_file() else None
    return float(fps) if fps else None


def _numbered(word: str, width: int, encoding: ActionEncoding) -> tuple[str, ...]:
    num_arms = 2 if encoding in (ActionEncoding.JOINT_POS_BIMANUAL, ActionEncoding.DUAL_EEF_POS) and width % 2 == 0 else 1
    arm = (*(f"{word}_{number}" for number in range(1, width // num_arms)), "gripper")
    return arm if num_arms == 1 else tuple(f"{side}_{name}" for side in ("left", "right") for name in arm)


def _quoted(text: str) -> str:
    return json.dumps(text)


def _quoted_dict(values: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{_quoted(key)}: {_quoted(value)}" for key, value in values.items()) + "}"


def _quoted_tuple(values: tuple[str, ...]) -> str:
    return "(" + ", ".join(map(_quoted, values)) + ("," if len(values) == 1 else "") + ")"
