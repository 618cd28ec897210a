"""Window attention in plain torch, linear in frames: CPU and CUDA, gradients by autograd.

Frames that look at the same relative offsets form a group, and a group is one call of SDPA over a
batch of frames. Every group attends exactly what it may, so nothing is masked, except frames read
from a cache, whose number differs from item to item.

B batch, T frames, N frames of a group, L tokens a frame (q, k, history may differ), H heads, D head
size.
"""

import itertools
from dataclasses import dataclass
from functools import cache as memoize

import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.kernels.window_attention.cache import FrameCache, read_ring, whole_ring

Frames = Tensor | tuple[Tensor, ...]
"""A stream (B, T, L, H, D), whole or split into single frames."""

BIG_FRAME = 64 * 8 * 64
"""Numbers in the keys of a frame from which, on a CPU, single frames beat groups (measured)."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Query frames `start, start + step, ...` that share one pattern of offsets."""

    start: int
    step: int
    count: int
    cached: tuple[int, ...]
    """Offsets of frames that came before this call."""
    past: tuple[int, ...]
    """Offsets of frames in earlier chunks of this call."""
    present: tuple[int, ...]
    """Offsets of frames in the same chunk."""


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    dilation: int,
    chunk_frames: int,
    history: tuple[Tensor, Tensor] | None,
    cache: FrameCache | None,
) -> Tensor:
    """See `op.window_attention`."""
    apart = _better_apart(q)
    # The compiler traces the plan itself, and warns when it meets a memory of old calls.
    make = plan.__wrapped__ if torch.compiler.is_compiling() else plan
    groups = make(q.shape[1], window, dilation, chunk_frames, cache is not None, apart)
    if len(groups) == 1:
        return _attend(groups[0], q, (k, v), history or (k, v), cache)
    queries, present = _frame_list(q, apart), (_frame_list(k, apart), _frame_list(v, apart))
    past = present
    if history is not None:
        past = (_frame_list(history[0], apart), _frame_list(history[1], apart))
    outputs = [_attend(group, queries, present, past, cache) for group in groups]
    frames: list[Tensor] = [q] * q.shape[1]
    for group, output in zip(groups, outputs, strict=True):
        for n, frame in enumerate(output.unbind(1)):
            frames[group.start + n * group.step] = frame
    return torch.stack(frames, 1)


@memoize
def plan(
    frames: int, window: int, dilation: int, chunk_frames: int, cached: bool, apart: bool
) -> tuple[Group, ...]:
    """Sort the query frames of a call into groups of equal offsets; `apart` leaves them single."""
    members: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for frame in range(frames):
        pattern = _offsets(frame, frames, window, dilation, chunk_frames, cached)
        members.setdefault(pattern, []).append(frame)
    return tuple(
        Group(
            start=run[0],
            step=run[1] - run[0] if len(run) > 1 else 1,
            count=len(run),
            cached=before,
            past=past,
            present=present,
        )
        for (before, past, present), indices in members.items()
        for run in ([[i] for i in indices] if apart else _progressions(indices, chunk_frames))
    )


def _offsets(
    frame: int, frames: int, window: int, dilation: int, chunk_frames: int, cached: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    start = frame // chunk_frames * chunk_frames
    end = min(start + chunk_frames, frames)
    offsets = range(-(window - 1) * dilation, window * dilation, dilation)
    return (
        tuple(o for o in offsets if frame + o < 0 and cached),
        tuple(o for o in offsets if 0 <= frame + o < start),
        tuple(o for o in offsets if start <= frame + o < end),
    )


def _progressions(indices: list[int], chunk_frames: int) -> list[list[int]]:
    """Split into runs of equal steps, so that a run can be sliced."""
    steps = {b - a for a, b in itertools.pairwise(indices)}
    if len(steps) <= 1:
        return [indices]
    # Frames at one position of their chunks repeat with the chunk's length.
    places: dict[int, list[int]] = {}
    for index in indices:
        places.setdefault(index % chunk_frames, []).append(index)
    return list(places.values())


def _better_apart(q: Tensor) -> bool:
    """Whether frames are better done one by one: on a CPU, when the keys of one fill the cache."""
    frame = q.shape[0] * q.shape[2] * q.shape[3] * q.shape[4]
    return q.device.type == "cpu" and frame >= BIG_FRAME


def _frame_list(x: Tensor, apart: bool) -> Frames:
    """Single frames are split at once: slicing each would make the backward pass quadratic."""
    return torch.split(x, 1, 1) if apart else x


def _attend(
    group: Group,
    q: Frames,
    present: tuple[Frames, Frames],
    past: tuple[Frames, Frames],
    cache: FrameCache | None,
) -> Tensor:
    keys = _pieces(group, past[0], present[0])
    values = _pieces(group, past[1], present[1])
    mask = None
    if cache is not None and group.cached:
        old_k, old_v, exists = _cached(group, cache)
        keys, values = [old_k, *keys], [old_v, *values]
        if exists is not None:
            mask = _mask(exists, old_k.shape[2], sum(piece.shape[2] for piece in keys))
    queries = _frames(group, q, 0)
    output = _softmax_attention(_fold([queries]), _fold(keys), _fold(values), mask)
    # (B * N, H, L, D)
    return output.transpose(1, 2).reshape(queries.shape)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """SDPA, or plain products where its fused kernel is the slower one.

    On a CPU the fused bfloat16 backward takes five times as long as products for a few hundred keys
    (43 against 9 ms at 192 x 4 heads, 16 queries, 60 keys); in float32 they are level.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[-2] > 512:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    output: Tensor = scores.softmax(-1) @ v
    return output


def _frames(group: Group, x: Frames, offset: int) -> Tensor:
    first = group.start + offset
    if not isinstance(x, Tensor):
        return x[first]
    return x[:, first : first + (group.count - 1) * group.step + 1 : group.step]


def _pieces(group: Group, past: Frames, present: Frames) -> list[Tensor]:
    return [_frames(group, past, o) for o in group.past] + [
        _frames(group, present, o) for o in group.present
    ]


def _cached(group: Group, cache: FrameCache) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values (B, N, n * L, H, D) of n cached frames a query frame; existence (B, N, n)."""
    if group.count == 1 and len(group.cached) == cache.k.shape[1]:
        k, v, exists = whole_ring(cache)  # softmax does not care for order: nothing to look up
        return (
            k.flatten(1, 2)[:, None],
            v.flatten(1, 2)[:, None],
            None if exists is None else exists[:, None],
        )
    ages = [-(group.start + i * group.step + o) for i in range(group.count) for o in group.cached]
    k, v, exists = read_ring(cache, torch.tensor(ages, device=cache.k.device))
    batch, _, tokens, heads, size = k.shape
    frames = (batch, group.count, len(group.cached) * tokens, heads, size)
    if exists is not None:
        exists = exists.view(batch, group.count, -1)
    return k.reshape(frames), v.reshape(frames), exists


def _mask(exists: Tensor, cached_tokens: int, tokens: int) -> Tensor:
    """(B * N, 1, 1, S): cached tokens first, of which some items have none yet."""
    each = cached_tokens // exists.shape[2]
    old = exists.flatten(0, 1).repeat_interleave(each, 1)
    return F.pad(old, (0, tokens - cached_tokens), value=True)[:, None, None]


def _fold(pieces: list[Tensor]) -> Tensor:
    """Frames (B, N, L, H, D) side by side as SDPA wants them: (B * N, H, sum of L, D)."""
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
    return joined.flatten(0, 1).transpose(1, 2)
