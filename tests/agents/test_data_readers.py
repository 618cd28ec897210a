"""Foreign layouts, made on the spot as their own tools write them, are read back equal."""

import json
import sys
from dataclasses import replace

import h5py
import imageio.v3 as iio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from made_episodes import SIZE, assert_same_episode, make_episode, write_dataset

from kairos_env.agents.data import BrokenDataError, join_datasets, open_dataset
from kairos_env.agents.data import hdf5 as hdf5_module
from kairos_env.agents.data.check import check_dataset
from kairos_env.agents.data.video import encode


def plain_episodes(lengths=(9, 14, 5)):
    """Episodes as others record them: one action a frame."""
    return [make_episode(n, seed=seed, per_frame=1) for seed, n in enumerate(lengths)]


def without_last_frame(episode):
    """What remains when the frame behind the last action was not recorded."""
    rewards = episode.rewards[:-1].copy()
    rewards[-1] += episode.rewards[-1]
    return replace(
        episode,
        frames=episode.frames[:-1],
        state=episode.state[:-1],
        actions=episode.actions[:-1],
        rewards=rewards,
        terminated=np.append(episode.terminated[:-2], episode.terminated[-1]),
        truncated=episode.truncated[:-1],
    )


# -- Minari ---------------------------------------------------------------------------------------


def write_minari(root, episodes, *, discrete=False, version="0.5.3"):
    folder = root / "data"
    folder.mkdir(parents=True)
    space = {"type": "Discrete", "n": 3} if discrete else {"type": "Box", "shape": [3]}
    about = {
        "action_space": json.dumps(space),
        "env_spec": json.dumps({"id": "Made-v0"}),
        "minari_version": version,
        "total_episodes": len(episodes),
    }
    with h5py.File(folder / "main_data.hdf5", "w", track_order=True) as file:
        for number, episode in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            group.attrs.update(id=number, seed=episode.seed, total_steps=len(episode) - 1)
            group["observations/pixels"] = episode.frames
            group["observations/vector"] = episode.state.astype(np.float64)
            actions = episode.actions[:, 0]
            group["actions"] = actions.argmax(-1) if discrete else actions
            group["rewards"] = episode.rewards.astype(np.float64)
            group["terminations"] = episode.terminated
            group["truncations"] = episode.truncated
        if version < "0.5":
            file.attrs.update(about)
    if version >= "0.5":
        (folder / "metadata.json").write_text(json.dumps(about))
    return root


def test_minari_is_read_back_equal(tmp_path):
    # more than ten, so that episode_10 must not come before episode_2
    episodes = plain_episodes(range(4, 16))
    dataset = open_dataset(write_minari(tmp_path, episodes), fps=10)
    assert (dataset.spec.layout, dataset.spec.fps, dataset.spec.frame_size) == ("minari", 10, SIZE)
    assert dataset.spec.provenance["env_spec"] == {"id": "Made-v0"}
    for got, expected in zip(dataset, episodes, strict=True):
        assert_same_episode(got, expected)
        assert got.seed == expected.seed


@pytest.mark.parametrize("version", ["0.4.3", "0.5.3"])
def test_discrete_minari_actions_become_one_hot(tmp_path, version):
    episodes = plain_episodes()
    dataset = open_dataset(write_minari(tmp_path, episodes, discrete=True, version=version))
    got = dataset.episode(1).actions[:, 0]
    np.testing.assert_array_equal(got, np.eye(3)[episodes[1].actions[:, 0].argmax(-1)])


def test_a_minari_dataset_without_pictures_says_so(tmp_path):
    root = write_minari(tmp_path, plain_episodes())
    with h5py.File(root / "data/main_data.hdf5", "a") as file:
        for group in file.values():
            del group["observations/pixels"]
    with pytest.raises(BrokenDataError, match="no pictures, only vector"):
        open_dataset(root)


# -- robomimic and LIBERO -------------------------------------------------------------------------


def write_robomimic(path, episodes, *, next_obs=True, libero=False):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        env = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}}
        data.attrs["env_args"] = json.dumps(env)
        if libero:
            data.attrs["bddl_file_name"] = "open_the_drawer.bddl"
            data.attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        for number, episode in enumerate(episodes):
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = len(episode) - 1
            frames = episode.frames[:, ::-1] if libero else episode.frames
            for name, part in (("obs", slice(None, -1)), ("next_obs", slice(1, None))):
                if name == "obs" or next_obs:
                    group[f"{name}/agentview_rgb"] = frames[part]
                    group[f"{name}/eye_in_hand_rgb"] = 255 - frames[part]
                    group[f"{name}/robot0_eef_pos"] = episode.state[part, :3]
                    group[f"{name}/gripper"] = episode.state[part, 3]
            group["actions"] = episode.actions[:, 0].astype(np.float64)
            group["rewards"] = episode.rewards
            group["dones"] = episode.terminated.astype(np.int64)
            group["states"] = np.zeros((len(episode) - 1, 40))
    return path


