"""What a transition means: reward, end, simulator state, and how sure the model is.

The heads read two consecutive latent frames, the action between them, and the transformer's tokens
of the later frame (its memory's view). They are small convolutions on the latents because rewards
and ends hang on positions, which pooled tokens blur.

Shapes: B batch, T transitions, C h w a latent frame, L tokens, D token width, S state size.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kairos_env.world_model.config import positive
from kairos_env.world_model.conv_stem import set_to_zero
from kairos_env.world_model.tables import table

# The expected error, in deviations, at which a number of the state counts as much as the reward,
# and the most that one can count.
ORDINARY, MOST_WORTH = 0.2, 4.0
# What the error of the reward counts: one number beside many, and the one that is practised for.
REWARD_WORTH = 5.0
# How much larger a motion from frame to frame is made beside the places that it leads to.
MOTION = 5.0
# The least distance, in halves of a picture, that is told from none.
NEAR = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Sizes and loss weights of the heads."""

    state_size: int
    """Size of the simulator state that is estimated; 0 where the data has none."""
    hidden: int = 256
    channels: int = 64
    places: int = 0
    """Kinds of things whose places are looked for: the most exact thing to know of a picture."""
    sketched: int = 0
    """Kinds of things whose places are looked for in the decoder's sketch of the frames, which
    shows them to a fraction of a latent's width."""
    straight: bool = False
    """Whether reward and state are also read off those places by straight lines: a place is most
    of what a state says, and layers of curves give it back less exactly."""
    measured: int = 0
    """Distances that are measured between those places, where also is asked how surely each thing
    is seen at all. Whether two things touch hangs on a distance, to a fraction of a pixel."""
    end_weight: float = 10.0
    """How much more a terminal transition counts than an ordinary one."""
    end_threshold: float = 0.5
    """The probability from which the dream says that the episode has ended."""
    calibration: tuple[tuple[float, float], ...] = ()
    """Points (stated, true) of the map from the heads' own spread to the error that dreams of
    held-out episodes really had, both rising; none: what the heads say is taken as it is."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        positive(self, "hidden")
        positive(self, "channels")
        for name in ("state_size", "places", "sketched", "measured"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"HeadsConfig.{name} must not be negative, got {getattr(self, name)}"
                )
        for axis in zip(*self.calibration, strict=True):
            if not (min(axis) > 0 and all(a <= b for a, b in itertools.pairwise(axis))):
                raise ValueError(
                    "HeadsConfig.calibration must be points of positive, rising numbers, "
                    f"got {self.calibration}"
                )
        for name in ("straight", "measured"):
            if getattr(self, name) and not self.sketched:
                raise ValueError(
                    f"HeadsConfig.{name} is about `sketched` kinds of things, of which there are "
                    "none"
                )
        if not 0.0 < self.end_threshold < 1.0:
            raise ValueError(
                f"HeadsConfig.end_threshold must lie in (0, 1), got {self.end_threshold}"
            )


class Reading(NamedTuple):
    """Transitions, and what the heads should say of them."""

    before: Tensor
    """(B, T, C, h, w) the frames that were acted on."""
    after: Tensor
    """(B, T, C, h, w) the frames that followed."""
    actions: Tensor
    """(B, T, A, action size) what was done between them."""
    tokens: Tensor
    """(B, T, L, D) the transformer's tokens of `after`."""
    reward: Tensor
    """(B, T)."""
    ended: Tensor
    """(B, T) bool."""
    state: Tensor
    """(B, T, S)."""
    valid: Tensor
    """(B, T) bool: transitions that exist; or how much each of them counts, from 0 to 1."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Reading":
        """Every tensor changed alike."""
        return Reading(*map(change, self))

    @classmethod
    def joined(cls, readings: Sequence["Reading"]) -> "Reading":
        """Their clips, one after the other; all of as many transitions."""
        return cls(*map(torch.cat, zip(*readings, strict=True)))

    @property
    def frames(self) -> Tensor:
        """(B, T + 1, C, h, w): the first frame, and all that followed."""
        return torch.cat([self.before[:, :1], self.after], dim=1)

    def existing(self) -> "Reading":
        """The transitions that exist, each a clip of its own: (N, 1, ...)."""
        return self.each(lambda x: x[self.valid][:, None])


class Readout(NamedTuple):
    """What the heads say of each transition."""

    reward: Tensor
    """(B, T)."""
    end_logit: Tensor
    """(B, T)."""
    state: Tensor
    """(B, T, S)."""
    spread: Tensor
    """(B, T, 1 + S): the error that the model expects of its reward and state, in their units."""


def calibrated(spread: Tensor, points: tuple[tuple[float, float], ...]) -> Tensor:
    """The error to be expected where a spread is stated.

    Straight between the points; beyond the first and the last in proportion to them.
    """
    if not points:
        return spread
    stated, slope, offset = _lines(points, spread.dtype, spread.device)
    line = torch.searchsorted(stated, spread.contiguous())
    return (spread * slope[line] + offset[line]).clamp_min(0)


@table
def _lines(
    points: tuple[tuple[float, float], ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the lines from point to point begin and end, their slopes and offsets.

    The first comes from (0, 0), and the last goes on away from there.
    """
    corners = [(0.0, 0.0), *points, (2 * points[-1][0], 2 * points[-1][1])]
    lines = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
        lines.append((x1, slope, y0 - slope * x0))
    stated, slopes, offsets = (
        torch.tensor(column, dtype=dtype, device=device) for column in zip(*lines, strict=True)
    )
    return stated[:-1], slopes, offsets


