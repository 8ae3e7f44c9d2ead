"""Named images, state and text of a client -> `PolicyRequest`, checked against what the policy needs before it is queued."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.vla.cameras import is_wrist
from prismatic.vla.constants import near_names
from prismatic.vla.images import decode_image, round_trip
from prismatic.vla.types import MAX_SIDE, Observation
from prismatic.wire.arrays import as_array, check_characters, check_pixels, describe, describe_names
from prismatic.wire.errors import RequestError
from prismatic.wire.pictures import jpeg_file

MAX_INSTRUCTION_CHARACTERS = 1024
_MAX_STATE = 1e30  # in any unit; float32, in which the policy computes, ends at 3e38
_MAX_IGNORED_NAMES, _MAX_NAME_CHARACTERS = 32, 64


@dataclass(frozen=True)
class RequestGroup:
    """What requests must have in common to be predicted together."""

    adapter: str | None  # None: the server has a single policy
    unnorm_key: str | None  # whose statistics the answer needs; None: the server's
    is_long: bool = False  # the prompt is longer than what is prepared for: nobody else is padded to it


@dataclass(frozen=True)
class PolicyRequest:
    """One observation, and which policy in whose units is asked."""

    observation: Observation
    unnorm_key: str | None = None
    adapter: str | None = None
    begins: bool = False  # the first one of a rollout
    is_long: bool = False  # its prompt is longer than what is prepared for

    @property
    def num_bytes(self) -> int:
        """Of its pictures."""
        return sum(image.nbytes for image in self.observation.images.values())

    @property
    def group(self) -> RequestGroup:
        return RequestGroup(self.adapter, self.unnorm_key, self.is_long)


@dataclass
class ObservationReader:
    """Turns what clients send into requests; remembers the names of images that the policy has no use for."""

    spec: PolicySpec
    unnorm_keys: tuple[str, ...]  # data sets whose statistics the checkpoint has
    adapter: str | None = None  # whose requests it reads
    ignored_names: set[str] = field(default_factory=set)

    def read(self, images: Mapping[str, tuple[str | None, Any]], state: Any, instruction: Any, unnorm_key: Any = None) -> PolicyRequest:
        """`images`: the client's name -> our camera (None: unknown) and the encoded image, [height, width, 3] or [3, height, width].

        Raises:
            RequestError: something is missing or is not what the policy needs.
        """
        found = self._select(images)
        pictures, is_round_tripped = read_pictures(found, self.spec.image.jpeg_round_trip)
        observation = Observation(pictures, _read_instruction(instruction), self._read_state(state), is_round_tripped)
        return PolicyRequest(observation, self._read_unnorm_key(unnorm_key), self.adapter)

    def _select(self, images: Mapping[str, tuple[str | None, Any]]) -> dict[str, tuple[str, Any]]:
        """Needed camera -> the client's name and image.

        Raises:
            RequestError: a camera is missing, or two names mean the same one.
        """
        offers: dict[str, list[str]] = {}  # camera -> the client's names
        for name, (camera, _) in images.items():
            if camera is not None:
                offers.setdefault(camera, []).append(name)
        needed = list(filter(is_wrist, self.spec.cameras))
        offered = list(filter(is_wrist, offers))
        if len(needed) == len(offered) == 1:  # the only wrist camera may have any wrist's name
            offers[needed[0]] = offers.pop(offered[0])
        missing = [camera for camera in self.spec.cameras if camera not in offers]
        if missing:
            unknown = [name for name, (camera, _) in images.items() if camera is None]
            also = f"; {describe_names(unknown)} is no camera name known here" if unknown else ""
            raise RequestError(
                f"the observation lacks camera {', '.join(missing)}; the policy needs {', '.join(self.spec.cameras)}, "
                f"found {describe_names(images) or 'no image'}{also}. GET /info lists the names of each protocol"
            )
        for camera in self.spec.cameras:
            if len(names := offers[camera]) > 1:
                raise RequestError(
                    f"{names[0]!r:.64} and {names[1]!r:.64} are both names of camera {camera}; send one of them. GET /info lists the names"
                )
        used = {camera: offers[camera][0] for camera in self.spec.cameras}
        self._note_ignored(images.keys() - used.values())
        return {camera: (name, images[name][1]) for camera, name in used.items()}

    def _note_ignored(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self.ignored_names) < _MAX_IGNORED_NAMES:
                self.ignored_names.add(name[:_MAX_NAME_CHARACTERS])

    def _read_state(self, state: Any) -> np.ndarray | None:
        if not self.spec.heads.use_proprio:
            return None
        platform = self.spec.platform
        expected = f"the policy needs {platform.proprio_dim} numbers ({', '.join(platform.proprio_names)})"
        if state is None:
            raise RequestError(f"the observation lacks the state; {expected}")
        array = as_array(state, "state")
        if array.dtype.kind not in "fiu":
            raise RequestError(f"state: expected float numbers, found {array.dtype.name}")
        if array.size != platform.proprio_dim:
            raise RequestError(f"state: {expected}, found shape {list(array.shape)}")
        values = array.reshape(-1).astype(np.float64)
        if not np.isfinite(values).all():
            bad = ", ".join(platform.proprio_names[index] for index in np.flatnonzero(~np.isfinite(values)))
            raise RequestError(f"state: {bad} is not finite (NaN or infinite); check the robot's sensors before sending")
        if (dims := np.flatnonzero(np.abs(values) > _MAX_STATE)).size:
            bad = ", ".join(f"{platform.proprio_names[dim]} is {values[dim]:.3g}" for dim in dims)
            raise RequestError(f"state: {bad}, beyond {_MAX_STATE:g}, which no sensor measures; check the robot's sensors before sending")
        return values

    def _read_unnorm_key(self, key: Any) -> str | None:
        if key is None or key == "":
            return None
        if not isinstance(key, str) or key not in self.unnorm_keys:
            raise RequestError(f"unnorm_key {str(key)[:80]!r} is not in the checkpoint; {near_names(str(key)[:80], self.unnorm_keys)}")
        return key


def one_of(content: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value under one of several names of the same thing; None where there is none.

    Raises:
        RequestError: there are two.
    """
    found = [name for name in names if content.get(name) is not None]
    if len(found) > 1:
        raise RequestError(f"{' and '.join(map(repr, found))} mean the same; send one of them")
    return content[found[0]] if found else None


