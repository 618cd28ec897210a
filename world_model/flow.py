"""Flow matching: noise levels, training targets and the one sampler.

A straight path leads from clean data to noise, and the network learns its velocity:

    z_s = (1 - s) z0 + s eps        v = eps - z0        z0 = z_s - s v

Legend: z0 clean data, eps standard normal noise, s noise level in [0, 1], t = 1000 s timestep that
the network sees, v velocity, k shift. A level may have fewer dimensions than the data, (B,) or
(B, F) against (B, F, ...); it is broadcast over the trailing ones.

A ``Schedule`` says which levels a sampler visits. Its float32 arithmetic follows the published
evaluation order operation by operation: one unit in the last place of t is visible in the first
cosine of the timestep embedding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from kairos_env.world_model.tables import table

TIMESTEPS = 1000.0  # t = 1000 s


# --------------------------------------------------------------------- the path and its conversions


def broadcast_level(s: Tensor, z: Tensor) -> Tensor:
    """Append dimensions to a level until it broadcasts against ``z`` from the left."""
    return s.reshape(s.shape + (1,) * (z.dim() - s.dim()))


def noise(z0: Tensor, eps: Tensor, s: Tensor) -> Tensor:
    """Mix clean data with noise: z_s = (1 - s) z0 + s eps."""
    s = broadcast_level(s, z0)
    return (1 - s) * z0 + s * eps


def target(z0: Tensor, eps: Tensor) -> Tensor:
    """Return the velocity to be learnt: eps - z0."""
    return eps - z0


def x0_from_velocity(z: Tensor, v: Tensor, s: Tensor) -> Tensor:
    """Return the clean estimate that a velocity implies: z0 = z_s - s v."""
    return z - broadcast_level(s, z) * v


def velocity_from_x0(z: Tensor, z0: Tensor, s: Tensor, *, floor: float = 1e-4) -> Tensor:
    """Return the velocity that a clean estimate implies: v = (z_s - z0) / s.

    Args:
        z: data at level ``s``.
        z0: clean estimate.
        s: noise level.
        floor: smallest divisor; at s = 0 the path says nothing about the velocity.
    """
    return (z - z0) / broadcast_level(s, z).clamp(min=floor)


def euler_step(z: Tensor, v: Tensor, s: Tensor, s_next: Tensor) -> Tensor:
    """Follow the velocity in a straight line from level ``s`` to ``s_next``."""
    return z + v * broadcast_level(s_next - s, z)


def dmd_step(z: Tensor, v: Tensor, s: Tensor, s_next: Tensor, *, eps: Tensor) -> Tensor:
    """Jump to the clean estimate, then noise it to ``s_next`` (few-step distilled networks)."""
    return noise(x0_from_velocity(z, v, s), eps, s_next)


# --------------------------------------------------------------------------- which levels to visit


@dataclass(frozen=True, kw_only=True)
class ShapeShift:
    """Shift that grows with the picture and the clip: k = e^mu(L) sqrt(F).

    Bigger pictures and longer clips need more time at high noise, because neighbouring tokens
    average it away. mu is linear in the tokens per frame L: 0.5 at 256, 0.9 at 8192.

    Attributes:
        tokens: L, tokens per latent frame.
        frames: F, latent frames.
    """

    tokens: int
    frames: int = 1

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.frames < 1:
            raise ValueError(f"expected at least one token and one frame, got {self}")

    @property
    def factor(self) -> float:
        """The shift k."""
        mu = 0.5 + (self.tokens - 256) * (0.9 - 0.5) / (8192 - 256)
        return math.exp(mu) * math.sqrt(self.frames)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The noise levels of a sampler, from first to last; the step after the last ends at ``final``.

    Attributes:
        steps: how many levels; ignored when ``times`` are given.
        times: explicit timesteps before the shift, in thousandths (few-step distilled networks).
        shift: k of s' = k s / (1 + (k - 1) s), as a number or derived from the picture's shape.
        lowest: lowest level before the shift.
        highest: highest level before the shift.
        strength: fraction of the range that is used; below 1 a sampler starts from lightly noised
            data.
        extra_step: leave ``lowest`` itself out: it is where the last step ends.
        terminal: level to which the last one is stretched, if any.
        order: "falling" denoises; "rising" visits the same levels backwards; "mirrored" visits 1 -
            s.
    """

    steps: int = 4
    times: tuple[float, ...] = ()
    shift: float | ShapeShift = 1.0
    lowest: float = 0.0
    highest: float = 1.0
    strength: float = 1.0
    extra_step: bool = True
    terminal: float | None = None
    order: Literal["falling", "rising", "mirrored"] = "falling"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"expected steps >= 1, got {self.steps}")
        if self.factor <= 0:
            raise ValueError(f"expected a positive shift, got {self.shift}")
        if not 0 <= self.lowest < self.highest <= 1:
            raise ValueError(
                f"expected 0 <= lowest < highest <= 1, got {self.lowest}, {self.highest}"
            )
        if not 0 < self.strength <= 1:
            raise ValueError(f"expected 0 < strength <= 1, got {self.strength}")

    @classmethod
    def for_video(cls, steps: int, *, tokens: int, frames: int) -> "Schedule":
        """Schedule of the published video stream: the shift follows the picture's shape."""
        return cls(steps=steps, shift=ShapeShift(tokens=tokens, frames=frames))

    @classmethod
    def for_actions(cls, steps: int, *, shift: float = 5.0) -> "Schedule":
        """Schedule of the published action stream: a fixed shift."""
        return cls(steps=steps, shift=shift)

    @classmethod
    def few_step(
        cls, times: tuple[float, ...] = (1000, 800, 500, 100), *, shift: float = 5.0
    ) -> "Schedule":
        """Schedule of the published distilled network: t = 1000, 952.4, 833.3, 357.1 by default."""
        return cls(times=times, shift=shift)

    @property
    def factor(self) -> float:
        """The shift k as a number."""
        return self.shift.factor if isinstance(self.shift, ShapeShift) else self.shift

    @property
    def final(self) -> float:
        """The level after the last step: clean data, or pure noise when the order rises."""
        return 0.0 if self.order == "falling" else 1.0

    @cached_property
    def sigmas(self) -> Tensor:
        """The levels, float32 on the CPU. Shared: do not write into it."""
        return self._ordered(self._stretched(self._shifted(self._even())))

    @cached_property
    def timesteps(self) -> Tensor:
        """What the network sees: 1000 times the levels, float32 on the CPU."""
        return self.sigmas * TIMESTEPS

    @property
    def path(self) -> Tensor:
        """The levels with ``final`` appended: step i leads from path[i] to path[i + 1]."""
        return _path(self)

    def nearest(self, timestep: float) -> int:
        """Index of the level whose timestep is nearest."""
        return int((self.timesteps - timestep).abs().argmin())

    def _even(self) -> Tensor:
        if self.times:
            return torch.tensor(self.times, dtype=torch.float32) / TIMESTEPS
        start = self.lowest + (self.highest - self.lowest) * self.strength
        if self.extra_step:
            return torch.linspace(start, self.lowest, self.steps + 1)[:-1]
        return torch.linspace(start, self.lowest, self.steps)

    def _shifted(self, s: Tensor) -> Tensor:
        k = self.factor
        if isinstance(self.shift, ShapeShift):
            # equal to the other form on paper; in float32 the two differ by one unit in the last
            # place
            return k / (k + (1 / s - 1))
        return k * s / (1 + (k - 1) * s)

    def _stretched(self, s: Tensor) -> Tensor:
        if self.terminal is None:
            return s
        scale = (1 - s[-1]) / (1 - self.terminal)
        return 1 - (1 - s) / scale

    def _ordered(self, s: Tensor) -> Tensor:
        if self.order == "mirrored":
            return 1 - s
        return s.flip(0) if self.order == "rising" else s


