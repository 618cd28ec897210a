"""What we write: the LeRobot v3.0 layout, exact or of a known error; bad files are named."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from made_episodes import assert_same_episode, layout_of, make_episode, write_dataset

from kairos_env.agents.data import BrokenDataError, Episode, open_dataset
from kairos_env.agents.data.check import check_dataset, check_lerobot
from kairos_env.agents.data.staging import pack_arrays, stage, unpack_arrays
from kairos_env.agents.data.stats import describe, describe_frames, pool
from kairos_env.agents.data.video import VideoReader, encode, join, resize

LENGTHS = (9, 2, 17, 6, 12, 3, 30)


@pytest.fixture(scope="module")
def episodes():
    return [make_episode(length, seed=seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def root(tmp_path_factory, episodes):
    return write_dataset(tmp_path_factory.mktemp("data") / "made", episodes)


@pytest.fixture
def copy(root, tmp_path):
    """A dataset that a test may break."""
    return shutil.copytree(root, tmp_path / "copy")


def test_a_lossless_dataset_reads_back_equal(root, episodes):
    dataset = open_dataset(root)
    assert dataset.spec.layout == "kairos"
    assert dataset.lengths.tolist() == list(LENGTHS)
    for got, expected in zip(dataset, episodes, strict=True):
        assert_same_episode(got, expected)
        for name in ("text", "seed", "policy", "success"):
            assert getattr(got, name) == getattr(expected, name)
        assert got.start.keys() == expected.start.keys()
        np.testing.assert_array_equal(got.start["qpos"], expected.start["qpos"])
        assert str(got.start["name"]) == "made"


def test_any_part_of_an_episode_can_be_read(root, episodes):
    dataset = open_dataset(root)
    generator = np.random.default_rng(0)
    for _ in range(60):
        index = int(generator.integers(len(LENGTHS)))
        start, stop = np.sort(generator.integers(0, LENGTHS[index] + 1, 2))
        got = dataset.frames(index, int(start), int(stop))
        np.testing.assert_array_equal(got, episodes[index].frames[start:stop])


def test_the_small_codec_stays_within_its_error(tmp_path):
    episodes = [make_episode(40, seed=seed) for seed in range(2)]
    dataset = open_dataset(write_dataset(tmp_path / "small", episodes, codec="h264"))
    for got, expected in zip(dataset, episodes, strict=True):
        error = np.mean((got.frames.astype(float) - expected.frames) ** 2)
        assert 10 * np.log10(255**2 / error) > 40


def test_what_we_write_passes_the_strict_checker(root, tmp_path):
    assert check_lerobot(root) == []
    assert check_dataset(root) == []
    # Vectors of one are stored as plain values, an absent state not at all.
    thin = [make_episode(4, seed=s, per_frame=1, action_size=1, state_size=0) for s in range(2)]
    other = write_dataset(tmp_path / "thin", thin, codec="h264", fps=10.0)
    assert check_dataset(other) == []
    assert open_dataset(other).episode(1).actions.shape == (3, 1, 1)


def test_files_hold_the_promised_number_of_episodes(root):
    rows = [
        parquet.read_table(p).num_rows for p in sorted((root / "meta/episodes").rglob("*.parquet"))
    ]
    assert rows == [3, 3, 1]
    assert not (root / ".unfinished").exists()


def test_the_last_row_is_marked_and_holds_a_dummy_action(root, episodes):
    table = parquet.read_table(root / "data/chunk-000/file-000.parquet")
    last = np.array(table.column("is_last").to_pylist())
    assert np.flatnonzero(last).tolist() == [8, 10, 27]
    actions = np.array(table.column("action").to_pylist())
    assert not actions[last].any()
    assert actions[~last].all()
    assert table.column("next.terminated").to_pylist()[7] is True


def test_tasks_are_the_index_that_pandas_reads(root):
    table = parquet.read_table(root / "meta/tasks.parquet")
    described = json.loads(table.schema.metadata[b"pandas"])
    assert described["index_columns"] == ["__index_level_0__"]
    assert table.column("__index_level_0__").to_pylist() == ["task 0", "task 1"]


def test_statistics_are_those_of_all_rows_without_the_dummies(root, episodes):
    stats = json.loads((root / "meta/stats.json").read_text())
    actions = np.concatenate([e.actions.reshape(len(e) - 1, -1) for e in episodes]).astype(float)
    pixels = np.concatenate([e.frames for e in episodes]).reshape(-1, 3) / 255
    for name, values in (("action", actions), ("observation.images.main", pixels)):
        shape = np.shape(stats[name]["mean"])
        for key in ("mean", "std", "min", "max"):
            expected = getattr(values, key)(axis=0).reshape(shape)
            np.testing.assert_allclose(stats[name][key], expected, rtol=1e-6, atol=1e-9)
    assert stats["action"]["count"] == [len(actions)]


def test_pooled_statistics_equal_direct_ones():
    rows = np.random.default_rng(0).normal(3, 2, (50, 4))
    pooled = pool([describe(part) for part in np.split(rows, [7, 20, 21])])
    for key, value in describe(rows).items():
        np.testing.assert_allclose(pooled[key], value)
    frames = np.random.default_rng(1).integers(0, 256, (5, 6, 7, 3), np.uint8)
    np.testing.assert_allclose(
        describe_frames(frames)["std"][:, 0, 0], (frames / 255).std((0, 1, 2))
    )


def test_the_same_frames_give_the_same_bytes_and_joining_keeps_every_frame(tmp_path):
    clips = [make_episode(length, seed=length).frames for length in (1, 8, 9, 30)]
    videos = [encode(clip, fps=6.25, codec="lossless") for clip in clips]
    assert videos[3] == encode(clips[3], fps=6.25, codec="lossless")
    path = tmp_path / "joined.mp4"
    with path.open("wb") as file:
        assert join(videos, file, fps=6.25) == [0, 1, 9, 18]
    reader = VideoReader(path)
    assert (reader.num_frames, reader.fps) == (48, 6.25)
    np.testing.assert_array_equal(reader.read(0, 48), np.concatenate(clips))
    with pytest.raises(BrokenDataError, match="found no frame 48"):
        reader.read(40, 50)


def test_resizing_averages_over_areas():
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:, 4:] = 200
    np.testing.assert_allclose(resize([frame], (2, 2))[0, 0, :, 0], [0, 200], atol=1)
    assert resize([frame], (4, 6)).shape == (1, 4, 6, 3)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["frames", "actions", "rewards", "state"])
def test_an_episode_of_wrong_shape_or_type_is_refused(episodes, name):
    fields = {key: getattr(episodes[0], key) for key in Episode.__dataclass_fields__}
    with pytest.raises(ValueError, match=f"needs {name} as"):
        Episode(**{**fields, name: fields[name].astype(np.float64)})
    with pytest.raises(ValueError, match="needs"):
        Episode(**{**fields, name: fields[name][:-1]})


def test_an_episode_of_another_size_does_not_get_into_a_dataset(episodes, tmp_path):
    other = make_episode(5, action_size=2)
    with pytest.raises(ValueError, match=r"action size: this dataset holds \(2, 3\).*has \(2, 2\)"):
        stage(tmp_path, 0, other, layout_of(episodes[0]))
    assert not list(tmp_path.rglob("*.npz"))


def test_objects_are_never_pickled():
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        pack_arrays({"bad": np.array([{}], object)})
    kept = unpack_arrays(pack_arrays({"file": np.arange(3), "text": np.array("name")}))
    assert kept["file"].tolist() == [0, 1, 2]


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "broken", "says"),
    [
        ("videos/observation.images.main/chunk-000/file-001.mp4", [3, 4, 5], "truncated"),
        ("data/chunk-000/file-001.parquet", [3, 4, 5], "truncated"),
    ],
)
def test_a_truncated_file_is_named_with_its_episodes(copy, episodes, name, broken, says):
    truncate(copy / name)
    dataset = open_dataset(copy)
    for index, expected in enumerate(episodes):
        if index in broken:
            with pytest.raises(BrokenDataError, match=rf"episode {index}: .*{says}") as error:
                dataset.episode(index)
            assert name in str(error.value)
        else:
            assert_same_episode(dataset.episode(index), expected)
    problems = check_dataset(copy)
    for index in broken:
        assert any(f"episode {index}" in problem and name in problem for problem in problems)


def test_a_missing_file_is_named(copy):
    path = copy / "videos/observation.images.main/chunk-000/file-002.mp4"
    path.unlink()
    with pytest.raises(BrokenDataError, match=r"episode 6: .*file-002.mp4 is missing"):
        open_dataset(copy).frames(6)
    (copy / "meta/info.json").write_text("{")
    with pytest.raises(BrokenDataError, match=r"info.json is not valid JSON"):
        open_dataset(copy)


def test_actions_of_another_size_than_announced_are_named(copy):
    path = copy / "data/chunk-000/file-001.parquet"
    table = parquet.read_table(path)
    short = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(table.num_rows * 5, np.float32)), 5)
    position = table.column_names.index("action")
    parquet.write_table(table.set_column(position, "action", short), path)
    with pytest.raises(
        BrokenDataError, match=r"episode 4: .*file-001.*action has 5 numbers.*says 6"
    ):
        open_dataset(copy).table(4)
    assert any("action has 5 numbers" in problem for problem in check_dataset(copy))


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("index", 3, "index does not count"),
        ("frame_index", 3, "frame_index does not run"),
        ("timestamp", 3, "timestamps are not"),
    ],
)
def test_the_strict_checker_sees_wrong_numbering(copy, column, value, says):
    path = copy / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(path)
    values = table.column(column).to_numpy().copy()
    values[value] += 1
    position = table.column_names.index(column)
    changed = pa.array(values, table.schema.field(column).type)
    parquet.write_table(table.set_column(position, column, changed), path)
    assert any(says in problem for problem in check_lerobot(copy))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("fps", 12.4, "time is not in the video"),
        ("total_frames", 5, "total_frames is 5"),
        ("splits", {"train": "0:3"}, "do not cover"),
        ("codebase_version", "v2.1", "expected 'v3.0'"),
        ("total_tasks", 3, "task_index must run"),
    ],
)
def test_the_strict_checker_sees_a_wrong_index(copy, key, value, says):
    info = json.loads((copy / "meta/info.json").read_text())
    info[key] = value
    (copy / "meta/info.json").write_text(json.dumps(info))
    assert any(says in problem for problem in check_lerobot(copy))


def test_a_folder_of_something_else_is_refused_with_what_is_known(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"expected meta/info\.json"):
        open_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        open_dataset(tmp_path / "nothing")
