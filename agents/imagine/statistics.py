"""Interquartile means with stratified bootstrap intervals, for a handful of seeds.

The interquartile mean drops the best and worst quarter of the runs: less noisy than a median, less
led by outliers than a mean. The bootstrap draws runs anew within each task.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.floating[Any]]


class Interval(NamedTuple):
    """A statistic of some runs and where 95 % of its bootstrap draws lie."""

    value: float
    low: float
    high: float
    runs: int


def interquartile_mean(scores: ArrayLike) -> Numbers:
    """Mean over the last axis without its lowest and highest quarter (rounded down)."""
    ordered = np.sort(np.asarray(scores, np.float64), axis=-1)
    n = ordered.shape[-1]
    return np.asarray(ordered[..., n // 4 : n - n // 4].mean(-1))


def iqm_interval(tasks: Sequence[ArrayLike], *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Interquartile mean over all runs of all tasks, with its 95 % interval.

    Args:
        tasks: The scores of each task's runs; runs are drawn anew within their task.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        ValueError: There is no run, or a score is not finite.
    """
    strata = [np.asarray(scores, np.float64).reshape(-1) for scores in tasks]
    runs = sum(map(len, strata))
    if not runs or not all(len(s) and np.isfinite(s).all() for s in strata):
        raise ValueError(f"expected finite scores of at least one run for each task, got {tasks}")
    random = np.random.default_rng(seed)
    draws = [s[random.integers(len(s), size=(resamples, len(s)))] for s in strata]
    low, high = np.quantile(interquartile_mean(np.concatenate(draws, axis=1)), (0.025, 0.975))
    return Interval(
        float(interquartile_mean(np.concatenate(strata))), float(low), float(high), runs
    )


def price(results: Mapping[str, Any], policy: str) -> float:
    """Low-level real actions that a policy of a study took.

    Examinations choose the one that is kept, say when practice has converged, and are what the
    guard goes by; the last policy of any other practice would be the same without them.

    Args:
        results: of the study, its `real_steps` and `config`.
        policy: "METHOD, kept" or "METHOD, last".
    """
    method, which = policy.split(", ")
    spent = results["real_steps"][method]
    guarded = method == "dream" and results["config"]["guard"]
    examined = which == "kept" or method == "converged" or guarded
    return float((spent["practice"] or 0.0) + spent["examinations"] * examined)
