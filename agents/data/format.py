"""Names, paths and columns of a dataset on disk: LeRobot's v3.0 layout and what we add to it.

    meta/info.json              schema, frame rate, path templates; `kairos`: our provenance
    meta/stats.json             mean, std, min, max of every feature
    meta/tasks.parquet          what the episodes were asked to do
    meta/episodes/FILE.parquet  one row an episode: where its rows and its video are
    meta/starts/FILE.parquet    (ours) the simulator's snapshot at the start of each episode
    data/FILE.parquet           one row a frame
    videos/observation.images.main/FILE.mp4

with FILE = chunk-000/file-000, chunk-000/file-001, ...

An episode of T frames has T rows. `action` is what follows the frame, so the last row has none:
it is marked `is_last` and its action, reward and flags are zeros. Readers that know nothing of
this see one dummy action.
"""

from dataclasses import dataclass
from typing import Any

from kairos_env.agents.data.video import CODECS, STORED_AS, Codec

CODEBASE_VERSION = "v3.0"  # LeRobot's format number
FORMAT = 1  # ours, for the `kairos` entry of info.json

CAMERA = "observation.images.main"
STATE = "observation.state"
ACTION = "action"
REWARD = "next.reward"
TERMINATED = "next.terminated"
TRUNCATED = "next.truncated"
LAST = "is_last"

INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES = f"meta/episodes/{FILE}.parquet"
STARTS = f"meta/starts/{FILE}.parquet"
DATA = f"data/{FILE}.parquet"
VIDEO = "videos/{video_key}/" + FILE + ".mp4"
FILES_PER_CHUNK = 1000

# Columns that every LeRobot dataset has.
BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def located(template: str, file_number: int) -> str:
    """The path of the nth file of a kind."""
    chunk_index, file_index = divmod(file_number, FILES_PER_CHUNK)
    return template.format(chunk_index=chunk_index, file_index=file_index, video_key=CAMERA)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The sizes that all episodes of a dataset share."""

    frame_size: tuple[int, int]  # height, width
    actions_per_frame: int  # A: low-level actions between one frame and the next
    action_size: int  # D: numbers per low-level action
    state_size: int  # S: numbers of simulator state; 0 when there is none
    fps: float
    codec: Codec = "lossless"

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"codec must be one of {', '.join(CODECS)}, got {self.codec!r}")
        if min(*self.frame_size, self.actions_per_frame, self.action_size) < 1 or self.fps <= 0:
            raise ValueError(f"every size must be positive, got {self}")

    def features(self) -> dict[str, dict[str, Any]]:
        """The `features` entry of info.json, and the column order of the data files."""
        height, width = self.frame_size
        codec, pixel_format = STORED_AS[self.codec]
        features: dict[str, dict[str, Any]] = {
            CAMERA: {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": codec,
                    "video.pix_fmt": pixel_format,
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
        }
        if self.state_size:
            features[STATE] = _vector(self.state_size, None)
        features[ACTION] = _vector(self.actions_per_frame * self.action_size, self._action_names())
        features[REWARD] = _vector(1, None)
        for name in (TERMINATED, TRUNCATED, LAST):
            features[name] = {"dtype": "bool", "shape": [1], "names": None}
        for name, dtype in BOOKKEEPING.items():
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
        return features

    def _action_names(self) -> list[str]:
        """`t1.0` is number 0 of the second low-level action behind the frame."""
        return [
            f"t{step}.{axis}"
            for step in range(self.actions_per_frame)
            for axis in range(self.action_size)
        ]


def _vector(size: int, names: list[str] | None) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [size], "names": names}
