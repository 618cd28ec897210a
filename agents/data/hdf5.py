"""Read HDF5 recordings: Minari (Farama) and robomimic, whose layout LIBERO and robosuite share.

Each layout is one function that finds an episode's arrays; one class reads them. Actions are
given as they were recorded, discrete ones as one-hot vectors.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data.dataset import Dataset, DatasetSpec, without_frames
from kairos_env.agents.data.episode import Episode
from kairos_env.agents.data.files import BrokenDataError, read_json
from kairos_env.agents.data.video import resize


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """Where an episode's arrays are in the file; nothing is read yet."""

    name: str
    pictures: Sequence[Any]  # arrays (n, H, W, 3) or (n, 3, H, W) that follow each other in time
    vectors: Sequence[Sequence[Any]]  # observations other than pictures, each like `pictures`
    actions: Any  # (T, D) or (T,)
    rewards: Any
    terminated: Any
    truncated: Any | None = None
    text: str = ""
    seed: int | None = None

    def num_frames(self) -> int:
        """Pictures that have an action before them, and the first."""
        return min(sum(len(part) for part in self.pictures), len(self.actions) + 1)


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """What a layout's function found."""

    layout: str
    recordings: list[_Recording]
    fps: float = 0.0  # 0: the file does not say
    choices: int | None = None  # number of discrete actions
    upside_down: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)


class Hdf5Dataset(Dataset):
    """A Minari dataset or a robomimic / LIBERO file.

    Args:
        path: The HDF5 file.
        camera: Name of the picture array; the first when not given.
        frame_size: Height and width to scale frames to.
        fps: Frames a second; what the file says when not given, 0 when it says nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        camera: str | None = None,
        frame_size: tuple[int, int] | None = None,
        fps: float | None = None,
    ) -> None:
        self.path = str(path)
        self._path = path
        self._size = frame_size
        self._contents = contents = _look_into(path, camera)
        if not contents.recordings:
            raise BrokenDataError(f"{path} holds no episodes")
        self.lengths = np.array([r.num_frames() for r in contents.recordings], np.int64)
        first = contents.recordings[0]
        shape = first.pictures[0].shape[1:]
        height, width = shape[:2] if shape[-1] == 3 else shape[1:]
        self.spec = DatasetSpec(
            frame_size=frame_size or (int(height), int(width)),
            actions_per_frame=1,
            action_size=contents.choices or int(np.prod(first.actions.shape[1:], dtype=int)),
            state_size=sum(int(np.prod(parts[0].shape[1:])) for parts in first.vectors),
            fps=contents.fps if fps is None else fps,
            layout=contents.layout,
            provenance=contents.provenance,
        )

    def table(self, index: int) -> Episode:
        """Episode `index` with everything but pixels."""
        recording, length = self._contents.recordings[index], int(self.lengths[index])
        steps = length - 1
        try:
            actions = self._read_actions(recording)
            rewards = np.asarray(recording.rewards[:], np.float32)
            terminated = np.asarray(recording.terminated[:], bool)
            truncated = np.zeros_like(terminated)
            if recording.truncated is not None:
                truncated = np.asarray(recording.truncated[:], bool)
            state = self._read_state(recording, length)
        except (OSError, ValueError) as error:
            raise self._broken(index, error) from error
        if actions.shape[1] != self.spec.action_size:
            raise self._broken(
                index,
                f"actions have {actions.shape[1]} numbers, those of the first episode "
                f"{self.spec.action_size}",
            )
        if len(actions) > steps > 0:  # the picture behind the last action was not recorded
            rewards[steps - 1] += rewards[steps:].sum()
            terminated[steps - 1] |= terminated[steps:].any()
            truncated[steps - 1] |= truncated[steps:].any()
        return Episode(
            frames=without_frames(length),
            actions=actions[:steps, None],
            rewards=rewards[:steps],
            terminated=terminated[:steps],
            truncated=truncated[:steps],
            state=state,
            text=recording.text,
            seed=recording.seed,
        )

    def frames(self, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Frames `start` to `stop - 1` of an episode."""
        stop = int(self.lengths[index]) if stop is None else stop
        try:
            pixels = _rows(self._contents.recordings[index].pictures, start, stop)
        except OSError as error:
            raise self._broken(index, error) from error
        if pixels.shape[-1] != 3:  # channels first
            pixels = np.moveaxis(pixels, 1, -1)
        if self._contents.upside_down:
            pixels = pixels[:, ::-1]
        pixels = np.ascontiguousarray(pixels)
        return resize(pixels, self._size) if self._size and len(pixels) else pixels

    def identity(self, index: int) -> str:
        """The reset seed where there is one, else the episode's name."""
        recording = self._contents.recordings[index]
        return recording.name if recording.seed is None else f"seed {recording.seed}"

    def fingerprint(self) -> str:
        """Of the file's name, size and time."""
        status = self._path.stat()
        camera = self._contents.recordings[0].pictures[0].name
        identity = f"{self._path.name} {status.st_size} {status.st_mtime_ns} {camera}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def _read_actions(self, recording: _Recording) -> NDArray[np.float32]:
        actions: NDArray[Any] = np.asarray(recording.actions[:])
        choices = self._contents.choices
        if choices:
            actions = np.eye(choices)[actions.astype(int).reshape(-1)]
        return np.asarray(actions.reshape(len(actions), -1), np.float32)

    def _read_state(self, recording: _Recording, length: int) -> NDArray[np.float32]:
        parts = [_rows(parts, 0, length).reshape(length, -1) for parts in recording.vectors]
        return np.asarray(np.concatenate([np.zeros((length, 0)), *parts], axis=1), np.float32)

    def _broken(self, index: int, problem: Exception | str) -> BrokenDataError:
        name = self._contents.recordings[index].name
        return BrokenDataError(f"{self.path}, episode {index} ({name}): {problem}")


