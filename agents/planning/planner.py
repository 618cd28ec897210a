"""Planning in the dream: search over action sequences, each scored by dreaming it.

Legend: N candidates, H steps ahead, K low-level actions per step, D numbers per action, T = H K /
hold numbers of a sequence in time.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kairos_env.agents.planning.returns import Objective, dreamed_returns
from kairos_env.agents.planning.search import Array, SearchConfig, search
from kairos_env.spaces import decode_actions, encode_actions
from kairos_env.world_model.state import DreamState
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


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Model-predictive control: plan H steps, take the first, plan anew.

    All candidates are forks of one dream with one random stream, so they differ by their actions
    alone.
    """

    world: World
    search: SearchConfig = SearchConfig()
    objective: Objective = Objective()
    horizon: int = 6
    """H."""
    hold: int | None = None
    """Low-level actions for which a planned action is held; None: a whole step. Divides K."""
    denoise_steps: int | None = None
    """Passes per dreamed frame; None takes the world's own number."""

    def __post_init__(self) -> None:
        """Refuse what cannot be planned."""
        K = self.world.model.config.chunk
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {self.horizon}")
        if self.hold is not None and (self.hold < 1 or K % self.hold):
            raise ValueError(f"hold must divide the {K} actions of a step, got {self.hold}")

    @property
    def rows(self) -> int:
        """Planned actions in a step: K / hold."""
        return self.world.model.config.chunk // (self.hold or self.world.model.config.chunk)

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
            shape = (1, self.horizon * self.rows, self.world.model.config.action_size)
            guesses = np.zeros(shape)
        found = search(
            lambda candidates: self.score(dream, candidates), guesses, self.search, generator
        )
        first = self._chunks(found.best[None])[0, 0]
        return Plan(
            first, found.value, self._later(np.concatenate([found.best[None], found.elites]))
        )

    def score(self, dream: DreamState, candidates: Array) -> Array:
        """The dreamed return of each sequence (N, T, D): (N,)."""
        model = self.world.model
        chunks = torch.from_numpy(self._chunks(candidates)).to(model.device)
        returns: Tensor = dreamed_returns(
            model,
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
        K = self.world.model.config.chunk
        held = candidates.repeat(K // self.rows, axis=1)
        return legal(self.world, held.reshape(len(held), self.horizon, K, -1))

    def _later(self, sequences: Array) -> Array:
        """The same sequences one step on; the last action goes on."""
        rest = sequences[:, self.rows :]
        return np.concatenate([rest, sequences[:, -1:].repeat(self.rows, axis=1)], axis=1)


def legal(world: World, encoded: NDArray[np.floating]) -> NDArray[np.float32]:
    """Encoded actions (..., K, D) as they are when they come back from the environment."""
    space = world.manifest.environment.space
    return encode_actions(space, decode_actions(space, encoded))
