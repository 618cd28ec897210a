"""What a study says: a live line with both returns, a table, and the curves as a picture."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from kairos_env.agents.data.files import replacing
from kairos_env.agents.imagine.run import LOG, Entry, read_log
from kairos_env.agents.imagine.statistics import price
from kairos_env.terminal import percent

Json = dict[str, Any]


class Live:
    """A bar for every policy; dreamed and real return stand beside each other."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(stderr=True),
            refresh_per_second=2,
        )
        self._tasks: dict[str, TaskID] = {}

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

    def __call__(self, method: str, seed: int, entry: Entry, spent: float) -> None:
        """An examination."""
        name = f"{method}, seed {seed}"
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=1.0, numbers="")
        self._bar.update(self._tasks[name], completed=spent, numbers=told(entry))


def told(entry: Entry) -> str:
    """An examination in a line."""
    reading = entry.reading
    dreamed = "" if reading.dreamed is None else f"dreamed {reading.dreamed.mean():.2f}  "
    solved = "" if entry.success is None else f"  solved {100 * entry.success:.0f} %"
    return f"step {reading.steps}  {dreamed}real {reading.real.mean():.2f}{solved}"


def print_results(results: Json, console: Console) -> None:
    """A table for a person, and what the guard said."""
    table = Table(
        "policy", "real return", "normalised", "solved", "real steps", box=box.SIMPLE_HEAD
    )
    zero = results["random"]
    table.add_row("random chunks", f"{zero['return']:.2f}", "0", percent(zero["success"]), "0")
    for name, row in results["methods"].items():
        solved = None if row["success"] is None else row["success"]["value"]
        table.add_row(
            name,
            interval(row["return"]),
            interval(row["normalised"]),
            percent(solved),
            f"{price(results, name):,.0f}",
        )
    console.print(table)
    for run in results["runs"]["dream"]:
        if run["stopped"]:
            console.print(f"guard: {run['stopped']}", highlight=False)


def interval(estimate: Json | None) -> str:
    """`0.97 [0.95, 0.99]`."""
    if estimate is None:
        return "-"
    value = f"{estimate['value']:.2f}"
    if estimate["runs"] == 1:
        return value
    return f"{value} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def draw_curves(out: Path) -> Path | None:
    """Dreamed and real return over practice, one line a run; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    shown: set[str] = set()
    paths = sorted(out.glob(f"*/seed-*/{LOG}"))
    methods = sorted({path.parent.parent.name for path in paths})
    for path in paths:
        method = path.parent.parent.name
        entries = read_log(path.parent)
        lines = {f"{method}, real": [e.reading.real.mean() for e in entries]}
        if entries and entries[0].reading.dreamed is not None:
            lines[f"{method}, dreamed"] = [
                e.reading.dreamed.mean() for e in entries if e.reading.dreamed is not None
            ]
        steps = [e.reading.steps for e in entries]
        for name, values in lines.items():
            label = name if name not in shown else None
            shown.add(name)
            style = "--" if name.endswith("dreamed") else "-"
            colour = f"C{methods.index(method)}"
            axes.plot(steps, values, style, color=colour, label=label, alpha=0.7)
    axes.set(xlabel="steps of practice (chunks)", ylabel="return of an examination")
    axes.legend()
    path = out / "curve.png"
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path
