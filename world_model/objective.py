"""What the dynamics is trained on.

A clean, lightly noised run of the clips gives every layer's history. A second, noisy run predicts
each chunk from the history before it: what streaming does step by step, all at once. A third, small
one denoises actions in one of the action stream's modes.

All randomness is drawn first (`Draws`) and the loss of a batch is the mean over its clips: slices
of a batch, in one process or in several, add up to the whole.

Shapes: B clips, T frames, C h w a latent frame, P previous frames, F frames per chunk, N = T / F
chunks, A actions per frame, D action size, L tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kairos_env.world_model.flow import (
    NoiseLevels,
    broadcast_level,
    noise,
    target,
    x0_from_velocity,
)
from kairos_env.world_model.heads import Reading
from kairos_env.world_model.history import led_by, with_previous
from kairos_env.world_model.mixture import (
    FORWARD,
    INVERSE,
    JOINT,
    POLICY,
    Inputs,
    LayerTrace,
    Mode,
)
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from kairos_env.world_model.world_model import WorldConfig, WorldModel

Metrics = dict[str, Tensor]
Clips = Mapping[str, Tensor]
# Decoding every dreamed frame would double the time of an update.
SEEN_EVERY = 4
# How much more a pixel of them counts that differs from the background.
SEEN_WEIGHT = 2.0
# Most batches train the policy, whose run needs no frames and costs a tenth of the others.
ACTION_MODES: tuple[tuple[str, Mode], ...] = (
    *(("policy", POLICY),) * 6,
    *(("inverse", INVERSE),) * 2,
    *(("joint", JOINT),) * 2,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the dynamics is trained."""

    video_levels: NoiseLevels = NoiseLevels(pure_noise=0.8)
    """Noise of the frames to predict: most of them from nothing, since that is what a step does."""
    history_levels: NoiseLevels = NoiseLevels(high=0.1, clean=0.2)
    """Noise of the history, so that the dream survives its own errors."""
    action_levels: NoiseLevels = NoiseLevels(shift=5.0)
    change_weight: float = 4.0
    """How much more a latent counts that differs from the frame before."""
    foreground_weight: float = 2.0
    """How much more a latent counts that differs from the background: what stands must stay."""
    standing_weight: float = 0.0
    """How much more such a latent counts in dreams while it looks as in their first frame. Where a
    moving thing is cannot be known late in a dream; what has not moved can always be put right."""
    robust: float = 0.05
    """The frame error from which a frame counts less than squared: where the history has drifted,
    the truth cannot be foreseen, and a squared error there teaches to blur."""
    robust_place: float = 0.2
    """The same for each place of a frame in dreams that are learned from: an object that the dream
    has lost is let go, and what stands still beside it goes on being corrected."""
    picture_weight: float = 20.0
    """How much a place's error in the decoded picture counts beside its latent's, in every fourth
    dreamed frame. Two colours can be close neighbours as latents where objects overlap."""
    heads_weight: float = 0.1
    action_weight: float = 0.1
    """Weight of the action stream's own loss (policy, inverse or joint, drawn per batch)."""
    unknown_actions: float = 0.05
    """Fraction of clips whose actions are hidden, so that video alone can also be learned."""
    untold: float = 0.1
    """Fraction of clips whose text is hidden, so that a dream can also go on without."""

    def __post_init__(self) -> None:
        """Refuse numbers that would silently teach nothing, or the opposite."""
        for name in (
            "change_weight",
            "foreground_weight",
            "standing_weight",
            "picture_weight",
            "heads_weight",
            "action_weight",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"LossConfig.{name} must not be negative, got {getattr(self, name)}"
                )
        for name in ("robust", "robust_place"):
            if not getattr(self, name) > 0:
                raise ValueError(f"LossConfig.{name} must be positive, got {getattr(self, name)}")
        for name in ("unknown_actions", "untold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"LossConfig.{name} must be a fraction, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one batch, batch first; `mode` is the batch's action mode."""

    history_level: Tensor
    """(B, 1)."""
    history_noise: Tensor
    """(B, T, C, h, w)."""
    hidden: Tensor
    """(B, 1) bool: clips whose actions are hidden."""
    level: Tensor
    """(B, N)."""
    noise: Tensor
    """(B, T, C, h, w)."""
    action_level: Tensor
    """(B, N)."""
    action_noise: Tensor
    """(B, T, A, D)."""
    mode: int
    untold: Tensor
    """(B, 1) bool: clips whose text is hidden."""

    @classmethod
    def draw(
        cls, config: "WorldConfig", clips: Mapping[str, Tensor], generator: torch.Generator
    ) -> "Draws":
        """Draw for a batch of clips, on the generator's device."""
        B, T = clips["valid"].shape
        chunks = T // config.latents_per_chunk
        if T % config.latents_per_chunk:
            raise ValueError(
                f"clips of {T} frames cannot be cut into chunks of {config.latents_per_chunk}"
            )
        loss, latent = config.loss, (B, T, *config.latent_shape)
        actions = (B, T, config.actions_per_latent, config.action_size)

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device)

        hidden = torch.rand((B, 1), generator=generator, device=generator.device)
        return cls(
            history_level=loss.history_levels.sample((B, 1), generator=generator),
            history_noise=normal(latent),
            hidden=hidden < loss.unknown_actions,
            level=loss.video_levels.sample((B, chunks), generator=generator),
            noise=normal(latent),
            action_level=loss.action_levels.sample((B, chunks), generator=generator),
            action_noise=normal(actions),
            mode=int(
                torch.randint(len(ACTION_MODES), (1,), generator=generator, device=generator.device)
            ),
            untold=torch.rand((B, 1), generator=generator, device=generator.device) < loss.untold,
        )

    def rows(self, rows: slice) -> "Draws":
        """The draws of some of the clips."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "mode"]
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Past:
    """A batch of clips with its history as the model will remember it."""

    truth: Tensor
    """(B, T, C, h, w)."""
    valid: Tensor
    """(B, T) bool: frames that exist."""
    chunk: int
    """F."""
    inputs: Inputs
    """The clean run."""

    def before_chunk(self) -> Tensor:
        """(B, T, P, C, h, w): the frames before each frame's chunk, all that a step knows."""
        assert self.inputs.previous is not None
        return self._throughout_chunks(self.inputs.previous)

    def recollecting(self, tokens: Tensor) -> "Past":
        """The same, for a head that reads the clean run's tokens (B, T, L, D) of the frame before.

        In a chunk that is the last frame before it; before the first chunk nothing was read.
        """
        earlier = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        recollected = self._throughout_chunks(earlier)
        inputs = dataclasses.replace(self.inputs, recollected=recollected)
        return dataclasses.replace(self, inputs=inputs)

    def _throughout_chunks(self, x: Tensor) -> Tensor:
        """What belongs to each chunk's first frame, for all of its frames: (B, T, ...)."""
        return x[:, :: self.chunk].repeat_interleave(self.chunk, dim=1)

    def predicted(self) -> Tensor:
        """(B, T) bool: frames that exist and have a history."""
        later = torch.arange(self.valid.shape[1], device=self.valid.device) >= self.chunk
        return self.valid & later


