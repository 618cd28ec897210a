"""Clips for training, drawn so that rare moments are not rare.

Most frames of an episode look alike, and one in a hundred ends it. A model trained on evenly
drawn clips never learns to end an episode. So some clips are drawn at an end, some where much
moves, some at the start.

Every batch is a function of (rows, config, number of the batch): resuming needs that number and
nothing else.

Legend: B clips, T frames, A actions per frame, D numbers per action, S state,
E episodes, L length of an episode.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data.cache import FrameStore
from kairos_env.agents.data.dataset import DatasetSpec

Batch = dict[str, NDArray[Any]]


class Rows(Protocol):
    """What clips are cut from: a `TrainingCache`, or `DatasetRows` when there is none."""

    spec: DatasetSpec
    offsets: NDArray[np.int64]
    identities: list[str]
    texts: list[str]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    state: NDArray[np.float32]

    @property
    def motion(self) -> NDArray[np.float32] | None:
        """Change from each frame to the next; None when it is not known."""

    def frames(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames by row number."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How clips are drawn. Shares are of the clips in a batch; the rest is drawn evenly."""

    batch: int = 32
    """B; clips in a batch."""
    length: int = 16
    """T; frames in a clip."""
    seed: int = 0
    """Of the draws."""
    split: Literal["train", "validation", "all"] = "train"
    """Which episodes to draw from."""
    validation_share: float = 0.1
    """Share of episodes held out, by a hash of their reset seed: adding episodes moves none."""
    at_start: float = 0.15
    """Share of clips that begin with the first frame of an episode."""
    at_end: float = 0.2
    """Share of clips that show a termination."""
    in_motion: float = 0.3
    """Share of clips around a frame drawn with a chance proportional to how much moves."""
    length_power: float = 0.5
    """Chance of an episode in even draws: its length to this power (1: all frames alike)."""
    overhang: int = 4
    """A clip at an end may reach up to this many frames beyond it: an end is not always last."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.length < 2:
            raise ValueError(
                f"expected batch >= 1 and length >= 2, got {self.batch} and {self.length}"
            )
        shares = (self.at_start, self.at_end, self.in_motion)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"at_start, at_end and in_motion must be shares of at most 1 in all, got {shares}"
            )
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must be in [0, 1), got {self.validation_share}")
        if self.overhang < 0:
            raise ValueError(f"overhang counts frames and cannot be negative, got {self.overhang}")


class Clips:
    """An endless stream of batches.

    A batch is a dictionary: `frames` (B, T, H, W, 3) uint8, `actions` (B, T-1, A, D) where
    actions[:, t] lead from frame t to frame t+1, `rewards` and `terminated` (B, T-1), `state`
    (B, T, S), `valid` (B, T), `episode` (B,) and `start` (B,). Beyond the end of an episode the
    last frame repeats, actions and rewards are zero and `valid` is False; transition t is real
    where valid[:, t + 1].

    Args:
        rows: A `TrainingCache` or `DatasetRows`.
        config: How to draw.
        stores: More arrays with one row a frame (such as latents), by the name they get in the
            batch.
        with_frames: Leave out `frames` when False, for example when latents are read instead.
    """

    def __init__(
        self,
        rows: Rows,
        config: ClipConfig | None = None,
        *,
        stores: Mapping[str, FrameStore] | None = None,
        with_frames: bool = True,
    ) -> None:
        self.config = config = config or ClipConfig()
        self._rows = rows
        self._stores = dict(stores or {})
        self._with_frames = with_frames
        self._batches = 0  # how many were drawn
        self.episodes = select_episodes(rows.identities, config)
        if not len(self.episodes):
            raise ValueError(
                f"no episode is left for split {config.split!r} of {len(rows.identities)} episodes "
                f"with validation_share {config.validation_share}"
            )
        self._first = rows.offsets[:-1][self.episodes]
        self._length = np.diff(rows.offsets)[self.episodes]
        self._even = _cumulative(self._length.astype(np.float64) ** config.length_power)
        ends = rows.terminated.astype(np.int64)
        running = np.concatenate([[0], np.cumsum(ends)])
        self._ended = np.flatnonzero(running[self._first + self._length] > running[self._first])
        self._moving = self._motion_draws() if config.in_motion else None

    def __iter__(self) -> "Clips":
        return self

    def __next__(self) -> Batch:
        generator = np.random.default_rng([self.config.seed, self._batches])
        self._batches += 1
        return self.cut(*self._draw(generator))

    def cut(self, episode: NDArray[np.int64], start: NDArray[np.int64]) -> Batch:
        """The clips that begin at frame `start` of `self.episodes[episode]`, both (B,)."""
        length = self._length[episode][:, None]
        local = start[:, None] + np.arange(self.config.length)
        rows = self._first[episode][:, None] + np.minimum(local, length - 1)  # (B, T)
        source = self._rows
        batch: Batch = {"frames": source.frames(rows)} if self._with_frames else {}
        batch |= {name: store[rows] for name, store in self._stores.items()}
        batch |= {
            "actions": source.actions[rows[:, :-1]],
            "rewards": source.rewards[rows[:, :-1]],
            "terminated": source.terminated[rows[:, :-1]],
            "state": source.state[rows],
            "valid": local < length,
            "episode": self.episodes[episode],
            "start": start,
        }
        return batch

    def texts(self, batch: Batch) -> list[str]:
        """What the clips of a batch show, in words."""
        return [self._rows.texts[episode] for episode in batch["episode"]]

    def state_dict(self) -> dict[str, int]:
        """What is needed to go on exactly here."""
        return {"seed": self.config.seed, "batches": self._batches}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        if state["seed"] != self.config.seed:
            raise ValueError(
                f"the state is of seed {state['seed']}, these clips have seed {self.config.seed}"
            )
        self._batches = int(state["batches"])

    def _draw(self, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episode and first frame of each clip."""
        config, count = self.config, self.config.batch
        # Drawn for every clip, whatever its kind: the numbers one kind uses never shift those of
        # another.
        kind, place, fine, shift = generator.random((4, count))
        episode = np.searchsorted(self._even, place, side="right")
        latest = np.maximum(self._length[episode] - config.length, 0)
        start = (fine * (latest + 1)).astype(np.int64)

        start[kind < config.at_start] = 0
        low, high = config.at_start, config.at_start + config.at_end
        if len(self._ended):
            chosen = (kind >= low) & (kind < high)
            episode[chosen] = self._ended[(place[chosen] * len(self._ended)).astype(np.int64)]
            # at most so far that the transition that ends the episode is still in the clip
            furthest = min(config.overhang, config.length - 2)
            beyond = (shift[chosen] * (furthest + 1)).astype(np.int64)
            start[chosen] = self._length[episode[chosen]] - config.length + beyond
        low, high = high, high + config.in_motion
        if self._moving is not None:
            chosen = (kind >= low) & (kind < high)
            cumulative, episodes, frames = self._moving
            drawn = np.searchsorted(cumulative, place[chosen], side="right")
            episode[chosen] = episodes[drawn]
            back = (shift[chosen] * (config.length - 1)).astype(np.int64)
            latest = np.maximum(self._length[episode[chosen]] - config.length, 0)
            start[chosen] = np.minimum(frames[drawn] - back, latest)
        return episode, np.maximum(start, 0)

    def _motion_draws(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]] | None:
        """Cumulative chances of all transitions by motion, and the episode and frame of each."""
        if self._rows.motion is None:
            raise ValueError(
                "in_motion needs to know what moves, which takes a cache: use open_cache(dataset), "
                "or set in_motion=0"
            )
        episodes = np.repeat(np.arange(len(self._length)), self._length)
        frames = np.concatenate([np.arange(length) for length in self._length])
        motion = self._rows.motion[self._first[episodes] + frames].astype(np.float64)
        if not motion.any():
            return None
        # A cut or a teleport moves more than anything that can be learned; it shall not fill the
        # batch.
        motion = np.minimum(motion, np.quantile(motion[motion > 0], 0.95))
        return _cumulative(motion), episodes, frames


def select_episodes(identities: Sequence[str], config: ClipConfig) -> NDArray[np.int64]:
    """Numbers of the episodes in a split; decided by each episode's own name alone."""
    held_out = np.array(
        [_hashed(identity) < config.validation_share for identity in identities], bool
    )
    wanted = {"all": np.ones_like(held_out), "validation": held_out, "train": ~held_out}[
        config.split
    ]
    return np.flatnonzero(wanted)


def _hashed(identity: str) -> float:
    """A number in [0, 1) that looks random and is always the same."""
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """For `searchsorted`: upper ends of the intervals that share [0, 1) by weight."""
    total = np.cumsum(weights)
    # The last end is beyond any draw, whatever rounding did.
    return np.append(total[:-1] / total[-1], np.inf)
