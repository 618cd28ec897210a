"""What a run says: a live line on the terminal, one JSON line per record on disk, TensorBoard.

Of several processes only the first speaks. TensorBoard is written when it is installed (extra
`study`).
"""

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kairos_env.agents.training import processes
from kairos_env.agents.training.config import TrainConfig
from kairos_env.agents.training.learner import Learner, Metrics

# What the live line shows, if it is there.
SHOWN = ("loss", "psnr", "video_mse", "copy_mse", "reward_error", "end_loss", "state_error")


class RunLog:
    """Records of one run."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        speaks = processes.number() == 0
        path = config.folder / "log.jsonl" if speaks else Path(os.devnull)
        self._file = path.open("a", encoding="utf-8")
        self._console = Console(stderr=True, quiet=not speaks)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            refresh_per_second=2,
        )
        self._task: TaskID | None = None
        self._sums: dict[str, list[float]] = {}
        self._board = _open_board(config) if speaks else None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def stage(self, learner: Learner) -> None:
        """A stage begins."""
        if self._task is not None:
            self._bar.stop_task(self._task)
        self._task = self._bar.add_task(
            learner.stage.name, completed=learner.step, total=learner.planned, numbers=""
        )

    def update(self, learner: Learner, metrics: Metrics) -> None:
        """An update was made; every `log_every` of them the means are written."""
        for name, value in metrics.items():
            self._sums.setdefault(name, []).append(value)
        assert self._task is not None
        self._bar.update(self._task, completed=learner.step, total=learner.planned)
        if learner.step % self.config.log_every:
            return
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        self._sums.clear()
        self._write("update", learner, means)
        numbers = " ".join(f"{n} {means[n]:.3g}" for n in SHOWN if n in means)
        self._bar.update(self._task, numbers=numbers)

    def validation(self, learner: Learner, metrics: Metrics) -> None:
        """Validation was done; without held-out episodes it says nothing."""
        if not metrics:
            return
        self._write("validation", learner, metrics)
        numbers = "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        self.say(f"{learner.stage.name} {learner.step}: {numbers}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False)

    def _write(self, kind: str, learner: Learner, metrics: Metrics) -> None:
        record: dict[str, Any] = {"kind": kind, "stage": learner.stage.name, "step": learner.step}
        record |= {"time": time.time(), **{name: round(x, 6) for name, x in metrics.items()}}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(f"{learner.stage.name}/{kind}/{name}", value, learner.step)


def _open_board(config: TrainConfig) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(config.folder / "tensorboard"))