def dynamics_loss(
    world: "WorldModel", clips: Mapping[str, Tensor], draws: Draws
) -> tuple[Tensor, Metrics]:
    """How badly the dynamics and the heads explain a batch of clips; the tokenizer is fixed.

    Args:
        world: the model.
        clips: latents (B, T, C, h, w), or frames (B, T, H, W, 3) uint8 to encode; actions
            (B, T - 1, A, D); rewards (B, T - 1); terminated (B, T - 1) bool; state (B, T, S); valid
            (B, T) bool. Optional: history (B, T, C, h, w), what the dream itself remembers of these
            frames, to be used as the past in place of the truth; words, what the world's text
            encoder made of texts by `tokenize`, or text and text_mask, another encoder's features.
        draws: the batch's random numbers.
    """
    loss = world.config.loss
    past = remembered(world, clips, draws)
    clean = world.mixture(past.inputs, FORWARD, chunk_frames=past.chunk, record=True, predict=False)
    if world.config.transformer.recollect:
        past = past.recollecting(clean.tokens)
    total, metrics = video_loss(world, past, clean.trace, draws)
    if loss.heads_weight:
        read = reading(past, clean.tokens, clips)
        heads, more = world.heads.loss(read, world.sketch_pairs(read.frames))
        total = total + loss.heads_weight * heads
        metrics |= more
    if world.mixture.action is not None and loss.action_weight:
        action, more = action_loss(world, past, clean.trace, draws)
        total = total + loss.action_weight * action
        metrics |= more
    return total, {"loss": total.detach()} | metrics


