"""The world model and its verbs: `start`, `step`, `loss`.

    state             = world.start(frames, actions, seeds=...)   # B histories in
    state, prediction = world.step(state, chunk)                  # B action chunks in, frames out
    loss, metrics     = world.loss(clips, generator)              # a batch of clips

State goes in and comes out; nothing of a dream hides in attributes between calls. A dream is a
function of (world, start, seed, actions): the noise of frame n comes from a counter-based stream
keyed by the dream's own seed and n, so it does not depend on who else is in the batch.

Shapes: B dreams, T frames, H W pixels, C h w a latent frame, K actions per chunk, F frames per
chunk, A = K / F actions per frame, D action size, S state size.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kairos_env.world_model.config import TransformerConfig, positive
from kairos_env.world_model.flow import (
    NoiseLevels,
    Schedule,
    broadcast_level,
    noise,
    sample,
    target,
    velocity_from_x0,
    x0_from_velocity,
)
from kairos_env.world_model.heads import Heads, HeadsConfig
from kairos_env.world_model.mixture import (
    FORWARD,
    INVERSE,
    JOINT,
    POLICY,
    Inputs,
    LayerTrace,
    Mixture,
    Mode,
)
from kairos_env.world_model.noise import counter_normal
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.tokenizer import Tokenizer, TokenizerConfig

# Streams of a dream's random numbers: what each is for.
VIDEO_NOISE, ACTION_NOISE = 0, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the dynamics is trained."""

    video_levels: NoiseLevels = NoiseLevels(pure_noise=0.5)
    """Noise of the frames to predict: half of them from nothing, since that is what a step does."""
    history_levels: NoiseLevels = NoiseLevels(high=0.15, clean=0.2)
    """Noise of the history, so that the dream survives its own errors."""
    action_levels: NoiseLevels = NoiseLevels(shift=5.0)
    change_weight: float = 4.0
    """How much more a latent counts that differs from the frame before."""
    foreground_weight: float = 2.0
    """How much more a latent counts that differs from the background: what stands still must stay."""
    heads_weight: float = 0.1
    action_weight: float = 0.1
    """Weight of the action stream's own losses (joint, policy, inverse), one mode per batch."""
    unknown_actions: float = 0.05
    """Fraction of clips whose actions are hidden, so that video alone can also be learned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Everything that is built; the environment's side of a world stands in world.json."""

    tokenizer: TokenizerConfig
    transformer: TransformerConfig
    heads: HeadsConfig
    loss: LossConfig = LossConfig()
    action_size: int
    chunk: int = 4
    """K: low-level actions per step."""
    frames_per_chunk: int = 1
    """F: frames that a step predicts together."""
    history: int = 3
    """Frames that a dream should be started with, so that velocities can be seen."""
    denoise_steps: int = 1
    history_noise: float = 0.0
    """Noise level at which predicted frames are committed to memory."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        for name in ("action_size", "chunk", "frames_per_chunk", "history", "denoise_steps"):
            positive(self, name)
        t = self.transformer
        if self.chunk % self.frames_per_chunk:
            raise ValueError(
                f"WorldConfig: a chunk of {self.chunk} actions cannot be shared evenly by "
                f"{self.frames_per_chunk} frames"
            )
        if t.action is not None and (
            t.actions_per_frame != self.actions_per_frame or t.action.channels != self.action_size
        ):
            raise ValueError(
                f"WorldConfig: the transformer takes {t.actions_per_frame} actions of "
                f"{t.action.channels} numbers per frame, the world gives {self.actions_per_frame} "
                f"of {self.action_size}"
            )
        if t.video.channels != self.tokenizer.latent_channels:
            raise ValueError(
                f"WorldConfig: the tokenizer gives {self.tokenizer.latent_channels} channels, the "
                f"transformer takes {t.video.channels}"
            )
        if any(size % t.patch for size in self.tokenizer.latent_size):
            raise ValueError(
                f"WorldConfig: latents of {self.tokenizer.latent_size} cannot be cut into patches "
                f"of {t.patch}"
            )

    @property
    def actions_per_frame(self) -> int:
        """A = K / F."""
        return self.chunk // self.frames_per_chunk

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return (self.tokenizer.latent_channels, *self.tokenizer.latent_size)

    @property
    def frame_tokens(self) -> int:
        """Video tokens per frame."""
        h, w = self.tokenizer.latent_size
        return (h // self.transformer.patch) * (w // self.transformer.patch)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one step of B dreams gives."""

    latents: Tensor
    """(B, F, C, h, w)."""
    reward: Tensor
    """(B, F): reward of each frame's actions."""
    end_probability: Tensor
    """(B, F)."""
    state: Tensor
    """(B, F, S)."""
    uncertainty: Tensor
    """(B,): the error that the model expects of its state and reward, in deviations of the data."""
    frames: Tensor | None = None
    """(B, F, H, W, 3) uint8; None where decoding was not asked for."""


