"""Where the objects are in a picture, by colour.

The scenes paint every object in one flat colour of its own, so a pixel belongs to the object whose
colour it is nearest to. Smooth edges are mixtures; weighing them by how much of the object's colour
they hold finds centres well below a pixel (0.1 px from the true state on average).

Legend: N pictures, H W pixels, O objects.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.float32]

COMMON = 0.01  # share of all pixels from which a colour counts as one of the scene's own
SAME = 8  # levels of 255 within which two colours are one
# Of the way to the nearest other colour: a pixel within CORE belongs to the object, one within
# REACH is an edge that helps to place it. Measured on the three scenes, a reach of 0.7 places
# better than 0.5, and from 1.0 on edges between other things are taken for objects.
CORE, REACH = 0.5, 0.7


class SceneObject(Protocol):
    """What is read of an object; `kairos_env.real.scenes.SceneObject` has it."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Its colour."""

    @property
    def state_slice(self) -> slice:
        """Where its (x, y) stands in the state."""

    @property
    def gone_behind(self) -> tuple[str, ...]:
        """What may hide it whole for many frames."""

    def area_px(self, frame_size: int = 64) -> float:
        """Pixels that it fills when nothing covers it."""

    def pixel(self, state: NDArray[np.floating[Any]], frame_size: int = 64) -> NDArray[np.float64]:
        """Its centre as (column, row)."""


class Found(NamedTuple):
    """What a picture shows of each object."""

    place: Places
    """(N, O, 2): centre as (column, row); NaN where nothing of the colour is seen."""
    area: Places
    """(N, O): pixels."""


class ObjectFinder:
    """Finds objects in pictures.

    Args:
        objects: What to look for.
        sample: Some true pictures (N, H, W, 3), which show what other colours there are.
    """

    def __init__(self, objects: Sequence[SceneObject], sample: NDArray[np.uint8]) -> None:
        self.objects = tuple(objects)
        self.size = int(sample.shape[-2])
        self._colours = np.array([o.rgb for o in self.objects], np.float32)  # (O, 3)
        self._near = self._distance_to_others(_common_colours(sample))  # (O,)
        rows, columns = np.mgrid[: sample.shape[-3], : sample.shape[-2]]
        self._axes = np.stack([columns, rows, np.ones_like(rows)], -1).reshape(-1, 3)
        self._axes = self._axes.astype(np.float32)

    def __call__(self, frames: NDArray[np.uint8]) -> Found:
        """Look at frames (N, H, W, 3)."""
        pixels = frames.reshape(-1, 3).astype(np.float32)
        squares = np.einsum("pc,pc->p", pixels, pixels)[:, None]
        constant = np.square(self._colours).sum(1)
        distance = squares - 2 * pixels @ self._colours.T + constant  # (N*H*W, O), squared
        near = np.sqrt(np.maximum(distance, 0)) / self._near
        near = near.T.reshape(len(self.objects), len(frames), -1)  # (O, N, H*W)
        weight = np.maximum(1.0 - near / REACH, 0.0)
        sums = weight @ self._axes  # (O, N, 3)
        total = np.where(sums[..., 2:] > 0, sums[..., 2:], np.nan)
        area = (near < CORE).sum(-1)
        place = (sums[..., :2] / total).swapaxes(0, 1)
        return Found(place.astype(np.float32), area.T.astype(np.float32))

    def full_areas(self) -> Places:
        """(O,): pixels of each object when nothing covers it."""
        return np.array([o.area_px(self.size) for o in self.objects], np.float32)

    def places_in_state(self, state: NDArray[np.floating[Any]]) -> Places:
        """Where the simulator says they are: (..., S) to (..., O, 2)."""
        places = [o.pixel(state, self.size) for o in self.objects]
        return np.stack(places, -2).astype(np.float32)

    def _distance_to_others(self, common: NDArray[np.float32]) -> NDArray[np.float32]:
        """(O,): from each object's colour to the nearest other one."""
        others = np.concatenate([self._colours, common])
        distance = np.linalg.norm(self._colours[:, None] - others, axis=-1)  # (O, O + colours)
        distance[distance < SAME] = np.inf
        nearest = distance.min(1)
        return np.where(np.isfinite(nearest), nearest, 255.0).astype(np.float32)


def _common_colours(sample: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Colours that fill a good part of the pictures: floor, walls, roofs, objects."""
    colours, counts = np.unique(sample.reshape(-1, 3), axis=0, return_counts=True)
    return np.asarray(colours[counts >= COMMON * counts.sum()], np.float32)
