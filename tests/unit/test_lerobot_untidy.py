"""LeRobot folders as the world leaves them: what is mended, with which words, and what is refused. docs/recordings.md names these tests."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_writer import (
    FPS,
    LeRobotEpisode,
    change_column,
    change_info,
    change_v3_rows,
    decode_video,
    encode_video,
    make_episode,
    write_v2,
    write_v3,
)

from prismatic.vla.datasets.episodes import RawEpisode, standardize
from prismatic.vla.datasets.lerobot.source import LeRobotSource
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry

TOP, WRIST = "observation.images.top", "observation.images.wrist"
ENTRY = DatasetEntry(image_obs_keys={"primary": "top"})
BOTH = DatasetEntry(image_obs_keys={"primary": "top", "wrist": "wrist"})
EPISODES = [make_episode(7, 1, "push"), make_episode(9, 2, "pull"), make_episode(5, 3, "push")]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
WRITERS = {"v2.1": write_v2, "v3.0": write_v3}


def read(folder: Path, entry: DatasetEntry = ENTRY) -> tuple[list[RawEpisode], list[str]]:
    """All episodes, and what was mended."""
    source = LeRobotSource(folder, entry)
    episodes = list(source.episodes())
    if problems := [raw.problem for raw in episodes if raw.problem]:
        raise ValueError(problems[0])
    return episodes, [str(repair) for repair in source.repairs]


def frames_of(folder: Path, number: int, camera: str = TOP) -> list[int]:
    """The frames that the steps of an episode show."""
    return read(folder, BOTH)[0][number].trajectory["observation"][camera]["offset"].tolist()


def refuses(folder: Path, message: str, entry: DatasetEntry = ENTRY) -> None:
    with pytest.raises(ValueError, match=message):
        read(folder, entry)


@pytest.mark.parametrize(
    ("splits", "expected", "words"),
    [
        ({"train": "0:100"}, {"train": [0, 1, 2]}, r"meta/ does not have are skipped \(97, first: info.json: 'train' is '0:100'"),
        ({"train": "1:"}, {"train": [1, 2]}, r"in no split of info.json are left out \(1, first: episode 0\)"),
        ({"train": ":2", "val": "2:"}, {"train": [0, 1], "val": [2]}, ""),
        ({"train": "0%:67%", "val": "67%:100%"}, {"train": [0, 1], "val": [2]}, ""),
        ({"train": [0, "2:3"], "val": [1]}, {"train": [0, 2], "val": [1]}, ""),
        ({"train": "0,2:3"}, {"train": [0, 2]}, r"in no split of info.json are left out \(1, first: episode 1\)"),
        ({"train": "all"}, {"train": [0, 1, 2]}, ""),
        ({"training": ":2", "valid": "2:"}, {"train": [0, 1], "val": [2]}, ""),
        ({"train": "0:1", "val": "1:2", "eval": "2:"}, {"train": [0], "val": [1], "eval": [2]}, ""),  # two names of one split
        (["0:2", 2], {"train": [0, 1, 2]}, ""),
        (None, {"train": [0, 1, 2]}, ""),
    ],
)
def test_splits(tmp_path: Path, splits: object, expected: dict[str, list[int]], words: str) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    change_info(folder, splits=splits)
    episodes, repairs = read(folder)
    found: dict[str, list[int]] = {}
    for episode in episodes:
        found.setdefault(episode.split, []).append(int(episode.trajectory["episode_index"][0]))
    assert found == expected
    assert len(repairs) == (1 if words else 0)
    assert not words or re.search(words, repairs[0])


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": "most"}, r"split 'train' is 'most', expected episode numbers such as '0:50', '10:', '80%:100%'"),
        ({"train": "5:9"}, r"hold none of the 3 episodes, numbered 0 to 2; write \"splits\": \{\"train\": \":\"\}"),
        ({"train": "0:2", "val": "1:3"}, r"episode 1 is in the splits 'train' and 'val'"),
    ],
)
def test_splits_without_a_meaning(tmp_path: Path, splits: object, message: str) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    change_info(folder, splits=splits)
    refuses(folder, message)


@pytest.mark.parametrize("splits", ["0:2", "0:3"])
def test_gaps_in_the_numbers_of_episodes(tmp_path: Path, splits: str) -> None:
    folder = write_v2(tmp_path / "door", EPISODES, splits={"train": splits})
    rows = (folder / "meta/episodes.jsonl").read_text().splitlines()
    (folder / "meta/episodes.jsonl").write_text("\n".join([rows[0], rows[2]]))  # episode 1 was deleted
    episodes, repairs = read(folder)
    assert [len(episode.trajectory["action"]) for episode in episodes] == [7, 5]
    assert len(repairs) == 1
    assert ("whose numbers have gaps: all are taken" if splits == "0:2" else "does not have are skipped (1") in repairs[0]


@pytest.mark.parametrize("value", [7, None, float("nan")], ids=["stale", "None", "NaN"])
def test_a_data_file_that_meta_names_wrongly_is_found(tmp_path: Path, value: float | None) -> None:
    folder = write_v3(tmp_path / "door", EPISODES, as_images=True)
    data = folder / "data/chunk-000/file-000.parquet"
    steps = pq.read_table(data)
    pq.write_table(steps.slice(0, 7), data)
    pq.write_table(steps.slice(7), data.with_name("file-001.parquet"))
    change_v3_rows(folder, lambda row: row.update({"data/file_index": 0 if value == 7 else value}))
    episodes, repairs = read(folder)
    for episode, recorded in zip(episodes, EPISODES, strict=True):
        np.testing.assert_array_equal(episode.trajectory["action"], recorded.actions)
    source = LeRobotSource(folder, ENTRY)
    reader = source.frame_reader()
    references = episodes[2].trajectory["observation"]["top"]
    np.testing.assert_array_equal(reader.read(references[4]), EPISODES[2].images[TOP][4])
    (repair,) = repairs
    assert "taken from the file that holds them (2" if value == 7 else "(3" in repair


def test_columns_of_places_that_are_missing_altogether(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", EPISODES)
    expected = [frames_of(folder, number) for number in range(3)]
    change_v3_rows(folder, lambda row: [row.pop(name) for name in list(row) if "chunk_index" in name or "timestamp" in name])
    episodes, repairs = read(folder)
    assert [episode.trajectory["observation"]["top"]["offset"].tolist() for episode in episodes] == expected
    assert any("taken from the camera's only file (6" in repair for repair in repairs)


def test_episodes_without_a_data_file_are_left_out(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    (folder / "data/chunk-000/episode_000001.parquet").unlink()
    episodes, (repair,) = read(folder)
    assert len(episodes) == 2
    assert repair.startswith("episodes without a data file are left out (1, first: episode 1: ")
    for number in (0, 2):
        (folder / f"data/chunk-000/episode_00000{number}.parquet").unlink()
    refuses(folder, r"episode_000000.parquet is absent: download it; so it is with all 3 data files")


def test_files_in_another_chunk_folder_are_found(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    expected = frames_of(folder, 1)
    for kind in ("data", "videos"):
        (folder / kind / "chunk-000").rename(folder / kind / "chunk-007")
    assert frames_of(folder, 1) == expected
    assert any("files that lie in another folder than info.json says are taken from there (9" in repair for repair in read(folder)[1])


def test_a_folder_called_video(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", EPISODES)
    (folder / "videos").rename(folder / "video")
    assert "the folder videos/ is called video/: videos are taken from there" in read(folder)[1][0]
    template = json.loads((folder / "meta/info.json").read_text())["video_path"]
    change_info(folder, video_path=template.replace("videos/", "video/"))
    assert read(folder)[1] == []
    change_info(folder, video_path="videos/{camera}.mp4")
    refuses(folder, r"video_path is 'video/\{camera\}.mp4', which cannot be filled in.*known fields: video_key, chunk_index, file_index")


def test_a_length_that_meta_contradicts(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    path = folder / "meta" / "episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 9', '"length": 8'))
    episodes, (repair,) = read(folder)
    assert len(episodes[1].trajectory["action"]) == 9
    assert "is not that of their steps are taken as long as their steps (1" in repair
    assert "9 steps in" in repair
    assert "meta/ says 8" in repair
    data = folder / "data/chunk-000/episode_000001.parquet"
    change_column(data, "frame_index", pa.array([0, 1, 2, 3, 5, 6, 7, 8, 9]))
    refuses(folder, r"9 steps in .*, meta/ says 8, and their frame_index has gaps")


def test_rows_in_another_order(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    data = folder / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(data).take([8, 0, 1, 2, 3, 7, 6, 5, 4]), data)
    np.testing.assert_array_equal(read(folder)[0][1].trajectory["action"], EPISODES[1].actions)


def test_steps_that_are_stored_twice_are_told(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES, as_images=True)
    data, meta = folder / "data/chunk-000/episode_000001.parquet", folder / "meta/episodes.jsonl"
    pq.write_table(pa.concat_tables([pq.read_table(data)] * 2), data)
    meta.write_text(meta.read_text().replace('"length": 9', '"length": 18'))
    (repair,) = read(folder)[1]
    assert "steps have the same frame_index are taken as they are; look whether steps were stored twice (1, first: " in repair
    assert "episode 1: frame_index 0 2 times, 18 steps" in repair
    change_column(data, "frame_index", pa.array([0] * 18))  # numbers nothing
    assert read(folder)[1] == []


def test_steps_that_are_not_there_are_told(tmp_path: Path) -> None:
    """With a whole video their frames are found by time, and nothing said that the arm jumps."""
    folder = write_v2(tmp_path / "door", EPISODES)
    data, meta = folder / "data/chunk-000/episode_000001.parquet", folder / "meta/episodes.jsonl"
    whole = pq.read_table(data)
    pq.write_table(whole.take([0, 1, 2, 6, 7, 8]), data)
    meta.write_text(meta.read_text().replace('"length": 9', '"length": 6'))
    (repair,) = read(folder)[1]
    assert "frame_index has gaps are read without them: what comes after a gap is taken for the next step (1, first: " in repair
    assert "episode 1: 6 follows on 2, 6 steps" in repair
    assert frames_of(folder, 1) == [0, 1, 2, 6, 7, 8]
    pq.write_table(whole.take([0, 2, 4, 6, 8]), data)  # every second one
    meta.write_text(meta.read_text().replace('"length": 6', '"length": 5'))
    assert not any("gaps" in repair for repair in read(folder)[1])


CLOCKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "wall clock": lambda seconds: seconds + 1.76e9,
    "wall clock that jitters": lambda seconds: seconds + 1.76e9 + np.random.default_rng(0).uniform(-0.08, 0.08, len(seconds)),
    "jitter": lambda seconds: seconds + np.random.default_rng(0).uniform(-0.09, 0.09, len(seconds)),
    "one frame late": lambda seconds: seconds + 1 / FPS,
    "zeros": np.zeros_like,
    "nothing": lambda seconds: np.full(len(seconds), np.nan),
}


@pytest.mark.parametrize("version", WRITERS)
@pytest.mark.parametrize("clock", CLOCKS)
def test_time_stamps_of_clocks(tmp_path: Path, version: str, clock: str) -> None:
    folder = WRITERS[version](tmp_path / "door", EPISODES)
    expected = [frames_of(folder, number) for number in range(3)]
    for path in (folder / "data").rglob("*.parquet"):
        seconds = pq.read_table(path)["timestamp"].to_numpy()
        change_column(path, "timestamp", pa.array(CLOCKS[clock](seconds.astype(np.float64))))
    assert [frames_of(folder, number) for number in range(3)] == expected
    words = "without time stamps at some steps" if clock == "nothing" else "whose time stamps are not those of the frames"
    assert any(f"{words}: the frames are taken by number" in repair for repair in read(folder)[1])


def test_time_stamps_that_count_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", EPISODES)
    expected = [frames_of(folder, number) for number in range(3)]
    path = folder / "data/chunk-000/file-000.parquet"
    change_column(path, "timestamp", pa.array(np.arange(21) / FPS))
    assert [frames_of(folder, number) for number in range(3)] == expected


def _video(folder: Path, number: int) -> Path:
    return folder / f"videos/chunk-000/{TOP}/episode_00000{number}.mp4"


@pytest.mark.parametrize("num_frames", [8, 10])
def test_a_video_that_is_one_frame_short_or_long(tmp_path: Path, num_frames: int) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    encode_video(_video(folder, 1), make_episode(num_frames, 2).images[TOP])
    episodes, repairs = read(folder)
    assert episodes[1].trajectory["observation"]["top"]["offset"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, min(8, num_frames - 1)]
    assert len(repairs) == (num_frames == 8)
    assert not repairs or "a frame short show the frame before at their last step (1" in repairs[0]
    assert not repairs or "9 steps, 8 frames" in repairs[0]


def _encode_at(path: Path, images: np.ndarray, times: list[int]) -> None:
    """A video whose frames are shown at these multiples of a step."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("times", "shown", "words"),
    [
        ([0, 1, 2, 4, 5, 6, 7, 8], [0, 1, 2, 2, 3, 4, 5, 6, 7], "9 steps, 8 frames, none of step 3"),
        ([0, 1, 2, 4, 5, 6, 7, 8, 9], [0, 1, 2, 2, 3, 4, 5, 6, 7], "9 steps, 9 frames, none of step 3"),
        ([1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 1, 2, 3, 4, 5, 6, 7], "9 steps, 8 frames, none of step 0"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 10], [0, 1, 2, 3, 4, 5, 6, 7, 8], ""),  # the last frame comes late
    ],
)
def test_a_frame_that_a_video_lost_leaves_the_others_with_their_steps(
    tmp_path: Path, times: list[int], shown: list[int], words: str
) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    _encode_at(_video(folder, 1), make_episode(len(times), 2).images[TOP], times)
    episodes, repairs = read(folder)
    assert episodes[1].trajectory["observation"]["top"]["offset"].tolist() == shown
    assert len(repairs) == (words != "")
    assert not words or ("lacks a frame between others show the one beside it at that step (1" in repairs[0] and words in repairs[0])


