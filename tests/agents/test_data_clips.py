"""Caches and clips: rare moments are drawn, nothing crosses an episode, resuming is exact."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_episodes import make_episode, write_dataset

from kairos_env.agents.data import (
    BrokenDataError,
    ClipConfig,
    Clips,
    DatasetRows,
    DiskFullError,
    TrainingCache,
    open_cache,
    open_dataset,
)
from kairos_env.agents.data.clips import select_episodes

LENGTHS = (40, 7, 30, 90, 12, 60, 25, 33)


def long_episodes():
    """Half of them terminate; in the fourth something moves only around frame 70."""
    episodes = [make_episode(n, seed=seed) for seed, n in enumerate(LENGTHS)]
    for seed in (1, 3, 5, 7):
        episodes[seed] = replace(episodes[seed], terminated=np.zeros(LENGTHS[seed] - 1, bool))
    still = np.repeat(episodes[3].frames[:1], 90, axis=0)
    still[70:72] = 255
    episodes[3] = replace(episodes[3], frames=still)
    return episodes


@pytest.fixture(scope="module")
def episodes():
    return long_episodes()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, episodes):
    return open_dataset(write_dataset(tmp_path_factory.mktemp("clips") / "data", episodes))


@pytest.fixture(scope="module")
def cache(dataset):
    return open_cache(dataset)


def draw(rows, batches=30, **config):
    clips = Clips(rows, ClipConfig(**{"split": "all", "length": 8, **config}))
    return [next(clips) for _ in range(batches)]


def test_the_cache_holds_what_the_dataset_holds(dataset, cache, episodes):
    for index, episode in enumerate(episodes):
        rows = np.arange(cache.offsets[index], cache.offsets[index + 1])
        np.testing.assert_array_equal(cache.frames(rows), episode.frames)
        np.testing.assert_array_equal(cache.actions[rows[:-1]], episode.actions)
        np.testing.assert_array_equal(cache.terminated[rows[:-1]], episode.terminated)
        np.testing.assert_array_equal(cache.state[rows], episode.state)
        assert not cache.actions[rows[-1]].any()
        expected = np.abs(np.diff(episode.frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(cache.motion[rows[:-1]], expected, rtol=1e-5)
    assert cache.texts == [episode.text for episode in episodes]
    assert cache.spec == dataset.spec


def test_a_cache_is_made_once_and_again_when_the_data_change(dataset, episodes, tmp_path):
    made = []
    open_cache(dataset, tmp_path / "caches", on_episode=made.append)
    assert made == list(range(len(LENGTHS)))
    open_cache(dataset, tmp_path / "caches", on_episode=made.append)
    assert len(made) == len(LENGTHS)
    other = open_dataset(write_dataset(tmp_path / "other", episodes[:2]))
    assert len(open_cache(other, tmp_path / "caches").offsets) == 3
    small = open_dataset(dataset.path, frame_size=8)
    assert open_cache(small, tmp_path / "caches").frames(np.arange(2)).shape == (2, 8, 8, 3)


def test_clips_are_cut_from_one_episode_with_their_own_actions(cache, episodes):
    for batch in draw(cache, batch=16):
        frames, valid = batch["frames"], batch["valid"]
        assert frames.shape == (16, 8, 16, 24, 3)
        assert batch["actions"].shape == (16, 7, 2, 3)
        for b, (index, start) in enumerate(zip(batch["episode"], batch["start"], strict=True)):
            episode = episodes[index]
            stop = min(start + 8, len(episode))
            n = stop - start
            assert valid[b].tolist() == [True] * n + [False] * (8 - n)
            np.testing.assert_array_equal(frames[b, :n], episode.frames[start:stop])
            np.testing.assert_array_equal(frames[b, n:], episode.frames[[-1] * (8 - n)])
            np.testing.assert_array_equal(
                batch["actions"][b, : n - 1], episode.actions[start : stop - 1]
            )
            np.testing.assert_array_equal(
                batch["rewards"][b, : n - 1], episode.rewards[start : stop - 1]
            )
            np.testing.assert_array_equal(batch["state"][b, :n], episode.state[start:stop])
            for name in ("actions", "rewards", "terminated"):
                assert not batch[name][b, max(n - 1, 0) :].any()


def test_cache_and_video_give_the_same_clips(dataset, cache):
    config = {"batch": 8, "in_motion": 0.0, "batches": 5}
    pairs = zip(draw(cache, **config), draw(DatasetRows(dataset), **config), strict=True)
    for from_cache, from_video in pairs:
        assert from_cache.keys() == from_video.keys()
        for name in from_cache:
            np.testing.assert_array_equal(from_cache[name], from_video[name])


def test_without_a_cache_motion_is_not_known(dataset):
    with pytest.raises(ValueError, match="use open_cache"):
        Clips(DatasetRows(dataset), ClipConfig())


def share(batches, condition):
    return np.mean([condition(batch) for batch in batches])


def test_starts_ends_and_motion_are_drawn_as_asked(cache):
    none = {"at_start": 0.0, "at_end": 0.0, "in_motion": 0.0}

    def starts(batch):
        return (batch["start"] == 0).mean()

    def ends(batch):
        return batch["terminated"].any(axis=1).mean()

    even = draw(cache, **none)
    for name, measure in (("at_start", starts), ("at_end", ends)):
        drawn = draw(cache, **{**none, name: 0.5})
        assert share(drawn, measure) > 0.5
        assert share(drawn, measure) > 2 * share(even, measure)
    # In the fourth episode nothing moves but at frames 69 and 71.
    moving = draw(cache, **{**none, "in_motion": 1.0})
    start = np.concatenate([batch["start"][batch["episode"] == 3] for batch in moving])
    assert len(start)
    assert ((start <= 71) & (start + 7 > 69)).all()
    assert len(set(start.tolist())) > 3
    # An end is not always the last transition of its clip.
    only_ends = draw(cache, **{**none, "at_end": 1.0})
    last = np.concatenate([batch["terminated"].argmax(axis=1) for batch in only_ends])
    assert set(last.tolist()) >= {2, 3, 4, 5, 6}


def test_long_episodes_can_be_balanced_or_not(cache):
    none = {"at_start": 0.0, "at_end": 0.0, "in_motion": 0.0, "batches": 60}
    for power, expected in ((0.0, 1 / 8), (1.0, 90 / sum(LENGTHS))):
        drawn = draw(cache, length_power=power, **none)
        longest = share(drawn, lambda batch: (batch["episode"] == 3).mean())
        assert longest == pytest.approx(expected, abs=0.03)


def test_resuming_is_exact(cache):
    config = ClipConfig(batch=4, length=6, seed=5)
    clips = Clips(cache, config)
    for _ in range(3):
        next(clips)
    state = clips.state_dict()
    expected = [next(clips) for _ in range(2)]
    resumed = Clips(cache, config)
    resumed.load_state_dict(state)
    for batch in expected:
        again = next(resumed)
        for name in batch:
            np.testing.assert_array_equal(batch[name], again[name])
    with pytest.raises(ValueError, match="of seed 5"):
        Clips(cache, replace(config, seed=6)).load_state_dict(state)


def test_seeds_differ_and_the_global_generator_is_left_alone(cache):
    np.random.seed(0)  # noqa: NPY002  (the generator that must not be touched)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    a, b = draw(cache, batches=1, seed=0)[0], draw(cache, batches=1, seed=1)[0]
    assert not np.array_equal(a["start"], b["start"])
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_held_out_episodes_stay_held_out_when_episodes_are_added():
    names = [f"seed {n}" for n in range(3000)]
    config = ClipConfig(validation_share=0.1)
    held_out = select_episodes(names, replace(config, split="validation"))
    train = select_episodes(names, config)
    assert len(held_out) == pytest.approx(300, abs=60)
    assert sorted([*held_out, *train]) == list(range(3000))
    fewer = select_episodes(names[:1000], replace(config, split="validation"))
    assert fewer.tolist() == held_out[held_out < 1000].tolist()


def test_training_never_sees_a_held_out_episode(cache):
    config = ClipConfig(validation_share=0.4, length=8)
    seen = {
        split: {e for _ in range(20) for e in next(clips)["episode"].tolist()}
        for split in ("train", "validation")
        for clips in [Clips(cache, replace(config, split=split))]
    }
    assert seen["train"]
    assert seen["validation"]
    assert not seen["train"] & seen["validation"]


def test_an_empty_split_says_why(cache):
    with pytest.raises(ValueError, match="no episode is left for split 'validation'"):
        Clips(cache, ClipConfig(split="validation", validation_share=0.0))


def test_latents_of_any_shape_are_kept_beside_the_frames(cache):
    rows = int(cache.offsets[-1])
    latents = np.random.default_rng(0).normal(size=(rows, 4, 2, 3)).astype(np.float16)
    store = cache.add("latents-test", np.array_split(latents, 7), row_shape=(4, 2, 3))
    assert (store.shape, store.dtype) == (latents.shape, np.float16)
    assert cache.has("latents-test")
    assert TrainingCache(cache.folder).store("latents-test").shape == latents.shape
    clips = Clips(
        cache, ClipConfig(batch=3, length=5), stores={"latents": store}, with_frames=False
    )
    batch = next(clips)
    assert "frames" not in batch
    for b in range(3):
        first = cache.offsets[batch["episode"][b]] + batch["start"][b]
        np.testing.assert_array_equal(batch["latents"][b, :2], latents[first : first + 2])
    with pytest.raises(ValueError, match=f"expected {rows} rows, got 4"):
        cache.add("short", [latents[:4]], row_shape=(4, 2, 3))
    assert not cache.has("short")


def test_a_full_disk_leaves_no_half_cache(dataset, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *exception):
            return self.file.__exit__(*exception)

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    normal = Path.open

    def limited(self, mode="r", *arguments, **options):
        file = normal(self, mode, *arguments, **options)
        return Full(file) if "w" in mode else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", limited)
        with pytest.raises(DiskFullError, match=r"frames.npy could not be written"):
            open_cache(dataset, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(open_cache(dataset, tmp_path).texts) == len(LENGTHS)


def test_a_broken_cache_says_to_delete_it(dataset, tmp_path):
    folder = open_cache(dataset, tmp_path).folder
    (folder / "frames.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(BrokenDataError, match="delete the cache"):
        open_cache(dataset, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"length": 1}, "length >= 2"),
        ({"at_end": 0.9}, "at most 1 in all"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"overhang": -1}, "overhang"),
    ],
)
def test_impossible_settings_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        ClipConfig(**wrong)
