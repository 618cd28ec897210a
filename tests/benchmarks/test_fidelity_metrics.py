"""Figures with known answers: a perfect dream, a wrong one, one that loses an object, late ends."""

import dataclasses

import numpy as np
import pytest
from made_truth import (
    AGENT,
    BALL,
    GOAL,
    SIZE,
    Told,
    evidence,
    made_truth,
    picture,
    reach_truth,
    reordered,
    small_config,
)

from kairos_env.benchmarks.fidelity.measure import DREAM, summarise
from kairos_env.benchmarks.fidelity.statistics import (
    Bootstrap,
    correlation,
    correlation_sums,
    r2,
    r2_sums,
    ranks,
)

LENGTHS = (12, 12, 12, 12, 5, 7, 9, 12)


@pytest.fixture(scope="module")
def truth():
    return reach_truth(8, 12, lengths=LENGTHS)


@pytest.fixture(scope="module")
def other_future(truth):
    """The same moments with other actions: the agent walks elsewhere, the goal stays."""
    other = reach_truth(8, 12, seed=1, lengths=LENGTHS)
    state = truth.state.copy()
    state[..., :2] = other.state[..., :2]
    frames = np.array(
        [
            [
                picture([(GOAL, row[2:4]), (AGENT, row[0:2])])
                for row in np.where(np.isfinite(rows), rows, 0)
            ]
            for rows in state
        ]
    )
    return dataclasses.replace(truth, state=state, frames=frames)


def figures(truth, dream, **more):
    return summarise(evidence(truth, dream, **more), small_config(), scales=(1.0, np.ones(4)))


def test_a_perfect_dream_gets_perfect_figures(truth, other_future):
    forks = (truth, other_future), (Told(truth), Told(other_future))
    report = figures(truth, Told(truth), forks=forks)
    for horizon in report["predictors"][DREAM]["horizons"].values():
        assert horizon["psnr"].value == 100
        assert horizon["state"].value == 0
        for thing in horizon["objects"].values():
            assert thing["error_px"].value == 0
            assert thing["present"].value == 1
        assert horizon["objects"]["agent"]["to_state_px"].value < 0.2
    assert report["reward"][DREAM]["r2"].value == 1
    assert report["reward"][DREAM]["return_r2"].value == pytest.approx(1)
    for frames in ("6", "12"):
        ends = report["termination"][DREAM][frames]["strict"]
        assert ends["precision"].value == ends["recall"].value == 1
    for step in ("3", "6"):
        future = report["counterfactual"][DREAM][step]
        assert future["state"]["r2"].value == 1
        assert future["state"]["cosine"].value == pytest.approx(1)
        assert future["objects"]["agent"]["r2"].value == 1
        assert future["objects"]["goal"] is None  # it does not answer to actions


def test_another_episodes_future_fails_everywhere(truth, other_future):
    wrong = reordered(truth, np.roll(np.arange(8), 3))
    forks = (truth, other_future), (Told(other_future), Told(truth))
    report = figures(truth, Told(wrong), forks=forks)
    at = report["predictors"][DREAM]["horizons"]["6"]
    assert at["objects"]["agent"]["error_px"].value > 5
    assert at["psnr"].value < 25
    assert at["state"].value > 0.8
    assert report["reward"][DREAM]["r2"].value < 0
    assert report["termination"][DREAM]["12"]["recall"].value < 0.5
    # the two futures exchanged: every difference points the wrong way
    future = report["counterfactual"][DREAM]["6"]
    assert future["state"]["cosine"].value == pytest.approx(-1)
    assert future["objects"]["agent"]["r2"].value == pytest.approx(-3)


def test_frames_beyond_an_episodes_end_are_not_judged(truth):
    frames = truth.frames.copy()
    frames[~truth.valid] = 0
    report = figures(truth, Told(dataclasses.replace(truth, frames=frames)))
    curve = report["predictors"][DREAM]["curve"]
    assert set(curve["psnr"]) == {100}
    assert curve["n"] == [8] * 5 + [7] * 2 + [6] * 2 + [5] * 3
    assert report["predictors"][DREAM]["horizons"]["12"]["objects"]["agent"]["present"].n == 5


def test_a_lost_object_is_absent_and_counts_as_in_the_middle(truth):
    state = np.where(np.isfinite(truth.state), truth.state, 0)
    frames = np.array([[picture([(GOAL, row[2:4])]) for row in rows] for rows in state])
    report = figures(truth, Told(dataclasses.replace(truth, frames=frames)))
    agent = report["predictors"][DREAM]["horizons"]["6"]["objects"]["agent"]
    assert agent["present"].value == 0
    middle = np.full(2, (SIZE - 1) / 2)
    expected = np.linalg.norm(AGENT.pixel(state[:, 5], SIZE) - middle, axis=-1)[truth.valid[:, 5]]
    assert agent["error_px"].value == pytest.approx(expected.mean(), abs=0.2)
    assert agent["found_px"].value is None


