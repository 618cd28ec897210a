"""A predictor rolled out beside the truth, as numbers per frame.

Legend: B episodes, b of them still running, T frames, O objects, S state size, F frames per step.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kairos_env.benchmarks.fidelity.episodes import Truth
from kairos_env.benchmarks.fidelity.objects import ObjectFinder
from kairos_env.benchmarks.fidelity.predictors import Guess, Predictor

Numbers = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What a predictor said of B episodes. NaN where the truth has no frame, or it said nothing."""

    squared_error: Numbers
    """(B, T): mean over the picture of squared differences of 0..255 values."""
    place: Numbers
    """(B, T, O, 2): where the objects are; NaN where none of the colour is seen."""
    area: Numbers
    """(B, T, O): pixels of them."""
    state: Numbers
    """(B, T, S)."""
    reward: Numbers
    """(B, T)."""
    uncertainty: Numbers
    """(B, T): at the last frame of each step."""
    first_end: NDArray[np.int64]
    """(B,): frame (from 1) with which the episode is first said to end; 0 for never. Searched until
    `tolerance` frames beyond the truth."""

    @classmethod
    def concat(cls, traces: Sequence["Trace"]) -> Self:
        """The traces of more episodes."""
        names = [field.name for field in dataclasses.fields(cls)]
        parts: dict[str, Any] = {
            name: np.concatenate([getattr(trace, name) for trace in traces]) for name in names
        }
        return cls(**parts)

    @classmethod
    def empty(cls, episodes: int, frames: int, objects: int, state: int) -> Self:
        """Nothing said yet."""

        def unknown(*shape: int) -> Numbers:
            return np.full((episodes, *shape), np.nan, np.float32)

        return cls(
            squared_error=unknown(frames),
            place=unknown(frames, objects, 2),
            area=unknown(frames, objects),
            state=unknown(frames, state),
            reward=unknown(frames),
            uncertainty=unknown(frames),
            first_end=np.zeros(episodes, np.int64),
        )


def roll_out(
    predictor: Predictor,
    truth: Truth,
    *,
    finder: ObjectFinder | None = None,
    tolerance: int = 0,
    keep: int = 0,
) -> tuple[Trace, NDArray[np.uint8]]:
    """Let a predictor continue the histories, given the true actions.

    Args:
        predictor: Who guesses.
        truth: Histories, actions, and what really happened.
        finder: Finds objects; None where the scene has none to find.
        tolerance: Go on so many frames after an episode has ended (its last actions repeated), so
            that an end predicted late is seen. Nothing else is read from these frames.
        keep: Also return the pictures of the first so many episodes.

    Returns:
        The numbers, and pictures (keep, T, H, W, 3).
    """
    F, T = truth.frames_per_step, truth.frames.shape[1]
    N = T // F
    trace = Trace.empty(
        len(truth), T, len(finder.objects) if finder else 0, truth.history_state.shape[-1]
    )
    pictures = np.zeros_like(truth.frames[:keep])
    memory = predictor.start(truth)
    running = np.arange(len(truth))
    for n in range(N + -(-tolerance // F)):
        still = np.flatnonzero(truth.length[running] + tolerance > n * F)
        if not len(still):
            break
        if len(still) < len(running):
            memory, running = predictor.keep(memory, still), running[still]
        memory, guess = predictor.step(memory, truth.chunks[running, min(n, N - 1)])
        _note_end(trace, truth, running, n * F, guess, tolerance)
        if n < N:
            _note(trace, truth, running, slice(n * F, n * F + F), guess, finder)
            shown = running < keep
            pictures[running[shown], n * F : n * F + F] = guess.frames[shown]
    return trace, pictures


def _note(
    trace: Trace,
    truth: Truth,
    rows: NDArray[np.int64],
    now: slice,
    guess: Guess,
    finder: ObjectFinder | None,
) -> None:
    """Take down the frames of one step, those that the truth has."""
    exist = truth.valid[rows, now]  # (b, F)
    where = rows, now
    difference = guess.frames.astype(np.float32) - truth.frames[where]
    trace.squared_error[where] = _where(exist, np.square(difference).mean((2, 3, 4)))
    if finder is not None:
        found = finder(guess.frames.reshape(-1, *guess.frames.shape[2:]))
        trace.place[where] = _where(exist, found.place.reshape(*exist.shape, -1, 2))
        trace.area[where] = _where(exist, found.area.reshape(*exist.shape, -1))
    if guess.state is not None:
        trace.state[where] = _where(exist, guess.state)
    if guess.reward is not None:
        trace.reward[where] = _where(exist, guess.reward)
    if guess.uncertainty is not None:
        trace.uncertainty[rows, now.stop - 1] = _where(exist[:, -1], guess.uncertainty)


def _note_end(
    trace: Trace,
    truth: Truth,
    rows: NDArray[np.int64],
    first: int,
    guess: Guess,
    tolerance: int,
) -> None:
    """Take down the first end that is said, within the episode or just after it."""
    if guess.ended is None:
        return
    frame = first + 1 + np.arange(guess.ended.shape[1])
    ended = guess.ended & (frame <= truth.length[rows, None] + tolerance)
    new = ended.any(1) & (trace.first_end[rows] == 0)
    trace.first_end[rows[new]] = frame[ended[new].argmax(1)]


def _where(exist: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[Any]:
    """Values (b, ..., more) where the frame exists, NaN elsewhere."""
    spread = exist.reshape(*exist.shape, *[1] * (values.ndim - exist.ndim))
    return np.where(spread, values, np.nan)
