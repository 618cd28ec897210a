"""Look for what is wrong with a dataset: broken files, wrong sizes, indices with holes.

`check_dataset` reads every episode of any layout. For a LeRobot v3.0 folder it also goes through
the format's own rules, written from its public description and without our reader, so that what
passes here can be expected to load elsewhere.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.agents.data.dataset import Dataset
from kairos_env.agents.data.files import BrokenDataError
from kairos_env.agents.data.format import INFO
from kairos_env.agents.data.readers import open_dataset

# LeRobot 0.4 looks frames up by time and gives up beyond this distance.
TOLERANCE_SECONDS = 1e-4
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_EPISODE_COLUMNS = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index")
_INFO_KEYS = (
    *("codebase_version", "robot_type", "fps", "features", "splits", "chunks_size"),
    *("total_episodes", "total_frames", "total_tasks", "data_path", "video_path"),
)


def check_dataset(
    path: str | Path, *, on_episode: Callable[[int, int], None] | None = None
) -> list[str]:
    """Everything that is wrong with a dataset, one sentence each; empty when nothing is.

    Args:
        path: A dataset of any layout that can be read.
        on_episode: Called with (episodes done, episodes in all).
    """
    try:
        dataset = open_dataset(path)
    except (BrokenDataError, ValueError) as error:
        return [str(error)]
    problems = []
    for index in range(len(dataset)):
        problems += _check_episode(dataset, index)
        if on_episode:
            on_episode(index + 1, len(dataset))
    if (Path(path) / INFO).is_file() and dataset.spec.layout in ("kairos", "lerobot v3.0"):
        problems += [problem for problem in check_lerobot(path) if problem not in problems]
    return problems


def _check_episode(dataset: Dataset, index: int) -> list[str]:
    """Read all of an episode; what reading raises names the file."""
    try:
        episode = dataset.episode(index)
    except (BrokenDataError, ValueError) as error:
        message = str(error)
        return [message if f"episode {index}" in message else f"episode {index}: {message}"]
    problems = [
        f"episode {index}: {name} holds numbers that are not finite"
        for name in ("actions", "rewards", "state")
        if not np.isfinite(getattr(episode, name)).all()
    ]
    if episode.terminated[:-1].any():
        problems.append(f"episode {index}: it terminates before its last transition")
    return problems


def check_lerobot(path: str | Path) -> list[str]:
    """What in a folder breaks the rules of the LeRobot v3.0 layout, one sentence each.

    Checked are the entries of info.json, every column's type and width, that frame and episode
    numbers run without holes, that episode rows and video spans fit the files, that every frame's
    time is found in its video, and that statistics have the shapes LeRobot expects.
    """
    root = Path(path)
    try:
        return list(_walk(root))
    except (BrokenDataError, KeyError, OSError, ValueError) as error:
        return [f"{root}: {type(error).__name__}: {error}"]


def _walk(root: Path) -> Iterator[str]:
    import pyarrow.parquet as parquet

    info = json.loads((root / INFO).read_text())
    missing = [key for key in _INFO_KEYS if key not in info]
    if missing:
        yield f"{root / INFO}: no {', '.join(missing)}"
        return
    if info["codebase_version"] != "v3.0":
        yield f"{root / INFO}: codebase_version is {info['codebase_version']!r}, expected 'v3.0'"
    features = info["features"]
    yield from _check_features(root, features)
    if info["splits"] != {"train": f"0:{info['total_episodes']}"}:
        yield f"{root / INFO}: splits {info['splits']} do not cover all episodes"

    episodes: list[dict[str, Any]] = []
    for file in sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet")):
        episodes += parquet.read_table(file).to_pylist()
    if [row["episode_index"] for row in episodes] != list(range(info["total_episodes"])):
        yield f"{root}/meta/episodes: episode numbers do not run from 0 to total_episodes - 1"
        return
    tasks = parquet.read_table(root / "meta/tasks.parquet")
    yield from _check_tasks(root, tasks, info)
    yield from _check_spans(root, episodes, info)
    yield from _check_rows(root, episodes, info, tasks.num_rows)
    cameras = [name for name, feature in features.items() if feature["dtype"] == "video"]
    for camera in cameras:
        yield from _check_video(root, camera, episodes, info)
    yield from _check_stats(root, features)


def _check_features(root: Path, features: Mapping[str, Any]) -> Iterator[str]:
    for name in _BOOKKEEPING:
        if name not in features:
            yield f"{root / INFO}: no feature {name}"
    for name, feature in features.items():
        if "/" in name:
            yield f"{root / INFO}: feature {name} has a slash in its name"
        if not {"dtype", "shape", "names"} <= feature.keys():
            yield f"{root / INFO}: feature {name} needs dtype, shape and names"
        elif feature["dtype"] == "video" and len(feature["shape"]) != 3:
            yield f"{root / INFO}: video {name} needs a shape of three, has {feature['shape']}"


def _check_tasks(root: Path, tasks: Any, info: Mapping[str, Any]) -> Iterator[str]:
    """Pandas must find the texts as the index of the table."""
    path = root / "meta/tasks.parquet"
    described = json.loads((tasks.schema.metadata or {}).get(b"pandas", b"{}"))
    index = described.get("index_columns", [])
    if len(index) != 1 or index[0] not in tasks.column_names:
        yield f"{path}: pandas would find no index; the tasks' texts must be it"
    if tasks.column("task_index").to_pylist() != list(range(info["total_tasks"])):
        yield f"{path}: task_index must run from 0 to total_tasks - 1"


def _check_spans(
    root: Path, episodes: list[dict[str, Any]], info: Mapping[str, Any]
) -> Iterator[str]:
    expected = 0
    for row in episodes:
        index = row["episode_index"]
        absent = [name for name in _EPISODE_COLUMNS if name not in row]
        if absent:
            yield f"{root}/meta/episodes: no column {', '.join(absent)}"
            return
        if row["dataset_from_index"] != expected:
            yield f"episode {index}: begins at row {row['dataset_from_index']}, expected {expected}"
        expected = row["dataset_to_index"]
        if expected - row["dataset_from_index"] != row["length"]:
            yield f"episode {index}: its span of rows is not its length {row['length']}"
    if expected != info["total_frames"]:
        yield f"{root / INFO}: total_frames is {info['total_frames']}, the episodes have {expected}"


def _check_rows(
    root: Path, episodes: list[dict[str, Any]], info: Mapping[str, Any], num_tasks: int
) -> Iterator[str]:
    """Columns and numbering of the data files."""
    import pyarrow.parquet as parquet

    columns = {name: f for name, f in info["features"].items() if f["dtype"] != "video"}
    row_number = 0
    for file in sorted((root / "data").glob("chunk-*/file-*.parquet")):
        table = parquet.read_table(file)
        if set(table.column_names) != set(columns):
            wrong = sorted(set(table.column_names) ^ set(columns))
            yield f"{file}: columns and features differ in {', '.join(wrong)}"
            return
        yield from _check_types(file, table.schema, columns)
        numbers = {name: table.column(name).to_numpy() for name in _BOOKKEEPING}
        if (numbers["index"] != row_number + np.arange(table.num_rows)).any():
            yield f"{file}: index does not count all rows of the dataset from {row_number}"
        if (numbers["task_index"] >= num_tasks).any():
            yield f"{file}: task_index points beyond meta/tasks.parquet"
        yield from _check_numbering(file, root, numbers, episodes, info)
        row_number += table.num_rows
    if row_number != info["total_frames"]:
        yield f"{root}/data: {row_number} rows, info.json says {info['total_frames']}"


def _check_types(file: Path, schema: Any, columns: Mapping[str, Any]) -> Iterator[str]:
    """Vectors of one are plain values, longer ones lists of that length."""
    import pyarrow as pa

    for name, feature in columns.items():
        kind, shape = schema.field(name).type, feature["shape"]
        if feature["dtype"] == "image":
            continue
        value = kind if shape == [1] else getattr(kind, "value_type", None)
        width = 1 if shape == [1] else getattr(kind, "list_size", shape[0])
        if value != pa.type_for_alias(feature["dtype"]) or [width] != shape:
            yield f"{file}: column {name} is {kind}, info.json says {feature['dtype']} {shape}"


def _check_numbering(
    file: Path,
    root: Path,
    numbers: Mapping[str, Any],
    episodes: list[dict[str, Any]],
    info: Mapping[str, Any],
) -> Iterator[str]:
    """Each episode's rows are where the index says, numbered from 0, one frame interval apart."""
    for index in np.unique(numbers["episode_index"]):
        mine = numbers["episode_index"] == index
        row = episodes[index]
        place = {key: row[f"data/{key}"] for key in ("chunk_index", "file_index")}
        if info["data_path"].format(**place) != str(file.relative_to(root)):
            yield f"episode {index}: its rows are in {file}, the index says {place}"
        frame_index = numbers["frame_index"][mine]
        if not np.array_equal(frame_index, np.arange(row["length"])):
            yield f"{file}, episode {index}: frame_index does not run from 0 to its length"
        times = frame_index / info["fps"]
        if np.abs(numbers["timestamp"][mine] - times).max() > TOLERANCE_SECONDS:
            yield f"{file}, episode {index}: timestamps are not frame_index / fps"