def test_an_end_that_comes_a_frame_late_counts_within_the_tolerance_only(truth):
    late = np.zeros_like(truth.ended)
    late[:, 1:] = truth.ended[:, :-1]
    # the late frame lies beyond the episode, where a dream is still asked
    told = dataclasses.replace(truth, ended=late)
    report = figures(truth, Told(told))["termination"][DREAM]["12"]
    assert report["recall"].value == report["precision"].value == 1
    assert report["strict"]["recall"].value == report["strict"]["precision"].value == 0


def test_false_alarms_cost_precision_and_missed_ends_cost_recall(truth):
    ended = truth.ended.copy()
    ended[0, 3] = True  # an episode that goes on
    ended[4] = False  # an episode that ends at 5
    report = figures(truth, Told(dataclasses.replace(truth, ended=ended)))["termination"][DREAM]
    assert report["12"]["precision"].value == pytest.approx(2 / 3)
    assert report["12"]["recall"].value == pytest.approx(2 / 3)
    assert report["6"]["precision"].value == 0
    assert report["6"]["recall"].value == 0


def test_an_honest_uncertainty_is_told_from_a_made_up_one():
    truth = reach_truth(30, 12, seed=2)
    random = np.random.default_rng(0)
    spread = np.exp(random.normal(-1, 0.8, (30, 12))).astype(np.float32)
    noisy = dataclasses.replace(
        truth,
        state=truth.state + spread[..., None] * random.normal(size=(30, 12, 4)).astype(np.float32),
        reward=truth.reward + spread * random.normal(size=(30, 12)).astype(np.float32),
    )
    honest = figures(truth, Told(noisy, uncertainty=spread))["uncertainty"]
    assert honest["spearman"].value > 0.75
    assert honest["expected"].value == pytest.approx(honest["actual"].value, rel=0.1)
    assert honest["calibration_error"] < 0.15
    actual = [row["actual"] for row in honest["table"]]
    assert actual[-1] > 4 * actual[0]
    shuffled = random.permutation(spread.reshape(-1)).reshape(spread.shape)
    guessed = figures(truth, Told(noisy, uncertainty=shuffled))["uncertainty"]
    assert abs(guessed["spearman"].value) < 0.2
    assert guessed["calibration_error"] > 2 * honest["calibration_error"]


def ball_truth(*, delay=0, episodes=3):
    """A ball crosses under a roof; it is delayed there by `delay` frames (-1: it never returns)."""
    frames = 16
    x = -0.7 + 0.1 * np.arange(frames + 2)
    right = 0.2  # wholly hidden for about four frames
    state = np.zeros((episodes, frames + 2, 2), np.float32)
    state[..., 0], state[..., 1] = x, np.linspace(-0.5, 0.5, episodes)[:, None]
    under = x > -0.2
    if delay > 0:
        state[:, under, 0] = np.maximum(x[under] - 0.1 * delay, -0.2)
    if delay < 0:
        state[:, under, 0] = 0.0
    roof = (-0.5, right)
    pictures = np.array([[picture([(BALL, row)], roof=roof) for row in rows] for rows in state])
    lengths = np.full(episodes, frames)
    return made_truth(pictures, state, lengths, np.random.default_rng(0))


def only_gap(truth, dream):
    report = summarise(evidence(truth, dream, objects=(BALL,)), small_config(horizon=16))
    ball = report["reappearance"][DREAM]["ball"]
    gaps = [gap for gap in ball["gaps"] if gap["n"]]
    assert len(gaps) == 1
    return gaps[0], ball["shown_while_hidden"].value


def test_what_comes_out_from_under_a_roof_is_compared_in_place_and_time():
    truth = ball_truth()
    gap, shown = only_gap(truth, Told(truth))
    assert gap["n"] == 3
    assert (gap["from"], gap["to"]) == (3, 5)
    assert gap["error_px"].value == gap["late_frames"].value == shown == 0
    assert gap["present"].value == gap["shown_again"].value == 1

    gap, _ = only_gap(truth, Told(ball_truth(delay=2)))
    assert gap["late_frames"].value == 2
    assert gap["present"].value == 0

    gap, _ = only_gap(truth, Told(ball_truth(delay=-1)))
    assert gap["shown_again"].value == 0
    assert gap["late_frames"].value is None
    assert gap["error_px"].value > 3


def test_a_ball_that_is_never_hidden_gives_itself_away():
    truth = ball_truth()
    state = np.concatenate([np.zeros((3, 2, 2), np.float32), truth.state], 1)
    open_air = np.array([[picture([(BALL, row)]) for row in rows] for rows in state])
    _, shown = only_gap(truth, Told(dataclasses.replace(truth, frames=open_air[:, 2:])))
    assert shown == 1


