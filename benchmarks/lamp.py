"""The smallest environment whose picture answers to actions: they change the colours of a lamp.

Nothing has to be found in the picture to know what an action does, so a network that can learn to
answer at all learns it here within a few updates.
"""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

NAME = "kairos_env.benchmarks.lamp:KairosLamp-v0"
SIDE = 32
RATE = 0.15


class Lamp(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A square whose colours the actions make brighter or darker, in a frame of the opposite."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        self.colour = np.zeros(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Any colour that is not dark or bright."""
        super().reset(seed=seed)
        self.colour = self.np_random.uniform(0.2, 0.8, 3)
        return self.colour.astype(np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Change the colours."""
        self.colour = np.clip(self.colour + RATE * np.asarray(action, float), 0, 1)
        return self.colour.astype(np.float32), 0.0, False, False, {}

    def render(self) -> NDArray[np.uint8]:
        """The lamp in its frame."""
        return picture(self.colour)


def picture(colour: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3) of a colour."""
    frame = np.empty((SIDE, SIDE, 3))
    frame[:] = 255 * (1 - colour)
    frame[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = 255 * colour
    return frame.astype(np.uint8)


def histories(
    count: int, frames: int, *, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Frames (N, T, H, W, 3), actions (N, T - 1, 1, 3), and the colours that they end with."""
    random = np.random.default_rng(seed)
    actions = random.uniform(-1, 1, (count, frames - 1, 1, 3)).astype(np.float32)
    colours = [random.uniform(0.2, 0.8, (count, 3))]
    for t in range(frames - 1):
        colours.append(np.clip(colours[-1] + RATE * actions[:, t, 0], 0, 1))
    seen = np.stack([np.stack([picture(c) for c in row]) for row in colours], axis=1)
    return seen, actions, colours[-1].astype(np.float32)


gymnasium.register("KairosLamp-v0", entry_point=f"{__name__}:Lamp")
