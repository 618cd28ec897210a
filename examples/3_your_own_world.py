"""Record an environment, learn a world of it, and dream in that world.

Any Gymnasium id works, here one of our own scenes. `--tiny` shows the way in a minute; a world that
is worth something takes about an hour (leave it out).

Run: python examples/3_your_own_world.py [--tiny] [--env KairosReach-v0] [--folder my-world]
"""

import argparse
from pathlib import Path

import gymnasium as gym

from kairos_env.agents.collect import collect
from kairos_env.agents.training.config import TINY_STAGES, WORLD_STAGES, TrainConfig
from kairos_env.agents.training.loop import train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true")
parser.add_argument("--env", default="KairosReach-v0")
parser.add_argument("--folder", type=Path, default=Path("my-world"))
arguments = parser.parse_args()

collect(
    arguments.env,
    episodes=12 if arguments.tiny else 1000,
    policies=["expert:0.5", "smooth:0.5"],
    out=arguments.folder / "data",
    horizon=20 if arguments.tiny else 60,
)
world = train(
    TrainConfig(
        data=(arguments.folder / "data",),
        out=arguments.folder / "world",
        size="tiny" if arguments.tiny else "small",
        stages=TINY_STAGES if arguments.tiny else WORLD_STAGES,
        validation_share=0.2,
        threads=1,
    )
)
env = gym.make("kairos_env:Kairos-v0", world=world)
frame, info = env.reset(seed=0)
frame, reward, *_ = env.step(env.action_space.sample())
print(f"dreamed a frame {frame.shape} of {env.unwrapped.world.name}, reward {reward:.3f}")