def test_wins_are_counted_against_every_baseline(truth):
    found = evidence(truth, Told(truth))
    wrong = evidence(truth, Told(reordered(truth, np.roll(np.arange(8), 1))))
    traces = {**found.traces, "copy": wrong.traces[DREAM]}
    config = small_config()
    wins = summarise(dataclasses.replace(found, traces=traces), config)["dream_is_better"]["copy"]
    nothing = {"frames": 0, "surely": 0, "surely_not": 0, "of": 0}
    assert wins["psnr"] == nothing  # eight episodes are too few to count
    many = reach_truth(12, 6)
    found = evidence(many, Told(many))
    wrong = evidence(many, Told(reordered(many, np.roll(np.arange(12), 1))))
    traces = {**found.traces, "copy": wrong.traces[DREAM]}
    config = small_config(horizon=6)
    wins = summarise(dataclasses.replace(found, traces=traces), config)["dream_is_better"]["copy"]
    everywhere = {"frames": 6, "surely": 6, "surely_not": 0, "of": 6}
    assert wins["agent"] == wins["psnr"] == wins["state"] == everywhere


def test_a_win_is_sure_only_where_chance_cannot_explain_it():
    """Two that are each right in half of the episodes are equals; both are worse than the truth."""
    many = reach_truth(12, 6)
    config = small_config(horizon=6)
    right, wrong, even = np.arange(12), np.roll(np.arange(12), 1), np.arange(12) % 2 == 0
    found = evidence(many, Told(reordered(many, np.where(even, right, wrong))))
    rival = evidence(many, Told(reordered(many, np.where(even, wrong, right))))
    perfect = evidence(many, Told(many))
    traces = {**found.traces, "copy": rival.traces[DREAM], "mean": perfect.traces[DREAM]}
    better = summarise(dataclasses.replace(found, traces=traces), config)["dream_is_better"]
    for what in ("psnr", "agent"):
        assert better["copy"][what]["surely"] == better["copy"][what]["surely_not"] == 0
        assert better["mean"][what] == {"frames": 0, "surely": 0, "surely_not": 6, "of": 6}


def test_statistics_agree_with_their_textbook_forms():
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 7))
    y = 0.5 * x + random.normal(size=(20, 7))
    gone = random.random((20, 7)) < 0.2
    x[gone] = np.nan
    flat = x[~gone], y[~gone]
    value = correlation(correlation_sums(x, y).sum(0))
    assert value == pytest.approx(np.corrcoef(*flat)[0, 1])
    explained = 1 - np.square(flat[1] - flat[0]).sum() / np.square(flat[1] - flat[1].mean()).sum()
    assert r2(r2_sums(np.where(gone, np.nan, y), x).sum(0)) == pytest.approx(explained)
    np.testing.assert_allclose(ranks(np.array([3.0, np.nan, 1.0, 3.0])), [0.75, np.nan, 0, 0.75])


def test_intervals_are_those_of_a_mean_over_episodes():
    random = np.random.default_rng(1)
    inside = 0
    for trial in range(100):
        # frames of an episode are alike: treating them as independent would be far too sure
        values = random.normal(5, 1, (40, 1)).repeat(30, 1)
        estimate = Bootstrap(40, resamples=300, seed=trial).mean(values)
        inside += estimate.low < 5 < estimate.high
        assert estimate.n == 1200
    assert 85 <= inside <= 99


def test_nothing_to_measure_is_said_and_not_a_number():
    estimate = Bootstrap(3, resamples=10, seed=0).mean(np.full((3, 2), np.nan))
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (None, None, None, 0)


@pytest.mark.parametrize(
    "wrong",
    [{"episodes": 0}, {"lasting": 1.5}, {"horizons": (200,)}, {"fork_steps": ()}, {"seed": -1}],
)
def test_a_config_that_cannot_be_measured_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        small_config(**wrong)


def test_what_the_numbers_say_of_a_hidden_thing_is_compared_by_how_long_it_is_hidden():
    truth = ball_truth()
    wrong = truth.state + np.array([0.0, 0.25], np.float32)  # of a picture two units wide
    for state, pixels in ((truth.state, 0.0), (wrong, SIZE / 8)):
        dream = Told(dataclasses.replace(truth, state=state))
        report = summarise(evidence(truth, dream, objects=(BALL,)), small_config(horizon=16))
        said = report["reappearance"][DREAM]["ball"]["said_while_hidden"]
        said = [span for span in said if span["frames"]]
        assert [(span["from"], span["frames"]) for span in said] == [(1, 6), (3, 6)]
        assert [span["error_px"].value for span in said] == pytest.approx([pixels] * 2)
