"""The baseline without pictures and without memory: an ensemble of small networks, as in MBPO.

It maps (simulator state, chunk) to (next state, reward, end) and learns from the same episodes as
the world. Each step is taken by a member drawn at random; how far the members disagree is the
uncertainty. It has an advantage over the world: it is told the true state.

Shapes: E members, B environments, S state size, K low-level actions a step, D numbers per action.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from torch.nn import functional as F

from kairos_env.agents.imagine.transitions import Transitions
from kairos_env.spaces import encode_actions

ActionSpace = gymnasium.spaces.Box | gymnasium.spaces.MultiDiscrete


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Size and training of the ensemble."""

    members: int = 5
    hidden: int = 128
    updates: int = 2500
    batch: int = 256
    learning_rate: float = 1e-3
    end_weight: float = 5.0
    """How much more a terminal transition counts than an ordinary one."""


class Ensemble(nn.Module):
    """E networks of two hidden layers, run as one."""

    state_mean: Tensor
    state_scale: Tensor
    change_scale: Tensor
    reward_mean: Tensor
    reward_scale: Tensor

    def __init__(self, config: EnsembleConfig, state_size: int, action_numbers: int) -> None:
        super().__init__()
        E, hidden = config.members, config.hidden
        sizes = (state_size + action_numbers, hidden, hidden, state_size + 2)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(E, n, m) / n**0.5) for n, m in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(E, 1, m)) for m in sizes[1:])
        for name in ("state_mean", "state_scale", "change_scale"):
            self.register_buffer(name, torch.ones(state_size))
        for name in ("reward_mean", "reward_scale"):
            self.register_buffer(name, torch.ones(()))

    def fit_statistics(self, data: Transitions) -> None:
        """Measure what states, their changes and rewards look like."""
        state, change = _tensor(data.state), _tensor(data.next_state - data.state)
        reward = _tensor(data.reward)
        self.state_mean, self.state_scale = state.mean(0), state.std(0).clamp(min=1e-3)
        self.change_scale = change.std(0).clamp(min=1e-3)
        self.reward_mean, self.reward_scale = reward.mean(), reward.std().clamp(min=1e-3)

    def forward(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(E, B, S) and (E, B, K D) to next state (E, B, S), reward and end logit (E, B)."""
        x = torch.cat([(state - self.state_mean) / self.state_scale, actions], dim=-1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = F.silu(torch.baddbmm(bias, x, weight))
        x = torch.baddbmm(self.biases[-1], x, self.weights[-1])
        after = state + x[..., :-2] * self.change_scale
        return after, x[..., -2] * self.reward_scale + self.reward_mean, x[..., -1]


def fit_ensemble(data: Transitions, config: EnsembleConfig, *, seed: int) -> Ensemble:
    """Train an ensemble; each member draws its own batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ensemble = Ensemble(config, data.state.shape[1], int(np.prod(data.actions.shape[1:])))
    ensemble.fit_statistics(data)
    state, after = _tensor(data.state), _tensor(data.next_state)
    actions = _tensor(data.actions).flatten(1)
    reward, ended = _tensor(data.reward), _tensor(data.terminated)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.updates)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(config.updates):
        shape = (config.members, config.batch)
        rows = torch.randint(len(data), shape, generator=generator)
        told = ensemble(state[rows], actions[rows])
        loss = _loss(ensemble, told, (after[rows], reward[rows], ended[rows]), config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return ensemble.eval().requires_grad_(False)


def _loss(
    ensemble: Ensemble,
    told: tuple[Tensor, Tensor, Tensor],
    true: tuple[Tensor, Tensor, Tensor],
    config: EnsembleConfig,
) -> Tensor:
    (after, reward, logit), (true_after, true_reward, ended) = told, true
    state_loss = ((after - true_after) / ensemble.change_scale).square().mean()
    reward_loss = ((reward - true_reward) / ensemble.reward_scale).square().mean()
    weight = 1 + (config.end_weight - 1) * ended
    end_loss = F.binary_cross_entropy_with_logits(logit, ended, weight)
    return state_loss + reward_loss + end_loss


class EnsembleVecEnv(VecEnv):
    """B imagined episodes of an ensemble, begun in recorded states.

    Args:
        ensemble: From `fit_ensemble`.
        starts: (N, S) recorded states.
        num_envs: B.
        observation_space: The dream's, over states.
        action_space: Chunks.
        horizon: Steps after which an episode is cut off.
    """

    render_mode = None

    def __init__(
        self,
        ensemble: Ensemble,
        starts: NDArray[np.float32],
        num_envs: int,
        *,
        observation_space: gymnasium.spaces.Box,
        action_space: ActionSpace,
        horizon: int,
    ) -> None:
        super().__init__(num_envs, observation_space, action_space)
        self._ensemble = ensemble
        self._starts = starts
        self._horizon = horizon
        self._state = np.zeros((num_envs, starts.shape[1]), np.float32)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._random = np.random.default_rng()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed starts and the choice of members."""
        self._random = np.random.default_rng(seed)
        return [seed] * self.num_envs

    def reset(self) -> NDArray[np.float32]:
        """New episodes."""
        self._begin(np.arange(self.num_envs))
        return self._observed()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the chunks."""
        self._actions = encode_actions(self.action_space, actions)

    def step_wait(self) -> Any:
        """Observations, rewards, dones, infos."""
        members, rows = len(self._ensemble.weights[0]), np.arange(self.num_envs)
        state = torch.from_numpy(self._state).expand(members, -1, -1)
        actions = torch.from_numpy(self._actions).flatten(1).expand(members, -1, -1)
        with torch.no_grad():
            after, rewards, logits = (x.numpy() for x in self._ensemble(state, actions))
        chosen = self._random.integers(members, size=self.num_envs)
        self._state = after[chosen, rows]
        self._elapsed += 1
        terminated = logits[chosen, rows] > 0
        truncated = ~terminated & (self._elapsed >= self._horizon)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(cut)} for cut in truncated]
        dones = terminated | truncated
        observations = self._observed()
        for row in np.flatnonzero(dones):
            infos[row]["terminal_observation"] = observations[row].copy()
        if dones.any():
            self._begin(np.flatnonzero(dones))
        return self._observed(), rewards[chosen, rows].astype(np.float32), dones, infos

    def close(self) -> None:
        """Nothing to free."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute, the same for all."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused."""
        raise AttributeError("the environments of an ensemble are one object")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Refused."""
        raise AttributeError("the environments of an ensemble are one object")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Never."""
        return [False for _ in self._get_indices(indices)]

    def _begin(self, where: NDArray[np.int64]) -> None:
        self._state[where] = self._starts[self._random.integers(len(self._starts), size=len(where))]
        self._elapsed[where] = 0

    def _observed(self) -> NDArray[np.float32]:
        space = self.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        return np.clip(self._state, space.low, space.high)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))
