"""Datasets made from datasets: rows grouped, actions scaled, several joined into one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data.dataset import Dataset, DatasetSpec, without_frames
from kairos_env.agents.data.episode import Episode


class GroupedDataset(Dataset):
    """Every `group` rows become one: last frame, all actions, the sum of the rewards.

    A group that an episode cuts short is kept when the episode terminated in it, as an
    environment's chunk ends early; its missing actions repeat the last one. Otherwise it is
    dropped: it would show too little motion.
    """

    def __init__(self, dataset: Dataset, group: int) -> None:
        if group < 1:
            raise ValueError(f"group must be at least 1 row, got {group}")
        self._dataset = dataset
        self._group = group
        self.path = dataset.path
        spec = dataset.spec
        self.spec = replace(
            spec, actions_per_frame=spec.actions_per_frame * group, fps=spec.fps / group
        )
        self._kept = [self._rows_kept(index) for index in range(len(dataset))]
        self.lengths = np.array([len(rows) for rows in self._kept], np.int64)

    def _rows_kept(self, index: int) -> NDArray[np.int64]:
        """Which rows of the episode remain as frames."""
        length = int(self._dataset.lengths[index])
        rows = np.arange(0, length, self._group)
        last = length - 1
        if rows[-1] != last and self._dataset.table(index).terminated[rows[-1] :].any():
            rows = np.append(rows, last)
        return rows.astype(np.int64)

    def table(self, index: int) -> Episode:
        """Episode `index` with everything but pixels."""
        episode, rows = self._dataset.table(index), self._kept[index]
        # transition n of a group of g: rows[n] + 0 ... rows[n] + g-1, short of the end of a cut
        # group
        steps = rows[:-1, None] + np.arange(self._group)
        real = steps < rows[1:, None]
        steps = np.minimum(steps, rows[1:, None] - 1)
        spec = self.spec
        return replace(
            episode,
            frames=without_frames(len(rows)),
            actions=episode.actions[steps].reshape(-1, spec.actions_per_frame, spec.action_size),
            rewards=np.where(real, episode.rewards[steps], 0).sum(axis=1, dtype=np.float32),
            terminated=(episode.terminated[steps] & real).any(axis=1),
            truncated=(episode.truncated[steps] & real).any(axis=1),
            state=episode.state[rows],
        )

    def frames(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1`, counted in groups."""
        rows = self._kept[index][start:stop]
        if not len(rows):
            return self._dataset.frames(index, 0, 0)
        every = self._dataset.frames(index, int(rows[0]), int(rows[-1]) + 1)
        return np.asarray(every[rows - rows[0]])

    def identity(self, index: int) -> str:
        """That of the episode it was made from."""
        return self._dataset.identity(index)

    def fingerprint(self) -> str:
        """That of the files and the grouping."""
        return f"{self._dataset.fingerprint()} group {self._group}"


class ScaledDataset(Dataset):
    """Actions mapped to [-1, 1] by the smallest and largest value of each axis.

    Our own recordings are scaled by the action space already. `spec.provenance["action_range"]`
    keeps what is needed to map back.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.path, self.lengths = dataset.path, dataset.lengths
        flat = [
            dataset.table(i).actions.reshape(-1, dataset.spec.action_size)
            for i in range(len(dataset))
        ]
        every = np.concatenate(flat)
        self._low, self._high = every.min(axis=0), every.max(axis=0)
        bounds = {"low": self._low.tolist(), "high": self._high.tolist()}
        self.spec = replace(
            dataset.spec, provenance={**dataset.spec.provenance, "action_range": bounds}
        )

    def table(self, index: int) -> Episode:
        """Episode `index` with everything but pixels."""
        episode = self._dataset.table(index)
        width = np.where(self._high > self._low, self._high - self._low, 1.0)
        scaled = 2 * (episode.actions - self._low) / width - 1
        return replace(episode, actions=scaled.astype(np.float32))

    def frames(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1` of an episode."""
        return self._dataset.frames(index, start, stop)

    def identity(self, index: int) -> str:
        """That of the episode."""
        return self._dataset.identity(index)

    def fingerprint(self) -> str:
        """That of the files and the scaling."""
        return f"{self._dataset.fingerprint()} scaled"


class FilmDataset(Dataset):
    """What can be seen and read of a dataset, as of films: nobody knows what was done in it.

    Actions, rewards and state are zeros in the sizes of other recordings, beside which it stands.
    """

    def __init__(self, dataset: Dataset, like: DatasetSpec) -> None:
        self._dataset = dataset
        self.path, self.lengths = dataset.path, dataset.lengths
        self.spec = replace(like, frame_size=dataset.spec.frame_size)

    def table(self, index: int) -> Episode:
        """Episode `index` with everything but pixels."""
        length, spec = int(self.lengths[index]), self.spec
        shape = (length - 1, spec.actions_per_frame, spec.action_size)
        return Episode(
            frames=without_frames(length),
            actions=np.zeros(shape, np.float32),
            rewards=np.zeros(length - 1, np.float32),
            terminated=np.zeros(length - 1, np.bool_),
            truncated=np.zeros(length - 1, np.bool_),
            state=np.zeros((length, spec.state_size), np.float32),
            text=self._dataset.table(index).text,
        )

    def frames(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1` of an episode."""
        return self._dataset.frames(index, start, stop)

    def identity(self, index: int) -> str:
        """That of the episode."""
        return self._dataset.identity(index)

    def fingerprint(self) -> str:
        """That of the files, and the sizes."""
        spec = self.spec
        sizes = (spec.actions_per_frame, spec.action_size, spec.state_size)
        return f"{self._dataset.fingerprint()} film {sizes}"


class JoinedDataset(Dataset):
    """Several datasets as one, for example what better and better policies recorded."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        if not datasets:
            raise ValueError("join at least one dataset, got none")
        first = datasets[0].spec
        for dataset in datasets[1:]:
            for name in ("frame_size", "actions_per_frame", "action_size", "state_size", "fps"):
                ours, theirs = getattr(first, name), getattr(dataset.spec, name)
                if ours != theirs:
                    raise ValueError(
                        f"{datasets[0].path} and {dataset.path} do not fit together: "
                        f"{name} is {ours} and {theirs}"
                    )
        self.parts = list(datasets)
        self._firsts = np.cumsum([0, *map(len, datasets)])
        self.path = ", ".join(dataset.path for dataset in datasets)
        self.lengths = np.concatenate([dataset.lengths for dataset in datasets])
        self.spec = first

    def _locate(self, index: int) -> tuple[Dataset, int]:
        which = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self.parts[which], index - int(self._firsts[which])

    def table(self, index: int) -> Episode:
        """Episode `index` with everything but pixels."""
        dataset, local = self._locate(index)
        return dataset.table(local)

    def frames(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1` of an episode."""
        dataset, local = self._locate(index)
        return dataset.frames(local, start, stop)

    def start(self, index: int) -> dict[str, NDArray[Any]]:
        """The simulator's snapshot at the first frame of an episode."""
        dataset, local = self._locate(index)
        return dataset.start(local)

    def identity(self, index: int) -> str:
        """That of the episode in its own dataset."""
        dataset, local = self._locate(index)
        return dataset.identity(local)

    def fingerprint(self) -> str:
        """Those of all parts."""
        return " + ".join(dataset.fingerprint() for dataset in self.parts)
