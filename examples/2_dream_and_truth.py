"""The same start and the same actions in the dream and in MuJoCo: how far do they drift apart?

Run: python examples/2_dream_and_truth.py [--steps 40]
"""

import argparse

import gymnasium as gym
import numpy as np

import kairos_env  # noqa: F401 (registers Kairos-v0)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=40)
arguments = parser.parse_args()

dream = gym.make("Kairos-v0").unwrapped
truth = dream.world.make_twin()
_, info = dream.reset(seed=0, options={"start_index": 0})
if dream.world.starts.snapshots:
    truth.restore(dream.world.starts.snapshots[0])
else:  # the untrained placeholder knows no true state: start it from the truth's own frame
    frame, _ = truth.reset(seed=0)
    dream.reset(seed=0, options={"frames": frame[None]})
dream.action_space.seed(0)
for step in range(1, arguments.steps + 1):
    chunk = dream.action_space.sample()
    dreamed, dreamed_reward, dream_over, _, info = dream.step(chunk)
    seen, reward, over, cut, _ = truth.step(chunk)
    error = np.abs(dreamed.astype(float) - seen).mean()
    numbers = f"reward {dreamed_reward:6.3f} / {reward:6.3f}"
    print(f"{step:3d}  colours differ by {error:5.2f}  {numbers}")
    if dream_over or over or cut:
        break
truth.close()
