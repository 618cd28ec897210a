"""Ranking figures against known answers: published tables, closed forms, a perfect dream."""

import numpy as np
import pytest

from kairos_env.benchmarks.study.agreement import agreement, ceiling, differences
from kairos_env.benchmarks.study.ranking import (
    fisher_interval,
    gap,
    gap_size,
    intercept,
    line_error,
    mmrv,
    pearson,
    ranks,
    regret,
    slope,
    spearman,
)

# Success rates that SIMPLER published for six policies, on the real robot and in its simulation
# (RT-2-X, three stages of RT-1, RT-1-X before the last of them, Octo), and what it derived of them.
REAL = {
    "pick coke can": (0.907, 0.853, 0.920, 0.760, 0.133, 0.293),
    "move near": (0.733, 0.633, 0.583, 0.450, 0.017, 0.350),
    "open drawer": (0.333, 0.815, 0.704, 0.519, 0.000, 0.148),
    "close drawer": (0.630, 0.926, 0.889, 0.741, 0.000, 0.519),
    "place apple": (0.074, 0.185, 0.185, 0.407, 0.000, 0.000),
}
SIMULATED = {
    "pick coke can": (0.787, 0.857, 0.710, 0.567, 0.027, 0.170),
    "move near": (0.779, 0.442, 0.354, 0.317, 0.050, 0.042),
    "open drawer": (0.157, 0.601, 0.463, 0.296, 0.000, 0.009),
    "close drawer": (0.343, 0.861, 0.667, 0.891, 0.278, 0.444),
    "place apple": (0.037, 0.065, 0.130, 0.213, 0.000, 0.000),
}
PUBLISHED = {
    "pick coke can": (0.031, 0.975),
    "move near": (0.111, 0.856),
    "open drawer": (0.000, 0.983),
    "close drawer": (0.123, 0.771),
    "place apple": (0.000, 0.969),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_rank_violation_and_correlation_come_out_of_the_published_tables(task):
    scores = {"dream": np.array(SIMULATED[task]), "truth": np.array(REAL[task])}
    violation, r = PUBLISHED[task]
    assert mmrv(**scores) == pytest.approx(violation, abs=6e-4)
    assert pearson(**scores) == pytest.approx(r, abs=6e-4)


def test_swapped_sides_give_another_rank_violation_and_cannot_be_passed_by_accident():
    real, simulated = np.array(REAL["move near"]), np.array(SIMULATED["move near"])
    assert mmrv(dream=real, truth=simulated) == pytest.approx(0.0027, abs=1e-4)
    with pytest.raises(TypeError):
        mmrv(simulated, real)


def test_a_straight_line_is_found():
    dream = np.array([0.0, 1.0, 2.0, 4.0])
    scores = {"dream": dream, "truth": 0.5 * dream - 1}
    assert slope(**scores) == pytest.approx(0.5)
    assert intercept(**scores) == pytest.approx(-1)
    assert line_error(**scores) == pytest.approx(0)
    assert pearson(**scores) == pytest.approx(1)
    assert spearman(dream=dream, truth=dream**3) == pytest.approx(1)
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0, 2.0])), [2.5, 0, 2.5, 1])


def test_regret_is_what_trusting_the_dream_costs():
    truth = np.array([0.0, 0.5, 1.0])
    assert regret(dream=np.array([0.1, 0.2, 0.3]), truth=truth) == 0
    assert regret(dream=np.array([0.3, 0.2, 0.1]), truth=truth) == 1
    # two look equally good: chosen by chance, not by their place in the list
    assert regret(dream=np.array([0.9, 0.1, 0.9]), truth=truth) == pytest.approx(0.5)


def test_a_flattering_dream_has_a_positive_gap():
    truth = np.array([0.0, 0.5, 1.0])
    assert gap(dream=truth + 0.1, truth=truth) == pytest.approx(0.1)
    mixed = truth + np.array([0.1, -0.2, 0.1])
    assert gap(dream=mixed, truth=truth) == pytest.approx(0)
    assert gap_size(dream=mixed, truth=truth) == pytest.approx(0.4 / 3)


def test_figures_without_a_value_are_nan_not_a_warning():
    same = np.ones(5)
    for figure in (pearson, spearman, slope, regret):
        assert np.isnan(figure(dream=same, truth=same))


def test_fisher_intervals_of_the_literature():
    assert fisher_interval(0.989, 8) == pytest.approx((0.938, 0.998), abs=1e-3)
    assert fisher_interval(0.92, 8) == pytest.approx((0.61, 0.99), abs=1e-2)
    assert fisher_interval(0.97, 16) == pytest.approx((0.91, 0.99), abs=1e-2)
    assert fisher_interval(1.0, 16) is None


@pytest.mark.parametrize(("episodes", "r", "violation"), [(50, 0.953, 0.072), (200, 0.988, 0.022)])
def test_the_ceiling_of_a_perfect_dream_is_the_computed_one(episodes, r, violation):
    """16 policies with success drawn evenly from [.05, .95], independent episodes."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(40):
        chance = random.uniform(0.05, 0.95, 16)
        truth = (random.random((16, episodes)) < chance[:, None]).astype(float)
        found.append(ceiling(truth, resamples=100, seed=0))
    assert np.mean([one["pearson"]["median"] for one in found]) == pytest.approx(r, abs=0.006)
    assert np.mean([one["mmrv"]["median"] for one in found]) == pytest.approx(violation, rel=0.15)


def outcomes(seed, *, policies=12, episodes=200):
    chance = np.linspace(0.05, 0.95, policies)
    random = np.random.default_rng(seed)
    return (random.random((policies, episodes)) < chance[:, None]).astype(float)


def test_truth_against_truth_with_other_seeds_lands_at_the_ceiling():
    for seed in range(5):
        found = agreement(dream=outcomes(seed), truth=outcomes(seed + 50), resamples=400, seed=0)
        for name in ("pearson", "mmrv", "slope"):
            perfect, value = found[name]["ceiling"], found[name]["estimate"].value
            margin = 0.5 * (perfect["high"] - perfect["low"])
            assert perfect["low"] - margin <= value <= perfect["high"] + margin


def test_a_shuffled_dream_is_at_chance():
    order = np.random.default_rng(3).permutation(12)
    dream, truth = outcomes(0)[order], outcomes(1)
    found = agreement(dream=dream, truth=truth, resamples=1000, seed=0)
    for name in ("pearson", "spearman", "mmrv"):
        chance, value = found[name]["chance"], found[name]["estimate"].value
        assert chance["low"] <= value <= chance["high"]
    assert found["pearson"]["chance"]["high"] < found["pearson"]["ceiling"]["low"]


def test_a_dream_that_repeats_the_truth_is_right_in_everything():
    truth = outcomes(0)
    found = agreement(dream=truth, truth=truth, resamples=200, seed=0)
    values = {name: found[name]["estimate"].value for name in ("pearson", "mmrv", "slope", "gap")}
    assert values == pytest.approx({"pearson": 1, "mmrv": 0, "slope": 1, "gap": 0})
    assert found["slope"]["estimate"].low == pytest.approx(1)  # paired episodes leave no doubt


def test_scores_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"got \(12, 100\) in the dream and \(12, 200\)"):
        agreement(dream=outcomes(0, episodes=100), truth=outcomes(0), resamples=10, seed=0)


def test_a_better_dream_is_told_from_a_worse_one():
    truth = outcomes(0)
    worse = np.random.default_rng(1).permuted(truth, axis=0)
    found = differences(truth=truth, dreams=(worse, truth), resamples=200, seed=0)
    assert found["pearson"].low > 0
    assert found["mmrv"].high < 0
