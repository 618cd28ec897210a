"""Excess risk against the gap: what readers lose, on the lines of what they must lose."""

from typing import Any

from kairos_env.benchmarks.cells import Json
from kairos_env.benchmarks.study.figures import BLUE, GREEN, ORANGE, PURPLE, Figure

MARKS = {
    "window": (BLUE, "o"),
    "dilated": (ORANGE, "s"),
    "hybrid": (GREEN, "D"),
    "full": (PURPLE, "x"),
}


def excess_plot(cells: list[Json]) -> Figure:
    """One panel a task: points are measured, lines are closed forms."""
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=True):
            for cell in cells:
                if cell["task"] == task:
                    _reader(axes, cell)
            axes.set(title=task, xlabel="hidden frames")
            axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])
        panels[0].set_ylabel("excess risk")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))

    caption = "Excess risk of trained readers by gap, and the closed forms that bound it"
    return Figure("memory", caption, (3.4 * len(tasks), 3.2), draw)


def _reader(axes: Any, cell: Json) -> None:
    colour, mark = MARKS[cell["reader"]]
    gaps = [row["gap"] for row in cell["gaps"]]
    reach = "all" if cell["reach"] is None else f"{cell['reach']} frames"
    axes.plot(gaps, [row["closed_excess"] for row in cell["gaps"]], color=colour, lw=1, alpha=0.6)
    axes.plot(
        gaps,
        [row["excess"] for row in cell["gaps"]],
        mark,
        color=colour,
        markersize=4.5,
        label=f"{cell['reader']}, sees {reach}",
    )
