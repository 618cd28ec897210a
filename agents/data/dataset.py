"""The face that every dataset shows, whatever layout it has on disk.

Legend: T frames of an episode, H W pixels, A actions per frame, D numbers per action, S state.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data.episode import Episode


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What all episodes of a dataset share."""

    frame_size: tuple[int, int]
    """Height and width of the frames as they are read."""
    actions_per_frame: int
    """A; low-level actions between one frame and the next."""
    action_size: int
    """D; 0 in action-free video."""
    state_size: int
    """S; 0 where no state was recorded."""
    fps: float
    """Frames a second."""
    layout: str
    """What kind of dataset it is, for people: "kairos", "lerobot v2.1", ..."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the data come from, as far as the files say; JSON."""

    @property
    def has_actions(self) -> bool:
        """Whether actions were recorded at all."""
        return self.action_size > 0


class Dataset(ABC):
    """Episodes by number. Frames are read when asked for; everything else is small."""

    spec: DatasetSpec
    path: str
    """Where it was opened, for messages."""
    lengths: NDArray[np.int64]
    """Frames of each episode, as many as `episode(i).frames` holds."""

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def table(self, index: int) -> Episode:
        """Episode `index` with everything but pixels: its `frames` are (T, 0, 0, 3)."""

    @abstractmethod
    def frames(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1` of an episode, (n, H, W, 3)."""

    def start(self, index: int) -> dict[str, NDArray[Any]]:
        """The simulator's snapshot at the first frame of an episode; empty without one."""
        del index
        return {}

    def episode(self, index: int) -> Episode:
        """Episode `index` with its frames and its snapshot."""
        return replace(self.table(index), frames=self.frames(index), start=self.start(index))

    def identity(self, index: int) -> str:
        """A name that stays when episodes are added: decides between train and validation."""
        return str(index)

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the files change; a cache made from other files is made again."""

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(len(self)))

    def __repr__(self) -> str:
        frames = int(self.lengths.sum())
        return f"<{self.spec.layout} dataset {self.path}: {len(self)} episodes, {frames} frames>"


def without_frames(length: int) -> NDArray[np.uint8]:
    """Stand-in for the pixels of an episode whose frames are not read."""
    return np.zeros((length, 0, 0, 3), np.uint8)
