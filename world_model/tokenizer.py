"""Pixels to latents and back: a small convolutional autoencoder, trained first and then kept fixed.

Small objects decide whether a dream is right, and they are a few per cent of the picture; so the
loss weighs what differs from the background, and what moves. Latents are normalised with statistics
that are kept with the weights: the dynamics sees numbers of mean 0 and deviation 1 per channel.

Shapes: B batch, T frames, H W pixels, C h w a latent frame, r frames coded together, N = B * T / r.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kairos_env.world_model.config import NORM_GROUPS, positive
from kairos_env.world_model.conv_stem import set_to_zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Sizes of the autoencoder."""

    frame_size: tuple[int, int] = (64, 64)
    """Height and width of a frame in pixels."""
    channels: tuple[int, ...] = (32, 64, 96)
    """Channels after each halving; their number is the number of halvings (three: 64 -> 8)."""
    latent_channels: int = 4
    temporal: int = 1
    """Frames coded together as one latent frame."""
    foreground_weight: float = 5.0
    """How much more a pixel counts that differs from the background."""
    foreground_threshold: float = 0.06
    """The difference (of 0..1 colours) from which a pixel is foreground, or has changed."""
    motion_weight: float = 10.0
    """How much is added for a pixel that changes from frame to frame. What moves crosses what
    stands in a few per cent of frames only; without this it was lost there."""
    kl_weight: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide."""
        positive(self, "latent_channels")
        positive(self, "temporal")
        if not self.channels or min(self.channels) < 1 or self.channels[-1] % NORM_GROUPS:
            raise ValueError(
                "TokenizerConfig.channels needs a positive number for each halving, the last one "
                f"divisible by {NORM_GROUPS}, the groups of its norms, got {self.channels}"
            )
        side = 2 ** len(self.channels)
        if min(self.frame_size) < 1 or any(size % side for size in self.frame_size):
            raise ValueError(
                f"TokenizerConfig: {len(self.channels)} halvings need a frame size divisible by "
                f"{side}, got {self.frame_size}; use another frame size or fewer channels"
            )

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a latent frame."""
        side = 2 ** len(self.channels)
        return self.frame_size[0] // side, self.frame_size[1] // side

    @property
    def sketch_channels(self) -> int:
        """Channels of `Tokenizer.sketch`."""
        return (3 * self.temporal, *self.channels)[-2]


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        set_to_zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w), unchanged in shape."""
        y: Tensor = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return x + y


class Tokenizer(nn.Module):
    """Encode uint8 frames to normalised latents and decode them back."""

    latent_mean: Tensor
    latent_scale: Tensor
    background: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        down: list[nn.Module] = []
        inputs = 3 * config.temporal
        for width in widths:
            down += [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.SiLU()]
            inputs = width
        down += [Residual(inputs), nn.Conv2d(inputs, 2 * config.latent_channels, 3, padding=1)]
        self.encoder = nn.Sequential(*down)
        up: list[nn.Module] = [nn.Conv2d(config.latent_channels, inputs, 3, padding=1)]
        up += [Residual(inputs), Residual(inputs)]
        self._sketched = len(up) + 2  # layers of the decoder up to its first doubling
        for width in (*reversed(widths[:-1]), 3 * config.temporal):
            up += [nn.SiLU(), nn.ConvTranspose2d(inputs, width, 4, stride=2, padding=1)]
            inputs = width
        self.decoder = nn.Sequential(*up)
        C = config.latent_channels
        self.register_buffer("latent_mean", torch.zeros(C))
        self.register_buffer("latent_scale", torch.ones(C))
        # The median frame of the training data, in 0..1; what differs from it is foreground.
        self.register_buffer("background", torch.zeros(3, *config.frame_size))

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) to normalised latents (B, T / r, C, h, w)."""
        B, T = frames.shape[:2]
        mean, _ = self._posterior(self._pack(frames))
        latents = (mean - self.latent_mean[:, None, None]) / self.latent_scale[:, None, None]
        unpacked: Tensor = latents.unflatten(0, (B, T // self.config.temporal))
        return unpacked

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, T / r, C, h, w) to uint8 frames (B, T, H, W, 3)."""
        return self._frames(self.decode_pixels(latents.flatten(0, 1)), latents.shape[:2])

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Normalised latents (N, C, h, w) to colours (N, 3r, H, W), in 0..1 where right."""
        pixels: Tensor = self.decoder(self._raw(latents)) + 0.5
        return pixels

    def sketch(self, latents: Tensor) -> Tensor:
        """What the decoder makes of latents (N, C, h, w) on its way, at twice their size.

        Returns:
            (N, `sketch_channels`, 2h, 2w).
        """
        sketch: Tensor = self.decoder[: self._sketched](self._raw(latents))
        return sketch

    def finish(self, sketch: Tensor) -> Tensor:
        """The frames (B, T, H, W, 3) of sketches (B, T / r, C', 2h, 2w), as `decode` makes them."""
        pixels = self.decoder[self._sketched :](sketch.flatten(0, 1)) + 0.5
        return self._frames(pixels, sketch.shape[:2])

    @torch.no_grad()
    def background_latent(self) -> Tensor:
        """The background as a latent frame (C, h, w)."""
        mean, _ = self._posterior(self.background[None].repeat(1, self.config.temporal, 1, 1))
        latent: Tensor = (mean[0] - self.latent_mean[:, None, None]) / self.latent_scale[
            :, None, None
        ]
        return latent

    def loss(self, frames: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error plus a light pull of the latents toward a unit normal.

        Args:
            frames: (B, T, H, W, 3) uint8.
            eps: (N, C, h, w) standard normal noise for the sampled latents.
        """
        pixels = self._pack(frames)
        mean, log_variance = self._posterior(pixels)
        z = mean + eps.to(mean) * (0.5 * log_variance).exp()
        difference = self.decoder(z) + 0.5 - pixels
        weight = 1.0 + (self.config.foreground_weight - 1.0) * self.foreground(pixels)
        weight = weight + self.config.motion_weight * self.moving(frames)
        reconstruction = (weight * difference.square()).mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        total = reconstruction + self.config.kl_weight * kl
        mse = difference.detach().square().mean()
        return total, {"tokenizer": total.detach(), "psnr": -10.0 * mse.log10(), "kl": kl.detach()}

    def foreground(self, pixels: Tensor) -> Tensor:
        """1.0 where a colour (N, 3r, H, W) differs from the background, else 0.0: (N, 1, H, W)."""
        background = self.background.repeat(self.config.temporal, 1, 1)
        distance = (pixels - background).abs().amax(1, keepdim=True)
        return (distance > self.config.foreground_threshold).to(pixels)

    def moving(self, frames: Tensor) -> Tensor:
        """Where a frame of a clip differs from the one before or after it.

        Args:
            frames: (B, T, H, W, 3) uint8.

        Returns:
            1.0 there, else 0.0: (N, 1, H, W).
        """
        steps = (frames[:, 1:].int() - frames[:, :-1].int()).abs().amax(-1)  # (B, T - 1, H, W)
        changed = F.pad(
            (steps > 255.0 * self.config.foreground_threshold).float(), (0,) * 4 + (1, 1)
        )
        either = torch.maximum(changed[:, 1:], changed[:, :-1])  # (B, T, H, W)
        packs: Tensor = either.flatten(0, 1).unflatten(0, (-1, self.config.temporal))
        return packs.amax(1, keepdim=True)

    @torch.no_grad()
    def fit_background(self, frames: Tensor) -> None:
        """Take the median of a sample of frames, uint8 (N, H, W, 3), as background."""
        self.background.copy_(frames.permute(0, 3, 1, 2).float().median(0).values / 255.0)

    @torch.no_grad()
    def fit_statistics(self, frames: Tensor) -> None:
        """Measure the latents' mean and deviation on a sample of frames, uint8 (B, T, H, W, 3)."""
        mean, _ = self._posterior(self._pack(frames))
        self.latent_mean.copy_(mean.mean((0, 2, 3)))
        self.latent_scale.copy_(mean.std((0, 2, 3)).clamp_min(1e-6))

    def _pack(self, frames: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) to colours in 0..1, r frames side by side: (N, 3r, H, W)."""
        check_frames(frames, self.config.frame_size)
        if frames.shape[1] % self.config.temporal:
            raise ValueError(
                f"this tokenizer codes {self.config.temporal} frames together, "
                f"got {frames.shape[1]} frames; pass a multiple"
            )
        packed = frames.flatten(0, 1).unflatten(0, (-1, self.config.temporal))
        colours: Tensor = packed.permute(0, 1, 4, 2, 3).flatten(1, 2).to(self.latent_mean)
        return colours / 255.0

    def _frames(self, pixels: Tensor, shape: torch.Size) -> Tensor:
        """Colours (N, 3r, H, W) of as many latent frames as (B, T / r) has, as decoded frames."""
        r = self.config.temporal
        frames = (pixels * 255.0).round_().clamp_(0.0, 255.0).to(torch.uint8)
        unpacked: Tensor = frames.unflatten(1, (r, 3)).permute(0, 1, 3, 4, 2)
        return unpacked.reshape(shape[0], shape[1] * r, *unpacked.shape[2:])

    def _raw(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) as the decoder takes them."""
        return latents * self.latent_scale[:, None, None] + self.latent_mean[:, None, None]

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(pixels - 0.5).chunk(2, dim=1)
        return mean, log_variance.clamp(-20.0, 5.0)


def check_frames(frames: Tensor, size: tuple[int, int]) -> None:
    """Refuse what is not uint8 (B, T, H, W, 3)."""
    expected = (*size, 3)
    if frames.ndim != 5 or tuple(frames.shape[2:]) != expected or frames.dtype != torch.uint8:
        raise ValueError(
            f"frames must be uint8 of shape (batch, frames, {', '.join(map(str, expected))}), "
            f"got {frames.dtype} {tuple(frames.shape)}"
        )
