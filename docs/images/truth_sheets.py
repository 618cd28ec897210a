"""Contact sheets of ground-truth tasks: an expert's episode in eight frames, from start to end.

python docs/images/truth_sheets.py KairosReach-v0 KairosPush-v0 KairosOcclude-v0 \
    metaworld/reach-v3 robosuite/Lift
"""

import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray

from kairos_env import make_real
from kairos_env.pictures import enlarge
from kairos_env.real.experts import expert_for

COLUMNS, SCALE, GAP = 8, 3, 4
# Episodes in which the expert has some way to go.
SEEDS = {"KairosPush-v0": 3, "KairosOcclude-v0": 8}


def expert_frames(name: str) -> list[NDArray[np.uint8]]:
    """Every frame of an episode, up to its end or the task's success."""
    env, expert, rng = make_real(name), expert_for(name), np.random.default_rng(0)
    frames = [env.reset(seed=SEEDS.get(name, 5))[0]]
    over = False
    while not over:
        frame, _, terminated, truncated, info = env.follow(expert, rng)
        frames.append(frame)
        over = terminated or truncated or info["success"]
    env.close()
    return frames


def sheet(frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One row, enlarged without smoothing: what is seen is what a network gets."""
    chosen = np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)
    large = [enlarge(frames[i], SCALE) for i in chosen]
    gap = np.full((large[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in large for part in (picture, gap)][:-1], axis=1)


def main() -> None:
    """Write one picture a task, beside this file."""
    for name in sys.argv[1:]:
        file = Path(__file__).with_name(f"truth_{name.replace('/', '_').lower()}.png")
        imageio.imwrite(file, sheet(expert_frames(name)))


if __name__ == "__main__":
    main()
