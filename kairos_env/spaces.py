"""Action chunks: their space, and their translation to what the network sees and datasets store.

Shapes: K low-level actions per env step (the chunk), D numbers per action. A function that takes a
`space` accepts the low-level space (Box of shape (D,), Discrete) or its chunk space (Box of shape
(K, D), MultiDiscrete of K equal entries), whichever is at hand.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

ActionSpace = spaces.Space[Any]


def chunk_space(space: ActionSpace, chunk: int) -> spaces.Box | spaces.MultiDiscrete:
    """The space of `chunk` low-level actions taken in a row.

    Args:
        space: A Box of any shape (flattened to D numbers) or a Discrete space.
        chunk: K, at least 1.

    Returns:
        Box(K, D) with the same bounds, or MultiDiscrete of K entries.
    """
    if chunk < 1:
        raise ValueError(f"a chunk holds at least one action, got chunk={chunk}")
    if isinstance(space, spaces.Discrete):
        size = np.full(chunk, space.n, dtype=np.int64)
        return spaces.MultiDiscrete(size, start=np.full(chunk, space.start, dtype=np.int64))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (np.tile(bound.reshape(1, -1), (chunk, 1)) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=space.dtype.type)
    raise TypeError(
        f"actions must be a Box of floats or Discrete, got {space}; wrap the environment so that "
        "its action is one of these"
    )


def action_size(space: ActionSpace) -> int:
    """D: how many numbers stand for one low-level action."""
    if isinstance(space, spaces.Box):
        return int(space.shape[-1])
    return int(_choices(space)[0])


def encode_actions(space: ActionSpace, chunk: ArrayLike) -> NDArray[np.float32]:
    """Actions as the network sees them: scaled to [-1, 1], or one-hot for discrete ones.

    Args:
        space: The low-level space or its chunk space.
        chunk: Actions (..., K, D) for a Box, whole numbers (..., K) for a discrete space.

    Returns:
        float32 (..., K, D). Numbers outside the bounds count as the nearest bound, as in a step; a
        dimension without finite bounds is passed on unscaled.
    """
    if isinstance(space, spaces.Box):
        return _scaled(space, _sized(space, chunk, "actions"))
    count, start = _choices(space)
    indices = np.asarray(chunk) - start
    if not np.issubdtype(indices.dtype, np.integer) or np.any((indices < 0) | (indices >= count)):
        raise ValueError(
            f"expected whole numbers from {start} to {start + count - 1}, got {chunk!r}"
        )
    one_hot: NDArray[np.float32] = np.eye(count, dtype=np.float32)[indices]
    return one_hot


def decode_actions(space: ActionSpace, encoded: ArrayLike) -> NDArray[Any]:
    """The inverse of `encode_actions`; numbers outside [-1, 1] count as their nearest bound.

    Args:
        space: The low-level space or its chunk space.
        encoded: (..., K, D).

    Returns:
        (..., K, D) in the space's dtype, or int64 (..., K): the largest entry's index.
    """
    if isinstance(space, spaces.Box):
        values = _sized(space, encoded, "encoded actions")
        low, high = _bounds(space)
        centre, half = _centre_and_half(space)
        actions: NDArray[Any] = np.clip(values * half + centre, low, high).astype(space.dtype)
        return actions
    count, start = _choices(space)
    scores = np.asarray(encoded, np.float64)
    if scores.ndim == 0 or scores.shape[-1] != count or not np.isfinite(scores).all():
        raise ValueError(f"expected finite scores (..., K, {count}), got shape {scores.shape}")
    chosen: NDArray[np.int64] = (scores.argmax(-1) + start).astype(np.int64)
    return chosen


def _sized(space: spaces.Box, values: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    size = action_size(space)
    if array.ndim == 0 or array.shape[-1] != size or not np.isfinite(array).all():
        raise ValueError(
            f"expected finite {what} (..., {size}), got shape {array.shape}: {values!r}"
        )
    return array


def _scaled(space: spaces.Box, values: NDArray[np.float64]) -> NDArray[np.float32]:
    low, high = _bounds(space)
    centre, half = _centre_and_half(space)
    scaled: NDArray[np.float32] = ((np.clip(values, low, high) - centre) / half).astype(np.float32)
    return scaled


def _bounds(space: spaces.Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds (D,) of one action; every row of a chunk space has the same."""
    size = action_size(space)
    low, high = (np.asarray(b, np.float64).reshape(-1, size)[0] for b in (space.low, space.high))
    return low, high


def _centre_and_half(space: spaces.Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = _bounds(space)
    finite = np.isfinite(low) & np.isfinite(high) & (high > low)
    centre = np.where(finite, (np.where(finite, low, 0) + np.where(finite, high, 0)) / 2, 0.0)
    half = np.where(finite, (np.where(finite, high, 2) - np.where(finite, low, 0)) / 2, 1.0)
    return centre, half


def _choices(space: ActionSpace) -> tuple[int, int]:
    """How many values a discrete action has, and the first of them."""
    if isinstance(space, spaces.Discrete):
        return int(space.n), int(space.start)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        count, start = int(space.nvec[0]), int(space.start[0])
        if (space.nvec == count).all() and (space.start == start).all():
            return count, start
    raise TypeError(f"expected a Box, a Discrete or a chunk of one of these, got {space}")
