"""Action chunks from a caller: checked before anything moves.

Shapes: B dreams, K low-level actions, D numbers per action.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kairos_env.errors import ActionError

# A bound that was rounded on its way through float32 is still the bound.
ROUNDING = 1e-5


def checked_chunk(
    space: spaces.Box | spaces.MultiDiscrete, action: Any, batch: int | None = None
) -> NDArray[Any]:
    """The action as an array of the space's type, or an ActionError.

    Args:
        space: The chunk space of one dream.
        action: A chunk, or `batch` of them with the dream as first axis.
        batch: Number of dreams; None for one chunk without a batch axis.

    Returns:
        (K, D) or (K,), with a leading B for a batch; rounding over a bound is clipped.
    """
    shape = (*(() if batch is None else (batch,)), *space.shape)
    try:
        values = np.asarray(action)
    except (ValueError, TypeError) as error:  # ragged lists, objects that refuse
        raise ActionError(f"expected an array of shape {shape}, got {action!r}: {error}") from error
    if values.shape != shape:
        raise ActionError(
            f"expected an action chunk of shape {shape}, got {values.shape}; one step takes "
            f"{space.shape[0]} low-level actions (env.action_space is {space})"
        )
    if isinstance(space, spaces.Box):
        return _checked_numbers(space, values)
    return _checked_choices(space, values)


def filler(space: spaces.Box | spaces.MultiDiscrete) -> NDArray[Any]:
    """A valid chunk for a dream whose action is ignored."""
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    return np.asarray(space.start, np.int64)


def _checked_numbers(space: spaces.Box, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind not in "fiu":
        raise ActionError(f"expected numbers, got an array of type {values.dtype}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ActionError(f"expected finite numbers, got NaN or infinity: {_brief(values)}")
    slack = ROUNDING * np.maximum(1.0, np.maximum(abs(space.low), abs(space.high)))
    slack = np.where(np.isfinite(slack), slack, 0.0)
    if (values < space.low - slack).any() or (values > space.high + slack).any():
        raise ActionError(
            f"expected actions between {space.low.min()} and {space.high.max()}, got "
            f"{_brief(values)}; clip them first, for example with np.clip(action, "
            "env.action_space.low, env.action_space.high)"
        )
    return np.clip(values, space.low, space.high).astype(space.dtype)


def _checked_choices(space: spaces.MultiDiscrete, values: NDArray[Any]) -> NDArray[np.int64]:
    if values.dtype.kind not in "iu":
        raise ActionError(f"expected whole numbers, got an array of type {values.dtype}")
    low, high = space.start, space.start + space.nvec - 1
    if (values < low).any() or (values > high).any():
        raise ActionError(
            f"expected choices from {low.min()} to {high.max()}, got {_brief(values)}"
        )
    return values.astype(np.int64)


def _brief(values: NDArray[Any]) -> str:
    return np.array2string(values, precision=3, threshold=8)
