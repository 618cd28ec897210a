"""Recorded episodes as what baselines learn from: state, chunk, what followed.

Shapes: N transitions, K low-level actions a step, D numbers per action, S state size, H W pixels.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data.dataset import Dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Transitions:
    """N steps of recorded episodes."""

    state: NDArray[np.float32]
    """(N, S)."""
    actions: NDArray[np.float32]
    """(N, K, D), as the network sees them."""
    next_state: NDArray[np.float32]
    """(N, S)."""
    reward: NDArray[np.float32]
    """(N,)."""
    terminated: NDArray[np.bool_]
    """(N,)."""
    last: NDArray[np.bool_]
    """(N,): the next step, if there is one, is another episode's."""
    frames: NDArray[np.uint8] | None = None
    """(N, H, W, 3), where they were asked for."""

    def __len__(self) -> int:
        return len(self.state)

    def to_go(self, gamma: float) -> NDArray[np.float32]:
        """(N,): discounted rewards from each step to the end of its recording."""
        returns, after = np.zeros_like(self.reward), np.float32(0.0)
        for step in reversed(range(len(self))):
            after = self.reward[step] + np.float32(gamma) * after * ~self.last[step]
            returns[step] = after
        return returns


def read_transitions(
    dataset: Dataset, *, frames_per_chunk: int = 1, solved: bool = False, frames: bool = False
) -> Transitions:
    """All steps of a dataset.

    Args:
        dataset: Episodes with actions.
        frames_per_chunk: F: one step leads F frames on.
        solved: Only those of episodes that solved their task; all where nobody recorded that.
        frames: Read the frames too.
    """
    F = frames_per_chunk
    tables = [dataset.table(index) for index in range(len(dataset))]
    chosen = [i for i, episode in enumerate(tables) if not solved or episode.success is not False]
    parts = []
    for index in chosen:
        episode = tables[index]
        n = (len(episode) - 1) // F
        rows = np.arange(n) * F
        size = episode.actions.shape[-1]
        parts.append(
            Transitions(
                state=episode.state[rows],
                actions=episode.actions[: n * F].reshape(n, -1, size),
                next_state=episode.state[rows + F],
                reward=episode.rewards[: n * F].reshape(n, F).sum(1),
                terminated=episode.terminated[: n * F].reshape(n, F).any(1),
                last=np.arange(n) == n - 1,
                frames=dataset.frames(index)[rows] if frames else None,
            )
        )
    if not sum(map(len, parts)):
        raise ValueError(f"{dataset.path} holds no {'solved ' * solved}episode to learn from")
    names = [field.name for field in dataclasses.fields(Transitions)][: None if frames else -1]
    return Transitions(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )
