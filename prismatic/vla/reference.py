"""What training saw, kept with the checkpoint, and whether an observation looks like it. Letters: K pictures, S side of a picture.

    reference_frames.png     a row of small pictures per camera, for people, too; cameras and instructions are in its text fields

A camera in another's place, a picture upside down or with red and blue exchanged, a state in degrees: the policy would act on them without
complaint. Each is noticed before the first action because the mistake, undone, gives what training saw. Nothing is refused: a new scene
may look new, and sentences may be new.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prismatic.vla.constants import near_names
from prismatic.vla.diagnosis import Finding, Status
from prismatic.vla.types import Observation

REFERENCE_FILE = "reference_frames.png"
SIDE = 32  # S, pixels
MAX_INSTRUCTIONS = 1000  # more are not kept: a data set of free text has no list to compare with
_TEXT_KEY = "openvla-oft-robot"

# A mistake counts as found if undoing it brings a picture to less than this share of its distance from all that training saw, ...
_EXPLAINED = 0.5
# ... and that distance is no everyday one [grey levels; times what training pictures have among themselves].
_NOTICEABLE, _UNUSUAL = 6.0, 1.5
_STRANGE, _STRANGE_LEVELS = 4.0, 30.0  # from here a picture without explanation is reported, too
_FLAT = 2.0  # standard deviation of a picture without content [grey levels]
_TINGED, _EXTREMES = 40.0, 0.01  # colours count as exchanged from this distance [grey levels], of this share of the pixels at either end
_UNITS = (("degrees", "[rad]", 180 / np.pi), ("millimetres", "[m]", 1e3))
_LARGE = 10.0  # no length in metres and no angle in radians
_FAR = 1.0  # a state beyond the training range by so many times its width

_MISTAKES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rotated by 180 degrees": lambda picture: picture[::-1, ::-1],
    "upside down": lambda picture: picture[::-1],
    "mirrored": lambda picture: picture[:, ::-1],
    "turned by 90 degrees": lambda picture: np.rot90(picture),
    "turned by -90 degrees": lambda picture: np.rot90(picture, -1),
}


@dataclass(frozen=True)
class Reference:
    """What training saw."""

    frames: Mapping[str, np.ndarray]  # camera -> uint8 [K, S, S, 3]; K the same for all
    instructions: tuple[str, ...] = ()  # () if there were too many to keep

    def save(self, folder: Path) -> None:
        """Writes REFERENCE_FILE."""
        text = PngInfo()
        text.add_text(_TEXT_KEY, json.dumps({"cameras": list(self.frames), "instructions": self.instructions}))
        rows = [np.hstack(list(pictures)) for pictures in self.frames.values()]
        Image.fromarray(np.vstack(rows)).save(folder / REFERENCE_FILE, pnginfo=text)

    @classmethod
    def load(cls, folder: Path) -> Reference | None:
        """What `save` wrote; None where it is absent, as in published checkpoints.

        Raises:
            ValueError: the file is something else, or damaged.
        """
        path = folder / REFERENCE_FILE
        if not path.is_file():
            return None
        try:
            with Image.open(path) as image:
                content = json.loads(image.text[_TEXT_KEY])
                sheet = np.asarray(image.convert("RGB"))
            rows = np.split(sheet, len(content["cameras"]))
            frames = {camera: np.stack(np.split(row, row.shape[1] // SIDE, axis=1)) for camera, row in zip(content["cameras"], rows)}  # noqa: B905
        except (OSError, SyntaxError, AttributeError, KeyError, ValueError) as error:  # the second: damaged chunks of a PNG
            raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}); copy it again, or delete it") from error
        return cls(frames, tuple(content["instructions"]))


def small_picture(image: np.ndarray) -> np.ndarray:
    """uint8 [S, S, 3] of an image of any size."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))


