"""Datasets of episodes: written in the LeRobot v3.0 layout, read from several, cut into clips."""

from kairos_env.agents.data.cache import DatasetRows, FrameStore, TrainingCache, open_cache
from kairos_env.agents.data.clips import ClipConfig, Clips
from kairos_env.agents.data.dataset import Dataset, DatasetSpec
from kairos_env.agents.data.episode import Episode
from kairos_env.agents.data.files import BrokenDataError, DiskFullError
from kairos_env.agents.data.readers import join_datasets, open_dataset

__all__ = [
    "BrokenDataError",
    "ClipConfig",
    "Clips",
    "Dataset",
    "DatasetRows",
    "DatasetSpec",
    "DiskFullError",
    "Episode",
    "FrameStore",
    "TrainingCache",
    "join_datasets",
    "open_cache",
    "open_dataset",
]
