"""What the tokens are told beside themselves: noise level, and text."""

import torch
from torch import Tensor, nn


def sinusoid(t: Tensor, width: int) -> Tensor:
    """[cos(t w), sin(t w)] with w_j = 10000^(-j / (width/2)), in float64, cast back to t's type: (..., width)."""
    half = width // 2
    j = torch.arange(half, dtype=torch.float64, device=t.device)
    angles = t.double()[..., None] * 10000.0 ** (-j / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(t.dtype)


def two_layers(inputs: int, width: int) -> nn.Sequential:
    """Linear, SiLU, Linear: the form of every embedding in this model."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class NoiseLevel(nn.Module):
    """Noise level s in [0, 1] to an embedding, and the embedding to six modulation rows."""

    def __init__(self, freq_dim: int, dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.embedding = two_layers(freq_dim, dim)
        self.projection = nn.Linear(dim, 6 * dim)

    def embed(self, timestep: Tensor) -> Tensor:
        """Timestep (1000 * noise level) of any shape (...,) to (..., D)."""
        weight = self.projection.weight
        t: Tensor = self.embedding(sinusoid(timestep, self.freq_dim).to(weight.dtype))
        return t

    def rows(self, t: Tensor) -> Tensor:
        """(..., D) to the six rows (..., 6, D): scale, shift, gate for the mixer, then for the feed-forward."""
        rows: Tensor = self.projection(nn.functional.silu(t)).unflatten(-1, (6, -1))
        return rows


class Text(nn.Module):
    """Text features to the width of a stream."""

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.embedding = two_layers(text_dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, text_dim) to (B, S, D)."""
        y: Tensor = self.embedding(features)
        return y
