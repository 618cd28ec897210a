"""Decoded frames in one file that is mapped into memory: read many times, decoded once.

A cache is a folder of plain `.npy` arrays with one row a frame. Rows may be anything: pixels, or
a tokenizer's latents as float16. It can be deleted at any time; `open_cache` makes it again when
it is missing or when the dataset has changed.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kairos_env.agents.data.dataset import Dataset, DatasetSpec
from kairos_env.agents.data.files import BrokenDataError, read_json, replacing, write_json

FORMAT = 1
HEADER = "cache.json"  # written last: a folder without it is not a cache
FRAMES = "frames"
# numpy ships these without types
_dtype_to_descr: Any = np.lib.format.dtype_to_descr
_write_header: Any = np.lib.format.write_array_header_1_0


class FrameStore:
    """Rows of one shape and type in a mapped `.npy` file; only what is indexed is read.

    Args:
        path: The file, made by `FrameStore.write`.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._rows: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BrokenDataError(
                f"{path} cannot be read ({error}); delete the cache, it will be made again"
            ) from error
        self.path = path

    @classmethod
    def write(
        cls,
        path: Path,
        batches: Iterable[NDArray[Any]],
        *,
        num_rows: int,
        row_shape: Sequence[int],
        dtype: DTypeLike,
    ) -> "FrameStore":
        """Write rows as they come, in batches (n, *row_shape), and open the result."""
        kind, written = np.dtype(dtype), 0
        header = {
            "descr": _dtype_to_descr(kind),
            "fortran_order": False,
            "shape": (num_rows, *row_shape),
        }
        # Written, not mapped: on a full disk a write raises, where a mapped page would end the
        # process.
        with replacing(path) as file:
            _write_header(file, header)
            for batch in batches:
                if batch.shape[1:] != tuple(row_shape):
                    raise ValueError(
                        f"{path.name}: expected rows of {row_shape}, got {batch.shape[1:]}"
                    )
                file.write(np.ascontiguousarray(batch, kind).data)
                written += len(batch)
            if written != num_rows:
                raise ValueError(f"{path.name}: expected {num_rows} rows, got {written}")
        return cls(path)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *shape of a row)."""
        return self._rows.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self._rows.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Rows by number, slice or array of numbers, copied out of the map."""
        picked = self._rows[rows]
        # an array of numbers has copied already
        return np.asarray(picked) if isinstance(rows, np.ndarray) else np.array(picked)


