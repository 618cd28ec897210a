"""Train a policy in the dream alone, with Stable-Baselines3, and see what it does in MuJoCo.

The policy sees the state (predicted in the dream, true in reality) and holds one action for a step.

Run: python examples/4_train_in_the_dream.py [--world reach] [--steps 20000] [--episodes 100]
"""

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from kairos_env.agents.imagine.envs import HeldAction, RealAsDream
from kairos_env.sb3 import DreamVecEnv
from kairos_env.worlds import load_world

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--world", default="reach")
parser.add_argument("--steps", type=int, default=20_000)
parser.add_argument("--episodes", type=int, default=100)
arguments = parser.parse_args()

world = load_world(arguments.world)
real = VecMonitor(HeldAction(DummyVecEnv([lambda: RealAsDream(world)])))
# Short episodes that end with an estimate of their future: drift has no time to grow.
dream = HeldAction(DreamVecEnv(world, 64, observation="state", horizon=16, decode=False))
policy = PPO("MlpPolicy", dream, n_steps=8, batch_size=256, gamma=0.95, learning_rate=1e-3, seed=0)
before, _ = evaluate_policy(policy, real, n_eval_episodes=arguments.episodes)
policy.learn(arguments.steps)
after, _ = evaluate_policy(policy, real, n_eval_episodes=arguments.episodes)
steps = policy.num_timesteps
print(f"real reward of an episode: {before:.2f} before, {after:.2f} after {steps} dreamed steps")
