"""Blocks and streams: a stream embeds its tokens, holds a block per layer, and reads its output.

A block is split at its mixer, because two streams meet there: `mixer_input` gives what attention or
the delta rule reads, `after_mixer` takes what came back and does the rest. `mixture.py` runs the
streams side by side.

Shapes: B batch, T frames, L tokens per frame, D token width, S text tokens. Rows of modulation:
(scale, shift, gate).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kairos_env.world_model.attention import Attention
from kairos_env.world_model.conditioning import ImageTokens, NoiseLevel, Text, two_layers
from kairos_env.world_model.config import LayerKind, StreamConfig, TransformerConfig
from kairos_env.world_model.conv_stem import ConvHead, ConvStem, set_to_zero
from kairos_env.world_model.delta_net import GatedDeltaNet


class Block(nn.Module):
    """One layer of one stream: mixer, cross-attention to the text, feed-forward.

    The noise level modulates the mixer and the feed-forward.
    """

    def __init__(
        self, config: TransformerConfig, stream: StreamConfig, kind: LayerKind, frame_tokens: int
    ) -> None:
        super().__init__()
        self.kind = kind
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(6, stream.dim) / math.sqrt(stream.dim))
        shape = (stream.dim, config.heads, config.head_dim, config.eps)
        half = config.published.half_rotation
        self.attention = Attention(*shape, half_rotation=half) if kind != "GLA" else None
        self.delta = (
            GatedDeltaNet(stream.dim, config.delta, frame_tokens, config.eps)
            if kind == "GLA"
            else None
        )
        self.cross = Attention(*shape) if config.text_dim else None
        self.cross_norm = nn.LayerNorm(stream.dim, config.eps) if config.text_dim else None
        self.feed_forward = nn.Sequential(
            nn.Linear(stream.dim, stream.ffn_dim), nn.SiLU(), nn.Linear(stream.ffn_dim, stream.dim)
        )

    def let_through(self) -> None:
        """Change no token until it has learned to."""
        for reader in (self.attention, self.delta, self.cross):
            if reader is not None:
                set_to_zero(reader.output)
        set_to_zero(self.feed_forward[-1])

    def rows(self, noise_rows: Tensor) -> tuple[Tensor, ...]:
        """The six rows of this block: its own plus the noise level's, each (..., D)."""
        return (self.modulation + noise_rows).unbind(-2)

    def mixer_input(self, x: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
        """What the mixer reads."""
        return modulate(x, rows[0], rows[1], self.eps)

    def after_mixer(
        self,
        x: Tensor,
        mixed: Tensor,
        rows: tuple[Tensor, ...],
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Add what the mixer wrote, read the text, feed forward."""
        x = x + rows[2] * mixed
        if self.cross is not None and self.cross_norm is not None and text is not None:
            x = x + self.cross.read(self.cross_norm(x), text, text_mask)
        inner: Tensor = self.feed_forward(modulate(x, rows[3], rows[4], self.eps))
        return x + rows[5] * inner


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters, then scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class Stream(nn.Module):
    """What the two streams have in common: noise level, text, blocks."""

    def __init__(
        self,
        config: TransformerConfig,
        stream: StreamConfig,
        kinds: tuple[LayerKind, ...],
        frame_tokens: int,
    ) -> None:
        super().__init__()
        self.noise = NoiseLevel(config.freq_dim, stream.dim)
        self.text = Text(config.text_dim, stream.dim) if config.text_dim else None
        self.blocks = nn.ModuleList(Block(config, stream, kind, frame_tokens) for kind in kinds)


class PatchEmbed(nn.Module):
    """Squares of latents to tokens, one linear map."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Conv3d(channels, dim, (1, patch, patch), stride=(1, patch, patch))

    def forward(self, latents: Tensor) -> Tensor:
        """(B, T, C, h, w) to tokens (B, T, L, D), row by row."""
        tokens: Tensor = self.linear(latents.transpose(1, 2))  # (B, D, T, h/p, w/p)
        return tokens.flatten(3).permute(0, 2, 3, 1)


class LookbackEmbed(nn.Module):
    """`PatchEmbed`, with the patches of the previous frames added to those of the noisy one.

    What is added begins at zero, so imported weights begin as they were.
    """

    def __init__(self, channels: int, dim: int, patch: int, previous: int) -> None:
        super().__init__()
        self.linear = PatchEmbed(channels, dim, patch).linear
        self.previous = PatchEmbed(channels * previous, dim, patch)
        set_to_zero(self.previous)

    def forward(self, latents: Tensor, previous: Tensor) -> Tensor:
        """(B, T, C, h, w) after (B, T, P, C, h, w) to tokens (B, T, L, D)."""
        tokens: Tensor = self.linear(latents.transpose(1, 2))  # (B, D, T, h/p, w/p)
        seen: Tensor = self.previous(previous.flatten(2, 3))
        return tokens.flatten(3).permute(0, 2, 3, 1) + seen


class PatchHead(nn.Module):
    """Tokens to squares of latents: modulated norm, one linear map."""

    def __init__(self, channels: int, dim: int, patch: int, eps: float) -> None:
        super().__init__()
        self.patch, self.eps = patch, eps
        self.modulation = nn.Parameter(torch.randn(2, dim) / math.sqrt(dim))
        self.linear = nn.Linear(dim, channels * patch * patch)

    def forward(self, tokens: Tensor, t: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, T, L, D) and embedded noise level (..., D) to (B, T, C, h, w).

        The rows here are (shift, scale), as in the published head.
        """
        shift, scale = (self.modulation + t[..., None, :]).unbind(-2)
        y: Tensor = self.linear(modulate(tokens, scale, shift, self.eps))
        B, T = tokens.shape[:2]
        y = y.view(B, T, *grid, self.patch, self.patch, -1)  # channel fastest
        y = y.permute(0, 1, 6, 2, 4, 3, 5)  # (B, T, C, rows, p, columns, p)
        return y.reshape(B, T, -1, grid[0] * self.patch, grid[1] * self.patch)


class VideoStream(Stream):
    """The stream whose tokens are patches of latent frames."""

    def __init__(self, config: TransformerConfig, frame_tokens: int) -> None:
        super().__init__(config, config.video, config.layers, frame_tokens)
        channels, dim = config.video.channels, config.video.dim
        self.embed: nn.Module
        self.head: nn.Module
        if config.stem == "conv":
            self.embed, self.head = ConvStem(config), ConvHead(config)
        else:
            self.embed = PatchEmbed(channels, dim, config.patch)
            if config.stem == "lookback":
                self.embed = LookbackEmbed(channels, dim, config.patch, config.previous_frames)
            self.head = PatchHead(channels, dim, config.patch, config.eps)
        self.recollect = two_layers(dim, dim) if config.recollect else None
        if self.recollect is not None:
            # A world that learns it later begins as it was.
            set_to_zero(self.recollect[-1])
        self.image = ImageTokens(channels, dim) if config.published.image_tokens else None


class ActionStream(Stream):
    """The stream whose tokens are actions. All its layers attend: its memory is the video's."""

    def __init__(self, config: TransformerConfig, stream: StreamConfig) -> None:
        kinds: tuple[LayerKind, ...] = tuple(
            "FA" if config.semantics != "causal" else "SWA" if kind == "GLA" else kind
            for kind in config.layers
        )
        super().__init__(config, stream, kinds, 1)
        self.embed = nn.Linear(stream.channels, stream.dim)
        self.head = nn.Linear(stream.dim, stream.channels)
        self.state = (
            nn.Sequential(
                nn.Linear(config.state_dim, config.text_dim),
                nn.SiLU(),
                nn.Linear(config.text_dim, config.text_dim),
            )
            if config.state_dim and config.text_dim
            else None
        )
        # Stands for an action nobody knows: the one before a first frame, or all of them in
        # action-free video.
        self.unknown = (
            nn.Parameter(torch.zeros(stream.dim)) if config.semantics == "causal" else None
        )
