import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import kairos_env  # noqa: F401  # registers the scenes
from kairos_env.real.experts import expert_for

SCENES = ["KairosReach-v0", "KairosPush-v0", "KairosOcclude-v0"]


def play(env, policy, seed, rng=None):
    """One episode: states, rewards, infos."""
    state, info = env.reset(seed=seed)
    states, rewards, infos = [state], [], [info]
    over = False
    while not over:
        state, reward, terminated, truncated, info = env.step(policy(env, rng))
        states.append(state)
        rewards.append(reward)
        infos.append(info)
        over = terminated or truncated
    return np.array(states), np.array(rewards), infos


def random_policy(env, rng):
    return rng.uniform(-1, 1, 2).astype(np.float32)


def pixels_of(frame, thing, tolerance=40):
    """Centre and area of what has an object's colour; None when nothing has."""
    rows, columns = np.nonzero(
        np.linalg.norm(frame - np.array(thing.rgb, float), axis=-1) < tolerance
    )
    return (np.array([columns.mean(), rows.mean()]), len(rows)) if len(rows) else None


@pytest.mark.render
@pytest.mark.parametrize("scene", SCENES)
def test_gymnasium_finds_no_fault(scene):
    check_env(gymnasium.make(scene, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize(
    ("scene", "floor"), [(SCENES[0], 0.98), (SCENES[1], 0.9), (SCENES[2], 0.95)]
)
def test_the_expert_solves_it(scene, floor):
    env, expert = gymnasium.make(scene), expert_for(scene)
    solved = [play(env, expert, seed)[2][-1]["success"] for seed in range(40)]
    assert np.mean(solved) >= floor


@pytest.mark.parametrize("scene", SCENES)
def test_the_same_seed_gives_the_same_episode(scene):
    episodes = [
        play(gymnasium.make(scene), random_policy, 5, np.random.default_rng(1)) for _ in range(2)
    ]
    np.testing.assert_array_equal(episodes[0][0], episodes[1][0])
    np.testing.assert_array_equal(episodes[0][1], episodes[1][1])
    other = play(gymnasium.make(scene), random_policy, 6, np.random.default_rng(1))
    assert not np.array_equal(episodes[0][0][0], other[0][0])


@pytest.mark.render
@pytest.mark.parametrize("frame_size", [64, 96])
@pytest.mark.parametrize("scene", SCENES)
def test_every_object_is_where_its_metadata_says(scene, frame_size):
    env = gymnasium.make(scene, render_mode="rgb_array", frame_size=frame_size)
    for seed in range(10):
        state, _ = env.reset(seed=seed)
        frame = env.render().astype(float)
        for thing in env.unwrapped.objects:
            centre, area = pixels_of(frame, thing)
            # The agent may start on the goal's rim; nothing else overlaps at the start.
            slack = 3.0 if thing.name == "goal" else 0.5
            assert np.linalg.norm(centre - thing.pixel(state, frame_size)) < slack, thing.name
            assert area > 0.5 * thing.area_px(frame_size), thing.name
    env.close()


@pytest.mark.render
@pytest.mark.parametrize("scene", SCENES)
def test_colours_are_exact_and_far_apart(scene):
    env = gymnasium.make(scene, render_mode="rgb_array")
    env.reset(seed=0)
    colours = {tuple(c) for c in env.render().reshape(-1, 3).tolist()}
    named = [thing.rgb for thing in env.unwrapped.objects]
    assert set(named) <= colours
    floor = (235, 232, 224)
    assert floor in colours
    palette = np.array([*named, floor], float)
    apart = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
    assert apart[~np.eye(len(palette), dtype=bool)].min() > 100
    env.close()


def test_reach_ends_when_the_agent_is_inside_the_goal_and_only_then():
    env = gymnasium.make("KairosReach-v0")
    states, rewards, infos = play(env, expert_for("KairosReach-v0"), 3)
    distance = np.linalg.norm(states[:, 0:2] - states[:, 4:6], axis=1)
    assert distance[-1] < 0.203 < distance[-2]
    np.testing.assert_allclose(rewards[:-1], -0.125 * distance[1:-1], atol=1e-6)
    assert rewards[-1] == pytest.approx(1 - 0.125 * distance[-1], abs=1e-6)
    assert [i["success"] for i in infos] == [False] * (len(infos) - 1) + [True]


def test_push_rewards_block_near_goal_and_agent_behind_block():
    env = gymnasium.make("KairosPush-v0")
    states, rewards, _ = play(env, expert_for("KairosPush-v0"), 3)
    agent, block, goal = states[1:, 0:2], states[1:, 2:4], states[1:, 11:13]
    distance = np.linalg.norm(block - goal, axis=1)
    behind = block + (block - goal) / distance[:, None] * (0.156 + 0.11)
    expected = -0.125 * (0.6 * distance + 0.4 * np.linalg.norm(agent - behind, axis=1))
    expected[-1] += 1
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    assert distance[-1] < 0.203 < distance[-2]


def test_the_block_moves_only_when_it_is_pushed():
    env = gymnasium.make("KairosPush-v0")
    states, _, _ = play(env, lambda env, rng: np.zeros(2, np.float32), 0)
    np.testing.assert_allclose(states[:, 2:4], states[:1, 2:4].repeat(len(states), 0), atol=1e-6)
    pushed, _, _ = play(env, expert_for("KairosPush-v0"), 0)
    assert np.linalg.norm(pushed[-1, 2:4] - pushed[0, 2:4]) > 0.2


def test_the_ball_hides_for_a_few_to_many_frames_and_coasts_unseen():
    env, expert = gymnasium.make("KairosOcclude-v0"), expert_for("KairosOcclude-v0")
    hidden_frames = []
    for seed in range(150):
        states, _, infos = play(env, expert, seed)
        speed = np.abs(states[:, 6:8])
        np.testing.assert_allclose(speed, speed[:1].repeat(len(speed), 0), atol=1e-5)
        assert np.abs(states[:, 3]).max() <= 0.9375 - 0.125 + 1e-6
        hidden = [i["hidden"] for i in infos]
        assert not any(hidden[:20])  # five frames in sight
        hidden_frames.append(sum(hidden) / 4)
    assert min(hidden_frames) < 4
    assert max(hidden_frames) > 20


@pytest.mark.render
def test_hidden_means_that_no_pixel_of_the_ball_is_seen():
    env = gymnasium.make("KairosOcclude-v0", render_mode="rgb_array")
    ball = env.unwrapped.objects[1]
    seen_and_hidden = set()
    env.reset(seed=1)
    over = False
    while not over:
        _, _, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        over = terminated or truncated
        if info["hidden"]:
            assert pixels_of(env.render().astype(float), ball, tolerance=100) is None
        seen_and_hidden.add(info["hidden"])
    assert seen_and_hidden == {True, False}
    env.close()


def test_a_missed_ball_ends_the_episode_with_minus_one():
    env = gymnasium.make("KairosOcclude-v0")
    outcomes = set()
    for seed in range(30):
        _, rewards, infos = play(env, lambda env, rng: np.zeros(2, np.float32), seed)
        caught = infos[-1]["success"]
        assert rewards[-1] > 0.5 if caught else rewards[-1] < -0.9
        outcomes.add(caught)
    assert outcomes == {True, False}


@pytest.mark.parametrize("action", [np.zeros(3), np.array([np.nan, 0.0]), np.zeros((2, 1))])
def test_a_bad_action_is_refused(action):
    env = gymnasium.make("KairosPush-v0", disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="2 finite numbers"):
        env.step(action)


def test_an_unknown_expert_is_named():
    with pytest.raises(KeyError, match="no scripted expert for 'HalfCheetah-v5'"):
        expert_for("HalfCheetah-v5")
