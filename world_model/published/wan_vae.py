"""The Wan 2.1 video autoencoder: 8x smaller in space, 4x in time, causal, streamed in short chunks.

    encode   frame 0, then groups of 4 frames   ->  one latent frame each
    decode   one latent frame at a time         ->  1 frame for the first, 4 for each later one

A stream's state goes in and comes out (see wan_layers), so a clip of any length streams in constant
memory, and a stream can be kept, copied or dropped. The first chunk of a stream is special: layers
that change the frame rate let it pass as it is.

Module names are those of the published checkpoint: ``encoder.downsamples.3.residual.2.weight``.

Shapes: B batch, C channels, T frames, H W pixels or latents; videos are (B, 3, T, H, W) in [-1, 1].
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from kairos_env.world_model.published.tiling import Tiling, run_tiled
from kairos_env.world_model.published.wan_layers import (
    CausalConv3d,
    Downsample,
    FrameAttention,
    Head,
    ResidualBlock,
    State,
    Upsample,
    chain,
)

# Published mean and standard deviation of each latent channel.
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WanVaeConfig:
    """Sizes; the defaults are the published ones.

    Attributes:
        dim: channels of the first stage.
        dim_mult: channels of each stage in multiples of ``dim``.
        z_dim: latent channels.
        num_res_blocks: residual blocks per encoder stage; the decoder has one more.
        temporal_downsample: whether each change of resolution also halves the frame rate.
        latent_mean: mean of each latent channel.
        latent_std: standard deviation of each latent channel.
    """

    dim: int = 96
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    z_dim: int = 16
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = field(default=LATENT_MEAN, repr=False)
    latent_std: tuple[float, ...] = field(default=LATENT_STD, repr=False)

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                "expected one temporal_downsample between each two stages, got "
                f"{len(self.temporal_downsample)} for {len(self.dim_mult)} stages"
            )
        if not len(self.latent_mean) == len(self.latent_std) == self.z_dim:
            raise ValueError(
                f"expected a mean and a standard deviation for each of {self.z_dim} latent "
                f"channels, got {len(self.latent_mean)} and {len(self.latent_std)}"
            )

    @property
    def space_factor(self) -> int:
        """Pixels a latent is wide and high."""
        return int(2 ** (len(self.dim_mult) - 1))

    @property
    def time_factor(self) -> int:
        """Frames that a later latent frame stands for."""
        return int(2 ** sum(self.temporal_downsample))


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResidualBlock(channels, channels),
            FrameAttention(channels),
            ResidualBlock(channels, channels),
        ]
    )


class Encoder(nn.Module):
    """A chunk of frames to twice ``z_dim`` channels of latents."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(3, config.dim, 3)
        layers: list[nn.Module] = []
        channels = config.dim
        for stage, factor in enumerate(config.dim_mult):
            for _ in range(config.num_res_blocks):
                layers.append(ResidualBlock(channels, config.dim * factor))
                channels = config.dim * factor
            if stage < len(config.temporal_downsample):
                layers.append(Downsample(channels, time=config.temporal_downsample[stage]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(channels)
        self.head = Head(channels, 2 * config.z_dim)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map (B, 3, T, H, W) to means and log variances (B, 2 z, T / 4, H / 8, W / 8)."""
        return chain([self.conv1, *self.downsamples, *self.middle, self.head], x, state)


class Decoder(nn.Module):
    """A latent frame to its frames."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        channels = config.dim * config.dim_mult[-1]
        self.conv1 = CausalConv3d(config.z_dim, channels, 3)
        self.middle = _middle(channels)
        layers: list[nn.Module] = []
        temporal = config.temporal_downsample[::-1]
        for stage, factor in enumerate(config.dim_mult[::-1]):
            for _ in range(config.num_res_blocks + 1):
                layers.append(ResidualBlock(channels, config.dim * factor))
                channels = config.dim * factor
            if stage < len(temporal):
                layers.append(Upsample(channels, time=temporal[stage]))
                channels //= 2
        self.upsamples = nn.ModuleList(layers)
        self.head = Head(channels, 3)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map (B, z, t, h, w) to (B, 3, 4 t, 8 h, 8 w)."""
        return chain([self.conv1, *self.middle, *self.upsamples, self.head], x, state)


class WanVae(nn.Module):
    """Pixels to normalised latents and back, whole clips or streamed."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def encode_chunk(self, frames: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Encode the next frames of a stream.

        Args:
            frames: (B, 3, T, H, W): one frame where ``state`` is ``None``, then multiples of the
                time factor.
            state: what the last call returned; ``None`` starts a stream.

        Returns:
            Normalised latents (B, z, 1 or T / time factor, H / 8, W / 8) and the state.
        """
        self._check_chunk(frames, first=state is None)
        h, state = self.encoder(frames, state)
        mean, _ = self.conv1(h).chunk(2, dim=1)
        m, s = self._moments(mean)
        return (mean - m) / s, state

    def decode_chunk(self, latents: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Decode the next latent frame of a stream.

        Args:
            latents: (B, z, 1, h, w).
            state: what the last call returned; ``None`` starts a stream.

        Returns:
            Frames (B, 3, 1 or time factor, 8 h, 8 w), not clamped, and the state.
        """
        if state is None and latents.shape[2] != 1:
            raise ValueError(
                f"expected a stream to begin with one latent frame, got {latents.shape[2]}"
            )
        m, s = self._moments(latents)
        frames, state = self.decoder(self.conv2(latents * s + m), state)
        return frames, state

    def encode(self, video: Tensor, *, tiling: Tiling | None = None) -> Tensor:
        """Encode a clip.

        Args:
            video: (B, 3, T, H, W); frames beyond the last whole group are dropped.
            tiling: work on overlapping tiles, in latents; bounds the memory.

        Returns:
            Normalised latents (B, z, 1 + (T - 1) // 4, H / 8, W / 8).
        """
        if tiling is not None:
            return run_tiled(self.encode, video, tiling, enter=self.config.space_factor, leave=1)
        factor, state, latents = self.config.time_factor, None, []
        groups = (video.shape[2] - 1) // factor
        for chunk in torch.split(
            video[:, :, : 1 + groups * factor], [1, *[factor] * groups], dim=2
        ):
            z, state = self.encode_chunk(chunk, state)
            latents.append(z)
        return torch.cat(latents, dim=2)

    def decode(
        self, latents: Tensor, *, tiling: Tiling | None = None, clamp: bool = True
    ) -> Tensor:
        """Decode a clip.

        Args:
            latents: (B, z, t, h, w).
            tiling: work on overlapping tiles, in latents; bounds the memory.
            clamp: to [-1, 1].

        Returns:
            Video (B, 3, 1 + 4 (t - 1), 8 h, 8 w).
        """
        if tiling is not None:
            run = partial(self.decode, clamp=False)
            video = run_tiled(run, latents, tiling, enter=1, leave=self.config.space_factor)
            return video.clamp(-1, 1) if clamp else video
        state, frames = None, []
        for z in torch.split(latents, 1, dim=2):
            chunk, state = self.decode_chunk(z, state)
            frames.append(chunk)
        video = torch.cat(frames, dim=2)
        return video.clamp(-1, 1) if clamp else video

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        m, s = (
            like.new_tensor(values).view(1, -1, 1, 1, 1)
            for values in (self.config.latent_mean, self.config.latent_std)
        )
        return m, s

    def _check_chunk(self, frames: Tensor, *, first: bool) -> None:
        count, factor, side = frames.shape[2], self.config.time_factor, self.config.space_factor
        if first and count != 1:
            raise ValueError(f"expected a stream to begin with one frame, got {count}")
        if not first and count % factor:
            raise ValueError(f"expected a multiple of {factor} frames, got {count}")
        if frames.shape[3] % side or frames.shape[4] % side:
            raise ValueError(
                f"expected height and width to be multiples of {side}, got "
                f"{frames.shape[3]}x{frames.shape[4]}; pad or crop the video first"
            )


def pixels_to_video(frames: Tensor) -> Tensor:
    """Turn uint8 frames (B, T, H, W, 3) into video (B, 3, T, H, W) in [-1, 1]."""
    return (frames.float() / 127.5 - 1).movedim(-1, 1)


def video_to_pixels(video: Tensor) -> Tensor:
    """Turn video (B, 3, T, H, W) in [-1, 1] into uint8 frames (B, T, H, W, 3), rounded down."""
    return ((video.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8).movedim(1, -1)
