"""The plots of a study. Each is drawn once and used twice: a PNG on white, and SVG in a page.

The SVG takes its ink from the page (`currentColor`), so it can be read in a dark one.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

from kairos_env.benchmarks.fidelity.measure import COPY, DREAM, MEAN
from kairos_env.benchmarks.study.drift import FLOOR
from kairos_env.benchmarks.study.sides import TRUTH
from kairos_env.benchmarks.study.summary import Json, figure_cell

INK = "#1f2328"
GRID = "#8a8f98"
# Lightness in the middle: readable on white and on black.
BLUE, ORANGE, GREEN, PURPLE, RED = "#3b8ee0", "#e58a1f", "#2fa36b", "#a06cd5", "#e0524d"
FAMILIES = {
    "as it is": (GREEN, "D"),
    "noise": (BLUE, "o"),
    "late": (ORANGE, "s"),
    "slow": (PURPLE, "^"),
    "noise only": (RED, "X"),
}
MEANING = {
    "as it is": "whole policy",
    "noise": "led astray",
    "late": "acts late",
    "slow": "acts weakly",
    "noise only": "noise only",
}
LINES = {
    DREAM: ("dream", BLUE, "-"),
    COPY: ("last true frame", ORANGE, "--"),
    MEAN: ("mean frame", GRID, ":"),
    FLOOR: ("floor: true frame through the tokenizer", GREEN, "-."),
}
# Errors below are drawn as none: a still object is found to within less.
LEAST_PIXELS = 0.03
APART = 0.12  # of a row: truth stands above dream
FIGURE_NAMES = {
    "pearson": "Pearson r",
    "spearman": "Spearman",
    "mmrv": "MMRV",
    "slope": "slope",
    "regret": "Regret@1",
}
SCORE_NAMES = {"success": "success rate", "return": "return"}

Drawing = Callable[[Any], None]


class Figure:
    """A drawn plot.

    Args:
        name: Of its file.
        caption: What it shows, for those who see it and those who do not.
        size: Inches.
        draw: Draws on a matplotlib figure.
    """

    def __init__(self, name: str, caption: str, size: tuple[float, float], draw: Drawing) -> None:
        self.name, self.caption = name, caption
        self._canvas = _drawn(size, draw)

    def png(self) -> bytes:
        """On white."""
        file = io.BytesIO()
        with _pyplot().rc_context(_STYLE):
            self._canvas.savefig(file, format="png", dpi=200, facecolor="white")
        return file.getvalue()

    def svg(self) -> str:
        """An element for a page, in the page's own ink."""
        file = io.StringIO()
        style = {**_STYLE, "svg.fonttype": "none", "svg.hashsalt": self.name}
        with _pyplot().rc_context(style):
            self._canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        text = file.getvalue()
        return text[text.index("<svg") :].replace(INK, "currentColor")


def figures(content: Json) -> list[Figure]:
    """Every plot of a study's document."""
    names = list(content["agreement"][DREAM])
    made = [_ranking(content, name) for name in names]
    made += [_policies(content, names[0]), _doubts(content, names[0])]
    if content["drift"]:
        made.append(_drift(content["drift"]))
        if content["drift"].get("uncertainty", {}).get("n"):
            made.append(_reliability(content["drift"]["uncertainty"]))
    return made


def _ranking(content: Json, score: str) -> Figure:
    """Each policy's score in dream and truth."""
    rows, found = content["policies"], content["agreement"][DREAM][score]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _scatter(axes, rows, score)
        low, high = axes.get_xlim()
        _line(axes, found, low, high)
        axes.set_title("\n".join(_told(found)), fontsize=8, loc="left", linespacing=1.4)
        axes.set(xlabel=f"{SCORE_NAMES[score]} in the dream", ylabel="in truth")
        axes.legend(loc="upper left", fontsize=7.5, handletextpad=0.4, borderaxespad=0.3)

    episodes = content["config"]["episodes"]
    caption = (
        f"{SCORE_NAMES[score].capitalize()} of {len(rows)} policies, {episodes} episodes each on "
        "both sides, from the same start states. Bars: 95 % over episodes. Dashed: equal. Solid: "
        "the line that turns dream scores into true ones."
    )
    return Figure(f"ranking-{score}", caption, (5.2, 5.2), draw)


