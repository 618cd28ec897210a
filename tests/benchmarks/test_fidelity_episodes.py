"""Held-out episodes: new seeds, whole histories, forks from one moment."""

import dataclasses

import numpy as np
import pytest
from made_truth import SIZE, Told, reach_truth, small_config

from kairos_env.agents.policies import SmoothPolicy
from kairos_env.benchmarks.fidelity import episodes
from kairos_env.benchmarks.fidelity.episodes import (
    HELD_OUT_FROM,
    EpisodesError,
    HeldOut,
    held_out_seed,
)
from kairos_env.benchmarks.fidelity.predictors import CopyLast, MeanFrame, Replay
from kairos_env.benchmarks.fidelity.traces import roll_out
from kairos_env.manifest import EnvironmentSpec
from kairos_env.spaces import decode_actions
from kairos_env.starts import Starts


def reach(**changes):
    values = {
        "id": "KairosReach-v0",
        "chunk": 4,
        "frame_size": SIZE,
        "horizon": 60,
        "fps": 6.25,
        "action_space": {"kind": "box", "low": [-1, -1], "high": [1, 1]},
        "reward": "",
        "termination": "",
    }
    return EnvironmentSpec(**{**values, **changes})


def record(config, environment=None, history=3):
    held_out = HeldOut(environment or reach(), history, config)
    try:
        return list(held_out)
    finally:
        held_out.close()


@pytest.fixture(scope="module")
def config():
    return small_config(episodes=8, horizon=14, horizons=(1, 14), batch=5)


@pytest.fixture(scope="module")
def groups(config):
    return record(config)


pytestmark = pytest.mark.render


def test_no_seed_is_one_that_collect_uses():
    from kairos_env.agents.collect import Recipe, Recorder

    recorder = Recorder(Recipe(env="KairosReach-v0", env_kwargs={"horizon": 1}))
    collected = [recorder.record(number).seed for number in range(5)]
    recorder.close()
    # collect draws below 2^31 by construction; held-out episodes are reset from there on
    assert max(collected) < HELD_OUT_FROM
    seeds = [held_out_seed(seed, number) for seed in range(3) for number in range(50)]
    assert min(seeds) >= HELD_OUT_FROM
    assert max(seeds) < 2**32  # the largest that numpy's old generators take
    assert len(set(seeds)) == len(seeds)


def test_the_episodes_are_what_the_simulator_does_with_their_actions(groups, config):
    held_out = HeldOut(reach(), 3, config)
    env, truth = held_out.env, groups[0].truth
    for i in (0, 1, 4):
        frame, _ = env.reset(seed=held_out_seed(config.seed, i))
        np.testing.assert_array_equal(frame, truth.history[i, 0])
        actions = truth.history_actions[i].reshape(2, 4, 2)
        for t, chunk in enumerate([*actions, *truth.chunks[i, : truth.length[i]]]):
            frame, reward, ended, _, info = env.step(decode_actions(env.action_space, chunk))
            if t >= 2:
                np.testing.assert_array_equal(frame, truth.frames[i, t - 2])
                np.testing.assert_array_equal(info["state"], truth.state[i, t - 2])
                assert reward == pytest.approx(float(truth.reward[i, t - 2]), abs=1e-6)
                assert ended == truth.ended[i, t - 2]
    held_out.close()


def test_half_of_the_episodes_are_kept_from_ending(groups, config):
    lasting = [
        (label, length, ended)
        for group in groups
        for label, length, ended in zip(
            group.labels, group.truth.length, group.truth.ended.any(1), strict=True
        )
        if label.endswith("lasting")
    ]
    assert len(lasting) == config.episodes / 2
    assert all(length == config.horizon and not ended for _, length, ended in lasting)
    ends = np.concatenate([group.truth.ended.any(1) for group in groups])
    assert ends.any()  # the others may end, and experts do


