"""Act in MuJoCo from pixels without training a policy: plan every step in the dream.

The planner's goal is the world's own reward, or any function of what is predicted: `--corner` asks
for something that nobody was trained for, the agent in the upper right corner.

Run: python examples/5_plan_in_the_dream.py [--world reach] [--corner] [--steps 20]
"""

import argparse

import numpy as np
from torch import Tensor

from kairos_env.agents.planning.following import MPCPolicy
from kairos_env.agents.planning.planner import Planner
from kairos_env.world_model.world_model import Prediction
from kairos_env.worlds import load_world

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--world", default="reach")
parser.add_argument("--corner", action="store_true")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--candidates", type=int, default=32)
arguments = parser.parse_args()


def in_the_corner(prediction: Prediction) -> Tensor:
    """Minus the distance of the agent to the corner; its place leads the predicted state."""
    return -(prediction.state[..., 0:2] - 0.8).norm(dim=-1)


world = load_world(arguments.world)
policy = MPCPolicy(
    Planner(
        world,
        method="cem",
        horizon=4,
        candidates=arguments.candidates,
        iterations=3,
        reward=in_the_corner if arguments.corner else None,
    )
)
real = world.make_twin()
frame, _ = real.reset(seed=0)
policy.begin(real, np.random.default_rng(0))
for number in range(1, arguments.steps + 1):
    step = policy.step(real, frame)
    frame = step.frame
    milliseconds = 1000 * step.info["decision_seconds"]
    place = np.round(step.info["state"][:2], 2)
    print(f"{number:3d}  agent at {place}  reward {step.reward:6.3f}  {milliseconds:.0f} ms")
    if step.terminated or step.truncated:
        print("success" if step.info.get("success") else "out of time")
        break
real.close()
