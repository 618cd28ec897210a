"""Denoise a clip with a published network: video, actions, or both, by one sampler with options.

| given as noise | what happens |
|---|---|
| latents | video; with `first` from a picture, without from text alone |
| latents and actions | both together; guidance acts on the video only |
| actions | the network runs once on `first`, its keys and values are kept, actions follow |

Base networks want Euler's steps with guidance. Distilled ones want few steps that jump to the clean
estimate and noise it again. Which levels are visited is a `flow.Schedule`.

Shapes: B batch, T latent frames, h of them given, A actions; a latent frame is (C, height, width).
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from kairos_env.world_model.flow import TIMESTEPS, Schedule, sample_jointly
from kairos_env.world_model.published.mixture import Clip, History, Lanes, PublishedMixture
from kairos_env.world_model.teacache import TeaCache, TeaCacheState

# Pixels per token (two latents of eight), and frames per latent, of the published autoencoder.
TOKEN_PIXELS, LATENT_FRAMES = 16, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How noise is led to a clip."""

    video: Schedule | None = None
    """Levels of the video: `Schedule.for_video`, or `few_step` for distilled networks."""
    action: Schedule | None = None
    """Levels of the actions: `Schedule.for_actions`."""
    guidance: float = 1.0
    """s in v = v_negative + s (v_positive - v_negative) for the video; 1 needs no negative text."""
    few_step: bool = False
    """Jump to the clean estimate and noise it again. Distilled networks have guidance built in."""
    teacache: TeaCache | None = None
    """Skip the blocks where little changes; for video without actions."""


class Denoised(NamedTuple):
    """What a sampler gives."""

    latents: Tensor | None
    """(B, T, C, height, width)."""
    actions: Tensor | None
    """(B, A, action size), as normalised in training."""


@torch.no_grad()
def denoise(
    network: PublishedMixture,
    clip: Clip,
    *,
    sampler: Sampler,
    first: Tensor | None = None,
    negative: Tensor | None = None,
    negative_mask: Tensor | None = None,
) -> Denoised:
    """Lead noise to a clip.

    Args:
        network: what predicts velocities.
        clip: noise as latents and actions, and what is read beside. Timesteps and the number of
            history frames are set here.
        sampler: how.
        first: (B, h, C, height, width) clean latents of the first frames.
        negative: (B, S, text_dim) features of the text to lead away from.
        negative_mask: (B, S) True where it may be read; None: everywhere.

    Raises:
        ValueError: inputs and options do not fit.
    """
    run = _Run(network, clip, sampler, first, negative, negative_mask)
    run.check()
    given = [
        (noise, schedule, pin)
        for noise, schedule, pin in (
            (clip.latents, sampler.video, run.pin if first is not None else None),
            (clip.actions, sampler.action, None),
        )
        if noise is not None and schedule is not None
    ]
    noises, schedules, pins = zip(*given, strict=True)
    results = sample_jointly(
        run.velocities,
        noises,
        schedules,
        pins=pins,
        # The published sampler seeds its generator anew at every step: always the same noise.
        renoise=(lambda _: noises) if sampler.few_step else None,
    )
    named = run.named(results)
    return Denoised(named.get("latents"), named.get("actions"))


