"""A moving picture of dreams beside the truth: held-out episodes, the truth above.

python docs/images/dreams.py reach push occlude
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.fidelity.measure import DREAM, TRUTH, measure
from kairos_env.pictures import enlarge
from kairos_env.worlds import load_world

EPISODES, FRAMES, SCALE, GAP = 2, 60, 2, 4
MILLISECONDS, COLOURS = 100, 96
# Not the episodes of any report.
SEED = 100


def panel(name: str) -> NDArray[np.uint8]:
    """Episodes side by side, dreams under them: (T, H, W, 3). What has ended stands still."""
    config = FidelityConfig(
        episodes=EPISODES, seed=SEED, horizon=FRAMES, horizons=(1,), lasting=1.0, shown=EPISODES
    )
    report = measure(load_world(name), config)
    last = np.minimum(np.arange(FRAMES), report.lengths[:, None] - 1)  # (EPISODES, T)
    rows = []
    for predictor in (TRUTH, DREAM):
        shown = report.pictures[predictor][np.arange(EPISODES)[:, None], last]
        framed = np.pad(
            enlarge(shown, SCALE), ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255
        )
        rows.append(np.concatenate(list(framed), axis=2))
    return np.concatenate(rows, axis=1)


def palette_of(truth: NDArray[np.uint8]) -> Image.Image:
    """The most frequent colours of the truth: a dream's grain is not worth a megabyte."""
    colours, counts = np.unique(truth.reshape(-1, 3), axis=0, return_counts=True)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours[np.argsort(-counts)[:COLOURS]].tobytes())
    return palette


def main() -> None:
    """Write one picture of all worlds, beside this file."""
    frames = np.concatenate([panel(name) for name in sys.argv[1:]], axis=2)
    palette = palette_of(frames[:, : frames.shape[1] // 2])
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    file = Path(__file__).with_name("dreams.gif")
    pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0)


if __name__ == "__main__":
    main()