def state_order(episode):
    """Vectors are put side by side in alphabetical order of their names."""
    return replace(episode, state=episode.state[:, [3, 0, 1, 2]])


@pytest.mark.parametrize("libero", [False, True])
def test_robomimic_and_libero_are_read_back_equal(tmp_path, libero):
    episodes = plain_episodes()
    path = write_robomimic(tmp_path / "demo.hdf5", episodes, libero=libero)
    dataset = open_dataset(path)
    assert (dataset.spec.layout, dataset.spec.fps) == ("libero" if libero else "robomimic", 20)
    for got, expected in zip(dataset, episodes, strict=True):
        assert_same_episode(got, state_order(expected))
        assert got.text == ("open the drawer" if libero else "Lift")
    np.testing.assert_array_equal(dataset.frames(1, 3, 6), episodes[1].frames[3:6])
    np.testing.assert_array_equal(dataset.frames(1, 13, 14), episodes[1].frames[13:])


def test_robomimic_without_next_observations_keeps_the_end_and_its_reward(tmp_path):
    episodes = plain_episodes()
    dataset = open_dataset(write_robomimic(tmp_path / "demo.hdf5", episodes, next_obs=False))
    for got, expected in zip(dataset, episodes, strict=True):
        assert_same_episode(got, state_order(without_last_frame(expected)))


def test_cameras_are_chosen_by_name(tmp_path):
    episodes = plain_episodes()
    path = write_robomimic(tmp_path / "demo.hdf5", episodes)
    got = open_dataset(path, camera="eye_in_hand_rgb").frames(0)
    np.testing.assert_array_equal(got, 255 - episodes[0].frames)
    with pytest.raises(ValueError, match="no camera 'front'; it has agentview_rgb"):
        open_dataset(path, camera="front")


def test_hdf5_problems_name_the_file_and_the_episode(tmp_path, monkeypatch):
    path = write_robomimic(tmp_path / "demo.hdf5", plain_episodes())
    with h5py.File(path, "a") as file:
        group = file["data/demo_1"]
        short = group["actions"][:, :2]
        del group["actions"]
        group["actions"] = short
    problems = check_dataset(path)
    assert len(problems) == 1
    assert "demo.hdf5, episode 1 (demo_1): actions have 2 numbers" in problems[0]
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BrokenDataError, match=r"demo.hdf5 is not a readable HDF5.*truncated"):
        open_dataset(path)

    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"kairos-env\[study\]"):
        hdf5_module.Hdf5Dataset(path)


# -- LeRobot --------------------------------------------------------------------------------------


def write_lerobot_2(root, episodes, *, as_images=False):
    """One data file and one video an episode; no frame behind the last action."""
    camera = "observation.images.top"
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    videos = root / f"videos/chunk-000/{camera}"
    videos.mkdir(parents=True)
    lines = []
    for number, episode in enumerate(episodes):
        rows = len(episode) - 1
        columns = {
            "observation.state": list(episode.state[:-1]),
            "action": list(episode.actions[:, 0]),
            "next.reward": episode.rewards,
            "next.done": episode.terminated,
            "frame_index": np.arange(rows),
            "episode_index": np.full(rows, number),
        }
        if as_images:
            pictures = [iio.imwrite("<bytes>", f, extension=".png") for f in episode.frames[:-1]]
            columns[camera] = [{"bytes": picture, "path": "x.png"} for picture in pictures]
        else:
            video = encode(episode.frames[:-1], fps=10, codec="lossless")
            (videos / f"episode_{number:06d}.mp4").write_bytes(video)
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        parquet.write_table(pa.table(columns), path)
        lines.append({"episode_index": number, "tasks": [episode.text], "length": rows})
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    numbers = {"dtype": "float32", "names": None}
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "robot_type": "so100",
        "chunks_size": 1000,
        "total_episodes": len(episodes),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": {**numbers, "shape": [4]},
            "action": {**numbers, "shape": [3]},
            "next.reward": {**numbers, "shape": [1]},
            "next.done": {"dtype": "bool", "shape": [1], "names": None},
            camera: {
                "dtype": "image" if as_images else "video",
                "shape": [*SIZE, 3],
                "names": ["height", "width", "channel"],
            },
            "frame_index": {"dtype": "int64", "shape": [1], "names": None},
            "episode_index": {"dtype": "int64", "shape": [1], "names": None},
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.mark.parametrize("as_images", [False, True])
def test_lerobot_2_is_read_back_equal(tmp_path, as_images):
    episodes = plain_episodes()
    dataset = open_dataset(write_lerobot_2(tmp_path, episodes, as_images=as_images), camera="top")
    assert dataset.spec.layout == "lerobot v2.1"
    for got, expected in zip(dataset, episodes, strict=True):
        assert_same_episode(got, without_last_frame(expected))
        assert got.text == expected.text


