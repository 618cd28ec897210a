"""What dreams show at the moment, and the observations and infos that are made of it.

Shapes: B dreams, F frames per step, H W pixels, S state size, Z = C h w numbers of a latent frame.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from kairos_env.world_model.published.world import PublishedWorld
from kairos_env.world_model.world_model import Prediction, WorldModel

ObservationKind = Literal["pixels", "state", "latent", "dict"]
OBSERVATIONS: tuple[str, ...] = get_args(ObservationKind)

# Observed states and latents are clipped to this many deviations of the training data, so that the
# space has bounds; nothing that the model has seen is near them.
RANGE = 20.0

Observation = NDArray[Any] | dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """The last step of B dreams, or the end of the history of those that have just begun."""

    latents: NDArray[np.float32]
    """(B, F, Z)."""
    state: NDArray[np.float32]
    """(B, S): after the last frame; NaN where nobody knows it."""
    rewards: NDArray[np.float32]
    """(B, F)."""
    uncertainty: NDArray[np.float64]
    """(B,)."""
    end_probability: NDArray[np.float64]
    """(B,): at the last frame."""
    frames: NDArray[np.uint8] | None
    """(B, F, H, W, 3), or None where nothing is decoded."""
    imagined_actions: NDArray[np.float32] | None = None
    """(B, K, D): what an imported network would have done, NaN before the first step; None in
    worlds that do not imagine actions."""

    def __len__(self) -> int:
        return len(self.state)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by name."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    def infos(self) -> dict[str, NDArray[Any]]:
        """What `info` tells of it; new arrays."""
        named = ("frames", "rewards", "state", "uncertainty", "end_probability", "imagined_actions")
        return {name: array.copy() for name, array in self.arrays().items() if name in named}

    def index(self, dreams: Sequence[int] | NDArray[np.int64]) -> Self:
        """The chosen dreams, copied."""
        rows = np.asarray(dreams, np.int64)
        return dataclasses.replace(self, **{k: v[rows] for k, v in self.arrays().items()})

    def write(self, where: NDArray[np.int64], other: "View") -> Self:
        """These dreams with the rows `where` replaced; the given views stay as they were."""
        mine, theirs = self.arrays(), other.arrays()
        written = {}
        for name, array in mine.items():
            written[name] = array.copy()
            written[name][where] = theirs[name]
        return dataclasses.replace(self, **written)


def view_of(predictions: Sequence[Prediction], threshold: float) -> tuple[View, NDArray[np.bool_]]:
    """What a step of one or more model chunks shows, and which dreams end in it.

    A dream that ends at a frame shows that frame in place of the later ones and earns nothing after
    it, as the ground truth does.

    Args:
        predictions: In order of time.
        threshold: The end probability from which a dream ends.
    """

    def joined(name: str) -> NDArray[Any]:  # (B, F, ...)
        array: NDArray[Any] = numpy_of(torch.cat([getattr(p, name) for p in predictions], dim=1))
        return array

    probability = joined("end_probability")
    B, F = probability.shape
    ends = probability > threshold
    last = np.where(ends.any(1), ends.argmax(1), F - 1)  # (B,): the frame that a dream stops at
    shown = np.minimum(np.arange(F), last[:, None])  # (B, F)
    row = np.arange(B)
    view = View(
        latents=joined("latents").reshape(B, F, -1)[row[:, None], shown],
        state=joined("state")[row, last],
        rewards=np.where(np.arange(F) <= last[:, None], joined("reward"), 0).astype(np.float32),
        uncertainty=numpy_of(torch.stack([p.uncertainty for p in predictions]).amax(0).double()),
        end_probability=probability[row, last].astype(np.float64),
        frames=None if predictions[0].frames is None else joined("frames")[row[:, None], shown],
        imagined_actions=None if predictions[0].actions is None else joined("actions"),
    )
    return view, ends.any(1)


def view_of_history(
    frames: NDArray[np.uint8] | None,
    latents: NDArray[np.float32],
    state: NDArray[np.float32],
    F: int,
) -> View:
    """What dreams show before their first step: the last F frames of their histories."""
    B, T = latents.shape[:2]
    shown = np.maximum(np.arange(T - F, T), 0)  # a short history repeats its first frame
    nothing = np.zeros(B)
    return View(
        latents=latents.reshape(B, T, -1)[:, shown],
        state=state.astype(np.float32),
        rewards=np.zeros((B, F), np.float32),
        uncertainty=nothing,
        end_probability=nothing.copy(),
        frames=None if frames is None else frames[:, shown],
    )


class Observer:
    """Makes observations of one kind out of views.

    Args:
        kind: "pixels", "state", "latent", or "dict" with all of these.
        model: Says which sizes and ranges there are.
        frames: F.
        all_frames: Show all F frames (or latents) of a step, first axis F, instead of the last.
    """

    def __init__(
        self,
        kind: ObservationKind,
        model: WorldModel | PublishedWorld,
        *,
        frames: int,
        all_frames: bool,
    ) -> None:
        self.kind = kind
        self.all_frames = all_frames
        self.needs_frames = kind in ("pixels", "dict")
        self.needs_state = kind in ("state", "dict") and model.config.heads.state_size > 0
        self._spaces = self._boxes(model, (frames,) if all_frames else ())
        names = list(self._spaces) if kind == "dict" else [kind]
        self.space: spaces.Space[Any] = (
            spaces.Dict({name: self._spaces[name] for name in names})
            if kind == "dict"
            else self._spaces[kind]
        )

    def observe(self, view: View) -> Observation:
        """Observations of all dreams of a view, with the dream as first axis; new arrays."""
        if self.kind != "dict":
            return self._one(self.kind, view)
        return {name: self._one(name, view) for name in self._spaces}

    def _one(self, name: str, view: View) -> NDArray[Any]:
        if name == "pixels":
            assert view.frames is not None
            return (view.frames if self.all_frames else view.frames[:, -1]).copy()
        box = self._spaces[name]
        shown = {"state": view.state, "latent": view.latents}[name]
        if name == "latent" and not self.all_frames:
            shown = shown[:, -1]
        return np.clip(shown, box.low, box.high)

    def _boxes(
        self, model: WorldModel | PublishedWorld, stack: tuple[int, ...]
    ) -> dict[str, spaces.Box]:
        """A space for each thing that this world can show."""
        H, W = model.config.tokenizer.frame_size
        Z = int(np.prod(model.config.latent_shape))
        pixels: Any = spaces.Box(0, 255, (*stack, H, W, 3), np.uint8)
        boxes = {"pixels": pixels}
        if isinstance(model, WorldModel) and model.config.heads.state_size:
            centre, reach = (
                numpy_of(model.heads.state_mean),
                RANGE * numpy_of(model.heads.state_scale),
            )
            boxes["state"] = spaces.Box(centre - reach, centre + reach, dtype=np.float32)
        boxes["latent"] = spaces.Box(-RANGE, RANGE, (*stack, Z), np.float32)
        return boxes


def masked(infos: dict[str, Any], where: NDArray[np.int64]) -> dict[str, Any]:
    """Gymnasium's form of a vector's infos: beside each entry a mask of whom it is news of."""
    count = len(next(iter(infos.values())))
    mask = np.zeros(count, np.bool_)
    mask[where] = True
    return {**infos, **{f"_{name}": mask.copy() for name in infos}}


def one_dream(batched: Any, dream: int) -> Any:
    """One dream's part of a batched observation or info; scalars become Python's."""
    if isinstance(batched, dict):
        return {k: one_dream(v, dream) for k, v in batched.items() if not k.startswith("_")}
    value = batched[dream]
    return value.item() if isinstance(value, np.generic) else value.copy()


def numpy_of(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor as an array; what was rounded to bfloat16 comes back as float32."""
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array