def _scatter(axes: Any, rows: Sequence[Json], score: str) -> None:
    for family, (colour, marker) in FAMILIES.items():
        mine = [row for row in rows if row["family"] == family]
        if mine:
            dream, true = ([row[side][score] for row in mine] for side in (DREAM, TRUTH))
            axes.errorbar(
                [d["value"] for d in dream],
                [t["value"] for t in true],
                xerr=_bars(dream),
                yerr=_bars(true),
                fmt=marker,
                color=colour,
                ms=6,
                lw=1,
                mec="white",
                mew=0.5,
                label=MEANING[family],
                zorder=3,
            )
    values = [row[side][score][end] for row in rows for side in (DREAM, TRUTH) for end in _ENDS]
    low, high = min(values), max(values)
    edge = 0.06 * (high - low or 1)
    limits = low - edge, high + edge
    axes.plot(limits, limits, "--", color=GRID, lw=1, zorder=1)
    axes.set(xlim=limits, ylim=limits, aspect="equal")


def _line(axes: Any, found: Json, low: float, high: float) -> None:
    a, b = (found[name]["estimate"]["value"] for name in ("intercept", "slope"))
    if a is not None and b is not None:
        axes.plot([low, high], [a + b * low, a + b * high], color=INK, lw=1, zorder=2)


def _told(found: Json) -> list[str]:
    lines = []
    for name in ("pearson", "mmrv", "slope", "regret"):
        value = found[name]["estimate"]
        lines.append(f"{FIGURE_NAMES[name]} {figure_cell(value)}")
        perfect = found[name]["ceiling"]["median"]
        if name in ("pearson", "mmrv") and perfect is not None:
            lines[-1] += f"; perfect dream {perfect:.3f}"
    return lines


def _policies(content: Json, score: str) -> Figure:
    """A row for each policy, its two scores joined."""
    rows = content["policies"]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for y, row in enumerate(reversed(rows)):
            true, dream = row[TRUTH][score], row[DREAM][score]
            both = [true["value"], dream["value"]]
            axes.plot(both, [y + APART, y - APART], color=GRID, lw=2, zorder=1)
            marks = (true, ORANGE, "o", y + APART), (dream, BLUE, "D", y - APART)
            for estimate, colour, marker, height in marks:
                axes.errorbar(
                    [estimate["value"]],
                    [height],
                    xerr=_bars([estimate]),
                    fmt=marker,
                    color=colour,
                    ms=5,
                    lw=1,
                    label={ORANGE: "truth", BLUE: "dream"}[colour] if y == 0 else None,
                )
        axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
        axes.set(xlabel=SCORE_NAMES[score], ylim=(-0.7, len(rows) - 0.3))
        axes.legend(loc="lower right", fontsize=8)

    caption = f"The same {SCORE_NAMES[score]}s policy by policy, best in truth first."
    return Figure("policies", caption, (5.2, 0.9 + 0.26 * len(rows)), draw)


def _doubts(content: Json, score: str) -> Figure:
    """This dream between a perfect one and chance."""
    found = content["agreement"][DREAM][score]

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(FIGURE_NAMES), 1)
        for axes, (name, title) in zip(panels, FIGURE_NAMES.items(), strict=True):
            one = found[name]
            for y, (kind, colour) in enumerate((("chance", GRID), ("ceiling", GREEN))):
                extent = one[kind]
                if extent["median"] is not None:
                    ends = [extent["low"], extent["high"]]
                    axes.plot(ends, [y, y], color=colour, lw=7, alpha=0.5, solid_capstyle="butt")
                    axes.plot([extent["median"]], [y], "|", color=colour, ms=9, mew=2)
            if one["estimate"]["value"] is not None:
                bars = _bars([one["estimate"]])
                axes.errorbar(
                    [one["estimate"]["value"]], [2], xerr=bars, fmt="D", color=BLUE, ms=5, lw=1.5
                )
            axes.set_yticks([0, 1, 2], ["chance", "perfect dream", "this dream"], fontsize=7.5)
            axes.set_ylim(-0.6, 2.6)
            axes.set_title(title, fontsize=9, loc="left", pad=3)

    caption = (
        f"Figures of the {SCORE_NAMES[score]} between two references, bars 95 %. Perfect dream: "
        "the truth against itself with other episodes. Chance: this dream with its policies "
        "shuffled."
    )
    return Figure("doubts", caption, (5.2, 5.6), draw)