def test_a_video_of_other_steps_is_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    encode_video(_video(folder, 1), make_episode(7, 2).images[TOP])
    refuses(folder, r"episode 1: 9 steps, but 7 frames in the video \(0.70 s\); step 8 is at 0.800 s, the nearest frame is 0.200 s away")


def test_a_video_that_goes_on_is_reported(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    encode_video(_video(folder, 1), make_episode(14, 2).images[TOP])
    episodes, (repair,) = read(folder)
    assert episodes[1].trajectory["observation"]["top"]["offset"].tolist() == list(range(9))
    assert "goes on after their last step are shown up to there (1" in repair
    assert "9 steps, 14 frames" in repair


def test_a_video_of_twice_the_rate_is_met_by_time(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    encode_video(_video(folder, 1), make_episode(18, 2).images[TOP], fps=2 * FPS)
    episodes, repairs = read(folder)
    assert episodes[1].trajectory["observation"]["top"]["offset"].tolist() == list(range(0, 18, 2))
    assert repairs == []


@pytest.mark.parametrize("short", [0, 1, 2])
def test_no_frame_of_the_next_episode_is_shown(tmp_path: Path, short: int) -> None:
    """LeRobot's converter from v2.1 counts the frames of each video; LeRobot's own loader shows the next episode's first frame here."""
    folder = write_v3(tmp_path / "door", EPISODES)
    path = folder / f"videos/{TOP}/chunk-000/file-000.mp4"
    images = [EPISODES[0].images[TOP], EPISODES[1].images[TOP][:8], EPISODES[2].images[TOP]]
    encode_video(path, np.concatenate(images))

    def move(row: dict) -> None:
        start, stop = {0: (0, 7), 1: (7, 15), 2: (15, 20)}[row["episode_index"]]
        row |= {f"videos/{TOP}/from_timestamp": start / FPS, f"videos/{TOP}/to_timestamp": stop / FPS}
        if short == 2 and row["episode_index"] == 1:
            row[f"videos/{TOP}/to_timestamp"] = 14 / FPS

    change_v3_rows(folder, move)
    if short == 1:  # the end of a span follows from the beginning of the next
        change_v3_rows(folder, lambda row: row.pop(f"videos/{TOP}/to_timestamp"))
    if short == 2:
        refuses(folder, r"episode 1: 9 steps, but 7 frames in the video from 0.70 to 1.40 s of a file of 2.00 s")
        return
    episodes, repairs = read(folder)
    assert [episode.trajectory["observation"]["top"]["offset"].tolist() for episode in episodes] == [
        [0, 1, 2, 3, 4, 5, 6],
        [7, 8, 9, 10, 11, 12, 13, 14, 14],
        [15, 16, 17, 18, 19],
    ]
    assert len(repairs) == 1
    assert "9 steps, 8 frames" in repairs[0]


def test_a_span_beyond_the_end_of_the_file(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", EPISODES)
    path = folder / f"videos/{TOP}/chunk-000/file-000.mp4"
    encode_video(path, np.concatenate([episode.images[TOP] for episode in EPISODES])[:20])
    episodes, (repair,) = read(folder)
    assert episodes[2].trajectory["observation"]["top"]["offset"].tolist() == [16, 17, 18, 19, 19]
    assert "5 steps, 4 frames" in repair
    encode_video(path, np.concatenate([episode.images[TOP] for episode in EPISODES])[:19])
    refuses(folder, r"episode 2: 5 steps, but 3 frames in the video from 1.60 to 2.10 s of a file of 1.90 s")
    change_v3_rows(folder, lambda row: row.update({f"videos/{TOP}/from_timestamp": 5.0, f"videos/{TOP}/to_timestamp": 6.0}))
    refuses(folder, r"episode 0: 7 steps, but the video from 5.00 to 6.00 s of a file of 1.90 s has no frame there")


@pytest.mark.parametrize("version", WRITERS)
def test_cameras_without_files_are_left_out_where_the_entry_names_none(tmp_path: Path, version: str) -> None:
    folder = WRITERS[version](tmp_path / "door", EPISODES)
    shutil.rmtree(next(path for path in (folder / "videos").rglob(WRIST)))
    source = LeRobotSource(folder, DatasetEntry())
    assert "top" in next(source.episodes()).trajectory["observation"]
    assert "wrist" not in next(source.episodes()).trajectory["observation"]
    assert "cameras without the videos of all episodes are left out (1, first: observation.images.wrist, 3 of 3: " in str(
        next(iter(source.repairs))
    )
    refuses(folder, r"no episode has a video of observation.images.wrist: .*mp4 is absent.*\(complete: top\)", BOTH)


def test_episodes_without_a_video_of_a_camera_of_the_entry_are_left_out(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    _video(folder, 1).write_text(POINTER)
    episodes, (repair,) = read(folder)
    assert [len(episode.trajectory["action"]) for episode in episodes] == [7, 5]
    assert "episodes without a video of observation.images.top are left out (1, first: episode 1: " in repair
    assert "is a Git LFS pointer" in repair


@pytest.mark.parametrize(
    "flag", [{"info": {"video.is_depth_map": True}}, {"video_info": {"is_depth_map": True}}, {"info": {"is_depth_map": True}}]
)
def test_depth_videos_are_never_colour(tmp_path: Path, flag: dict) -> None:
    folder = write_v3(tmp_path / "door", EPISODES)
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    change_info(folder, features=features | {WRIST: features[WRIST] | flag})
    assert "wrist" not in read(folder, DatasetEntry())[0][0].trajectory["observation"]
    refuses(folder, r"camera 'wrist' of the entry is observation.images.wrist, a depth video .* name a colour camera .*: top", BOTH)


@pytest.mark.parametrize("version", WRITERS)
def test_hidden_files_are_no_part_of_a_set(tmp_path: Path, version: str) -> None:
    folder = WRITERS[version](tmp_path / "door", EPISODES)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    (folder / "data/.cache").mkdir()
    (folder / "data/.cache/episode_000000.parquet").write_bytes(b"")
    episodes, repairs = read(folder)
    assert len(episodes) == 3
    assert repairs == []


@pytest.mark.parametrize("form", ["mark", "pretty", "list", "utf-16"])
def test_json_as_editors_leave_it(tmp_path: Path, form: str) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    for name in ("info.json", "tasks.jsonl", "episodes.jsonl"):
        path = folder / "meta" / name
        text = path.read_text()
        if form in ("pretty", "list") and name.endswith("jsonl"):
            rows = [json.loads(line) for line in text.splitlines()]
            text = json.dumps(rows, indent=2) if form == "list" else "\n".join(json.dumps(row, indent=2) for row in rows)
        path.write_text(text, encoding={"mark": "utf-8-sig", "utf-16": "utf-16"}.get(form, "utf-8"))
    assert [str(episode.trajectory["language_instruction"][0]) for episode in read(folder)[0]] == ["push", "pull", "push"]


@pytest.mark.parametrize("version", WRITERS)
def test_pointers_and_empty_files_are_named_as_such(tmp_path: Path, version: str) -> None:
    folder = WRITERS[version](tmp_path / "door", EPISODES)
    names = ["meta/info.json", "meta/tasks.jsonl" if version == "v2.1" else "meta/tasks.parquet"]
    names += (
        ["meta/episodes.jsonl"] if version == "v2.1" else ["meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"]
    )
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        path.write_text(POINTER)
        refuses(folder, rf"{path.name} is a Git LFS pointer of {len(POINTER)} bytes in place of the file: run git lfs pull, or download")
        path.write_bytes(b"")
        refuses(folder, rf"{path.name} is empty: download it again")
        path.write_bytes(whole)
    for path in [*(folder / "data").rglob("*.parquet"), *(folder / "videos").rglob("*.mp4")]:
        path.write_text(POINTER)
    refuses(folder, r"parquet is a Git LFS pointer of \d+ bytes")


def _tasks(folder: Path, *rows: dict) -> None:
    (folder / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _texts(folder: Path) -> list[list[str]]:
    return [list(map(str, episode.trajectory.get("language_instruction", []))) for episode in read(folder)[0]]


def _each_file(folder: Path, name: str, make: Callable[[int], pa.Array | None]) -> None:
    for path in (folder / "data").rglob("*.parquet"):
        change_column(path, name, make(pq.read_metadata(path).num_rows))


def test_a_task_as_a_text_per_step(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    (folder / "meta/tasks.jsonl").unlink()
    (folder / "meta/episodes.jsonl").write_text(
        "\n".join(json.dumps({"episode_index": n, "length": len(e.actions)}) for n, e in enumerate(EPISODES))
    )
    _each_file(folder, "task_index", lambda rows: None)
    _each_file(folder, "language_instruction", lambda rows: pa.array(["open it"] * rows))
    assert _texts(folder) == [["open it"] * 7, ["open it"] * 9, ["open it"] * 5]


@pytest.mark.parametrize("column", ["task", "annotation.human.action.task_description"])
def test_a_task_as_a_number_of_another_column(tmp_path: Path, column: str) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    _each_file(folder, "task_index", lambda rows: None)
    _each_file(folder, column, lambda rows: pa.array([1] * rows))
    assert _texts(folder)[0] == ["pull"] * 7


def test_tasks_that_change_within_an_episode(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", EPISODES)
    _each_file(folder, "task_index", lambda rows: pa.array([0, 1, 0] * (rows // 3)))
    assert _texts(folder)[0] == ["push", "pull", "push", "push", "pull", "push", "push"]


def test_tasks_that_only_meta_lists_per_episode(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    _each_file(folder, "task_index", lambda rows: None)
    assert [texts[0] for texts in _texts(folder)] == ["push", "pull", "push"]
    rows = [json.loads(line) for line in (folder / "meta/episodes.jsonl").read_text().splitlines()]
    rows[0] |= {"tasks": "a text, not a list"}
    rows[1] |= {"tasks": ["lift", "put"]}
    (folder / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [texts[0] for texts in _texts(folder)] == ["a text, not a list", "", "push"]
    assert "several tasks, and none said per step, have no instruction (1" in read(folder)[1][0]


def test_numbers_of_tasks_that_contradict_the_episodes_are_told(tmp_path: Path) -> None:
    """As sets are left that were joined, or whose tasks were written anew."""
    folder = write_v2(tmp_path / "door", EPISODES)
    tasks = folder / "meta/tasks.jsonl"
    tasks.write_text('{"task_index": 0, "task": "pull"}\n{"task_index": 1, "task": "push"}')
    episodes, (repair,) = read(folder)
    assert [episode.trajectory["language_instruction"][0] for episode in episodes] == ["pull", "push", "pull"]
    assert "another text than meta/ lists for the episode take the number's (3, first: " in repair
    assert "episode 0: 0 is 'pull', the episode's tasks are ['push']" in repair
    tasks.write_text('{"task_index": 0, "task": "push"}\n{"task_index": 0, "task": "pull"}')
    refuses(folder, r"tasks.jsonl: task_index 0 is 'push' and 'pull'; give each text a number of its own")


def test_a_task_that_meta_does_not_list(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    _tasks(folder, {"task_index": 5, "task": "other"})
    assert [texts[0] for texts in _texts(folder)] == ["push", "pull", "push"]
    assert "whose task meta/ does not list take the task of their episode (21" in read(folder)[1][0]


def test_columns_of_actions_and_states_are_joined(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    for name, source in (("action", "action"), ("state", "observation.state")):
        for path in (folder / "data").rglob("*.parquet"):
            rows = np.array(pq.read_table(path)[source].to_pylist())
            change_column(path, f"{name}.joint.position", pa.array(rows[:, :3].tolist(), pa.list_(pa.float32())))
            change_column(path, f"{name}.gripper", pa.array(rows[:, 3]))
            change_column(path, source, None)
    entry = DatasetEntry(
        image_obs_keys={"primary": "top"},
        action_keys=("action.joint.position", "action.gripper"),
        state_obs_keys=("state.joint.position", "state.gripper"),
    )
    (first, *_), _ = read(folder, entry)
    episode = standardize(first, entry, lambda trajectory: trajectory)
    np.testing.assert_array_equal(episode.actions, EPISODES[0].actions)
    np.testing.assert_array_equal(episode.proprio, EPISODES[0].state)


def test_a_column_called_actions(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    for path in (folder / "data").rglob("*.parquet"):
        change_column(path, "actions", pq.read_table(path)["action"].combine_chunks())
        change_column(path, "action", None)
    np.testing.assert_array_equal(read(folder)[0][2].trajectory["action"], EPISODES[2].actions)
    change_column(folder / "data/chunk-000/episode_000001.parquet", "actions", pa.array([None] * 9, pa.list_(pa.float32())))
    refuses(folder, r"episode 1: 'actions' has no value \(null\) at step 0 \(9 such steps\)")


def test_parts_that_modality_json_names(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    content = {
        "state": {"arm": {"start": 0, "end": 3}, "gripper": {"start": 3, "end": 4}},
        "action": {"arm": {"start": 0, "end": 3, "absolute": False}, "gripper": {"start": 3, "end": 4, "original_key": "action"}},
        "video": {"ego_view": {"original_key": TOP}},
    }
    (folder / "meta/modality.json").write_text(json.dumps(content))
    entry = DatasetEntry(image_obs_keys={"primary": "ego_view"}, action_keys=("action.gripper", "action.arm"), state_obs_keys="state.arm")
    trajectory = read(folder, entry)[0][0].trajectory
    np.testing.assert_array_equal(trajectory["action.arm"], EPISODES[0].actions[:, :3])
    np.testing.assert_array_equal(trajectory["observation"]["state.gripper"], EPISODES[0].state[:, 3:])
    assert len(trajectory["observation"]["ego_view"]) == 7
    (folder / "meta/modality.json").write_text('{"state": {"arm": 7}}')
    refuses(folder, r"modality.json is not in GR00T's form")


def test_a_row_without_a_value_is_named_as_such(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    path = folder / "data/chunk-000/episode_000001.parquet"
    rows = EPISODES[1].actions.tolist()
    rows[4] = None
    change_column(path, "action", pa.array(rows, pa.list_(pa.float32())))
    change_column(path, "reward", pa.array([None] * 9, pa.float32()))  # nobody asks for it
    refuses(folder, r"episode 1: 'action' has no value \(null\) at step 4 \(1 such steps\)")
    rows[4] = [0.0]
    change_column(path, "action", pa.array(rows, pa.list_(pa.float32())))
    refuses(folder, r"episode 1: 'action' has rows of different lengths; one number per dimension is needed at each step")


def test_an_image_column_that_no_data_file_holds(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", EPISODES, as_images=True)
    _each_file(folder, WRIST, lambda rows: None)
    assert "cameras that no column of the data files holds are left out (3" in read(folder, DatasetEntry())[1][0]
    refuses(folder, r"file-000.parquet has no column observation.images.wrist", BOTH)


def test_frames_are_those_of_the_recording_after_all_this(tmp_path: Path) -> None:
    """Pixels, not numbers: the clamped step shows the frame before, in a file that holds other episodes, too."""
    episodes = [LeRobotEpisode(item.actions, item.state, item.task, {TOP: item.images[TOP]}) for item in EPISODES]
    folder = write_v3(tmp_path / "door", episodes)
    path = folder / f"videos/{TOP}/chunk-000/file-000.mp4"
    encode_video(path, np.concatenate([item.images[TOP] for item in episodes])[:20])
    source = LeRobotSource(folder, ENTRY)
    last = list(source.episodes())[2].trajectory["observation"]["top"]
    np.testing.assert_array_equal(source.frame_reader().read(last[4]), decode_video(path)[19])


@pytest.mark.parametrize("fps", [None, 0, "fast", [30]])
def test_a_rate_that_is_none_is_named(tmp_path: Path, fps: object) -> None:
    change_info(write_v3(tmp_path / "door", EPISODES[:1], as_images=True), fps=fps)
    refuses(tmp_path / "door", rf"info.json says fps {re.escape(repr(fps))}, which is no rate; write the number of steps per second")


@pytest.mark.parametrize(
    ("fps", "in_entry", "words"), [(20, None, "10 Hz by its time stamps, 20 Hz said"), (20, 10, ""), (10, 5, "5 Hz said")]
)
def test_a_rate_that_the_time_stamps_contradict_is_told(tmp_path: Path, fps: float, in_entry: float | None, words: str) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    change_info(folder, fps=fps)
    episodes, repairs = read(folder, replace(ENTRY, fps=in_entry))
    assert episodes[1].trajectory["observation"]["top"]["offset"].tolist() == list(range(9))
    assert len(repairs) == (words != "")
    assert not words or (
        repairs[0].startswith("episodes whose time stamps say another rate") and words in repairs[0] and "(3," in repairs[0]
    )
    sources = [LeRobotSource(folder, replace(ENTRY, fps=rate)).layout for rate in (in_entry, 30)]
    assert sources[0] != sources[1], "an index that says it is not used once fps has been written into the entry"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": None}, r"info.json says features None, expected an object"),
        ({"features": {"action": "float32"}}, r"info.json says of the feature 'action' 'float32', expected an object"),
        ({"features": {"action": {"dtype": "float32", "shape": [None]}}}, r"of the feature 'action' .*'shape': \[None\]"),
        ({"features": {"action": {"dtype": "float32", "shape": [float("inf")]}}}, r"of the feature 'action' .*'shape': \[inf\]"),
        ({"chunks_size": "many"}, r"meta is not as LeRobot writes it \(invalid literal .*'many'\); correct it, or download meta/ again"),
        ({"data_path": 7}, r"meta is not as LeRobot writes it"),
    ],
)
def test_info_with_other_values_than_lerobot_writes_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    change_info(write_v2(tmp_path / "door", EPISODES[:1], as_images=True), **changes)
    refuses(tmp_path / "door", message)


@pytest.mark.parametrize(("version", "other"), [("v2.1", "v3.0"), ("v3.0", "v2.1")])
def test_files_of_another_version_than_info_says(tmp_path: Path, version: str, other: str) -> None:
    folder = WRITERS[version](tmp_path / "door", EPISODES[:1], as_images=True)
    change_info(folder, codebase_version=other)
    episodes, words = read(folder)
    assert len(episodes) == 1
    assert words == [f"files of meta/ that are of another version than info.json says are read as what they are (1, first: "
                     f"{folder / 'meta/info.json'}: {other})"]  # fmt: skip
