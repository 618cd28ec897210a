"""`kairos evolve ENV --rounds N --out RUN`: a policy, its data and its world, round by round."""

import sys
from collections.abc import Sequence
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from kairos_env.agents.evolve.config import EvolveConfig

INTERRUPTED = 130
PIPE_WIDTH = 110


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        config = tyro.cli(EvolveConfig, args=list(argv), prog="kairos evolve")
        run(config)
    except KeyboardInterrupt:
        errors.print("Interrupted. What is finished is kept; the same command goes on.")
        return INTERRUPTED
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        errors.print(f"kairos evolve: {error}", markup=False, style="red")
        return 1
    return 0


def run(config: EvolveConfig) -> None:
    """Evolve and print."""
    from kairos_env.agents.evolve.loop import EVOLVE, evolve
    from kairos_env.agents.training.allocator import keep_freed_memory

    keep_freed_memory()
    results = evolve(config)
    # a file or a pipe has no width of its own
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    console.print(table(results))
    console.print(f"wrote {config.out / EVOLVE}", highlight=False)


def table(results: dict[str, Any]) -> Table:
    """A row for each round, and the control."""
    rows = [*results["rounds"], *filter(None, [results["control"]])]
    shown = Table(
        "round", "real return", "solved", "real steps", "held-out PSNR", "deployed PSNR",
        box=box.SIMPLE_HEAD,
        caption="PSNR of dreams ten frames ahead, in dB; beside it: repeating the last true frame",
    )  # fmt: skip
    random = rows[0]["random"]
    shown.add_row("random", f"{random['return']:.2f}", percent(random["success"]), "0", "", "")
    for row in rows:
        shown.add_row(
            row["name"],
            f"{row['real']['return']:.2f}",
            percent(row["real"]["success"]),
            f"{sum(row['real_steps'].values()):,}",
            *(psnr(row["fidelity"][name]) for name in ("held-out", "deployed")),
        )
    return shown


def percent(share: float | None) -> str:
    """A share for a person."""
    return "-" if share is None else f"{100 * share:.0f} %"


def psnr(metrics: dict[str, float]) -> str:
    """`31.2 (27.9)`; a dash where no episode is so long."""
    if "psnr@10" not in metrics:
        return "-"
    return f"{metrics['psnr@10']:.1f} ({metrics['copy@10']:.1f})"
