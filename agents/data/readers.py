"""Open a dataset whatever its layout: look at the files, not at an option."""

from collections.abc import Sequence
from pathlib import Path

from kairos_env.agents.data.dataset import Dataset
from kairos_env.agents.data.format import INFO
from kairos_env.agents.data.hdf5 import Hdf5Dataset
from kairos_env.agents.data.lerobot import LeRobotDataset
from kairos_env.agents.data.video_folder import VIDEO_SUFFIXES, VideoFolder
from kairos_env.agents.data.views import GroupedDataset, JoinedDataset, ScaledDataset

HDF5_SUFFIXES = (".hdf5", ".h5")


def open_dataset(
    path: str | Path | Sequence[str | Path],
    *,
    camera: str | None = None,
    frame_size: int | tuple[int, int] | None = None,
    group: int = 1,
    scale_actions: bool = False,
    fps: float | None = None,
) -> Dataset:
    """Open a dataset, whichever of the known layouts it has.

    Known are: our own and other LeRobot v3.0 folders, LeRobot v2.x folders, Minari datasets,
    robomimic / LIBERO HDF5 files (or a folder of them), folders of videos.

    Args:
        path: A folder or file; several are joined into one dataset.
        camera: Which camera, by name; the first when not given.
        frame_size: Scale frames to this height and width (one number: square).
        group: Take this many low-level rows as one: one frame, their actions as a chunk.
        scale_actions: Map actions to [-1, 1] by their range in the dataset. Ours are scaled
            already.
        fps: Frames a second, where the files do not say.

    Raises:
        BrokenDataError: A file is missing, truncated or inconsistent.
        ValueError: The layout is not known, or an option does not fit.
    """
    size = (frame_size, frame_size) if isinstance(frame_size, int) else frame_size
    if isinstance(path, str | Path):
        dataset = _open(Path(path), camera, size, fps)
    else:
        dataset = join_datasets([_open(Path(p), camera, size, fps) for p in path])
    if group != 1:
        dataset = GroupedDataset(dataset, group)
    return ScaledDataset(dataset) if scale_actions else dataset


def join_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """Several datasets of the same sizes as one."""
    return datasets[0] if len(datasets) == 1 else JoinedDataset(datasets)


def _open(
    path: Path, camera: str | None, size: tuple[int, int] | None, fps: float | None
) -> Dataset:
    if not path.exists():
        raise FileNotFoundError(f"there is no dataset at {path}")
    if path.is_file():
        if path.suffix in HDF5_SUFFIXES:
            return Hdf5Dataset(path, camera=camera, frame_size=size, fps=fps)
        raise ValueError(f"{path} is a file, but not one that ends in {' or '.join(HDF5_SUFFIXES)}")
    if (path / INFO).is_file():
        return LeRobotDataset(path, camera=camera, frame_size=size)
    for minari in (path / "main_data.hdf5", path / "data" / "main_data.hdf5"):
        if minari.is_file():
            return Hdf5Dataset(minari, camera=camera, frame_size=size, fps=fps)
    recordings = sorted(p for p in path.iterdir() if p.suffix in HDF5_SUFFIXES)
    if recordings:
        parts = [Hdf5Dataset(p, camera=camera, frame_size=size, fps=fps) for p in recordings]
        return join_datasets(parts)
    if any(p.suffix.lower() in VIDEO_SUFFIXES for p in path.iterdir()):
        return VideoFolder(path, frame_size=size)
    raise ValueError(
        f"{path} is no dataset that can be read: expected {INFO} (LeRobot), data/main_data.hdf5 "
        "(Minari), *.hdf5 (robomimic, LIBERO) or videos. A collection that was interrupted early "
        "has none of them: run the same `kairos collect` again"
    )
