"""Fair times on a shared machine: candidates take turns, and the middle one counts."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Measures in turns, so that a disturbance or a change of clock speed meets all candidates."""

    device: str = "cpu"
    rounds: int = 20
    """Turns that each candidate gets."""
    seconds: float = 4.0
    """What a candidate may use; one that needs more in a single call is measured once."""
    processor: bool = False
    """Count this process's processor time: other work on the machine disturbs it less."""

    def once(self, work: Work) -> float:
        """Seconds of one call."""
        now = time.process_time if self.processor else time.perf_counter
        self._wait()
        start = now()
        work()
        self._wait()
        return now() - start

    def medians(self, candidates: Mapping[str, Work]) -> dict[str, float]:
        """Median seconds of every candidate."""
        first = {name: self.once(work) for name, work in candidates.items()}
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(self.rounds):
            for name, work in candidates.items():
                if first[name] + sum(samples[name]) < self.seconds:
                    samples[name].append(self.once(work))
        # The first call warms up and counts only when there was no time for another.
        return {name: statistics.median(taken or [first[name]]) for name, taken in samples.items()}

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def matmul_peak(clock: Clock, dtype: torch.dtype, size: int = 2048) -> float:
    """The most floating-point operations a second that a large matrix product reaches here."""
    a = torch.ones(size, size, dtype=dtype, device=clock.device)
    clock.once(lambda: a @ a)
    return 2 * size**3 / min(clock.once(lambda: a @ a) for _ in range(5))


def crossover(
    sizes: Sequence[int], mine: Sequence[float | None], other: Sequence[float | None]
) -> int | None:
    """The size from which `mine` stays faster, between two measured ones on a log-log line.

    The smallest size when it is faster everywhere, None when it is not faster at the largest.
    """
    ratios = [
        (math.log(size), math.log(a / b))
        for size, a, b in zip(sizes, mine, other, strict=True)
        if a is not None and b is not None
    ]
    if not ratios or ratios[-1][1] >= 0:
        return None
    slower = [i for i, (_, ratio) in enumerate(ratios) if ratio >= 0]
    if not slower:
        return round(math.exp(ratios[0][0]))
    (x0, y0), (x1, y1) = ratios[slower[-1] : slower[-1] + 2]
    return round(math.exp(x0 + (x1 - x0) * y0 / (y0 - y1)))