def _look_into(path: Path, camera: str | None) -> _Contents:
    try:
        file = _load_h5py().File(path, "r")
        if "data" in file:
            return _robomimic(file, path, camera)
        if any(name.startswith("episode_") for name in file):
            return _minari(file, path, camera)
    except (OSError, KeyError) as error:
        raise BrokenDataError(
            f"{path} is not a readable HDF5 recording ({error}); it may be truncated"
        ) from error
    raise BrokenDataError(
        f"{path}: expected groups `data/demo_0` (robomimic, LIBERO) or `episode_0` (Minari), "
        f"found {', '.join(file) or 'nothing'}"
    )


def _minari(file: Any, path: Path, camera: str | None) -> _Contents:
    """Minari: episode_N with T+1 observations and T actions; metadata.json beside the file."""
    names = sorted((n for n in file if n.startswith("episode_")), key=_number_in)
    pictures, vectors = _observations(file[names[0]]["observations"])
    chosen = _choose(pictures, camera, vectors, path)
    metadata = path.with_name("metadata.json")
    about = read_json(metadata) if metadata.is_file() else dict(file.attrs)
    space = _parsed(about.get("action_space"))
    recordings = []
    for name in names:
        group = file[name]
        recordings.append(
            _Recording(
                name=name,
                pictures=[_under(group["observations"], chosen)],
                vectors=[[_under(group["observations"], vector)] for vector in vectors],
                actions=group["actions"],
                rewards=group["rewards"],
                terminated=group["terminations"],
                truncated=group["truncations"],
                seed=int(group.attrs["seed"]) if "seed" in group.attrs else None,
            )
        )
    return _Contents(
        layout="minari",
        recordings=recordings,
        choices=int(space["n"]) if space.get("type") == "Discrete" else None,
        provenance={
            key: _parsed(about.get(key))
            for key in ("env_spec", "action_space", "minari_version")
            if isinstance(about.get(key), (str, dict))
        },
    )


