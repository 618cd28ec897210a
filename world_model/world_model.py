"""The world model and its verbs: `start`, `step`, `observe`, `act`, `loss`.

    state             = world.start(frames, actions, seeds=...)   # B histories in
    state, prediction = world.step(state, chunk)                  # B action chunks in, frames out
    state             = world.observe(state, frames, actions)     # what truly happened instead
    proposal          = world.act(state)                          # the world's own next chunks
    loss, metrics     = world.loss(clips, generator)              # a batch of clips

State goes in and comes out; nothing of a dream hides in attributes between calls. A dream is a
function of (world, start, seed, actions): the noise of frame n comes from a counter-based stream
keyed by the dream's own seed and n, so it does not depend on who else is in the batch.

Shapes: B dreams, T frames, H W pixels, C h w a latent frame, K actions per chunk, F frames per
chunk, A = K / F actions per frame, D action size, S state size.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kairos_env.world_model.backdrop import backdrop_of, before_backdrop
from kairos_env.world_model.config import TransformerConfig, positive
from kairos_env.world_model.conv_stem import homed
from kairos_env.world_model.flow import (
    Schedule,
    noise,
    sample,
    sample_jointly,
    velocity_from_x0,
)
from kairos_env.world_model.heads import Heads, HeadsConfig, calibrated
from kairos_env.world_model.history import at_last, led_by, slide, together
from kairos_env.world_model.mixture import FORWARD, JOINT, POLICY, Heard, Inputs, Mixture, Outputs
from kairos_env.world_model.noise import counter_normal
from kairos_env.world_model.objective import Draws, LossConfig, dynamics_loss, unrolled_loss
from kairos_env.world_model.published.imported import ImportedConfig
from kairos_env.world_model.published.wan_tokenizer import WanTokenizer, WanTokenizerConfig
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.text import TextConfig, TextEncoder
from kairos_env.world_model.tokenizer import Tokenizer, TokenizerConfig

# Streams of a dream's random numbers: what each is for.
VIDEO_NOISE, HISTORY_NOISE, ACTION_NOISE = 0, 1, 2
# Ways to act, and who runs in them.
ActingMode = Literal["policy", "joint"]
ACTING_MODES = {"policy": POLICY, "joint": JOINT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Everything that is built; the environment's side of a world stands in world.json."""

    tokenizer: TokenizerConfig | WanTokenizerConfig
    transformer: TransformerConfig
    heads: HeadsConfig
    loss: LossConfig = LossConfig()
    text: TextConfig | None = None
    """How the world reads what it is told in words; None: it is told nothing, or features of
    another encoder."""
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
    backdrop: float = 0.0
    """The difference (of 0..1 colours) up to which a pixel counts as decoded like the last true
    frame's, and is shown as it truly was there; 0: frames are shown as they are decoded."""
    imported: ImportedConfig | None = None
    """How an imported network dreams, whose video no action moves; None for worlds that answer."""

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        for name in ("action_size", "chunk", "frames_per_chunk", "history", "denoise_steps"):
            positive(self, name)
        if not 0.0 <= self.backdrop < 1.0:
            raise ValueError(
                f"WorldConfig.backdrop is a difference of colours in [0, 1), got {self.backdrop}"
            )
        if self.backdrop and self.imported is not None:
            raise ValueError(
                "WorldConfig.backdrop is for cameras that stand still; imported networks show what "
                f"they decode: leave it at 0, got {self.backdrop}"
            )
        t = self.transformer
        if (self.imported is None) != (t.semantics == "causal"):
            raise ValueError(
                "WorldConfig: networks with published windows (semantics flash or flex) dream as "
                f"`imported` says, others have none; got {t.semantics!r} and {self.imported}"
            )
        if self.frames_per_chunk % self.tokenizer.temporal:
            raise ValueError(
                f"WorldConfig: the tokenizer codes {self.tokenizer.temporal} frames together; "
                f"frames_per_chunk must be a multiple of that, got {self.frames_per_chunk}"
            )
        if self.chunk % self.frames_per_chunk:
            raise ValueError(
                f"WorldConfig: a chunk of {self.chunk} actions cannot be shared evenly by "
                f"{self.frames_per_chunk} frames"
            )
        if t.action is not None and (
            t.actions_per_frame != self.actions_per_latent or t.action.channels != self.action_size
        ):
            raise ValueError(
                f"WorldConfig: the transformer takes {t.actions_per_frame} actions of "
                f"{t.action.channels} numbers per latent frame, the world gives "
                f"{self.actions_per_latent} of {self.action_size}"
            )
        if self.text is not None and self.text.dim != t.text_dim:
            raise ValueError(
                f"WorldConfig: the text encoder gives features of width {self.text.dim}, the "
                f"transformer reads {t.text_dim}; make TextConfig.dim and text_dim equal"
            )
        if t.video.channels != self.tokenizer.latent_channels:
            raise ValueError(
                f"WorldConfig: the tokenizer gives {self.tokenizer.latent_channels} channels, the "
                f"transformer takes {t.video.channels}"
            )
        if self.heads.sketched and isinstance(self.tokenizer, WanTokenizerConfig):
            raise ValueError(
                "WorldConfig: heads look at the sketches of our own tokenizer only; set "
                f"HeadsConfig.sketched to 0, got {self.heads.sketched}"
            )
        if any(size % t.patch for size in self.tokenizer.latent_size):
            raise ValueError(
                f"WorldConfig: latents of {self.tokenizer.latent_size} cannot be cut into patches "
                f"of {t.patch}"
            )

    @property
    def history_frames(self) -> int:
        """Frames that a dream is started with: `history`, in whole chunks."""
        return self.history + -self.history % self.frames_per_chunk

    @property
    def actions_per_frame(self) -> int:
        """A = K / F."""
        return self.chunk // self.frames_per_chunk

    @property
    def actions_per_latent(self) -> int:
        """Actions that lead to one latent frame, which may code several frames."""
        return self.actions_per_frame * self.tokenizer.temporal

    @property
    def latents_per_chunk(self) -> int:
        """Latent frames that a step predicts together."""
        return self.frames_per_chunk // self.tokenizer.temporal

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return (self.tokenizer.latent_channels, *self.tokenizer.latent_size)

    @property
    def sketch_channels(self) -> int:
        """Channels of what the heads see of the decoder; 0 for heads that do not look."""
        if not self.heads.sketched:
            return 0
        assert isinstance(self.tokenizer, TokenizerConfig), "others were refused"
        return self.tokenizer.sketch_channels

    @property
    def frame_tokens(self) -> int:
        """Video tokens per frame."""
        h, w = self.tokenizer.latent_size
        return (h // self.transformer.patch) * (w // self.transformer.patch)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one step of B dreams gives."""

    latents: Tensor
    """(B, F, C, h, w): of frames that are coded together, their one latent frame for each."""
    reward: Tensor
    """(B, F): reward of each frame's actions; of frames that are coded together, at their last."""
    end_probability: Tensor
    """(B, F), likewise."""
    state: Tensor
    """(B, F, S): after the last of the frames that are coded together."""
    uncertainty: Tensor
    """(B,): the error that the model expects of its state and reward, in deviations of the data."""
    frames: Tensor | None = None
    """(B, F, H, W, 3) uint8; None where decoding was not asked for."""
    actions: Tensor | None = None
    """(B, K, D): what an imported network would have done itself, in joint mode."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What B dreams would do next."""

    chunk: Tensor
    """(B, K, D), encoded; not clipped."""
    latents: Tensor | None
    """(B, F, C, h, w): the frames imagined with it in joint mode; None in policy mode."""


AnyTokenizer = Tokenizer | WanTokenizer


def make_tokenizer(config: TokenizerConfig | WanTokenizerConfig) -> AnyTokenizer:
    """The tokenizer that a config describes."""
    return WanTokenizer(config) if isinstance(config, WanTokenizerConfig) else Tokenizer(config)


class WorldModel(nn.Module):
    """Tokenizer, mixture of transformers, heads."""

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: AnyTokenizer = make_tokenizer(config.tokenizer)
        self.mixture = Mixture(config.transformer, config.frame_tokens)
        self.heads = Heads(
            config.heads,
            config.latent_shape,
            (config.frame_tokens, config.transformer.video.dim),
            config.actions_per_latent * config.action_size,
            config.sketch_channels,
        )
        self.text = TextEncoder(config.text) if config.text else None

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
            self.tokenizer.encode(frames),
            actions,
            seeds=seeds,
            text=text,
            text_mask=text_mask,
            frames=frames,
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
        frames: Tensor | None = None,
    ) -> DreamState:
        """`start` for frames that are encoded already: (B, T, C, h, w).

        Those themselves, `frames` as `start` takes them, are for the backdrop; without them dreams
        are shown before the last one as the decoder draws it.
        """
        if text is None:
            text, text_mask = self.tell(None, len(latents))
        if actions is not None:
            actions = together(actions, self.config.tokenizer.temporal)
        state = self._begin(latents, actions, seeds, text, text_mask)
        return self._arrive(state, latents, frames)

    def tell(self, words: Tensor | None, count: int) -> tuple[Tensor | None, Tensor | None]:
        """Features and mask of `count` texts, as `start` takes them; None for a world without text.

        Args:
            words: what `text.tokenize` returned; None tells every dream the empty text.
            count: B.
        """
        if self.text is None:
            return None, None
        if words is None:
            words = self.text.tokenize([""] * count)
        features, mask = self.text(words.to(self.device))
        return features, mask

    def _begin(
        self,
        latents: Tensor,
        actions: Tensor | None,
        seeds: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> DreamState:
        """One clean pass over the history; in training its gradients are kept."""
        B, T = latents.shape[:2]
        self._check_start(B, T, actions, seeds, text)
        known = torch.full((B, T), actions is not None, device=latents.device)
        known[:, 0] = False  # nothing led to the first frame
        if actions is None:
            shape = (B, T - 1, self.config.actions_per_latent, self.config.action_size)
            actions = latents.new_zeros(shape)
        # Before the first frame stands the first frame itself: nothing has moved yet.
        previous = latents[:, :1].expand(-1, self.config.transformer.previous_frames, -1, -1, -1)
        nothing = torch.zeros(B, dtype=torch.int64, device=latents.device)
        memory = self.mixture.empty_memory(B)
        blank = DreamState(memory, previous, nothing, seeds.to(nothing), text, text_mask)
        return self._remember(blank, latents, led_by(actions), known=known)[0]

    @torch.no_grad()
    def observe(
        self, state: DreamState, frames: Tensor, actions: Tensor | None = None
    ) -> DreamState:
        """Go on with what truly happened instead of with what would have been dreamed.

        A history that is observed bit by bit is remembered as one that `start` read at once.

        Args:
            state: B dreams.
            frames: (B, T, H, W, 3) uint8, the true frames that followed; T in whole chunks.
            actions: (B, T, A, D): what led to each of them; None where nobody knows.
        """
        c, (B, T) = self.config, frames.shape[:2]
        if len(state) != B or T < 1 or T % c.frames_per_chunk:
            raise ValueError(
                f"expected frames of {len(state)} dreams, in whole chunks of {c.frames_per_chunk}, "
                f"got shape {tuple(frames.shape)}"
            )
        shape = (B, T, c.actions_per_frame, c.action_size)
        if actions is not None and tuple(actions.shape) != shape:
            raise ValueError(
                "observed frames come with the actions that led to them, of shape (dreams, frames, "
                f"actions per frame, action size), here {shape}, got {tuple(actions.shape)}; pass "
                "None where they are unknown"
            )
        latents = self.tokenizer.encode(frames)
        known = torch.full(latents.shape[:2], actions is not None, device=latents.device)
        if actions is None:
            actions = latents.new_zeros(shape)
        actions = actions.unflatten(1, (T // c.tokenizer.temporal, -1)).flatten(2, 3)
        state = self._remember(state, latents, actions, known=known)[0]
        return self._arrive(state, latents, frames)

    def _arrive(self, state: DreamState, latents: Tensor, frames: Tensor | None) -> DreamState:
        """Dreams that stand at the last of true frames, and what they see there.

        Args:
            state: After them.
            latents: (B, T, C, h, w) the frames, encoded.
            frames: (B, T, H, W, 3) uint8; None where they are not known.
        """
        sketch, places = self._look(latents[:, -1:])
        backdrop = None
        if self.config.backdrop:
            drawn = self._picture(latents[:, -1:], sketch)[:, -1]
            backdrop = backdrop_of(drawn if frames is None else frames[:, -1], drawn)
        return dataclasses.replace(state, places=places, backdrop=backdrop)

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
        expected = (len(state), self.config.chunk, self.config.action_size)
        if tuple(chunk.shape) != expected:
            raise ValueError(
                "an action chunk has shape (dreams, actions, action size), here "
                f"{expected}, got {tuple(chunk.shape)}"
            )
        actions = chunk.unflatten(1, (self.config.latents_per_chunk, -1))  # (B, F / r, r A, D)
        heard = self._hear(state, actions)
        latents = self._dream(state, actions, heard, denoise_steps or self.config.denoise_steps)
        frames = torch.cat([state.previous[:, -1:], latents], dim=1)
        before = state.places
        if before is None:  # saved by a version that did not keep them
            before = self._look(frames[:, :1])[1]
        state, tokens = self._commit(state, latents, actions, heard)
        sketch, located = self._look(latents)
        if located is not None and before is not None:
            located = torch.cat([before, located], dim=1)
            state = dataclasses.replace(state, places=located[:, -1:])
            located = torch.stack([located[:, :-1], located[:, 1:]], dim=2)
        readout = self.heads(frames[:, :-1], frames[:, 1:], actions, tokens, located)
        scale = torch.cat([self.heads.reward_scale[None], self.heads.state_scale])
        r = self.config.tokenizer.temporal
        prediction = Prediction(
            latents=latents.repeat_interleave(r, dim=1),
            reward=at_last(readout.reward, r),
            end_probability=at_last(readout.end_logit.sigmoid(), r),
            state=readout.state.repeat_interleave(r, dim=1),
            uncertainty=calibrated(
                (readout.spread / scale).square().mean((1, 2)).sqrt(), self.heads.config.calibration
            ),
            frames=self._shown(state, self._picture(latents, sketch)) if decode else None,
        )
        return state, prediction

    def _shown(self, state: DreamState, frames: Tensor) -> Tensor:
        """Decoded frames before what was truly seen last."""
        if state.backdrop is None or not self.config.backdrop:
            return frames
        return before_backdrop(frames, state.backdrop, self.config.backdrop)

    def _look(self, latents: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What heads that look at the decoder's sketch see of latent frames (B, T, C, h, w).

        Returns:
            The sketches (B, T, C', 2h, 2w), and the places (B, T, numbers) of things in them.
        """
        sketched = self.heads.sketched
        if sketched is None:
            return None, None
        sketch = self._sketch(latents)
        return sketch, sketched.locate(sketch)

    def _picture(self, latents: Tensor, sketch: Tensor | None) -> Tensor:
        """Decoded frames; where the decoder has sketched them already, it goes on from there."""
        if sketch is None:
            return self.tokenizer.decode(latents)
        assert isinstance(self.tokenizer, Tokenizer), "the config refuses others"
        return self.tokenizer.finish(sketch)

    def sketch_pairs(self, frames: Tensor) -> Tensor | None:
        """The decoder's sketches of latent frames (B, T + 1, C, h, w) for the heads.

        Returns:
            (B, T, 2, C', 2h, 2w), of every frame and the one after; None for heads that do not look
            at them.
        """
        if self.heads.sketched is None:
            return None
        sketch = self._sketch(frames)
        return torch.stack([sketch[:, :-1], sketch[:, 1:]], dim=2)

    @torch.no_grad()
    def _sketch(self, latents: Tensor) -> Tensor:
        """The decoder's, of latent frames (B, T, C, h, w): (B, T, C', 2h, 2w)."""
        assert isinstance(self.tokenizer, Tokenizer), "the config refuses others"
        sketch = self.tokenizer.sketch(latents.flatten(0, 1))
        unpacked: Tensor = sketch.unflatten(0, latents.shape[:2])
        return unpacked

    def _check_start(
        self, B: int, T: int, actions: Tensor | None, seeds: Tensor, text: Tensor | None
    ) -> None:
        c = self.config
        if T < 1:
            raise ValueError("a dream starts from at least one frame, got none")
        if seeds.shape != (B,):
            raise ValueError(f"{B} histories need as many seeds, got {tuple(seeds.shape)}")
        expected = (B, T - 1, c.actions_per_latent, c.action_size)
        if actions is not None and tuple(actions.shape) != expected:
            raise ValueError(
                f"{T} frames are joined by actions of shape (dreams, frames - 1, actions per "
                f"frame, action size), here {expected}, got {tuple(actions.shape)}; pass None "
                "where they are unknown"
            )
        width = c.transformer.text_dim
        if text is not None and (text.ndim != 3 or (len(text), text.shape[-1]) != (B, width)):
            raise ValueError(
                f"this world reads text of shape ({B}, tokens, {width}), got {tuple(text.shape)}"
                if width
                else "this world reads no text: leave it out"
            )

    def _hear(self, state: DreamState, actions: Tensor) -> Heard | None:
        """What actions (B, F, A, D) say to each layer, once for all passes over their chunk."""
        inputs = Inputs(
            first_frame=state.frame,
            actions=actions,
            action_noise=torch.zeros(actions.shape[:2], device=actions.device),
            text=state.text,
            text_mask=state.text_mask,
        )
        return self.mixture.hear(inputs, state.layers, chunk_frames=actions.shape[1])

    def _dream(
        self,
        state: DreamState,
        actions: Tensor,
        heard: Heard | None,
        steps: int,
        *,
        look_again: bool = True,
    ) -> Tensor:
        """Denoise the frames of one chunk: (B, F, C, h, w)."""
        B, F = actions.shape[:2]
        shape = (F, *self.config.latent_shape)
        eps = counter_normal(state.seed, state.frame, shape, stream=VIDEO_NOISE)
        told = torch.zeros(B, F, device=eps.device)
        eps = eps.to(state.previous)
        inputs = Inputs(
            first_frame=state.frame,
            previous=state.previous[:, None].expand(B, F, *state.previous.shape[1:]),
            recollected=recollected(state, F),
            actions=actions,
            action_noise=told,
            text=state.text,
            text_mask=state.text_mask,
        )
        last: Outputs

        def velocity(z: Tensor, s: Tensor) -> Tensor:
            nonlocal last
            level = s.expand(B, F).to(z)
            last = self.mixture(
                dataclasses.replace(inputs, latents=z, video_noise=level),
                FORWARD,
                chunk_frames=F,
                memory=state.layers,
                heard=heard,
            )
            return self._velocity(last.video, z, level)

        frames = sample(velocity, eps, Schedule(steps=steps))
        if self.mixture.config.stem == "conv":
            assert last.video is not None
            # The same, without the rounding of the way there: what stands still stays to the bit.
            frames = last.video.to(eps)
        if look_again and self.mixture.config.second_look:
            assert last.laid_out is not None
            frames = self._look_again(frames, last.laid_out, inputs, heard, eps)
        if self.mixture.config.homing:
            frames = homed(frames, state.previous[:, :1], self.mixture.config.homing)
        return frames

    def _look_again(
        self, frames: Tensor, laid_out: Tensor, inputs: Inputs, heard: Heard | None, eps: Tensor
    ) -> Tensor:
        """Frames as a second look sees them where they changed, and as they are elsewhere."""
        previous = inputs.previous
        assert previous is not None
        level = eps.new_full(frames.shape[:2], self.mixture.config.second_look)
        inputs = dataclasses.replace(inputs, latents=noise(frames, eps, level), video_noise=level)
        second = self.mixture.look_again(inputs, laid_out, heard).to(eps)
        changed = (frames != previous[:, :, -1]).any(2, keepdim=True)
        return torch.where(changed, second, frames)

    def _commit(
        self,
        state: DreamState,
        latents: Tensor,
        actions: Tensor,
        heard: Heard | None,
    ) -> tuple[DreamState, Tensor]:
        """Write predicted frames to memory with one clean pass; returns the pass's video tokens."""
        B, F = actions.shape[:2]
        level = torch.full((B, F), self.config.history_noise, device=latents.device)
        if self.config.history_noise:
            eps = counter_normal(state.seed, state.frame, latents.shape[1:], stream=HISTORY_NOISE)
            latents = noise(latents, eps.to(latents), level)
        return self._remember(state, latents, actions, level=level, heard=heard)

    def _remember(
        self,
        state: DreamState,
        latents: Tensor,
        actions: Tensor,
        *,
        known: Tensor | None = None,
        level: Tensor | None = None,
        heard: Heard | None = None,
    ) -> tuple[DreamState, Tensor]:
        """Write frames (B, T, C, h, w) and what led to them (B, T, A, D) to memory in one pass.

        Args:
            state: before them.
            latents: the frames.
            actions: beside them.
            known: (B, T) bool, False where the actions are unknown; None: all known.
            level: (B, T) noise level of the frames; None: clean.
            heard: what `_hear` gave for these actions, where they are one chunk.

        Returns:
            The state after them, and the pass's video tokens.
        """
        T, clean = latents.shape[1], torch.zeros(latents.shape[:2], device=latents.device)
        previous, tail = slide(state.previous, latents, anchor=self.config.transformer.anchor)
        inputs = Inputs(
            first_frame=state.frame,
            latents=latents,
            previous=previous,
            video_noise=clean if level is None else level,
            actions=actions,
            actions_known=known,
            action_noise=clean,
            text=state.text,
            text_mask=state.text_mask,
        )
        outputs = self.mixture(
            inputs,
            FORWARD,
            chunk_frames=self.config.latents_per_chunk,
            memory=state.layers,
            heard=heard,
            commit=True,
            predict=False,
        )
        assert outputs.memory is not None
        assert outputs.tokens is not None
        after = dataclasses.replace(
            state,
            layers=outputs.memory,
            previous=tail,
            frame=state.frame + T,
            tokens=outputs.tokens[:, -1] if self.config.transformer.recollect else None,
        )
        return after, outputs.tokens

    def _velocity(self, output: Tensor | None, z: Tensor, level: Tensor) -> Tensor:
        """What the network said, as a velocity."""
        assert output is not None
        if self.config.transformer.stem == "conv":
            return velocity_from_x0(z, output, level)
        return output

    # -------------------------------------------------------------------------------- acting

    @torch.no_grad()
    def act(
        self,
        state: DreamState,
        *,
        mode: ActingMode = "policy",
        seeds: Tensor | None = None,
        denoise_steps: int = 10,
    ) -> Proposal:
        """Denoise the next action chunk of every dream: what the recorded actors would do here.

        Args:
            state: B dreams; they stay as they are.
            mode: "policy" reads the keys and values in memory and makes no frame; "joint" imagines
                the next frames together with the actions.
            seeds: (B,) int64, streams of the actions' noise; None takes the dreams' own. Different
                seeds in one state give different proposals.
            denoise_steps: passes.

        Raises:
            ValueError: the world has no action stream, or the arguments do not fit.
        """
        seeds, foresight = self._acting_seeds(state, mode, seeds), mode == "joint"
        c, B, F = self.config, len(state), self.config.latents_per_chunk
        chunk, frames = (F, c.actions_per_latent, c.action_size), (F, *c.latent_shape)
        noises = [counter_normal(seeds, state.frame, chunk, stream=ACTION_NOISE)]
        if foresight:
            noises.append(counter_normal(state.seed, state.frame, frames, stream=VIDEO_NOISE))
        previous = state.previous[:, None].expand(B, F, *state.previous.shape[1:])

        def velocities(zs: tuple[Tensor, ...], levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            level = levels[0].expand(B, F).to(zs[0])
            inputs = Inputs(
                first_frame=state.frame,
                actions=zs[0],
                action_noise=level,
                text=state.text,
                text_mask=state.text_mask,
            )
            if foresight:
                inputs = dataclasses.replace(
                    inputs,
                    latents=zs[1],
                    previous=previous,
                    video_noise=level,
                    recollected=recollected(state, F),
                )
            run = ACTING_MODES[mode]
            outputs = self.mixture(inputs, run, chunk_frames=F, memory=state.layers)
            if not foresight:
                return (outputs.action,)
            return outputs.action, self._velocity(outputs.video, zs[1], level)

        schedule = Schedule.for_actions(denoise_steps)
        start = tuple(x.to(state.previous) for x in noises)
        actions, *latents = sample_jointly(velocities, start, (schedule,) * len(start))
        return Proposal(actions.flatten(1, 2), latents[0] if foresight else None)

    def _acting_seeds(self, state: DreamState, mode: str, seeds: Tensor | None) -> Tensor:
        """The streams of the actions' noise; refuses what `act` cannot do."""
        if self.mixture.action is None:
            raise ValueError(
                "this world cannot act: it was built without an action stream "
                "(TransformerConfig.action); dream in it with `step`"
            )
        if mode not in ACTING_MODES:
            raise ValueError(f"a world acts in mode {' or '.join(ACTING_MODES)}, got {mode!r}")
        if seeds is None:
            return state.seed
        if seeds.shape != state.seed.shape:
            raise ValueError(f"{len(state)} dreams need as many seeds, got {tuple(seeds.shape)}")
        return seeds.to(state.seed)

    # ------------------------------------------------------------------------------ learning

    def calibrate(
        self, points: tuple[tuple[float, float], ...], end_threshold: float | None = None
    ) -> None:
        """From now on, translate the heads' spread by these points (`HeadsConfig.calibration`).

        With a threshold, also say from this probability on that an episode has ended.
        """
        heads = dataclasses.replace(
            self.config.heads,
            calibration=points,
            end_threshold=end_threshold or self.config.heads.end_threshold,
        )
        self.config = dataclasses.replace(self.config, heads=heads)
        self.heads.config = heads

    def variant(
        self, *, frame_size: tuple[int, int] | None = None, loss: LossConfig | None = None
    ) -> "WorldModel":
        """The same weights at another frame size or under another loss; nothing is copied.

        At another size the heads, which are made for the world's own, cannot be trained.
        """
        c = self.config
        tokenizer = dataclasses.replace(
            c.tokenizer, frame_size=frame_size or c.tokenizer.frame_size
        )
        config = dataclasses.replace(c, loss=loss or c.loss, tokenizer=tokenizer)
        if config == c:
            return self
        if tokenizer != c.tokenizer and config.loss.heads_weight:
            raise ValueError(
                f"frames of {frame_size} in a world of {c.tokenizer.frame_size}: its heads cannot "
                "read them; set LossConfig.heads_weight to 0"
            )
        with torch.device("meta"):
            world = WorldModel(config)
        world.heads = self.heads
        weights = self.state_dict()
        name = "tokenizer.background"
        weights[name] = interpolate(weights[name][None], tokenizer.frame_size, mode="area")[0]
        world.load_state_dict(weights, assign=True)
        return world

    def draw(self, clips: Mapping[str, Tensor], generator: torch.Generator) -> Draws:
        """Every random number that `loss` needs for these clips."""
        return Draws.draw(self.config, clips, generator)

    def loss(self, clips: Mapping[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """How badly dynamics and heads explain a batch of clips; see `objective.dynamics_loss`.

        The loss of a batch is the mean over its clips, so slices of one batch (with the same slices
        of its draws) can be worked on one after another, or by several processes.
        """
        return dynamics_loss(self, clips, draws)

    def unroll(
        self,
        latents: Tensor,
        actions: Tensor,
        *,
        real: int,
        seeds: Tensor,
        words: Tensor | None = None,
        look_again: bool = True,
        state: DreamState | None = None,
    ) -> tuple[Tensor, Tensor, DreamState]:
        """Dream clips on after `real` true frames, gradients kept.

        Args:
            latents: (B, T, C, h, w) the clips; only the first `real` frames are looked at.
            actions: (B, T - 1, A, D).
            real: True frames to begin with.
            seeds: (B,) int64.
            words: What the clips were told, tokenized.
            look_again: As a dream does, where the world has a second look.
            state: Dreams that stand at the last of the `real` frames already, to be dreamed on;
                None begins them there.

        Returns:
            The dreamed frames (B, T - real, C, h, w), the tokens of their clean passes
            (B, T - real, L, D), and where the dreams stand then.
        """
        F = self.config.latents_per_chunk
        if state is None:
            told = self.tell(words, len(latents))
            state = self._begin(latents[:, :real], actions[:, : real - 1], seeds, *told)
        frames, tokens, steps = [], [], self.config.denoise_steps
        for t in range(real - 1, latents.shape[1] - 1, F):
            chunk = actions[:, t : t + F]
            heard = self._hear(state, chunk)
            dreamed = self._dream(state, chunk, heard, steps, look_again=look_again)
            state, seen = self._commit(state, dreamed, chunk, heard)
            frames.append(dreamed)
            tokens.append(seen)
        return torch.cat(frames, dim=1), torch.cat(tokens, dim=1), state

    def unrolled_loss(
        self,
        clips: Mapping[str, Tensor],
        *,
        real: int,
        seeds: Tensor,
        state: DreamState | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], DreamState]:
        """How far a dream strays from its clips; see `objective.unrolled_loss`."""
        return unrolled_loss(self, clips, real=real, seeds=seeds, state=state)

    @torch.no_grad()
    def rollout(
        self,
        latents: Tensor,
        actions: Tensor,
        *,
        real: int,
        seeds: Tensor,
        words: Tensor | None = None,
    ) -> Tensor:
        """What the dream remembers of clips after `real` true frames: (B, T, C, h, w).

        Training on these instead of the truth shows the model its own errors.
        """
        frames, _, _ = self.unroll(latents, actions, real=real, seeds=seeds, words=words)
        return torch.cat([latents[:, :real], frames], dim=1)


def recollected(state: DreamState, frames: int) -> Tensor | None:
    """What the next `frames` frames recollect of the last one: (B, frames, L, D)."""
    if state.tokens is None:
        return None
    return state.tokens[:, None].expand(-1, frames, -1, -1)
