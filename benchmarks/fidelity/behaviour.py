"""Beyond errors: does the dream answer to actions, know what it does not know, and remember?

Legend: B episodes, P forks (pairs of futures from one moment), T frames, O objects, S state size.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.benchmarks.fidelity.metrics import (
    Json,
    Numbers,
    Yardstick,
    quantile,
    seen_places,
)
from kairos_env.benchmarks.fidelity.statistics import (
    Bootstrap,
    correlation,
    correlation_sums,
    mean,
    r2_from_zero,
    r2_sums,
    ranks,
    root_mean,
)
from kairos_env.benchmarks.fidelity.traces import Trace

# A difference smaller than this has no direction: pixels, deviations of the state.
LEAST_PIXELS, LEAST_DEVIATIONS = 1.0, 0.1
# An object whose true places differ by less (root mean square) does not answer to actions.
UNMOVED_PIXELS = 0.25
# Gaps of hidden frames that are reported together.
GAPS = ((1, 2), (3, 5), (6, 10), (11, 20), (21, 10_000))
HIDDEN_SHARE = 0.05  # of its full area: an object that shows less is hidden


def counterfactual(
    yard: tuple[Yardstick, Yardstick], guess: tuple[Trace, Trace], *, frame: int, deviation: Numbers
) -> Json:
    """Differences between two futures of one moment, s'(a) - s'(b), predicted against true.

    R2 is against the guess that actions change nothing, so 0 is what any predictor gets that does
    not look at them.

    Args:
        yard: The truth after the actions a and after b.
        guess: The same predictor after a and after b.
        frame: After how many frames (from 1).
        deviation: (S,): of the state, NaN for numbers to leave out.
    """
    t, boot = frame - 1, yard[0].bootstrap
    both = yard[0].valid[:, t] & yard[1].valid[:, t]
    result: Json = {"n": int(both.sum())}
    moving = np.isfinite(deviation)
    true, said = (
        np.where(both[:, None], (x[0].state[:, t] - x[1].state[:, t])[:, moving], np.nan)
        / deviation[moving]
        for x in ((yard[0].truth, yard[1].truth), guess)
    )
    if np.isfinite(true).any() and np.isfinite(said).any():
        result["state"] = _agreement(boot, true, said, least=LEAST_DEVIATIONS)
    for i, name in enumerate(yard[0].names):
        seen = both & yard[0].visible()[:, t, i] & yard[1].visible()[:, t, i]
        true, said = (
            np.where(seen[:, None], first[:, t, i] - second[:, t, i], np.nan)
            for first, second in (
                (yard[0].truth.place, yard[1].truth.place),
                (seen_places(yard[0], guess[0])[0], seen_places(yard[1], guess[1])[0]),
            )
        )
        moved = seen.any() and _moved(yard, t, i, seen)
        agreement = _agreement(boot, true, said, least=LEAST_PIXELS) if moved else None
        result.setdefault("objects", {})[name] = agreement
    return result


def _moved(yard: tuple[Yardstick, Yardstick], t: int, thing: int, seen: NDArray[np.bool_]) -> bool:
    """Whether the two futures differ in an object's place: in the simulator's, where it is told.

    In pictures a thing that stands still seems to move when another one covers a part of it.
    """
    finder = yard[0].finder
    assert finder is not None
    if yard[0].truth.state.shape[-1]:
        a, b = (finder.places_in_state(y.truth.state[seen, t])[:, thing] for y in yard)
    else:
        a, b = (y.truth.place[seen, t, thing] for y in yard)
    return bool(np.sqrt(np.nanmean(np.square(a - b))) >= UNMOVED_PIXELS)


def _agreement(boot: Bootstrap, true: Numbers, said: Numbers, *, least: float) -> Json:
    """R2 and cosine of differences (P, k), NaN rows left out."""
    there = np.isfinite(true).all(1) & np.isfinite(said).all(1)
    lengths = np.linalg.norm(true, axis=1), np.linalg.norm(said, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # a prediction that nothing differs points nowhere: cosine 0
        cosine = np.where(lengths[1] > 0, (true * said).sum(1) / (lengths[0] * lengths[1]), 0.0)
    cosine = np.where(there & (lengths[0] > least), cosine, np.nan)
    return {
        "r2": boot.estimate(r2_from_zero, r2_sums(true, said), int(there.sum())),
        "cosine": boot.mean(cosine),
    }


def uncertainty(yard: Yardstick, dream: Trace, scales: tuple[float, Numbers]) -> Json:
    """Is the error as large as the dream expects, and larger where it expects more?

    Args:
        yard: The truth.
        dream: Its predictions, with the error that it expects of them.
        scales: Deviations of the training data, of reward and state (S,): the units in which the
            dream states its uncertainty.
    """
    expected = dream.uncertainty.astype(np.float64)
    actual = _actual(yard, dream, scales)
    expected = np.where(np.isfinite(actual), expected, np.nan)
    there = np.isfinite(expected) & np.isfinite(actual)
    if not there.any():
        return {"n": 0}
    result: Json = {
        "n": int(there.sum()),
        "pearson": _correlation(yard, expected, actual),
        "spearman": _correlation(yard, ranks(expected), ranks(np.where(there, actual, np.nan))),
        "expected": yard.bootstrap.mean(expected**2, root_mean),
        "actual": yard.bootstrap.mean(actual**2, root_mean),
        "table": _reliability(expected[there], actual[there], yard.config.quantiles),
        "by_horizon": {},
    }
    for h in yard.config.marks:
        e, a = expected[:, h - 1 : h], actual[:, h - 1 : h]
        result["by_horizon"][str(h)] = {
            "expected": yard.bootstrap.mean(e**2, root_mean),
            "actual": yard.bootstrap.mean(a**2, root_mean),
            "spearman": _correlation(yard, ranks(e), ranks(a)),
        }
    rows = result["table"]
    gaps = [abs(row["actual"] - row["expected"]) * row["n"] for row in rows]
    result["calibration_error"] = sum(gaps) / sum(row["actual"] * row["n"] for row in rows)
    return result


def _actual(yard: Yardstick, dream: Trace, scales: tuple[float, Numbers]) -> Numbers:
    """(B, T): root mean square over reward and state, each in its deviations."""
    reward = (dream.reward - yard.truth.reward)[..., None] / scales[0]
    state = (dream.state - yard.truth.state) / scales[1]
    return np.asarray(np.sqrt(np.square(np.concatenate([reward, state], -1)).mean(-1)))


def _correlation(yard: Yardstick, x: Numbers, y: Numbers) -> Any:
    sums = correlation_sums(x, y)
    return yard.bootstrap.estimate(correlation, sums, int(sums[:, 0].sum()))


def _reliability(expected: Numbers, actual: Numbers, quantiles: int) -> list[Json]:
    """Frames sorted by expected error and cut into equal parts."""
    order = np.argsort(expected, kind="stable")
    return [
        {
            "n": len(part),
            "expected": float(np.sqrt(np.square(expected[part]).mean())),
            "actual": float(np.sqrt(np.square(actual[part]).mean())),
        }
        for part in np.array_split(order, min(quantiles, len(order)))
    ]


def reappearance(yard: Yardstick, guess: Trace) -> Json:
    """What comes out from behind something, by the number of frames that it was hidden.

    For each object that can go behind another one: where it is when the truth shows it again, how
    many frames early or late the predictor shows it, how often it is shown while it is hidden, and
    how far from its place the stated numbers have it then.
    """
    result: Json = {}
    if yard.finder is None:
        return result
    place, _ = seen_places(yard, guess)
    for i, thing in enumerate(yard.finder.objects):
        if not thing.gone_behind:
            continue
        full = float(yard.finder.full_areas()[i])
        hidden = out_of_sight(yard, i)
        visible = yard.visible()[..., i]
        shown = guess.area[..., i] >= yard.config.visible_share * full
        present = guess.area[..., i] >= yard.config.present_share * yard.truth.area[..., i]
        error = np.linalg.norm(place[..., i, :] - yard.truth.place[..., i, :], axis=-1)
        events = [
            (episode, *event)
            for episode in range(len(hidden))
            for event in _events(hidden[episode], visible[episode])
        ]
        result[thing.name] = {
            "gaps": [
                _ends(low, high)
                | _one_gap(
                    yard,
                    [event for event in events if low <= event[2] - event[1] <= high],
                    (error, present, shown),
                )
                for low, high in GAPS
            ],
            "shown_while_hidden": yard.bootstrap.mean(np.where(hidden, shown, np.nan)),
            "said_while_hidden": _said_while_hidden(yard, guess, i, hidden),
        }
    return result


def _said_while_hidden(
    yard: Yardstick, guess: Trace, thing: int, hidden: NDArray[np.bool_]
) -> list[Json]:
    """Where the stated numbers have a hidden thing, by the frames that it has been hidden for."""
    assert yard.finder is not None
    if not guess.state.shape[-1]:
        return []
    said, true = (yard.finder.places_in_state(x.state)[..., thing, :] for x in (guess, yard.truth))
    error = np.linalg.norm(said - true, axis=-1)
    since = np.zeros(hidden.shape, np.int64)
    for frame in range(1, hidden.shape[1]):  # hidden from the start: nobody could know where it is
        before = (since[:, frame - 1] > 0) | ~hidden[:, frame - 1]
        since[:, frame] = np.where(hidden[:, frame] & before, since[:, frame - 1] + 1, 0)
    spans = ((since >= low) & (since <= high) for low, high in GAPS)
    return [
        _ends(low, high)
        | {
            "frames": int(span.sum()),
            "error_px": yard.bootstrap.mean(np.where(span, error, np.nan)),
        }
        for (low, high), span in zip(GAPS, spans, strict=True)
    ]


def _ends(low: int, high: int) -> Json:
    """One of `GAPS` as reports name it: the last one is open."""
    return {"from": low, "to": high if high < GAPS[-1][1] else None}


def out_of_sight(yard: Yardstick, thing: int) -> NDArray[np.bool_]:
    """In which frames (B, T) a thing, of the finder's, is truly hidden."""
    assert yard.finder is not None
    least = HIDDEN_SHARE * float(yard.finder.full_areas()[thing])
    return yard.valid & (yard.truth.area[..., thing] < least)


