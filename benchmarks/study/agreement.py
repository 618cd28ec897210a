"""Scores of policies in dream and truth, with intervals, noise ceiling and chance level.

Three sources of doubt, kept apart:

- the interval draws *episodes* anew. Dream and truth begin in the same states and policies share
  their noise, so an episode number is drawn for all of them at once;
- Fisher's interval of r asks about other *policies*;
- the ceiling is what a perfect dream would get whose episodes are others than the truth's: two
  independent draws of the true outcomes are compared. A dream that shares its start states with
  the truth can come out above it.

Chance is the same dream with its policies shuffled.

Legend: P policies, E episodes, R resamples.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.benchmarks.fidelity.statistics import Estimate
from kairos_env.benchmarks.study.ranking import FIGURES, Numbers, fisher_interval

Json = dict[str, Any]

# Streams of the study's seed.
INTERVALS, CEILING, CHANCE = 31, 32, 33


def agreement(*, dream: Numbers, truth: Numbers, resamples: int, seed: int) -> Json:
    """Every figure of two score tables (P, E), each row a policy, each column a start state."""
    _check(dream, truth)
    D, R = np.asarray(dream, float), np.asarray(truth, float)
    both = _draws(R.shape[1], resamples, seed, INTERVALS)
    values = _figures(D.mean(1), R.mean(1))
    spread = _figures(both @ D.T, both @ R.T)
    perfect = ceiling(R, resamples=resamples, seed=seed)
    chance = _chance(D.mean(1), R.mean(1), resamples, seed)
    result: Json = {"policies": len(R), "episodes": R.shape[1]}
    for name, value in values.items():
        result[name] = {
            "estimate": _estimate(value, spread[name], len(R)),
            "ceiling": perfect[name],
            "chance": chance[name],
        }
    r = values["pearson"]
    result["pearson"]["fisher"] = fisher_interval(float(r), len(R))
    return result


def ceiling(truth: Numbers, *, resamples: int, seed: int) -> dict[str, Json]:
    """What a perfect dream gets on independent episodes: (P, E) to figures."""
    R = np.asarray(truth, float)
    E = R.shape[1]
    draws = _draws(E, 2 * resamples, seed, CEILING) @ R.T  # (2 R, P)
    found = _figures(draws[:resamples], draws[resamples:])
    return {name: _range(values) for name, values in found.items()}


def differences(
    *, truth: Numbers, dreams: tuple[Numbers, Numbers], resamples: int, seed: int
) -> dict[str, Estimate]:
    """Every figure of the second dream minus that of the first, episodes drawn for both at once."""
    for dream in dreams:
        _check(dream, truth)
    R, first, second = (np.asarray(table, float) for table in (truth, *dreams))
    draws = _draws(R.shape[1], resamples, seed, INTERVALS)
    a, b = (_figures(dream.mean(1), R.mean(1)) for dream in (first, second))
    before, after = (_figures(draws @ dream.T, draws @ R.T) for dream in (first, second))
    return {name: _estimate(b[name] - a[name], after[name] - before[name], len(R)) for name in a}


def means(table: Numbers, *, resamples: int, seed: int) -> list[Estimate]:
    """The mean of each row of (P, E), with its interval."""
    values = np.asarray(table, float)
    spread = _draws(values.shape[1], resamples, seed, INTERVALS) @ values.T  # (R, P)
    return [_estimate(values[i].mean(), spread[:, i], values.shape[1]) for i in range(len(values))]


def _figures(dream: Numbers, truth: Numbers) -> dict[str, Numbers]:
    return {name: figure(dream=dream, truth=truth) for name, figure in FIGURES.items()}


def _chance(dream: Numbers, truth: Numbers, resamples: int, seed: int) -> dict[str, Json]:
    generator = np.random.default_rng([seed, CHANCE])
    shuffled = generator.permuted(np.tile(dream, (resamples, 1)), axis=1)
    found = _figures(shuffled, np.broadcast_to(truth, shuffled.shape))
    return {name: _range(values) for name, values in found.items()}


def _draws(episodes: int, resamples: int, seed: int, stream: int) -> Numbers:
    """(R, E) weights that sum to 1: each row draws as many episodes with replacement."""
    generator = np.random.default_rng([seed, stream])
    even = np.full(episodes, 1.0 / episodes)
    drawn: NDArray[np.int64] = generator.multinomial(episodes, even, size=resamples)
    return np.asarray(drawn / episodes)


def _estimate(value: Any, draws: Numbers, n: int) -> Estimate:
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not len(finite):
        return Estimate(None, None, None, n)
    low, high = np.quantile(finite, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high), n)


def _range(values: Numbers) -> Json:
    """Median and 95 % range; None where the figure has no value."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"median": None, "low": None, "high": None}
    low, median, high = np.quantile(finite, (0.025, 0.5, 0.975))
    return {"median": float(median), "low": float(low), "high": float(high)}


def _check(dream: Numbers, truth: Numbers) -> None:
    if np.shape(dream) != np.shape(truth) or np.ndim(truth) != 2:
        raise ValueError(
            "expected scores of the same policies and episodes, two tables (policies, episodes); "
            f"got {np.shape(dream)} in the dream and {np.shape(truth)} in truth"
        )
