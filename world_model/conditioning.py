"""What the tokens are told beside themselves: noise level, text, a first picture."""

import torch
from torch import Tensor, nn

from kairos_env.world_model.tables import frequencies


def sinusoid(t: Tensor, width: int) -> Tensor:
    """[cos(t w), sin(t w)], w_j = 10000^(-j / (width/2)): (...,) to (..., width).

    Computed in float64 and cast back to t's type.
    """
    angles = t.double()[..., None] * frequencies(width // 2, t.device)
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
        """(..., D) to rows (..., 6, D): scale, shift, gate for the mixer, then the feed-forward."""
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


def grid_table(rows: int, columns: int, dim: int) -> Tensor:
    """[sin y w, cos y w, sin x w, cos x w] of every place of a grid, w_j = 10000^(-j / (D/4)).

    Returns (rows * columns, D) in float64.
    """
    w = frequencies(dim // 4, torch.device("cpu"))
    y = torch.arange(rows).double()[:, None] * w  # (rows, D/4)
    x = torch.arange(columns).double()[:, None] * w
    y, x = y[:, None].expand(rows, columns, -1), x.expand(rows, columns, -1)
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=-1).flatten(0, 1)


class ImageTokens(nn.Module):
    """A latent picture as tokens to be read before the text, for imported weights that want it."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv2d(channels, dim, 3, stride=2, padding=1),
            nn.Conv2d(dim, dim, 3, stride=2, padding=1),
        )
        self.projection = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.SiLU(),
            nn.Linear(dim, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) to (B, about h * w / 16, D), row by row."""
        features: Tensor = self.downsample(latent)
        rows, columns = features.shape[-2:]
        tokens: Tensor = self.projection(features.flatten(2).transpose(1, 2))
        return tokens + grid_table(rows, columns, tokens.shape[-1]).to(tokens)
