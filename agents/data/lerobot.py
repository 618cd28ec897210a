"""Read LeRobot folders: v3.0 (ours and others') and v2.x.

v3.0 keeps many episodes in a file and finds them through `meta/episodes`; v2.x has one data file
and one video an episode. Rows without an `is_last` column follow the usual convention: T rows,
each with the action that follows it, so the frame behind the last action was never recorded. That
action is dropped; its reward and its end count with the last transition that has both frames.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data import format as fmt
from kairos_env.agents.data.dataset import Dataset, DatasetSpec, without_frames
from kairos_env.agents.data.episode import Episode
from kairos_env.agents.data.files import BrokenDataError, read_json
from kairos_env.agents.data.staging import unpack_arrays
from kairos_env.agents.data.tables import column, read_table
from kairos_env.agents.data.video import VideoPool, decode_images

# Where other recorders put what we call by one name; the first that exists is taken.
_REWARDS = (fmt.REWARD, "reward")
_TERMINATIONS = (fmt.TERMINATED, "next.done")


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where an episode is."""

    length: int
    data: Path
    video: Path
    first_frame: int  # in the video file
    tasks: tuple[str, ...]
    row: Mapping[str, Any]  # the episode's row of the index


class LeRobotDataset(Dataset):
    """A LeRobot folder.

    Args:
        root: The folder with `meta/info.json`.
        camera: Name of the camera feature, or its last part; the first one when not given.
        frame_size: Height and width to scale frames to.
    """

    def __init__(
        self, root: Path, *, camera: str | None = None, frame_size: tuple[int, int] | None = None
    ) -> None:
        self.path = str(root)
        self._root = root
        self._info = read_json(root / fmt.INFO)
        features = self._info["features"]
        self._camera = _choose_camera(features, camera, root)
        self._as_images = features[self._camera]["dtype"] == "image"
        self._columns = [name for name, feature in features.items() if feature["dtype"] != "video"]
        self._places = self._find_episodes()
        self.lengths = np.array([place.length for place in self._places], np.int64)
        self._size = frame_size
        self._videos = VideoPool(size=frame_size)
        self._read_data = lru_cache(maxsize=2)(self._read_data_file)
        self.spec = self._read_spec(features)

    def _read_spec(self, features: Mapping[str, Any]) -> DatasetSpec:
        ours = self._info.get("kairos", {})
        action = features.get(fmt.ACTION)
        size = int(action["shape"][0]) if action else 0
        per_frame = int(ours.get("actions_per_frame", 1))
        if size % per_frame:
            raise BrokenDataError(
                f"{self._root / fmt.INFO}: an action of {size} numbers cannot be "
                f"{per_frame} low-level actions of one size"
            )
        shape = features[self._camera]["shape"]
        channels_first = shape[0] == 3 and shape[-1] != 3
        height, width = shape[1:] if channels_first else shape[:2]
        return DatasetSpec(
            frame_size=self._size or (int(height), int(width)),
            actions_per_frame=per_frame,
            action_size=size // per_frame,
            state_size=int(features[fmt.STATE]["shape"][0]) if fmt.STATE in features else 0,
            fps=float(self._info["fps"]),
            layout="kairos" if ours else f"lerobot {self._info['codebase_version']}",
            provenance=ours or {"robot_type": self._info.get("robot_type")},
        )

    def table(self, index: int) -> Episode:
        """Episode `index` with everything but pixels."""
        place = self._places[index]
        rows = self._rows(index)
        actions, rewards, terminated, truncated = self._transitions(rows, place.length)
        spec = self.spec
        episode_state = rows.get(fmt.STATE, np.zeros((place.length, 0)))
        return Episode(
            frames=without_frames(place.length),
            actions=actions.reshape(-1, spec.actions_per_frame, spec.action_size),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            state=episode_state.reshape(place.length, -1).astype(np.float32),
            text=place.tasks[0] if place.tasks else "",
            seed=place.row.get("kairos/seed"),
            policy=place.row.get("kairos/policy") or "",
            success=place.row.get("kairos/success"),
        )

    def frames(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1` of an episode."""
        place = self._places[index]
        stop = place.length if stop is None else stop
        if self._as_images:
            return decode_images(self._images(index)[start:stop], size=self._size)
        try:
            return self._videos.read(
                place.video, place.first_frame + start, place.first_frame + stop
            )
        except BrokenDataError as error:
            raise BrokenDataError(f"episode {index}: {error}") from error

    def start(self, index: int) -> dict[str, NDArray[Any]]:
        """The simulator's snapshot at the first frame; empty when none was recorded."""
        row = self._places[index].row
        if "kairos" not in self._info:  # LeRobot's tools keep our columns, not our files
            return {}
        number = (
            row["meta/episodes/chunk_index"] * fmt.FILES_PER_CHUNK + row["meta/episodes/file_index"]
        )
        table = read_table(self._root / fmt.located(fmt.STARTS, number))
        position = column(table, "episode_index").tolist().index(index)
        return unpack_arrays(table.column("snapshot")[position].as_py())

    def identity(self, index: int) -> str:
        """The reset seed where there is one: a start serves training or validation, never both."""
        seed = self._places[index].row.get("kairos/seed")
        return str(index) if seed is None else f"seed {seed}"

    def fingerprint(self) -> str:
        """Of the index and of the size of every file it names."""
        digest = hashlib.sha256((self._root / fmt.INFO).read_bytes())
        for path in sorted(
            {place.data for place in self._places} | {p.video for p in self._places}
        ):
            status = path.stat() if path.is_file() else None
            digest.update(f"{path.name} {status and (status.st_size, status.st_mtime_ns)}".encode())
        return digest.hexdigest()

    def files(self, index: int) -> tuple[Path, Path]:
        """The data file and the video file that hold an episode."""
        return self._places[index].data, self._places[index].video

    def _rows(self, index: int) -> dict[str, NDArray[Any]]:
        """The columns of an episode's data file, cut to its rows."""
        place = self._places[index]
        try:
            columns = self._read_data(place.data)
            mine = np.flatnonzero(columns["episode_index"] == self._number(index))
            if len(mine) != place.length:
                raise BrokenDataError(
                    f"{place.data} has {len(mine)} rows of it, the index says {place.length}"
                )
            self._check_widths(columns, place.data)
        except BrokenDataError as error:
            raise BrokenDataError(f"episode {index}: {error}") from error
        return {name: values[mine] for name, values in columns.items()}

    def _number(self, index: int) -> int:
        return int(self._places[index].row["episode_index"])

    def _check_widths(self, columns: Mapping[str, NDArray[Any]], path: Path) -> None:
        for name in (fmt.ACTION, fmt.STATE):
            if name in columns:
                expected = int(self._info["features"][name]["shape"][0])
                got = columns[name].shape[1] if columns[name].ndim == 2 else 1
                if got != expected:
                    raise BrokenDataError(
                        f"{path}: {name} has {got} numbers a row, meta/info.json says {expected}"
                    )

    def _read_data_file(self, path: Path) -> dict[str, NDArray[Any]]:
        names = [name for name in self._columns if name != self._camera]
        table = read_table(path, names)
        wanted = {fmt.ACTION, fmt.STATE, *_REWARDS, *_TERMINATIONS, fmt.TRUNCATED, fmt.LAST}
        return {name: column(table, name) for name in names if name in wanted | {"episode_index"}}

    def _images(self, index: int) -> Sequence[bytes]:
        place = self._places[index]
        table = read_table(place.data, [self._camera, "episode_index"])
        mine = np.flatnonzero(column(table, "episode_index") == self._number(index))
        pictures = table.column(self._camera).take(mine).to_pylist()
        return [picture["bytes"] for picture in pictures]

    def _transitions(
        self, rows: Mapping[str, NDArray[Any]], length: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Actions, rewards, terminated, truncated of the T-1 steps between T rows."""
        actions = rows.get(fmt.ACTION, np.zeros((length, 0))).reshape(length, -1)
        rewards = _first(rows, _REWARDS, np.zeros(length)).astype(np.float32)
        terminated = _first(rows, _TERMINATIONS, np.zeros(length, bool)).astype(bool)
        truncated = rows.get(fmt.TRUNCATED, np.zeros(length, bool)).astype(bool)
        if fmt.LAST not in rows and length > 1:
            rewards[-2] += rewards[-1]
            terminated[-2] |= terminated[-1]
            truncated[-2] |= truncated[-1]
        return actions[:-1].astype(np.float32), rewards[:-1], terminated[:-1], truncated[:-1]

    def _find_episodes(self) -> list[_Place]:
        version = str(self._info.get("codebase_version", ""))
        if version.startswith("v3."):
            return self._find_in_tables()
        if version.startswith("v2."):
            return self._find_in_lines()
        raise BrokenDataError(
            f"{self._root / fmt.INFO}: codebase_version is {version!r}, expected v2.x or v3.x"
        )

    def _find_in_tables(self) -> list[_Place]:
        total = int(self._info["total_episodes"])
        rows: list[dict[str, Any]] = []
        for path in sorted((self._root / "meta/episodes").glob("*/*.parquet")):
            if (
                len(rows) >= total
            ):  # a file beyond what info.json counts was being written when its writer died
                break
            table = read_table(path)
            kept = [name for name in table.column_names if not name.startswith("stats/")]
            rows += table.select(kept).to_pylist()
        if len(rows) < total:
            raise BrokenDataError(
                f"{self._root}/meta/episodes has {len(rows)} episodes, meta/info.json says {total}"
            )
        rows.sort(key=lambda row: row["episode_index"])
        return [self._place(row) for row in rows[:total]]

    def _place(self, row: Mapping[str, Any]) -> _Place:
        video = f"videos/{self._camera}"
        return _Place(
            length=int(row["length"]),
            data=self._root
            / self._info["data_path"].format(
                chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
            ),
            video=self._root
            if self._as_images
            else self._root
            / self._info["video_path"].format(
                video_key=self._camera,
                chunk_index=row[f"{video}/chunk_index"],
                file_index=row[f"{video}/file_index"],
            ),
            first_frame=0
            if self._as_images
            else round(row[f"{video}/from_timestamp"] * float(self._info["fps"])),
            tasks=tuple(row.get("tasks") or ()),
            row=row,
        )

    def _find_in_lines(self) -> list[_Place]:
        path = self._root / "meta/episodes.jsonl"
        if not path.is_file():
            raise BrokenDataError(
                f"{path} is missing: a LeRobot v2.x folder lists its episodes there"
            )
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        rows.sort(key=lambda row: row["episode_index"])
        places = []
        for row in rows:
            names = {
                "episode_chunk": row["episode_index"] // int(self._info["chunks_size"]),
                "episode_index": row["episode_index"],
                "video_key": self._camera,
            }
            video = self._info.get("video_path")
            places.append(
                _Place(
                    length=int(row["length"]),
                    data=self._root / self._info["data_path"].format(**names),
                    video=self._root / (video.format(**names) if video else ""),
                    first_frame=0,
                    tasks=tuple(row.get("tasks") or ()),
                    row=row,
                )
            )
        return places


def _choose_camera(features: Mapping[str, Any], wanted: str | None, root: Path) -> str:
    cameras = [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]
    if not cameras:
        raise BrokenDataError(f"{root} has no camera: none of its features is a video or an image")
    if wanted is None:
        return cameras[0]
    for name in cameras:
        if wanted in (name, name.rsplit(".", 1)[-1]):
            return name
    raise ValueError(f"{root} has no camera {wanted!r}; it has {', '.join(cameras)}")


def _first(
    rows: Mapping[str, NDArray[Any]], names: Sequence[str], otherwise: NDArray[Any]
) -> NDArray[Any]:
    for name in names:
        if name in rows:
            return rows[name].reshape(len(rows[name]))
    return otherwise
