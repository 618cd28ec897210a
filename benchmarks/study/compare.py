"""`kairos study compare A B`: two studies of the same policies and start states, side by side.

The differences have intervals of their own: an episode number is drawn for both studies at once, so
what the two share (hard start states, unlucky noise) does not count as doubt.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.table import Table

from kairos_env.agents.data.files import read_json, write_json
from kairos_env.benchmarks.fidelity.report import plain
from kairos_env.benchmarks.machine import commit
from kairos_env.benchmarks.study.agreement import differences
from kairos_env.benchmarks.study.figures import FIGURE_NAMES, SCORE_NAMES, figures
from kairos_env.benchmarks.study.report import plots_row, table, write_text
from kairos_env.benchmarks.study.shards import PLAN, read_outcomes
from kairos_env.benchmarks.study.sides import DREAM, TRUTH
from kairos_env.benchmarks.study.summary import Json, figure_cell, scores
from kairos_env.terminal import result_console, run_command

# What two studies must share for their differences to mean something.
SHARED = ("environment", "config", "grades")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Put two studies side by side: two worlds, or two checkpoints of one."""

    first: tyro.conf.Positional[Path]
    """Folder of a study."""
    second: tyro.conf.Positional[Path]
    """Folder of another one, of the same environment, policies, episodes and seed."""
    out: Path | None = None
    """Folder for compare.html and compare.json; nothing is written without."""
    resamples: int = 2000
    """Bootstrap draws behind each interval."""


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return run_command("kairos study compare", CompareArguments, run, argv)


def run(arguments: CompareArguments) -> None:
    """Compare, print, write."""
    content = compare(arguments.first, arguments.second, resamples=arguments.resamples)
    console = result_console()
    console.print(_screen_table(content))
    if arguments.out is not None:
        write_json(arguments.out / "compare.json", content)
        folders = arguments.first, arguments.second
        _write_page(arguments.out / "compare.html", content, folders)
        console.print(arguments.out / "compare.html", highlight=False)


def compare(first: Path, second: Path, *, resamples: int) -> Json:
    """Figures of both, and second minus first with paired intervals.

    Raises:
        ValueError: They are not of the same policies and start states, or one is not finished.
    """
    folders = first, second
    plans = [_read(folder, PLAN) for folder in folders]
    results = [_read(folder, "results.json") for folder in folders]
    differ = [name for name in SHARED if plans[0][name] != plans[1][name]]
    if differ:
        raise ValueError(
            f"{first} and {second} are studies of different things ({', '.join(differ)} differ): "
            "run both with the same arguments but the world"
        )
    P = range(len(plans[0]["grades"]))
    seed = plans[0]["config"]["seed"]
    truth = scores([read_outcomes(first, (i, TRUTH)) for i in P])
    dreams = [scores([read_outcomes(f, (i, DREAM)) for i in P]) for f in folders]
    names = list(results[0]["agreement"][DREAM])
    return {
        "name": "study-compare",
        "command": " ".join(["kairos", *sys.argv[1:]]),
        "commit": commit(),
        "worlds": [
            {**result["world"], "agreement": result["agreement"][DREAM]} for result in results
        ],
        "difference": {
            name: plain(
                differences(
                    truth=truth[name],
                    dreams=(dreams[0][name], dreams[1][name]),
                    resamples=resamples,
                    seed=seed,
                )
            )
            for name in names
        },
    }


def _rows(content: Json) -> list[list[str]]:
    """A line for each score and figure: first, second, second minus first."""
    first, second = (world["agreement"] for world in content["worlds"])
    return [
        [
            f"{SCORE_NAMES[score]}: {title}",
            figure_cell(first[score][name]["estimate"]),
            figure_cell(second[score][name]["estimate"]),
            figure_cell(content["difference"][score][name], sign=True),
        ]
        for score in first
        for name, title in FIGURE_NAMES.items()
    ]


def _heads(content: Json) -> list[str]:
    names = [world["name"] for world in content["worlds"]]
    if names[0] == names[1]:
        names = [f"{world['name']} {world['fingerprint'][:6]}" for world in content["worlds"]]
    return ["", *names, "second minus first"]


def _screen_table(content: Json) -> Table:
    found = Table(*_heads(content), title="dream against truth", title_justify="left")
    for row in _rows(content):
        found.add_row(*row)
    return found


def _write_page(path: Path, content: Json, folders: Sequence[Path]) -> None:
    """Both rankings, and the table."""
    heads = _heads(content)
    title = f"{heads[1]} and {heads[2]}: which dream ranks policies as the truth does?"
    parts = [f"<h1>{title}</h1>", f"<div class='scroll'>{table(heads, _rows(content))}</div>"]
    for head, folder in zip(heads[1:], folders, strict=False):
        plots = figures(_read(folder, "results.json"))
        shown = [plot for plot in plots if plot.name.startswith("ranking")]
        parts += [f"<h2>{head}</h2>", plots_row(shown)]
    write_text(path, title, parts)


def _read(folder: Path, name: str) -> Json:
    if not (folder / name).is_file():
        raise ValueError(f"{folder} holds no finished study: {name} is missing; run `kairos study`")
    content: Json = read_json(folder / name)
    return content
