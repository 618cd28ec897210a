"""The guard stops what gets better in the dream alone, and nothing else."""

import numpy as np
import pytest

from kairos_env.agents.imagine.guard import Guard, Reading
from kairos_env.agents.imagine.statistics import interquartile_mean, iqm_interval, price

NOISE = np.random.default_rng(0).normal(0, 1.0, 20)  # how much easier one start is than another


def reading(step, dreamed, real, *, uncertainty=1.0, wobble=0.0):
    own = np.random.default_rng(step).normal(0, wobble, 20)
    return Reading(step, dreamed + NOISE + own, real + NOISE - own, uncertainty)


def judged(readings, **options):
    guard = Guard(floor=-20.0, **options)
    return [guard.judge(r) for r in readings]


def test_a_policy_that_gets_better_in_both_is_left_alone():
    verdicts = judged([reading(i, -20 + 2 * i, -20 + 2 * i) for i in range(9)])
    assert all(v.best and not v.stop for v in verdicts)


def test_a_real_fall_that_the_dream_does_not_show_stops_before_a_tenth_is_lost():
    real = [-20, -10, -2, -2.3, -2.9, -3.4]
    readings = [reading(i, max(r, -2) + 0.1 * i, r) for i, r in enumerate(real)]
    verdicts = judged(readings)
    [stop] = [i for i, v in enumerate(verdicts) if v.stop][:1]
    assert real[2] - real[stop] < 0.1 * (real[2] + 20)
    assert "The policy of step 2 is kept" in verdicts[stop].reason
    assert "8 % of the real gain lost" in verdicts[stop].reason


def test_a_dream_that_rises_alone_is_stopped_after_some_patience():
    readings = [reading(i, -10 + i, -10 - 0.01 * (i > 0)) for i in range(6)]
    assert [v.stop for v in judged(readings, patience=3)] == [False, False, False, True, True, True]


def test_a_policy_that_learns_in_the_dream_alone_is_stopped_though_chance_lifts_the_real_return():
    readings = [reading(i, -10 + 3 * i, -12 + 0.05 * i) for i in range(5)]
    verdicts = judged(readings)
    assert [v.stop for v in verdicts] == [False, False, False, True, True]
    assert verdicts[3].best


def test_a_world_that_promises_twice_what_is_real_is_not_practised_in_for_long():
    readings = [reading(i, -10 + 2 * i, -16 + i) for i in range(4)]
    assert [v.stop for v in judged(readings)] == [False, False, True, True]


def test_dream_and_reality_that_part_where_most_of_the_promise_is_empty_stop_at_once() -> None:
    """As a poor world of reach was seen to do: reality falls slowly, within the noise."""
    real, dreamed = [-18.1, -15.8, -16.4, -17.4], [-12.4, -9.0, -4.4, -4.3]
    readings = [
        reading(i, d, r, wobble=1.0) for i, (d, r) in enumerate(zip(dreamed, real, strict=True))
    ]
    verdicts = judged(readings)
    assert [v.stop for v in verdicts[:3]] == [False, False, True]
    assert "The policy of step 1 is kept" in verdicts[2].reason


def test_the_policy_learns_at_full_pace_only_while_both_returns_rise():
    both, mostly_dreamed, none = reading(0, -15, -15), reading(1, -9, -13), reading(2, -9, -13)
    within_noise, again = reading(3, -8.7, -12.7, wobble=3.0), reading(4, -7, -10)
    verdicts = judged([both, mostly_dreamed, none, within_noise, again], patience=9)
    assert [v.pace for v in verdicts] == [1.0, 0.25, 0.25, 0.25, 1.0]


def test_a_policy_that_is_worse_in_reality_alone_is_given_up_for_the_best():
    best, worse_in_both, better = (reading(i, r, r) for i, r in ((0, -10), (1, -11), (5, -9)))
    worse = [reading(i, -10, -10.4) for i in (2, 3, 4)]
    verdicts = judged([best, worse_in_both, *worse, better], patience=9)
    assert [v.back for v in verdicts] == [False, False, True, True, True, False]
    assert [v.pace for v in verdicts] == [1.0, 0.25, 0.25, 0.25**2, 0.25**3, 1.0]


def test_a_world_that_is_less_sure_shortens_the_patience():
    readings = [reading(i, -10 + i, -10 - 0.01 * i, uncertainty=1 + i) for i in range(6)]
    verdicts = judged(readings, patience=4)
    assert [v.stop for v in verdicts][:3] == [False, False, True]
    assert "less sure" in verdicts[2].reason


def test_a_fall_in_both_is_the_algorithms_affair():
    readings = [reading(i, r, r) for i, r in enumerate([-20, -2, -5, -8, -5, -2.1])]
    assert not any(v.stop for v in judged(readings))


def test_a_single_real_fall_is_given_up_for_the_best_policy():
    real = [-20, -10, -2, -6, -1.9, -6, -6]
    verdicts = judged([reading(i, max(r, -2) + 0.1 * i, r) for i, r in enumerate(real)])
    assert [v.back for v in verdicts[2:5]] == [False, True, False]
    assert [v.stop for v in verdicts] == [False] * 6 + [True]


def test_a_difference_within_the_noise_of_an_examination_is_none():
    readings = [reading(0, -2, -2)] + [reading(i, -2, -3, wobble=6.0) for i in range(1, 4)]
    assert not any(v.stop for v in judged(readings))


def test_a_reached_plateau_is_no_exploitation():
    readings = [reading(i, -1.40 + 0.01 * (i % 2), -1.50 - 0.01 * i) for i in range(8)]
    assert not any(v.stop for v in judged(readings))


def test_an_examination_that_was_not_dreamed_cannot_be_judged():
    with pytest.raises(AssertionError, match="dreamed too"):
        judged([Reading(i, None, NOISE - i, None) for i in range(2)])


def test_the_interquartile_mean_forgets_the_outer_quarters():
    assert interquartile_mean([-100.0, 1, 2, 3, 4, 5, 6, 100]) == pytest.approx(3.5)
    assert interquartile_mean([[2.0, 1.0], [5.0, 7.0]]) == pytest.approx([1.5, 6.0])


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = 0
    for i in range(60):
        scores = random.normal(0.7, 0.1, 30)
        low, high = iqm_interval([scores], resamples=500, seed=i)[1:3]
        hits += low <= 0.7 <= high
    assert 51 <= hits <= 60


def test_tasks_are_drawn_anew_each_for_itself():
    """Two tasks without any spread leave nothing to be unsure of."""
    estimate = iqm_interval([[0.0] * 5, [1.0] * 5])
    assert estimate.low == estimate.high == estimate.value == 0.5
    assert estimate.runs == 10


@pytest.mark.parametrize("tasks", [[], [[]], [[1.0, float("nan")]]])
def test_scores_that_are_none_are_refused(tasks):
    with pytest.raises(ValueError, match="finite scores of at least one run"):
        iqm_interval(tasks)


@pytest.mark.parametrize("guard", [False, True])
def test_the_last_policy_needs_no_examination_unless_it_depends_on_them(guard):
    steps = {
        "dream": {"practice": 100, "examinations": 30.0},
        "converged": {"practice": 400.0, "examinations": 80.0},
        "real": {"practice": None, "examinations": 2.0},
    }
    study = {"real_steps": steps, "config": {"guard": guard}}
    prices = [price(study, f"{method}, {which}") for method in steps for which in ("kept", "last")]
    assert prices == [130, 130 if guard else 100, 480, 480, 2, 0]