class _Run:
    """One call of `denoise`: what is fixed, and what the guidance branches remember."""

    def __init__(
        self,
        network: PublishedMixture,
        clip: Clip,
        sampler: Sampler,
        first: Tensor | None,
        negative: Tensor | None,
        negative_mask: Tensor | None,
    ) -> None:
        self.network, self.sampler, self.first = network, sampler, first
        self.guided = clip.latents is not None and sampler.guidance != 1 and not sampler.few_step
        self.negative, self.negative_mask = negative, negative_mask
        frames = first.shape[1] if first is not None and clip.latents is not None else 0
        self.clip = dataclasses.replace(clip, history_frames=frames)
        self.caches = {"positive": TeaCacheState(), "negative": TeaCacheState()}
        self._history: History | None = None

    def check(self) -> None:
        """Refuse what does not fit."""
        clip, sampler = self.clip, self.sampler
        if clip.latents is None and clip.actions is None:
            raise ValueError("denoise needs noise: Clip.latents, Clip.actions or both")
        if clip.latents is not None and sampler.video is None:
            raise ValueError("a clip with latents needs Sampler.video")
        if clip.actions is not None and sampler.action is None:
            raise ValueError("a clip with actions needs Sampler.action")
        if self.guided and self.negative is None:
            raise ValueError(
                f"guidance {sampler.guidance} needs features of a negative text; pass them, or 1"
            )
        if sampler.teacache is not None and (clip.latents is None or clip.actions is not None):
            raise ValueError("TeaCache is for video without actions")
        if self.first is not None and clip.latents is not None:
            whole, part = list(clip.latents.shape), list(self.first.shape)
            if part[:1] + part[2:] != whole[:1] + whole[2:] or part[1] > whole[1]:
                raise ValueError(f"first frames {part} do not fit into latents {whole}")

    def named(self, parts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Latents and actions, of which one may be missing, by name."""
        names = [name for name in ("latents", "actions") if getattr(self.clip, name) is not None]
        return dict(zip(names, parts, strict=True))

    def pin(self, latents: Tensor) -> Tensor:
        """Put the given frames in their place."""
        assert self.first is not None
        return torch.cat([self.first.to(latents), latents[:, self.first.shape[1] :]], 1)

    def velocities(
        self, parts: tuple[Tensor, ...], levels: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Predict the velocity of every part at its level."""
        step = self._at(parts, levels)
        if step.latents is None:
            output = self.network(step, history=self._remembered())
            return (output.action,)
        video, action = self._predict(step, "positive")
        if self.guided:
            other = dataclasses.replace(
                step,
                text=self.negative,
                text_mask=self.negative_mask,
                actions=None,  # the video does not see them
            )
            away, _ = self._predict(other, "negative")
            video = away + self.sampler.guidance * (video - away)
        return (video,) if action is None else (video, action)

    def _at(self, parts: tuple[Tensor, ...], levels: tuple[Tensor, ...]) -> Clip:
        """The clip at one step."""
        # Timesteps in the network's own type: with bfloat16 812.3 becomes 812, as published.
        told = [
            (TIMESTEPS * level).to(part).expand(part.shape[0])
            for part, level in zip(parts, levels, strict=True)
        ]
        data, times = self.named(parts), self.named(tuple(told))
        return dataclasses.replace(
            self.clip,
            latents=data.get("latents"),
            timestep=times.get("latents"),
            actions=data.get("actions"),
            action_timestep=times.get("actions"),
        )

    def _predict(self, step: Clip, branch: str) -> tuple[Tensor, Tensor | None]:
        """Velocities of video and actions; the blocks run, or TeaCache stands in for them."""
        lanes = self.network.enter(step)
        assert lanes.video is not None
        if self.sampler.teacache is None:
            self.network.run(lanes)
        else:
            lanes.video.x, self.caches[branch] = self.sampler.teacache.run(
                self.caches[branch],
                lanes.video.noise_rows,
                lanes.video.x,
                lambda _: self._blocks(lanes),
            )
        video, action = self.network.read(lanes)
        assert video is not None
        return video, action

    def _blocks(self, lanes: Lanes) -> Tensor:
        self.network.run(lanes)
        assert lanes.video is not None
        return lanes.video.x

    def _remembered(self) -> History | None:
        """Keys and values of the first frames; computed once."""
        if self._history is None and self.first is not None:
            still = dataclasses.replace(self.clip, latents=self.first, actions=None)
            self._history = self.network.remember(still)
        return self._history


def latent_shape(*, height: int, width: int, frames: int) -> tuple[int, int, int]:
    """Latent frames, height and width of a clip: pixels round up to 16, frames to 4 n + 1."""
    for name, value in (("height", height), ("width", width), ("frames", frames)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    rows, columns = (-(-size // TOKEN_PIXELS) * 2 for size in (height, width))
    return -(-(frames - 1) // LATENT_FRAMES) + 1, rows, columns


def published_noise(
    shape: tuple[int, ...], *, seed: int, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The noise that the published sampler draws for a seed.

    Args:
        shape: (B, T, C, height, width) of latents, or (B, A, action size). The numbers of latents
            are drawn in the published order, channels before frames.
        seed: video and actions start from the same one, and so share their first numbers.
        dtype: what the float32 numbers are rounded to.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 5:
        batch, frames, channels, *size = shape
        drawn = torch.randn(batch, channels, frames, *size, generator=generator)
        return drawn.to(dtype).transpose(1, 2)
    return torch.randn(shape, generator=generator).to(dtype)
