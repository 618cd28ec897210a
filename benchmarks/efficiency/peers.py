"""Two other kinds of world model at the size of ours, written for this comparison alone.

Both see 64 x 64 pictures and take a chunk of actions per frame, as our worlds do, and keep their
state outside:

    UNet    diffusion in pixels on the last frames, several denoising steps a frame: the kind of
            DIAMOND (Alonso et al., 2024). It remembers nothing beyond those frames.
    RSSM    a recurrent state with categorical parts, decoded to pixels: the kind of DreamerV3
            (Hafner et al., 2023).

They have random weights here: what they cost is measured, not how well they dream.

B dreams, C channels, H W pixels, P past frames, D numbers in a chunk of actions, S groups of
categories, K categories of each.
"""

import dataclasses
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8  # of every group norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of the denoiser; the widths follow DIAMOND's 64-pixel network."""

    channels: tuple[int, ...] = (64, 64, 64, 64)
    """Of each resolution; every next one has half the pixels a side."""
    blocks: int = 2
    """Residual blocks at each resolution, on the way down and on the way up."""
    past: int = 4
    condition: int = 256
    denoise_steps: int = 3
    action_size: int = 8


class Modulated(nn.Module):
    """A residual block whose norms are scaled and shifted by the condition."""

    def __init__(self, before: int, after: int, condition: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, c, affine=False) for c in (before, after))
        self.rows = nn.ModuleList(nn.Linear(condition, 2 * c) for c in (before, after))
        self.convs = nn.ModuleList(nn.Conv2d(c, after, 3, padding=1) for c in (before, after))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Give (B, C, H, W), the condition (B, condition)."""
        y = x
        for norm, row, conv in zip(self.norms, self.rows, self.convs, strict=True):
            scale, shift = row(condition)[:, :, None, None].chunk(2, dim=1)
            y = conv(F.silu(norm(y) * (1 + scale) + shift))
        skipped: Tensor = self.skip(x)
        return skipped + y


class UNet(nn.Module):
    """The next frame by denoising, given the last frames and the actions."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = c = config
        widths = c.channels
        self.condition = nn.Sequential(
            nn.Linear(c.condition + c.action_size, c.condition),
            nn.SiLU(),
            nn.Linear(c.condition, c.condition),
        )
        self.enter = nn.Conv2d(3 * (c.past + 1), widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept = []
        width = widths[0]
        for each in widths:
            for _ in range(c.blocks):
                self.down.append(Modulated(width, each, c.condition))
                width = each
                kept.append(width)
        self.middle = Modulated(width, width, c.condition)
        for each in reversed(widths):
            for _ in range(c.blocks):
                self.up.append(Modulated(width + kept.pop(), each, c.condition))
                width = each
        self.norm = nn.GroupNorm(GROUPS, width)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, noisy: Tensor, past: Tensor, level: Tensor, actions: Tensor) -> Tensor:
        """Denoise (B, 3, H, W) given past (B, P, 3, H, W), level (B,) and actions (B, D)."""
        told = torch.cat([wave(level, self.config.condition), actions], dim=1)
        condition = self.condition(told)
        x = self.enter(torch.cat([noisy, past.flatten(1, 2)], dim=1))
        kept, levels = [], len(self.config.channels)
        for i in range(levels):
            x = F.avg_pool2d(x, 2) if i else x
            for block in self.down[i * self.config.blocks : (i + 1) * self.config.blocks]:
                x = block(x, condition)
                kept.append(x)
        x = self.middle(x, condition)
        for i in range(levels):
            x = F.interpolate(x, scale_factor=2.0) if i else x
            for block in self.up[i * self.config.blocks : (i + 1) * self.config.blocks]:
                x = block(torch.cat([x, kept.pop()], dim=1), condition)
        said: Tensor = self.leave(F.silu(self.norm(x)))
        return said

    def start(self, batch: int, size: int = 64) -> Tensor:
        """The last frames of dreams that begin in grey: (B, P, 3, H, W)."""
        return torch.zeros(batch, self.config.past, 3, size, size)

    @torch.no_grad()
    def step(self, past: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """One frame: Euler steps from noise; returns the last frames and the new one."""
        x = torch.randn_like(past[:, 0])
        levels = torch.linspace(1.0, 0.0, self.config.denoise_steps + 1)
        for level, lower in itertools.pairwise(levels):
            clean = self(x, past, level.expand(len(x)), actions)
            x = clean + lower / level * (x - clean)
        return torch.cat([past[:, 1:], x[:, None]], dim=1), x


def wave(level: Tensor, size: int) -> Tensor:
    """Sines and cosines of a noise level, (B, size)."""
    rates = torch.exp(-math.log(1e4) * torch.arange(size // 2) / (size // 2))
    angles = 1000.0 * level[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RSSMConfig:
    """Sizes of the recurrent model."""

    recurrent: int = 384
    groups: int = 24
    categories: int = 24
    hidden: int = 256
    depth: int = 16
    """Channels of the widest picture layer."""
    action_size: int = 8


@dataclasses.dataclass(frozen=True)
class RSSMState:
    """What a dream carries."""

    recurrent: Tensor
    """(B, recurrent)."""
    sampled: Tensor
    """(B, S * K), one-hot groups."""


class RSSM(nn.Module):
    """The next frame from a recurrent state; the encoder belongs to it, a dream does not use it."""

    def __init__(self, config: RSSMConfig) -> None:
        super().__init__()
        self.config = c = config
        sampled = c.groups * c.categories
        self.mix = nn.Sequential(
            nn.Linear(sampled + c.action_size, c.hidden), nn.LayerNorm(c.hidden), nn.SiLU()
        )
        self.cell = nn.GRUCell(c.hidden, c.recurrent)
        self.prior = head(c.recurrent, c.hidden, sampled)
        d = c.depth
        widths = (3, d, 2 * d, 4 * d, 8 * d)
        pairs = list(itertools.pairwise(widths))
        self.encoder = nn.Sequential(
            *(layer for a, b in pairs for layer in (nn.Conv2d(a, b, 4, 2, 1), nn.SiLU())),
            nn.Flatten(),
        )
        self.posterior = head(c.recurrent + widths[-1] * 16, c.hidden, sampled)
        self.expand = nn.Linear(c.recurrent + sampled, widths[-1] * 16)
        ups = [nn.ConvTranspose2d(b, a, 4, 2, 1) for a, b in reversed(pairs)]
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (widths[-1], 4, 4)), *(x for up in ups for x in (nn.SiLU(), up))
        )

    def start(self, batch: int) -> RSSMState:
        """Dreams that have seen nothing."""
        c = self.config
        return RSSMState(
            torch.zeros(batch, c.recurrent), torch.zeros(batch, c.groups * c.categories)
        )

    def observe(self, state: RSSMState, frames: Tensor) -> RSSMState:
        """Correct the sampled part by a picture (B, 3, H, W)."""
        seen = torch.cat([state.recurrent, self.encoder(frames)], dim=1)
        return dataclasses.replace(state, sampled=self._sample(self.posterior(seen)))

    @torch.no_grad()
    def step(self, state: RSSMState, actions: Tensor) -> tuple[RSSMState, Tensor]:
        """One frame, (B, 3, H, W)."""
        mixed = self.mix(torch.cat([state.sampled, actions], dim=1))
        recurrent = self.cell(mixed, state.recurrent)
        sampled = self._sample(self.prior(recurrent))
        frames: Tensor = self.decoder(self.expand(torch.cat([recurrent, sampled], dim=1)))
        return RSSMState(recurrent, sampled), frames

    def _sample(self, logits: Tensor) -> Tensor:
        c = self.config
        odds = logits.view(-1, c.groups, c.categories).softmax(-1)
        drawn = torch.multinomial(odds.flatten(0, 1), 1).view(-1, c.groups)
        return F.one_hot(drawn, c.categories).flatten(1).to(logits.dtype)


def head(before: int, hidden: int, after: int) -> nn.Sequential:
    """Two layers to the logits of a sample."""
    return nn.Sequential(
        nn.Linear(before, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, after)
    )
