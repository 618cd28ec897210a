"""The slow, obvious twin: one dense boolean mask over all tokens. Works in float64.

B batch, T frames, L tokens a frame (q, k and history may differ), H heads, D head size.
"""

import torch
from torch import Tensor

from kairos_env.kernels.window_attention.cache import FrameCache


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
    """See `op.window_attention`; one item of the batch at a time."""
    past = (k, v) if history is None else history
    items = []
    for b in range(q.shape[0]):
        pk, pv, ages = _past_frames(past[0][b], past[1][b], cache, b)
        frames = q.shape[1]
        index = torch.arange(frames, device=q.device)
        start = index // chunk_frames * chunk_frames
        # ages: the index of each past frame, negative for those that came before this call
        reach = _in_window(index[:, None] - ages, window, dilation) & (ages < start[:, None])
        same = _in_window(index[:, None] - index, window, dilation) & (start[:, None] == start)
        mask = torch.cat(
            [_per_token(reach, q.shape[2], pk.shape[1]), _per_token(same, q.shape[2], k.shape[2])],
            dim=1,
        )
        keys = torch.cat([pk.flatten(0, 1), k[b].flatten(0, 1)])  # (S, H, D)
        values = torch.cat([pv.flatten(0, 1), v[b].flatten(0, 1)])
        items.append(_attend(q[b].flatten(0, 1), keys, values, mask).view(q.shape[1:]))
    return torch.stack(items)


def _past_frames(
    k: Tensor, v: Tensor, cache: FrameCache | None, item: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All frames that a later chunk may look back at, oldest first, and their indices."""
    index = torch.arange(k.shape[0], device=k.device)
    if cache is None or cache.k.shape[1] == 0:
        return k, v, index
    seen = int(cache.frames[item])
    kept = list(range(max(0, seen - cache.k.shape[1]), seen))
    slots = [n % cache.k.shape[1] for n in kept]
    older = torch.tensor([n - seen for n in kept], device=k.device, dtype=index.dtype)
    if len(k) == 0 or k.shape[1:] != cache.k.shape[2:]:  # a single chunk never looks at (k, v)
        return cache.k[item, slots], cache.v[item, slots], older
    return (
        torch.cat([cache.k[item, slots], k]),
        torch.cat([cache.v[item, slots], v]),
        torch.cat([older, index]),
    )


def _in_window(distance: Tensor, window: int, dilation: int) -> Tensor:
    return (distance % dilation == 0) & (distance.abs() < window * dilation)


def _per_token(mask: Tensor, queries: int, keys: int) -> Tensor:
    return mask.repeat_interleave(queries, 0).repeat_interleave(keys, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)
