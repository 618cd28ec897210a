import os
import subprocess
import sys
import warnings

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env
from small_worlds import chosen, ending, pairs, plain

from kairos_env.env import DreamEnv
from kairos_env.errors import ActionError, OptionError
from kairos_env.snapshot import DreamSnapshot
from kairos_env.view import OBSERVATIONS


def make(**kwargs):
    return gym.make("Kairos-v0", **{"world": plain(), **kwargs})


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in the tests' own process
    )
    return done.stdout.split()


# ------------------------------------------------------------------------ the contract


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_gymnasiums_checker_is_silent(observation):
    env = make(observation=observation)
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"world": chosen()},
        {"world": pairs(), "all_frames": True, "observation": "dict"},
        {"world": ending()},
        {"frames_per_chunk": 2, "render_mode": "rgb_array_list"},
    ],
    ids=["discrete", "two frames", "ending", "rendered"],
)
def test_gymnasiums_checker_is_silent_for_other_worlds(kwargs):
    env = make(**kwargs)
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_stable_baselines_checker_is_silent(observation):
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3.check_env(DreamEnv(world=plain(), observation=observation))


def test_importing_the_package_registers_it_and_loads_no_torch():
    code = (
        "import sys, kairos_env, gymnasium;"
        "print('torch' in sys.modules, 'mujoco' in sys.modules);"
        "print(gymnasium.spec('Kairos-v0').id)"
    )
    assert run(code) == ["False", "False", "Kairos-v0"]


def test_gymnasium_finds_it_by_module_name_without_an_import():
    code = (
        "import gymnasium; env = gymnasium.make('kairos_env:Kairos-v0'); env.reset(seed=0);"
        "print(env.step(env.action_space.sample())[1:4])"
    )
    assert len(run(code)) == 3


def test_an_untrained_world_says_so():
    env = make(world="untrained")
    assert env.unwrapped.metadata["trained"] is False
    assert "untrained" in str(env.unwrapped)
    assert env.unwrapped.world.manifest.provenance["trained"] is False


def test_a_step_tells_what_the_contract_promises():
    env = make(observation="dict", horizon=2)
    observed, info = env.reset(seed=3)
    assert np.array_equal(observed["pixels"], info["frames"][-1])
    assert info["time"] == 0.0
    observed, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert observed in env.observation_space
    assert isinstance(reward, float)
    assert terminated is False
    assert truncated is False
    assert info["frames"].shape == (1, 64, 64, 3)
    assert info["frames"].dtype == np.uint8
    assert reward == pytest.approx(float(info["rewards"].sum()))
    assert info["state"].shape == (13,)
    assert isinstance(info["uncertainty"], float)
    assert 0 <= info["end_probability"] <= 1
    assert info["time"] == pytest.approx(0.16)
    assert env.step(env.action_space.sample())[3] is True


def test_one_dream_equals_its_place_in_a_batch():
    env = make(observation="latent")
    envs = gym.make_vec("Kairos-v0", num_envs=3, world=plain(), observation="latent")
    one, many = env.reset(seed=11)[0], envs.reset(seed=10)[0]
    for actions in np.random.default_rng(0).uniform(-1, 1, (5, 3, 4, 2)).astype(np.float32):
        assert np.allclose(one, many[1], atol=1e-5)
        one, many = env.step(actions[1])[0], envs.step(actions)[0]


def test_global_random_numbers_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    env = make(world="untrained")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.reset()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_its_generator_is_the_one_that_the_dream_draws_from():
    env = make().unwrapped
    env.reset(seed=4)
    assert env.np_random_seed == 4
    twin = make().unwrapped
    twin.reset(seed=4)
    assert env.np_random.random() == twin.np_random.random()
    first = env.reset()[1]["start_index"], env.snapshot().memory.seed.item()
    assert first == (twin.reset()[1]["start_index"], twin.snapshot().memory.seed.item())


def test_stepping_needs_a_living_episode():
    env = DreamEnv(world=plain(), horizon=1)
    action = env.action_space.sample()
    with pytest.raises(ResetNeeded):
        env.step(action)
    with pytest.raises(ResetNeeded):
        env.snapshot()
    env.reset(seed=0)
    env.step(action)
    with pytest.raises(ResetNeeded, match="over"):
        env.step(action)
    env.reset()
    env.step(action)
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.reset()


GOOD = np.zeros((4, 2), np.float32)


@pytest.mark.parametrize(
    "action",
    [GOOD[:3], GOOD[None], GOOD * np.nan, GOOD + 1.1, "left", None, [[0, 1], [2]], {"a": 1}],
    ids=["short", "batched", "nan", "bounds", "text", "none", "ragged", "dict"],
)
def test_a_wrong_action_is_refused_and_the_dream_goes_on(action):
    env, clean = (DreamEnv(world=plain()) for _ in range(2))
    for either in (env, clean):
        either.reset(seed=0)
    with pytest.raises(ActionError):
        env.step(action)
    assert np.array_equal(env.step(GOOD)[0], clean.step(GOOD)[0])


