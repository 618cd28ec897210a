"""The Wan autoencoder as a world's tokenizer: every frame is coded as a still picture.

A still picture is what begins a published clip, so one frame is one latent frame, and a step's
action has its own. (Whole clips, four frames to a latent, go through `autoencoder` itself.)

Shapes: B batch, T frames, H W pixels, C h w a latent frame.
"""

import dataclasses

import torch
from torch import Tensor, nn

from kairos_env.world_model.published.wan_vae import (
    WanVae,
    WanVaeConfig,
    pixels_to_video,
    video_to_pixels,
)
from kairos_env.world_model.tokenizer import check_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanTokenizerConfig:
    """Sizes of the autoencoder and of the frames that it is shown."""

    frame_size: tuple[int, int] = (256, 256)
    """Height and width of a frame in pixels."""
    autoencoder: WanVaeConfig = dataclasses.field(default_factory=WanVaeConfig)

    def __post_init__(self) -> None:
        """Refuse frames that do not divide."""
        side = self.autoencoder.space_factor
        if min(self.frame_size) < 1 or any(size % side for size in self.frame_size):
            raise ValueError(
                f"WanTokenizerConfig.frame_size must be divisible by {side}, got {self.frame_size}"
            )

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.autoencoder.z_dim

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a latent frame."""
        side = self.autoencoder.space_factor
        return self.frame_size[0] // side, self.frame_size[1] // side

    @property
    def temporal(self) -> int:
        """Frames coded together: still pictures stand alone."""
        return 1


class WanTokenizer(nn.Module):
    """Frames to normalised latents and back, one by one; what `tokenizer.Tokenizer` is to ours."""

    background: Tensor

    def __init__(self, config: WanTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = WanVae(config.autoencoder)
        # The median frame of the training data, in 0..1; what differs from it is foreground.
        self.register_buffer("background", torch.zeros(3, *config.frame_size))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.background.device

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) to normalised latents (B, T, C, h, w)."""
        check_frames(frames, self.config.frame_size)
        latents = self._encoded(pixels_to_video(frames.flatten(0, 1)[:, None]))
        unpacked: Tensor = latents.unflatten(0, frames.shape[:2])
        return unpacked

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, T, C, h, w) to uint8 frames (B, T, H, W, 3)."""
        frames = self.decode_clip(latents.flatten(0, 1)[:, None])[:, 0]
        unpacked: Tensor = frames.unflatten(0, latents.shape[:2])
        return unpacked

    def decode_clip(self, latents: Tensor) -> Tensor:
        """A clip's latents (B, T, C, h, w) to uint8 frames (B, 1 + 4 (T - 1), H, W, 3)."""
        return video_to_pixels(self.autoencoder.decode(latents.transpose(1, 2).to(self._dtype)))

    @torch.no_grad()
    def background_latent(self) -> Tensor:
        """The background as a latent frame (C, h, w)."""
        return self._encoded(2.0 * self.background[None, :, None] - 1.0)[0]

    @torch.no_grad()
    def fit_background(self, frames: Tensor) -> None:
        """Take the median of a sample of frames, uint8 (N, H, W, 3), as background."""
        self.background.copy_(frames.permute(0, 3, 1, 2).float().median(0).values / 255.0)

    def fit_statistics(self, frames: Tensor) -> None:
        """Nothing to fit: the statistics of the latents are published with the weights."""

    @property
    def _dtype(self) -> torch.dtype:
        return self.autoencoder.conv2.weight.dtype

    def _encoded(self, stills: Tensor) -> Tensor:
        """Video of one frame each (N, 3, 1, H, W) to latents (N, C, h, w)."""
        return self.autoencoder.encode(stills.to(self._dtype))[:, :, 0]
