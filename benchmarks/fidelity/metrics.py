"""Errors by horizon, reward, termination: pure functions of two traces.

Legend: B episodes, T frames, O objects, S state size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.fidelity.objects import ObjectFinder
from kairos_env.benchmarks.fidelity.statistics import (
    Bootstrap,
    mean,
    mean_sums,
    psnr,
    r2,
    r2_sums,
    root_mean,
)
from kairos_env.benchmarks.fidelity.traces import Trace

Numbers = NDArray[np.floating[Any]]
Json = dict[str, Any]

STILL = 1e-6  # deviation below which a number of the state counts as constant
LEAST_N = 10  # episodes that a frame must have to be counted in `compare`


@dataclasses.dataclass(frozen=True, eq=False)
class Yardstick:
    """What all predictors of one report are measured with."""

    config: FidelityConfig
    bootstrap: Bootstrap
    truth: Trace
    """The truth seen through the same eyes."""
    valid: NDArray[np.bool_]
    """(B, T): frames that exist."""
    finder: ObjectFinder | None
    state_names: tuple[str, ...]

    @property
    def state_deviation(self) -> Numbers:
        """(S,): of the true states; NaN for a number that never changes."""
        states = self.truth.state[np.isfinite(self.truth.state).all(-1)].astype(np.float64)
        deviation = states.std(0) if len(states) else np.full(self.truth.state.shape[-1], np.nan)
        return np.where(deviation > STILL, deviation, np.nan)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the objects."""
        return tuple(o.name for o in self.finder.objects) if self.finder else ()

    def visible(self) -> NDArray[np.bool_]:
        """(B, T, O): where the truth shows enough of an object to judge it."""
        if self.finder is None:
            return np.zeros(self.truth.area.shape, bool)
        least = self.config.visible_share * self.finder.full_areas()
        return np.asarray(np.nan_to_num(self.truth.area) >= least)


@dataclasses.dataclass(frozen=True, eq=False)
class Errors:
    """One predictor's errors, NaN where there is nothing to compare."""

    squared: Numbers
    """(B, T)."""
    place: Numbers
    """(B, T, O): pixels to where the same eyes see the object in the true picture."""
    found: Numbers
    """(B, T, O): the same, only where the predictor shows the object at all."""
    to_state: Numbers
    """(B, T, O): pixels to where the simulator says it is."""
    present: Numbers
    """(B, T, O): 1 where enough of it is shown, else 0."""
    state: Numbers
    """(B, T, S): in the state's own units."""
    normal: Numbers
    """(B, T): mean over the state of squared errors in deviations."""
    reward: Numbers
    """(B, T): squared."""


def errors(yard: Yardstick, guess: Trace) -> Errors:
    """Compare a predictor with the truth, frame by frame."""
    truth, visible = yard.truth, yard.visible()
    place, lost = seen_places(yard, guess)
    distance = np.where(visible, np.linalg.norm(place - truth.place, axis=-1), np.nan)
    to_state = np.full(truth.area.shape, np.nan)
    if yard.finder is not None and truth.state.shape[-1]:
        to_state = np.linalg.norm(place - yard.finder.places_in_state(truth.state), axis=-1)
    present = guess.area >= yard.config.present_share * truth.area
    state = guess.state.astype(np.float64) - truth.state
    return Errors(
        squared=guess.squared_error,
        place=distance,
        found=np.where(lost, np.nan, distance),
        to_state=np.where(visible, to_state, np.nan),
        present=np.where(visible, present, np.nan),
        state=state,
        normal=_normal(state, yard.state_deviation),
        reward=np.square(guess.reward - truth.reward),
    )


