"""Three tasks whose best possible predictions are known, for every memory and every gap.

Something is seen, then comes a gap of g frames that show nothing, and a number Y has to be told. A
predictor that remembers everything errs by `floor(g)`; one that sees the last w frames alone errs
by at least `excess(g, w)` more, whatever else it can do (theorem 1):

    excess(w) = E (m - m_w)^2,    m = E[Y | all frames],  m_w = E[Y | the last w frames]

B sequences, T frames; a frame is (value, whether anything is seen).
"""

import dataclasses
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Sequences and what is to be said at every frame of the gap."""

    frames: Tensor
    """(B, T, 2)."""
    target: Tensor
    """(B, T): Y, as it happened."""
    best: Tensor
    """(B, T): m, the mean of Y given all frames so far."""


class Task(Protocol):
    """Something to remember."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def seen(self) -> int:
        """Frames before the gap: frame number seen - 1 + g is g frames into it."""

    @property
    def length(self) -> int:
        """T."""

    def draw(self, B: int, generator: torch.Generator) -> Batch:
        """Sequences."""

    def floor(self, gap: int) -> float:
        """Mean squared error of the best prediction from all frames."""

    def excess(self, gap: int, window: int) -> float:
        """What the best prediction from the last `window` frames errs more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryCue:
    """A sign is shown once; Y has one of two means, by the sign."""

    name: str = "binary cue"
    share: float = 0.3
    """Of the second sign."""
    means: tuple[float, float] = (0.0, 3.0)
    noise: float = 0.25
    """Variance of Y about its mean."""
    seen: int = 1
    length: int = 25

    def draw(self, B: int, generator: torch.Generator) -> Batch:
        """The sign is -1 or 1."""
        second = torch.rand(B, generator=generator) < self.share
        best = torch.where(second, self.means[1], self.means[0])
        target = best + self.noise**0.5 * torch.randn(B, generator=generator)
        return cued(second * 2.0 - 1.0, target, best, self.length)

    def floor(self, gap: int) -> float:
        """The noise of Y: the sign was plain to see."""
        del gap
        return self.noise

    def excess(self, gap: int, window: int) -> float:
        """The variance of the means, once the sign is out of sight."""
        spread = (self.means[1] - self.means[0]) ** 2
        return 0.0 if window > gap else self.share * (1 - self.share) * spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianCue:
    """A number is shown once, blurred; Y is the number."""

    name: str = "Gaussian cue"
    variance: float = 1.0
    """s2 of the number."""
    noise: float = 0.25
    """r of what is shown."""
    seen: int = 1
    length: int = 25

    def draw(self, B: int, generator: torch.Generator) -> Batch:
        """The best guess shrinks what was shown."""
        number = self.variance**0.5 * torch.randn(B, generator=generator)
        shown = number + self.noise**0.5 * torch.randn(B, generator=generator)
        best = self.variance / (self.variance + self.noise) * shown
        return cued(shown, number, best, self.length)

    def floor(self, gap: int) -> float:
        """The variance of the number, given what was shown."""
        del gap
        return self.variance * self.noise / (self.variance + self.noise)

    def excess(self, gap: int, window: int) -> float:
        """The variance that the number loses by being shown."""
        return 0.0 if window > gap else self.variance**2 / (self.variance + self.noise)


def cued(shown: Tensor, target: Tensor, best: Tensor, length: int) -> Batch:
    """A cue (B,) at the first frame and nothing after it."""
    frames = torch.zeros(len(shown), length, 2)
    frames[:, 0] = torch.stack([shown, torch.ones_like(shown)], dim=-1)
    return Batch(frames, *(x[:, None].expand(-1, length) for x in (target, best)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenWalk:
    """Something moves, is seen blurred, then hidden while it goes on; Y is where it is next.

    x' = a x + N(0, 1 - a^2), so x has variance 1; y = x + N(0, r) where it is seen.
    """

    name: str = "moving hidden object"
    a: float = 0.97
    noise: float = 0.5
    """r."""
    ahead: int = 1
    """Frames between the last frame read and Y."""
    seen: int = 12
    length: int = 36

    def draw(self, B: int, generator: torch.Generator) -> Batch:
        """The best guess is a Kalman filter's, shrinking with the gap."""
        push = (1 - self.a**2) ** 0.5
        x = torch.randn(B, generator=generator)
        places = [x]
        for _ in range(self.length + self.ahead - 1):
            x = self.a * x + push * torch.randn(B, generator=generator)
            places.append(x)
        place = torch.stack(places, dim=1)  # (B, T + ahead)
        blur = self.noise**0.5 * torch.randn(B, self.seen, generator=generator)
        frames = torch.zeros(B, self.length, 2)
        frames[:, : self.seen, 0] = place[:, : self.seen] + blur
        frames[:, : self.seen, 1] = 1.0
        return Batch(frames, place[:, self.ahead :], self.filtered(frames[..., 0], self.length))

    def filtered(self, shown: Tensor, window: int) -> Tensor:
        """E[Y | the last `window` frames] at every frame, (B, T), from what was shown (B, T)."""
        B, T = shown.shape
        guesses = []
        for t in range(T):
            mean, variance = torch.zeros(B), 1.0
            for n in range(max(0, t + 1 - window), min(t + 1, self.seen)):
                gain = variance / (variance + self.noise)
                mean = mean + gain * (shown[:, n] - mean)
                variance *= 1 - gain
                mean, variance = self.a * mean, self.a**2 * variance + 1 - self.a**2
            unseen = t + self.ahead - min(t + 1, self.seen)
            guesses.append(self.a**unseen * mean)
        return torch.stack(guesses, dim=1)

    def variance(self, count: int) -> float:
        """P_n: variance of x after n sightings, P_0 = 1."""
        P = 1.0
        for _ in range(count):
            prior = self.a**2 * P + 1 - self.a**2
            P = prior * self.noise / (prior + self.noise)
        return P

    def floor(self, gap: int) -> float:
        """What all sightings leave open, and what happened since."""
        kept = self.a ** (2 * (gap + self.ahead))
        return kept * self.variance(self.seen) + 1 - kept

    def excess(self, gap: int, window: int) -> float:
        """Fewer sightings are in the window, or none."""
        count = min(max(window - gap, 0), self.seen)
        kept = self.a ** (2 * (gap + self.ahead))
        return kept * (self.variance(count) - self.variance(self.seen))


TASKS: tuple[Task, ...] = (BinaryCue(), GaussianCue(), HiddenWalk())
