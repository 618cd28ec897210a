"""Mean, standard deviation, minimum and maximum, per episode and pooled exactly."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Stats = dict[str, NDArray[Any]]  # "min", "max", "mean", "std" and, as a vector of one, "count"


def describe(values: NDArray[Any]) -> Stats:
    """Statistics of rows (n, ...) along the first axis; scalars count as vectors of one."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    return {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        "count": np.array([len(rows)]),
    }


def describe_frames(frames: NDArray[np.uint8]) -> Stats:
    """Statistics per colour channel in [0, 1], shaped (3, 1, 1); `count` counts frames."""
    # A histogram is exact and needs no float copy of the pixels.
    counts = np.stack([np.bincount(frames[..., c].ravel(), minlength=256) for c in range(3)])
    levels = np.arange(256) / 255.0
    mean = counts @ levels / counts.sum(axis=1)
    spread = (levels - mean[:, None]) ** 2
    values = {
        "min": levels[np.argmax(counts > 0, axis=1)],
        "max": levels[255 - np.argmax(counts[:, ::-1] > 0, axis=1)],
        "mean": mean,
        "std": np.sqrt((counts * spread).sum(axis=1) / counts.sum(axis=1)),
    }
    shaped = {name: value.reshape(3, 1, 1) for name, value in values.items()}
    return {**shaped, "count": np.array([len(frames)])}


def pool(parts: Iterable[Mapping[str, NDArray[Any]]]) -> Stats:
    """Statistics of all rows from the statistics of disjoint groups of rows."""
    groups = list(parts)
    stacked = {name: np.stack([group[name] for group in groups]) for name in groups[0]}
    count = stacked["count"].reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    total = count.sum()
    mean = (stacked["mean"] * count).sum(axis=0) / total
    # the spread within the groups and the spread of the groups' means
    variance = ((stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2) * count).sum(axis=0) / total
    return {
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([total]),
    }
