"""Every reader on every task: what it loses at every gap, beside what it must lose."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from kairos_env.benchmarks.cells import Cells, Json
from kairos_env.benchmarks.memory.readers import READERS, Reader, ReaderConfig, train
from kairos_env.benchmarks.memory.tasks import TASKS, Task

CLOSE = 0.1
"""Part of the closed form within which a measured risk agrees with it."""
ERRORS = 2.0
"""Standard errors within which it agrees, too."""
AT_ONCE = 500  # sequences


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Sizes of the suite; all of them are written into its results."""

    gaps: tuple[int, ...] = (1, 2, 4, 6, 8, 9, 12, 13, 14, 15, 20, 24)
    """Frames that show nothing before a prediction is judged."""
    steps: int | None = None
    """Updates of each reader; None takes what its kind needs."""
    sequences: int = 8000
    """Fresh sequences that each reader is judged on."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        longest = min(task.length - task.seen for task in TASKS)
        if not self.gaps or min(self.gaps) < 1 or max(self.gaps) > longest:
            raise ValueError(f"gaps must lie in 1 .. {longest}, got {self.gaps}")
        if self.steps is not None and self.steps < 3:
            raise ValueError(f"steps must be at least 3, got {self.steps}")
        if self.sequences < 2:
            raise ValueError(f"sequences must be at least 2, got {self.sequences}")

    def reader(self, kind: str) -> ReaderConfig:
        """How a kind of reader is built and trained here."""
        config = READERS[kind]
        return config if self.steps is None else dataclasses.replace(config, steps=self.steps)


def settings(config: SuiteConfig) -> Json:
    """Everything that a cell depends on."""
    return {
        "suite": dataclasses.asdict(config),
        "tasks": {task.name: vars(task) for task in TASKS},
        "readers": {kind: dataclasses.asdict(config.reader(kind)) for kind in READERS},
    }


def chosen(names: Sequence[str]) -> list[Task]:
    """Tasks by name, all of them for no names.

    Raises:
        ValueError: There is no task of a name.
    """
    known = {task.name: task for task in TASKS}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"no task {', '.join(unknown)}; there are {', '.join(known)}")
    return [task for name, task in known.items() if name in names or not names]


def run(config: SuiteConfig, tasks: Sequence[Task], cells: Cells) -> list[Json]:
    """One cell for each task and reader."""
    return [
        cells.read_or_measure(f"{task.name}, {kind}", partial(measure, config, task, kind))
        for task in tasks
        for kind in READERS
    ]


def measure(config: SuiteConfig, task: Task, kind: str, tell: Callable[[float], None]) -> Json:
    """Train a reader on a task and judge it."""
    shape = config.reader(kind)
    reader = train(
        shape, task, seed=config.seed, on_step=lambda step: tell(0.95 * step / shape.steps)
    )
    return {
        "task": task.name,
        "reader": kind,
        "layers": list(shape.layers),
        "parameters": reader.size,
        "reach": None if reader.window is None else reader.window - 1,
        "steps": shape.steps,
        "gaps": judge(reader, task, config),
    }


@torch.no_grad()
def judge(reader: Reader, task: Task, config: SuiteConfig) -> list[Json]:
    """Measured against closed form, gap by gap.

    The excess is measured as E (said - m)^2, which is the risk less its floor without the noise of
    Y: m is known here.
    """
    generator = torch.Generator().manual_seed(2**32 + config.seed)  # training draws from the seed
    errors = []
    for first in range(0, config.sequences, AT_ONCE):
        batch = task.draw(min(AT_ONCE, config.sequences - first), generator)
        errors.append((reader(batch.frames) - batch.best).square().double())
    squared = torch.cat(errors)
    mean, deviation = squared.mean(0), squared.std(0) / config.sequences**0.5
    rows = []
    for gap in config.gaps:
        t = task.seen - 1 + gap
        closed = task.excess(gap, reader.window or task.length)
        rows.append(compared(gap, task.floor(gap), closed, mean[t].item(), deviation[t].item()))
    return rows


def compared(gap: int, floor: float, closed: float, excess: float, error: float) -> Json:
    """One gap: does the risk agree with the closed form, and is theorem 1's bound respected?"""
    off = abs(excess - closed)
    return {
        "gap": gap,
        "floor": floor,
        "closed_excess": closed,
        "excess": excess,
        "standard_error": error,
        "risk_ratio": (floor + excess) / (floor + closed),
        "agrees": off <= max(CLOSE * (floor + closed), ERRORS * error),
        # Nobody with this window can do better; 4 standard errors: there are over a hundred rows.
        "below_bound": excess < closed - 4 * error,
    }


def verdict(cells: list[Json]) -> dict[str, Any]:
    """How many rows agree, and whether any reader did what cannot be done."""
    rows = [row for cell in cells for row in cell["gaps"]]
    return {
        "rows": len(rows),
        "agree": sum(row["agrees"] for row in rows),
        "below_bound": sum(row["below_bound"] for row in rows),
    }
