"""Clip attention in plain torch: no mask is ever larger than a block of queries times its band.

B batch, N tokens, T frames, L tokens a frame, H heads, D head size.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries that share a slice of keys. Larger blocks compute more pairs that the band then hides,
# smaller ones make more calls; with a reach of some thousand tokens, 1024 wastes a tenth.
BLOCK = 1024


def band_attention(q: Tensor, k: Tensor, v: Tensor, *, reach: int) -> Tensor:
    """See `op.band_attention`."""
    N = q.shape[1]
    if reach >= N - 1:
        return _attend(q, k, v)
    blocks = []
    for start in range(0, N, BLOCK):
        stop = min(start + BLOCK, N)
        keys = slice(max(0, start - reach), min(N, stop + reach))
        queries = torch.arange(start, stop, device=q.device)[:, None]
        distance = queries - torch.arange(keys.start, keys.stop, device=q.device)
        mask = distance.abs() <= reach  # (block, keys)
        blocks.append(_attend(q[:, start:stop], k[:, keys], v[:, keys], mask))
    return torch.cat(blocks, 1)


def phase_attention(q: Tensor, k: Tensor, v: Tensor, *, dilation: int, reach: int) -> Tensor:
    """See `op.phase_attention`."""
    T = q.shape[1]
    pad = dilation - T % dilation
    phases = [_to_phases(F.pad(x, (0, 0) * 3 + (0, pad)), dilation) for x in (q, k, v)]
    output = band_attention(phases[0], phases[1], phases[2], reach=reach)
    return _from_phases(output, q, dilation)


def frame_attention(q: Tensor, k: Tensor, v: Tensor, *, sees: Sequence[Sequence[int]]) -> Tensor:
    """See `op.frame_attention`."""
    frames = range(q.shape[1])
    outputs = []
    for seen, run in itertools.groupby(frames, key=lambda frame: tuple(sees[frame])):
        members = list(run)  # neighbours that see the same frames ask together
        queries = q[:, members[0] : members[-1] + 1]
        output = _attend(queries.flatten(1, 2), _pick(k, seen), _pick(v, seen))
        outputs.append(output.view(queries.shape))
    return torch.cat(outputs, 1)


def _pick(x: Tensor, frames: tuple[int, ...]) -> Tensor:
    """Tokens of some frames of x (B, T, L, H, D), side by side: (B, n * L, H, D)."""
    first, last = frames[0], frames[-1]
    if frames == tuple(range(first, last + 1)):
        return x[:, first : last + 1].flatten(1, 2)  # a view
    return x[:, list(frames)].flatten(1, 2)


def _to_phases(x: Tensor, dilation: int) -> Tensor:
    """(B, G * dilation, L, H, D) to (B * dilation, G * L, H, D)."""
    B, T = x.shape[:2]
    groups = x.view(B, T // dilation, dilation, *x.shape[2:])
    return groups.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def _from_phases(x: Tensor, like: Tensor, dilation: int) -> Tensor:
    """Back again, without the padding."""
    B, T, L = like.shape[:3]
    groups = x.view(B, dilation, -1, L, *x.shape[2:]).transpose(1, 2)
    return groups.flatten(1, 2)[:, :T]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, queries, H, D) over (B, keys, H, D)."""
    output = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return output.transpose(1, 2)
