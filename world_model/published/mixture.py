"""Both streams under the published windows: video alone, jointly with actions, or actions alone.

A clip is denoised as a whole. Its first `history_frames` are clean latents of the given picture:
they are told timestep 0, and they are all that actions see of the video. The video never sees an
action, so the joint pass gives the same actions as `remember` on the history frames followed by an
action pass.

Shapes: B batch, T frames, h of them history, L tokens per frame, H heads, d head width, A actions,
D width, S text tokens; a latent frame is (C, height, width).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from kairos_env.world_model.attention import grid_rotation, line_rotation
from kairos_env.world_model.config import TransformerConfig
from kairos_env.world_model.delta_net import GatedDeltaNet
from kairos_env.world_model.mixture import Heads, Lane, Visit
from kairos_env.world_model.published.windows import (
    action_attention,
    layer_dilation,
    too_short,
    video_attention,
)
from kairos_env.world_model.transformer import ActionStream, Block, Stream, VideoStream

# The delta rule reads long clips in pieces of this many tokens; its state makes that exact.
DELTA_TOKENS = 10240

KeysValues = tuple[Tensor, Tensor]
History = tuple[KeysValues | None, ...]
"""Per layer the rotated keys and the values (B, h, L, H, d) of the history frames."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """What one pass reads. Leave out the latents to run the actions alone, and the reverse."""

    latents: Tensor | None = None
    """(B, T, C, height, width); the history frames clean, the others noisy."""
    timestep: Tensor | None = None
    """(B,) of the noisy frames, 0 to 1000."""
    history_frames: int = 0
    actions: Tensor | None = None
    """(B, A, action size), noisy."""
    action_timestep: Tensor | None = None
    """(B,)."""
    text: Tensor | None = None
    """(B, S, text_dim)."""
    text_mask: Tensor | None = None
    """(B, S) bool, True where the text may be read; None: everywhere."""
    robot_state: Tensor | None = None
    """(B, state size), normalised; read as one more text token."""
    robot_state_mask: Tensor | None = None
    """(B, state size), 1 where the state is known; None: everywhere."""
    image: Tensor | None = None
    """(B, C, height, width): latents of the picture for networks that read it as tokens."""


@dataclasses.dataclass
class Lanes:
    """Both streams on their way through the layers, and what is fixed for the pass."""

    video: Lane | None
    action: Lane | None
    history_frames: int
    grid: tuple[int, int]
    """Rows and columns of tokens in a frame."""


class Velocities(NamedTuple):
    """What one pass gives."""

    video: Tensor | None
    """(B, T, C, height, width)."""
    action: Tensor | None
    """(B, A, action size)."""


class PublishedMixture(nn.Module):
    """A video stream and an action stream that share attention in every layer that has it.

    Parameters have the names of `mixture.Mixture`, so that weights move between the two.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.semantics == "causal":
            raise ValueError(
                "PublishedMixture needs semantics 'flash' or 'flex'; our own worlds are a Mixture"
            )
        if config.delta.decay != "token":
            raise ValueError(
                "PublishedMixture needs DeltaConfig(decay='token'), the unit of imported weights"
            )
        self.config = config
        self.video = VideoStream(config, frame_tokens=1)
        self.action = ActionStream(config, config.action) if config.action else None

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.video.head.parameters()).dtype

    def forward(self, clip: Clip, *, history: History | None = None) -> Velocities:
        """Predict the velocities of one clip.

        Args:
            clip: what to read.
            history: what `remember` returned, for actions without latents.
        """
        lanes = self.enter(clip)
        self.run(lanes, history=history)
        return self.read(lanes)

    def remember(self, clip: Clip) -> History:
        """Run the history frames alone and keep what actions will look at."""
        if clip.latents is None:
            raise ValueError("remember needs the latents of the history frames")
        frames = clip.latents.shape[1]
        still = torch.zeros(clip.latents.shape[0], device=clip.latents.device)
        alone = dataclasses.replace(
            clip, timestep=still, history_frames=frames, actions=None, action_timestep=None
        )
        return self.run(self.enter(alone))

    def enter(self, clip: Clip) -> Lanes:
        """Embed everything that is read."""
        grid = (0, 0)
        if clip.latents is not None:
            grid = self._grid(clip.latents)
        text, mask = self._features(clip)
        return Lanes(
            video=self._video_lane(clip, grid, text, mask) if clip.latents is not None else None,
            action=self._action_lane(clip, text, mask) if clip.actions is not None else None,
            history_frames=clip.history_frames,
            grid=grid,
        )

    def run(self, lanes: Lanes, *, history: History | None = None) -> History:
        """Move the lanes through all layers; returns the history frames' keys and values."""
        self._check_history(lanes, history)
        remembered = history or (None,) * len(self.config.layers)
        return tuple(self.run_layer(i, lanes, remembered[i]) for i in range(len(remembered)))

    def run_layer(
        self, layer: int, lanes: Lanes, remembered: KeysValues | None
    ) -> KeysValues | None:
        """One layer of both streams; returns the history frames' keys and values."""
        block = cast(Block, self.video.blocks[layer])
        partner = cast(Block, self.action.blocks[layer]) if self.action else None
        mine = Visit.enter(block, lanes.video)
        theirs = Visit.enter(partner, lanes.action)
        if mine and mine.heads:
            remembered = self._first_frames(mine.heads, lanes.history_frames)
            mixed = self._attend(mine, mine.heads, layer, lanes.history_frames)
            mine.leave(mine.attention.combine(mixed))
        elif mine:
            mine.leave(recall(cast(GatedDeltaNet, block.delta), mine.read))
        if theirs and theirs.heads:
            shared = None if block.delta else remembered
            q, k, v = theirs.heads
            theirs.leave(theirs.attention.combine(action_attention(q, k, v, history=shared)))
        return remembered

    def read(self, lanes: Lanes) -> Velocities:
        """Velocities from the tokens after the last layer."""
        video = action = None
        if lanes.video is not None:
            video = self.video.head(lanes.video.x, lanes.video.t[:, :, None], lanes.grid)
        if lanes.action is not None:
            action = cast(ActionStream, self.action).head(lanes.action.x)[:, 0]
        return Velocities(video, action)

    def _attend(self, visit: Visit, heads: Heads, layer: int, history_frames: int) -> Tensor:
        q, k, v = heads
        if self.config.published.skip_undilated:
            dilation = layer_dilation(self.config, layer)
            if dilation == 1 or too_short(q.shape[1], dilation):
                return visit.read.view_as(q)
        return video_attention(
            q, k, v, config=self.config, layer=layer, history_frames=history_frames
        )

    def _first_frames(self, heads: Heads, frames: int) -> KeysValues | None:
        return (heads.k[:, :frames], heads.v[:, :frames]) if frames else None

    def _video_lane(
        self, clip: Clip, grid: tuple[int, int], text: Tensor, mask: Tensor | None
    ) -> Lane:
        latents, timestep = cast(Tensor, clip.latents), clip.timestep
        if timestep is None:
            raise ValueError("a clip with latents needs their timestep")
        frames = torch.arange(latents.shape[1], device=latents.device)
        timesteps = timestep[:, None].expand(-1, len(frames))
        if self.config.published.separate_timestep:
            timesteps = timesteps.where(frames >= clip.history_frames, 0.0)
        place = torch.arange(grid[0] * grid[1], device=latents.device)
        rows, columns = place // grid[1], place % grid[1]
        rotation = grid_rotation(frames[None], rows, columns, self.config.head_dim)
        lane = self._lane(self.video, self.video.embed(latents), timesteps, rotation, text, mask)
        return self._with_image(lane, clip.image)

    def _action_lane(self, clip: Clip, text: Tensor, mask: Tensor | None) -> Lane:
        if self.action is None:
            raise ValueError("this network has no action stream; pass a clip without actions")
        if clip.action_timestep is None:
            raise ValueError("a clip with actions needs their timestep")
        if self.config.semantics != "flex":
            raise ValueError("actions are defined for semantics 'flex' only")
        x = self.action.embed(clip.actions)[:, None]  # (B, 1, A, D): one frame of actions
        rotation = line_rotation(torch.arange(x.shape[2], device=x.device), self.config.head_dim)
        return self._lane(self.action, x, clip.action_timestep[:, None], rotation, text, mask)

    def _lane(
        self,
        stream: Stream,
        x: Tensor,
        timesteps: Tensor,
        rotation: Tensor,
        text: Tensor,
        mask: Tensor | None,
    ) -> Lane:
        t = stream.noise.embed(timesteps)  # (B, T, D)
        rows = stream.noise.rows(t)[:, :, None]
        return Lane(x, t, rows, rotation, cast(nn.Module, stream.text)(text), mask)

    def _with_image(self, lane: Lane, image: Tensor | None) -> Lane:
        """Put the picture's tokens before the text."""
        if (image is None) != (self.video.image is None):
            needs = "needs" if image is None else "has no use for"
            raise ValueError(f"this network {needs} Clip.image (PublishedRules.image_tokens)")
        if image is not None and self.video.image is not None:
            tokens = self.video.image(image)
            lane.text = torch.cat([tokens, cast(Tensor, lane.text)], 1)
            if lane.text_mask is not None:
                seen = lane.text_mask.new_ones(tokens.shape[:2])
                lane.text_mask = torch.cat([seen, lane.text_mask], 1)
        return lane

    def _features(self, clip: Clip) -> tuple[Tensor, Tensor | None]:
        """Text features and mask, the robot's state appended as one token where it is given."""
        if clip.text is None:
            raise ValueError("networks with published weights read text: pass Clip.text")
        if clip.robot_state is None:
            return clip.text, clip.text_mask
        if self.action is None or self.action.state is None:
            raise ValueError("this network reads no robot state")
        known = clip.robot_state_mask
        if known is None:
            known = torch.ones_like(clip.robot_state)
        known = known.to(clip.robot_state.dtype)
        token = self.action.state(clip.robot_state * known)[:, None]
        mask = clip.text_mask
        if mask is None:
            mask = torch.ones(clip.text.shape[:2], dtype=torch.bool, device=clip.text.device)
        return torch.cat([clip.text, token], 1), torch.cat([mask, (known != 0).any(1, True)], 1)

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        if latents.ndim != 5 or latents.shape[2] != self.config.video.channels:
            raise ValueError(
                f"latents must be (batch, frames, {self.config.video.channels}, height, width), "
                f"got {tuple(latents.shape)}"
            )
        patch = self.config.patch
        if latents.shape[3] % patch or latents.shape[4] % patch:
            raise ValueError(
                f"latents of {tuple(latents.shape[3:])} cannot be cut into patches of {patch}"
            )
        return latents.shape[3] // patch, latents.shape[4] // patch

    def _check_history(self, lanes: Lanes, history: Sequence[KeysValues | None] | None) -> None:
        if history is None:
            return
        if lanes.video is not None:
            raise ValueError("pass either latents or the history that was remembered, not both")
        if len(history) != len(self.config.layers):
            raise ValueError(
                f"the history has {len(history)} layers, the network {len(self.config.layers)}"
            )


def recall(delta: GatedDeltaNet, x: Tensor) -> Tensor:
    """The delta rule over all tokens of a clip in order: (B, T, L, D)."""
    state, outputs = delta.empty_state(x.shape[0]), []
    for piece in torch.split(x.flatten(1, 2), DELTA_TOKENS, 1):
        y, state = delta(piece, state)
        outputs.append(y)
    return torch.cat(outputs, 1).view_as(x)
