"""Policies of graded quality, which act alike in the dream and in truth.

A policy looks once per env step: at the state or at the picture. In truth these are the
simulator's; in the dream they are what the dream itself predicts. Scripted experts were written for
the simulator's state, so in the dream they act on the state that the world predicts.

A good policy (the scripted expert, or the last of the checkpoints) is made worse in three ways:
noise acts in its place for a share of the time, it acts on what it saw some steps ago, or its
actions are made smaller. All randomness stands on a tape that is drawn once per episode number, so
an episode has the same noise in dream and truth, and for every policy.

Legend: E episodes, b of them at once, N steps, K low-level actions per step, D numbers per action.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kairos_env.agents.policies import (
    DETOUR_STEPS,
    SMOOTH_HALF_LIFE,
    SMOOTH_SPREAD,
    load_checkpoint,
)
from kairos_env.real.experts import Look
from kairos_env.spaces import decode_actions, encode_actions

Chunks = NDArray[np.float32]
Rows = NDArray[np.int64]

EXPERT, SMOOTH, RANDOM = "expert", "smooth", "random"
# Streams of the study's seed; the held-out episodes of `kairos fidelity` use 11 to 14.
NOISE = 22


class Seen(NamedTuple):
    """What b policies look at."""

    state: NDArray[np.float32]
    """(b, S)."""
    frames: NDArray[np.uint8] | None
    """(b, H, W, 3): None where no policy asks for pictures."""

    def some(self, rows: NDArray[np.int64]) -> "Seen":
        """Those in these places."""
        return Seen(self.state[rows], None if self.frames is None else self.frames[rows])


@dataclass(frozen=True, kw_only=True)
class Grade:
    """One policy of a study."""

    base: str
    """expert, smooth, random, or the path of a Stable-Baselines3 checkpoint."""
    noise: float = 0.0
    """Share of the time in which smooth noise acts instead, in bursts."""
    late: int = 0
    """It acts on what it saw this many steps ago."""
    speed: float = 1.0
    """Its actions are multiplied by this."""

    @property
    def label(self) -> str:
        """In words, for plots."""
        name = {SMOOTH: "smooth noise", RANDOM: "white noise"}.get(self.base, Path(self.base).stem)
        parts = [f"{self.noise:.0%} noise"] * (self.noise > 0)
        parts += [f"{self.late} step{'s' * (self.late > 1)} late"] * (self.late > 0)
        parts += [f"{self.speed:.0%} speed"] * (self.speed != 1)
        return ", ".join([name, *parts])

    @property
    def family(self) -> str:
        """What was done to it, for colours."""
        if self.base in (SMOOTH, RANDOM):
            return "noise only"
        changed = {"noise": self.noise > 0, "late": self.late > 0, "slow": self.speed != 1}
        return next((name for name, done in changed.items() if done), "as it is")


def ladder(count: int, *, expert: bool, checkpoints: Sequence[str] = ()) -> list[Grade]:
    """So many policies from good to bad; the checkpoints are among them.

    Args:
        count: How many.
        expert: Whether the task has a scripted expert.
        checkpoints: Paths; without an expert the last of them is made worse.

    Raises:
        ValueError: There is nobody to make worse, or there are more checkpoints than places.
    """
    bases = [EXPERT] * expert + list(checkpoints)
    if not bases:
        raise ValueError(
            "this task has no scripted expert: give trained policies by --checkpoints FOLDER, "
            "a folder of Stable-Baselines3 .zip files"
        )
    ends = [Grade(base=SMOOTH), Grade(base=RANDOM)]
    left = count - len(bases) - len(ends)
    if left < 0:
        raise ValueError(
            f"--policies {count} has no room for {len(bases)} whole policies and 2 kinds of noise: "
            f"ask for {len(bases) + len(ends)} or more"
        )
    teacher = bases[0] if expert else bases[-1]
    noisy = left - 2 * (left // 3)
    late, slow = left // 3, left // 3
    return [
        *(Grade(base=base) for base in bases),
        *(Grade(base=teacher, noise=share) for share in _shares(noisy)),
        *(Grade(base=teacher, late=1 + i) for i in range(late)),
        *(Grade(base=teacher, speed=round(0.8 * 0.5 ** (i / 1.5), 2)) for i in range(slow)),
        *ends,
    ]


def _shares(count: int) -> list[float]:
    """Even from a little to nearly always."""
    return [round(0.9 * (i + 0.5) / count, 2) for i in range(count)]


class Tape:
    """The randomness of every episode: noise to act on, and when a policy is led astray.

    Args:
        seed: The study's.
        numbers: (E,): of the episodes; each decides its own randomness.
        steps: N.
        shape: (K, D).
    """

    def __init__(self, seed: int, numbers: Rows, steps: int, shape: tuple[int, int]) -> None:
        K, D = shape
        whole = len(numbers), steps, K, D
        self.smooth, self.white = np.empty(whole, np.float32), np.empty(whole, np.float32)
        self._turns = np.empty((len(numbers), steps))
        for row, number in enumerate(numbers):
            generator = np.random.default_rng([seed, NOISE, int(number)])
            self.smooth[row] = _smooth(generator, steps * K, D).reshape(steps, K, D)
            self.white[row] = generator.uniform(-1, 1, (steps, K, D))
            self._turns[row] = generator.random(steps)

    def astray(self, share: float) -> NDArray[np.bool_]:
        """(E, N): when a policy is led astray; more often for a larger share, at the same times."""
        # A two-state chain that leaves with chance `back` and enters with `out` is astray for
        # `share` of the time.
        back = 1 / DETOUR_STEPS
        out = min(1.0, back * share / max(1 - share, 1e-9))
        astray = np.empty(self._turns.shape, np.bool_)
        now = self._turns[:, 0] < share
        for n, turn in enumerate(self._turns.T):
            if n > 0:
                now = np.where(now, turn < 1 - back, turn < out)
            astray[:, n] = now | (share >= 1)
        return astray


def _smooth(generator: np.random.Generator, count: int, size: int) -> NDArray[np.float64]:
    """A path of noise with memory: x' = keep x + sqrt(1 - keep^2) spread n."""
    keep = 0.5 ** (1 / SMOOTH_HALF_LIFE)
    kicks = generator.normal(0, SMOOTH_SPREAD, (count, size))
    value, path = generator.normal(0, SMOOTH_SPREAD, size), np.empty((count, size))
    for i, kick in enumerate(kicks):
        value = keep * value + math.sqrt(1 - keep**2) * kick
        path[i] = value
    return path


