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
# So many times in a row practice is slowed down further; so many real falls in a row end it.
SLOWEST, TWICE = 3, 2


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
    pace: float = 1.0
    """Share of the learning rate that the next round should practise with."""
    back: bool = False
    """Practise on from the best policy, not from this one."""


@dataclasses.dataclass
class Guard:
    """Judges one examination after the other.

    It stops when twice in a row the real return has fallen by more than half of `tolerance` while
    the gap grew by as much, both beyond noise; and at once when the real return is below its best
    while the dreamed one rose and more than half of what it promises is not real.

    It stops after `patience` examinations in a row in which the dreamed return rose above that of
    the best policy and the real one by less than a tenth of that, or in which more than half of
    what the dream promises is not real. Where the world is also much less sure than at first, an
    examination counts twice.

    What is lost between two examinations nobody can stop. So the policy learns at full pace only
    while it earns it: while the real return rises beyond noise, by at least half of what the
    dreamed one does. And a policy that is worse in reality than the best one, and not as much worse
    in the dream, is given up for that one, so that no two such rounds add up; the more of them in a
    row, the more slowly the next one goes.
    """

    floor: float
    """Real return of a policy that knows nothing: what has been gained is measured from here."""
    tolerance: float = 0.1
    """The share of the gain that may be lost."""
    patience: int = 3
    doubt: float = 1.5
    """So many times the first uncertainty is "much less sure"."""
    careful: float = 0.25
    """Share of the learning rate that is left where full pace is not earned."""
    strikes: int = 0
    given_up: int = 0
    """How many policies in a row were."""
    falls: int = 0
    """How many of them had fallen beyond doubt."""
    first: Reading | None = None
    best: Reading | None = None

    def judge(self, reading: Reading) -> Verdict:
        """Compare with the best real examination so far."""
        self.first, before = self.first or reading, self.best or reading
        gain = max(float(before.real.mean()) - self.floor, float(before.real.std()), 1e-9)
        alone, flattered = _alone(before, reading, gain), _flattered(reading, self.floor)
        earned = _earned(self.best, reading, self.floor)
        self.strikes = self.strikes + self._weight(reading) if alone or flattered else 0
        fallen = _fallen(before, reading, self.tolerance / 2 * gain)
        self.falls = self.falls + 1 if fallen else 0
        rise = float(reading.real.mean() - before.real.mean())
        parted = alone and flattered and rise < 0
        better = self.best is None or rise > 0
        if better:
            self.best = reading
        back = not better and reading.gap > before.gap
        self.given_up = self.given_up + 1 if back else 0
        if not parted and self.falls < TWICE and self.strikes < self.patience:
            pace = 1.0 if earned else self.careful ** min(max(self.given_up, 1), SLOWEST)
            return Verdict(best=better, pace=pace, back=back)
        return Verdict(best=better, stop=True, reason=self._reason(before, reading, gain))

    def _weight(self, reading: Reading) -> int:
        assert self.first is not None
        now, at_first = reading.uncertainty, self.first.uncertainty
        doubtful = now is not None and at_first is not None and now > self.doubt * at_first
        return 2 if doubtful else 1

    def _reason(self, before: Reading, reading: Reading, gain: float) -> str:
        assert self.best is not None
        lost = 100 * max(float(before.real.mean() - reading.real.mean()), 0.0) / gain
        unsure = "; the world is much less sure than at first" * (self._weight(reading) == 2)
        return (
            f"stopped at step {reading.steps}: the dream promises {_dreamed(reading).mean():.2f}, "
            f"reality gives {reading.real.mean():.2f}; at step {before.steps} it was "
            f"{_dreamed(before).mean():.2f} and {before.real.mean():.2f} ({lost:.0f} % of the "
            f"real gain lost since){unsure}. The policy of step {self.best.steps} is kept"
        )


def _alone(before: Reading, reading: Reading, gain: float) -> bool:
    """The dreamed return rose, beyond noise and worth speaking of, the real one hardly."""
    dreamed = _dreamed(reading) - _dreamed(before)
    risen, real = float(dreamed.mean()), float((reading.real - before.real).mean())
    return risen > 2 * _error(dreamed) and risen > 0.02 * gain and real < 0.1 * risen


def _flattered(reading: Reading, floor: float) -> bool:
    """More than half of what the dream promises over knowing nothing is, beyond noise, not real."""
    promised = float(_dreamed(reading).mean()) - floor
    gap = _dreamed(reading) - reading.real
    return reading.gap > promised / 2 > 0 and reading.gap > 2 * _error(gap)


def _earned(best: Reading | None, reading: Reading, floor: float) -> bool:
    """The real return rose above the best one's, or above nothing, as the dreamed one did."""
    real = reading.real - (floor if best is None else best.real)
    dreamed = _dreamed(reading) - (floor if best is None else _dreamed(best))
    return float(real.mean()) > max(float(dreamed.mean()) / 2, _error(real))


def _fallen(before: Reading, reading: Reading, limit: float) -> bool:
    """The real return fell by more than the limit, beyond noise, and the dream does not show it."""
    lost = before.real - reading.real
    grown = reading.gap - before.gap
    return min(float(lost.mean()), grown) > limit and lost.mean() > 2 * _error(lost)


def _error(differences: Returns) -> float:
    """Standard error of their mean."""
    return float(differences.std() / np.sqrt(max(len(differences) - 1, 1)))


def _dreamed(reading: Reading) -> Returns:
    assert reading.dreamed is not None, "the guard judges examinations that were dreamed too"
    return reading.dreamed
