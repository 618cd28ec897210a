"""Write a dataset in the LeRobot v3.0 layout, file by file: what is finished stays finished.

Episodes arrive staged, in any order (see staging.py). Whenever the next `episodes_per_file` of
them are there, they become one video file and one data file, and `meta/info.json` is replaced
last: it says how many episodes count, so a folder is a valid dataset at every moment, and a kill
costs only the episodes that were being recorded.
"""

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.agents.data import format as fmt
from kairos_env.agents.data.files import read_json, replacing, write_json
from kairos_env.agents.data.staging import (
    FOLDER,
    StagedEpisode,
    load_staged,
    pack_arrays,
    staged_indices,
    staged_path,
    sweep,
)
from kairos_env.agents.data.stats import Stats, pool
from kairos_env.agents.data.tables import (
    frame_table,
    read_table,
    row_table,
    task_table,
    write_table,
)
from kairos_env.agents.data.video import join

EPISODES_PER_FILE = 100
REQUEST = f"{FOLDER}/request.json"  # what is being collected, until info.json can say it
_WRITER, _WORKERS = "lock", "workers"  # files that only serve as locks


class DatasetWriter:
    """The dataset in a folder: made when it is not there, continued when it is.

    Args:
        root: The dataset's folder.
        layout: Sizes that all episodes share.
        provenance: Where the episodes come from; JSON. Continuing a dataset asks for the same.
        episodes_per_file: Episodes in each video and data file.
    """

    def __init__(
        self,
        root: Path,
        *,
        layout: fmt.Layout,
        provenance: Mapping[str, Any],
        episodes_per_file: int = EPISODES_PER_FILE,
    ) -> None:
        self.root = root
        self.layout = layout
        self._per_file = episodes_per_file
        self._provenance = dict(provenance)
        self._rows: list[dict[str, Any]] = []  # one per finished episode, as in meta/episodes
        self._tasks: list[str] = []
        if (root / fmt.INFO).is_file():
            info = read_json(root / fmt.INFO)
            self._agree(info.get("kairos"), info["features"])
            self._read_rows(info["total_episodes"])
            # A kill between info.json and the last of these leaves episodes that are in the files.
            self._unstage(index for index in staged_indices(root) if index < self.num_episodes)
        elif (root / REQUEST).is_file():
            request = read_json(root / REQUEST)
            self._agree(request["kairos"], request["features"])
        else:
            request = {"kairos": self._provenance, "features": layout.features()}
            write_json(root / REQUEST, request)

    @property
    def num_episodes(self) -> int:
        """Episodes that are part of the dataset."""
        return len(self._rows)

    @property
    def num_frames(self) -> int:
        """Frames that are part of the dataset."""
        return int(self._rows[-1]["dataset_to_index"]) if self._rows else 0

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A row an episode, as in meta/episodes."""
        return self._rows

    def missing(self, episodes: int) -> list[int]:
        """Numbers of the episodes that still have to be recorded to have `episodes` of them."""
        staged = staged_indices(self.root)
        return [index for index in range(self.num_episodes, episodes) if index not in staged]

    def write_ready(self, episodes: int) -> None:
        """Turn staged episodes into files as far as they follow on without a gap.

        Args:
            episodes: How many there will be in the end; the last file may hold fewer than the
                others.
        """
        staged = staged_indices(self.root)
        while self.num_episodes < episodes:
            stop = min(self.num_episodes + self._per_file, episodes)
            if not staged.issuperset(range(self.num_episodes, stop)):
                return
            self._write_file(stop)

    def _write_file(self, stop: int) -> None:
        """Episodes up to `stop` become the next file of each kind; info.json comes last."""
        first = self.num_episodes
        number = 1 + self._rows[-1]["data_file"] if self._rows else 0
        staged = [load_staged(self.root, index) for index in range(first, stop)]
        with replacing(self.root / fmt.located(fmt.VIDEO, number), durable=True) as file:
            beginnings = join([episode.video for episode in staged], file, fps=self.layout.fps)
        rows = [
            self._row(first + position, episode, number, beginnings[position], staged)
            for position, episode in enumerate(staged)
        ]
        self._write_frames(number, staged, rows)
        write_table(
            self.root / fmt.located(fmt.STARTS, number),
            row_table(
                [
                    {"episode_index": first + position, "snapshot": pack_arrays(episode.start)}
                    for position, episode in enumerate(staged)
                ]
            ),
        )
        write_table(self.root / fmt.located(fmt.EPISODES, number), row_table(rows))
        self._rows += [_with_file(row, number) for row in rows]
        write_table(self.root / fmt.TASKS, task_table(self._tasks))
        write_json(self.root / fmt.STATS, self._pooled(), durable=True)
        write_json(self.root / fmt.INFO, self._info(), durable=True)
        self._unstage(range(first, stop))

    def _unstage(self, indices: Iterable[int]) -> None:
        for index in indices:
            staged_path(self.root, index).unlink()

    def _row(
        self,
        index: int,
        episode: StagedEpisode,
        number: int,
        first_frame: int,
        group: list[StagedEpisode],
    ) -> dict[str, Any]:
        """An episode's row of meta/episodes."""
        about = episode.about
        if about["text"] not in self._tasks:
            self._tasks.append(about["text"])
        position = index - self.num_episodes
        begin = self.num_frames + sum(map(len, group[:position]))
        chunk_index, file_index = divmod(number, fmt.FILES_PER_CHUNK)
        place = {"chunk_index": chunk_index, "file_index": file_index}
        video = f"videos/{fmt.CAMERA}"
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [about["text"]],
            "length": len(episode),
            "dataset_from_index": begin,
            "dataset_to_index": begin + len(episode),
            **{f"data/{name}": value for name, value in place.items()},
            **{f"{video}/{name}": value for name, value in place.items()},
            f"{video}/from_timestamp": first_frame / self.layout.fps,
            f"{video}/to_timestamp": (first_frame + len(episode)) / self.layout.fps,
            **{f"meta/episodes/{name}": value for name, value in place.items()},
        }
        row |= {
            f"kairos/{name}": about[name]
            for name in ("seed", "policy", "success", "return", "terminated", "truncated")
        }
        for feature, stats in episode.stats.items():
            row |= {f"stats/{feature}/{name}": value.tolist() for name, value in stats.items()}
        return row

    def _write_frames(
        self, number: int, staged: list[StagedEpisode], rows: list[dict[str, Any]]
    ) -> None:
        """The data file: one row a frame."""
        columns: dict[str, list[np.ndarray[Any, Any]]] = {}
        for episode, row in zip(staged, rows, strict=True):
            frame_index = np.arange(len(episode))
            full = {
                **episode.columns,
                "timestamp": frame_index / self.layout.fps,
                "frame_index": frame_index,
                "episode_index": np.full(len(episode), row["episode_index"]),
                "index": frame_index + row["dataset_from_index"],
                "task_index": np.full(len(episode), self._tasks.index(row["tasks"][0])),
            }
            for name, values in full.items():
                columns.setdefault(name, []).append(values)
        features = self.layout.features()
        joined = {
            name: np.concatenate(parts).astype(features[name]["dtype"], copy=False)
            for name, parts in columns.items()
        }
        write_table(self.root / fmt.located(fmt.DATA, number), frame_table(joined, features))

    def _info(self) -> dict[str, Any]:
        fps = self.layout.fps
        return {
            "codebase_version": fmt.CODEBASE_VERSION,
            "robot_type": None,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": fmt.FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": int(fps) if fps == int(fps) else fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": fmt.DATA,
            "video_path": fmt.VIDEO,
            "features": self.layout.features(),
            "kairos": self._provenance,
        }

    def _pooled(self) -> dict[str, dict[str, Any]]:
        """meta/stats.json: the statistics of all episodes, from those of each."""
        names = [name for name in self.layout.features() if name not in fmt.BOOKKEEPING]
        pooled: dict[str, dict[str, Any]] = {}
        for feature in names:
            parts: list[Stats] = [
                {
                    name: np.asarray(row[f"stats/{feature}/{name}"], np.float64)
                    for name in ("min", "max", "mean", "std", "count")
                }
                for row in self._rows
            ]
            pooled[feature] = {name: value.tolist() for name, value in pool(parts).items()}
        return pooled

    def _agree(self, theirs: dict[str, Any] | None, features: dict[str, Any]) -> None:
        """Take up what is there; refuse what was made in another way."""
        if theirs is None:
            raise ValueError(
                f"{self.root} holds a dataset that was not collected by us; choose another folder"
            )
        wanted = _as_json({**self._provenance, "features": self.layout.features()})
        found = {**theirs, "features": features}
        different = [
            f"{name} was {found.get(name)!r}, now {wanted.get(name)!r}"
            for name in sorted(wanted.keys() | found.keys())
            # Another version of a package is no reason to refuse; what was used first stays on
            # record.
            if name != "packages" and wanted.get(name) != found.get(name)
        ]
        if different:
            raise ValueError(
                f"{self.root} holds a dataset made in another way ({'; '.join(different)}). "
                "Ask for the same to continue it, or choose another folder"
            )
        self._provenance = theirs

    def _read_rows(self, episodes: int) -> None:
        number = 0
        while len(self._rows) < episodes:
            rows = read_table(self.root / fmt.located(fmt.EPISODES, number)).to_pylist()
            self._rows += [_with_file(row, number) for row in rows]
            number += 1
        tasks = read_table(self.root / fmt.TASKS).to_pylist()
        self._tasks = [row["__index_level_0__"] for row in tasks]


