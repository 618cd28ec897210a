"""Three ways in which a world model acts by itself, without search and without a trained policy.

    policy      chunks denoised from memory: no frame is made
    joint       chunks denoised together with the frames that they lead to
    best-of-n   N chunks from the action stream, each dreamed on, the best taken

The action stream imitates whoever was recorded, experts and noise alike: nothing tells it to be
good. Choosing among its proposals by dreamed return does.

Legend: N candidates, K low-level actions per step, D numbers per action.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kairos_env.agents.planning.planner import dreaming_model, legal, legal_tensor
from kairos_env.agents.planning.returns import Objective, dreamed_returns
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.world_model import ActingMode
from kairos_env.worlds import World


class StreamDecider:
    """Does what the action stream proposes.

    Args:
        world: With an action stream.
        mode: "policy" or "joint".
        denoise_steps: Passes per chunk.
    """

    def __init__(
        self, world: World, *, mode: ActingMode = "policy", denoise_steps: int = 10
    ) -> None:
        self.world, self._model = world, dreaming_model(world)
        self._mode, self._steps = mode, denoise_steps

    def begin(self, generator: np.random.Generator) -> None:
        """Take the episode's randomness."""
        self._generator = generator

    def decide(self, dream: DreamState) -> NDArray[np.float32]:
        """One proposal."""
        proposal = self._model.act(
            dream,
            mode=self._mode,
            seeds=drawn_seeds(self._generator, 1),
            denoise_steps=self._steps,
        )
        return legal(self.world, proposal.chunk[0].cpu().numpy())


class BestOfNDecider:
    """Takes the proposal whose future is dreamed to be best.

    Each candidate is a future in which the action stream goes on acting for the whole horizon, with
    its own noise; the dream's own randomness is the same for all.

    Args:
        world: With an action stream and a reward head.
        candidates: N.
        horizon: Steps that are dreamed.
        objective: What is wanted; the world's own reward by default.
        denoise_steps: Passes per chunk of the action stream.
    """

    def __init__(
        self,
        world: World,
        *,
        candidates: int = 32,
        horizon: int = 8,
        objective: Objective | None = None,
        denoise_steps: int = 10,
    ) -> None:
        if candidates < 1 or horizon < 1:
            raise ValueError(
                f"candidates and horizon must be at least 1, got {candidates} and {horizon}"
            )
        self.world, self._model = world, dreaming_model(world)
        self._candidates, self._horizon = candidates, horizon
        self._objective = objective or Objective()
        self._steps = denoise_steps

    def begin(self, generator: np.random.Generator) -> None:
        """Take the episode's randomness."""
        self._generator = generator

    def decide(self, dream: DreamState) -> NDArray[np.float32]:
        """The first chunk of the best future."""
        seeds = drawn_seeds(self._generator, self._candidates)
        first: list[Tensor] = []

        def proposed(t: int, dreams: DreamState) -> Tensor:
            proposal = self._model.act(dreams, seeds=seeds, denoise_steps=self._steps)
            told = legal_tensor(self.world, proposal.chunk)
            if t == 0:
                first.append(told)
            return told

        returns = dreamed_returns(
            self._model,
            dream.index([0] * self._candidates),
            proposed,
            horizon=self._horizon,
            objective=self._objective,
        )
        best: NDArray[np.float32] = first[0][int(returns.argmax())].cpu().numpy()
        return best


def drawn_seeds(generator: np.random.Generator, count: int) -> Tensor:
    """Streams of random numbers: (count,) int64."""
    return torch.from_numpy(generator.integers(2**62, size=count))