def worth(log_spread: Tensor) -> Tensor:
    """How much the error of the reward and of each number of the state counts: (..., 1 + S).

    What can be known exactly is to be known exactly: a number of the state counts in inverse
    proportion to the error that is expected of it, within bounds. Without that, numbers that
    nobody can read off a picture (which side of a square is up) outweigh those that can be. The
    reward is not excused where it is hard to tell: that is where it matters.
    """
    weight = (ORDINARY * (-log_spread).exp()).clamp_max(MOST_WORTH)
    weight[..., 0] = REWARD_WORTH
    return weight


class Places(nn.Module):
    """Where things are: of each learned kind of thing, the centre of what looks like it.

    A small object fills one or two places of a latent frame. Its centre, a mean of coordinates
    weighed by a softmax, is read from them far more easily than from all places in a row.
    """

    def __init__(
        self, channels: int, width: int, kinds: int, *, depth: int = 2, noticing: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels + 2, width, 3, padding=1), nn.SiLU()]
        for _ in range(depth - 1):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
        self.look = nn.Sequential(*layers, nn.Conv2d(width, kinds, 1))
        self.notice = nn.Conv2d(width, kinds, 1) if noticing else None
        if self.notice is not None:
            set_to_zero(self.notice)

    def forward(self, x: Tensor) -> Tensor:
        """Look at (N, channels, h, w).

        Returns:
            Coordinates in [-1, 1] of each kind, (N, 2 kinds); where it notices whether things are
            there at all, how surely, from 0 to 1, beside them: (N, 3 kinds).
        """
        grid = _coordinates(x.shape[-2], x.shape[-1], x.dtype, x.device)
        seen = self.look[:-1](torch.cat([x, grid.expand(len(x), -1, -1, -1)], dim=1))
        share = self.look[-1](seen).float().flatten(2).softmax(-1)
        centres: Tensor = share @ grid.float().flatten(1).T  # (N, kinds, 2)
        if self.notice is None:
            return centres.flatten(1)
        sure = self.notice(seen).float().flatten(2).amax(-1).sigmoid()
        return torch.cat([centres.flatten(1), sure], dim=1)


