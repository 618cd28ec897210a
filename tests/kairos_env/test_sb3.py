import sys
import warnings

import numpy as np
import pytest
from small_worlds import chosen, ending, plain

from kairos_env.env import DreamEnv

sb3 = pytest.importorskip("stable_baselines3")
from stable_baselines3.common import vec_env as vec  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor  # noqa: E402

from kairos_env.sb3 import DreamVecEnv  # noqa: E402


def singles(count, **kwargs):
    return DummyVecEnv([lambda: DreamEnv(**kwargs) for _ in range(count)])


def close(mine, theirs):
    assert type(mine) is type(theirs)
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            close(mine[key], theirs[key])
    elif isinstance(mine, np.ndarray):
        limit = 1 if mine.dtype == np.uint8 else 1e-5
        assert np.abs(mine.astype(float) - theirs).max(initial=0) <= limit
    elif isinstance(mine, float):
        assert mine == pytest.approx(theirs, abs=1e-5)
    else:
        assert mine == theirs


@pytest.mark.parametrize("world", [ending, chosen])
def test_it_behaves_as_their_vector_of_single_dreams(world):
    kwargs = {"world": world(), "observation": "dict", "horizon": 3}
    mine, theirs = DreamVecEnv(num_envs=3, seed=5, **kwargs), singles(3, **kwargs)
    theirs.seed(5)
    close(mine.reset(), dict(theirs.reset()))
    mine.action_space.seed(0)
    ends = 0
    for _ in range(7):
        actions = np.stack([mine.action_space.sample() for _ in range(3)])
        got, want = mine.step(actions), theirs.step(actions)
        close(got[0], dict(want[0]))
        for a, b in zip(got[1:3], want[1:3], strict=True):
            assert a.dtype == b.dtype
            close(a, b)
        for a, b in zip(got[3], want[3], strict=True):
            close(a, b)
        ends += got[2].sum()
    assert ends >= 3
    mine.close()


@pytest.mark.parametrize(
    ("observation", "policy"),
    [("pixels", "CnnPolicy"), ("state", "MlpPolicy"), ("dict", "MultiInputPolicy")],
)
def test_ppo_trains_in_a_dream(observation, policy):
    envs = VecMonitor(DreamVecEnv(plain(), 2, observation=observation, seed=0, horizon=4))
    model = sb3.PPO(policy, envs, n_steps=8, batch_size=8, n_epochs=1, seed=0)
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    model.learn(16)
    assert any((v != before[k]).any() for k, v in model.policy.state_dict().items())
    rewards, lengths = evaluate_policy(model, envs, 2, return_episode_rewards=True)
    assert lengths == [4, 4]
    assert np.isfinite(rewards).all()


def test_the_same_seed_gives_the_same_training_data():
    runs = []
    for _ in range(2):
        envs = DreamVecEnv(plain(), 2, observation="latent", seed=3)
        runs.append([envs.reset(), envs.step(np.zeros((2, 4, 2), np.float32))[0]])
    assert np.array_equal(*runs)


def test_options_reach_the_reset_once():
    envs = DreamVecEnv(plain(), 2)
    envs.set_options({"start_index": 6})
    envs.reset()
    assert [info["start_index"] for info in envs.reset_infos] == [6, 6]
    envs.seed(0)
    envs.reset()
    assert [info["start_index"] for info in envs.reset_infos] != [6, 6]
    envs.set_options([{"start_index": 1}, {"start_index": 2}])
    with pytest.raises(ValueError, match="one dict"):
        envs.reset()


def test_it_renders_as_a_tiled_picture():
    envs = DreamVecEnv(plain(), 4, render_mode="rgb_array", seed=0)
    envs.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert envs.render().shape == (128, 128, 3)


def test_what_one_object_cannot_do_is_said():
    envs = DreamVecEnv(plain(), 2)
    assert envs.get_attr("horizon") == [75, 75]
    assert envs.has_attr("world")
    assert not envs.has_attr("no_such_thing")
    for call in (lambda: envs.set_attr("horizon", 3), lambda: envs.env_method("render")):
        with pytest.raises(AttributeError, match=r"on \.dreams"):
            call()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    monkeypatch.delitem(sys.modules, "kairos_env.sb3")
    with pytest.raises(ImportError, match=r'pip install "kairos-env\[sb3\]"'):
        import kairos_env.sb3  # noqa: F401


def test_their_wrappers_work(tmp_path):
    envs = DreamVecEnv(plain(), 2, seed=0, horizon=3, render_mode="rgb_array")
    stacked = vec.VecFrameStack(vec.VecTransposeImage(vec.VecCheckNan(VecMonitor(envs))), 4)
    assert stacked.reset().shape == (2, 12, 64, 64)
    actions = np.zeros((2, 4, 2), np.float32)
    for _ in range(3):
        _, _, dones, infos = stacked.step(actions)
    assert dones.all()
    assert [info["episode"]["l"] for info in infos] == [3, 3]
    assert infos[0]["terminal_observation"].shape == (12, 64, 64)
    scaled = vec.VecNormalize(DreamVecEnv(plain(), 2, observation="state", seed=0))
    scaled.reset()
    assert np.isfinite(scaled.step(actions)[0]).all()
    part = vec.VecExtractDictObs(DreamVecEnv(plain(), 2, observation="dict", seed=0), "latent")
    assert part.reset().shape == (2, *part.observation_space.shape)


def test_videos_are_recorded(tmp_path):
    pytest.importorskip("moviepy")
    envs = DreamVecEnv(plain(), 2, seed=0, render_mode="rgb_array")
    envs = vec.VecVideoRecorder(envs, str(tmp_path), lambda step: step == 0, video_length=3)
    envs.reset()
    for _ in range(4):
        envs.step(np.zeros((2, 4, 2), np.float32))
    envs.close()
    assert len(list(tmp_path.glob("*.mp4"))) == 1


def test_the_vector_says_what_it_is():
    envs = DreamVecEnv(plain(), 3, seed=0)
    assert envs.num_envs == 3
    assert envs.env_is_wrapped(VecMonitor) == [False] * 3
    assert envs.env_is_wrapped(VecMonitor, [0, 2]) == [False] * 2
    assert envs.get_attr("num_envs", 1) == [3]
    assert envs.get_images() == [None] * 3
    assert envs.seed(4) == [4, 5, 6]
    assert envs.unwrapped is envs
    with pytest.raises(AttributeError):
        envs.get_attr("no_such_thing")