def _robomimic(file: Any, path: Path, camera: str | None) -> _Contents:
    """robomimic: data/demo_N with T observations, T actions and often T next observations."""
    data = file["data"]
    names = sorted((n for n in data if n.startswith("demo")), key=_number_in)
    env = _parsed(data.attrs.get("env_args"))
    problem = _parsed(data.attrs.get("problem_info"))
    is_libero = "bddl_file_name" in data.attrs
    if not names or "obs" not in data[names[0]]:
        raise BrokenDataError(
            f"{path}: the episodes have no `obs` group; extract observations with robomimic first"
        )
    pictures, vectors = _observations(data[names[0]]["obs"])
    chosen = _choose(pictures, camera, vectors, path)
    recordings = []
    for name in names:
        group = data[name]
        recordings.append(
            _Recording(
                name=name,
                pictures=_with_next(group, chosen),
                vectors=[_with_next(group, vector) for vector in vectors],
                actions=group["actions"],
                rewards=group["rewards"],
                terminated=group["dones"],
                text=str(problem.get("language_instruction") or env.get("env_name") or ""),
            )
        )
    return _Contents(
        layout="libero" if is_libero else "robomimic",
        recordings=recordings,
        fps=float(env.get("env_kwargs", {}).get("control_freq", 0.0)),
        # robosuite renders from the bottom up; robomimic turns pictures over, LIBERO stores them
        # as they come
        upside_down=is_libero,
        provenance={"env_args": env} | ({"problem_info": problem} if problem else {}),
    )


def _with_next(group: Any, name: str) -> list[Any]:
    """The observation's T rows and, where it was recorded, the one behind the last action."""
    parts = [group["obs"][name]]
    if "next_obs" in group and name in group["next_obs"]:
        parts.append(group["next_obs"][name][-1:])
    return parts


def _observations(group: Any) -> tuple[list[str], list[str]]:
    """Names of the pictures and of the vectors below a group; "" is the group itself."""
    pictures, vectors = [], []
    for name, array in _arrays(group):
        is_picture = (
            array.dtype == np.uint8 and array.ndim == 4 and 3 in (array.shape[1], array.shape[-1])
        )
        if is_picture:
            pictures.append(name)
        elif array.dtype.kind in "fiub" and array.ndim <= 2:
            vectors.append(name)
    return pictures, vectors


def _arrays(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not hasattr(group, "keys"):
        return [(prefix, group)]
    nested = [_arrays(group[key], f"{prefix}/{key}".lstrip("/")) for key in sorted(group.keys())]
    return [pair for pairs in nested for pair in pairs]


def _choose(pictures: list[str], wanted: str | None, vectors: list[str], path: Path) -> str:
    if not pictures:
        raise BrokenDataError(
            f"{path} has no pictures, only {', '.join(vectors) or 'nothing'}; "
            "a world learns from pixels: record it again with image observations"
        )
    if wanted is None:
        return pictures[0]
    for name in pictures:
        if wanted in (name, name.rsplit("/", 1)[-1]):
            return name
    raise ValueError(f"{path} has no camera {wanted!r}; it has {', '.join(pictures)}")


def _under(group: Any, name: str) -> Any:
    return group[name] if name else group


def _rows(parts: Sequence[Any], start: int, stop: int) -> NDArray[Any]:
    """Rows of arrays that follow each other."""
    pieces, first = [], 0
    for part in parts:
        low, high = max(start - first, 0), min(stop - first, len(part))
        if low < high or part is parts[0]:
            pieces.append(np.asarray(part[low : max(high, low)]))
        first += len(part)
    return np.concatenate(pieces)


def _number_in(name: str) -> int:
    return int("".join(filter(str.isdigit, name)) or 0)


def _parsed(value: Any) -> dict[str, Any]:
    """A JSON attribute; {} when it is absent or no JSON object."""
    if isinstance(value, Mapping):
        return dict(value)
    try:
        parsed = json.loads(value)
    except (TypeError, ValueError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _load_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            'reading HDF5 recordings needs h5py: pip install "kairos-env[study]"'
        ) from error
    return h5py