def test_an_episode_does_not_depend_on_its_group(groups, config):
    whole = record(dataclasses.replace(config, batch=8))
    assert [len(group.labels) for group in groups] == [5, 3]
    for name in ("history", "frames", "chunks", "length", "seeds"):
        parts = np.concatenate([getattr(group.truth, name) for group in groups])
        np.testing.assert_array_equal(parts, getattr(whole[0].truth, name))
    other = record(dataclasses.replace(config, episodes=2, seed=1))
    assert (other[0].truth.history != whole[0].truth.history[:2]).any()


def test_a_fork_is_one_past_with_two_futures(groups):
    for group in groups:
        went, other = group.forks
        np.testing.assert_array_equal(went.history, other.history)
        np.testing.assert_array_equal(went.history_actions, other.history_actions)
        np.testing.assert_array_equal(went.history_state, other.history_state)
        np.testing.assert_array_equal(went.seeds, other.seeds)
        assert (went.chunks[:, 0] != other.chunks[:, 0]).any((1, 2)).all()
        assert (went.state[:, 0, :2] != other.state[:, 0, :2]).any()
        np.testing.assert_array_equal(went.state[:, 0, 4:], other.state[:, 0, 4:])


def test_several_frames_a_step_are_cut_at_whole_steps():
    config = small_config(episodes=2, horizon=8, horizons=(8,), lasting=1.0, fork_steps=(2,))
    group = record(config, reach(frames_per_chunk=2), history=3)[0]
    truth = group.truth
    assert truth.history.shape[1] == 4
    assert truth.history_actions.shape[1:] == (3, 2, 2)
    assert truth.frames.shape[1] == 8
    assert truth.chunks.shape[1:] == (4, 4, 2)
    assert np.isnan(truth.state[:, 0]).all()  # told after each step only
    assert np.isfinite(truth.state[:, 1]).all()
    trace, _ = roll_out(Replay(), truth)
    assert not trace.squared_error.any()


def test_episodes_that_always_end_at_once_are_given_up(monkeypatch, config):
    over = SmoothPolicy.step

    def ends(self, env, frame):
        return dataclasses.replace(over(self, env, frame), terminated=True)

    monkeypatch.setattr(SmoothPolicy, "step", ends)
    monkeypatch.setattr(episodes, "TRIES", 1)
    with pytest.raises(EpisodesError, match="give other policies"):
        record(dataclasses.replace(config, policies=("smooth",)))


def test_only_running_episodes_are_asked_and_each_gets_its_own_actions():
    truth = reach_truth(4, 6, lengths=(6, 2, 4, 6))
    asked = []

    class Watched(Told):
        def step(self, memory, chunk):
            _, rows, frame = memory
            asked.append(rows.tolist())
            step = min(frame, 5)
            np.testing.assert_array_equal(chunk, truth.chunks[rows, step])
            return super().step(memory, chunk)

    roll_out(Watched(truth), truth, tolerance=1)
    assert asked[:3] == [[0, 1, 2, 3]] * 3  # one frame beyond the end, for ends that come late
    assert asked[3:5] == [[0, 2, 3]] * 2
    assert asked[5:] == [[0, 3]] * 2


def test_copy_stands_still_and_mean_has_seen_the_starts_alone():
    truth = reach_truth(3, 4)
    trace, shown = roll_out(CopyLast(1), truth, keep=2)
    np.testing.assert_array_equal(shown[:, 3], truth.history[:2, -1])
    np.testing.assert_array_equal(trace.state[:, 3], truth.history_state)
    frames = np.full((2, 2, SIZE, SIZE, 3), 10, np.uint8)
    frames[1] = 20
    state = np.array([[0, 0, 0, 2], [0, 0, 0, 4]], np.float32)
    starts = Starts(frames, np.zeros((2, 1, 1, 2), np.float32), state)
    trace, shown = roll_out(MeanFrame(starts, 1), truth, keep=1)
    assert (shown == 15).all()
    assert (trace.state[..., 3] == 3).all()