def _drift(drift: Json) -> Figure:
    """Errors by horizon: a panel for each object, one for the state, one for the picture."""
    first = next(iter(drift["predictors"][DREAM]["horizons"].values()))
    panels: list[tuple[str, tuple[str, ...]]] = [
        (f"{name}: error, pixels", ("objects", name, "error_px"))
        for name in first.get("objects", {})
    ]
    if "state" in first:
        panels.append(("state: error, deviations", ("state",)))
    panels.append(("picture: PSNR, dB", ("psnr",)))
    rows = -(-len(panels) // 2)

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, 2, sharex=True, squeeze=False).ravel()
        for axes, (title, path) in zip(grid, panels, strict=False):
            for name, (label, colour, style) in LINES.items():
                _curve(axes, drift["predictors"][name], path, label, colour, style)
            axes.set_title(title, fontsize=9, loc="left", pad=3)
            if path[0] == "objects":
                axes.set_yscale("log")
                axes.set_ylim(bottom=LEAST_PIXELS)
                _plain_ticks(axes.yaxis)
            elif path[0] == "state":
                axes.set_ylim(bottom=0)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[max(len(panels) - 2, 0) : len(panels)]:
            axes.set_xlabel("frames dreamed")
            axes.tick_params(labelbottom=True)
        handles, labels = grid[-1 if len(panels) == len(grid) else 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8)

    held_out = drift["held_out"]
    caption = (
        f"{held_out['episodes']} held-out episodes replayed open-loop: true history and actions, "
        "nothing else. Bands: 95 % over episodes. An object that the dream has lost counts as "
        "standing in the middle of the picture."
    )
    return Figure("drift", caption, (6.4, 0.7 + 2.0 * rows), draw)


def _curve(
    axes: Any, predictor: Json, path: tuple[str, ...], label: str, colour: str, style: str
) -> None:
    curve = _at(predictor["curve"], path)
    if curve is None or all(value is None for value in curve):
        return
    xs = [i + 1 for i, value in enumerate(curve) if value is not None]
    axes.plot(xs, [curve[x - 1] for x in xs], style, color=colour, lw=1.6, label=label)
    marks = {int(h): _at(row, path) for h, row in predictor["horizons"].items()}
    there = {h: e for h, e in marks.items() if e is not None and e["value"] is not None}
    axes.fill_between(
        list(there),
        [e["low"] for e in there.values()],
        [e["high"] for e in there.values()],
        color=colour,
        alpha=0.2,
        lw=0,
    )


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _reliability(known: Json) -> Figure:
    """Expected against actual errors."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        expected = [row["expected"] for row in known["table"]]
        actual = [row["actual"] for row in known["table"]]
        low, high = 0.8 * min(expected + actual), 1.25 * max(expected + actual)
        axes.plot([low, high], [low, high], "--", color=GRID, lw=1, label="as expected")
        axes.plot(expected, actual, "-D", color=BLUE, ms=5, lw=1.4, label="frames in ten parts")
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel="error the dream expects, deviations", ylabel="actual error")
        for axis in (axes.xaxis, axes.yaxis):
            _plain_ticks(axis)
        axes.legend(loc="upper left", fontsize=8)

    caption = (
        "Is the dream's error as large as it says? Frames sorted by the error that the dream "
        f"expects. Rank correlation {figure_cell(known['spearman'])}."
    )
    return Figure("uncertainty", caption, (4.6, 4.2), draw)


def _plain_ticks(axis: Any) -> None:
    """Numbers instead of powers on a short logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


_ENDS = ("low", "high")
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def _drawn(size: tuple[float, float], draw: Drawing) -> Any:
    plt = _pyplot()
    from matplotlib.figure import Figure as Canvas

    with plt.rc_context(_STYLE):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas)
    return canvas


def _pyplot() -> Any:
    try:
        import matplotlib as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "kairos-env[study]"') from error
    return plt


def _bars(estimates: Sequence[Json]) -> Any:
    """Distances to both ends of the intervals, for `errorbar`."""
    return [
        [max(e["value"] - e["low"], 0) for e in estimates],
        [max(e["high"] - e["value"], 0) for e in estimates],
    ]