class ObservationCheck:
    """Compares observations with what training saw."""

    def __init__(self, reference: Reference | None, state: Mapping[str, Sequence[float]] | None, state_names: Sequence[str]) -> None:
        """`state` holds "min" and "max" of the training states; None: the policy takes none."""
        self._reference, self._state, self._state_names = reference, state, tuple(state_names)
        frames = reference.frames if reference else {}
        self._seen = {camera: pictures.astype(np.float32) for camera, pictures in frames.items()}
        self._usual = {camera: _usual_distance(pictures) for camera, pictures in self._seen.items()}

    def __call__(self, observation: Observation) -> list[Finding]:
        """Everything that looks wrong, or new (a note)."""
        found = self.check_images(observation.images) + self.check_instruction(observation.instruction)
        if self._state is not None and observation.proprio is not None:
            found += check_state(observation.proprio, self._state, self._state_names)
        return found

    def check_images(self, images: Mapping[str, np.ndarray]) -> list[Finding]:
        """Cameras in another's place; pictures that are turned, mirrored, with other colours, or unlike anything."""
        pictures = {camera: small_picture(images[camera]).astype(np.float32) for camera in self._seen if camera in images}
        distances = {camera: _distance(picture, self._seen[camera]) for camera, picture in pictures.items()}
        found, explained = self._check_colours(pictures), set()
        if found:
            return found
        cameras = [camera for camera in pictures if distances[camera] > self._noticeable(camera)]
        for number, one in enumerate(cameras):
            for other in cameras[number + 1 :]:
                exchanged = _distance(pictures[one], self._seen[other]) + _distance(pictures[other], self._seen[one])
                if exchanged < _EXPLAINED * (distances[one] + distances[other]):
                    explained |= {one, other}
                    what = f"the cameras {one} and {other} are exchanged: each shows what training saw through the other"
                    found.append(Finding("cameras", Status.WARNING, what, "Swap them."))
        rest = [self._explain(camera, pictures, distances) for camera in cameras if camera not in explained]
        return found + [finding for finding in rest if finding is not None]

    def _check_colours(self, pictures: Mapping[str, np.ndarray]) -> list[Finding]:
        """Red and blue exchanged, judged by all cameras together: an object of another colour may fill one of them."""
        as_is = sum(_tint_distance(picture, self._seen[camera]) for camera, picture in pictures.items())
        exchanged = sum(_tint_distance(picture[..., ::-1], self._seen[camera]) for camera, picture in pictures.items())
        if as_is > _TINGED * len(pictures) and exchanged < _EXPLAINED * as_is:
            what = "the pictures have red and blue exchanged (BGR), compared with what training saw"
            return [Finding("cameras", Status.WARNING, what, "Send RGB.")]
        return []

    def _noticeable(self, camera: str) -> float:
        return max(_NOTICEABLE, _UNUSUAL * self._usual[camera])

    def _explain(self, camera: str, pictures: Mapping[str, np.ndarray], distances: Mapping[str, float]) -> Finding | None:
        picture, seen, as_is = pictures[camera], self._seen[camera], distances[camera]
        if picture.std((0, 1)).max() < _FLAT:
            what = f"the camera {camera} shows a single colour: no picture arrives"
            return Finding(camera, Status.WARNING, what, "Check the camera and its cable.")
        undone = {what: _distance(undo(picture), seen) for what, undo in _MISTAKES.items()}
        what = min(undone, key=undone.__getitem__)
        if undone[what] < _EXPLAINED * as_is:
            what = f"the camera {camera} is {what}, compared with what training saw"
            return Finding(camera, Status.WARNING, what, "Send it as the demonstrations have it.")
        for other in self._seen:
            if other != camera and _distance(picture, self._seen[other]) < _EXPLAINED * as_is:
                what = f"the camera {camera} shows what training saw through {other}"
                return Finding(camera, Status.WARNING, what, "Send each picture under its own name.")
        if as_is > max(_STRANGE_LEVELS, _STRANGE * self._usual[camera]):
            what = f"the camera {camera} looks unlike all that training saw: another view, another light, or another scene"
            return Finding(camera, Status.NOTE, what, f"Compare it with {REFERENCE_FILE} of the checkpoint.")
        return None

    def knows(self, instruction: str) -> bool:
        """Whether training saw the sentence, or nobody says; case, spaces and punctuation do not count."""
        known = self._reference.instructions if self._reference else ()
        return not known or _words(instruction) in {_words(text) for text in known}

    def check_instruction(self, instruction: str) -> list[Finding]:
        """A sentence that training never saw."""
        known = self._reference.instructions if self._reference else ()
        if self.knows(instruction):
            return []
        near = near_names(instruction, known)
        what = f"the instruction {instruction!r} was not among the {len(known)} of training"
        return [Finding("instruction", Status.NOTE, what, f"{near[:1].upper()}{near[1:]}")]


