"""Parts of the Wan video autoencoder: causal convolutions, blocks, changes of resolution.

Every part maps (x, state) to (y, state), where the state is what the part remembers of earlier
chunks, ``None`` before the first. Numbered children keep their published number; the numbers
between belong to activations.

Shapes: B batch, C channels, T frames, H W places; x is (B, C, T, H, W).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = Any  # Tensor | None | tuple of states: as nested as the modules


class CausalConv3d(nn.Conv3d):
    """Convolution that sees no later frame: the state is its last ``kernel - 1`` input frames."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=(0, kernel // 2, kernel // 2))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:  # type: ignore[override]
        """Convolve a chunk behind the frames that ``state`` kept."""
        return _causal(self, x, state)


class ChannelNorm(nn.Module):
    """x / |x| sqrt(C) gamma, the norm taken over channels at each place."""

    def __init__(self, channels: int, *, image: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * (2 if image else 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every place of (B, C, ...)."""
        gamma: Tensor = self.gamma * len(self.gamma) ** 0.5
        return F.normalize(x, dim=1) * gamma


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; plus the input."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": ChannelNorm(channels_in),
                "2": CausalConv3d(channels_in, channels_out, 3),
                "3": ChannelNorm(channels_out),
                "6": CausalConv3d(channels_out, channels_out, 3),
            }
        )
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv3d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Refine a chunk; the state is that of both convolutions."""
        first, second = state or (None, None)
        part = self.residual
        h, first = part["2"](F.silu(part["0"](x)), first)
        h, second = part["6"](F.silu(part["3"](h)), second)
        return h + self.shortcut(x), (first, second)


class FrameAttention(nn.Module):
    """One head of attention over the places of each frame; plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, image=True)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Attend inside each frame of a chunk; there is nothing to remember."""
        frames = _fold_time(x)  # (B T, C, H, W)
        qkv = self.to_qkv(self.norm(frames)).flatten(2).mT  # (B T, H W, 3 C)
        q, k, v = (part.contiguous() for part in qkv.chunk(3, dim=-1))
        o = F.scaled_dot_product_attention(q, k, v).mT.reshape(frames.shape)
        return x + _unfold_time(self.proj(o), len(x)), state


class Downsample(nn.Module):
    """Halve height and width, and with ``time`` the frame rate of every chunk but the first.

    The state is the last frame of the chunk before.
    """

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = _TimeConv(channels, channels, stride=2) if time else None

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map (B, C, T, H, W) to (B, C, T or T / 2, H / 2, W / 2)."""
        frames = F.pad(_fold_time(x), (0, 1, 0, 1))  # right and bottom only
        x = _unfold_time(self.resample["1"](frames), len(x))
        if self.time_conv is None:
            return x, None
        last = x[:, :, -1:].clone()
        if state is not None:
            x = self.time_conv(torch.cat([state, x], dim=2))
        return x, last


class Upsample(nn.Module):
    """Double height and width, and with ``time`` the frame rate of every chunk but the first.

    The state is the last two input frames, counted from the second chunk on.
    """

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.time_conv = _TimeConv(channels, 2 * channels, stride=1) if time else None

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map (B, C, T, H, W) to (B, C / 2, T or 2 T, 2 H, 2 W)."""
        if self.time_conv is not None:
            if state is None:
                state = x.new_zeros(*x.shape[:2], 2, *x.shape[3:])  # the first chunk is forgotten
            else:
                x, state = _causal(self.time_conv, x, state)
                earlier, later = x.chunk(2, dim=1)
                x = torch.stack([earlier, later], dim=3).flatten(2, 3)
        frames = F.interpolate(_fold_time(x), scale_factor=2.0, mode="nearest-exact")
        return _unfold_time(self.resample["1"](frames), len(x)), state


class _TimeConv(nn.Conv3d):
    """Convolution over three frames at one place."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__(channels_in, channels_out, (3, 1, 1), stride=(stride, 1, 1))


class Head(nn.ModuleDict):
    """Norm, SiLU, convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            {"0": ChannelNorm(channels_in), "2": CausalConv3d(channels_in, channels_out, 3)}
        )

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map a chunk to the wanted channels."""
        y, state = self["2"](F.silu(self["0"](x)), state)
        return y, state


def chain(modules: Iterable[nn.Module], x: Tensor, state: State) -> tuple[Tensor, State]:
    """Run parts one behind the other, each with its own state."""
    modules = list(modules)
    states = state or (None,) * len(modules)
    after = []
    for module, part in zip(modules, states, strict=True):
        x, part = module(x, part)
        after.append(part)
    return x, tuple(after)


def _causal(conv: nn.Conv3d, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Convolve behind the last input frames, which the state holds; zeros before a stream."""
    taps = conv.kernel_size[0]
    if state is None:
        state = x.new_zeros(*x.shape[:2], taps - 1, *x.shape[3:])
    x = torch.cat([state, x], dim=2)
    # a copy, because a view would keep the whole chunk alive
    return nn.Conv3d.forward(conv, x), x[:, :, 1 - taps :].clone()


def _fold_time(x: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfold_time(frames: Tensor, batch: int) -> Tensor:
    """(B T, C, H, W) to (B, C, T, H, W)."""
    return frames.reshape(batch, -1, *frames.shape[1:]).transpose(1, 2)
