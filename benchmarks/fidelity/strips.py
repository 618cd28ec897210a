"""The picture of a report: truth above, dream below, time from left to right.

Numbers say how far; the picture says what went wrong.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

COLUMNS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 75, 100)
ZOOM = 2
PAPER, INK = 255, 40
GAP = 3  # pixels between rows of different episodes
# 3 x 5 pixels a digit, a bit a pixel from the upper left: no font has to be found.
DIGITS = (
    0b111101101101111,
    0b010110010010111,
    0b111001111100111,
    0b111001111001111,
    0b101101111001001,
    0b111100111001111,
    0b111100111101111,
    0b111001010010010,
    0b111101111101111,
    0b111101111001111,
)


def strips(
    rows: Sequence[Picture],
    lengths: NDArray[np.integer[Any]],
    *,
    columns: Sequence[int] = COLUMNS,
    zoom: int = ZOOM,
) -> Picture:
    """Episodes below each other, each as one row per predictor.

    Args:
        rows: For each predictor, truth first: frames (N, T, H, W, 3).
        lengths: (N,): frames that exist; the rest stays blank.
        columns: Numbers of the frames to show, from 1.
        zoom: How many pixels a pixel becomes.

    Returns:
        (height, width, 3), frame numbers on top.
    """
    N, T = rows[0].shape[:2]
    columns = [c for c in columns if c <= T]
    parts = [_numbers(columns, rows[0].shape[3] * zoom + GAP)]
    for episode in range(N):
        lines = [_line(frames[episode], columns, int(lengths[episode]), zoom) for frames in rows]
        parts += [*lines, np.full((GAP, lines[0].shape[1], 3), PAPER, np.uint8)]
    return np.concatenate(parts)


def _line(frames: Picture, columns: Sequence[int], length: int, zoom: int) -> Picture:
    H, W = frames.shape[1:3]
    line = np.full((H * zoom + 1, len(columns) * (W * zoom + GAP), 3), PAPER, np.uint8)
    for place, column in enumerate(columns):
        if column <= length:
            large = frames[column - 1].repeat(zoom, 0).repeat(zoom, 1)
            left = place * (W * zoom + GAP)
            line[: H * zoom, left : left + W * zoom] = large
    return line


def _numbers(columns: Sequence[int], width: int, scale: int = 2) -> Picture:
    line = np.full((9 * scale, len(columns) * width, 3), PAPER, np.uint8)
    for place, column in enumerate(columns):
        for i, digit in enumerate(str(column)):
            bits = [DIGITS[int(digit)] >> (14 - bit) & 1 for bit in range(15)]
            mask = np.array(bits).reshape(5, 3).repeat(scale, 0).repeat(scale, 1).astype(bool)
            left = place * width + (1 + 4 * i) * scale
            room = line[2 * scale : 7 * scale, left : left + 3 * scale]
            room[mask[:, : room.shape[1]]] = INK  # tiny pictures cut a number short
    return line
