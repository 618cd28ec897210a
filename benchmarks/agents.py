"""`kairos bench agents RUN`: keep a study of `kairos imagine` among the results.

The study trains and measures; this writes down what it found, with machine, commit and command, as
`agents-WORLD.json`, curves included.
"""

import dataclasses
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from kairos_env.agents.data.files import read_json, write_json
from kairos_env.benchmarks.machine import commit, describe_machine, results_folder
from kairos_env.terminal import run_command

CURVE = ("steps", "seconds", "dreamed", "real", "success", "uncertainty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentsCommand:
    """Keep a study of `kairos imagine` among the results."""

    run: Annotated[Path, tyro.conf.Positional]
    """The study's folder."""
    name: str | None = None
    """What it is called; the world's name when not given."""


def document(run: Path) -> dict[str, Any]:
    """A study's results, with the curves of its runs."""
    results = read_json(run / "results.json")
    if not isinstance(results, dict) or "methods" not in results:
        raise ValueError(f"{run}/results.json holds no study of 'kairos imagine'")
    return {
        "name": "agents",
        "commit": commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine() | {"threads": results["threads"]},
        **results,
        "curves": curves(run),
    }


def curves(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Every examination of every policy, by method and seed."""
    from kairos_env.agents.imagine.run import LOG, read_log

    lines = {}
    for path in sorted(run.glob(f"*/seed-*/{LOG}")):
        entries = (entry.to_json() for entry in read_log(path.parent))
        kept = [{name: rounded(entry[name]) for name in CURVE} for entry in entries]
        lines[f"{path.parent.parent.name}/{path.parent.name}"] = kept
    return lines


def rounded(value: Any) -> Any:
    """A float with the digits that mean something."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return run_command("kairos bench agents", AgentsCommand, keep, argv, also=())


def keep(command: AgentsCommand) -> None:
    """Write a study down."""
    content = document(command.run)
    path = results_folder() / f"agents-{command.name or content['world']}.json"
    write_json(path, content)
    sys.stdout.write(f"wrote {path}\n")