def unrolled_loss(
    world: "WorldModel",
    clips: Mapping[str, Tensor],
    *,
    real: int,
    seeds: Tensor,
    state: DreamState | None = None,
) -> tuple[Tensor, Metrics, DreamState]:
    """Error of dreamed frames against the truth, with gradients through all dreamed steps.

    Args:
        world: the model.
        clips: as `dynamics_loss` takes them, with latents.
        real: true frames before the dream.
        seeds: (B,) int64, of the dreams.
        state: dreams that stand at the last of the `real` frames already; None begins them there.

    Returns:
        The loss, what to tell of it, and where the dreams stand after these clips.
    """
    truth = clips["latents"].float()
    # Trained through, a second look learns to hedge as the first one does (decision 0008).
    frames, tokens, after = world.unroll(
        truth,
        clips["actions"],
        real=real,
        seeds=seeds,
        words=clips.get("words"),
        look_again=False,
        state=state,
    )
    before = truth[:, :real] if state is None else state.previous
    later, frames = truth[:, real:], frames.float()
    places = (frames - later).square().mean(2, keepdim=True)  # (B, N, 1, h, w)
    if world.config.loss.picture_weight and isinstance(world.tokenizer, Tokenizer):
        seen, rows = seen_error(world.tokenizer, frames, later, seeds)
        places = places.index_put(rows, world.config.loss.picture_weight * seen, accumulate=True)
    error = robust(places, world.config.loss.robust_place)
    error = frame_means(error, latent_weights(world, truth, before[:, :1])[:, real:])
    total = mean_over_clips(error, clips["valid"][:, real:])
    metrics = {"unrolled_mse": (frames.detach() - later).square().mean()}
    if world.config.loss.heads_weight:
        read = dreamed_reading(clips, before[:, -1:], frames, tokens)
        heads, more = world.heads.loss(read, world.sketch_pairs(read.frames))
        total = total + world.config.loss.heads_weight * heads
        metrics |= more
    return total, {"loss": total.detach()} | metrics, after


