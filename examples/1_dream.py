"""Dream in the best bundled world and save what was seen as a picture.

Run: python examples/1_dream.py [--steps 40] [--out dream.png]
"""

import argparse
from pathlib import Path

import gymnasium as gym
import imageio.v3 as iio
import numpy as np

import kairos_env  # noqa: F401 (registers Kairos-v0)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--out", type=Path, default=Path("dream.png"))
arguments = parser.parse_args()

env = gym.make("Kairos-v0")
env.action_space.seed(0)
frame, info = env.reset(seed=0)
frames, total = [frame], 0.0
for _ in range(arguments.steps):
    frame, reward, terminated, truncated, info = env.step(env.action_space.sample())
    frames.append(frame)
    total += float(reward)
    if terminated or truncated:
        break
iio.imwrite(arguments.out, np.concatenate(frames[:: max(1, len(frames) // 10)], axis=1))
print(f"{len(frames) - 1} steps, reward {total:.2f}, uncertainty {info['uncertainty']:.2f}")