def test_lerobot_3_of_others_is_read_without_our_entries(tmp_path):
    """Ours minus all that is ours: what remains is any v3.0 dataset with one action a row."""
    episodes = plain_episodes()
    root = write_dataset(tmp_path / "data", episodes)
    info = json.loads((root / "meta/info.json").read_text())
    del info["kairos"], info["features"]["is_last"], info["features"]["next.truncated"]
    (root / "meta/info.json").write_text(json.dumps(info))
    for path in (root / "data").rglob("*.parquet"):
        kept = parquet.read_table(path).drop_columns(["is_last", "next.truncated"])
        parquet.write_table(kept, path)
    for path in (root / "meta/episodes").rglob("*.parquet"):
        table = parquet.read_table(path)
        ours = [name for name in table.column_names if name.startswith("kairos/")]
        parquet.write_table(table.drop_columns(ours), path)
    dataset = open_dataset(root)
    assert dataset.spec.layout == "lerobot v3.0"
    for got, expected in zip(dataset, episodes, strict=True):
        # its dummy row looks like a last action whose frame was not recorded
        np.testing.assert_array_equal(got.frames, expected.frames)
        np.testing.assert_array_equal(got.actions, expected.actions)


def test_an_unknown_version_is_refused(tmp_path):
    root = write_lerobot_2(tmp_path, plain_episodes())
    text = (root / "meta/info.json").read_text()
    (root / "meta/info.json").write_text(text.replace("v2.1", "v9.0"))
    with pytest.raises(BrokenDataError, match=r"'v9\.0', expected v2\.x or"):
        open_dataset(root)


# -- folders of videos ----------------------------------------------------------------------------


def write_videos(root, episodes, actions="npy"):
    for number, episode in enumerate(episodes):
        path = root / f"drive_{number}.mp4"
        path.write_bytes(encode(episode.frames, fps=8, codec="lossless"))
        rows = episode.actions[:, 0]
        if actions == "npy":
            np.save(path.with_suffix(".npy"), rows)
        elif actions == "npz":
            np.savez(path.with_suffix(".npz"), actions=episode.actions)
        elif actions == "parquet":
            parquet.write_table(pa.table({"action": list(rows)}), path.with_suffix(".parquet"))
    (root / "drive_0.txt").write_text("turn left\n")
    return root


@pytest.mark.parametrize("actions", ["npy", "npz", "parquet"])
def test_videos_with_actions_beside_them(tmp_path, actions):
    episodes = plain_episodes()
    dataset = open_dataset(write_videos(tmp_path, episodes, actions))
    assert (dataset.spec.fps, dataset.spec.action_size) == (8, 3)
    for got, expected in zip(dataset, episodes, strict=True):
        np.testing.assert_array_equal(got.frames, expected.frames)
        np.testing.assert_array_equal(got.actions, expected.actions)
    assert dataset.table(0).text == "turn left"


def test_videos_without_actions_are_action_free(tmp_path):
    dataset = open_dataset(write_videos(tmp_path, plain_episodes(), actions=None))
    assert not dataset.spec.has_actions
    assert dataset.episode(1).actions.shape == (13, 1, 0)


def test_actions_that_do_not_fit_their_video_are_named(tmp_path):
    root = write_videos(tmp_path, plain_episodes())
    np.save(root / "drive_1.npy", np.zeros((4, 3)))
    with pytest.raises(BrokenDataError, match=r"episode 1: .*drive_1.mp4 has 14 frames.*found 4"):
        open_dataset(root).table(1)
    np.save(root / "drive_2.npy", np.zeros((4, 2)))
    with pytest.raises(BrokenDataError, match=r"episode 2: .*drive_2.mp4 are \(1, 2\) a frame"):
        open_dataset(root).table(2)