class WorldModel(nn.Module):
    """Tokenizer, mixture of transformers, heads."""

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config.tokenizer)
        self.mixture = Mixture(config.transformer, config.frame_tokens)
        self.heads = Heads(
            config.heads,
            config.latent_shape,
            (config.frame_tokens, config.transformer.video.dim),
            config.actions_per_frame * config.action_size,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.heads.reward_mean.device

    # ------------------------------------------------------------------------------ dreaming

    @torch.no_grad()
    def start(
        self,
        frames: Tensor,
        actions: Tensor | None = None,
        *,
        seeds: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> DreamState:
        """Begin dreams from real histories.

        Args:
            frames: (B, T, H, W, 3) uint8, T >= 1 frames, oldest first.
            actions: (B, T - 1, A, D): what was done between them; None where nobody knows.
            seeds: (B,) int64, one random stream per dream.
            text: (B, S, text_dim) for a world that reads text.
            text_mask: (B, S) bool, True where there is a text token.
        """
        return self.start_latents(
            self.tokenizer.encode(frames), actions, seeds=seeds, text=text, text_mask=text_mask
        )

    @torch.no_grad()
    def start_latents(
        self,
        latents: Tensor,
        actions: Tensor | None = None,
        *,
        seeds: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> DreamState:
        """`start` for frames that are encoded already: (B, T, C, h, w)."""
        B, T = latents.shape[:2]
        P = self.config.transformer.previous_frames
        first = torch.zeros(B, dtype=torch.int64, device=latents.device)
        known = torch.ones(B, T, dtype=torch.bool, device=latents.device)
        known[:, 0] = False  # nothing led to the first frame
        if actions is None:
            known[:] = False
        clean = torch.zeros(B, T, device=latents.device)
        inputs = Inputs(
            first_frame=first,
            latents=latents,
            previous=with_previous(latents, P),
            video_noise=clean,
            actions=self._led_by(actions, B, T),
            actions_known=known,
            action_noise=clean,
            text=text,
            text_mask=text_mask,
        )
        outputs = self.mixture(
            inputs,
            FORWARD,
            chunk_frames=self.config.frames_per_chunk,
            memory=self.mixture.empty_memory(B),
            commit=True,
            predict=False,
        )
        assert outputs.memory is not None
        tail = with_previous(torch.cat([latents, latents[:, -1:]], dim=1), P)[:, -1]
        return DreamState(outputs.memory, tail, first + T, seeds.to(first), text, text_mask)

    @torch.no_grad()
    def step(
        self,
        state: DreamState,
        chunk: Tensor,
        *,
        denoise_steps: int | None = None,
        decode: bool = True,
    ) -> tuple[DreamState, Prediction]:
        """Advance every dream by one action chunk (B, K, D)."""
        actions = chunk.unflatten(1, (self.config.frames_per_chunk, -1))  # (B, F, A, D)
        latents = self._dream(state, actions, denoise_steps or self.config.denoise_steps)
        before = torch.cat([state.previous[:, -1:], latents[:, :-1]], dim=1)
        state, tokens = self._commit(state, latents, actions)
        readout = self.heads(before, latents, actions, tokens)
        scale = torch.cat([self.heads.reward_scale[None], self.heads.state_scale])
        prediction = Prediction(
            latents=latents,
            reward=readout.reward,
            end_probability=readout.end_logit.sigmoid(),
            state=readout.state,
            uncertainty=(readout.spread / scale).square().mean((1, 2)).sqrt(),
            frames=self.tokenizer.decode(latents) if decode else None,
        )
        return state, prediction

    def _dream(self, state: DreamState, actions: Tensor, steps: int) -> Tensor:
        """Denoise the frames of one chunk: (B, F, C, h, w)."""
        B, F = actions.shape[:2]
        shape = (F, *self.config.latent_shape)
        eps = counter_normal(state.seed, state.frame, shape, stream=VIDEO_NOISE)
        told = torch.zeros(B, F, device=eps.device)
        previous = state.previous[:, None].expand(B, F, *state.previous.shape[1:])

        def velocity(z: Tensor, s: Tensor) -> Tensor:
            level = s.expand(B, F).to(z)
            inputs = Inputs(
                first_frame=state.frame,
                latents=z,
                previous=previous,
                video_noise=level,
                actions=actions,
                action_noise=told,
                text=state.text,
                text_mask=state.text_mask,
            )
            outputs = self.mixture(inputs, FORWARD, chunk_frames=F, memory=state.layers)
            return self._velocity(outputs.video, z, level)

        return sample(velocity, eps.to(state.previous), Schedule(steps=steps))

    def _commit(
        self, state: DreamState, latents: Tensor, actions: Tensor
    ) -> tuple[DreamState, Tensor]:
        """Write predicted frames to memory with one clean pass; returns the pass's video tokens."""
        B, F = actions.shape[:2]
        P = self.config.transformer.previous_frames
        known = torch.cat([state.previous, latents], dim=1)
        previous = torch.stack([known[:, i : i + P] for i in range(F)], dim=1)
        clean = torch.zeros(B, F, device=latents.device)
        inputs = Inputs(
            first_frame=state.frame,
            latents=latents,
            previous=previous,
            video_noise=clean,
            actions=actions,
            action_noise=clean,
            text=state.text,
            text_mask=state.text_mask,
        )
        outputs = self.mixture(
            inputs, FORWARD, chunk_frames=F, memory=state.layers, commit=True, predict=False
        )
        assert outputs.memory is not None and outputs.tokens is not None
        after = dataclasses.replace(
            state, layers=outputs.memory, previous=known[:, -P:], frame=state.frame + F
        )
        return after, outputs.tokens

    def _velocity(self, output: Tensor | None, z: Tensor, level: Tensor) -> Tensor:
        """What the network said, as a velocity."""
        assert output is not None
        if self.config.transformer.stem == "conv":
            return velocity_from_x0(z, output, level)
        return output

    def _led_by(self, actions: Tensor | None, B: int, T: int) -> Tensor:
        """Actions (B, T - 1, A, D) shifted to the frames that they lead to: (B, T, A, D)."""
        shape = (self.config.actions_per_frame, self.config.action_size)
        if actions is None:
            return torch.zeros(B, T, *shape, device=self.device)
        return torch.cat([actions.new_zeros(B, 1, *shape), actions], dim=1)

    # ------------------------------------------------------------------------------ learning

    def loss(
        self, clips: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """How badly the dynamics and the heads explain a batch of clips (the tokenizer is fixed).

        A clean, lightly noised run of the clips gives every layer's history; a second, noisy run
        predicts each chunk from the history before it. That is what streaming does, all at once.

        Args:
            clips: latents (B, T, C, h, w), or frames (B, T, H, W, 3) uint8 to encode; actions
                (B, T - 1, A, D); rewards (B, T - 1); terminated (B, T - 1) bool; state (B, T, S);
                valid (B, T) bool. Optional: history (B, T, C, h, w), what the dream itself
                remembers of these frames, used in place of the truth as the past; text, text_mask.
            generator: of every random number drawn here.
        """
        past = self._past(clips, generator)
        history = self.mixture(
            past.inputs, FORWARD, chunk_frames=past.chunk, record=True, predict=False
        )
        total, metrics = self._video_loss(past, history.trace, FORWARD, generator)
        if self.config.loss.heads_weight:
            heads, more = self._heads_loss(past, history.tokens, clips)
            total = total + self.config.loss.heads_weight * heads
            metrics |= more
        if self.mixture.action is not None and self.config.loss.action_weight:
            action, more = self._action_loss(past, history.trace, generator)
            total = total + self.config.loss.action_weight * action
            metrics |= more
        return total, {"loss": total.detach()} | metrics

    @torch.no_grad()
    def rollout(self, latents: Tensor, actions: Tensor, *, real: int, seeds: Tensor) -> Tensor:
        """What the dream remembers of clips after `real` true frames: (B, T, C, h, w).

        Training on these instead of the truth shows the model its own errors.
        """
        F = self.config.frames_per_chunk
        state = self.start_latents(latents[:, :real], actions[:, : real - 1], seeds=seeds)
        dreamed = [latents[:, :real]]
        for t in range(real - 1, latents.shape[1] - 1, F):
            state, prediction = self.step(state, actions[:, t : t + F].flatten(1, 2), decode=False)
            dreamed.append(prediction.latents)
        return torch.cat(dreamed, dim=1)

    def _past(self, clips: Mapping[str, Tensor], generator: torch.Generator) -> "Past":
        """Clips as history: what was remembered, lightly noised, with everything that goes with it."""
        config, T = self.config, clips["valid"].shape[1]
        if T % config.frames_per_chunk:
            raise ValueError(
                f"clips of {T} frames cannot be cut into chunks of {config.frames_per_chunk}"
            )
        with torch.no_grad():
            latents = (
                clips["latents"] if "latents" in clips else self.tokenizer.encode(clips["frames"])
            )
        latents = latents.float()
        B = latents.shape[0]
        level = config.loss.history_levels.sample((B, 1), generator=generator).expand(B, T)
        eps = torch.randn(latents.shape, generator=generator, device=latents.device)
        remembered = noise(clips.get("history", latents).float(), eps, level)
        hidden = torch.rand((B, 1), generator=generator, device=latents.device)
        known = (hidden >= config.loss.unknown_actions).repeat(1, T)
        known[:, 0] = False
        actions = self._led_by(clips["actions"], B, T)
        P = config.transformer.previous_frames
        return Past(
            truth=latents,
            valid=clips["valid"],
            chunk=config.frames_per_chunk,
            inputs=Inputs(
                first_frame=torch.zeros(B, dtype=torch.int64, device=latents.device),
                latents=remembered,
                previous=with_previous(remembered, P),
                video_noise=level,
                actions=actions,
                actions_known=known,
                action_noise=torch.zeros_like(level),
                text=clips.get("text"),
                text_mask=clips.get("text_mask"),
            ),
        )

    def _video_loss(
        self, past: "Past", trace: "Trace", mode: Mode, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the frames predicted from the history before each chunk."""
        truth = past.truth
        level = self._chunk_levels(self.config.loss.video_levels, past, generator)
        eps = torch.randn(truth.shape, generator=generator, device=truth.device)
        z = noise(truth, eps, level)
        inputs = dataclasses.replace(
            past.inputs, latents=z, video_noise=level, previous=past.before_chunk()
        )
        output = self.mixture(inputs, mode, chunk_frames=past.chunk, trace=trace).video
        if self.config.transformer.stem == "conv":
            error = (output - truth).square() / broadcast_level(level.clamp_min(0.2), truth)
            clean = output
        else:
            error = (output - target(truth, eps)).square()
            clean = x0_from_velocity(z, output, level)
        weight = self._latent_weights(past) * past.predicted()[:, :, None, None, None]
        total = (weight * error).sum() / weight.expand_as(error).sum().clamp_min(1.0)
        nothing = past.predicted() & (level == 1.0)  # predicted from pure noise, as a step does
        guess = (clean.detach() - truth).square().mean((2, 3, 4))
        stay = (past.before_chunk()[:, :, -1] - truth).square().mean((2, 3, 4))
        count = nothing.sum().clamp_min(1)
        return total, {
            "video_loss": total.detach(),
            "video_mse": (guess * nothing).sum() / count,
            "copy_mse": (stay * nothing).sum() / count,
        }

    def _heads_loss(
        self, past: "Past", tokens: Tensor, clips: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        frames, actions = past.inputs.latents, past.inputs.actions
        assert frames is not None and actions is not None
        return self.heads.loss(
            (frames[:, :-1], frames[:, 1:], actions[:, 1:], tokens[:, 1:]),
            clips["rewards"],
            clips["terminated"],
            clips["state"][:, 1:],
            past.valid[:, 1:] & past.valid[:, :-1],
        )

    def _action_loss(
        self, past: "Past", trace: "Trace", generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Velocity error of noisy actions in one mode, drawn anew for each batch."""
        inputs = past.inputs
        assert inputs.actions is not None
        names = ("policy", "inverse", "joint")
        pick = int(torch.randint(len(names), (1,), generator=generator, device=past.truth.device))
        mode = (POLICY, INVERSE, JOINT)[pick]
        level = self._chunk_levels(self.config.loss.action_levels, past, generator)
        eps = torch.randn(inputs.actions.shape, generator=generator, device=past.truth.device)
        noisy = noise(inputs.actions, eps, level)
        inputs = dataclasses.replace(
            inputs,
            actions=noisy,
            action_noise=level,
            actions_known=None,
            previous=past.before_chunk(),
        )
        if mode is JOINT:
            shared = torch.randn(past.truth.shape, generator=generator, device=past.truth.device)
            inputs = dataclasses.replace(
                inputs, latents=noise(past.truth, shared, level), video_noise=level
            )
        output = self.mixture(inputs, mode, chunk_frames=past.chunk, trace=trace)
        error = (output.action - target(past.inputs.actions, eps)).square().mean((2, 3))
        count = past.predicted().sum().clamp_min(1)
        total = (error * past.predicted()).sum() / count
        return total, {f"{names[pick]}_loss": total.detach()}

    def _chunk_levels(
        self, levels: NoiseLevels, past: "Past", generator: torch.Generator
    ) -> Tensor:
        """One noise level per chunk, repeated over its frames: (B, T)."""
        B, T = past.valid.shape
        s = levels.sample((B, T // past.chunk), generator=generator)
        return s.repeat_interleave(past.chunk, dim=1)

    def _latent_weights(self, past: "Past") -> Tensor:
        """1, and more where something moved or is not background: (B, T, 1, h, w)."""
        truth = past.truth
        earlier = torch.cat([truth[:, :1], truth[:, :-1]], dim=1)
        moved = (truth - earlier).abs().amax(2, keepdim=True).clamp_max(1.0)
        background = self.tokenizer.background_latent()
        foreground = (truth - background).abs().amax(2, keepdim=True).clamp_max(1.0)
        loss = self.config.loss
        return 1.0 + loss.change_weight * moved + loss.foreground_weight * foreground


@dataclasses.dataclass(frozen=True, kw_only=True)
class Past:
    """A batch of clips as history."""

    truth: Tensor
    """(B, T, C, h, w)."""
    valid: Tensor
    """(B, T) bool."""
    chunk: int
    """F."""
    inputs: Inputs
    """The clean run: history as it is remembered."""

    def before_chunk(self) -> Tensor:
        """(B, T, P, C, h, w): the frames before each frame's chunk, all that a step knows."""
        assert self.inputs.previous is not None
        return self.inputs.previous[:, :: self.chunk].repeat_interleave(self.chunk, dim=1)

    def predicted(self) -> Tensor:
        """(B, T) bool: frames that exist and have a history."""
        later = torch.arange(self.valid.shape[1], device=self.valid.device) >= self.chunk
        return self.valid & later


Trace = tuple[LayerTrace, ...] | None


def with_previous(latents: Tensor, P: int) -> Tensor:
    """The P frames before each of (B, T, C, h, w), oldest first: (B, T, P, C, h, w).

    Before the first frame stands the first frame itself: nothing moved yet.
    """
    T = latents.shape[1]
    padded = torch.cat([latents[:, :1].expand(-1, P, -1, -1, -1), latents], dim=1)
    return torch.stack([padded[:, i : i + T] for i in range(P)], dim=2)
