"""How well scores in a dream stand for scores in truth: pure functions of two lists.

Everything is keyword-only: rank violation and calibration are not symmetric, and a swapped pair
gives a plausible wrong number. Arrays may have leading axes (draws of a bootstrap); the last axis
counts policies. Where a figure has no value (all scores equal) it is NaN.

Legend: D scores in the dream, R in truth, P policies.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any]]
Figure = Callable[..., Numbers]

NORMAL_95 = 1.959964


def pearson(*, dream: Numbers, truth: Numbers) -> Numbers:
    """Covariance over both deviations."""
    d, r = _centred(dream), _centred(truth)
    return _divided((d * r).sum(-1), np.sqrt((d**2).sum(-1) * (r**2).sum(-1)))


def spearman(*, dream: Numbers, truth: Numbers) -> Numbers:
    """Pearson's r of the ranks, ties at their mean."""
    return pearson(dream=ranks(dream), truth=ranks(truth))


def mmrv(*, dream: Numbers, truth: Numbers) -> Numbers:
    """Mean maximum rank violation: 1/P sum_i max_j |R_i - R_j| [(D_i > D_j) != (R_i > R_j)]."""
    D, R = np.asarray(dream, float), np.asarray(truth, float)
    swapped = (D[..., :, None] > D[..., None, :]) != (R[..., :, None] > R[..., None, :])
    distance = np.abs(R[..., :, None] - R[..., None, :])
    return np.asarray((distance * swapped).max(-1).mean(-1))


def slope(*, dream: Numbers, truth: Numbers) -> Numbers:
    """Of the least-squares line R = a + b D: b is 1 where a better dream score is worth as much."""
    d, r = _centred(dream), _centred(truth)
    return _divided((d * r).sum(-1), (d**2).sum(-1))


def intercept(*, dream: Numbers, truth: Numbers) -> Numbers:
    """Of the same line: a."""
    b = slope(dream=dream, truth=truth)
    return np.asarray(np.mean(truth, -1) - b * np.mean(dream, -1))


def line_error(*, dream: Numbers, truth: Numbers) -> Numbers:
    """Root mean square distance of the truth from the same line."""
    b = slope(dream=dream, truth=truth)[..., None]
    return np.asarray(np.sqrt(((_centred(truth) - b * _centred(dream)) ** 2).mean(-1)))


def regret(*, dream: Numbers, truth: Numbers) -> Numbers:
    """Regret@1: what choosing the dream's best policy costs, as a share of the best minus worst.

    Policies that the dream holds equally good are chosen with equal chance.
    """
    D, R = np.asarray(dream, float), np.asarray(truth, float)
    best = D.max(-1, keepdims=True) <= D
    chosen = (R * best).sum(-1) / best.sum(-1)
    return _divided(R.max(-1) - chosen, R.max(-1) - R.min(-1))


def gap(*, dream: Numbers, truth: Numbers) -> Numbers:
    """Mean return gap (D - R) / (R of the best - R of the worst): above 0, the dream flatters."""
    D, R = np.asarray(dream, float), np.asarray(truth, float)
    return _divided((D - R).mean(-1), R.max(-1) - R.min(-1))


def gap_size(*, dream: Numbers, truth: Numbers) -> Numbers:
    """The same with |D - R|: 0 only if every score is right."""
    D, R = np.asarray(dream, float), np.asarray(truth, float)
    return _divided(np.abs(D - R).mean(-1), R.max(-1) - R.min(-1))


FIGURES: dict[str, Figure] = {
    "pearson": pearson,
    "spearman": spearman,
    "mmrv": mmrv,
    "slope": slope,
    "intercept": intercept,
    "line_error": line_error,
    "regret": regret,
    "gap": gap,
    "gap_size": gap_size,
}


def ranks(values: Numbers) -> Numbers:
    """(..., P): how many are smaller, ties counted half."""
    v = np.asarray(values, float)
    smaller = (v[..., None, :] < v[..., :, None]).sum(-1)
    equal = (v[..., None, :] == v[..., :, None]).sum(-1)
    return np.asarray(smaller + (equal - 1) / 2)


def fisher_interval(r: float, n: int) -> tuple[float, float] | None:
    """95 % interval of a correlation over n policies, as if they were drawn from many."""
    if n < 4 or not -1.0 < r < 1.0:
        return None
    middle, half = math.atanh(r), NORMAL_95 / math.sqrt(n - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


def _centred(values: Numbers) -> Numbers:
    v = np.asarray(values, float)
    return np.asarray(v - v.mean(-1, keepdims=True))


def _divided(numerator: Numbers, denominator: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(denominator) > 1e-12, numerator / denominator, np.nan)
