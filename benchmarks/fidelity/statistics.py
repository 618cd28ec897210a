"""Estimates with intervals. Every statistic here is a function of sums over episodes.

That makes the bootstrap one matrix product: drawing episodes anew is weighing their sums. Frames of
one episode are not independent, so episodes are drawn and never frames.

Legend: B episodes, k sums that a statistic needs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any]]
Statistic = Callable[[Numbers], Numbers]  # sums (..., k) to values (...)

NOISELESS_DB = 100.0  # what identical pictures get, where the ratio has no limit


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A measured number; None where nothing could be measured."""

    value: float | None
    low: float | None
    """Lower end of the 95 % interval over episodes."""
    high: float | None
    n: int
    """How many items (frames, ends, pairs, ...) are behind it."""


class Bootstrap:
    """Draws of B episodes with replacement, the same ones for every statistic."""

    def __init__(self, episodes: int, *, resamples: int, seed: int) -> None:
        generator = np.random.default_rng([seed, episodes, resamples])
        even = np.full(episodes, 1.0 / episodes)
        self._weights = generator.multinomial(episodes, even, size=resamples).astype(np.float64)

    def estimate(self, statistic: Statistic, sums: Numbers, n: int) -> Estimate:
        """A statistic of per-episode sums (B, k), with its interval."""
        sums = np.asarray(sums, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(statistic(sums.sum(0)))
            draws = statistic(self._weights @ sums)
        draws = draws[np.isfinite(draws)]
        if not np.isfinite(value) or not len(draws):
            return Estimate(None, None, None, n)
        low, high = np.quantile(draws, (0.025, 0.975))
        return Estimate(value, float(low), float(high), n)

    def mean(self, values: Numbers, statistic: Statistic | None = None) -> Estimate:
        """The mean of values (B, ...), NaN where there is none, or a function of sum and count."""
        sums = mean_sums(values)
        return self.estimate(statistic or mean, sums, int(sums[:, 1].sum()))


def mean_sums(values: Numbers) -> Numbers:
    """(B, ...) with NaN for what is missing, to sum and count (B, 2)."""
    there = np.isfinite(values)
    axes = tuple(range(1, values.ndim))
    return np.stack([np.where(there, values, 0.0).sum(axes), there.sum(axes)], -1)


def mean(sums: Numbers) -> Numbers:
    """Of (sum, count)."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def root_mean(sums: Numbers) -> Numbers:
    """Of (sum of squares, count)."""
    return np.asarray(np.sqrt(sums[..., 0] / sums[..., 1]))


def psnr(sums: Numbers) -> Numbers:
    """Of (sum of mean squared errors of 0..255 pictures, count): of their mean, in dB."""
    error = sums[..., 0] / sums[..., 1]
    smallest = 255.0**2 / 10 ** (NOISELESS_DB / 10)
    return np.asarray(10.0 * np.log10(255.0**2 / np.maximum(error, smallest)))


def r2_sums(truth: Numbers, guess: Numbers) -> Numbers:
    """What `r2` needs, from (B, ...) with NaN for what is missing: (B, 4)."""
    there = np.isfinite(truth) & np.isfinite(guess)
    y, e = np.where(there, truth, 0.0), np.where(there, truth - guess, 0.0)
    axes = tuple(range(1, y.ndim))
    return np.stack([there.sum(axes), y.sum(axes), (y**2).sum(axes), (e**2).sum(axes)], -1)


def r2(sums: Numbers) -> Numbers:
    """Of (n, sum y, sum y^2, sum e^2): share of the variance of y that is explained."""
    n, y, yy, ee = np.moveaxis(sums, -1, 0)
    spread = yy - y**2 / n
    return np.asarray(np.where(spread > 1e-9 * np.maximum(yy, 1e-9), 1.0 - ee / spread, np.nan))


def r2_from_zero(sums: Numbers) -> Numbers:
    """As `r2`, against the guess that y is always zero: of differences, that actions do nothing."""
    _, _, yy, ee = np.moveaxis(sums, -1, 0)
    return np.asarray(np.where(yy > 0, 1.0 - ee / yy, np.nan))


def correlation_sums(x: Numbers, y: Numbers) -> Numbers:
    """What `correlation` needs, from (B, ...) with NaN for what is missing: (B, 6)."""
    there = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(there, x, 0.0), np.where(there, y, 0.0)
    terms = (there, x, y, x * x, y * y, x * y)
    return np.stack([term.sum(tuple(range(1, x.ndim))) for term in terms], -1)


def correlation(sums: Numbers) -> Numbers:
    """Pearson's, of (n, x, y, xx, yy, xy)."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    return np.asarray((xy - x * y / n) / np.sqrt((xx - x**2 / n) * (yy - y**2 / n)))


def ranks(values: Numbers) -> Numbers:
    """Ranks of all finite values from 0 to 1, ties at their mean; NaN stays NaN."""
    ranked = np.full(values.shape, np.nan)
    there = np.isfinite(values)
    _, place, count = np.unique(values[there], return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2
    ranked[there] = middle[place.reshape(-1)] / max(int(there.sum()) - 1, 1)
    return ranked