def _check_video(
    root: Path, camera: str, episodes: list[dict[str, Any]], info: Mapping[str, Any]
) -> Iterator[str]:
    """Every frame of every episode must be found in its file at its time."""
    import av

    prefix, fps = f"videos/{camera}", info["fps"]
    shown: dict[str, Any] = {}
    for row in episodes:
        index = row["episode_index"]
        place = {
            "video_key": camera,
            "chunk_index": row[f"{prefix}/chunk_index"],
            "file_index": row[f"{prefix}/file_index"],
        }
        name = info["video_path"].format(**place)
        if name not in shown:
            try:
                with av.open(str(root / name), "r") as container:
                    stream = container.streams.video[0]
                    packets: Any = [packet for packet in container.demux(stream) if packet.size]
                    times = [float(packet.pts * packet.time_base) for packet in packets]
                    shape = [stream.height, stream.width, 3]
            except (av.FFmpegError, OSError) as error:
                yield f"{root / name}, episode {index}: cannot be read: {error}"
                times, shape = [], info["features"][camera]["shape"]
            shown[name] = np.array(sorted(times))
            if shape != info["features"][camera]["shape"]:
                yield f"{root / name}: frames are {shape}, info.json says otherwise"
        begin, end = row[f"{prefix}/from_timestamp"], row[f"{prefix}/to_timestamp"]
        wanted = begin + np.arange(row["length"]) / fps
        if abs(end - begin - row["length"] / fps) > TOLERANCE_SECONDS:
            yield f"episode {index}: its span of video time is not its length {row['length']}"
        found = shown[name]
        if not len(found):
            continue
        nearest = np.abs(found[np.searchsorted(found, wanted).clip(max=len(found) - 1)] - wanted)
        before = np.abs(found[(np.searchsorted(found, wanted) - 1).clip(min=0)] - wanted)
        if np.minimum(nearest, before).max() > TOLERANCE_SECONDS:
            yield f"{root / name}, episode {index}: a frame's time is not in the video"


def _check_stats(root: Path, features: Mapping[str, Any]) -> Iterator[str]:
    path = root / "meta/stats.json"
    stats = json.loads(path.read_text())
    for name, entry in stats.items():
        feature = features.get(name)
        if feature is None:
            yield f"{path}: statistics of an unknown feature {name}"
            continue
        is_picture = feature["dtype"] in ("video", "image")
        shape = (3, 1, 1) if is_picture else tuple(feature["shape"])
        for key in ("min", "max", "mean", "std"):
            if np.shape(entry.get(key)) != shape:
                yield f"{path}: {name}/{key} has shape {np.shape(entry.get(key))}, not {shape}"
        if np.shape(entry.get("count")) != (1,):
            yield f"{path}: {name}/count must be a list of one number"
