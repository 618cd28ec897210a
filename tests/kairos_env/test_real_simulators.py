import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from kairos_env import make_real
from kairos_env.real import UnknownEnvironmentError
from kairos_env.real.experts import expert_for

pytestmark = pytest.mark.render


def needs(package):
    missing = importlib.util.find_spec(package) is None
    reason = f'{package} is not installed: pip install "kairos-env[{package}]"'
    return pytest.mark.skipif(missing, reason=reason)


TASKS = [
    pytest.param("metaworld/reach-v3", marks=needs("metaworld")),
    pytest.param("metaworld/drawer-open-v3", marks=needs("metaworld")),
    pytest.param("robosuite/Lift", marks=needs("robosuite")),
    # The arena draws too: its dirt is laid out by a reset.
    pytest.param("robosuite/Wipe", marks=needs("robosuite")),
]


def roll(env, chunks):
    seen = []
    for chunk in chunks:
        frame, reward, terminated, truncated, info = env.step(chunk)
        ends = np.array([reward, terminated, truncated])
        seen += [frame, ends, info["state"], info["rewards"]]
        if terminated or truncated:
            seen.append(env.reset()[0])
    return seen


def assert_identical(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def chunks_for(env, count):
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(count)]


@pytest.mark.parametrize("name", TASKS[:3])
def test_gymnasium_finds_no_fault(name):
    env = make_real(name, chunk=2)
    check_env(env, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("name", TASKS[:3])
def test_a_snapshot_replays_200_actions_to_the_bit_also_elsewhere(name):
    env, fresh = make_real(name, chunk=20), make_real(name, chunk=20)
    env.reset(seed=3)
    chunks = chunks_for(env, 11)
    roll(env, chunks[:1])
    snapshot = env.snapshot()
    truth = roll(env, chunks[1:])
    env.restore(snapshot)
    assert_identical(truth, roll(env, chunks[1:]))
    fresh.restore(snapshot)
    assert_identical(truth, roll(fresh, chunks[1:]))
    env.close()
    fresh.close()


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_episode_also_after_others(name):
    env, fresh = make_real(name, chunk=10), make_real(name, chunk=10)
    chunks = chunks_for(env, 3)
    env.reset(seed=1)
    roll(env, chunks)
    first = [env.reset(seed=5)[0], *roll(env, chunks)]
    assert_identical(first, [fresh.reset(seed=5)[0], *roll(fresh, chunks)])
    assert not np.array_equal(first[0], env.reset(seed=6)[0])
    env.close()
    fresh.close()


@pytest.mark.parametrize(
    ("name", "actions"),
    [
        pytest.param("metaworld/reach-v3", 100, marks=needs("metaworld")),
        pytest.param("metaworld/drawer-open-v3", 200, marks=needs("metaworld")),
        pytest.param("robosuite/Lift", 60, marks=needs("robosuite")),
    ],
)
def test_the_expert_solves_it(name, actions):
    env = make_real(name, chunk=10, frames_per_chunk=1, frame_size=16)
    expert, rng = expert_for(name), np.random.default_rng(0)
    for seed in range(3):
        env.reset(seed=seed)
        solved = [env.follow(expert, rng)[4]["success"] for _ in range(actions // 10)]
        assert any(solved)
    env.close()


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        pytest.param("metaworld/reach-v2", "reach-v3", marks=needs("metaworld")),
        pytest.param("robosuite/lift", "Lift", marks=needs("robosuite")),
    ],
)
def test_an_unknown_task_gets_a_suggestion(name, suggestion):
    with pytest.raises(UnknownEnvironmentError, match=f"Did you mean.*'{suggestion}'"):
        make_real(name)


@pytest.mark.parametrize("name", [TASKS[0], TASKS[2]])
def test_success_can_end_the_episode(name):
    env = make_real(name, chunk=10, frame_size=16, terminate_on_success=True)
    expert, rng = expert_for(name), np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(30):
        _, _, terminated, truncated, info = env.follow(expert, rng)
        if terminated:
            break
    assert terminated
    assert info["success"]
    assert not truncated
    env.close()


@needs("metaworld")
def test_meta_world_shows_the_goal_in_its_place_from_the_first_frame_on():
    env = make_real("metaworld/reach-v3", frame_size=16)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        shown = env.low_level.unwrapped.data.site("goal").xpos
        np.testing.assert_allclose(shown, info["state"][-3:], atol=1e-6)
    env.close()


@needs("robosuite")
def test_robosuite_is_silent_and_leaves_the_environment_alone():
    code = """
import kairos_env, os
env = kairos_env.make_real("robosuite/Lift", frame_size=16)
env.reset(seed=0)
print(os.environ["MUJOCO_GL"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.split() == ["egl"]
    assert done.stderr == ""


@needs("robosuite")
def test_robosuite_arguments_that_would_break_promises_are_refused():
    with pytest.raises(TypeError, match="hard_reset"):
        make_real("robosuite/Lift", hard_reset=True)


@needs("robosuite")
def test_the_lift_expert_finds_what_it_asks_for_in_the_state():
    from kairos_env.real import robosuite

    env = make_real("robosuite/Lift", frame_size=16)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    inner = env.low_level.unwrapped
    told = inner._inner._get_observations()
    for place, name in (
        (robosuite.LIFT_HAND, "robot0_eef_pos"),
        (robosuite.LIFT_CUBE, "cube_pos"),
        (robosuite.LIFT_FINGERS, "robot0_gripper_qpos"),
        (robosuite.LIFT_FINGER_SPEEDS, "robot0_gripper_qvel"),
    ):
        np.testing.assert_allclose(inner.observation[place], told[name], err_msg=name)
    env.close()


@needs("robosuite")
def test_robosuite_pictures_are_upright():
    frame = make_real("robosuite/Lift").reset(seed=0)[0].astype(int)
    # White table below, grey wall and arm above.
    assert frame[48:].mean() > frame[:16].mean() + 40