@table
def _path(schedule: Schedule) -> Tensor:
    return torch.cat([schedule.sigmas, schedule.sigmas.new_tensor([schedule.final])])


# --------------------------------------------------------------------------- the sampler

Denoise = Callable[[Tensor, Tensor], Tensor]
JointDenoise = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]


def sample(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    *,
    pin: Callable[[Tensor], Tensor] | None = None,
    renoise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Lead noise to data along a schedule.

    Args:
        denoise: the network: (data at level s, s as a float32 scalar tensor) -> velocity.
        noise: where to start, any shape.
        schedule: the levels to visit.
        pin: overwrites what is known (the first frame, say); called before every step and at the
            end.
        renoise: index of the step -> fresh noise. Given, the few-step sampler runs instead of
            Euler's. Its last clean estimate is returned as it is, without a last ``pin``, as
            published.

    Returns:
        Clean data, the shape and dtype of ``noise``.
    """
    pins = (pin,) if pin else None
    (z,) = sample_jointly(
        lambda zs, s: (denoise(zs[0], s[0]),),
        (noise,),
        (schedule,),
        pins=pins,
        renoise=(lambda i: (renoise(i),)) if renoise else None,
    )
    return z


def sample_jointly(
    denoise: JointDenoise,
    noises: tuple[Tensor, ...],
    schedules: tuple[Schedule, ...],
    *,
    pins: tuple[Callable[[Tensor], Tensor] | None, ...] | None = None,
    renoise: Callable[[int], tuple[Tensor, ...]] | None = None,
) -> tuple[Tensor, ...]:
    """Lead several streams (video and actions) to data together, each on its own schedule.

    The arguments are those of ``sample``, as tuples with one item a stream.
    """
    paths = [schedule.path.to(z.device) for schedule, z in zip(schedules, noises, strict=True)]
    if len({len(path) for path in paths}) != 1:
        raise ValueError(
            f"streams need equally many steps, got {[len(path) - 1 for path in paths]}"
        )
    pins = pins or (None,) * len(noises)
    zs = noises
    for i in range(len(paths[0]) - 1):
        zs = _pinned(zs, pins)
        levels = tuple(path[i] for path in paths)
        nexts = tuple(path[i + 1] for path in paths)
        velocities = denoise(zs, levels)
        steps = zip(zs, velocities, levels, nexts, strict=True)
        if renoise is None:
            moved = tuple(euler_step(z, v, s, s_next) for z, v, s, s_next in steps)
        else:
            fresh = renoise(i)
            moved = tuple(dmd_step(*step, eps=eps) for step, eps in zip(steps, fresh, strict=True))
        zs = tuple(z.to(eps) for z, eps in zip(moved, noises, strict=True))
    return zs if renoise else _pinned(zs, pins)


def _pinned(
    zs: tuple[Tensor, ...], pins: tuple[Callable[[Tensor], Tensor] | None, ...]
) -> tuple[Tensor, ...]:
    return tuple(pin(z) if pin else z for z, pin in zip(zs, pins, strict=True))


# --------------------------------------------------------------------------- levels to train on


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """Distribution of the noise levels that a training batch sees.

    Attributes:
        kind: "uniform" between ``low`` and ``high``, or "logit_normal": sigmoid of a normal
            variable.
        low: lower end of the uniform range.
        high: upper end of the uniform range.
        mean: mean of the normal variable.
        std: standard deviation of the normal variable.
        shift: k of s' = k s / (1 + (k - 1) s), as in ``Schedule``.
        pure_noise: fraction of the items that are put at s = 1: one-step prediction is learnt
            there.
        clean: fraction of the items that are put at s = 0.
    """

    kind: Literal["uniform", "logit_normal"] = "uniform"
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    shift: float | ShapeShift = 1.0
    pure_noise: float = 0.0
    clean: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"expected 0 <= low <= high <= 1, got low={self.low}, high={self.high}"
            )
        if self.pure_noise < 0 or self.clean < 0 or self.pure_noise + self.clean > 1:
            raise ValueError(
                "expected pure_noise and clean to be fractions that add up to 1 at most, "
                f"got {self.pure_noise} and {self.clean}"
            )

    def sample(self, shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
        """Draw float32 levels of the given shape, on the generator's device."""
        device = generator.device
        if self.kind == "uniform":
            s = torch.rand(shape, generator=generator, device=device)
            s = self.low + (self.high - self.low) * s
        else:
            s = torch.randn(shape, generator=generator, device=device)
            s = torch.sigmoid(self.mean + self.std * s)
        k = self.shift.factor if isinstance(self.shift, ShapeShift) else self.shift
        s = k * s / (1 + (k - 1) * s)
        # always drawn, so that a changed fraction does not change the levels of the others
        lot = torch.rand(shape, generator=generator, device=device)
        s = torch.where(lot < self.pure_noise, torch.ones_like(s), s)
        return torch.where(lot >= 1 - self.clean, torch.zeros_like(s), s)
