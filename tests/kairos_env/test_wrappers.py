import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from small_worlds import plain

from kairos_env.env import DreamEnv
from kairos_env.errors import OptionError
from kairos_env.vector_env import DreamVectorEnv
from kairos_env.wrappers import PessimisticDream

STILL = np.zeros((4, 2), np.float32)


def uncertainty():
    env = DreamEnv(world=plain())
    env.reset(seed=0)
    return env.step(STILL)[4]["uncertainty"]


def test_a_trusted_step_is_left_alone():
    env = PessimisticDream(DreamEnv(world=plain()), uncertainty() * 1.5, penalty=1.0)
    plain_env = DreamEnv(world=plain())
    for either in (env, plain_env):
        either.reset(seed=0)
    got, want = env.step(STILL), plain_env.step(STILL)
    assert got[1:4] == want[1:4]
    assert got[4]["too_uncertain"] is False


@pytest.mark.parametrize("truncate", [True, False])
def test_an_uncertain_step_costs_and_may_end_the_episode(truncate):
    env = DreamEnv(world=plain())
    env.reset(seed=0)
    reward = env.step(STILL)[1]
    wrapped = PessimisticDream(
        DreamEnv(world=plain()), uncertainty() / 2, penalty=0.25, truncate=truncate
    )
    wrapped.reset(seed=0)
    got = wrapped.step(STILL)
    assert got[1] == pytest.approx(reward - 0.25)
    assert got[3] is truncate
    assert got[4]["too_uncertain"] is True


def test_it_can_be_made_again_from_its_spec():
    env = PessimisticDream(gym.make("Kairos-v0", world="untrained"), 0.5, penalty=2.0)
    again = env.spec.make()
    assert isinstance(again, PessimisticDream)
    assert (again.threshold, again.penalty) == (0.5, 2.0)


def test_it_keeps_the_contract():
    env = PessimisticDream(DreamEnv(world=plain()), 100.0)
    with pytest.warns(UserWarning, match="different from the unwrapped"):
        check_env(env, skip_render_check=True)


def test_it_works_among_other_wrappers():
    env = gym.make("Kairos-v0", world=plain(), max_episode_steps=2)
    env = gym.wrappers.RecordEpisodeStatistics(PessimisticDream(env, uncertainty() / 2))
    env.reset(seed=0)
    assert env.step(STILL)[4]["episode"]["l"] == 1


def test_only_dreams_can_be_doubted():
    env = PessimisticDream(gym.make("CartPole-v1"), 1.0)
    env.reset(seed=0)
    with pytest.raises(KeyError, match="is for dreams"):
        env.step(0)
    for kwargs in ({"threshold": 0.0}, {"threshold": 1.0, "penalty": -1.0}):
        with pytest.raises(ValueError, match="must"):
            PessimisticDream(DreamEnv(world=plain()), **kwargs)


def test_a_vector_can_be_limited_too():
    envs = DreamVectorEnv(3, world=plain(), max_uncertainty=uncertainty() / 2)
    envs.reset(seed=0)
    assert envs.step(np.stack([STILL] * 3))[3].all()
    envs = DreamVectorEnv(3, world=plain(), max_uncertainty=uncertainty() * 10)
    envs.reset(seed=0)
    assert not envs.step(np.stack([STILL] * 3))[3].any()
    with pytest.raises(OptionError, match="max_uncertainty"):
        DreamVectorEnv(3, world=plain(), max_uncertainty=-1)
