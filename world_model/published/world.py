"""An imported network as a world: `start` and `step` by the clip, until it learns to answer.

A step shows the network the dream's last frame and lets it go on for a clip; the last frame of that
is where the next step begins. Nothing else is remembered, and the action that a step is given moves
nothing: the published video stream never sees one. In joint mode the network says beside it what it
would have done itself. `published.forward` makes a world of it that can learn to answer.

Shapes: B dreams, K actions per step, D action size, F frames per step, H W pixels, C h w a latent
frame, T = 1 + F / 4 latent frames of a clip.
"""

import dataclasses

import torch
from torch import Tensor, nn

from kairos_env.world_model.noise import counter_normal
from kairos_env.world_model.published.generate import Task
from kairos_env.world_model.published.imported import ImportedConfig
from kairos_env.world_model.published.mixture import Clip, PublishedMixture
from kairos_env.world_model.published.pipeline import Denoised, denoise
from kairos_env.world_model.published.wan_tokenizer import WanTokenizer, WanTokenizerConfig
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.world_model import ACTION_NOISE, VIDEO_NOISE, Prediction, WorldConfig


class PublishedWorld(nn.Module):
    """Autoencoder and network of an imported checkpoint, under the verbs of a `WorldModel`."""

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        if config.imported is None or not isinstance(config.tokenizer, WanTokenizerConfig):
            raise ValueError("PublishedWorld needs WorldConfig.imported and a Wan tokenizer")
        factor = config.tokenizer.autoencoder.time_factor
        if config.frames_per_chunk % factor:
            raise ValueError(
                f"a clip goes on by whole latent frames: frames_per_chunk must be a multiple of "
                f"{factor}, got {config.frames_per_chunk}"
            )
        self.config = config
        self.options: ImportedConfig = config.imported
        self.tokenizer = WanTokenizer(config.tokenizer)
        self.network = PublishedMixture(config.transformer)
        self.clip_latents = 1 + config.frames_per_chunk // factor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.device

    @torch.no_grad()
    def start_latents(
        self,
        latents: Tensor,
        actions: Tensor | None = None,
        *,
        seeds: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        frames: Tensor | None = None,
    ) -> DreamState:
        """Begin dreams from the last of some frames (B, T, C, h, w); the rest is not read."""
        del frames  # for a backdrop, which the config refuses
        B, T = latents.shape[:2]
        if T < 1 or seeds.shape != (B,):
            raise ValueError(
                f"expected a frame and a seed for each dream, got latents {tuple(latents.shape)} "
                f"and seeds {tuple(seeds.shape)}"
            )
        if text is None:
            text = latents.new_zeros(B, 1, self.config.transformer.text_dim or 1)
        frame = torch.full((B,), T, dtype=torch.int64, device=latents.device)
        return DreamState((), latents[:, -1:], frame, seeds.to(frame), text, text_mask)

    @torch.no_grad()
    def step(
        self,
        state: DreamState,
        chunk: Tensor,
        *,
        denoise_steps: int | None = None,
        decode: bool = True,
    ) -> tuple[DreamState, Prediction]:
        """Let every dream go on for a clip. The chunk (B, K, D) is checked, and moves nothing."""
        c, B = self.config, len(state)
        expected = (B, c.chunk, c.action_size)
        if tuple(chunk.shape) != expected:
            raise ValueError(f"an action chunk has shape {expected}, got {tuple(chunk.shape)}")
        made = self._denoise(state, denoise_steps or c.denoise_steps)
        assert made.latents is not None
        frames = self.tokenizer.decode_clip(made.latents)[:, 1:]  # the first is the one given
        F = c.frames_per_chunk
        last = self.tokenizer.encode(frames[:, -1:])
        after = dataclasses.replace(state, previous=last, frame=state.frame + F)
        nothing = torch.zeros(B, F, device=frames.device)
        per_latent = F // (made.latents.shape[1] - 1)
        prediction = Prediction(
            latents=made.latents[:, 1:].repeat_interleave(per_latent, dim=1),
            reward=nothing,
            end_probability=nothing,
            state=torch.zeros(B, F, c.heads.state_size, device=frames.device),
            uncertainty=nothing[:, 0],
            frames=frames if decode else None,
            actions=made.actions,
        )
        return after, prediction

    def _denoise(self, state: DreamState, steps: int) -> Denoised:
        """One clip of each dream, and its actions in joint mode."""
        c, options = self.config, self.options
        shape = (self.clip_latents, *c.latent_shape)
        text = state.text
        assert text is not None
        task = Task(
            mode=options.mode, steps=steps, guidance=options.guidance, few_step=options.few_step
        )
        first = state.previous.to(self.network.dtype)
        clip = Clip(
            latents=counter_normal(state.seed, state.frame, shape, stream=VIDEO_NOISE).to(first),
            actions=(
                counter_normal(
                    state.seed, state.frame, (c.chunk, c.action_size), stream=ACTION_NOISE
                ).to(first)
                if options.mode == "joint"
                else None
            ),
            text=text.to(first),
            text_mask=state.text_mask,
            image=first[:, 0] if c.transformer.published.image_tokens else None,
        )
        sampler = task.sampler((shape[0], *shape[2:]), c.transformer.patch)
        nothing = torch.zeros_like(text[:, :1]).to(first)
        return denoise(self.network, clip, sampler=sampler, first=first, negative=nothing)
