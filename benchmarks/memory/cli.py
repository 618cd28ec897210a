"""`kairos bench memory`: theorem 1 with trained readers, or in pixels with trained worlds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from kairos_env.agents.data.files import read_json, write_bytes
from kairos_env.benchmarks.cells import Cells, Json, cell_folder
from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.fidelity.report import show
from kairos_env.benchmarks.machine import write_results
from kairos_env.benchmarks.memory.suite import SuiteConfig, chosen, run, settings, verdict
from kairos_env.benchmarks.progress import progress_bar, teller
from kairos_env.pictures import write_picture
from kairos_env.terminal import run_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryBench:
    """Measure what windows forget: small trained stacks against closed forms, or worlds in pixels.

    Twelve cells (task and reader) of about half a minute of processor time each; a stopped run goes
    on with the cells that are missing.
    """

    suite: Annotated[SuiteConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=SuiteConfig
    )
    tasks: tuple[str, ...] = ()
    """Of "binary cue", "Gaussian cue", "moving hidden object"; all when not given."""
    pixels: tuple[str, ...] = ()
    """Worlds of KairosOcclude-v0 to compare instead, by name or folder: by the place of the ball
    that comes back into sight, for every hidden gap."""
    episodes: int = 200
    """Held-out episodes for `--pixels`."""
    horizon: int = 100
    """Dreamed frames of each."""
    beside: Path | None = None
    """With `--pixels`, results of another such comparison on the same episodes: the worlds that are
    not compared again stand beside these as they were found then."""
    strips: Path | None = None
    """With `--pixels`, also write a picture: truth above, the worlds below."""
    plot: Path | None = None
    """Also draw excess risk against the gap into this PNG."""
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""
    cells: Path | None = None
    """Folder that keeps finished cells; ~/.cache/kairos-env when not given."""
    threads: int = 1
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """A few updates, to see that it runs; writes nothing unless --out is given."""


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return run_command("kairos bench memory", MemoryBench, _measure, argv)


def _measure(bench: MemoryBench) -> None:
    if bench.quick:
        bench = dataclasses.replace(
            bench, suite=dataclasses.replace(bench.suite, steps=3, sequences=20)
        )
    torch.set_num_threads(bench.threads)
    name, results = _pixels(bench) if bench.pixels else _suite(bench)
    if not bench.quick or bench.out is not None:
        Console().print(f"written to {write_results(name, results, folder=bench.out)}")


def _suite(bench: MemoryBench) -> tuple[str, Json]:
    told = settings(bench.suite)
    cells = Cells(cell_folder("memory", told, bench.cells))
    with cells.bar:
        found = run(bench.suite, chosen(bench.tasks), cells)
    results = {"settings": told, "verdict": verdict(found), "cells": found}
    console = Console()
    for task in dict.fromkeys(cell["task"] for cell in found):
        console.print(_table(task, [cell for cell in found if cell["task"] == task]))
    console.print(results["verdict"])
    if bench.plot is not None:
        from kairos_env.benchmarks.memory.plot import excess_plot

        write_bytes(bench.plot, excess_plot(found).png())
    return "memory", results


def _table(task: str, cells: list[Json]) -> Table:
    """Measured and closed excess, a column a reader."""
    heads = [f"{cell['reader']}, {reach(cell['reach'])}" for cell in cells]
    table = Table("gap", *heads, title=f"{task}: excess risk, measured (closed form)")
    for rows in zip(*(cell["gaps"] for cell in cells), strict=True):
        texts = [f"{row['excess']:.3f} ({row['closed_excess']:.3f})" for row in rows]
        styles = ("{}" if row["agrees"] else "[red]{}[/]" for row in rows)
        table.add_row(
            str(rows[0]["gap"]), *(s.format(t) for s, t in zip(styles, texts, strict=True))
        )
    return table


def reach(frames: int | None) -> str:
    """How far back a stack sees, in words."""
    return "all frames" if frames is None else f"reach {frames}"


def _pixels(bench: MemoryBench) -> tuple[str, Json]:
    from kairos_env.benchmarks.memory.pixels import compare_worlds
    from kairos_env.worlds import load_world

    config = FidelityConfig(
        episodes=bench.episodes,
        horizon=bench.horizon,
        horizons=(bench.horizon,),
        fork_steps=(1,),
        seed=bench.suite.seed,
        shown=24,
    )
    worlds = [load_world(name) for name in bench.pixels]
    earlier = None if bench.beside is None else read_json(bench.beside)
    with progress_bar() as bar:
        compared = compare_worlds(worlds, config, earlier=earlier, tell=teller(bar))
    results = compared.document
    if bench.strips is not None:
        write_picture(bench.strips, compared.strips)
    console = Console()
    for name, facts in results["worlds"].items():
        console.print(f"{name}: {' '.join(facts['layers'])}, {reach(facts['reach'])}")
    columns = list(results["back_in_sight"])
    for thing in next(iter(results["back_in_sight"].values())):
        found = [results["back_in_sight"][name][thing] for name in columns]
        console.print(
            _by_gap(columns, [f["gaps"] for f in found], "n", f"{thing}: px off when back in sight")
        )
        said = [f["said_while_hidden"] for f in found]
        console.print(
            _by_gap(columns, said, "frames", f"{thing}: px off in the state while it is hidden")
        )
    return "pixel-memory", results


def _by_gap(columns: list[str], found: list[list[Json]], counted: str, title: str) -> Table:
    table = Table("hidden frames", *columns, title=title)
    for parts in zip(*found, strict=True):
        gap = f"{parts[0]['from']} - {parts[0]['to'] or ''} ({parts[0][counted]} {counted})"
        table.add_row(gap, *(show(part["error_px"]) for part in parts))
    return table
