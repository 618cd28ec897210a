"""Episodes that are recorded but not yet part of a dataset: one file each, in any order.

Many episodes share the dataset's files, and the number of an episode's first row depends on all
episodes before it. So a worker leaves a finished episode here, with its video already encoded,
and the writer joins them in order.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data import format as fmt
from kairos_env.agents.data.episode import Episode
from kairos_env.agents.data.files import PARTIAL, BrokenDataError, write_bytes
from kairos_env.agents.data.stats import Stats, describe, describe_frames
from kairos_env.agents.data.video import encode

write_npy: Any = np.lib.format.write_array  # numpy ships it without types
FOLDER = ".unfinished"
_NAME = re.compile(r"episode-(\d{6,})\.npz")
_START = "start/"  # prefix of the snapshot's arrays
_STATS = "stats/"
_COLUMN = "column/"


@dataclass(frozen=True, kw_only=True)
class StagedEpisode:
    """What the writer needs of an episode; pixels only as encoded video."""

    columns: dict[str, NDArray[Any]]  # T rows each, by feature name
    video: bytes
    stats: dict[str, Stats]
    start: dict[str, NDArray[Any]]
    about: dict[str, Any]  # text, seed, policy, success, return, terminated, truncated

    def __len__(self) -> int:
        return len(self.columns[fmt.LAST])


def prepare(episode: Episode, layout: fmt.Layout) -> StagedEpisode:
    """Encode an episode and lay out its rows.

    Raises:
        ValueError: The episode does not have the sizes of the dataset.
    """
    _check_sizes(episode, layout)
    length = len(episode)
    columns: dict[str, NDArray[Any]] = {
        fmt.STATE: episode.state,
        fmt.ACTION: _with_dummy(episode.actions.reshape(length - 1, -1)),
        fmt.REWARD: _with_dummy(episode.rewards),
        fmt.TERMINATED: _with_dummy(episode.terminated),
        fmt.TRUNCATED: _with_dummy(episode.truncated),
        fmt.LAST: np.arange(length) == length - 1,
    }
    if not layout.state_size:
        del columns[fmt.STATE]
    # The dummy of the last row is no action that anybody took: it stays out of the statistics.
    real = {
        name: rows if name == fmt.STATE else rows[: max(length - 1, 1)]
        for name, rows in columns.items()
    }
    stats = {fmt.CAMERA: describe_frames(episode.frames)}
    stats |= {name: describe(rows) for name, rows in real.items()}
    return StagedEpisode(
        columns=columns,
        video=encode(episode.frames, fps=layout.fps, codec=layout.codec),
        stats=stats,
        start=dict(episode.start),
        about={
            "text": episode.text,
            "seed": episode.seed,
            "policy": episode.policy,
            "success": episode.success,
            "return": float(episode.rewards.astype(np.float64).sum()),
            "terminated": bool(episode.terminated.any()),
            "truncated": bool(episode.truncated.any()),
        },
    )


def pack_episode(episode: Episode, layout: fmt.Layout) -> bytes:
    """An episode as the file that `load_staged` reads."""
    staged = prepare(episode, layout)
    arrays: dict[str, NDArray[Any]] = {
        "video": np.frombuffer(staged.video, np.uint8),
        "about": np.frombuffer(json.dumps(staged.about).encode(), np.uint8),
    }
    arrays |= {_COLUMN + name: rows for name, rows in staged.columns.items()}
    arrays |= {_START + name: rows for name, rows in staged.start.items()}
    for feature, stats in staged.stats.items():
        arrays |= {f"{_STATS}{feature}/{name}": value for name, value in stats.items()}
    return pack_arrays(arrays)


def stage(root: Path, index: int, episode: Episode, layout: fmt.Layout) -> None:
    """Leave an episode for the writer of the dataset at `root`, whole or not at all."""
    stage_packed(root, index, pack_episode(episode, layout))


def stage_packed(root: Path, index: int, packed: bytes) -> None:
    """The same for an episode that was packed elsewhere."""
    write_bytes(staged_path(root, index), packed)


def load_staged(root: Path, index: int) -> StagedEpisode:
    """Read back what `stage` left."""
    path = staged_path(root, index)
    try:
        arrays = unpack_arrays(path.read_bytes())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BrokenDataError(
            f"{path} (episode {index}) cannot be read: {error}; delete it and collect again"
        ) from error
    stats: dict[str, Stats] = {}
    for key, value in arrays.items():
        if key.startswith(_STATS):
            feature, name = key[len(_STATS) :].rsplit("/", 1)
            stats.setdefault(feature, {})[name] = value
    return StagedEpisode(
        columns=_under(arrays, _COLUMN),
        video=arrays["video"].tobytes(),
        stats=stats,
        start=_under(arrays, _START),
        about=json.loads(arrays["about"].tobytes()),
    )


def staged_indices(root: Path) -> set[int]:
    """Numbers of the episodes that wait."""
    folder = root / FOLDER
    if not folder.is_dir():
        return set()
    return {int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}


def sweep(root: Path) -> None:
    """Remove what a kill left half-written; only while nobody records."""
    for stray in root.rglob(f"*{PARTIAL}"):
        stray.unlink(missing_ok=True)


def staged_path(root: Path, index: int) -> Path:
    """Where episode `index` waits."""
    return root / FOLDER / f"episode-{index:06d}.npz"


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Named arrays as the bytes of an npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    # By hand rather than with numpy.savez, whose argument `file` would clash with an array of
    # that name.
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                write_npy(file, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def unpack_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of `pack_arrays`; never unpickles."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _check_sizes(episode: Episode, layout: fmt.Layout) -> None:
    actions = (layout.actions_per_frame, layout.action_size)
    for name, got, expected in (
        ("frame size", episode.frames.shape[1:3], layout.frame_size),
        ("actions per frame and action size", episode.actions.shape[1:], actions),
        ("state size", episode.state.shape[1:], (layout.state_size,)),
    ):
        if tuple(got) != tuple(expected):
            raise ValueError(
                f"{name}: this dataset holds {tuple(expected)}, the episode has {tuple(got)}; "
                "write it to another folder"
            )


def _with_dummy(rows: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([rows, np.zeros_like(rows, shape=(1, *rows.shape[1:]))])


def _under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
