"""The slow, obvious twin: one dense boolean mask over all tokens. Works in float64.

B batch, N tokens, T frames, L tokens a frame, H heads, D head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def band_attention(q: Tensor, k: Tensor, v: Tensor, *, reach: int) -> Tensor:
    """See `op.band_attention`."""
    place = torch.arange(q.shape[1], device=q.device)
    return _attend(q, k, v, (place[:, None] - place).abs() <= reach)


def phase_attention(q: Tensor, k: Tensor, v: Tensor, *, dilation: int, reach: int) -> Tensor:
    """See `op.phase_attention`."""
    T, L = q.shape[1:3]
    zeros = q.new_zeros(q.shape[0], dilation - T % dilation, *q.shape[2:])
    tokens = [torch.cat([x, zeros], 1).flatten(1, 2) for x in (q, k, v)]
    index = torch.arange(tokens[0].shape[1], device=q.device)
    frame, offset = index // L, index % L
    phase, place = frame % dilation, frame // dilation * L + offset
    near = (place[:, None] - place).abs() <= reach
    output = _attend(tokens[0], tokens[1], tokens[2], near & (phase[:, None] == phase))
    return output.reshape(tokens[0].shape[0], -1, *q.shape[2:])[:, :T]


def frame_attention(q: Tensor, k: Tensor, v: Tensor, *, sees: Sequence[Sequence[int]]) -> Tensor:
    """See `op.frame_attention`."""
    T, L = q.shape[1:3]
    mask = torch.zeros(T, T, dtype=torch.bool, device=q.device)
    for frame, seen in enumerate(sees):
        mask[frame, list(seen)] = True
    mask = mask.repeat_interleave(L, 0).repeat_interleave(L, 1)
    return _attend(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), mask).reshape(q.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)
