"""The slow, obvious twin: one token after the other. Works in float64.

B batch, T tokens, Hk key heads, Hv value heads, K key size, V value size, C channels, W conv width.
"""

import torch
from torch import Tensor


def gated_delta_boundaries(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    chunk_tokens: int,
    form: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.gated_delta_boundaries`."""
    kind = state.dtype
    groups = v.shape[2] // k.shape[2]
    q, k = (x.to(kind).repeat_interleave(groups, 2) for x in (q, k))  # (B, T, Hv, K)
    decay, beta = g.to(kind).exp(), beta.to(kind)
    outputs, boundaries = [], []
    for t in range(v.shape[1]):
        if t % chunk_tokens == 0:
            boundaries.append(state)
        kept = decay[:, t, :, None, None] * state  # (B, Hv, K, V)
        erased = torch.einsum("bhkv,bhk->bhv", kept if form == "fla" else state, k[:, t])
        update = beta[:, t, :, None] * (v[:, t].to(kind) - erased)
        state = kept + k[:, t, :, :, None] * update[:, :, None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * scale)
    return torch.stack(outputs, 1).to(v.dtype), torch.stack(boundaries, 1), state


def short_conv(x: Tensor, w: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.short_conv`."""
    width = w.shape[1]
    seen = torch.cat([state, x], 1)
    rows = [
        torch.einsum("bwc,cw->bc", seen[:, t : t + width], w.to(x.dtype)) for t in range(x.shape[1])
    ]
    return torch.stack(rows, 1), seen[:, x.shape[1] :]
