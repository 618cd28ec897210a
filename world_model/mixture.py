"""Mixture of transformers: a video stream and an action stream that share attention in every layer.

One model, four modes. A mode says which streams run and who sees whom; the noise levels come with
the inputs.

| mode | video | action | for |
|---|---|---|---|
| FORWARD | noisy | clean; video sees the actions of its chunk and before | a step of the dream |
| JOINT | noisy | noisy; both see each other | a policy with foresight |
| POLICY | not run: its keys and values are in memory | noisy; sees history only | fast deployment |
| INVERSE | clean | noisy; sees the frames before and after | labels for action-free video |

In every mode a chunk sees *history* (earlier chunks, video and actions) through each layer's
window, and GLA layers remember all earlier video. The same `forward` serves three passes: streaming
(`memory` holds the past), parallel (many chunks in one call), and the noisy half of training
(`trace` holds a clean run of the same frames).

Shapes: B batch, T frames, L video tokens and A action tokens per frame, D width, C h w latents, P
previous frames.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from kairos_env.kernels.window_attention.cache import FrameCache, append_frames
from kairos_env.kernels.window_attention.op import window_attention
from kairos_env.world_model.attention import Attention, grid_angles, rotation_at
from kairos_env.world_model.conditioning import two_layers
from kairos_env.world_model.config import TransformerConfig
from kairos_env.world_model.conv_stem import ConvHead, ConvStem
from kairos_env.world_model.delta_net import DeltaState, GatedDeltaNet
from kairos_env.world_model.state import LayerMemory
from kairos_env.world_model.transformer import (
    ActionStream,
    Block,
    LookbackEmbed,
    Stream,
    VideoStream,
)

# The network is told 1000 times the noise level, as the published one is.
TIMESTEPS = 1000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """Which streams run, and who sees whom inside a chunk."""

    video: bool = True
    action: bool = True
    video_sees_actions: bool
    action_sees_frames: bool


FORWARD = Mode(video_sees_actions=True, action_sees_frames=False)
JOINT = Mode(video_sees_actions=True, action_sees_frames=True)
POLICY = Mode(video=False, video_sees_actions=False, action_sees_frames=False)
INVERSE = Mode(video_sees_actions=False, action_sees_frames=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What one pass over T frames reads."""

    first_frame: Tensor
    """(B,) int64 number of the first frame, for the rotation."""
    latents: Tensor | None = None
    """(B, T, C, h, w), noisy or clean."""
    previous: Tensor | None = None
    """(B, T, P, C, h, w) clean frames before each, for stems that look back."""
    video_noise: Tensor | None = None
    """(B, T) noise level of each frame."""
    actions: Tensor | None = None
    """(B, T, A, action size): the actions that lead to each frame."""
    actions_known: Tensor | None = None
    """(B, T) bool; False puts a learned token in place of a frame's actions. None: all known."""
    action_noise: Tensor | None = None
    """(B, T)."""
    text: Tensor | None = None
    """(B, S, text_dim)."""
    text_mask: Tensor | None = None
    recollected: Tensor | None = None
    """(B, T, L, D) tokens of the clean frame before each, for a head that reads them."""


