"""Progress on stderr, one line for each thing that is being done."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Tell = Callable[[str, float, float], None]
"""Takes what is being done, how much of it is done, and of how much."""


def progress_bar() -> Progress:
    """Parts in percent, and the time that they took."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def teller(bar: Progress, *, before: str = "") -> Tell:
    """Gives each thing a line of the bar when it is first heard of.

    Args:
        bar: Shows the lines.
        before: What each line begins with.
    """
    lines: dict[str, TaskID] = {}

    def tell(what: str, done: float, of: float) -> None:
        if what not in lines:
            lines[what] = bar.add_task(before + what, total=of)
        bar.update(lines[what], completed=done)

    return tell
