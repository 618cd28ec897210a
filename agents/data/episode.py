"""One episode as arrays: what a collector hands to the writer and what every reader gives back.

Legend: T frames, H W pixels, A actions per frame, D numbers per action, S numbers of state.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Episode:
    """T frames and the T-1 transitions between them; the last frame is the one after the end."""

    frames: NDArray[np.uint8]  # (T, H, W, 3)
    actions: NDArray[
        np.float32
    ]  # (T-1, A, D): actions[t] lead from frame t to frame t+1, scaled to [-1, 1]
    rewards: NDArray[np.float32]  # (T-1,): summed over the A actions, no discount
    terminated: NDArray[np.bool_]  # (T-1,)
    truncated: NDArray[np.bool_]  # (T-1,)
    state: NDArray[np.float32]  # (T, S); S may be 0
    text: str = ""
    """What the episode shows or was asked to do; one of LeRobot's tasks."""
    seed: int | None = None
    """The seed given to `env.reset`."""
    policy: str = ""
    """Name of the policy that acted."""
    success: bool | None = None
    """Whether the task was solved; None when the task has no such notion."""
    start: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    """Simulator snapshot at the first frame, so that the truth can be replayed."""

    def __post_init__(self) -> None:
        length = len(self.frames)
        expected: dict[str, tuple[NDArray[Any], type, tuple[int | None, ...]]] = {
            "frames": (self.frames, np.uint8, (length, None, None, 3)),
            "actions": (self.actions, np.float32, (length - 1, None, None)),
            "rewards": (self.rewards, np.float32, (length - 1,)),
            "terminated": (self.terminated, np.bool_, (length - 1,)),
            "truncated": (self.truncated, np.bool_, (length - 1,)),
            "state": (self.state, np.float32, (length, None)),
        }
        if length < 1:
            raise ValueError("an episode needs at least one frame, got none")
        for name, (array, dtype, shape) in expected.items():
            same_rank = array.ndim == len(shape)
            if (
                array.dtype != dtype
                or not same_rank
                or any(s not in (None, n) for s, n in zip(shape, array.shape, strict=True))
            ):
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise ValueError(
                    f"an episode of {length} frames needs {name} as "
                    f"{np.dtype(dtype).name} ({wanted}), got {array.dtype.name} {array.shape}"
                )

    def __len__(self) -> int:
        return len(self.frames)
