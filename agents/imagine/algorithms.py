"""Stable-Baselines3's PPO and SAC with the settings that learn our tasks, in rounds.

A round is a function of the learner's tensors, the run's seed and the round's number: environments
and random numbers begin anew with it. So a run that goes on from its last round ends as if it had
never stopped.
"""

import copy
import io
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from kairos_env.agents.data.files import replacing, write_bytes
from kairos_env.agents.imagine.config import ImagineConfig
from kairos_env.agents.imagine.envs import acting_on_chunks
from kairos_env.view import RANGE

LARGEST_BATCH = 256
SAC_WARMUP = 512
SAC_BUFFER = 100_000
REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Standardised(BaseFeaturesExtractor):
    """Numbers in deviations of the world's data, read off the bounds that the dream clips to.

    It is a part of the policy, so that the policy takes it along to the real twin.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, observation_space: gymnasium.spaces.Box) -> None:
        super().__init__(observation_space, int(np.prod(observation_space.shape)))
        low, high = (torch.as_tensor(b) for b in (observation_space.low, observation_space.high))
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("scale", (high - low) / (2 * RANGE))

    def forward(self, observation: Tensor) -> Tensor:
        """(B, ...) to (B, n)."""
        return ((observation - self.centre) / self.scale).flatten(1)


class Learner:
    """A policy that practises in an environment, round by round.

    Args:
        config: The run.
        env: Where it practises.
        batches: Into how many batches the environments fall, each as large as those of one run.
    """

    def __init__(self, config: ImagineConfig, env: VecEnv, *, batches: int = 1) -> None:
        self.config = config
        self.env = env = acting_on_chunks(config, env)
        self.rounds = 0
        self.steps = 0
        self.model: PPO | SAC = (
            make_ppo(config, env, batches) if config.algo == "ppo" else make_sac(config, env)
        )
        self._new: Any = copy.deepcopy(self.model.get_parameters())

    def learn_at(self, pace: float) -> None:
        """Practise from now on with this share of the learning rate."""
        rate = pace * self.config.learning_rate
        self.model.lr_schedule = lambda _: rate

    def practise(self, steps: int) -> None:
        """One round of at least so many steps."""
        self.model.set_random_seed(round_seed(self.config.seed, self.rounds))
        if isinstance(self.model, SAC) and self.rounds:
            self.model.learning_starts = 0
        self.model.learn(steps, reset_num_timesteps=True)
        self.steps += self.model.num_timesteps
        self.rounds += 1

    def forget(self) -> None:
        """Know nothing again, and go on counting."""
        self.model.set_parameters(copy.deepcopy(self._new), device=self.config.device)

    def count_as_practised(self) -> None:
        """It has learned otherwise: a round of no steps, to be examined before the next."""
        self.rounds += 1

    def predict(self, observation: NDArray[Any]) -> NDArray[Any]:
        """What it does without exploring."""
        action: NDArray[Any] = self.model.predict(observation, deterministic=True)[0]
        return action

    def save(self, path: Path, *, replay: bool = True) -> None:
        """All that `load` needs, whole or not at all; without `replay`, enough to act."""
        kept: dict[str, Any] = {
            "parameters": self.model.get_parameters(),
            "rounds": self.rounds,
            "steps": self.steps,
        }
        if replay and isinstance(self.model, SAC):
            kept["replay"] = _replay_arrays(self.model)
            kept["log_ent_coef"] = _temperature(self.model).detach()
        with replacing(path) as file:
            torch.save(kept, file)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote; only tensors and plain values are read."""
        kept = torch.load(path, map_location=self.config.device, weights_only=True)
        self.model.set_parameters(kept["parameters"], device=self.config.device)
        self.rounds, self.steps = kept["rounds"], kept["steps"]
        if isinstance(self.model, SAC) and "replay" in kept:
            _put_replay(self.model, kept["replay"])
            with torch.no_grad():
                _temperature(self.model).copy_(kept["log_ent_coef"])

    def go_back(self, path: Path) -> None:
        """Take the policy that `save` wrote, and go on counting."""
        rounds, steps = self.rounds, self.steps
        self.load(path)
        self.rounds, self.steps = rounds, steps

    def export(self, path: Path) -> None:
        """A checkpoint for Stable-Baselines3's own `load`, whole or not at all."""
        with io.BytesIO() as archive:
            self.model.save(archive)
            write_bytes(path, archive.getvalue())

    def close(self) -> None:
        """Free the environment."""
        self.env.close()


def make_ppo(config: ImagineConfig, env: VecEnv, batches: int = 1) -> PPO:
    """On-policy: the choice for pixels, and where steps are cheap."""
    n_steps = max(min(config.rollout, config.round_steps) // (env.num_envs // batches), 2)
    rollout = n_steps * env.num_envs
    batch = max(size for size in range(2, LARGEST_BATCH + 1) if rollout % size == 0)
    return PPO(**_common(config, env), n_steps=n_steps, batch_size=batch, n_epochs=10)


def make_sac(config: ImagineConfig, env: VecEnv) -> SAC:
    """Off-policy: fewer steps, more computing for each."""
    return SAC(
        **_common(config, env),
        learning_starts=SAC_WARMUP,
        buffer_size=SAC_BUFFER,
        batch_size=LARGEST_BATCH,
        gradient_steps=max(env.num_envs // 4, 1),
    )


def round_seed(seed: int, number: int) -> int:
    """The seed of a round; rounds and runs share no random stream."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def _common(config: ImagineConfig, env: VecEnv) -> dict[str, Any]:
    pixels = config.observation == "pixels"
    return {
        "policy": "CnnPolicy" if pixels else "MlpPolicy",
        "env": env,
        "learning_rate": config.learning_rate,
        "gamma": config.gamma,
        "seed": config.seed,
        "device": config.device,
        "policy_kwargs": {} if pixels else {"features_extractor_class": Standardised},
    }


def _temperature(model: SAC) -> Tensor:
    assert model.log_ent_coef is not None, "it is learned"
    return model.log_ent_coef


def _replay_arrays(model: SAC) -> dict[str, Any]:
    buffer = model.replay_buffer
    assert buffer is not None
    filled = buffer.size()
    arrays = {name: torch.from_numpy(getattr(buffer, name)[:filled]) for name in REPLAY}
    return {**arrays, "pos": buffer.pos, "full": buffer.full}


def _put_replay(model: SAC, kept: dict[str, Any]) -> None:
    buffer = model.replay_buffer
    assert buffer is not None
    for name in REPLAY:
        getattr(buffer, name)[: len(kept[name])] = kept[name].numpy()
    buffer.pos, buffer.full = kept["pos"], kept["full"]
