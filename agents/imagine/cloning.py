"""Imitation: the baseline that needs no reward, and a policy that practice can begin with.

Shapes: N recorded steps, K low-level actions a step.
"""

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.ppo import CnnPolicy, MlpPolicy
from torch import Tensor

from kairos_env.agents.imagine.algorithms import Standardised
from kairos_env.agents.imagine.config import Seen
from kairos_env.agents.imagine.transitions import Transitions
from kairos_env.spaces import decode_actions
from kairos_env.view import numpy_of
from kairos_env.worlds import World

UPDATES, BATCH = 3000, 256
LEARNING_RATE, FINAL = 1e-3, 0.05  # it falls as a cosine, to this share
VALUE_WEIGHT = 0.1
# Where it is known what came of it: after this share of the updates, what went better than expected
# by so many deviations counts e times as much; nothing counts more than so many times.
EXPECTING, EAGERNESS, MOST = 0.2, 0.5, 20.0
ENCODE_BATCH = 256  # frames encoded at once


def imitate(
    policy: ActorCriticPolicy,
    seen: NDArray[Any],
    actions: NDArray[Any],
    values: NDArray[np.float32] | None = None,
    *,
    updates: int,
    seed: int,
) -> None:
    """Make `actions` likely where `seen` was observed, and expect `values` there.

    With values, an action that led to more than is expected where it was done counts more than one
    that led to less: whoever recorded the episodes was led astray now and then, or had no luck.

    Args:
        policy: Learns in place.
        seen: (N, ...) observations.
        actions: (N, ...) what was done.
        values: (N,) what came of it; without, the policy's expectations stay as they are.
        updates: How many.
        seed: Of the batches.
    """
    random = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(policy.parameters(), LEARNING_RATE)
    one_number = isinstance(policy.action_space, spaces.Discrete)
    shape = (-1,) if one_number else (len(actions), -1)
    chosen = torch.as_tensor(actions, device=policy.device).reshape(shape)
    expected = None if values is None else torch.as_tensor(values, device=policy.device)
    policy.set_training_mode(True)
    for update in range(updates):
        wave = (1 + math.cos(math.pi * update / updates)) / 2
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * max(FINAL, wave)
        rows = random.integers(len(seen), size=BATCH)
        observation, _ = policy.obs_to_tensor(seen[rows])
        value, likely, _ = policy.evaluate_actions(observation, chosen[rows])
        if expected is None:
            loss = -likely.mean()
        else:
            better = expected[rows] - value.flatten()
            known = update >= EXPECTING * updates
            weight = eagerness(better.detach()) if known else torch.ones_like(likely)
            loss = VALUE_WEIGHT * better.square().mean() - (weight * likely).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.set_training_mode(False)


def eagerness(better: Tensor) -> Tensor:
    """How much actions count that led to so much more than was expected; 1 on average: (B,)."""
    weight = (better / (EAGERNESS * better.std()).clamp_min(1e-6)).exp().clamp_max(MOST)
    return weight / weight.mean()


class Cloned:
    """PPO's own network, trained to make recorded chunks likely."""

    def __init__(self, space: spaces.Space[Any], chunks: spaces.Space[Any]) -> None:
        def rate(progress: float) -> float:
            return LEARNING_RATE

        self.policy: ActorCriticPolicy = (
            CnnPolicy(space, chunks, rate)
            if space.dtype == np.uint8
            else MlpPolicy(space, chunks, rate, features_extractor_class=Standardised)
        )

    def predict(self, observation: NDArray[Any]) -> NDArray[Any]:
        """The likeliest chunk."""
        action: NDArray[Any] = self.policy.predict(observation, deterministic=True)[0]
        return action


def clone(
    data: Transitions,
    world: World,
    observation: Seen,
    space: spaces.Space[Any],
    *,
    seed: int,
    updates: int = UPDATES,
) -> Cloned:
    """Imitate recorded steps.

    Args:
        data: With frames, unless the state is observed.
        world: Its tokenizer codes the frames for a policy that sees latents.
        observation: What the policy sees.
        space: The space of that.
        seed: Of network and batches.
        updates: How many.
    """
    chunk_space = world.manifest.environment.chunk_space
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cloned = Cloned(space, chunk_space)
    chunks = chunks_of(data, world)
    imitate(cloned.policy, observed(data, world, observation), chunks, updates=updates, seed=seed)
    return cloned


def chunks_of(data: Transitions, world: World, *, hold: bool = False) -> NDArray[Any]:
    """The recorded chunks, (N, K, ...) in the environment's numbers.

    Args:
        data: The recorded steps.
        world: Of the same environment.
        hold: One action for each chunk instead, (N, ...): the mean, or the first of actions that
            have none.
    """
    space = world.manifest.environment.chunk_space
    chunks = decode_actions(space, data.actions)
    if not hold:
        return chunks
    return chunks.mean(1) if isinstance(space, spaces.Box) else chunks[:, 0]


def observed(data: Transitions, world: World, observation: Seen) -> NDArray[Any]:
    """What a policy would have seen at each recorded step."""
    if observation == "state":
        return data.state
    assert data.frames is not None, "read the transitions with their frames"
    if observation == "pixels":
        return data.frames
    parts = []
    for first in range(0, len(data), ENCODE_BATCH):
        frames = torch.from_numpy(data.frames[first : first + ENCODE_BATCH])[:, None]
        with torch.no_grad():
            parts.append(numpy_of(world.model.tokenizer.encode(frames.to(world.model.device))))
    latents: NDArray[np.float32] = np.concatenate(parts).reshape(len(data), -1)
    return latents
