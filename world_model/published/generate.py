"""Prompts, pictures and states in; frames and actions out: a published network with all around it.

| `Task.mode` | picture | what is made |
|---|---|---|
| video | no | a video of the prompt |
| video | yes | a video that begins with the picture; the prompt may be empty |
| joint | yes | the same, and the actions that lead there |
| action | yes | actions alone: the network looks at the picture once |

All of them are one sampler, `pipeline.denoise`, with other noise given to it.

Shapes: B items, H W pixels, C h w a latent frame, T latent frames, A actions, D action size, S
state size.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kairos_env.world_model.flow import Schedule
from kairos_env.world_model.normalizers import Normalizer
from kairos_env.world_model.published.mixture import Clip, PublishedMixture
from kairos_env.world_model.published.pipeline import (
    TOKEN_PIXELS,
    Denoised,
    Sampler,
    denoise,
    latent_shape,
    published_noise,
)
from kairos_env.world_model.published.tiling import Tiling
from kairos_env.world_model.published.wan_vae import WanVae, pixels_to_video, video_to_pixels
from kairos_env.world_model.teacache import TeaCache

Mode = Literal["video", "joint", "action"]


class TextEncoder(Protocol):
    """What makes features of prompts, as `QwenTextEncoder` does."""

    def encode(
        self, texts: Sequence[str], images: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, tokens, width) and the mask (B, tokens) of where they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be made, and how; the defaults are the published ones."""

    mode: Mode = "video"
    height: int = 480
    """Of the video in pixels, rounded up to 16."""
    width: int = 640
    frames: int = 81
    """Of the video, rounded up to 4 n + 1."""
    horizon: int = 32
    """Actions."""
    steps: int = 20
    guidance: float = 5.0
    """Leads the video away from the negative prompt; 1 does not."""
    few_step: bool = False
    """The four steps of distilled networks, without guidance."""
    teacache: float = 0.0
    """Threshold below which blocks are skipped, for all items at once; for video alone; 0: none."""
    tiled: bool = False
    """Run the autoencoder on tiles, which bounds its memory."""
    picture_in_text: bool = True
    """Also show the picture to the text encoder; some checkpoints were trained without."""

    def sampler(self, latent: tuple[int, int, int], patch: int) -> Sampler:
        """The sampler's options for latents of (T, h, w)."""
        frames, rows, columns = latent
        tokens = -(-rows // patch) * -(-columns // patch)
        video = (
            Schedule.few_step()
            if self.few_step
            else Schedule.for_video(self.steps, tokens=tokens, frames=frames)
        )
        steps = len(video.sigmas)
        return Sampler(
            video=video if self.mode != "action" else None,
            action=Schedule.for_actions(steps) if self.mode != "video" else None,
            guidance=self.guidance if self.mode != "action" else 1.0,
            few_step=self.few_step,
            teacache=TeaCache(steps=steps, threshold=self.teacache) if self.teacache else None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """B items of one task."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    """One stream of noise an item, drawn as the published sampler draws it."""
    negative: str = ""
    pictures: Tensor | None = None
    """(B, H, W, 3) uint8; None for video from text."""
    states: Tensor | None = None
    """(B, S) in the robot's own units."""
    state_masks: Tensor | None = None
    """(B, S), 1 where the state is known."""


@dataclasses.dataclass(frozen=True)
class Made:
    """What came of it."""

    frames: Tensor | None
    """(B, 1 + 4 (T - 1), H, W, 3) uint8."""
    actions: Tensor | None
    """(B, A, D) in the robot's own units where the statistics are known."""


class Pipeline:
    """A network, its autoencoder, and what goes with them.

    Args:
        network: Predicts velocities.
        autoencoder: Pixels to latents and back.
        text: Encodes prompts; without one the only prompt is an empty one.
        actions: How actions were normalised in training; None leaves them so.
        states: The same for the robot's state.
    """

    def __init__(
        self,
        network: PublishedMixture,
        autoencoder: WanVae,
        *,
        text: TextEncoder | None = None,
        actions: Normalizer | None = None,
        states: Normalizer | None = None,
    ) -> None:
        self.network, self.autoencoder, self.text = network, autoencoder, text
        self.actions, self.states = actions, states

    @torch.no_grad()
    def __call__(self, task: Task, asked: Asked) -> Made:
        """Make what is asked.

        Raises:
            ValueError: The task cannot be done by this network, or with these inputs.
        """
        self._check(task, asked)
        first = None if asked.pictures is None else self.encode(asked.pictures, task)
        made = self._denoise(task, asked, first)
        return Made(
            None if made.latents is None else self.decode(made.latents, task),
            None if made.actions is None else self._in_units(made.actions),
        )

    def encode(self, pictures: Tensor, task: Task) -> Tensor:
        """Pictures (B, H, W, 3) uint8 as the first latent frame of clips: (B, 1, C, h, w)."""
        video = pixels_to_video(pictures[:, None].to(self._device))  # (B, 3, 1, H, W)
        size = [-(-side // TOKEN_PIXELS) * TOKEN_PIXELS for side in (task.height, task.width)]
        if list(video.shape[3:]) != size:
            still = F.interpolate(video[:, :, 0], size, mode="bilinear", antialias=True)
            video = still[:, :, None]
        latents = self.autoencoder.encode(video.to(self._pixel_dtype), tiling=tiling(task))
        return latents.transpose(1, 2).to(self.network.dtype)

    def decode(self, latents: Tensor, task: Task) -> Tensor:
        """Latents (B, T, C, h, w) to frames (B, 1 + 4 (T - 1), H, W, 3) uint8."""
        clip = latents.transpose(1, 2).to(self._pixel_dtype)
        return video_to_pixels(self.autoencoder.decode(clip, tiling=tiling(task)))

    def tell(
        self, prompts: Sequence[str], pictures: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Features of prompts, and their mask."""
        if self.text is not None:
            images = None if pictures is None else list(pictures)
            features, mask = self.text.encode(prompts, images)
            return features.to(self._device, self.network.dtype), mask.to(self._device)
        if any(prompts):
            raise ValueError(
                "this world has no text encoder, so it can only be given an empty prompt; import "
                "it again with --text-encoder FOLDER"
            )
        width = self.network.config.text_dim or 1
        return torch.zeros(
            len(prompts), 1, width, device=self._device, dtype=self.network.dtype
        ), None

    def _denoise(self, task: Task, asked: Asked, first: Tensor | None) -> Denoised:
        config = self.network.config
        frames = 1 if task.mode == "action" else task.frames
        latent = latent_shape(height=task.height, width=task.width, frames=frames)
        sampler = task.sampler(latent, config.patch)
        text, mask = self.tell(asked.prompts, asked.pictures if task.picture_in_text else None)
        negative = negative_mask = None
        if sampler.guidance != 1 and not sampler.few_step:
            negative, negative_mask = self.tell([asked.negative] * len(asked.prompts))
        T, h, w = latent
        shown = config.published.image_tokens and first is not None
        clip = Clip(
            latents=self._noise(asked, (T, config.video.channels, h, w), task.mode != "action"),
            actions=self._noise(asked, (task.horizon, self._action_size), task.mode != "video"),
            text=text,
            text_mask=mask,
            robot_state=self._state(asked.states),
            robot_state_mask=asked.state_masks,
            image=first[:, 0] if shown and first is not None else None,
        )
        return denoise(
            self.network,
            clip,
            sampler=sampler,
            first=first,
            negative=negative,
            negative_mask=negative_mask,
        )

    def _noise(self, asked: Asked, shape: tuple[int, ...], wanted: bool) -> Tensor | None:
        """Noise (B, ...) of each item's own seed."""
        if not wanted:
            return None
        drawn = [published_noise((1, *shape), seed=seed) for seed in asked.seeds]
        return torch.cat(drawn).to(self._device, self.network.dtype)

    def _state(self, states: Tensor | None) -> Tensor | None:
        if states is None:
            return None
        scaled = states if self.states is None else self.states.normalize(states)
        return scaled.to(self._device, self.network.dtype)

    def _in_units(self, actions: Tensor) -> Tensor:
        actions = actions.float()
        return actions if self.actions is None else self.actions.denormalize(actions)

    def _check(self, task: Task, asked: Asked) -> None:
        B = len(asked.prompts)
        if not B or len(asked.seeds) != B:
            raise ValueError(f"every prompt needs a seed, got {B} and {len(asked.seeds)}")
        if task.mode != "video" and self.network.action is None:
            raise ValueError(f"this network has no action stream, so it cannot do {task.mode!r}")
        if task.mode != "video" and asked.pictures is None:
            raise ValueError(f"{task.mode!r} needs a picture of what the robot sees")
        if asked.pictures is not None and (
            asked.pictures.dtype != torch.uint8
            or asked.pictures.ndim != 4
            or (len(asked.pictures), asked.pictures.shape[3]) != (B, 3)
        ):
            raise ValueError(
                f"expected pictures ({B}, height, width, 3) uint8, got {asked.pictures.dtype} "
                f"{tuple(asked.pictures.shape)}"
            )
        size = self.network.config.state_dim
        if asked.states is not None and tuple(asked.states.shape) != (B, size):
            raise ValueError(
                f"expected states ({B}, {size}), got {tuple(asked.states.shape)}"
                if size
                else "this network reads no robot state"
            )

    @property
    def _action_size(self) -> int:
        action = self.network.config.action
        return action.channels if action else 0

    @property
    def _device(self) -> torch.device:
        return self.autoencoder.conv2.weight.device

    @property
    def _pixel_dtype(self) -> torch.dtype:
        return self.autoencoder.conv2.weight.dtype


def tiling(task: Task) -> Tiling | None:
    """The published tiles, where they are asked for."""
    return Tiling() if task.tiled else None
