"""What a policy in the dream sees of the state: what the pictures show, else what the head says.

The state head is a reader of its own, with errors of its own: a policy that acts on it is tested
together with it. Where objects can be found in pictures by their colour, a policy can act on what
the dream shows, and the dynamics are tested alone.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.benchmarks.fidelity.objects import ObjectFinder

CLEAR = 0.5  # share of its area from which an object's place is read off a picture


class Eyes:
    """Reads the places of a scene's objects off pictures, to about a tenth of a pixel.

    What no picture shows (velocities, an object that is mostly covered) comes from the state head.

    Args:
        finder: Knows the objects.
    """

    def __init__(self, finder: ObjectFinder) -> None:
        self._finder = finder

    def __call__(
        self, state: NDArray[np.float32], frames: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """States (b, S) with what frames (b, H, W, 3) show put in."""
        found, read = self._finder(frames), state.copy()
        clear = found.area >= CLEAR * self._finder.full_areas()
        for i, thing in enumerate(self._finder.objects):
            rows = clear[:, i]
            read[rows, thing.state_slice] = _in_units(found.place[rows, i], self._finder.size)
        return read


def _in_units(place: NDArray[Any], size: int) -> NDArray[np.float64]:
    """(column, row) to (x, y): the inverse of `SceneObject.pixel`."""
    units = (place + 0.5) / (size / 2) * np.array([1.0, -1.0]) + np.array([-1.0, 1.0])
    return np.asarray(units)