def seen_places(yard: Yardstick, guess: Trace) -> tuple[Numbers, NDArray[np.bool_]]:
    """Where a predictor shows the objects (B, T, O, 2), and which of them it lost (B, T, O).

    A lost object counts as standing in the middle of the picture, the best guess of somebody who
    sees nothing: leaving it out would reward losing it.
    """
    if yard.finder is None:
        return guess.place, np.zeros(guess.area.shape, bool)
    full = yard.finder.full_areas()
    # of what the truth shows, and where it shows next to nothing, of the object itself
    shown = np.maximum(np.nan_to_num(yard.truth.area), yard.config.visible_share * full)
    found = (guess.area >= yard.config.found_share * shown) & np.isfinite(guess.place).all(-1)
    middle = (yard.finder.size - 1) / 2
    return np.where(found[..., None], guess.place, middle), ~found


def by_horizon(yard: Yardstick, e: Errors) -> Json:
    """Every error at the chosen horizons with intervals, and the whole curve without."""
    return {
        "horizons": {str(h): _at(yard, e, h - 1) for h in yard.config.marks},
        "curve": _curve(yard, e),
    }


def _at(yard: Yardstick, e: Errors, t: int) -> Json:
    estimate = yard.bootstrap.mean
    result: Json = {"n": int(yard.valid[:, t].sum()), "psnr": estimate(e.squared[:, t], psnr)}
    if np.isfinite(e.normal).any():
        result["state"] = estimate(e.normal[:, t], root_mean)
        result["state_units"] = {
            name: estimate(np.abs(e.state[:, t, i])) for i, name in enumerate(yard.state_names)
        }
    for i, name in enumerate(yard.names):
        here = e.place[:, t, i]
        result.setdefault("objects", {})[name] = {
            "error_px": estimate(here),
            "median_px": quantile(here, 0.5),
            "p90_px": quantile(here, 0.9),
            "found_px": estimate(e.found[:, t, i]),
            "to_state_px": estimate(e.to_state[:, t, i]),
            "present": estimate(e.present[:, t, i]),
        }
    return result


def _curve(yard: Yardstick, e: Errors) -> Json:
    """Values of frames 1, 2, ..., T; None where no episode is left."""
    curve: Json = {
        "n": [int(n) for n in yard.valid.sum(0)],
        "psnr": _series(e.squared, psnr),
        "state": _series(e.normal, root_mean),
    }
    for i, name in enumerate(yard.names):
        curve.setdefault("objects", {})[name] = {
            "n": [int(n) for n in np.isfinite(e.place[..., i]).sum(0)],
            "error_px": _series(e.place[..., i], mean),
            "present": _series(e.present[..., i], mean),
        }
    return curve


def by_policy(yard: Yardstick, e: Errors, labels: Sequence[str]) -> Json:
    """Means at the chosen horizons for each kind of episode: where the errors come from."""
    result: Json = {}
    for label in sorted(set(labels)):
        rows = np.array([one == label for one in labels])
        result[label] = {
            str(h): {
                "n": int(yard.valid[rows, h - 1].sum()),
                "psnr": _series(e.squared[rows, h - 1 : h], psnr)[0],
                "objects": {
                    name: {
                        "error_px": _series(e.place[rows, h - 1 : h, i], mean)[0],
                        "present": _series(e.present[rows, h - 1 : h, i], mean)[0],
                    }
                    for i, name in enumerate(yard.names)
                },
            }
            for h in yard.config.marks
        }
    return result


def compare(yard: Yardstick, ours: Errors, baselines: Mapping[str, Errors]) -> Json:
    """At how many frames the dream beats each baseline, of those with enough episodes."""
    result: Json = {}
    for name, theirs in baselines.items():
        result[name] = {
            "psnr": _wins(yard, ours.squared - theirs.squared),
            "state": _wins(yard, ours.normal - theirs.normal),
        }
        for i, thing in enumerate(yard.names):
            result[name][thing] = _wins(yard, ours.place[:, :, i] - theirs.place[:, :, i])
    return result


