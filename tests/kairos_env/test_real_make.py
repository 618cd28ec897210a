import importlib
import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from kairos_env import make_real
from kairos_env.real import UnknownEnvironmentError
from kairos_env.real.make import read_recipe


@pytest.fixture
def world(tmp_path):
    def write(environment):
        (tmp_path / "world.json").write_text(json.dumps({"environment": environment}))
        return tmp_path

    return write


@pytest.mark.render
@pytest.mark.parametrize("kind", [str, Path])
def test_a_world_folder_names_its_truth(world, kind):
    folder = world(
        {
            "id": "KairosPush-v0",
            "kwargs": {},
            "chunk": 6,
            "frames_per_chunk": 2,
            "frame_size": 32,
            "horizon": 9,
        }
    )
    env = make_real(kind(folder))
    assert env.name == "KairosPush-v0"
    assert (env.chunk, env.frames_per_chunk, env.horizon) == (6, 2, 9)
    assert env.observation_space.shape == (32, 32, 3)
    assert env.action_space.shape == (6, 2)
    assert env.fps == pytest.approx(25 / 3)


@pytest.mark.render
def test_the_untrained_world_and_a_loaded_one_name_their_truth():
    from kairos_env.worlds import load_world

    by_name, loaded = make_real("untrained"), make_real(load_world("untrained"))
    for env in (by_name, loaded):
        assert env.name == "KairosPush-v0"
        assert env.horizon == load_world("untrained").manifest.environment.horizon


@pytest.mark.render
def test_what_the_caller_says_wins_over_the_world(world):
    folder = world({"id": "HalfCheetah-v5", "kwargs": {"ctrl_cost_weight": 5.0}, "chunk": 6})
    env = make_real(folder, chunk=2)
    assert env.chunk == 2
    assert env.low_level.unwrapped._ctrl_cost_weight == 5.0
    assert make_real(folder, ctrl_cost_weight=1.0).low_level.unwrapped._ctrl_cost_weight == 1.0


@pytest.mark.render
def test_a_camera_travels_in_the_kwargs_of_a_world(world):
    folder = world({"id": "HalfCheetah-v5", "kwargs": {"camera": {"distance": 1.5}}})
    frame = make_real(folder).reset(seed=0)[0]
    same = make_real("HalfCheetah-v5", camera={"distance": 1.5}).reset(seed=0)[0]
    np.testing.assert_array_equal(frame, same)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"environment": {"id": 3}}',
        '{"environment": {"id": "A", "kwargs": []}}',
        '{"environment": {"id": "A", "chunk": "four"}}',
    ],
)
def test_a_foreign_world_json_is_refused_with_the_file(tmp_path, text):
    (tmp_path / "world.json").write_text(text)
    with pytest.raises(ValueError, match=r"world\.json: expected"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("KairosPsh-v0", "KairosPush-v0"),
        ("kairospush-v0", "KairosPush-v0"),
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("metawrld/reach-v3", "metaworld/reach-v3"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, suggestion):
    with pytest.raises(UnknownEnvironmentError, match=f"Did you mean.*'{suggestion}'"):
        make_real(name)


def test_a_folder_without_a_world_says_so(tmp_path):
    with pytest.raises(UnknownEnvironmentError, match=r"holds no world\.json"):
        make_real(tmp_path)


@pytest.mark.parametrize(
    ("package", "name"), [("metaworld", "metaworld/reach-v3"), ("robosuite", "robosuite/Lift")]
)
def test_a_missing_extra_is_named(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.env_dict", raising=False)
    with pytest.raises(ImportError, match=rf'pip install "kairos-env\[{package}\]"'):
        make_real(name)


def test_a_camera_needs_a_mujoco_environment():
    gymnasium.register("Plain-v0", entry_point=Plain)
    try:
        with pytest.raises(ValueError, match="no camera to choose"):
            make_real("Plain-v0", camera="top")
        with pytest.raises(TypeError, match="Box of floats or Discrete"):
            make_real("Plain-v0")
    finally:
        del gymnasium.registry["Plain-v0"]


class Plain(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.MultiBinary(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode


@pytest.mark.render
def test_vector_environments_of_gymnasium_accept_it():
    envs = gymnasium.vector.SyncVectorEnv([lambda: make_real("KairosReach-v0", chunk=2)] * 2)
    frames, infos = envs.reset(seed=3)
    assert frames.shape == (2, 64, 64, 3)
    assert infos["state"].shape == (2, 6)
    frames, rewards, *_ = envs.step(envs.action_space.sample())
    assert frames.dtype == np.uint8
    assert (rewards < 0).all()
    envs.close()


@pytest.mark.render
def test_the_spec_makes_the_same_environment_again():
    env = make_real("KairosReach-v0", chunk=2, frame_size=32, horizon=5)
    again = env.spec.make()
    assert (again.unwrapped.chunk, again.unwrapped.horizon) == (2, 5)
    np.testing.assert_array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])


def test_experts_and_tasks_of_the_extras_suggest_names():
    if importlib.util.find_spec("robosuite") is None:
        pytest.skip('robosuite is not installed: pip install "kairos-env[robosuite]"')
    with pytest.raises(UnknownEnvironmentError, match="Did you mean 'Lift'"):
        make_real("robosuite/Lif")