def test_videos_of_different_sizes_need_a_frame_size(tmp_path):
    root = write_videos(tmp_path, plain_episodes(), actions=None)
    (root / "wide.mp4").write_bytes(encode(np.zeros((3, 16, 32, 3), np.uint8), fps=8))
    with pytest.raises(ValueError, match="say which frame_size"):
        open_dataset(root)
    assert open_dataset(root, frame_size=8).frames(3).shape == (3, 8, 8, 3)


# -- views ----------------------------------------------------------------------------------------


def test_rows_are_grouped_into_chunks(tmp_path):
    # 8 transitions make 4 groups of 2; 13 make 6 and a half, kept because the episode terminates
    # in it; 4 and a half are cut off to 2 where it does not
    episodes = plain_episodes((9, 14, 6))
    episodes[2] = replace(episodes[2], terminated=np.zeros(5, bool))
    plain = open_dataset(write_dataset(tmp_path / "data", episodes))
    grouped = open_dataset(tmp_path / "data", group=2)
    assert grouped.lengths.tolist() == [5, 8, 3]
    assert (grouped.spec.actions_per_frame, grouped.spec.fps) == (2, plain.spec.fps / 2)
    for index, rows in enumerate(([0, 2, 4, 6, 8], [0, 2, 4, 6, 8, 10, 12, 13], [0, 2, 4])):
        got, whole = grouped.episode(index), episodes[index]
        np.testing.assert_array_equal(got.frames, whole.frames[rows])
        np.testing.assert_array_equal(got.state, whole.state[rows])
        np.testing.assert_array_equal(grouped.frames(index, 1, 3), whole.frames[rows[1:3]])
        np.testing.assert_array_equal(got.actions[0], whole.actions[:2, 0])
        assert got.rewards[1] == pytest.approx(whole.rewards[2:4].sum())
        assert got.terminated.tolist() == [False] * (len(rows) - 2) + [bool(whole.terminated.any())]
    np.testing.assert_array_equal(grouped.table(1).actions[-1], episodes[1].actions[[12, 12], 0])
    assert grouped.table(1).rewards[-1] == episodes[1].rewards[12]


def test_actions_are_scaled_by_their_range(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path / "data", plain_episodes()), scale_actions=True)
    every = np.concatenate([episode.actions.reshape(-1, 3) for episode in dataset])
    np.testing.assert_allclose([every.min(axis=0), every.max(axis=0)], [[-1] * 3, [1] * 3])
    bounds = dataset.spec.provenance["action_range"]
    back = (every + 1) / 2 * np.subtract(bounds["high"], bounds["low"]) + bounds["low"]
    original = np.concatenate([episode.actions.reshape(-1, 3) for episode in plain_episodes()])
    np.testing.assert_allclose(back, original, atol=1e-6)


def test_datasets_are_joined_when_they_fit(tmp_path):
    first, second = plain_episodes((4, 5)), plain_episodes((6,))
    write_dataset(tmp_path / "a", first)
    write_dataset(tmp_path / "b", second)
    joined = open_dataset([tmp_path / "a", tmp_path / "b"])
    assert joined.lengths.tolist() == [4, 5, 6]
    assert_same_episode(joined.episode(2), second[0])
    assert_same_episode(joined.episode(1), first[1])
    # without the snapshot no truth can be put where a dream of joined data begins
    for got, expected in zip(joined, (*first, *second), strict=True):
        np.testing.assert_array_equal(got.start["qpos"], expected.start["qpos"])
    other = write_dataset(tmp_path / "c", [make_episode(4, per_frame=2)])
    with pytest.raises(ValueError, match="actions_per_frame is 1 and 2"):
        join_datasets([joined, open_dataset(other)])


def test_frames_are_resized_on_reading(tmp_path):
    root = write_dataset(tmp_path / "data", plain_episodes())
    whole, small = open_dataset(root), open_dataset(root, frame_size=(8, 12))
    assert small.spec.frame_size == (8, 12)
    blocks = whole.frames(0).reshape(-1, 8, 2, 12, 2, 3).mean(axis=(2, 4))
    assert np.abs(small.frames(0) - blocks).mean() < 1
    write_robomimic(tmp_path / "demo.hdf5", plain_episodes())
    assert open_dataset(tmp_path / "demo.hdf5", frame_size=8).frames(1, 2, 5).shape == (3, 8, 8, 3)
