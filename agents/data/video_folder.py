"""Read a folder of videos, one episode each, with actions beside them if there are any.

drive_01.mp4    the frames
drive_01.npy    optional: actions, or .npz / .parquet with an array `action` or `actions`
drive_01.txt    optional: what it shows
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data.dataset import Dataset, DatasetSpec, without_frames
from kairos_env.agents.data.episode import Episode
from kairos_env.agents.data.files import BrokenDataError
from kairos_env.agents.data.tables import column, read_table
from kairos_env.agents.data.video import VideoPool, VideoReader

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
_NAMES = ("action", "actions")


class VideoFolder(Dataset):
    """Videos of one size in a folder; without actions beside them `spec.action_size` is 0.

    Actions of a video with T frames are (T-1, D) or (T-1, A, D); of T rows the last one is ignored.

    Args:
        root: The folder.
        frame_size: Height and width to scale frames to; needed when the videos differ.
    """

    def __init__(self, root: Path, *, frame_size: tuple[int, int] | None = None) -> None:
        self.path = str(root)
        self._videos = sorted(p for p in root.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
        if not self._videos:
            raise BrokenDataError(f"{root} holds no videos ({', '.join(VIDEO_SUFFIXES)})")
        self._pool = VideoPool(size=frame_size)
        lengths, shapes, rates = zip(*map(self._measure, self._videos), strict=True)
        if frame_size is None and len(set(shapes)) > 1:
            raise ValueError(
                f"the videos in {root} have sizes {sorted(set(shapes))}; "
                "say which frame_size to scale them to"
            )
        self.lengths = np.array(lengths, np.int64)
        actions = _load_actions(self._videos[0])
        per_frame, size = (1, 0) if actions is None else actions.shape[1:]
        self.spec = DatasetSpec(
            frame_size=frame_size or shapes[0],
            actions_per_frame=per_frame,
            action_size=size,
            state_size=0,
            fps=rates[0],
            layout="video folder",
        )

    def table(self, index: int) -> Episode:
        """Episode `index` with everything but pixels; rewards are zero, nothing terminates."""
        video, length = self._videos[index], int(self.lengths[index])
        spec, steps = self.spec, length - 1
        actions = _load_actions(video)
        if actions is None:
            actions = np.zeros((steps, spec.actions_per_frame, 0), np.float32)
        if actions.shape[1:] != (spec.actions_per_frame, spec.action_size):
            raise BrokenDataError(
                f"episode {index}: the actions of {video} are {actions.shape[1:]} a frame, "
                f"those of {self._videos[0].name} {(spec.actions_per_frame, spec.action_size)}"
            )
        if len(actions) not in (steps, length):
            raise BrokenDataError(
                f"episode {index}: {video} has {length} frames, so expected {steps} actions "
                f"(or {length}, the last ignored), found {len(actions)}"
            )
        text = video.with_suffix(".txt")
        return Episode(
            frames=without_frames(length),
            actions=actions[:steps],
            rewards=np.zeros(steps, np.float32),
            terminated=np.zeros(steps, bool),
            truncated=np.arange(steps) == steps - 1,
            state=np.zeros((length, 0), np.float32),
            text=text.read_text(encoding="utf-8").strip() if text.is_file() else "",
        )

    def frames(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1` of an episode."""
        stop = int(self.lengths[index]) if stop is None else stop
        return self._pool.read(self._videos[index], start, stop)

    def identity(self, index: int) -> str:
        """The video's name."""
        return self._videos[index].name

    def fingerprint(self) -> str:
        """Of the names, sizes and times of the videos."""
        digest = hashlib.sha256()
        for video in self._videos:
            status = video.stat()
            digest.update(f"{video.name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _measure(self, video: Path) -> tuple[int, tuple[int, int], float]:
        reader = VideoReader(video)
        try:
            # Some containers do not count their frames; then there is no way but to decode them.
            frames = reader.num_frames or sum(1 for _ in reader.stream())
            return frames, reader.shape, reader.fps
        finally:
            reader.close()


def _load_actions(video: Path) -> NDArray[np.float32] | None:
    """(n, A, D) actions from the file beside a video, None when there is none."""
    for suffix in (".npy", ".npz", ".parquet"):
        path = video.with_suffix(suffix)
        if path.is_file():
            actions = _read_array(path)
            if actions.ndim == 1:
                actions = actions[:, None]
            shaped = actions[:, None] if actions.ndim == 2 else actions
            if shaped.ndim != 3:
                raise BrokenDataError(
                    f"{path}: expected actions (T-1, D) or (T-1, A, D), found {actions.shape}"
                )
            return shaped.astype(np.float32)
    return None


def _read_array(path: Path) -> NDArray[np.generic]:
    if path.suffix == ".parquet":
        table = read_table(path)
        for name in _NAMES:
            if name in table.column_names:
                return column(table, name)
        raise BrokenDataError(f"{path} has no column {' or '.join(_NAMES)}")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BrokenDataError(f"{path} cannot be read: {error}") from error
    if path.suffix == ".npy":
        return np.asarray(loaded)
    with loaded as archive:
        for name in _NAMES:
            if name in archive:
                return np.asarray(archive[name])
        raise BrokenDataError(f"{path} has no array {' or '.join(_NAMES)}, only {archive.files}")
