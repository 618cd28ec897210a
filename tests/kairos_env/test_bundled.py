"""Every world that ships keeps the contracts of Gymnasium and Stable-Baselines3."""

import functools
import json
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from kairos_env.catalogue import BUNDLED, bundled_worlds
from kairos_env.env import DreamEnv
from kairos_env.remake import remake_script
from kairos_env.vector_env import DreamVectorEnv
from kairos_env.view import OBSERVATIONS
from kairos_env.worlds import load_world, read_manifest

opened = functools.cache(load_world)
each = pytest.mark.parametrize("name", bundled_worlds())
every = pytest.mark.parametrize("observation", OBSERVATIONS)


def served(name, observation):
    """The world, where it can show this."""
    world = opened(name)
    if observation == "state" and world.manifest.model.heads.state_size == 0:
        pytest.skip(f"{name} was learned from pictures alone")
    return world


def test_there_are_worlds():
    assert bundled_worlds()


@each
@every
def test_gymnasiums_checker_is_silent(name, observation):
    env = gym.make("Kairos-v0", world=served(name, observation), observation=observation)
    check_env(env.unwrapped, skip_render_check=observation != "pixels")
    env.close()


@each
@every
def test_stable_baselines_checker_is_silent(name, observation):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(DreamEnv(world=served(name, observation), observation=observation))


@each
@every
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_vector_keeps_to_its_spaces_and_repeats_itself(name, observation, mode):
    world = served(name, observation)
    envs = DreamVectorEnv(2, world=world, observation=observation, horizon=2, autoreset_mode=mode)
    assert envs.observation_space == batch_space(envs.single_observation_space, 2)
    assert envs.metadata["autoreset_mode"] is mode
    runs = []
    for _ in range(2):
        envs.action_space.seed(0)
        moments = [envs.reset(seed=3)[0]]
        assert moments[0] in envs.observation_space
        for _ in range(3):
            observed, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
            assert observed in envs.observation_space
            assert rewards.dtype == np.float64
            assert terminated.dtype == truncated.dtype == np.bool_
            assert ("final_obs" in infos) == (
                mode is AutoresetMode.SAME_STEP and (terminated | truncated).any()
            )
            moments += [observed, rewards, infos["uncertainty"]]
        runs.append(moments)
    for a, b in zip(*runs, strict=True):
        a, b = (x if isinstance(x, dict) else {"": x} for x in (a, b))
        assert all(np.array_equal(a[key], b[key]) for key in a)


@each
@every
def test_stable_baselines_vector_keeps_to_its_spaces(name, observation):
    pytest.importorskip("stable_baselines3")
    from kairos_env.sb3 import DreamVecEnv

    envs = DreamVecEnv(served(name, observation), 2, observation=observation, seed=0, horizon=2)
    assert_members(envs, envs.reset())
    for _ in range(2):
        observed, rewards, dones, infos = envs.step(
            np.stack([envs.action_space.sample() for _ in range(2)])
        )
        assert_members(envs, observed)
        assert rewards.dtype == np.float32
    assert dones.all()
    for info in infos:
        assert info["terminal_observation"] in envs.observation_space
    envs.close()


def assert_members(envs, observed):
    for dream in range(envs.num_envs):
        one = {k: v[dream] for k, v in observed.items()} if isinstance(observed, dict) else None
        assert (observed[dream] if one is None else one) in envs.observation_space


@each
def test_a_process_repeats_what_another_dreamed(name):
    code = (
        "import gymnasium, json, kairos_env, torch; torch.set_num_threads(1);"
        f"env = gymnasium.make('Kairos-v0', world={name!r}); env.reset(seed=5);"
        "env.action_space.seed(5);"
        "out = [env.step(env.action_space.sample()) for _ in range(3)];"
        "print(json.dumps([out[-1][1], out[-1][4]['state'].tolist()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    reward, state = json.loads(done.stdout)
    env = DreamEnv(world=opened(name))
    env.reset(seed=5)
    env.action_space.seed(5)
    mine = [env.step(env.action_space.sample()) for _ in range(3)][-1]
    assert mine[1] == reward
    assert mine[4]["state"].tolist() == state


@each
def test_its_making_is_a_script_of_our_own_commands(name):
    script = remake_script(read_manifest(BUNDLED / name))
    commands = [line.split()[1] for line in script.splitlines() if line.startswith("kairos ")]
    assert commands[0] == "collect"
    assert set(commands) <= {"collect", "train", "worlds"}
    assert f"--out {name}/world" in script
