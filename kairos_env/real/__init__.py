"""The ground truth: real environments with the same face as the dream."""

from kairos_env.real.errors import UnknownEnvironmentError
from kairos_env.real.make import make_real
from kairos_env.real.real_env import RealEnv
from kairos_env.real.render import RenderError
from kairos_env.real.snapshots import ForeignSnapshotError, Snapshot, SnapshotError

__all__ = [
    "ForeignSnapshotError",
    "RealEnv",
    "RenderError",
    "Snapshot",
    "SnapshotError",
    "UnknownEnvironmentError",
    "make_real",
]
