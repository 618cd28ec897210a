"""`kairos evolve ENV --rounds N --out RUN`: a policy, its data and its world, round by round."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from kairos_env.agents.evolve.config import EvolveConfig
from kairos_env.terminal import percent, result_console, run_command


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return run_command("kairos evolve", EvolveConfig, run, argv)


def run(config: EvolveConfig) -> None:
    """Evolve and print."""
    from kairos_env.agents.evolve.loop import EVOLVE, evolve
    from kairos_env.agents.training.allocator import keep_freed_memory

    keep_freed_memory()
    results = evolve(config)
    console = result_console()
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


def psnr(metrics: dict[str, float]) -> str:
    """`31.2 (27.9)`; a dash where no episode is so long."""
    if "psnr@10" not in metrics:
        return "-"
    return f"{metrics['psnr@10']:.1f} ({metrics['copy@10']:.1f})"
