"""The small model's way between latents and tokens: convolutions that also read earlier frames.

A small transformer does not find motion from noise and attention alone: measured, it sits on a
plateau for hundreds of steps, and with the previous frames' latents beside the noisy ones its loss
falls fourfold in two hundred. The head predicts the clean frame as the previous frame plus a
residual, so what stands still stays for free; residuals below `stillness` count as none, so it also
stays for long.

Shapes: B batch, T frames, C latent channels, P previous frames, h w latent size, L tokens, D token
width, N = B * T.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kairos_env.world_model.config import NORM_GROUPS, TransformerConfig


class ResidualBlock(nn.Module):
    """Two convolutions around a scale and shift that the conditioning gives (FiLM)."""

    def __init__(self, channels: int, conditioning: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(conditioning, 2 * channels)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Read x (N, channels, h, w) under t (N, conditioning); the shape of x stays."""
        y: Tensor = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(t)[:, :, None, None].chunk(2, dim=1)
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        return x + y


class ConvStem(nn.Module):
    """Noisy latents and the previous frames to tokens, and to a feature map for the head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        channels = config.stem_channels
        inputs = config.video.channels * (1 + config.previous_frames)
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, config.video.dim) for _ in range(config.stem_blocks)
        )
        self.patch = nn.Conv2d(channels, config.video.dim, config.patch, stride=config.patch)

    def forward(self, latents: Tensor, previous: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Embed frames.

        Args:
            latents: (B, T, C, h, w), noisy.
            previous: (B, T, P, C, h, w), the clean frames before each.
            t: (B, T, D), what the noise level (and the actions) say.

        Returns:
            Tokens (B, T, L, D) and features (N, channels, h, w).
        """
        x = self.features(latents, previous, t)
        tokens = self.patch(x).flatten(2).transpose(1, 2)  # (N, L, D)
        return tokens.unflatten(0, latents.shape[:2]), x

    def features(self, latents: Tensor, previous: Tensor, t: Tensor) -> Tensor:
        """The feature map alone."""
        frames = torch.cat([latents[:, :, None], previous], dim=2).flatten(2, 3).flatten(0, 1)
        x: Tensor = self.conv(frames)
        for block in self.blocks:
            x = block(x, t.flatten(0, 1))
        return x


class ConvHead(nn.Module):
    """Tokens and the stem's features to the predicted clean frame."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        channels = config.stem_channels
        self.norm = nn.LayerNorm(config.video.dim, config.eps)
        self.unpatch = nn.ConvTranspose2d(
            config.video.dim, channels, config.patch, stride=config.patch
        )
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, config.video.dim) for _ in range(config.head_blocks)
        )
        self.conv = nn.Conv2d(channels, config.video.channels, 3, padding=1)
        # The first guess of an untrained model is that nothing moves.
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)
        self.stillness = config.stillness

    def forward(self, tokens: Tensor, t: Tensor, features: Tensor, previous: Tensor) -> Tensor:
        """Read the clean frames (B, T, C, h, w).

        Args:
            tokens: (B, T, L, D).
            t: (B, T, D), what the noise level (and the actions) say.
            features: (N, channels, h, w), the stem's.
            previous: (B, T, P, C, h, w), the frames before each, oldest first.
        """
        B, T, _, D = tokens.shape
        side = (
            features.shape[-2] // self.unpatch.stride[0],
            features.shape[-1] // self.unpatch.stride[1],
        )
        grid = self.norm(tokens).flatten(0, 1).transpose(1, 2).reshape(B * T, D, *side)
        x = features + self.unpatch(grid)
        for block in self.blocks:
            x = block(x, t.flatten(0, 1))
        residual: Tensor = self.conv(x).unflatten(0, (B, T))
        if self.stillness:
            residual = settled(residual, self.stillness)
        return previous[:, :, -1] + residual


def settled(change: Tensor, least: float) -> Tensor:
    """A change (..., C, h, w) without the places where it is smaller than `least`.

    Gradients pass as if nothing were left out, so that a change can grow out of the zone again.
    """
    size = change.detach().square().mean(-3, keepdim=True).sqrt()
    return change - change.detach() * (size < least)
