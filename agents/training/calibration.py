"""Does a dream know how wrong it is, and when it is over? Measure on held-out episodes, correct.

The heads' spread is learned on single transitions; in a long dream errors add up, so it says too
little. What it says is translated by a rising curve that is fitted on dreams of episodes that were
not trained on. Half of them fit, the other half says what the fit is worth. The same dreams say
from which probability on an episode has ended.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kairos_env.agents.training.clips import TrainingData, begin_dreams
from kairos_env.agents.training.config import StageConfig
from kairos_env.world_model.heads import calibrated
from kairos_env.world_model.world_model import WorldModel

Numbers = NDArray[np.float64]
Points = tuple[tuple[float, float], ...]
EPISODES, FRAMES = 128, 50
BINS = 10
FEWEST = 8  # frames in a bin, ends that a threshold is chosen by
THRESHOLDS = np.linspace(0.05, 0.95, 19)
LATE = 1  # frames by which an end may be missed


@dataclasses.dataclass(frozen=True)
class Dreamed:
    """Dreams beside the episodes they follow, each (episodes, frames)."""

    stated: Numbers
    """Error that was expected; NaN beyond an episode's end, as in `actual`."""
    actual: Numbers
    end: Numbers
    """Probability of an end; NaN where no end could be right."""
    ended: NDArray[np.bool_]
    """Where the truth ended."""


@torch.no_grad()
def calibrate(world: WorldModel, data: TrainingData) -> dict[str, Any] | None:
    """Fit the world's calibration; returns what it is worth, None where nothing was held out."""
    world.calibrate(())
    if not data.holds_out():
        return None
    dreams = dream(world, data)
    stated, actual = dreams.stated, dreams.actual
    fitted, checked = slice(0, None, 2), slice(1, None, 2)
    points = fit(*_flat(stated[fitted], actual[fitted]))
    there = _flat(stated[checked], actual[checked])
    result = None
    if points and len(there[0]) >= FEWEST:
        corrected = apply(there[0], points)
        result = {
            "episodes": len(stated),
            "frames": len(there[0]),
            "stated": _rms(there[0]),
            "corrected": _rms(corrected),
            "actual": _rms(there[1]),
            "error_before": miscalibration(*there),
            "error_after": miscalibration(corrected, there[1]),
        }
    world.calibrate(fit(*_flat(stated, actual)), end_threshold(dreams.end, dreams.ended))
    return result


def dream(world: WorldModel, data: TrainingData) -> Dreamed:
    """Dream held-out episodes with their own actions, from as much truth as the world begins with.

    From less, ends are told at wrong frames, and the threshold that tells those best is too low.
    """
    F, scale = world.config.frames_per_chunk, world.heads.state_scale
    real, steps = world.config.history_frames, -(-FRAMES // F)
    stage = StageConfig(name="calibration", learns="dynamics")
    clips = data.clips(stage, 0, frames=real + steps * F, split="validation")
    chosen = np.arange(min(EPISODES, len(clips.episodes)))
    batch = clips.cut(chosen, np.zeros(len(chosen), np.int64))
    truth, state = begin_dreams(world, data, batch)
    stated, actual, ends, ended = [], [], [], []
    for t in range(real - 1, real - 1 + steps * F, F):
        chunk = truth["actions"][:, t : t + F].flatten(1, 2)
        state, prediction = world.step(state, chunk, decode=False)
        reward = (prediction.reward - truth["rewards"][:, t : t + F]) / world.heads.reward_scale
        places = (prediction.state - truth["state"][:, t + 1 : t + 1 + F]) / scale
        error = torch.cat([reward[..., None], places], dim=-1).square().mean((1, 2)).sqrt()
        missing = ~truth["valid"][:, t + F]
        stated.append(prediction.uncertainty.masked_fill(missing, torch.nan))
        actual.append(error.masked_fill(missing, torch.nan))
        gone = ~truth["valid"][:, max(0, t + F - LATE * F)]
        ends.append(prediction.end_probability.amax(1).masked_fill(gone, torch.nan))
        ended.append(truth["terminated"][:, t : t + F].any(1))
    over = torch.stack(ended, dim=1).cpu().numpy()
    return Dreamed(_numbers(stated), _numbers(actual), _numbers(ends), over)


def end_threshold(probability: Numbers, ended: NDArray[np.bool_]) -> float | None:
    """The probability that tells ends best: by the F1 score of first crossings, `LATE` allowed.

    Of equally good ones the middle one; None where too few episodes ended.
    """
    if ended.any(1).sum() < FEWEST:
        return None
    true = _first(ended)
    scores = []
    for threshold in THRESHOLDS:
        told = _first(np.nan_to_num(probability) >= threshold)
        hits = np.isfinite(told) & np.isfinite(true)
        hits[hits] = np.abs(told[hits] - true[hits]) <= LATE
        scores.append(2 * hits.sum() / (np.isfinite(told).sum() + np.isfinite(true).sum()))
    best = np.flatnonzero(np.array(scores) >= max(scores) - 1e-9)
    return round(float(THRESHOLDS[best[len(best) // 2]]), 2)


def _first(happened: NDArray[np.bool_]) -> Numbers:
    """When something first happened in each row, infinite where it never did."""
    return np.where(happened.any(1), happened.argmax(1), np.inf)


def fit(stated: Numbers, actual: Numbers) -> Points:
    """A rising curve through the root mean squares of equal parts, sorted by what was stated."""
    parts = min(BINS, len(stated) // FEWEST)
    if not parts:
        return ()
    order = np.argsort(stated, kind="stable")
    cells = [
        (np.square(stated[part]).mean(), np.square(actual[part]).mean(), len(part))
        for part in np.array_split(order, parts)
    ]
    rising: list[tuple[float, float, int]] = []
    for cell in cells:
        rising.append((float(cell[0]), float(cell[1]), cell[2]))
        while len(rising) > 1 and rising[-1][1] < rising[-2][1]:  # pool what would fall
            (x, y, n), (u, v, m) = rising.pop(), rising.pop()
            rising.append(((n * x + m * u) / (n + m), (n * y + m * v) / (n + m), n + m))
    points = (np.sqrt(np.maximum((x, y), 1e-12)) for x, y, _ in rising)
    return tuple((round(float(x), 6), round(float(y), 6)) for x, y in points)


def apply(stated: Numbers, points: Points) -> Numbers:
    """What the world will say in place of what its heads state."""
    return calibrated(torch.from_numpy(stated), points).numpy()


def miscalibration(stated: Numbers, actual: Numbers) -> float:
    """Gap between stated and actual error over equal parts, relative to the actual one."""
    order = np.argsort(stated, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(order) // FEWEST)))
    pairs = [(_rms(stated[part]), _rms(actual[part]), len(part)) for part in parts]
    gap = sum(abs(a - b) * n for a, b, n in pairs)
    return float(gap / sum(b * n for _, b, n in pairs))


def _flat(stated: Numbers, actual: Numbers) -> tuple[Numbers, Numbers]:
    there = np.isfinite(stated) & np.isfinite(actual)
    return stated[there], actual[there]


def _rms(values: Numbers) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _numbers(columns: list[torch.Tensor]) -> Numbers:
    return torch.stack(columns, dim=1).double().cpu().numpy()
