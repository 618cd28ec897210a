"""What this package raises beyond Gymnasium's own errors; every one is also a plain Python error.

`gymnasium.error.ResetNeeded` and `gymnasium.error.ClosedEnvironmentError` mean what they mean in
any environment. Snapshots of something else raise `kairos_env.real.snapshots.ForeignSnapshotError`.
"""

import gymnasium


class WorldError(ValueError):
    """A world on disk cannot be read or written; the message names the file."""


class WorldNotFoundError(WorldError, FileNotFoundError):
    """There is no world of this name, at this path or on the hub."""


class ActionError(gymnasium.error.InvalidAction, ValueError):
    """An action of the wrong shape or type, out of bounds, or with NaN. Nothing was stepped."""


class OptionError(ValueError):
    """An argument of the environment or an option of `reset` of no use. Nothing was reset."""


class DeafWorldWarning(UserWarning):
    """A world was opened whose video does not answer to actions."""
