"""Search for the sequence of highest score: CEM, iCEM and MPPI.

All three draw candidates around a mean, score them, and move mean and spread towards the good ones.
They differ in four places: how candidates are drawn, how many, which are kept, and who weighs what.

    method   noise      population   kept for the next round   weight of a candidate
    cem      white      constant     the mean                  equal among the elites
    icem     coloured   shrinking    the mean, some elites     equal among the elites
    mppi     white      constant     the mean                  exp(score / temperature)

The score is any function of candidates (N, T, D) in [-1, 1] to N numbers, higher is better. A
search is a function of the score, the guesses, the config and the generator.

Legend: N candidates, T times, D numbers per time, E elites, G guesses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
Method = Literal["cem", "icem", "mppi"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How to search."""

    method: Method = "cem"
    candidates: int = 64
    """N of the first round."""
    iterations: int = 4
    elites: int = 8
    """E: candidates that the next mean is made of."""
    spread: float = 0.6
    """Deviation of the first candidates from the guess."""
    least_spread: float = 0.05
    """The spread never falls below this, so that no number is settled too early."""
    colour: float = 2.0
    """icem: power of the noise falls as frequency to this power; 0 is white."""
    kept: float = 0.3
    """icem: share of the elites that enter the next round as they are."""
    shrink: float = 1.25
    """icem: each round has this many times fewer candidates, two elites' worth at least."""
    temperature: float = 0.3
    """mppi: in deviations of the round's scores."""

    def __post_init__(self) -> None:
        """Refuse what cannot be searched with."""
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("iterations", "elites"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.candidates < self.elites:
            raise ValueError(
                f"{self.elites} elites cannot be chosen among {self.candidates} candidates"
            )
        for name in ("spread", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not (0 <= self.kept <= 1 and self.shrink >= 1 and self.least_spread >= 0):
            raise ValueError(
                "expected kept in [0, 1], shrink >= 1 and least_spread >= 0, "
                f"got {self.kept}, {self.shrink} and {self.least_spread}"
            )


@dataclass(frozen=True)
class Found:
    """The end of a search."""

    best: Array
    """(T, D): the best sequence ever scored; with mppi the weighted mean of the last round."""
    value: float
    """Its score; with mppi the weighted mean of the last round's scores."""
    elites: Array
    """(E, T, D) of the last round, best first: guesses for the next search."""


def search(
    score: Score, guesses: Array, config: SearchConfig, generator: np.random.Generator
) -> Found:
    """Look for the sequence of highest score.

    Args:
        score: (N, T, D) to (N,). What is not finite counts as the worst.
        guesses: (G, T, D), G >= 1: all are scored as they are, and half of the first candidates
            are drawn around the first of them, half around zero.
        config: How.
        generator: All randomness.

    Raises:
        FloatingPointError: No candidate of a round has a finite score.
    """
    mean, spread = guesses[0], np.full_like(guesses[0], config.spread)
    known = guesses
    best, value = mean, -math.inf
    for number, size in enumerate(populations(config)):
        known = known[:size]
        noise = _noise(config, generator, (size - len(known), *mean.shape))
        # At first every other candidate forgets the guess: a plan that went wrong must be left.
        trust = (np.arange(len(noise)) % 2 if number == 0 else np.ones(len(noise)))[:, None, None]
        drawn = trust * mean + spread * noise
        candidates = np.concatenate([known, drawn]).clip(-1.0, 1.0)
        returns = _scored(score, candidates)
        order = np.argsort(-returns, kind="stable")
        weight = _weights(config, returns, order)
        mean = np.einsum("n,ntd->td", weight, candidates)
        variance = np.einsum("n,ntd->td", weight, np.square(candidates - mean))
        spread = np.sqrt(variance).clip(config.least_spread)
        elites = candidates[order[: config.elites]]
        if returns[order[0]] > value:
            best, value = elites[0], float(returns[order[0]])
        known = np.concatenate([mean[None], elites[: _kept(config)]])
    if config.method == "mppi":
        best, value = mean, float(weight @ np.where(weight > 0, returns, 0.0))
    return Found(best, value, elites)


def populations(config: SearchConfig) -> list[int]:
    """Candidates of each round."""
    if config.method != "icem":
        return [config.candidates] * config.iterations
    least = min(2 * config.elites, config.candidates)
    sizes = (config.candidates / config.shrink**i for i in range(config.iterations))
    return [max(least, round(size)) for size in sizes]


def coloured(generator: np.random.Generator, shape: tuple[int, int, int], exponent: float) -> Array:
    """Normal noise (N, T, D) of deviation 1 whose power falls as frequency ** -exponent along T."""
    N, T, D = shape
    frequency = np.fft.rfftfreq(T)
    frequency[0] = 1 / T  # the constant part is as strong as the slowest wave
    amplitude = frequency ** (-exponent / 2)
    real, imaginary = generator.standard_normal((2, N, D, len(amplitude)))
    # Without a phase: the constant part, and the fastest wave where T is even.
    alone = np.isin(np.arange(len(amplitude)), (0, T / 2))
    spectrum = np.where(alone, math.sqrt(2) * real, real + 1j * imaginary) * amplitude
    variance = (np.where(alone, 2.0, 4.0) * amplitude**2).sum() / T**2
    noise: Array = np.fft.irfft(spectrum, n=T).swapaxes(1, 2) / math.sqrt(variance)
    return noise


def _noise(
    config: SearchConfig, generator: np.random.Generator, shape: tuple[int, int, int]
) -> Array:
    exponent = config.colour if config.method == "icem" else 0.0
    return coloured(generator, shape, exponent) if exponent else generator.standard_normal(shape)


def _kept(config: SearchConfig) -> int:
    return round(config.kept * config.elites) if config.method == "icem" else 0


def _weights(config: SearchConfig, returns: Array, order: NDArray[np.intp]) -> Array:
    """(N,), adding up to 1."""
    weight = np.zeros(len(returns))
    finite = order[np.isfinite(returns[order])]
    if config.method == "mppi":
        deviation = max(float(returns[finite].std()), 1e-12)
        above = returns[finite] - returns[finite[0]]
        weight[finite] = np.exp(above / (config.temperature * deviation))
    else:
        weight[finite[: config.elites]] = 1.0
    normalised: Array = weight / weight.sum()
    return normalised


def _scored(score: Score, candidates: Array) -> Array:
    returns = np.array(score(candidates), np.float64)
    if returns.shape != (len(candidates),):
        raise ValueError(
            f"a score gives one number for each of {len(candidates)} candidates, got shape "
            f"{returns.shape}"
        )
    returns[~np.isfinite(returns)] = -math.inf
    if not np.isfinite(returns).any():
        raise FloatingPointError(
            f"none of {len(candidates)} candidates has a finite score; does the reward function "
            "divide by zero, or has the dream left the finite numbers?"
        )
    return returns