class TrainingCache:
    """All that training needs of a dataset, one row a frame; opened by `open_cache`.

    Args:
        folder: The cache's folder.
    """

    def __init__(self, folder: Path) -> None:
        header = read_json(folder / HEADER)
        self.folder = folder
        spec = {**header["spec"], "frame_size": tuple(header["spec"]["frame_size"])}
        self.spec = DatasetSpec(**spec)
        self.identities: list[str] = header["identities"]
        self.texts: list[str] = header["texts"]
        self.offsets = np.asarray(
            header["offsets"], np.int64
        )  # (E+1,): rows of episode e are offsets[e : e+2]
        self._frames = self.store(FRAMES)
        # Small beside the frames: held in memory.
        self.actions: NDArray[np.float32] = self.store("actions")[:]  # (N, A, D)
        self.rewards: NDArray[np.float32] = self.store("rewards")[:]  # (N,)
        self.terminated: NDArray[np.bool_] = self.store("terminated")[:]  # (N,)
        self.state: NDArray[np.float32] = self.store("state")[:]  # (N, S)
        self.motion: NDArray[np.float32] = self.store("motion")[:]  # (N,)

    def frames(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames by row number, any shape of them: (...,) to (..., H, W, 3)."""
        return np.asarray(self._frames[rows], np.uint8)

    def store(self, name: str) -> FrameStore:
        """An array of the cache, by name."""
        return FrameStore(self.folder / f"{name}.npy")

    def has(self, name: str) -> bool:
        """Whether the cache holds an array of that name."""
        return (self.folder / f"{name}.npy").is_file()

    def add(
        self,
        name: str,
        batches: Iterable[NDArray[Any]],
        *,
        row_shape: Sequence[int],
        dtype: DTypeLike = np.float16,
    ) -> FrameStore:
        """Keep something computed for every frame, such as latents, beside the frames.

        Put what it depends on (the tokenizer's hash) into the name: nothing else tells two apart.
        """
        path = self.folder / f"{name}.npy"
        return FrameStore.write(
            path, batches, num_rows=int(self.offsets[-1]), row_shape=row_shape, dtype=dtype
        )


class DatasetRows:
    """The face of a `TrainingCache` without one: frames are decoded at every read."""

    motion: None = None  # unknown without decoding everything

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.spec = dataset.spec
        self.offsets = np.concatenate([[0], np.cumsum(dataset.lengths)]).astype(np.int64)
        self.identities = [dataset.identity(index) for index in range(len(dataset))]
        columns, self.texts = _tables(dataset)
        self.actions, self.rewards = columns["actions"], columns["rewards"]
        self.terminated, self.state = columns["terminated"], columns["state"]

    def frames(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Frames by row number; each line of `rows` (..., T) must stay within one episode."""
        lines = rows.reshape(-1, rows.shape[-1])
        clips = [self._clip(line) for line in lines]
        shape = (*rows.shape, *clips[0].shape[1:])
        return np.asarray(np.stack(clips).reshape(shape))

    def _clip(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        episode = int(np.searchsorted(self.offsets, rows[0], side="right")) - 1
        local = rows - self.offsets[episode]
        first = int(local.min())
        every = self._dataset.frames(episode, first, int(local.max()) + 1)
        return np.asarray(every[local - first])


def open_cache(
    dataset: Dataset,
    folder: str | Path | None = None,
    *,
    on_episode: Callable[[int], None] | None = None,
) -> TrainingCache:
    """The dataset's cache, made if it is missing or if the dataset has changed.

    Args:
        dataset: What to cache.
        folder: Where caches are kept; `.cache` in the dataset's own folder when not given.
        on_episode: Called with the number of each episode once it is decoded.
    """
    if folder is None:
        if not Path(dataset.path).is_dir():
            raise ValueError(
                f"{dataset.path} is no folder that could hold a cache: say where to keep it"
            )
        folder = Path(dataset.path) / ".cache"
    spec = asdict(dataset.spec)
    identity = f"{FORMAT} {dataset.fingerprint()} {spec['frame_size']} {spec['actions_per_frame']}"
    height, width = dataset.spec.frame_size
    name = f"{height}x{width}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    place = Path(folder) / name
    if not (place / HEADER).is_file():
        _build(dataset, place, on_episode or (lambda index: None))
    return TrainingCache(place)


def _build(dataset: Dataset, folder: Path, on_episode: Callable[[int], None]) -> None:
    total = int(dataset.lengths.sum())
    motion: list[NDArray[np.float32]] = []

    def decoded() -> Iterator[NDArray[np.uint8]]:
        for index in range(len(dataset)):
            frames = dataset.frames(index)
            motion.append(_motion(frames))
            yield frames
            on_episode(index)

    FrameStore.write(
        folder / f"{FRAMES}.npy",
        decoded(),
        num_rows=total,
        row_shape=(*dataset.spec.frame_size, 3),
        dtype=np.uint8,
    )
    columns, texts = _tables(dataset)
    columns["motion"] = np.concatenate(motion)
    for name, rows in columns.items():
        FrameStore.write(
            folder / f"{name}.npy",
            [rows],
            num_rows=total,
            row_shape=rows.shape[1:],
            dtype=rows.dtype,
        )
    write_json(
        folder / HEADER,
        {
            "format": FORMAT,
            "spec": asdict(dataset.spec),
            "offsets": [0, *np.cumsum(dataset.lengths).tolist()],
            "identities": [dataset.identity(index) for index in range(len(dataset))],
            "texts": texts,
        },
    )


def _tables(dataset: Dataset) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """All columns but pixels, a row a frame; an episode's last row has no transition: zeros."""
    episodes = [dataset.table(index) for index in range(len(dataset))]
    columns: dict[str, NDArray[Any]] = {}
    for name in ("actions", "rewards", "terminated"):
        rows = [_padded(getattr(episode, name)) for episode in episodes]
        columns[name] = np.concatenate(rows)
    columns["state"] = np.concatenate([episode.state for episode in episodes])
    return columns, [episode.text for episode in episodes]


def _padded(rows: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([rows, np.zeros_like(rows, shape=(1, *rows.shape[1:]))])


def _motion(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(T,): mean absolute change of a pixel value from each frame to the next, 0 for the last."""
    motion = np.zeros(len(frames), np.float32)
    for row in range(len(frames) - 1):
        motion[row] = np.abs(frames[row + 1].astype(np.int16) - frames[row]).mean()
    return motion
