"""Which cameras an entry means, and which of them have the files of which episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prismatic.vla.datasets.broken_files import file_problem
from prismatic.vla.datasets.lerobot.layout import EpisodePlace, LeRobotLayout, is_depth
from prismatic.vla.datasets.repairs import Repairs
from prismatic.vla.datasets.rlds.oxe.configs import CONFIGS_FILE, DatasetEntry

_PREFIXES = ("observation.images.", "observation.", "images.", "video.")


class Cameras:
    """The features that are read as cameras: those that the entry names, or all where it names none that is there."""

    def __init__(self, layout: LeRobotLayout, entry: DatasetEntry, repairs: Repairs) -> None:
        """Finds the features.

        Raises:
            ValueError: the entry names a depth video.
        """
        self._layout, self._repairs = layout, repairs
        self._problems: dict[Path, str | None] = {}
        found = _by_name(layout)
        for slot, key in entry.cameras.items():
            if key not in found and key in (depth := _depth_by_name(layout)):
                raise ValueError(
                    f"camera {slot!r} of the entry is {depth[key]}, a depth video ({layout.info}); name a colour camera in image_obs_keys "
                    f"in {CONFIGS_FILE}: {_listed(layout.cameras) or 'there is none'}"
                )
        chosen = [found.get(key) for key in entry.cameras.values()]
        # A transform may give cameras their names, so that all are offered where one is unknown; the index says if it stays so.
        self.is_named = None not in chosen
        self.names: tuple[str, ...] = tuple(dict.fromkeys(name for name in chosen if name is not None)) if self.is_named else layout.cameras

    def with_videos(self, places: Sequence[EpisodePlace]) -> list[EpisodePlace]:
        """The episodes that have the files of all cameras. Cameras that the entry does not name are left out rather than episodes.

        Raises:
            ValueError: no episode has the videos of a camera that the entry names.
        """
        if not self.is_named:
            self._leave_out_cameras(places)
        kept = list(places)
        for camera in filter(self._layout.is_video, self.names):
            bad = [place for place in kept if self._problem(place, camera) is not None]
            if not bad:
                continue
            found = self._problem(bad[0], camera)
            if len(bad) == len(kept):
                others = [name for name in self._layout.cameras if not any(self._problem(place, name) for place in places)]
                raise ValueError(
                    f"no episode has a video of {camera}: {found}; or name another camera in image_obs_keys in {CONFIGS_FILE}"
                    f"{f' (complete: {_listed(others)})' if others else ''}"
                )
            self._repairs.note(f"episodes without a video of {camera} are left out", f"episode {bad[0].number}: {found}", len(bad))
            lost = {place.number for place in bad}
            kept = [place for place in kept if place.number not in lost]
        return kept

    def files(self, places: Sequence[EpisodePlace]) -> tuple[Path, ...]:
        """The video files of the cameras, in the order of the episodes."""
        paths = (place.videos[camera].path for place in places for camera in self.names if camera in place.videos)
        return tuple(dict.fromkeys(path for path in paths if path is not None))

    def _leave_out_cameras(self, places: Sequence[EpisodePlace]) -> None:
        incomplete = {}
        for camera in filter(self._layout.is_video, self.names):
            bad = [place for place in places if self._problem(place, camera) is not None]
            if bad:
                incomplete[camera] = len(bad), self._problem(bad[0], camera)
        for camera, (count, found) in incomplete.items():
            self._repairs.note("cameras without the videos of all episodes are left out", f"{camera}, {count} of {len(places)}: {found}")
        self.names = tuple(camera for camera in self.names if camera not in incomplete)

    def _problem(self, place: EpisodePlace, camera: str) -> str | None:
        """Why the camera has no video of the episode."""
        span = place.videos.get(camera)
        if span is None:
            return None  # images, in the data file
        if span.path is None or span.start is None:
            return "meta/episodes does not say where it lies"
        if span.path not in self._problems:
            self._problems[span.path] = file_problem(span.path)
        problem = self._problems[span.path]
        return None if problem is None else f"{span.path} {problem}"


def short_names(feature: str) -> list[str]:
    """ "observation.images.top" -> ["top", "images.top", "observation.images.top"]."""
    return [*(feature.removeprefix(prefix) for prefix in _PREFIXES if feature.startswith(prefix)), feature]


def _by_name(layout: LeRobotLayout) -> dict[str, str]:
    """Every name that an entry may use -> the feature."""
    by_name: dict[str, str] = {}
    for feature in layout.cameras:
        for name in reversed(short_names(feature)):
            by_name.setdefault(name, feature)
    colour = set(layout.cameras)
    aliases = {alias: feature for alias, feature in layout.modality.cameras.items() if feature in colour}
    return {**aliases, **by_name, **{feature: feature for feature in layout.cameras}}


def _depth_by_name(layout: LeRobotLayout) -> dict[str, str]:
    return {name: feature for feature, said in layout.features.items() if is_depth(said) for name in short_names(feature)}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(short_names(name)[0] for name in names)