@dataclasses.dataclass(frozen=True)
class LayerTrace:
    """What one layer had in a clean run: keys, values, and delta states before every chunk."""

    k: Tensor
    v: Tensor
    delta: DeltaState | None


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What one pass gives."""

    video: Tensor | None
    """(B, T, C, h, w): clean frames with a convolutional head, the velocity with a patch head."""
    tokens: Tensor | None
    """(B, T, L, D): video tokens after the last layer, for the heads."""
    action: Tensor | None
    """(B, T, A, action size): velocity."""
    memory: tuple[LayerMemory, ...] | None
    trace: tuple[LayerTrace, ...] | None
    laid_out: Tensor | None = None
    """(N, channels, h, w): the tokens as a convolutional head reads them."""


class Heads(NamedTuple):
    """Queries, keys and values of one stream in one layer, each (B, T, tokens, H, d)."""

    q: Tensor
    k: Tensor
    v: Tensor


class Seen(NamedTuple):
    """Keys and values that a layer may attend to, of all streams: (B, T, tokens, H, d)."""

    k: Tensor
    v: Tensor


@dataclasses.dataclass(frozen=True)
class Heard:
    """What the actions of a chunk say."""

    layers: tuple[Heads, ...]
    """To each layer."""
    time: Tensor | None
    """(B, T, D): to the embedding of the noise level."""


@dataclasses.dataclass
class Lane:
    """One stream on its way through the layers."""

    x: Tensor
    """(B, T, tokens, D)."""
    t: Tensor
    """(B, T, D): what a frame's noise level (and actions) say."""
    noise_rows: Tensor
    """(B, T, 1, 6, D): the modulation that follows from t."""
    rotation: Tensor
    text: Tensor | None
    text_mask: Tensor | None
    features: Tensor | None = None
    """The stem's feature map, which the convolutional head reads again."""


@dataclasses.dataclass(frozen=True)
class Past:
    """What a layer may look back at, and how frames are grouped."""

    memory: LayerMemory | None
    trace: LayerTrace | None
    chunk_frames: int
    heard: Heads | None = None
    """What the actions say, where the action stream has been run before."""