def paired(yard: Yardstick, mine: Errors, its: Errors) -> Json:
    """How much larger one predictor's errors are than another's, episode by episode.

    Both saw the same episodes, so what makes an episode hard for both cancels: the intervals are
    far narrower than those of the two means. Below 0 the first is nearer to the truth.
    """
    mean_of = yard.bootstrap.mean

    def at(t: int) -> Json:
        row: Json = {"squared_error": mean_of(mine.squared[:, t] - its.squared[:, t])}
        if np.isfinite(mine.normal).any():
            row["state_squared"] = mean_of(mine.normal[:, t] - its.normal[:, t])
        for i, name in enumerate(yard.names):
            row.setdefault("objects", {})[name] = {
                "error_px": mean_of(mine.place[:, t, i] - its.place[:, t, i]),
                "present": mean_of(mine.present[:, t, i] - its.present[:, t, i]),
            }
        return row

    first = slice(0, yard.config.reward_frames)
    return {
        "horizons": {str(h): at(h - 1) for h in yard.config.marks},
        "reward_squared": mean_of(mine.reward[:, first] - its.reward[:, first]),
    }


def reward(yard: Yardstick, guess: Trace) -> Json:
    """How well the rewards of the first frames, and their sum, are known."""
    first = slice(0, yard.config.reward_frames)
    true, said = yard.truth.reward[:, first], guess.reward[:, first]
    there = np.isfinite(true) & np.isfinite(said)
    sums = [np.where(there, x, 0.0).sum(1)[:, None] for x in (true, said)]
    error = said - true
    return {
        "frames": yard.config.reward_frames,
        "r2": yard.bootstrap.estimate(r2, r2_sums(true, said), int(there.sum())),
        "mean_error": yard.bootstrap.mean(np.abs(error)),
        "squared_error": yard.bootstrap.mean(np.square(error)),
        "return_r2": yard.bootstrap.estimate(r2, r2_sums(*sums), len(true)),
        "return_error": yard.bootstrap.mean(np.abs(sums[1] - sums[0])),
    }


def termination(yard: Yardstick, guess: Trace, *, frames: int, tolerance: int) -> Json:
    """Do predicted ends match true ones? Each episode has at most one of each.

    Args:
        yard: The truth.
        guess: Whose ends; the first that it says counts, as a dream would end there.
        frames: Only ends up to this frame.
        tolerance: Frames that a predicted end may be early or late.
    """
    true, said = yard.truth.first_end, guess.first_end
    match = (true > 0) & (said > 0) & (np.abs(said - true) <= tolerance)
    happened, claimed = (true > 0) & (true <= frames), (said > 0) & (said <= frames)
    recalled = np.stack([happened & match, happened], -1).astype(np.float64)
    precise = np.stack([claimed & match, claimed], -1).astype(np.float64)
    return {
        "precision": yard.bootstrap.estimate(mean, precise, int(claimed.sum())),
        "recall": yard.bootstrap.estimate(mean, recalled, int(happened.sum())),
    }


def quantile(values: Numbers, q: float) -> float | None:
    """Of what is there."""
    there = values[np.isfinite(values)]
    return float(np.quantile(there, q)) if len(there) else None


def _normal(state: Numbers, deviation: Numbers) -> Numbers:
    """(B, T, S) to (B, T), over the numbers that change."""
    moving = np.isfinite(deviation)
    if not moving.any():
        return np.full(state.shape[:-1], np.nan)
    return np.asarray(np.square(state[..., moving] / deviation[moving]).mean(-1))


def _series(values: Numbers, statistic: Any) -> list[float | None]:
    """A statistic of sum and count for every frame of (B, T)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        results = statistic(mean_sums(values.T))
    return [float(x) if np.isfinite(x) else None for x in results]


def _wins(yard: Yardstick, difference: Numbers) -> Json:
    """Frames at which errors (B, T) less another's are below 0 on average, strictly.

    A difference of a hundredth of a pixel can be chance; the interval over episodes says where it
    is not.
    """
    counted = np.flatnonzero(np.isfinite(difference).sum(0) >= LEAST_N)
    at = [yard.bootstrap.mean(difference[:, t]) for t in counted]
    return {
        "frames": sum(e.value is not None and e.value < 0 for e in at),
        "surely": sum(e.high is not None and e.high < 0 for e in at),
        "surely_not": sum(e.low is not None and e.low > 0 for e in at),
        "of": len(at),
    }