def test_an_error_names_the_shape_that_was_expected():
    env = DreamEnv(world=plain())
    env.reset(seed=0)
    with pytest.raises(ActionError, match=r"shape \(4, 2\), got \(2,\)"):
        env.step(GOOD[0])


def test_render_modes():
    assert make().render is not None
    env = make(render_mode="rgb_array")
    observed, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), observed)
    env = make(render_mode="rgb_array_list", frames_per_chunk=2)
    env.reset(seed=0)
    env.render()
    info = env.step(env.action_space.sample())[4]
    assert np.array_equal(np.stack(env.render()), info["frames"])
    with pytest.raises(OptionError, match="render_mode"):
        DreamEnv(world=plain(), render_mode="ascii")


# ------------------------------------------------------------------------ snapshots


def test_a_snapshot_continues_exactly(tmp_path):
    env = DreamEnv(world=plain(), horizon=9)
    env.reset(seed=0)
    env.step(GOOD)
    snapshot = env.snapshot()
    snapshot.save(tmp_path / "dream.safetensors")
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 4, 2)).astype(np.float32)
    expected = [env.step(action) for action in actions]
    after = env.reset()[1]["start_index"], env.np_random.random()
    for source in (snapshot, tmp_path / "dream.safetensors"):
        other = DreamEnv(world=plain(), horizon=9)
        observed, info = other.restore(source)
        assert info["time"] == pytest.approx(0.16)
        assert np.array_equal(observed, snapshot.shown.frames[0, -1])
        for want, action in zip(expected, actions, strict=True):
            got = other.step(action)
            assert np.array_equal(got[0], want[0])
            assert got[1:4] == want[1:4]
        assert (other.reset()[1]["start_index"], other.np_random.random()) == after


def test_a_snapshot_is_not_changed_by_what_comes_after():
    env = DreamEnv(world=plain())
    env.reset(seed=0)
    snapshot = env.snapshot()
    before = {name: tensor.clone() for name, tensor in snapshot.memory.tensors().items()}
    env.step(GOOD)
    env.reset(options={"snapshot": snapshot})
    env.step(GOOD)
    for name, tensor in snapshot.memory.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_a_snapshot_holds_no_weights(tmp_path):
    env = DreamEnv(world=plain())
    env.reset(seed=0)
    env.snapshot().save(tmp_path / "dream.safetensors")
    weights = sum(p.nbytes for p in plain().model.parameters())
    assert env.snapshot().nbytes() < weights
    assert (tmp_path / "dream.safetensors").stat().st_size < weights
    assert len(DreamSnapshot.load(tmp_path / "dream.safetensors")) == 1


def test_a_fork_tries_many_actions_from_here():
    env = DreamEnv(world=plain(), observation="latent")
    env.reset(seed=0)
    env.step(GOOD)
    forks = env.fork(20)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4, 2)).astype(np.float32)
    futures = forks.step(actions)[0]
    assert np.allclose(futures[7], env.step(actions[7])[0], atol=1e-5)
    assert np.abs(futures - futures[0]).max() > 1e-4


# ------------------------------------------------------------------------ Gymnasium's wrappers


def test_wrappers_work(tmp_path):
    env = make(render_mode="rgb_array", max_episode_steps=3)
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = gym.wrappers.FrameStackObservation(env, 4)
    observed, _ = env.reset(seed=0)
    assert observed.shape == (4, 64, 64, 3)
    for _ in range(3):
        _, _, _, truncated, info = env.step(env.action_space.sample())
    assert truncated
    assert info["episode"]["l"] == 3


def recorded(env, folder):
    """Frames and seconds of the video of an episode of three steps."""
    env = gym.wrappers.RecordVideo(env, str(folder / "seen"), disable_logger=True)
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    env.close()
    [video] = folder.glob("seen/*.mp4")
    return imageio_ffmpeg.count_frames_and_secs(str(video))


def test_episodes_are_recorded(tmp_path):
    pytest.importorskip("moviepy")
    frames, seconds = recorded(make(render_mode="rgb_array", max_episode_steps=3), tmp_path)
    assert frames == 4
    assert seconds == pytest.approx(4 * 0.16, abs=0.02)


def test_a_person_can_watch(monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.warns(UserWarning, match="HumanRendering"):  # Gymnasium shows the frames itself
        env = make(render_mode="human")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()


def test_episodes_are_recorded_from_lists_of_frames(tmp_path):
    pytest.importorskip("moviepy")
    env = make(render_mode="rgb_array_list", frames_per_chunk=2, max_episode_steps=3)
    assert recorded(env, tmp_path)[0] == 1 + 3  # the last of each list


def test_a_time_limit_ends_an_episode():
    env = gym.wrappers.TimeLimit(DreamEnv(world=plain()), 2)
    env.reset(seed=0)
    assert [env.step(GOOD)[3] for _ in range(2)] == [False, True]


def test_text_is_refused_by_a_world_that_reads_none():
    env = make()
    with pytest.raises(OptionError, match="reads no text"):
        env.reset(options={"text": "push the block"})
