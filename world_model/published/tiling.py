"""Run a local map over a video in overlapping tiles and blend the results.

Tiles start at 0, stride, 2 stride, ...; the last is the first that reaches the end. On each inner
side a tile's weight ramps up over the overlap; a place's weight is the smaller one of its two axes,
and the sum is divided by the sum of the weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Size of the tiles and of their overlap, (height, width) in latents.

    The published encoder takes any overlap, the published decoder 4, or one less than the size
    where that is smaller.
    """

    size: tuple[int, int] = (34, 34)
    overlap: tuple[int, int] = (4, 4)

    def __post_init__(self) -> None:
        if not all(0 <= o < s for o, s in zip(self.overlap, self.size, strict=True)):
            raise ValueError(
                f"expected 0 <= overlap < size on both axes, got overlap {self.overlap} and size "
                f"{self.size}"
            )


@dataclass(frozen=True)
class _Tile:
    """One stretch of an axis, in latents."""

    start: int
    stop: int
    first: bool
    last: bool


def run_tiled(
    run: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, *, enter: int, leave: int
) -> Tensor:
    """Run a map tile by tile.

    Args:
        run: maps (B, C, T, enter h, enter w) to (B, C', T', leave h, leave w).
        x: (B, C, T, enter h, enter w).
        tiling: the tiles.
        enter: input places per latent, 8 to encode.
        leave: output places per latent, 8 to decode.

    Returns:
        (B, C', T', leave h, leave w).
    """
    height, width = (side // enter for side in x.shape[3:])
    if not height or not width:
        raise ValueError(f"expected at least {enter}x{enter} places, got {tuple(x.shape)}")
    total = None
    weights = x.new_zeros(height * leave, width * leave)
    for rows in _tiles(height, tiling.size[0], tiling.overlap[0]):
        for columns in _tiles(width, tiling.size[1], tiling.overlap[1]):
            y = run(x[:, :, :, _slice(rows, enter), _slice(columns, enter)])
            weight = torch.minimum(
                _ramps(rows, y.shape[3], tiling.overlap[0] * leave, like=x)[:, None],
                _ramps(columns, y.shape[4], tiling.overlap[1] * leave, like=x)[None],
            )
            if total is None:
                total = y.new_zeros(*y.shape[:3], *weights.shape)
            total[:, :, :, _slice(rows, leave), _slice(columns, leave)] += y * weight
            weights[_slice(rows, leave), _slice(columns, leave)] += weight
    assert total is not None  # there is at least one tile
    return total / weights


def _tiles(length: int, size: int, overlap: int) -> Iterator[_Tile]:
    start, stop = 0, 0
    while stop < length:
        stop = min(start + size, length)
        yield _Tile(start, stop, first=start == 0, last=stop == length)
        start += size - overlap


def _slice(tile: _Tile, scale: int) -> slice:
    return slice(tile.start * scale, tile.stop * scale)


def _ramps(tile: _Tile, length: int, border: int, *, like: Tensor) -> Tensor:
    """Weights along one axis: 1, falling off towards each neighbour.

    Where both ramps meet in a short tile the second one wins, as published.
    """
    weight, ramp = like.new_ones(length), like.new_tensor(range(1, border + 1)) / border
    if not tile.first:
        weight[:border] = ramp
    if not tile.last and border:
        weight[-border:] = ramp.flip(0)
    return weight