def read_pictures(found: Mapping[str, tuple[str, Any]], has_round_trip: bool) -> tuple[dict[str, np.ndarray], bool]:
    """Camera -> uint8 RGB [height, width, 3] of camera -> the client's name and picture; and whether they were JPEG files.

    Where only some were, the others are put through the same round trip, if the policy `has_round_trip`: it would be before them.

    Raises:
        RequestError: a picture is none.
    """
    files = {camera: jpeg_file(value, name) for camera, (name, value) in found.items()}
    has_jpeg = any(file is not None for file in files.values())
    pictures = {}
    for camera, (name, value) in found.items():
        file = files[camera]
        picture = read_image(value, name) if file is None else _decode_jpeg(file, name)
        pictures[camera] = round_trip(picture) if has_round_trip and has_jpeg and file is None else picture
    return pictures, has_jpeg


def _decode_jpeg(file: bytes, name: str) -> np.ndarray:
    import simplejpeg

    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(file)
        check_pixels(width, height, f"image {name!r}")
        return decode_image(file)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"image {name!r}: damaged JPEG file ({error})") from error


def read_image(value: Any, name: str) -> np.ndarray:
    """Uint8 RGB [height, width, 3].

    Raises:
        RequestError: not an encoded uint8 image with three channels, first or last.
    """
    array = as_array(value, f"image {name!r}")
    if array.dtype != np.uint8:
        hint = "; scale [0, 1] by 255 and convert to uint8" if array.dtype.kind == "f" else ""
        raise RequestError(f"image {name!r}: expected uint8, found {array.dtype.name}{hint}")
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = np.ascontiguousarray(array.transpose(1, 2, 0))
    if array.ndim != 3 or array.shape[2] != 3 or not all(1 <= side <= MAX_SIDE for side in array.shape[:2]):
        raise RequestError(f"image {name!r}: expected RGB [height, width, 3] or [3, height, width], found shape {list(array.shape)}")
    return array


def _read_instruction(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        found = "an empty text" if isinstance(text, str) else describe(text)
        raise RequestError(f"the instruction must be a text that says what to do, found {found}")
    if len(text) > MAX_INSTRUCTION_CHARACTERS:
        raise RequestError(f"the instruction has {len(text)} characters; send at most {MAX_INSTRUCTION_CHARACTERS}")
    check_characters(text)
    return text