def seen_error(
    tokenizer: Tokenizer, frames: Tensor, truth: Tensor, seeds: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """How far decoded pictures are from those of the truth, place by place, in some frames.

    Args:
        tokenizer: of the frames.
        frames: (B, N, C, h, w) as dreamed.
        truth: (B, N, C, h, w).
        seeds: (B,) int64, which decide the first of every clip's frames.

    Returns:
        Weighted squared errors of colours (B, M, 1, h, w), and the rows (B, M) and columns (B, M)
        of the frames that they belong to.
    """
    B, N = frames.shape[:2]
    columns = seeds[:, None] % SEEN_EVERY + torch.arange(0, N, SEEN_EVERY, device=seeds.device)
    columns = columns.clamp_max(N - 1)
    rows = torch.arange(B, device=seeds.device)[:, None].expand_as(columns)
    shown = tokenizer.decode_pixels(frames[rows, columns].flatten(0, 1))
    with torch.no_grad():
        right = tokenizer.decode_pixels(truth[rows, columns].flatten(0, 1))
        weight = 1.0 + SEEN_WEIGHT * tokenizer.foreground(right)
    error = (weight * (shown - right).square()).mean(1, keepdim=True).float()
    places = interpolate(error, frames.shape[-2:], mode="area")
    return places.unflatten(0, (B, -1)), (rows, columns)


def remembered(world: "WorldModel", clips: Mapping[str, Tensor], draws: Draws) -> Past:
    """The clips as history: what is remembered, lightly noised, and all that goes with it."""
    if "latents" in clips:
        truth = clips["latents"].float()
    else:
        with torch.no_grad():
            truth = world.tokenizer.encode(clips["frames"]).float()
    B, T = truth.shape[:2]
    level = draws.history_level.expand(B, T)
    history = noise(clips.get("history", truth).float(), draws.history_noise, level)
    known = ~draws.hidden.repeat(1, T)
    known[:, 0] = False  # nothing led to the first frame
    text, mask = told(world, clips, draws)
    t = world.config.transformer
    inputs = Inputs(
        first_frame=torch.zeros(B, dtype=torch.int64, device=truth.device),
        latents=history,
        previous=with_previous(history, t.previous_frames, anchor=t.anchor),
        video_noise=level,
        actions=led_by(clips["actions"]),
        actions_known=known,
        action_noise=torch.zeros_like(level),
        text=text,
        text_mask=mask,
    )
    chunk = world.config.latents_per_chunk
    return Past(truth=truth, valid=clips["valid"], chunk=chunk, inputs=inputs)


def told(
    world: "WorldModel", clips: Mapping[str, Tensor], draws: Draws
) -> tuple[Tensor | None, Tensor | None]:
    """Features of what the clips were told, and their mask; of some of them nothing."""
    if world.text is None:
        return clips.get("text"), clips.get("text_mask")
    words = clips.get("words")
    if words is not None:
        nothing = world.text.config.buckets
        words = words.masked_fill(draws.untold[..., None], nothing)
    return world.tell(words, len(clips["valid"]))


def video_loss(
    world: "WorldModel", past: Past, trace: tuple[LayerTrace, ...] | None, draws: Draws
) -> tuple[Tensor, Metrics]:
    """Weighted squared error of the frames predicted from the history before each chunk."""
    truth, eps = past.truth, draws.noise
    level = draws.level.repeat_interleave(past.chunk, dim=1)  # (B, T)
    z = noise(truth, eps, level)
    inputs = dataclasses.replace(
        past.inputs, latents=z, video_noise=level, previous=past.before_chunk()
    )
    outputs = world.mixture(inputs, FORWARD, chunk_frames=past.chunk, trace=trace)
    output = outputs.video.float()
    if world.config.transformer.stem == "conv":
        clean = output
        error = (output - truth).square() / broadcast_level(level.clamp_min(0.2), truth)
    else:
        clean = x0_from_velocity(z, output, level)
        error = (output - target(truth, eps)).square()
    frames = frame_means(error, latent_weights(world, truth))
    frames = robust(frames, world.config.loss.robust)
    total = mean_over_clips(frames, past.predicted())
    blind = past.predicted() & (level == 1.0)  # from pure noise, as a step predicts
    guess = (clean.detach() - truth).square().mean((2, 3, 4))
    stay = (past.before_chunk()[:, :, -1] - truth).square().mean((2, 3, 4))
    count = blind.sum().clamp_min(1)
    metrics = {
        "video_loss": total.detach(),
        "video_mse": (guess * blind).sum() / count,
        "copy_mse": (stay * blind).sum() / count,
    }
    return total, metrics


def reading(past: Past, tokens: Tensor, clips: Clips) -> Reading:
    """The transitions of clips as a dream would remember them."""
    frames, actions = past.inputs.latents, past.inputs.actions
    assert frames is not None
    assert actions is not None
    return Reading(
        frames[:, :-1],
        frames[:, 1:],
        actions[:, 1:],
        tokens[:, 1:].float(),
        clips["rewards"],
        clips["terminated"],
        clips["state"][:, 1:],
        past.valid[:, 1:] & past.valid[:, :-1],
    )


def dreamed_reading(clips: Clips, before: Tensor, frames: Tensor, tokens: Tensor) -> Reading:
    """The transitions of dreams (B, N, ...) of the last N frames of clips; no gradients pass.

    `before` (B, 1, ...) is the frame that the dreams go on from.
    """
    first, frames = clips["latents"].shape[1] - frames.shape[1], frames.detach()
    return Reading(
        torch.cat([before, frames[:, :-1]], dim=1),
        frames,
        clips["actions"][:, first - 1 :],
        tokens.float(),
        clips["rewards"][:, first - 1 :],
        clips["terminated"][:, first - 1 :],
        clips["state"][:, first:],
        clips["valid"][:, first:],
    )


@torch.no_grad()
def read_truth(world: "WorldModel", clips: Clips, draws: Draws) -> Reading:
    """What heads learn from of clips, seen as they were.

    Without the noise and the unknown actions that the dynamics learns to bear: a dream has neither
    where it is read, and from noisy frames heads learn not to trust a place to a fraction of a
    pixel.
    """
    clear = dataclasses.replace(
        draws,
        history_level=torch.zeros_like(draws.history_level),
        hidden=torch.zeros_like(draws.hidden),
    )
    past = remembered(world, clips, clear)
    clean = world.mixture(past.inputs, FORWARD, chunk_frames=past.chunk, predict=False)
    return reading(past, clean.tokens, clips)


@torch.no_grad()
def read_dream(world: "WorldModel", clips: Clips, *, real: int, seeds: Tensor) -> Reading:
    """What heads learn from of clips that are dreamed after `real` true frames."""
    words, actions = clips.get("words"), clips["actions"]
    truth = clips["latents"].float()
    frames, tokens, _ = world.unroll(truth, actions, real=real, seeds=seeds, words=words)
    return dreamed_reading(clips, truth[:, real - 1 : real], frames.float(), tokens)


def action_loss(
    world: "WorldModel", past: Past, trace: tuple[LayerTrace, ...] | None, draws: Draws
) -> tuple[Tensor, Metrics]:
    """Velocity error of noisy actions in the batch's mode."""
    name, mode = ACTION_MODES[draws.mode]
    actions, eps = past.inputs.actions, draws.action_noise
    assert actions is not None
    level = draws.action_level.repeat_interleave(past.chunk, dim=1)
    inputs = dataclasses.replace(
        past.inputs,
        actions=noise(actions, eps, level),
        action_noise=level,
        actions_known=None,
        previous=past.before_chunk(),
    )
    if mode is JOINT:
        z = noise(past.truth, draws.noise, level)
        inputs = dataclasses.replace(inputs, latents=z, video_noise=level)
    if mode is INVERSE:
        inputs = dataclasses.replace(inputs, previous=past.inputs.previous)
    output = world.mixture(inputs, mode, chunk_frames=past.chunk, trace=trace, predict=True)
    error = (output.action.float() - target(actions, eps)).square()
    total = mean_over_clips(error, broadcast_level(past.predicted(), error).expand_as(error))
    return total, {f"{name}_loss": total.detach()}


def latent_weights(world: "WorldModel", truth: Tensor, first: Tensor | None = None) -> Tensor:
    """1, and more where something moved or is not background: (B, T, 1, h, w).

    With the first frame (B, 1, C, h, w) of dreams, also more where something stands since then.
    """
    loss = world.config.loss
    earlier = torch.cat([truth[:, :1], truth[:, :-1]], dim=1)
    moved, seen = difference(truth, earlier), difference(truth, world.tokenizer.background_latent())
    weights = 1.0 + loss.change_weight * moved + loss.foreground_weight * seen
    if first is not None and loss.standing_weight:
        weights = weights + loss.standing_weight * seen * (1.0 - difference(truth, first))
    return weights


def difference(one: Tensor, other: Tensor) -> Tensor:
    """Of latents, place by place: their largest in a channel, at most 1, (B, T, 1, h, w)."""
    return (one - other).abs().amax(2, keepdim=True).clamp_max(1.0)


def frame_means(error: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of each frame: error (B, T, C, h, w), weight (B, T, 1, h, w) to (B, T)."""
    return (weight * error).mean((2, 3, 4)) / weight.mean((2, 3, 4))


def robust(error: Tensor, c: float) -> Tensor:
    """2 sqrt(c) (sqrt(e + c) - sqrt(c)): nearly e below c, growing like its root above."""
    root: float = c**0.5
    # the difference of roots, written without cancellation
    return 2.0 * root * error / ((error + c).sqrt() + root)


def mean_over_clips(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean in each clip, then the mean over clips; both (B, ...) of one shape."""
    values, weight = values.flatten(1), weight.flatten(1).float()
    return ((weight * values).sum(1) / weight.sum(1).clamp_min(1e-6)).mean()
