"""The exploitation guard: a policy must not get better in the dream alone.

A policy that learns in a dream sooner or later finds where the dream errs in its favour. From then
on the dreamed return rises and the real one does not. The guard compares each examination with the
best real one so far, on the same start states, and stops before much is lost.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

Returns = NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """One examination: the same policy from the same starts, dreamed and real."""

    steps: int
    """How many steps it had practised."""
    dreamed: Returns | None
    """(n,) returns in the dream; None where none was asked for."""
    real: Returns
    """(n,) returns in the real twin."""
    uncertainty: float | None
    """How unsure the world was where the policy went, on average."""

    @property
    def gap(self) -> float:
        """By how much the dream flatters."""
        return float(_dreamed(self).mean() - self.real.mean())


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the guard says of a reading."""

    best: bool
    """No examination before had a higher real return."""
    stop: bool = False
    reason: str = ""
    """For a person; empty while there is nothing to say."""


@dataclasses.dataclass
class Guard:
    """Judges one examination after the other.

    It stops at once when the real return has fallen by more than half of `tolerance` while the gap
    grew by as much, both beyond noise; and after `patience` examinations in a row in which the
    dreamed return rose above that of the best policy while the real one did not. Where the world
    is also much less sure than at first, an examination counts twice.
    """

    floor: float
    """Real return of a policy that knows nothing: what has been gained is measured from here."""
    tolerance: float = 0.1
    """The share of the gain that may be lost."""
    patience: int = 3
    doubt: float = 1.5
    """So many times the first uncertainty is "much less sure"."""
    strikes: int = 0
    first: Reading | None = None
    best: Reading | None = None

    def judge(self, reading: Reading) -> Verdict:
        """Compare with the best real examination so far."""
        self.first = self.first or reading
        if self.best is None or reading.real.mean() > self.best.real.mean():
            self.best, self.strikes = reading, 0
            return Verdict(best=True)
        best = self.best
        gain = max(float(best.real.mean()) - self.floor, float(best.real.std()), 1e-9)
        lost = float(best.real.mean() - reading.real.mean())
        dreamed, before = _dreamed(reading), _dreamed(best)
        risen = float(dreamed.mean() - before.mean())
        limit = self.tolerance / 2 * gain
        if min(lost, reading.gap - best.gap) > limit and lost > 2 * _error(best.real, reading.real):
            return self._stop(reading, lost / gain)
        if risen > 2 * _error(dreamed, before) and risen > 0.02 * gain:
            self.strikes += 2 if self._doubtful(reading) else 1
        else:
            self.strikes = 0
        if self.strikes >= self.patience:
            return self._stop(reading, lost / gain)
        return Verdict(best=False)

    def _doubtful(self, reading: Reading) -> bool:
        assert self.first is not None
        now, at_first = reading.uncertainty, self.first.uncertainty
        return now is not None and at_first is not None and now > self.doubt * at_first

    def _stop(self, reading: Reading, share: float) -> Verdict:
        assert self.best is not None
        best = self.best
        dreamed, before = _dreamed(reading).mean(), _dreamed(best).mean()
        unsure = " and the world is much less sure of itself" if self._doubtful(reading) else ""
        return Verdict(
            best=False,
            stop=True,
            reason=(
                f"stopped at step {reading.steps}: since step {best.steps} the dreamed return "
                f"went from {before:.2f} to {dreamed:.2f} but the real one from "
                f"{best.real.mean():.2f} to {reading.real.mean():.2f} "
                f"({100 * share:.0f} % of what was gained is lost){unsure}. The policy of step "
                f"{best.steps} is kept"
            ),
        )


def _error(a: Returns, b: Returns) -> float:
    """Standard error of the mean difference of returns from the same starts."""
    return float((a - b).std() / np.sqrt(max(len(a) - 1, 1)))


def _dreamed(reading: Reading) -> Returns:
    assert reading.dreamed is not None, "the guard judges examinations that were dreamed too"
    return reading.dreamed