def _with_file(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {**row, "data_file": number}


def _as_json(value: Any) -> Any:
    """The value as it looks after a round through JSON, for comparison with what was read."""
    return json.loads(json.dumps(value))


@contextlib.contextmanager
def only_writer(root: Path, *, patience: float = 60.0) -> Iterator[None]:
    """Hold the folder: a second collector on the same dataset gets an error instead of a mess.

    The lock belongs to the process, so a kill releases it. The workers of a collector that was
    killed live on until they have finished their episode, and are waited for: an episode they stage
    behind the back of the next collector would be left over.

    Args:
        root: The dataset's folder.
        patience: Seconds to wait for such workers.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _WRITER).open("a+b") as file:
        if not _lock(file):
            raise RuntimeError(
                f"another process is collecting into {root}; wait for it or choose another folder"
            )
        _outlast_workers(folder, patience)
        sweep(root)
        yield
        if (root / fmt.INFO).is_file() and not staged_indices(root):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def staging_worker(root: Path) -> Iterator[None]:
    """What a worker process holds while it stages episodes for the folder's only writer."""
    with (root / FOLDER / _WORKERS).open("a+b") as file:
        _lock(file, shared=True)
        yield


def _outlast_workers(folder: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    with (folder / _WORKERS).open("a+b") as file:
        while not _lock(file):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"workers of a collection that was killed still record into {folder.parent}; "
                    "run the same command again when their episodes are finished, or kill them"
                )
            time.sleep(0.02)


def _lock(file: io.BufferedRandom, *, shared: bool = False) -> bool:
    """Take the lock of an open file, until it is closed; whether nobody else has it."""
    if os.name != "posix":  # without flock two writers are the user's care
        return True
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