Base = Callable[[Rows, int, Seen], NDArray[Any]]
"""Given episodes, step and what is seen: encoded actions (b, K, D)."""


class Actor:
    """A grade that acts: a function of episode, step and what it sees. It remembers nothing.

    Args:
        grade: Which.
        tape: The episodes' randomness.
        space: The chunk space.
        experts: Scripted experts by the name they have as a base.
    """

    def __init__(
        self,
        grade: Grade,
        tape: Tape,
        space: spaces.Space[Any],
        experts: Mapping[str, Any],
    ) -> None:
        self.grade, self._tape, self._space = grade, tape, space
        self._astray = tape.astray(grade.noise)
        self.needs_frames = False
        if grade.base == SMOOTH:
            self._base: Base = lambda rows, step, _: tape.smooth[rows, step]
        elif grade.base == RANDOM:
            self._base = lambda rows, step, _: tape.white[rows, step]
        elif grade.base == EXPERT:
            self._base = _scripted(experts[EXPERT], space)
        else:
            self._base, self.needs_frames = _trained(grade.base, space)

    def act(self, rows: Rows, step: int, seen: Seen) -> Chunks:
        """The chunks of some episodes.

        Args:
            rows: (b,): which, as places on the tape.
            step: From 0.
            seen: What it saw `grade.late` steps ago.
        """
        chunks = self._base(rows, step, seen) * self.grade.speed
        astray = self._astray[rows, step][:, None, None]
        chunks = np.where(astray, self._tape.smooth[rows, step], chunks)
        # what the simulator will be told: within bounds, one choice where there are choices
        return encode_actions(self._space, decode_actions(self._space, chunks))


def _scripted(expert: Any, space: spaces.Space[Any]) -> Base:
    """An expert that looks once per step and holds its action."""
    unused = np.random.default_rng(0)
    K = int((space.shape or (1,))[0])

    def act(rows: Rows, step: int, seen: Seen) -> NDArray[Any]:
        del rows, step
        actions = np.stack([expert(Look(state), unused) for state in seen.state])
        return encode_actions(space, np.repeat(actions[:, None], K, 1))

    return act


def _trained(path: str, space: spaces.Space[Any]) -> tuple[Base, bool]:
    """A checkpoint that takes its most likely action; whether it looks at pictures."""
    model = load_checkpoint(Path(path))
    looks = len(model.observation_space.shape) == 3
    shape = space.shape or ()

    def act(rows: Rows, step: int, seen: Seen) -> NDArray[Any]:
        del rows, step
        actions, _ = model.predict(seen.frames if looks else seen.state, deterministic=True)
        return encode_actions(space, np.asarray(actions, space.dtype).reshape(-1, *shape))

    return act, looks
