"""Where dreams begin: short true histories, with the simulator's own state after each of them.

On disk one `.npz` without pickle: `frames`, `actions`, `state`, and `snapshot.<key>` for every
array of the simulator's snapshot. Arrays whose length differs from start to start (texts, for
example) are padded, and `length.<key>` says how much of each is real; -1 where a start lacks the
key.

Shapes: N starts, T frames, H W pixels, A actions per frame, D action size, S state size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Snapshot = dict[str, NDArray[Any]]

SNAPSHOT, LENGTH = "snapshot.", "length."


@dataclasses.dataclass(frozen=True, eq=False)
class Starts:
    """N histories that dreams can begin with."""

    frames: NDArray[np.uint8]
    """(N, T, H, W, 3), oldest first."""
    actions: NDArray[np.float32]
    """(N, T - 1, A, D): what was done between the frames, encoded as the network sees it."""
    state: NDArray[np.float32]
    """(N, S): the true state at the last frame."""
    snapshots: tuple[Snapshot, ...] = ()
    """The twin's snapshot at the last frame of each start; empty where there is none."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        _expect(self.frames, "frames", np.uint8, ("N", "T", "H", "W", 3))
        N, T = self.frames.shape[:2]
        _expect(self.actions, "actions", np.float32, (N, T - 1, "A", "D"))
        _expect(self.state, "state", np.float32, (N, "S"))
        if N < 1 or T < 1:
            raise ValueError(f"a world needs at least one start of one frame, got {N} of {T}")
        if self.snapshots and len(self.snapshots) != N:
            raise ValueError(f"expected {N} snapshots, one per start, got {len(self.snapshots)}")

    def __len__(self) -> int:
        return len(self.frames)


def write_starts(path: Path, starts: Starts) -> None:
    """Write an `.npz`."""
    arrays = pack_snapshots(starts.snapshots)
    arrays |= {"frames": starts.frames, "actions": starts.actions, "state": starts.state}
    np.savez_compressed(path, **arrays)


def read_starts(path: Path) -> Starts:
    """Read an `.npz` that `write_starts` wrote; ValueError says what is wrong with the file."""
    try:
        # opened here, because numpy leaves a file that it cannot read open
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds on damaged files
        raise ValueError(f"not a whole .npz file without pickled objects ({error})") from error
    missing = sorted({"frames", "actions", "state"} - set(arrays))
    if missing:
        raise ValueError(f"lacks the arrays {', '.join(missing)}")
    N = len(arrays["frames"]) if arrays["frames"].ndim else 0
    return Starts(arrays["frames"], arrays["actions"], arrays["state"], unpack_snapshots(arrays, N))


def pack_snapshots(snapshots: Sequence[Mapping[str, NDArray[Any]]]) -> Snapshot:
    """N snapshots as arrays with a leading axis N."""
    keys = dict.fromkeys(key for snapshot in snapshots for key in snapshot)
    packed: Snapshot = {}
    for key in keys:
        values = [snapshot.get(key) for snapshot in snapshots]
        present = [np.asarray(value) for value in values if value is not None]
        if len(present) == len(values) and len({value.shape for value in present}) == 1:
            packed[SNAPSHOT + key] = np.stack(present)
            continue
        if any(value.ndim == 0 or value.shape[1:] != present[0].shape[1:] for value in present):
            raise ValueError(
                f"snapshot array {key!r} has shapes {[value.shape for value in present]}; only the "
                "first axis may differ between starts"
            )
        lengths = np.array([-1 if v is None else len(v) for v in values], np.int64)
        shape = (len(values), max(lengths), *present[0].shape[1:])
        padded = np.zeros(shape, present[0].dtype)
        for row, value in zip(padded, values, strict=True):
            if value is not None:
                row[: len(value)] = value
        packed[SNAPSHOT + key], packed[LENGTH + key] = padded, lengths
    return packed


def unpack_snapshots(arrays: Mapping[str, NDArray[Any]], count: int) -> tuple[Snapshot, ...]:
    """The inverse of `pack_snapshots`; other arrays are passed over."""
    packed = {k.removeprefix(SNAPSHOT): v for k, v in arrays.items() if k.startswith(SNAPSHOT)}
    for key, values in packed.items():
        if values.ndim == 0 or len(values) != count:
            raise ValueError(f"expected {SNAPSHOT}{key} for {count} starts, got {values.shape}")
    if not packed:
        return ()
    snapshots: list[Snapshot] = [{} for _ in range(count)]
    for key, values in packed.items():
        lengths = arrays.get(LENGTH + key)
        for i, snapshot in enumerate(snapshots):
            if lengths is None:
                snapshot[key] = values[i]
            elif lengths[i] >= 0:
                snapshot[key] = values[i, : lengths[i]]
    return tuple(snapshots)


def _expect(array: Any, name: str, dtype: type, shape: tuple[int | str, ...]) -> None:
    """Raise unless the array has this type and shape; a letter stands for any size."""
    fits = isinstance(array, np.ndarray) and array.ndim == len(shape) and array.dtype == dtype
    if fits and all(isinstance(n, str) or n == m for n, m in zip(shape, array.shape, strict=True)):
        return
    got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    wanted = ", ".join(map(str, shape))
    raise ValueError(f"expected starts' {name} as {dtype.__name__} ({wanted}), got {got}")
