"""Promises of the searches, on functions whose optimum is known."""

import numpy as np
import pytest

from kairos_env.agents.planning.search import (
    METHODS,
    SearchConfig,
    coloured,
    populations,
    search,
)

T, D = 6, 2
OPTIMUM = np.stack([np.linspace(-0.6, 0.5, T), np.full(T, 0.3)], axis=1)


def bowl(candidates):
    """Highest, 0, at OPTIMUM."""
    return -np.square(candidates - OPTIMUM).sum((1, 2))


def ravine(candidates):
    """Rosenbrock's valley, turned over: highest, 0, where every number is 0.5."""
    x = 2 * candidates[..., 0]
    return -(100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def two_hills(candidates):
    """A low broad hill at -0.5 and a high narrow one at 0.5."""
    x = candidates[:, 0, 0]
    return np.exp(-np.square((x + 0.5) / 0.5)) + 3 * np.exp(-np.square((x - 0.5) / 0.1))


def found(score, method, *, shape=(T, D), seed=0, **options):
    config = SearchConfig(method=method, **options)
    return search(score, np.zeros((1, *shape)), config, np.random.default_rng(seed))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_the_top_of_a_bowl_is_found(method: str, seed: int) -> None:
    result = found(bowl, method, candidates=200, elites=20, iterations=15, seed=seed)
    assert np.abs(result.best - OPTIMUM).max() < 0.1
    assert result.value > -0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_bent_ravine_is_climbed(method: str) -> None:
    options = {"candidates": 400, "elites": 30, "iterations": 40, "least_spread": 0.01}
    result = found(ravine, method, shape=(2, 1), kept=0.3, shrink=1.0, **options)
    assert ravine(result.best[None]) > -0.3  # at zero, where it begins: -1


@pytest.mark.parametrize("method", METHODS)
def test_the_higher_of_two_hills_is_found(method: str) -> None:
    result = found(two_hills, method, shape=(1, 1), candidates=300, elites=10, iterations=10)
    assert result.best.item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_an_optimum_outside_is_met_at_the_bound(method: str) -> None:
    result = found(lambda x: x.sum((1, 2)), method, candidates=100, elites=10, iterations=15)
    assert result.best.mean() > 0.95
    assert result.best.max() <= 1.0


@pytest.mark.parametrize("method", METHODS)
def test_more_rounds_are_no_worse(method: str) -> None:
    values = [found(bowl, method, iterations=n, shrink=1.0).value for n in (1, 4, 16)]
    assert values == sorted(values)


@pytest.mark.parametrize("method", METHODS)
def test_a_search_is_a_function_of_its_seed(method: str) -> None:
    one, again, other = (found(bowl, method, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(one.best, again.best)
    assert np.array_equal(one.elites, again.elites)
    assert not np.array_equal(one.best, other.best)


@pytest.mark.parametrize("method", ["cem", "icem"])
def test_a_good_guess_is_never_lost(method: str) -> None:
    guesses = np.stack([np.zeros((T, D)), OPTIMUM])
    config = SearchConfig(method=method, candidates=8, elites=4, iterations=2)
    result = search(bowl, guesses, config, np.random.default_rng(0))
    assert result.value == 0.0
    assert np.array_equal(result.best, OPTIMUM)


@pytest.mark.parametrize("method", METHODS)
def test_a_guess_that_went_wrong_is_left(method: str) -> None:
    """Few candidates, few rounds, and a warm start in the corner opposite to the optimum."""
    guess = np.full((1, 3, 2), -1.0)
    config = SearchConfig(method=method, candidates=24, elites=6, iterations=3)

    def score(candidates):
        return -np.square(candidates - 0.8).sum((1, 2))

    for seed in range(5):
        best = search(score, guess, config, np.random.default_rng(seed)).best
        assert best.mean() > 0.2


def test_icem_needs_fewer_evaluations_where_the_answer_is_smooth() -> None:
    """What its coloured noise and shrinking rounds are for: long, slow sequences."""
    wave = 0.8 * np.sin(np.linspace(0, np.pi, 30))[:, None]
    spent = dict.fromkeys(("cem", "icem"), 0)
    values = {}
    for method in spent:

        def score(x, method=method):
            spent[method] += len(x)
            return -np.square(x - wave).sum((1, 2))

        values[method] = [
            found(score, method, shape=(30, 1), iterations=5, seed=seed).value for seed in range(5)
        ]
    assert spent["icem"] < 0.75 * spent["cem"]
    assert np.mean(values["icem"]) > np.mean(values["cem"])


def test_icem_shrinks_to_two_elites_worth_and_others_do_not() -> None:
    config = SearchConfig(method="icem", candidates=64, elites=8, iterations=9, shrink=1.25)
    sizes = populations(config)
    assert sizes[0] == 64
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 16
    assert populations(SearchConfig(iterations=3)) == [64] * 3


def test_elites_come_back_best_first() -> None:
    for method in METHODS:
        elites = found(bowl, method).elites
        assert elites.shape == (8, T, D)
        assert (np.diff(bowl(elites)) <= 0).all()


@pytest.mark.parametrize("T", [1, 2, 7, 16])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_has_unit_deviation_at_every_time(T: int, exponent: float) -> None:
    noise = coloured(np.random.default_rng(0), (4000, T, 2), exponent)
    assert noise.shape == (4000, T, 2)
    assert np.abs(noise.std((0, 2)) - 1).max() < 0.05


def test_redder_noise_changes_more_slowly() -> None:
    def neighbours(exponent: float) -> float:
        noise = coloured(np.random.default_rng(0), (2000, 12, 1), exponent)
        return float((noise[:, 1:] * noise[:, :-1]).mean())

    assert abs(neighbours(0.0)) < 0.05
    assert neighbours(0.0) < neighbours(1.0) < neighbours(2.0)


@pytest.mark.parametrize("method", METHODS)
def test_candidates_without_a_finite_score_are_passed_over(method: str) -> None:
    def score(x):
        return np.where(x[:, 0, 0] > 0, np.nan, bowl(x))

    result = found(score, method, candidates=200, elites=20, iterations=8)
    assert np.isfinite(result.value)
    assert result.best[0, 0] <= 0


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="none of 64 candidates has a finite score"):
        found(lambda x: np.full(len(x), np.nan), "cem")
    with pytest.raises(ValueError, match="one number for each of 64 candidates, got shape"):
        found(lambda x: x.sum(2), "cem")
    for options, message in (
        ({"method": "sgd"}, "one of cem, icem, mppi, got 'sgd'"),
        ({"candidates": 4}, "8 elites cannot be chosen among 4"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"shrink": 0.5}, "shrink >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            SearchConfig(**options)