class Mixture(nn.Module):
    """Both streams and the way they meet."""

    def __init__(self, config: TransformerConfig, frame_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.frame_tokens = frame_tokens
        self.video = VideoStream(config, frame_tokens)
        self.action = ActionStream(config, config.action) if config.action else None
        self.action_to_time = (
            two_layers(config.action.channels * config.actions_per_frame, config.video.dim)
            if config.action and config.action_conditions_time
            else None
        )

    def let_through(self, layer: int) -> None:
        """Let a layer change no token, of frames or actions, until it has learned to."""
        for stream in (self.video, self.action):
            if stream is not None:
                cast(Block, stream.blocks[layer]).let_through()

    def empty_memory(self, batch: int) -> tuple[LayerMemory, ...]:
        """The memory of a dream that has seen nothing."""
        c = self.config
        actions = c.actions_per_frame if c.action else 0

        def layer(block: Block) -> LayerMemory:
            tokens = actions if block.delta else self.frame_tokens + actions
            like = block.modulation
            cache = FrameCache.empty(
                batch,
                c.window,
                c.layer_dilation(block.kind),
                tokens,
                c.heads,
                c.head_dim,
                like.device,
                like.dtype,
            )
            return LayerMemory(cache, block.delta.empty_state(batch) if block.delta else None)

        return tuple(layer(cast(Block, block)) for block in self.video.blocks)

    def forward(
        self,
        inputs: Inputs,
        mode: Mode,
        *,
        chunk_frames: int,
        memory: Sequence[LayerMemory] | None = None,
        trace: Sequence[LayerTrace] | None = None,
        heard: Heard | None = None,
        commit: bool = False,
        record: bool = False,
        predict: bool = True,
    ) -> Outputs:
        """Run the streams over T frames.

        Args:
            inputs: what to read.
            mode: who runs and who sees whom.
            chunk_frames: frames that are denoised together.
            memory: the past of these frames; None when there is none.
            trace: a clean run of the same frames to look back at instead of these (training).
            heard: what `hear` gave for these actions; the action stream is not run again.
            commit: also return the memory with these frames added; they should be clean. Needs
                `memory`.
            record: also return the trace of this run. Needs T to be whole chunks.
            predict: also read frames and actions from the last layer.
        """
        video = self._video_lane(inputs, mode, heard) if mode.video else None
        action = self._action_lane(inputs) if mode.action and heard is None else None
        kept: list[LayerMemory] = []
        traced: list[LayerTrace] = []
        for i in range(len(self.config.layers)):
            past = Past(
                memory=memory[i] if memory is not None else None,
                trace=trace[i] if trace is not None else None,
                chunk_frames=chunk_frames,
                heard=heard.layers[i] if heard is not None else None,
            )
            keys, delta = self._layer(i, video, action, mode, past, record)
            if commit and past.memory is not None:
                frames = append_frames(past.memory.frames, keys.k, keys.v)
                kept.append(LayerMemory(frames, delta))
            if record:
                traced.append(LayerTrace(keys.k, keys.v, delta))
        laid_out = None
        if video and predict and isinstance(self.video.head, ConvHead):
            tokens = self._recollected(video.x, inputs)
            laid_out = self.video.head.lay_out(tokens, cast(Tensor, inputs.latents).shape[-2:])
        return Outputs(
            self._read_video(video, inputs, laid_out) if video and predict else None,
            video.x if video else None,
            self._read_action(action) if action and predict else None,
            tuple(kept) if commit else None,
            tuple(traced) if record else None,
            laid_out,
        )

    def hear(
        self, inputs: Inputs, memory: Sequence[LayerMemory], *, chunk_frames: int
    ) -> Heard | None:
        """What the actions of one chunk say to each layer; None for a world without them.

        In FORWARD mode they see no frame of it, so all passes over the chunk hear the same.
        """
        lane = self._action_lane(inputs)
        if lane is None:
            return None
        layers: list[Heads] = []
        for i, block in enumerate(cast(ActionStream, self.action).blocks):
            past = Past(memory[i], None, chunk_frames)
            visit = cast(Visit, Visit.enter(cast(Block, block), lane, memory[i].frames.k.dtype))
            heads = cast(Heads, visit.heads)
            layers.append(heads)
            if i + 1 < len(self.config.layers):  # nobody reads what the last layer would write
                visit.leave(visit.attention.combine(self._window(i, past, None)(*heads)))
        told = self._told(inputs) if self.action_to_time is not None else None
        return Heard(tuple(layers), told)

    def look_again(self, inputs: Inputs, laid_out: Tensor, heard: Heard | None) -> Tensor:
        """Read frames by stem and head alone, with the tokens of an earlier pass.

        Args:
            inputs: with the latents (and their noise level) to look at.
            laid_out: `Outputs.laid_out` of the earlier pass.
            heard: as in the earlier pass.

        Returns:
            Clean frames (B, T, C, h, w).
        """
        stem, head = self.video.embed, self.video.head
        latents, previous, noise = inputs.latents, inputs.previous, inputs.video_noise
        if not isinstance(stem, ConvStem) or latents is None or previous is None or noise is None:
            raise ValueError(
                "a second look needs a convolutional stem, and latents with their noise level and "
                "the frames before them"
            )
        t = self._video_time(inputs, noise, FORWARD, heard)
        frames: Tensor = head(laid_out, t, stem.features(latents, previous, t), previous)
        return frames

    def _layer(
        self, i: int, video: Lane | None, action: Lane | None, mode: Mode, past: Past, record: bool
    ) -> tuple[Seen, DeltaState | None]:
        """One layer of both streams: moves the lanes on, returns the keys that later frames see."""
        block = cast(Block, self.video.blocks[i])
        partner = cast(Block, self.action.blocks[i]) if self.action else None
        dtype = past.memory.frames.k.dtype if past.memory else None
        mine = Visit.enter(block, video, dtype)
        theirs = Visit.enter(partner, action, dtype)
        joint = self._join(mine, theirs, past.heard)
        history = (past.trace.k, past.trace.v) if past.trace else (joint.k, joint.v)
        attend = self._window(i, past, history)
        delta = None
        if mine and mine.heads:
            seen = joint if mode.video_sees_actions else mine.heads
            mine.leave(mine.attention.combine(attend(mine.heads.q, seen.k, seen.v)))
        elif mine:
            mixed, delta = recall(cast(GatedDeltaNet, block.delta), mine.read, past, record)
            mine.leave(mixed)
        if theirs and theirs.heads:
            seen = joint if mode.action_sees_frames else theirs.heads
            theirs.leave(theirs.attention.combine(attend(theirs.heads.q, seen.k, seen.v)))
        return joint, delta

    def _window(
        self, i: int, past: Past, history: tuple[Tensor, Tensor] | None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """A layer's attention of queries to keys and values of their chunk, and to what was."""
        block = cast(Block, self.video.blocks[i])
        return partial(
            window_attention,
            window=self.config.window,
            dilation=self.config.layer_dilation(block.kind),
            chunk_frames=past.chunk_frames,
            history=history,
            cache=past.memory.frames if past.memory else None,
        )

    def _join(self, mine: "Visit | None", theirs: "Visit | None", heard: Heads | None) -> Seen:
        """What others may see of a frame: video and action tokens, or those that this layer has."""
        heads = [visit.heads for visit in (mine, theirs) if visit and visit.heads]
        heads += [heard] if heard else []
        if len(heads) == 2:
            first, second = heads
            k = torch.cat([first.k, second.k], dim=2)
            return Seen(k, torch.cat([first.v, second.v], dim=2))
        if heads:
            return Seen(heads[0].k, heads[0].v)
        x = cast(Visit, mine).read  # a GLA layer of a world without actions: nothing to attend to
        none = x.new_zeros(*x.shape[:2], 0, self.config.heads, self.config.head_dim)
        return Seen(none, none)

    def _video_lane(self, inputs: Inputs, mode: Mode, heard: Heard | None) -> Lane:
        latents, noise = inputs.latents, inputs.video_noise
        if latents is None or noise is None:
            raise ValueError("a mode that runs the video stream needs latents and video_noise")
        stream = self.video
        t = self._video_time(inputs, noise, mode, heard)
        features = None
        if isinstance(stream.embed, LookbackEmbed):
            x = stream.embed(latents, cast(Tensor, inputs.previous))
        elif inputs.previous is not None:
            x, features = stream.embed(latents, inputs.previous, t)
        else:
            x = stream.embed(latents)
        rows, columns = (size // self.config.patch for size in latents.shape[-2:])
        rotation = self._rotation(inputs, x.shape[1], rows, columns)
        return self._lane(stream, inputs, x, t, rotation, features)

    def _video_time(self, inputs: Inputs, noise: Tensor, mode: Mode, heard: Heard | None) -> Tensor:
        """What frames' noise levels, and their actions, say: (B, T, D)."""
        t: Tensor = self.video.noise.embed(TIMESTEPS * noise)
        if self.action_to_time is not None and mode.video_sees_actions:
            told = heard.time if heard is not None else None
            t = t + (self._told(inputs) if told is None else told)
        return t

    def _action_lane(self, inputs: Inputs) -> Lane | None:
        stream = self.action
        if stream is None:
            return None
        if inputs.actions is None or inputs.action_noise is None:
            raise ValueError("this world has an action stream: pass actions and action_noise")
        x = stream.embed(inputs.actions)  # (B, T, A, D)
        if inputs.actions_known is not None and stream.unknown is not None:
            x = torch.where(inputs.actions_known[:, :, None, None], x, stream.unknown)
        t = stream.noise.embed(TIMESTEPS * inputs.action_noise)
        rotation = self._rotation(inputs, x.shape[1], 1, x.shape[2])
        return self._lane(stream, inputs, x, t, rotation, None)

    def _lane(
        self,
        stream: Stream,
        inputs: Inputs,
        x: Tensor,
        t: Tensor,
        rotation: Tensor,
        features: Tensor | None,
    ) -> Lane:
        text = None
        if stream.text is not None:
            # Told nothing, a world reads one token of zeros: in training as in a dream.
            told = inputs.text
            if told is None:
                told = x.new_zeros(len(x), 1, cast(int, self.config.text_dim))
            text = stream.text(told)
        rows = stream.noise.rows(t)[:, :, None]
        return Lane(x, t, rows, rotation, text, inputs.text_mask, features)

    def _rotation(self, inputs: Inputs, T: int, rows: int, columns: int) -> Tensor:
        first, size = inputs.first_frame, self.config.head_dim
        frames = first[:, None] + torch.arange(T, device=first.device)
        return rotation_at(frames, grid_angles(rows, columns, size, first.device), size)

    def _told(self, inputs: Inputs) -> Tensor:
        """What a frame's actions add to its embedding: the less, the less is known of them."""
        assert self.action_to_time is not None
        if inputs.actions is None or inputs.action_noise is None:
            raise ValueError("this world has an action stream: pass actions and action_noise")
        told: Tensor = self.action_to_time(inputs.actions.flatten(2))
        certain = 1.0 - inputs.action_noise
        if inputs.actions_known is not None:
            certain = certain * inputs.actions_known
        return told * certain[:, :, None]

    def _read_video(self, lane: Lane, inputs: Inputs, laid_out: Tensor | None) -> Tensor:
        latents = cast(Tensor, inputs.latents)
        if laid_out is not None:
            previous = cast(Tensor, inputs.previous)
            frames: Tensor = self.video.head(laid_out, lane.t, lane.features, previous)
            return frames
        grid = (latents.shape[-2] // self.config.patch, latents.shape[-1] // self.config.patch)
        velocity: Tensor = self.video.head(lane.x, lane.t[:, :, None], grid)
        return velocity

    def _recollected(self, tokens: Tensor, inputs: Inputs) -> Tensor:
        """Tokens with what the frame before knew."""
        if self.video.recollect is None or inputs.recollected is None:
            return tokens
        more: Tensor = self.video.recollect(inputs.recollected.to(tokens))
        return tokens + more

    def _read_action(self, lane: Lane) -> Tensor:
        actions: Tensor = cast(ActionStream, self.action).head(lane.x)
        return actions


@dataclasses.dataclass
class Visit:
    """One stream in one layer, between what the mixer reads and what it wrote."""

    block: Block
    lane: Lane
    rows: tuple[Tensor, ...]
    read: Tensor
    heads: Heads | None

    @classmethod
    def enter(
        cls, block: Block | None, lane: Lane | None, dtype: torch.dtype | None = None
    ) -> "Visit | None":
        """Modulate the tokens and, in an attention layer, project them.

        Heads take the memory's dtype: autocast may compute in another one.
        """
        if block is None or lane is None:
            return None
        rows = block.rows(lane.noise_rows)
        read = block.mixer_input(lane.x, rows)
        heads = None
        if block.attention:
            heads = Heads(*(x.to(dtype) for x in block.attention.project(read, lane.rotation)))
        return cls(block, lane, rows, read, heads)

    @property
    def attention(self) -> Attention:
        """The block's attention; only asked for where there are heads."""
        return cast(Attention, self.block.attention)

    def leave(self, mixed: Tensor) -> None:
        """Finish the block with what the mixer wrote."""
        lane = self.lane
        lane.x = self.block.after_mixer(lane.x, mixed, self.rows, lane.text, lane.text_mask)


def recall(
    delta: GatedDeltaNet, x: Tensor, past: Past, record: bool
) -> tuple[Tensor, DeltaState | None]:
    """The GLA layer over frames of tokens x (B, T, L, D).

    It streams from a memory, runs in parallel, records, or starts from a trace's states.
    """
    B, T, L, _ = x.shape
    tokens = x.flatten(1, 2)
    if past.trace is not None and past.trace.delta is not None:
        chunks = T // past.chunk_frames  # every chunk starts from the clean state before it
        states = past.trace.delta
        start = DeltaState(states.memory.flatten(0, 1), states.tail.flatten(0, 1))
        y, _ = delta(tokens.reshape(B * chunks, past.chunk_frames * L, -1), start)
        return y.reshape(x.shape), None
    begin = past.memory.delta if past.memory else None
    begin = begin or delta.empty_state(B)
    if record:
        y, states = delta.forward_with_boundaries(tokens, begin, past.chunk_frames * L)
        return y.view_as(x), states
    y, end = delta(tokens, begin)
    return y.view_as(x), end
