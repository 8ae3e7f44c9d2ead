"""LeRobot v2.1 and v3.0 folders through the index and the data set: values, frames, splits, names, bad input."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import weakref
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_writer import change_info, decode_video, encode_video, make_episode, write_v2, write_v3
from rlds_writer import smooth_image

from prismatic.vla.constants import ROBOT_PLATFORMS
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.episodes import FrameError
from prismatic.vla.datasets.index import EpisodeIndex, load_index
from prismatic.vla.datasets.lerobot import video
from prismatic.vla.datasets.lerobot.frame_tables import FrameTables, read_frame_table
from prismatic.vla.datasets.lerobot.source import LeRobotSource
from prismatic.vla.datasets.lerobot.video import VideoReader
from prismatic.vla.datasets.rlds.oxe.configs import DatasetEntry
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec
from prismatic.vla.datasets.rlds.oxe.transforms import identity_dataset_transform
from prismatic.vla.datasets.sources import find_dataset_folder, open_source
from prismatic.vla.datasets.training_data import load_training_data

ENTRY = DatasetEntry(image_obs_keys={"primary": "top", "wrist": "observation.images.wrist"}, robot_platform="METAWORLD")
EPISODES = [make_episode(7, 1, "push"), make_episode(9, 2, "pull"), make_episode(5, 3, "push")]
WRITERS = {"v2.1": write_v2, "v3.0": write_v3}


def index_of(folder: Path, entry: DatasetEntry = ENTRY) -> EpisodeIndex:
    return load_index(open_source(folder, entry), entry, identity_dataset_transform)


@pytest.mark.parametrize("version", WRITERS)
def test_every_value_and_every_frame(tmp_path: Path, version: str) -> None:
    folder = WRITERS[version](tmp_path / "door", EPISODES)
    assert isinstance(open_source(find_dataset_folder(tmp_path, "door"), ENTRY), LeRobotSource)
    index = index_of(folder)
    np.testing.assert_array_equal(index.actions, np.concatenate([episode.actions for episode in EPISODES]))
    np.testing.assert_array_equal(index.proprio, np.concatenate([episode.state for episode in EPISODES]))
    assert [index.instructions[number] for number in index.instruction_ids[index.episode_starts[:-1]]] == ["push", "pull", "push"]
    videos = {path: decode_video(path) for path in index.files if path.suffix == ".mp4"}
    for column, camera in enumerate(("observation.images.top", "observation.images.wrist")):
        paths = [path for path in videos if camera in str(path)]
        expected = np.concatenate([videos[path] for path in paths])
        assert len(expected) == 21
        for step in np.random.default_rng(0).permutation(21):
            np.testing.assert_array_equal(index.reader.read(index.images[step, column]), expected[step])
        recorded = np.concatenate([episode.images[camera] for episode in EPISODES])
        assert np.abs(expected.astype(int) - recorded).mean() < 15  # chroma is coarse; another frame is 60 away


@pytest.mark.parametrize("version", WRITERS)
def test_images_in_parquet_are_exact(tmp_path: Path, version: str) -> None:
    folder = WRITERS[version](tmp_path / "door", EPISODES, as_images=True)
    index = index_of(folder)
    for column, camera in enumerate(("observation.images.top", "observation.images.wrist")):
        recorded = np.concatenate([episode.images[camera] for episode in EPISODES])
        for step in np.random.default_rng(0).permutation(21):
            np.testing.assert_array_equal(index.reader.read(index.images[step, column]), recorded[step])


@pytest.mark.parametrize("version", WRITERS)
def test_training_data_with_splits_of_info_json(tmp_path: Path, version: str) -> None:
    folder = WRITERS[version](tmp_path / "door", EPISODES, splits={"train": "0:2", "val": "2:3"})
    spec = DatasetSpec("door", ENTRY, folder, ROBOT_PLATFORMS["METAWORLD"], identity_dataset_transform)
    options = DatasetOptions(cameras=("primary", "wrist"), image_size=32, use_proprio=True, val_fraction=0.1)
    data = load_training_data((spec,), options)
    assert (len(data.train), len(data.val)) == (16, 5)
    sample = data.train[15]
    assert (sample.images.shape, sample.actions.shape, sample.instruction) == ((2, 32, 32, 3), (8, 4), "pull")
    assert data.statistics["door"]["num_transitions"] == 16


def test_a_transform_sees_the_columns_under_their_names(tmp_path: Path) -> None:
    source = LeRobotSource(write_v2(tmp_path / "door", EPISODES), ENTRY)
    trajectory = next(source.episodes()).trajectory
    assert trajectory["timestamp"].shape == (7,)
    observation = trajectory["observation"]
    assert observation["state"] is observation["observation.state"]
    assert observation["top"] is observation["images.top"] is observation["observation.images.top"]


def test_only_the_cameras_of_the_entry_are_looked_up(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    for path in (folder / "videos/chunk-000/observation.images.wrist").iterdir():
        path.unlink()
    entry = DatasetEntry(image_obs_keys={"primary": "images.top"}, robot_platform="METAWORLD")
    assert index_of(folder, entry).cameras == ("primary",)
    with pytest.raises(
        ValueError, match=r"no episode has a video of observation.images.wrist: .*episode_000000.mp4 is absent.*complete: top"
    ):
        LeRobotSource(folder, ENTRY)


def test_v3_episodes_over_several_data_and_meta_files(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", EPISODES, as_images=True)
    data, meta = folder / "data/chunk-000/file-000.parquet", folder / "meta/episodes/chunk-000/file-000.parquet"
    steps, rows = pq.read_table(data), pq.read_table(meta).to_pylist()
    pq.write_table(steps.slice(0, 7), data)
    pq.write_table(steps.slice(7), data.with_name("file-001.parquet"))
    for row in rows[1:]:
        row["data/file_index"] = 1
    pq.write_table(pa.Table.from_pylist(rows[:2]), meta)
    pq.write_table(pa.Table.from_pylist(rows[2:]), meta.with_name("file-001.parquet"))
    index = index_of(folder)
    np.testing.assert_array_equal(index.actions, np.concatenate([episode.actions for episode in EPISODES]))
    recorded = np.concatenate([episode.images["observation.images.top"] for episode in EPISODES])
    for step in (20, 3, 7, 15):
        np.testing.assert_array_equal(index.reader.read(index.images[step, 0]), recorded[step])


def test_the_unnamed_index_of_a_task_table_is_read(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "door", EPISODES, as_images=True, task_column="__index_level_0__")
    assert index_of(folder).instructions == ("push", "pull")


@pytest.mark.parametrize(
    ("codec", "gop", "options"),
    [
        ("libx264", 12, {}),
        ("libx264", 250, {"bf": "3"}),
        ("libx264", 12, {"x264-params": "open-gop=1:bframes=3:scenecut=0"}),
        ("libx265", 10, {"x265-params": "open-gop=1:bframes=4:log-level=none"}),
        ("mpeg4", 8, {"bf": "2"}),
        ("libsvtav1", 2, {"preset": "12"}),
    ],
    ids=["h264", "h264 one key", "h264 open gop", "h265 open gop", "mpeg4", "av1"],
)
def test_random_access_is_bit_identical_to_decoding_from_the_start(tmp_path: Path, codec: str, gop: int, options: dict) -> None:
    images = np.stack([np.roll(smooth_image(5, 64, 96), 3 * step, axis=1) for step in range(40)])
    images[20:] = images[20:, ::-1]  # a cut
    encode_video(tmp_path / "a.mp4", images, codec, gop, **options)
    expected = decode_video(tmp_path / "a.mp4")
    assert len(expected) == len(read_frame_table(tmp_path / "a.mp4")) == 40
    reader = VideoReader(FrameTables(tmp_path))
    for number in [*np.random.default_rng(0).permutation(40), 39, 38, 0, 0, 1, 2, 5, 39]:
        np.testing.assert_array_equal(reader.read(tmp_path / "a.mp4", int(number)), expected[number])


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_hole_in_a_video_is_refused_and_not_patched(tmp_path: Path, codec: str) -> None:
    """Frames before the key frame of the hole and from the next one on are those of the whole file."""
    path, images = tmp_path / "a.mp4", np.stack([np.roll(smooth_image(5, 128, 192), 3 * step, axis=1) for step in range(36)])
    encode_video(path, images, codec, 12, **({"x265-params": "log-level=none"} if codec == "libx265" else {"x264-params": "scenecut=0"}))
    expected, table, content = decode_video(path), read_frame_table(path), bytearray(path.read_bytes())
    assert table.keys.expand().tolist() == [0, 12, 24]
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size and packet.pts is not None]
    first, length = places[14]  # in decoding order, a frame between two key frames
    content[first + length // 4 : first + length // 2] = bytes(length // 2 - length // 4)
    path.write_bytes(content)
    reader, refused = VideoReader(FrameTables(tmp_path)), set()
    for number in [*range(36), *np.random.default_rng(0).permutation(36).tolist()]:
        try:
            frame = reader.read(path, number)
        except ValueError:
            refused.add(number)
        else:
            np.testing.assert_array_equal(frame, expected[number])
    assert refused <= set(range(12, 24))
    with pytest.raises(ValueError, match=r"a.mp4: frame 18 cannot be decoded.*the file is damaged, download it again"):
        reader.read(path, 18)


def test_a_frame_costs_no_more_than_those_since_its_key_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.stack([np.roll(smooth_image(5, 64, 96), step, axis=1) for step in range(60)])
    encode_video(tmp_path / "a.mp4", images, gop=12, **{"x264-params": "bframes=2:scenecut=0"})
    reader, shown = VideoReader(FrameTables(tmp_path)), []
    decoded = video._decoded
    monkeypatch.setattr(video, "_decoded", lambda *where: (shown.append(item[0].pts) or item for item in decoded(*where)))
    for number in (40, 26, 59, 13):
        shown.clear()
        reader.read(tmp_path / "a.mp4", number)
        assert len(shown) == number % 12 + 1


def test_a_reader_goes_through_pickle_and_fork(tmp_path: Path) -> None:
    encode_video(tmp_path / "a.mp4", np.stack([smooth_image(step, 32, 32) for step in range(30)]))
    expected, reader = decode_video(tmp_path / "a.mp4"), VideoReader(FrameTables(tmp_path))
    reader.read(tmp_path / "a.mp4", 3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(tmp_path / "a.mp4", 20), expected[20])
    context = multiprocessing.get_context("fork")
    queues = [context.Queue() for _ in range(2)]

    def work(first: int, queue: multiprocessing.Queue) -> None:
        queue.put([reader.read(tmp_path / "a.mp4", number) for number in range(first, 30, 2)])

    for first, queue in enumerate(queues):
        context.Process(target=work, args=(first, queue), daemon=True).start()
    for first, queue in enumerate(queues):
        np.testing.assert_array_equal(np.stack(queue.get(timeout=20)), expected[first::2])


def test_a_decoder_goes_with_its_reader_and_not_in_a_forked_process(tmp_path: Path) -> None:
    """Left to the collector of cycles, it would be closed in whichever process that runs in."""
    encode_video(tmp_path / "a.mp4", np.stack([smooth_image(step, 32, 32) for step in range(9)]))
    reader = VideoReader(FrameTables(tmp_path))
    for number in (3, 7, 2):
        reader.read(tmp_path / "a.mp4", number)
    (decoder,) = map(weakref.ref, reader._decoders.values())
    gc.disable()
    try:
        del reader
        assert decoder() is None
    finally:
        gc.enable()


def test_more_videos_than_stay_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.mp4" for number in range(20)]
    for number, path in enumerate(paths):
        encode_video(path, np.full((3, 16, 16, 3), 10 * number, np.uint8), "mpeg4")
    reader = VideoReader(FrameTables(tmp_path))
    for _ in range(2):
        for number, path in enumerate(paths):
            assert abs(int(reader.read(path, 1).mean()) - 10 * number) <= 3
    assert len(reader._decoders) == 16


def test_near_names_of_a_wrong_camera_and_state(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    with pytest.raises(ValueError, match=r"no key 'tops'; correct image_obs_keys.*did you mean top"):
        index_of(folder, DatasetEntry(image_obs_keys={"primary": "tops"}))
    with pytest.raises(ValueError, match=r"no key 'sate'; correct state_obs_keys.*did you mean state"):
        index_of(folder, DatasetEntry(image_obs_keys={"primary": "top"}, state_obs_keys=("sate",)))


def test_damaged_sets_say_what_is_wrong(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES)
    change_info(folder, codebase_version="v1.6")
    with pytest.raises(ValueError, match=r"codebase_version 'v1.6'; v2.0, v2.1 and v3.0 are read"):
        index_of(folder)
    change_info(folder, codebase_version="v2.1")
    video = folder / "videos/chunk-000/observation.images.top/episode_000001.mp4"
    whole = video.read_bytes()
    encode_video(video, EPISODES[1].images["observation.images.top"][:4])
    with pytest.raises(ValueError, match=r"episode 1: 9 steps, but 4 frames in the video \(0.40 s\); step 8 is at 0.800 s.*0.500 s away"):
        index_of(folder)
    for content, found in (
        (whole[:-100], "has no frames"),
        (b"no video, but longer than a pointer" * 40, r"cannot be read as a video \(.*\)"),
    ):
        video.write_bytes(content)
        with pytest.raises(ValueError, match=rf"episode_000001.mp4 {found}: it is damaged or cut off, download it again"):
            index_of(folder)
    video.write_bytes(whole)
    (folder / "data/chunk-000/episode_000002.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"episode_000002.parquet cannot be read as parquet \(.*\): it is damaged"):
        index_of(folder)
    (folder / "meta" / "episodes.jsonl").unlink()
    with pytest.raises(ValueError, match=r"episodes.jsonl is absent"):
        index_of(folder)


def test_a_video_in_an_unknown_codec_is_named(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "door", EPISODES[:1])
    path = folder / "videos/chunk-000/observation.images.top/episode_000000.mp4"
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(FrameError, match=r"top/episode_000000.mp4 is in a codec that PyAV does not have here"):
        index_of(folder).frame(3, 0)


def test_a_file_of_texts_that_was_renamed_is_noticed(tmp_path: Path) -> None:
    folder = write_v2(tmp_path / "set", [make_episode(4, 1, "push")])
    before = LeRobotSource(folder, ENTRY).layout
    (folder / "meta" / "tasks.jsonl").rename(folder / "meta" / "tasks.jsonl.bak")
    assert LeRobotSource(folder, ENTRY).layout != before
