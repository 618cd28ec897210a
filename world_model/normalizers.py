"""Robot states and actions to the network's range and back, from dataset statistics.

One affine map per channel, y = scale x + offset, made in one of four ways:

    "z-score"   (x - mean) / std
    "min/max"   [min, max] to [-1, 1]
    "q01/q99"   [1st, 99th percentile] to [-1, 1]
    "a/b"       the constant range [a, b] to [-1, 1], e.g. "-2/2"

What goes into the network is clipped; what comes out of it is mapped back without a clip. A channel
whose range is below 1e-4 is only shifted: stretching it would turn sensor noise into signal.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALLEST_RANGE = 1e-4
SMALLEST_STD = 1e-8  # added to every standard deviation, as in the published clients
CLIP = 5.0


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a dataset says about one vector, each (D,) float64: one number a channel.

    The attribute names are those of the published statistics files behind ``global_``.
    """

    min: Tensor
    max: Tensor
    q01: Tensor
    q99: Tensor
    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(value.shape) for name, value in asdict(self).items()}
        if len(set(shapes.values())) != 1 or self.min.dim() != 1:
            raise ValueError(
                f"expected one number a channel in every statistic, got shapes {shapes}"
            )

    @classmethod
    def of(cls, values: Tensor) -> "Statistics":
        """Measure (..., D) values."""
        rows = values.double().flatten(0, -2)
        if not rows.isfinite().all():
            raise ValueError("expected finite values, got NaN or infinity; drop those rows first")
        low, high = (_quantile(rows, q) for q in (0.01, 0.99))
        return cls(
            min=rows.amin(0),
            max=rows.amax(0),
            q01=low,
            q99=high,
            mean=rows.mean(0),
            std=rows.std(0, correction=0),
        )


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """An affine map per channel: y = scale x + offset, and back.

    Attributes:
        scale: (D,) float64: a nearly constant channel has a z-score scale of 1e5, too much for
            float32.
        offset: (D,) float64.
        clip: bound on |y|; ``None`` for none. The way back is never clipped.
    """

    scale: Tensor
    offset: Tensor
    clip: float | None = CLIP

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, *, clip: float | None = CLIP) -> "Normalizer":
        """Map [low, high] to [-1, 1]; a channel without range is only shifted to zero."""
        low, high = low.double(), high.double()
        flat = high - low < SMALLEST_RANGE
        scale = torch.where(flat, 1.0, 2 / torch.where(flat, 1.0, high - low))
        return cls(scale=scale, offset=torch.where(flat, -low, -1 - low * scale), clip=clip)

    @classmethod
    def from_moments(cls, mean: Tensor, std: Tensor, *, clip: float | None = CLIP) -> "Normalizer":
        """Map to mean 0 and standard deviation 1."""
        scale = 1 / (std.double() + SMALLEST_STD)
        return cls(scale=scale, offset=-mean.double() * scale, clip=clip)

    @classmethod
    def make(cls, mode: str, statistics: Statistics, *, clip: float | None = CLIP) -> "Normalizer":
        """Make the map of one mode: "z-score", "min/max", "q01/q99", or a constant range "a/b"."""
        if mode == "z-score":
            return cls.from_moments(statistics.mean, statistics.std, clip=clip)
        if mode == "min/max":
            return cls.from_range(statistics.min, statistics.max, clip=clip)
        if mode == "q01/q99":
            return cls.from_range(statistics.q01, statistics.q99, clip=clip)
        low, high = _constant_range(mode)
        one = torch.ones_like(statistics.min)
        return cls.from_range(low * one, high * one, clip=clip)

    def normalize(self, x: Tensor) -> Tensor:
        """Map (..., D) raw values to the network's range, clipped; dtype and device stay."""
        self._check(x)
        y = x.double() * self.scale.to(x.device) + self.offset.to(x.device)
        return (y if self.clip is None else y.clamp(-self.clip, self.clip)).to(x.dtype)

    def denormalize(self, y: Tensor) -> Tensor:
        """Map (..., D) network values back to raw ones; dtype and device stay."""
        self._check(y)
        return ((y.double() - self.offset.to(y.device)) / self.scale.to(y.device)).to(y.dtype)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1:] != self.scale.shape:
            raise ValueError(
                f"expected (..., {len(self.scale)}) values, as the statistics have "
                f"{len(self.scale)} channels, got {tuple(x.shape)}"
            )


def read_statistics(path: str | os.PathLike[str], *, key: str = "default") -> dict[str, Statistics]:
    """Read a statistics file: {"state": {key: {"global_min": [...], ...}}, "action": ...}.

    Args:
        path: JSON file.
        key: which of the file's groups to read; published files have one, "default".

    Returns:
        Statistics by vector name, "state" and "action" in published files.
    """
    return statistics_of(json.loads(Path(path).read_text()), key=key, source=os.fspath(path))


def statistics_of(
    content: Any, *, key: str = "default", source: str = "statistics"
) -> dict[str, Statistics]:
    """What `read_statistics` returns, from the content of such a file."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{source}: expected an object of vectors, got {type(content).__name__}")
    return {name: _parsed(groups, key, f"{source}: {name}") for name, groups in content.items()}


def write_statistics(
    path: str | os.PathLike[str], statistics: Mapping[str, Statistics], *, key: str = "default"
) -> None:
    """Write a file that ``read_statistics`` reads; written beside and renamed."""
    content = {
        name: {key: {f"global_{k}": v.tolist() for k, v in asdict(values).items()}}
        for name, values in statistics.items()
    }
    beside = Path(f"{os.fspath(path)}.part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)


def _parsed(groups: Any, key: str, where: str) -> Statistics:
    if not isinstance(groups, dict) or key not in groups:
        found = sorted(groups) if isinstance(groups, dict) else type(groups).__name__
        raise ValueError(f"{where}: expected a group {key!r}, got {found}")
    wanted = [f"global_{field.name}" for field in fields(Statistics)]
    if missing := [name for name in wanted if name not in groups[key]]:
        raise ValueError(f"{where}.{key}: missing {missing}, got {sorted(groups[key])}")
    return Statistics(
        **{
            name.removeprefix("global_"): torch.tensor(groups[key][name], dtype=torch.float64)
            for name in wanted
        }
    )


def _constant_range(mode: str) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in mode.split("/"))
    except ValueError:
        raise ValueError(
            f'expected mode "z-score", "min/max", "q01/q99" or a range like "-2/2", got {mode!r}'
        ) from None
    if not low < high:
        raise ValueError(f"expected a range a/b with a < b, got {mode!r}")
    return low, high


def _quantile(rows: Tensor, q: float) -> Tensor:
    """Quantile of each column, linear between ranks; torch.quantile refuses 2^24 values."""
    ranked = rows.sort(0).values
    place = q * (len(rows) - 1)
    below = int(place)
    above = min(below + 1, len(rows) - 1)
    return ranked[below] + (place - below) * (ranked[above] - ranked[below])
