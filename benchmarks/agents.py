"""`kairos bench agents RUN`: keep a run of `kairos imagine` or `kairos evolve` among the results.

The run trains and measures; this writes down what it found, with machine, commit and command, as
`agents-WORLD.json`, curves included, or as `evolve-ENVIRONMENT.json`.
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
    """Keep a run of `kairos imagine` or `kairos evolve` among the results."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    name: str | None = None
    """What it is called; the name of the world or the environment when not given."""


def document(run: Path) -> dict[str, Any]:
    """What a run found, with the curves of its policies."""
    evolved = (run / "evolve.json").is_file()
    results = read_json(run / ("evolve.json" if evolved else "results.json"))
    if not isinstance(results, dict) or ("rounds" if evolved else "methods") not in results:
        raise ValueError(f"{run} holds no finished run of 'kairos imagine' or 'kairos evolve'")
    return {
        "name": "evolve" if evolved else "agents",
        "commit": commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine() | {"threads": results["threads"]},
        **results,
        **({} if evolved else {"curves": curves(run)}),
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
    """Write a run down."""
    content = document(command.run)
    called = content["world"] if content["name"] == "agents" else content["config"]["env"]
    called = command.name or called.replace("/", "-").lower()
    path = results_folder() / f"{content['name']}-{called}.json"
    write_json(path, content)
    sys.stdout.write(f"wrote {path}\n")
