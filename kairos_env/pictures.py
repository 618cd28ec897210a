"""Frames as something to look at: rows of a picture with labels, and a video. No matplotlib."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

LABEL_WIDTH = 56
MARGIN = 4
PAPER, INK = 255, 40


def enlarge(frames: Frames, scale: int) -> Frames:
    """Every pixel as a square of `scale` x `scale`: (..., H, W, 3)."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def strip(rows: Mapping[str, Frames], *, columns: int = 10, scale: int = 2) -> Frames:
    """One picture: a labelled row per entry, moments evenly spaced from first to last.

    Args:
        rows: Frames (T, H, W, 3) by label, all of the same length and size.
        columns: Moments to show.
        scale: Enlargement.
    """
    length = len(next(iter(rows.values())))
    moments = np.unique(np.linspace(0, length - 1, min(columns, length)).round().astype(int))
    lines = [_row(label, enlarge(frames[moments], scale)) for label, frames in rows.items()]
    gap = np.full((MARGIN, lines[0].shape[1], 3), PAPER, np.uint8)
    stacked = [part for line in lines for part in (gap, line)]
    return np.concatenate([*stacked, gap])


def side_by_side(rows: Mapping[str, Frames], *, scale: int = 4) -> Frames:
    """Video frames (T, H', W', 3): one panel per entry with its label above, sizes even."""
    panels = []
    for label, frames in rows.items():
        large = enlarge(frames, scale)
        header = np.broadcast_to(
            _text(label, large.shape[2], 16), (len(large), 16, *large.shape[2:])
        )
        panels.append(np.concatenate([header, large], axis=1))
    joined = np.concatenate(panels, axis=2)
    height, width = joined.shape[1:3]
    return np.pad(joined, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def write_picture(path: Path, picture: Frames) -> None:
    """Write a PNG, beside and renamed."""
    from PIL import Image

    with written_beside(path) as beside:
        Image.fromarray(picture).save(beside, format="PNG")


def write_video(path: Path, frames: Frames, *, fps: float) -> None:
    """Write an H.264 file that browsers play, beside and renamed.

    Args:
        path: Ends in .mp4.
        frames: (T, H, W, 3), H and W even.
        fps: Frames a second.
    """
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    with written_beside(path) as beside:
        writer = imageio_ffmpeg.write_frames(
            str(beside),
            (width, height),
            fps=fps,
            codec="libx264",
            quality=8,
            macro_block_size=2,
            ffmpeg_log_level="error",
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path to write to; what is there in the end takes the name `path`, or nothing does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _row(label: str, frames: Frames) -> Frames:
    """A label and its frames side by side."""
    height = frames.shape[1]
    gap = np.full((height, MARGIN, 3), PAPER, np.uint8)
    parts: Sequence[Frames] = [part for frame in frames for part in (gap, frame)]
    return np.concatenate([_text(label, LABEL_WIDTH, height), *parts, gap], axis=1)


def _text(label: str, width: int, height: int) -> Frames:
    """A label in the middle of a white box (height, width, 3)."""
    from PIL import Image, ImageDraw

    box = Image.new("RGB", (width, height), (PAPER,) * 3)
    draw = ImageDraw.Draw(box)
    draw.text((MARGIN, height / 2), label, fill=(INK,) * 3, anchor="lm")
    return np.asarray(box, np.uint8)
