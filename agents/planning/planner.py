"""Planning in the dream: search over action sequences, each scored by dreaming it.

Legend: N candidates, H steps ahead, K low-level actions per step, D numbers per action, T = H K /
hold numbers of a sequence in time.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kairos_env.agents.planning.returns import EndValue, FrameReward, Objective, dreamed_returns
from kairos_env.agents.planning.search import Array, Method, SearchConfig, search
from kairos_env.spaces import decode_actions, encode_actions
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.world_model import WorldModel
from kairos_env.worlds import World


@dataclass(frozen=True)
class Plan:
    """What to do, and what it promises."""

    chunk: NDArray[np.float32]
    """(K, D), encoded: the first step of the best sequence."""
    value: float
    """The return that the dream promises it."""
    guesses: Array
    """(G, T, D): where the search of the next step may begin."""


class Planner:
    """Model-predictive control: plan H steps, take the first, plan anew.

    All candidates are forks of one dream with one random stream, so they differ by their actions
    alone. Every argument is the attribute of `search` or `objective` with that name; the rest of
    these can be changed there.

    Args:
        world: Where to dream; one with a reward head, unless a reward is given.
        method: "cem", "icem" or "mppi".
        horizon: H, steps.
        candidates: N.
        iterations: Rounds of the search.
        elites: Candidates that a round's result is made of; None: a quarter.
        reward: What a predicted frame is worth, `reward(prediction)` to (N, F); None takes the
            world's own reward.
        value: What comes after the horizon, `value(prediction)` to (N,); None: nothing.
        discount: Per step.
        uncertainty_penalty: What a deviation of expected error costs per step.
        needs_frames: Whether reward or value look at `prediction.frames`.
        hold: Low-level actions for which a planned action is held; None: a whole step. Divides K.
        denoise_steps: Passes per dreamed frame; None takes the world's own number.

    Raises:
        ValueError: An argument cannot be used.
    """

    def __init__(
        self,
        world: World,
        *,
        method: Method = "cem",
        horizon: int = 5,
        candidates: int = 32,
        iterations: int = 3,
        elites: int | None = None,
        reward: FrameReward | None = None,
        value: EndValue | None = None,
        discount: float = 0.99,
        uncertainty_penalty: float = 0.0,
        needs_frames: bool = False,
        hold: int | None = None,
        denoise_steps: int | None = None,
    ) -> None:
        self.world, self.model = world, dreaming_model(world)
        self.search = SearchConfig(
            method=method,
            candidates=candidates,
            iterations=iterations,
            elites=max(1, candidates // 4) if elites is None else elites,
        )
        self.objective = Objective(
            reward=reward,
            value=value,
            discount=discount,
            uncertainty_penalty=uncertainty_penalty,
            needs_frames=needs_frames,
        )
        self.denoise_steps = denoise_steps
        K = self.model.config.chunk
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        if hold is not None and (hold < 1 or K % hold):
            raise ValueError(f"hold must divide the {K} actions of a step, got {hold}")
        self.horizon, self.hold = horizon, hold or K

    @property
    def rows(self) -> int:
        """Planned actions in a step: K / hold."""
        return self.model.config.chunk // self.hold

    def plan(
        self, dream: DreamState, generator: np.random.Generator, guesses: Array | None = None
    ) -> Plan:
        """The best next step.

        Args:
            dream: One dream; it stays as it is.
            generator: The search's randomness.
            guesses: From the plan of the step before; None begins from standing still.
        """
        if len(dream) != 1:
            raise ValueError(f"a plan is made for one dream at a time, got {len(dream)}")
        if guesses is None:
            guesses = np.zeros((1, self.horizon * self.rows, self.model.config.action_size))
        found = search(partial(self.score, dream), guesses, self.search, generator)
        first = self._chunks(found.best[None])[0, 0]
        known = np.concatenate([found.best[None], found.elites])
        return Plan(first, found.value, self._later(known))

    def score(self, dream: DreamState, candidates: Array) -> Array:
        """The dreamed return of each sequence (N, T, D): (N,)."""
        chunks = torch.from_numpy(self._chunks(candidates)).to(self.model.device)
        returns = dreamed_returns(
            self.model,
            dream.index([0] * len(candidates)),
            lambda t, _: chunks[:, t],
            horizon=self.horizon,
            objective=self.objective,
            denoise_steps=self.denoise_steps,
        )
        numbers: Array = returns.double().cpu().numpy()
        return numbers

    def _chunks(self, candidates: Array) -> NDArray[np.float32]:
        """Sequences (N, T, D) as the environment would execute them, encoded: (N, H, K, D)."""
        held = candidates.repeat(self.hold, axis=1)
        K = self.model.config.chunk
        return legal(self.world, held.reshape(len(held), self.horizon, K, -1))

    def _later(self, sequences: Array) -> Array:
        """The same sequences one step on; the last action goes on."""
        rest = sequences[:, self.rows :]
        return np.concatenate([rest, sequences[:, -1:].repeat(self.rows, axis=1)], axis=1)


def legal(world: World, encoded: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Encoded actions (..., K, D) as they are once the environment has executed them."""
    space = world.manifest.environment.space
    return encode_actions(space, decode_actions(space, encoded))


def legal_tensor(world: World, encoded: Tensor) -> Tensor:
    """`legal` for what a model proposes, where it stands."""
    return torch.from_numpy(legal(world, encoded.cpu().numpy())).to(encoded.device)


def dreaming_model(world: World) -> WorldModel:
    """The model of a world that was learned here; imported networks predict no reward.

    Raises:
        ValueError: It is another one.
    """
    if not isinstance(world.model, WorldModel):
        raise ValueError(
            f"world {world.name!r} is an imported video network: it predicts neither reward nor "
            "end, so nothing can be planned in it. Use a world from `kairos train`"
        )
    return world.model
