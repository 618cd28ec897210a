"""What is compared with the truth: the dream, two guesses that know nothing, and the truth itself.

A predictor sees a true history and then only actions. Like a world model it keeps nothing between
calls: memory goes in and comes out.

Legend: b episodes still running, F frames per step, K actions per step, D action size,
S state size.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kairos_env.benchmarks.fidelity.episodes import Truth
from kairos_env.starts import Starts
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.world_model import WorldModel

Rows = NDArray[np.int64]


class Guess(NamedTuple):
    """What one step of b episodes looks like to a predictor; None where it says nothing."""

    frames: NDArray[np.uint8]
    """(b, F, H, W, 3)."""
    state: NDArray[np.float32] | None = None
    """(b, F, S)."""
    reward: NDArray[np.float32] | None = None
    """(b, F)."""
    ended: NDArray[np.bool_] | None = None
    """(b, F): the episode is said to end with this frame."""
    uncertainty: NDArray[np.float32] | None = None
    """(b,): the error that is expected of state and reward, in deviations."""


class Predictor(Protocol):
    """Continues true histories, given actions."""

    def start(self, truth: Truth) -> Any:
        """Read the histories of B episodes (and nothing after them)."""

    def step(self, memory: Any, chunk: NDArray[np.float32]) -> tuple[Any, Guess]:
        """One step of b episodes, given their actions (b, K, D)."""

    def keep(self, memory: Any, rows: Rows) -> Any:
        """The memory of some of the episodes; the others have ended."""


class Dream:
    """The world under test."""

    def __init__(self, model: WorldModel) -> None:
        self._model = model
        self._threshold = model.config.heads.end_threshold

    def start(self, truth: Truth) -> DreamState:
        """Real histories in."""
        device = self._model.device
        arrays = (truth.history, truth.history_actions, truth.seeds)
        frames, actions, seeds = (torch.from_numpy(x).to(device) for x in arrays)
        return self._model.start(frames, actions, seeds=seeds)

    def step(self, memory: DreamState, chunk: NDArray[np.float32]) -> tuple[DreamState, Guess]:
        """One call of the model for all episodes."""
        actions = torch.from_numpy(chunk).to(self._model.device)
        memory, prediction = self._model.step(memory, actions)
        assert prediction.frames is not None
        return memory, Guess(
            frames=prediction.frames.cpu().numpy(),
            state=prediction.state.float().cpu().numpy(),
            reward=prediction.reward.float().cpu().numpy(),
            ended=(prediction.end_probability >= self._threshold).cpu().numpy(),
            uncertainty=prediction.uncertainty.float().cpu().numpy(),
        )

    def keep(self, memory: DreamState, rows: Rows) -> DreamState:
        """Index the dreams."""
        return memory.index(torch.from_numpy(rows))


class Held(NamedTuple):
    """A picture and a state that never change."""

    frames: NDArray[np.uint8]
    state: NDArray[np.float32]


class _Still:
    """What the two guesses share: every frame is the one they began with, and nothing ends."""

    def __init__(self, frames_per_step: int) -> None:
        self._frames_per_step = frames_per_step

    def step(self, memory: Held, chunk: NDArray[np.float32]) -> tuple[Held, Guess]:
        """The same again."""
        F = self._frames_per_step
        return memory, Guess(
            frames=np.repeat(memory.frames[:, None], F, 1),
            state=np.repeat(memory.state[:, None], F, 1),
            ended=np.zeros((len(chunk), F), bool),
        )

    def keep(self, memory: Held, rows: Rows) -> Held:
        """Some of them."""
        return Held(memory.frames[rows], memory.state[rows])


class CopyLast(_Still):
    """Nothing moves: the last true frame, and the last true state (which a dream is never told)."""

    def start(self, truth: Truth) -> Held:
        """Remember where everything is."""
        return Held(truth.history[:, -1], truth.history_state)


class MeanFrame(_Still):
    """The average: of the frames and states that the world's own starts hold."""

    def __init__(self, starts: Starts, frames_per_step: int) -> None:
        super().__init__(frames_per_step)
        frames = starts.frames.reshape(-1, *starts.frames.shape[2:])
        self._frame = frames.mean(0, dtype=np.float64).round().astype(np.uint8)
        self._state = starts.state.mean(0)

    def start(self, truth: Truth) -> Held:
        """Look at nothing."""
        B = len(truth)
        frames = np.broadcast_to(self._frame, (B, *self._frame.shape))
        return Held(frames, np.broadcast_to(self._state, (B, *self._state.shape)))


class Replay:
    """The truth as a predictor: what a perfect dream would say. Beyond an end it stands still."""

    def start(self, truth: Truth) -> tuple[Truth, Rows, int]:
        """Look ahead."""
        return truth, np.arange(len(truth)), 0

    def step(
        self, memory: tuple[Truth, Rows, int], chunk: NDArray[np.float32]
    ) -> tuple[tuple[Truth, Rows, int], Guess]:
        """What happened."""
        del chunk
        truth, rows, frame = memory
        F = truth.frames_per_step
        # beyond the last recorded step the last one is repeated, without its end
        first = min(frame, truth.frames.shape[1] - F)
        now = slice(first, first + F)
        guess = Guess(
            frames=truth.frames[rows, now],
            state=truth.state[rows, now],
            reward=truth.reward[rows, now],
            ended=truth.ended[rows, now] & (frame == first),
        )
        return (truth, rows, frame + F), guess

    def keep(self, memory: tuple[Truth, Rows, int], rows: Rows) -> tuple[Truth, Rows, int]:
        """Some of them."""
        return memory[0], memory[1][rows], memory[2]
