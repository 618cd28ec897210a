"""Truth and dream side by side, moving: small animated pictures for a page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kairos_env.benchmarks.study.drift import Drift
from kairos_env.benchmarks.study.shards import Stage
from kairos_env.benchmarks.study.sides import DREAM, TRUTH, Film

Frames = NDArray[np.uint8]

GAP, PAPER = 2, 128
HOLD = 8  # frames for which the end stands still
FADED = 0.45  # of a picture whose episode is over


@dataclass(frozen=True, eq=False)
class Clip:
    """Panels that run side by side."""

    title: str
    panels: tuple[str, ...]
    """What each shows."""
    frames: Frames
    """(T, H, W', 3)."""
    fps: float

    def webp(self) -> bytes:
        """As an animated picture that repeats."""
        from PIL import Image

        file = io.BytesIO()
        first, *rest = (Image.fromarray(frame) for frame in self.frames)
        each = round(1000 / self.fps)
        first.save(
            file,
            format="WEBP",
            save_all=True,
            append_images=rest,
            duration=each,
            loop=0,
            lossless=True,
        )
        return file.getvalue()


def acted(stage: Stage, places: Sequence[int], labels: Sequence[str]) -> list[Clip]:
    """Policies that act in truth and in the dream, from the first start state.

    Args:
        stage: Who acts.
        places: Of the policies in the plan.
        labels: Their names.
    """
    clips = []
    for place, label in zip(places, labels, strict=True):
        films: dict[str, Frames] = {}
        for side in (TRUTH, DREAM):
            film: Film = []
            stage.run((place, side), rows=slice(0, 1), film=film)
            films[side] = np.stack(film[0])
        told = [f"{side}: {len(frames) - 1} frames" for side, frames in films.items()]
        fps = stage.plan.world.manifest.environment.fps
        clips.append(Clip(label, tuple(told), beside(list(films.values())), fps))
    return clips


def replays(drift: Drift, fps: float, count: int) -> list[Clip]:
    """The first replayed episodes: truth, dream, and where they differ."""
    clips = []
    for i, length in enumerate(drift.lengths[:count]):
        true, dream = drift.truth[i, :length], drift.dream[i, :length]
        differ = np.abs(true.astype(np.int16) - dream).astype(np.uint8)
        frames = beside([true, dream, differ])
        clips.append(Clip(f"episode {i + 1}", ("truth", "dream", "difference"), frames, fps))
    return clips


def beside(panels: Sequence[Frames]) -> Frames:
    """(T, H, W, 3) each to one (T', H, W', 3): what is over fades, and the end holds."""
    longest = max(map(len, panels))
    filled = [_held(frames, longest) for frames in panels]
    gap = np.full((longest, panels[0].shape[1], GAP, 3), PAPER, np.uint8)
    joined = np.concatenate([part for frames in filled for part in (gap, frames)][1:], axis=2)
    return np.concatenate([joined, joined[-1:].repeat(HOLD, 0)])


def _held(frames: Frames, length: int) -> Frames:
    last = frames[-1].astype(np.float32)
    faded = (FADED * last + (1 - FADED) * PAPER).astype(np.uint8)
    return np.concatenate([frames, faded[None].repeat(length - len(frames), 0)])
