"""`kairos bench efficiency`: sizes, operations and times, with peers in the same run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from kairos_env.benchmarks.efficiency.suite import EfficiencyConfig, Json, measure
from kairos_env.benchmarks.machine import write_results
from kairos_env.terminal import run_command
from kairos_env.worlds import load_world

QUICK: dict[str, Any] = {
    "batches": (1, 2),
    "lengths": (4, 6, 8),
    "ages": (2, 4),
    "env_steps": 2,
    "rounds": 1,
    "seconds": 0.1,
    "clips": (),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficiencyBench:
    """Measure what our worlds cost, beside a U-Net denoiser and an RSSM of comparable size."""

    config: Annotated[EfficiencyConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=EfficiencyConfig
    )
    threads: int = 1
    """CPU threads. On a shared machine one is far faster than several that wait for each other."""
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Small numbers, to see that it runs; writes nothing unless --out is given."""


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return run_command("kairos bench efficiency", EfficiencyBench, run, argv, also=())


def run(bench: EfficiencyBench) -> None:
    """Measure, print, write."""
    config = dataclasses.replace(bench.config, **QUICK) if bench.quick else bench.config
    torch.set_num_threads(bench.threads)
    results = measure(config, load_world(config.world))
    _show(results)
    if not bench.quick or bench.out is not None:
        Console().print(f"written to {write_results('efficiency', results, folder=bench.out)}")


def _show(results: Json) -> None:
    console = Console()
    table = Table("", "parameters", "MB", "kB a dream", "MFLOP a step")
    for row in results["sizes"] + results["peers"]:
        cells = (row["megabytes"], row["kilobytes_per_dream"])
        flops = row["megaflops_per_step_with_picture"]
        table.add_row(
            row["name"], f"{row['parameters']:,}", *(f"{c:.1f}" for c in cells), f"{flops:.1f}"
        )
    console.print(table)
    table = Table("ms a step, batch", *results["latency"][0]["step_ms"])
    for row in results["latency"]:
        table.add_row(str(row["batch"]), *(f"{value:.2f}" for value in row["step_ms"].values()))
    console.print(table)
    for row in results["environment"]:
        console.print(f"{row['env_steps_per_second']} env steps/s with {row['batch']} dreams")
    console.print(
        f"linear in length: R² {results['length']['linear_fit_r2']}; "
        f"next step by age: {results['age']['step_ms']} ms"
    )