def _events(hidden: NDArray[np.bool_], visible: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Times (T,) that an object went out of sight and came back.

    Each is (first hidden frame, first frame that is not hidden, first in which enough is seen).
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(np.int8), [0]])))
    events = []
    for gone, back in edges.reshape(-1, 2):
        seen = np.flatnonzero(visible[back:])
        if gone > 0 and len(seen):  # hidden from the start: nobody could know where it is
            events.append((int(gone), int(back), int(back + seen[0])))
    return events


def _one_gap(
    yard: Yardstick,
    events: list[tuple[int, int, int, int]],
    said: tuple[Numbers, NDArray[np.bool_], NDArray[np.bool_]],
) -> Json:
    """Events (episode, first hidden frame, first not hidden, first seen) of similar length.

    `said` is the predictor's error, presence and being in sight, each (B, T).
    """
    error, there, shown = said
    B = len(error)
    distance, present, late = (np.full((B, max(len(events), 1)), np.nan) for _ in range(3))
    for column, (episode, gone, _, seen) in enumerate(events):
        distance[episode, column] = error[episode, seen]
        present[episode, column] = there[episode, seen]
        # Shown again: the first time after it was last out of sight in the prediction.
        unseen = np.flatnonzero(~shown[episode, gone : seen + 1])
        after = gone + unseen[-1] + 1 if len(unseen) else gone
        again = np.flatnonzero(shown[episode, after:])
        if len(again):
            late[episode, column] = after + again[0] - seen
    boot = yard.bootstrap
    return {
        "n": len(events),
        "error_px": boot.mean(distance),
        "median_px": quantile(distance, 0.5),
        "present": boot.mean(present),
        "late_frames": boot.mean(late, mean),
        "late_frames_abs": boot.mean(np.abs(late)),
        "shown_again": boot.mean(np.where(np.isfinite(distance), np.isfinite(late), np.nan)),
    }
