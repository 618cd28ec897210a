"""The small model's way between latents and tokens: convolutions that also read earlier frames.

A small transformer does not find motion from noise and attention alone: measured, it sits on a
plateau for hundreds of steps, and with the previous frames' latents beside the noisy ones its loss
falls fourfold in two hundred. The head predicts the clean frame as the previous frame plus a
residual, so what stands still stays for free; residuals below `stillness` count as none, so it also
stays for long. With `restore` it can also take a place from the dream's first frame.

Shapes: B batch, T frames, C latent channels, P previous frames, h w latent size, L tokens, D token
width, N = B * T.
"""

from collections.abc import Sequence

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
        set_to_zero(self.conv2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Read x (N, channels, h, w) under t (N, conditioning); the shape of x stays."""
        y: Tensor = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(t).view(len(t), 2, x.shape[1], 1, 1).unbind(1)
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
        tokens = patches_to_tokens(x, self.patch)  # (N, L, D)
        return tokens.unflatten(0, latents.shape[:2]), x

    def features(self, latents: Tensor, previous: Tensor, t: Tensor) -> Tensor:
        """The feature map alone."""
        frames = torch.cat([latents[:, :, None], previous], dim=2).flatten(2, 3).flatten(0, 1)
        x: Tensor = self.conv(frames)
        t = t.flatten(0, 1)
        for block in self.blocks:
            x = block(x, t)
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
        set_to_zero(self.conv)
        self.restore = nn.Conv2d(channels, 1, 3, padding=1) if config.restore else None
        if self.restore is not None:
            # A world that learns it later begins as it was.
            set_to_zero(self.restore)
        self.reserve = config.reserve
        self.stillness = config.stillness

    def lay_out(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Tokens (B, T, L, D) where they belong in a map of this size: (N, channels, h, w)."""
        return tokens_to_patches(self.norm(tokens).flatten(0, 1), self.unpatch, size)

    def forward(self, laid_out: Tensor, t: Tensor, features: Tensor, previous: Tensor) -> Tensor:
        """Read the clean frames (B, T, C, h, w).

        Args:
            laid_out: (N, channels, h, w), the tokens' map.
            t: (B, T, D), what the noise level (and the actions) say.
            features: (N, channels, h, w), the stem's.
            previous: (B, T, P, C, h, w), the frames before each, oldest first.
        """
        x = features + laid_out
        frames, t = t.shape[:2], t.flatten(0, 1)
        for block in self.blocks:
            x = block(x, t)
        change: Tensor = self.conv(x).unflatten(0, frames)
        if self.restore is not None:
            share = within_one(self.restore(x).unflatten(0, frames))
            if self.reserve:
                share = settled(share, self.reserve)
            back = previous[:, :, 0] - previous[:, :, -1]
            change = change + share * (back - change)
        if self.stillness:
            change = settled(change, self.stillness)
        return previous[:, :, -1] + change


def set_to_zero(module: nn.Module) -> None:
    """Let a layer say nothing until it has learned to."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def patches_to_tokens(x: Tensor, patch: nn.Conv2d) -> Tensor:
    """`patch(x).flatten(2).transpose(1, 2)` as one matrix product: (N, C, h, w) to (N, L, D).

    On a CPU, one frame's convolution of this form reorders its weights on every call and takes
    eight times as long. Channels go last, as `World` stores the weights: no copy of them is made.
    """
    side, (rows, columns) = patch.kernel_size[0], grid_of(x.shape[-2:], patch)
    pieces = x.permute(0, 2, 3, 1).unflatten(1, (rows, side)).unflatten(3, (columns, side))
    pieces = pieces.transpose(2, 3).reshape(len(x), rows * columns, side * side * x.shape[1])
    weight = patch.weight.permute(0, 2, 3, 1).reshape(patch.out_channels, -1)
    return F.linear(pieces, weight, patch.bias)


def tokens_to_patches(tokens: Tensor, unpatch: nn.ConvTranspose2d, size: Sequence[int]) -> Tensor:
    """`unpatch` of tokens (N, L, D) laid out as a grid, as one matrix product: (N, C, *size)."""
    side, channels, grid = unpatch.kernel_size[0], unpatch.out_channels, grid_of(size, unpatch)
    weight = unpatch.weight.permute(0, 2, 3, 1).reshape(unpatch.in_channels, -1)
    pieces = (tokens @ weight).view(len(tokens), *grid, side, side, channels)
    x = pieces.transpose(2, 3).reshape(len(tokens), *size, channels)
    if unpatch.bias is not None:
        x = x + unpatch.bias
    return x.permute(0, 3, 1, 2)


def grid_of(size: Sequence[int], patch: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int]:
    """Rows and columns of tokens in a map of this size."""
    return size[0] // patch.kernel_size[0], size[1] // patch.kernel_size[1]


def settled(change: Tensor, least: float) -> Tensor:
    """A change (..., C, h, w) without the places where it is smaller than `least`.

    Gradients pass as if nothing were left out, so that a change can grow out of the zone again.
    """
    size = change.detach().square().mean(-3, keepdim=True).sqrt()
    return change - change.detach() * (size < least)


def within_one(share: Tensor) -> Tensor:
    """Numbers as shares from 0 to 1. Gradients pass as in `settled`, also out of an end."""
    return share + (share.clamp(0.0, 1.0) - share).detach()


def homed(frames: Tensor, anchor: Tensor, within: float) -> Tensor:
    """Frames (..., C, h, w) that are the anchor's where they are nearer to it than `within`.

    Gradients pass as in `settled`.
    """
    size = (frames.detach() - anchor).square().mean(-3, keepdim=True).sqrt()
    return torch.where(size < within, anchor + (frames - frames.detach()), frames)
