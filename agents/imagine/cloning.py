"""The baseline that needs no reward: imitate the recorded episodes that solved the task."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.ppo import CnnPolicy, MlpPolicy

from kairos_env.agents.imagine.algorithms import Standardised
from kairos_env.agents.imagine.config import Seen
from kairos_env.agents.imagine.transitions import Transitions
from kairos_env.spaces import decode_actions
from kairos_env.view import numpy_of
from kairos_env.worlds import World

UPDATES, BATCH = 3000, 256
ENCODE_BATCH = 256  # frames encoded at once


class Cloned:
    """PPO's own network, trained to make recorded chunks likely."""

    def __init__(
        self, space: spaces.Space[Any], chunks: spaces.Space[Any], *, learning_rate: float
    ) -> None:
        def rate(progress: float) -> float:
            return learning_rate

        self.policy: ActorCriticPolicy = (
            CnnPolicy(space, chunks, rate)
            if space.dtype == np.uint8
            else MlpPolicy(space, chunks, rate, features_extractor_class=Standardised)
        )

    def fit(self, seen: NDArray[Any], chunks: NDArray[Any], *, updates: int, seed: int) -> None:
        """Maximise the likelihood of `chunks` where `seen` was observed."""
        random, optimizer = np.random.default_rng(seed), self.policy.optimizer
        chosen = torch.from_numpy(chunks)
        self.policy.set_training_mode(True)
        for _ in range(updates):
            rows = random.integers(len(seen), size=BATCH)
            observation, _ = self.policy.obs_to_tensor(seen[rows])
            _, likely, _ = self.policy.evaluate_actions(observation, chosen[rows].flatten(1))
            loss = -likely.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def predict(self, observation: NDArray[Any]) -> NDArray[Any]:
        """The likeliest chunk."""
        action: NDArray[Any] = self.policy.predict(observation, deterministic=True)[0]
        return action


def clone(
    data: Transitions, world: World, observation: Seen, space: spaces.Space[Any], *, seed: int
) -> Cloned:
    """Imitate recorded steps.

    Args:
        data: With frames, unless the state is observed.
        world: Its tokenizer codes the frames for a policy that sees latents.
        observation: What the policy sees.
        space: The space of that.
        seed: Of network and batches.
    """
    chunk_space = world.manifest.environment.chunk_space
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cloned = Cloned(space, chunk_space, learning_rate=1e-3)
        chunks = decode_actions(chunk_space, data.actions)
        cloned.fit(_observed(data, world, observation), chunks, updates=UPDATES, seed=seed)
    return cloned


def _observed(data: Transitions, world: World, observation: Seen) -> NDArray[Any]:
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
