"""The streaming memory of window attention: keys and values of the last frames in a ring.

B batch, R slots of the ring, L tokens a frame, H heads, D head size.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


def ring_slots(window: int, dilation: int) -> int:
    """How many past frames a window can reach: R = (window - 1) * dilation."""
    return (window - 1) * dilation


@dataclass(frozen=True, kw_only=True)
class FrameCache:
    """Keys and values of the last R frames of each batch item; frame n lies in slot n mod R.

    Softmax does not care for the order of keys, so the ring is never shifted. Each item counts its
    own frames: the items of a batch are separate streams, and one of them may start afresh (`frames
    = 0`) beside the others. Slots that no counted frame has filled are never read, whatever they
    hold.
    """

    k: Tensor
    """(B, R, L, H, D) keys."""
    v: Tensor
    """(B, R, L, H, D) values."""
    frames: Tensor
    """(B,) int64: frames seen so far."""

    @classmethod
    def empty(
        cls,
        batch: int,
        window: int,
        dilation: int,
        tokens: int,
        heads: int,
        head_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A cache that has seen nothing."""
        shape = (batch, ring_slots(window, dilation), tokens, heads, head_dim)
        return cls(
            k=torch.zeros(shape, device=device, dtype=dtype),
            v=torch.zeros(shape, device=device, dtype=dtype),
            frames=torch.zeros(batch, device=device, dtype=torch.int64),
        )


def append_frames(cache: FrameCache, k: Tensor, v: Tensor) -> FrameCache:
    """The cache after `k` and `v` (B, n, L, H, D) have passed; the given cache stays as it was."""
    _check_frames(cache, k, v)
    slots, count = cache.k.shape[1], k.shape[1]
    frames = cache.frames + count
    if slots == 0 or count == 0:
        return FrameCache(k=cache.k, v=cache.v, frames=frames)
    kept = min(slots, count)  # of more than R frames only the last R are ever read again
    back = torch.arange(kept, 0, -1, device=frames.device)
    slot = (frames[:, None] - back) % slots  # (B, kept)
    item = torch.arange(len(frames), device=frames.device)[:, None]
    return FrameCache(
        k=cache.k.index_put((item, slot), k[:, count - kept :].to(cache.k.dtype)),
        v=cache.v.index_put((item, slot), v[:, count - kept :].to(cache.v.dtype)),
        frames=frames,
    )


def read_ring(cache: FrameCache, ages: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Frames `ages` before the next one: keys and values (B, n, L, H, D), and which exist (B, n).

    None instead of the last when all are known to exist. What does not exist comes back as zeros: a
    weight of zero would not hide a NaN (0 * NaN is NaN).
    """
    wanted = cache.frames[:, None] - ages  # (B, n)
    exists = wanted >= 0
    batch, slots = cache.k.shape[:2]
    item = torch.arange(batch, device=wanted.device)[:, None]
    rows = (item * slots + wanted % slots).flatten()
    k, v = (
        x.flatten(0, 1).index_select(0, rows).view(*wanted.shape, *x.shape[2:])
        for x in (cache.k, cache.v)
    )
    if _known_full(exists):
        return k, v, None
    missing = ~exists[:, :, None, None, None]
    return k.masked_fill(missing, 0.0), v.masked_fill(missing, 0.0), exists


def whole_ring(cache: FrameCache) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `read_ring` gives for all ages of the ring, in order of slots: no copy when full.

    The order depends on the item alone, so its sums round alike whoever else is in the batch.
    """
    slots = cache.k.shape[1]
    exists = torch.arange(slots, device=cache.frames.device) < cache.frames[:, None]
    if _known_full(exists):
        return cache.k, cache.v, None
    missing = ~exists[:, :, None, None, None]
    return cache.k.masked_fill(missing, 0.0), cache.v.masked_fill(missing, 0.0), exists


def _known_full(exists: Tensor) -> bool:
    """Whether to look: free on a CPU, a wait for the device or a broken graph elsewhere."""
    if exists.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(exists.all())


def _check_frames(cache: FrameCache, k: Tensor, v: Tensor) -> None:
    batch, _, *frame = cache.k.shape
    for name, x in (("k", k), ("v", v)):
        if x.ndim != 5 or x.shape[0] != batch or list(x.shape[2:]) != frame:
            raise ValueError(
                f"append_frames: the cache holds frames of shape {tuple(frame)} for a batch of "
                f"{batch}, but {name} has shape {tuple(x.shape)}; expected "
                f"({batch}, frames, {', '.join(map(str, frame))})"
            )
    if k.shape[1] != v.shape[1]:
        raise ValueError(f"append_frames: k has {k.shape[1]} frames, v has {v.shape[1]}")