@table
def _coordinates(h: int, w: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Row and column of every place, from -1 to 1: (2, h, w)."""
    rows, columns = (torch.linspace(-1.0, 1.0, size, dtype=dtype, device=device) for size in (h, w))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


class Sketched(nn.Module):
    """Where things are in the decoder's sketch of two frames, and how far they have moved.

    The decoder has learned from every pixel where a thing is whose latents it sees; heads that
    learn it anew, from a few numbers a frame, know it less exactly after equally many updates.
    """

    def __init__(self, config: HeadsConfig, channels: int, outputs: int) -> None:
        super().__init__()
        self.kinds = kinds = config.sketched
        self.places = Places(channels, kinds, kinds, depth=1, noticing=config.measured > 0)
        self.out = nn.Linear(4 * kinds, config.hidden, bias=False)
        self.lines = nn.Linear(4 * kinds, outputs, bias=False) if config.straight else None
        if self.lines is not None:
            set_to_zero(self.lines)
        self.measured = Measured(config, outputs) if config.measured else None

    def locate(self, sketch: Tensor) -> Tensor:
        """What `Places` says of sketches (..., channels, H, W): (..., numbers)."""
        found = self.places(F.silu(sketch.flatten(0, -4)))
        places: Tensor = found.unflatten(0, sketch.shape[:-3])
        return places

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Places (..., 2, numbers) in the frame before and after.

        Returns:
            (..., features) for the layers behind, and (..., lines) straight from the places.
        """
        centres = places[..., : 2 * self.kinds]
        before, after = centres.unbind(-2)
        seen = torch.cat([after, MOTION * (after - before)], dim=-1)
        features, lines = self.out(seen), None if self.lines is None else self.lines(seen)
        if self.measured is not None:
            more, further = self.measured(centres, places[..., 2 * self.kinds :])
            features, lines = features + more, further if lines is None else lines + further
        return features, lines


class Measured(nn.Module):
    """Distances between things, and the places of those that are seen.

    A learned difference of places, the same for rows and columns, has a length: where it is of two
    things, their distance, which layers of curves hardly find in coordinates to a part in a
    hundred. A thing out of sight has no place in a picture: what is looked for is then found
    anywhere, so a place counts as surely as its thing is seen.

    All that it says begins at zero, so that heads which take it on begin as they were.
    """

    def __init__(self, config: HeadsConfig, outputs: int) -> None:
        super().__init__()
        kinds, distances = config.sketched, config.measured
        self.difference = nn.Linear(kinds, distances, bias=False)
        nn.init.normal_(self.difference.weight, std=kinds**-0.5)
        self.offset = nn.Parameter(torch.zeros(2, distances))
        features = 6 * kinds + 4 * distances
        self.out = nn.Linear(features, config.hidden, bias=False)
        self.lines = nn.Linear(features, outputs, bias=False)
        for layer in (self.out, self.lines):
            set_to_zero(layer)

    def distances(self, centres: Tensor) -> Tensor:
        """Of centres (..., 2 kinds): (..., distances)."""
        pairs = centres.unflatten(-1, (-1, 2)).transpose(-1, -2)  # (..., 2, kinds)
        squares = (self.difference(pairs) + self.offset).square().sum(-2)
        lengths: Tensor = (squares + NEAR**2).sqrt()
        return lengths

    def forward(self, centres: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
        """Read centres (..., 2, 2 kinds) and sureness (..., 2, kinds) of both frames."""
        before, after = centres.unbind(-2)
        was, now = self.distances(centres).unbind(-2)
        was_seen, is_seen = sure.repeat_interleave(2, -1).unbind(-2)
        placed = [is_seen * after, is_seen * was_seen * MOTION * (after - before), sure.flatten(-2)]
        measured = [now, MOTION * (now - was), now.log(), was.log()]
        seen = torch.cat(placed + measured, dim=-1)
        return self.out(seen), self.lines(seen)


class Heads(nn.Module):
    """Reward, end, state and their expected errors."""

    reward_scale: Tensor
    reward_mean: Tensor
    state_mean: Tensor
    state_scale: Tensor

    def __init__(
        self,
        config: HeadsConfig,
        latent_shape: tuple[int, int, int],
        tokens: tuple[int, int],
        action_numbers: int,
        sketch_channels: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        C, h, w = latent_shape
        L, D = tokens
        width = config.channels
        self.conv = nn.Sequential(
            nn.Conv2d(2 * C, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.narrow = nn.Linear(D, 16)
        kinds = config.places
        self.places = Places(2 * C, width, kinds) if kinds else None
        features = width * ((h + 1) // 2) * ((w + 1) // 2) + 16 * L + action_numbers + 2 * kinds
        outputs = 1 + config.state_size  # reward and state
        self.mlp = nn.Sequential(
            nn.Linear(features, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
        )
        self.sketched = Sketched(config, sketch_channels, outputs) if config.sketched else None
        self.mean = nn.Linear(config.hidden, outputs)
        self.log_spread = nn.Linear(config.hidden, outputs)
        self.end = nn.Linear(config.hidden, 1)
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_scale", torch.ones(()))
        self.register_buffer("state_mean", torch.zeros(config.state_size))
        self.register_buffer("state_scale", torch.ones(config.state_size))

    def forward(
        self,
        before: Tensor,
        after: Tensor,
        actions: Tensor,
        tokens: Tensor,
        places: Tensor | None = None,
    ) -> Readout:
        """Read transitions.

        Args:
            before: (B, T, C, h, w) the frame that was acted on.
            after: (B, T, C, h, w) the frame that followed.
            actions: (B, T, A, action size) what was done between them.
            tokens: (B, T, L, D) the transformer's tokens of `after`.
            places: (B, T, 2, numbers) what `sketched` locates in the decoder's sketch of both
                frames; for heads that look at it.
        """
        mean, log_spread, end = self._outputs(before, after, actions, tokens, places)
        scale = torch.cat([self.reward_scale[None], self.state_scale])
        offset = torch.cat([self.reward_mean[None], self.state_mean])
        values = mean * scale + offset
        return Readout(values[..., 0], end, values[..., 1:], log_spread.exp() * scale)

    def loss(
        self, reading: Reading, sketch: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the means by their worth, likelihood of the spreads, and the end's.

        Heads that look at the decoder's sketch need it of both frames: (B, T, 2, C', 2h, 2w).
        """
        before, after, actions, tokens, reward, ended, state, valid = reading
        places = None if self.sketched is None or sketch is None else self.sketched.locate(sketch)
        mean, log_spread, end = self._outputs(before, after, actions, tokens, places)
        target = torch.cat(
            [
                ((reward - self.reward_mean) / self.reward_scale)[..., None],
                (state - self.state_mean) / self.state_scale,
            ],
            dim=-1,
        )
        error = (mean - target).square()
        weight = worth(log_spread.detach())

        def average(values: Tensor) -> Tensor:  # in each clip, then over clips
            return ((values * valid).sum(1) / valid.sum(1).clamp_min(1)).mean()

        fit = average((weight * error).mean(-1))
        # The spread learns from the error: no gradient into the mean.
        likelihood = 0.5 * error.detach() * (-2.0 * log_spread).exp() + log_spread
        calibration = average(likelihood.mean(-1))
        cross = F.binary_cross_entropy_with_logits(end, ended.to(end), reduction="none")
        ending = average(cross * torch.where(ended, self.config.end_weight, 1.0))
        total = fit + 0.1 * calibration + 0.2 * ending
        metrics = {
            "reward_error": average(error[..., 0]).detach(),
            "end_loss": ending.detach(),
        }
        if state.shape[-1]:
            metrics["state_error"] = average(error[..., 1:].mean(-1)).detach()
        return total, metrics

    @torch.no_grad()
    def fit_statistics(self, reward: Tensor, state: Tensor) -> None:
        """Take means and deviations from a sample: reward (N,), state (N, S)."""
        self.reward_mean.copy_(reward.mean())
        self.reward_scale.copy_(reward.std().clamp_min(1e-3))
        if state.shape[-1]:
            self.state_mean.copy_(state.mean(0))
            # A number that never changes gets scale 1: it is learned as a constant.
            spread = state.std(0)
            self.state_scale.copy_(torch.where(spread < 1e-4, torch.ones_like(spread), spread))

    def _outputs(
        self,
        before: Tensor,
        after: Tensor,
        actions: Tensor,
        tokens: Tensor,
        places: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T = after.shape[:2]
        both = torch.cat([before, after], dim=2).flatten(0, 1)
        seen = self.conv(both).unflatten(0, (B, T))
        features = [seen, self.narrow(tokens).flatten(2), actions.flatten(2)]
        if self.places is not None:
            features.append(self.places(both).unflatten(0, (B, T)))
        x, lines = self.mlp[0](torch.cat(features, dim=-1)), None
        if self.sketched is not None:
            assert places is not None, "these heads look at the decoder's sketch"
            seen, lines = self.sketched(places)
            x = x + seen
        x = self.mlp[1:](x)
        mean = self.mean(x) if lines is None else self.mean(x) + lines
        return mean, self.log_spread(x).clamp(-7.0, 3.0), self.end(x)[..., 0]
