"""Attention over frames of tokens: one module; window and dilation are data of the layer using it.

The module owns projections, norms and rotation. *Which* keys a query may see is the caller's
business (streaming, parallel and two-stream passes differ only there), and the sum over keys is a
kernel's.

Shapes: B batch, T frames, L tokens per frame, D token width, H heads, d head width, S text tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kairos_env.world_model.tables import frequencies, table


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's d/2 rotation pairs belong to frame, row and column."""
    half = head_dim // 2
    return half - 2 * (half // 3), half // 3, half // 3


def axis_angles(positions: Tensor, pairs: int) -> Tensor:
    """Angles position * 10000^(-2i/n) of one axis with n = 2 * pairs, in float64: (..., pairs)."""
    return positions.double()[..., None] * frequencies(pairs, positions.device)


def grid_rotation(frames: Tensor, rows: Tensor, columns: Tensor, head_dim: int) -> Tensor:
    """Rotation e^{i angle} of every token, from its frame and its place in the frame.

    Args:
        frames: (B, T) frame numbers. Taken in float64, so frame 1,000,000 rotates as exactly as
            frame 1.
        rows: (L,) row of each token.
        columns: (L,) column of each token.
        head_dim: d.

    Returns:
        (B, T, L, 1, d/2) complex64, ready to multiply with (B, T, L, H, d/2).
    """
    return rotation_at(frames, place_angles(rows, columns, head_dim), head_dim)


def place_angles(rows: Tensor, columns: Tensor, head_dim: int) -> Tensor:
    """What the places (L,) of a frame's tokens turn them by: (L, row and column pairs)."""
    _, per_row, per_column = axis_pairs(head_dim)
    return torch.cat([axis_angles(rows, per_row), axis_angles(columns, per_column)], dim=-1)


@table
def grid_angles(rows: int, columns: int, head_dim: int, device: torch.device) -> Tensor:
    """`place_angles` of a grid of tokens, row by row."""
    place = torch.arange(rows * columns, device=device)
    return place_angles(place // columns, place % columns, head_dim)


def rotation_at(frames: Tensor, places: Tensor, head_dim: int) -> Tensor:
    """`grid_rotation` of frames (B, T) whose tokens stand at places (L, ...) known already."""
    B, T = frames.shape
    L = len(places)
    turns = axis_angles(frames, axis_pairs(head_dim)[0])[:, :, None]
    angles = torch.cat([turns.expand(B, T, L, -1), places.expand(B, T, L, -1)], dim=-1)
    return unit_circle(angles)[:, :, :, None]


def line_rotation(positions: Tensor, head_dim: int) -> Tensor:
    """Rotation of tokens on a line (the published action stream): (N,) -> (N, 1, d/2)."""
    return unit_circle(axis_angles(positions, head_dim // 2))[:, None]


def unit_circle(angles: Tensor) -> Tensor:
    """The numbers cos + i sin of float64 angles, rounded to complex64."""
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate adjacent pairs (2c, 2c+1) of every head: x (..., H, d), rotation (..., 1, d/2)."""
    real = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pairs = torch.view_as_complex(real.unflatten(-1, (-1, 2)).contiguous())
    if real.dtype == torch.float64:
        rotation = rotation.to(torch.complex128)
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """RMS norm whose weight follows the input's type, so that autocast keeps the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Give x / sqrt(mean(x^2) + eps) * weight over the last axis."""
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """The projections of an attention layer, with queries and keys normalised over all heads.

    Among frames, `project` gives rotated queries, keys and values, a kernel sums, and `combine`
    brings the result back. To a text, `read` does it all: no rotation, no order.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, eps: float, *, half_rotation: bool = False
    ) -> None:
        super().__init__()
        width = heads * head_dim
        self.heads = heads
        self.half_rotation = half_rotation
        self.query = nn.Linear(dim, width)
        self.key = nn.Linear(dim, width)
        self.value = nn.Linear(dim, width)
        self.output = nn.Linear(width, dim)
        self.query_norm = RMSNorm(width, eps)
        self.key_norm = RMSNorm(width, eps)

    def project(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: (..., D) -> three of (..., H, d)."""
        q, (k, v) = self._queries(x), self._keys_and_values(x)
        if self.half_rotation:  # imported weights that were run so
            q, k = q.half().to(q.dtype), k.half().to(k.dtype)
        return rotate(q, rotation), rotate(k, rotation), v

    def combine(self, o: Tensor) -> Tensor:
        """What the heads read, back to token width: (..., H, d) -> (..., D)."""
        y: Tensor = self.output(o.flatten(-2))
        return y

    def read(self, x: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read a text: x (B, ..., D), text (B, S, D), mask (B, S) True where it may be read."""
        q = self._queries(x.flatten(1, -2)).transpose(1, 2)  # (B, H, N, d)
        k, v = (t.transpose(1, 2) for t in self._keys_and_values(text))  # (B, H, S, d)
        allowed = None if mask is None else mask[:, None, None, :]
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.combine(o.transpose(1, 2)).view_as(x)

    def _queries(self, x: Tensor) -> Tensor:
        q: Tensor = self.query_norm(self.query(x)).unflatten(-1, (self.heads, -1))
        return q

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k: Tensor = self.key_norm(self.key(x)).unflatten(-1, (self.heads, -1))
        v: Tensor = self.value(x).unflatten(-1, (self.heads, -1))
        return k, v