def check_state(values: np.ndarray, seen: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[Finding]:
    """A state far from all that training saw, with its likely unit; dimensions that were constant in training do not count."""
    low, high = np.asarray(seen["min"], np.float64), np.asarray(seen["max"], np.float64)
    if len(values) != len(low):
        return []  # refused elsewhere
    width = high - low

    def is_far(state: np.ndarray) -> np.ndarray:
        return (width > 0) & ((state < low - _FAR * width) | (state > high + _FAR * width))

    state = np.asarray(values, np.float64)
    far = np.flatnonzero(is_far(state))
    if not len(far):
        return []
    listed = ", ".join(f"{names[dim]} = {state[dim]:.4g} (training: {low[dim]:.3g} to {high[dim]:.3g})" for dim in far[:4])
    more = f" and {len(far) - 4} more" if len(far) > 4 else ""
    units = {unit for unit, suffix, factor in _UNITS if _explains(suffix, state, is_far(state / factor), names)}
    remedy = f"It looks like {' and '.join(sorted(units))}." if units else "Check its order and units, and the data set (unnorm_key)."
    return [Finding("state", Status.WARNING, f"the state is far from all that training saw: {listed}{more}", remedy)]


def _explains(suffix: str, state: np.ndarray, is_still_far: np.ndarray, names: Sequence[str]) -> bool:
    """Whether the dimensions of a unit, one of them large, come near in another unit."""
    dims = [dim for dim, name in enumerate(names) if name.endswith(suffix)]
    return bool(dims) and np.abs(state[dims]).max() > _LARGE and not is_still_far[dims].any()


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _distance(picture: np.ndarray, seen: np.ndarray) -> float:
    """Mean absolute difference [grey levels] of [S, S, 3] to the nearest of [K, S, S, 3]."""
    return float(np.abs(seen - picture).mean((1, 2, 3)).min())


def _tints(pictures: np.ndarray) -> np.ndarray:
    """Of [..., S, S, 3] the reddest, the bluest and the mean pixel, by red minus blue [..., 3]: colours without their places."""
    values = np.sort((pictures[..., 0] - pictures[..., 2]).reshape(*pictures.shape[:-3], -1), axis=-1)
    count = max(1, round(_EXTREMES * values.shape[-1]))
    return np.stack([values[..., -count:].mean(-1), values[..., :count].mean(-1), values.mean(-1)], axis=-1)


def _tint_distance(picture: np.ndarray, seen: np.ndarray) -> float:
    """Sum of absolute differences of the tints [grey levels] to the nearest of `seen`."""
    return float(np.abs(_tints(seen) - _tints(picture)).sum(-1).min())


def _usual_distance(seen: np.ndarray) -> float:
    """The median distance of a training picture to its nearest other one; 0 for a single one."""
    if len(seen) < 2:
        return 0.0
    return float(np.median([_distance(picture, np.delete(seen, number, axis=0)) for number, picture in enumerate(seen)]))
