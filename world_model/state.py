"""The memory that a dream carries from step to step: plain tensors, batch first, nothing hidden.

Because every tensor's first axis is the dream, branching a dream for planning is indexing, a batch
of dreams is a concatenation, and resetting one of them writes one row. Shapes: B dreams, P previous
frames, C h w a latent frame.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from kairos_env.kernels.window_attention.cache import FrameCache
from kairos_env.world_model.delta_net import DeltaState

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class LayerMemory:
    """What one layer of the mixture remembers."""

    frames: FrameCache
    """Keys and values of the last frames: of video and action tokens, in a GLA layer of actions
    alone."""
    delta: DeltaState | None
    """The video's unbounded memory in a GLA layer."""


@dataclasses.dataclass(frozen=True)
class DreamState:
    """Everything the next step of B dreams depends on."""

    layers: tuple[LayerMemory, ...]
    previous: Tensor
    """(B, P, C, h, w): the last clean latent frames, oldest first; with an anchor, the oldest is
    the dream's first frame."""
    frame: Tensor
    """(B,) int64: frames in memory so far."""
    seed: Tensor
    """(B,) int64: each dream's own random stream; its position in it is `frame`."""
    text: Tensor | None = None
    """(B, S, text_dim): what the dream was told."""
    text_mask: Tensor | None = None
    tokens: Tensor | None = None
    """(B, L, D): what the last frame made of all that is remembered, where the head recollects."""
    places: Tensor | None = None
    """(B, 1, numbers): in the last frame, of things that the heads find in its sketch."""
    backdrop: Tensor | None = None
    """(B, 2, H, W, 3) uint8: the last true frame as it was, and as the decoder draws it."""

    def __len__(self) -> int:
        return len(self.frame)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its path, in a fixed order."""
        return dict(_leaves(self, ""))

    def index(self, dreams: Tensor | Sequence[int] | slice) -> Self:
        """The chosen dreams, in that order and as often as named: branching is indexing."""
        if isinstance(dreams, slice):
            return self._map(lambda x: x[dreams])
        where = torch.as_tensor(dreams)
        if where.dim() != 1:
            raise ValueError(
                "DreamState.index takes a list of dreams, a mask or a slice, "
                f"got {dreams!r}; one dream is index([i])"
            )
        if len(where) == 0:
            where = where.long()  # an empty list has no type of its own
        return self._map(lambda x: x[where.to(x.device)])

    def clone(self) -> Self:
        """A copy that shares nothing."""
        return self._map(Tensor.clone)

    def detach(self) -> Self:
        """The same dreams without what led to them: gradients end here."""
        return self._map(Tensor.detach)

    def to(self, device: torch.device | str) -> Self:
        """The same dreams on another device."""
        return self._map(lambda x: x.to(device))

    def write(self, dreams: Tensor, other: "DreamState") -> Self:
        """These dreams with the rows `dreams` (n,) replaced by the n dreams of `other`.

        All other rows stay bit for bit.
        """
        self._require_same_shape(other)
        theirs = other.tensors()
        where = dreams.to(self.frame.device)
        if len(where) != len(other):
            raise ValueError(
                f"DreamState.write: {len(where)} rows named, {len(other)} dreams given"
            )
        return self._map_named(lambda name, x: x.index_copy(0, where, theirs[name].to(x)))

    @classmethod
    def concat(cls, states: Sequence["DreamState"]) -> "DreamState":
        """One batch out of several."""
        if not states:
            raise ValueError("DreamState.concat needs at least one state, got none")
        first, *rest = states
        for other in rest:
            first._require_same_shape(other)
        parts = [state.tensors() for state in states]
        return first._map_named(lambda name, _: torch.cat([part[name] for part in parts]))

    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, beside and renamed, so that a crash leaves the old file."""
        from safetensors.torch import save_file

        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        tensors = {name: x.detach().cpu().contiguous() for name, x in self.tensors().items()}
        layout = [layer.delta is not None for layer in self.layers]
        try:
            save_file(tensors, beside, {"kairos_state": json.dumps([FORMAT, layout])})
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "DreamState":
        """Read what `save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                note = json.loads((file.metadata() or {}).get("kairos_state", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error})") from error
        if not isinstance(note, list) or len(note) != 2 or note[0] != FORMAT:
            raise ValueError(
                f"{path} is not a saved dream of format {FORMAT}; its note says {note!r}. "
                "Save it again with DreamState.save of this version."
            )
        return _assemble(tensors, note[1], path)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], source: str) -> "DreamState":
        """The inverse of `tensors`; an error names `source`, where they came from."""
        layers = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
        layout = [f"layers.{i}.delta.memory" in tensors for i in range(len(layers))]
        return _assemble(tensors, layout, source)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return _rebuild(self, "", lambda _, x: change(x))

    def _map_named(self, change: Callable[[str, Tensor], Tensor]) -> Self:
        return _rebuild(self, "", change)

    def _require_same_shape(self, other: "DreamState") -> None:
        mine = {name: tuple(x.shape[1:]) for name, x in self.tensors().items()}
        theirs = {name: tuple(x.shape[1:]) for name, x in other.tensors().items()}
        if mine != theirs:
            name = next(n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n))
            raise ValueError(
                f"these dreams come from different worlds or texts: {name} has shape "
                f"{mine.get(name)} here and {theirs.get(name)} there (batch left out)"
            )


Node = TypeVar("Node")


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield path, node
    elif isinstance(node, tuple):
        for i, item in enumerate(node):
            yield from _leaves(item, f"{path}.{i}")
    elif node is not None:
        for field in dataclasses.fields(node):
            yield from _leaves(getattr(node, field.name), f"{path}.{field.name}".lstrip("."))


def _rebuild(node: Node, path: str, change: Callable[[str, Tensor], Tensor]) -> Node:
    result: Any = node
    if isinstance(node, Tensor):
        result = change(path, node)
    elif isinstance(node, tuple):
        result = tuple(_rebuild(item, f"{path}.{i}", change) for i, item in enumerate(node))
    elif node is not None:
        fields = dataclasses.fields(node)  # type: ignore[arg-type]
        parts = {f.name: getattr(node, f.name) for f in fields}
        result = type(node)(
            **{k: _rebuild(v, f"{path}.{k}".lstrip("."), change) for k, v in parts.items()}
        )
    return result  # type: ignore[no-any-return]


def _assemble(tensors: Mapping[str, Tensor], layout: list[bool], path: str | Path) -> DreamState:
    def take(name: str) -> Tensor:
        if name not in tensors:
            raise ValueError(f"{path} lacks the tensor {name}: it is not a whole saved dream")
        return tensors[name]

    def layer(i: int, has_delta: bool) -> LayerMemory:
        at = f"layers.{i}"
        cache = FrameCache(**{name: take(f"{at}.frames.{name}") for name in ("k", "v", "frames")})
        delta = (
            DeltaState(take(f"{at}.delta.memory"), take(f"{at}.delta.tail")) if has_delta else None
        )
        return LayerMemory(cache, delta)

    state = DreamState(
        tuple(layer(i, has_delta) for i, has_delta in enumerate(layout)),
        take("previous"),
        take("frame"),
        take("seed"),
        tensors.get("text"),
        tensors.get("text_mask"),
        tensors.get("tokens"),
        tensors.get("places"),
        tensors.get("backdrop"),
    )
    foreign = sorted(set(tensors) - set(state.tensors()))
    if foreign:
        raise ValueError(f"{path} holds the tensor {foreign[0]}, which is no part of its dream")
    return state
