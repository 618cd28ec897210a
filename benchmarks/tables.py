"""`kairos bench tables`: write the tables of README and docs from benchmarks/results.

A document marks where a table goes, by its name in `TABLES`:

    <!-- table: kernels -->
    ...whatever stands here is replaced...
    <!-- end of table -->

A number in such a place is therefore always one that was measured; `--check` (and a test) says
which documents are behind their results.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from kairos_env.benchmarks.machine import ROOT

Results = dict[str, Any]
PLACE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class TablesCommand:
    """Write the tables of README and docs from benchmarks/results."""

    check: bool = False
    """Only say which documents are behind."""


def documents(root: Path = ROOT) -> list[Path]:
    """The documents that may hold tables."""
    return [root / "README.md", root / "kernels" / "README.md", *sorted(root.glob("docs/**/*.md"))]


def results(name: str, root: Path = ROOT) -> list[Results]:
    """All results of a benchmark, one for each machine."""
    paths = sorted((root / "benchmarks" / "results").glob(f"{name}-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def filled(text: str, root: Path = ROOT) -> str:
    """A document with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            known = ", ".join(sorted(TABLES))
            raise ValueError(f"no table is called {name!r}; there are {known}")
        return match[1] + TABLES[name](root) + match[4]

    return PLACE.sub(table, text)


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def origin(result: Results) -> str:
    """Where and how a result was measured, in one line."""
    machine = result["machine"]
    what = machine.get("accelerator", machine["processor"])
    return (
        f"\n{what}, {machine['threads']} threads, torch {machine['torch']}, commit "
        f"{result['commit'][:10]}: `{result['command']}`\n"
    )


def kernel_table(root: Path) -> str:
    """Each kernel against its twin and full attention, by length."""
    text = ""
    for result in results("kernels", root):
        rows = []
        for section, title in (
            ("gated_delta", "gated delta rule"),
            ("window_attention", "windows"),
        ):
            for row in result[section]["rows"]:
                forward, both = row["forward_ms"], row.get("forward_backward_ms", {})
                rows.append(
                    [title, row["tokens"]]
                    + [cell(forward.get(who)) for who in ("fast", "full", "twin")]
                    + [cell(both.get(who)) for who in ("fast", "full")]
                    + [f"{row['fraction_of_peak']:.2f}"]
                )
        head = ("kernel", "tokens", "forward, ms", "full attention", "twin")
        text += markdown((*head, "with backward, ms", "full attention", "of matmul peak"), rows)
        text += origin(result)
    return text


def streaming_table(root: Path) -> str:
    """The cost of the next step after a short and a long past."""
    text = ""
    for result in results("kernels", root):
        steps = {name: result["streaming"][name]["step_ms"] for name in result["streaming"]}
        steps["a step of the small dream"] = result["transformer"]["dream"]["step_ms"]
        ages = list(steps["a step of the small dream"])
        rows = []
        for name, row in steps.items():
            last = row.get(ages[-1])
            ratio = "-" if last is None else f"{last / row[ages[0]]:.3f}"
            title = {"full": "full attention", "gated_delta": "gated delta rule"}.get(name, name)
            rows.append([title.replace("_", " "), *(cell(row.get(age)) for age in ages), ratio])
        head = ("next frame, ms", *(f"at frame {int(age):,}" for age in ages), "last / first")
        text += markdown(head, rows) + origin(result)
    return text


def scaling_table(root: Path) -> str:
    """Time of a whole network against the number of frames."""
    text = ""
    for result in results("kernels", root):
        network = result["transformer"]
        head = ("frames", *network["frames"], "R² of a line")
        row = ("one pass, ms", *map(cell, network["pass_ms"]), f"{network['linear_fit_r2']:.5f}")
        text += markdown(head, [row]) + origin(result)
    return text


def data_table(root: Path) -> str:
    """Recording, storing and sampling."""
    text = ""
    for result in results("data", root):
        rows = [(r["name"], cell(r["value"]), r["unit"], r["note"]) for r in result["rows"]]
        text += markdown(("what", "value", "unit", "note"), rows) + origin(result)
    return text


def decision_table(name: str, root: Path) -> str:
    """What policies achieve in the real twin, and what a decision costs."""
    text = ""
    for result in results(name, root):
        rows = []
        for policy, row in result["results"].items():
            rate = [100 * row["success"][key] for key in ("value", "low", "high")]
            gained = [row["return"][key] for key in ("value", "low", "high")]
            rows.append(
                [
                    policy,
                    row["episodes"],
                    "{:.0f} % [{:.0f}, {:.0f}]".format(*rate),
                    "{:.2f} [{:.2f}, {:.2f}]".format(*gained),
                    cell(row.get("share")),
                    f"{row['steps']['value']:.1f}",
                    *(cell(row[key]) for key in ("cpu_ms", "wall_ms")),
                    cell(result["costs"].get(policy, {}).get("gflop")),
                ]
            )
        head = ("policy", "episodes", "success", "return", "share", "steps")
        costs = ("CPU ms", "wall ms", "GFLOP")
        title = f"World `{result['world']['name']}` in {result['environment']}:\n\n"
        text += title + markdown((*head, *costs), rows) + origin(result) + "\n"
    return text.removesuffix("\n")


def agents_table(root: Path) -> str:
    """Policies from the dream beside their baselines."""
    text = ""
    for result in results("agents", root):
        zero, rows = result["random"], []
        rows.append(
            ["random chunks", "", f"{zero['return']:.2f}", "0", share(zero["success"]), "0"]
        )
        for name, row in result["methods"].items():
            price = result["real_steps"][name.split(",")[0]]
            solved = None if row["success"] is None else row["success"]["value"]
            spent = (price["practice"] or 0) + price["examinations"]
            scores = (interval(row[key]) for key in ("return", "normalised"))
            rows.append([name, row["return"]["runs"], *scores, share(solved), f"{spent:,.0f}"])
        head = ("policy", "seeds", "real return", "normalised", "solved", "real actions")
        text += f"World `{result['world']}`:\n\n" + markdown(head, rows) + origin(result) + "\n"
    return text.removesuffix("\n")


def interval(estimate: Mapping[str, Any] | None) -> str:
    """A statistic with where 95 % of its bootstrap draws lie."""
    if estimate is None:
        return "-"
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"


def share(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.0f} %"


def cell(value: float | None) -> str:
    """A number with three figures, or a hyphen where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


TABLES: dict[str, Callable[[Path], str]] = {
    "kernels": kernel_table,
    "streaming": streaming_table,
    "scaling": scaling_table,
    "data": data_table,
    "agents": agents_table,
    "planning": partial(decision_table, "planning"),
    "acting": partial(decision_table, "acting"),
}


def main(argv: Sequence[str]) -> int:
    """`kairos bench tables`."""
    command = tyro.cli(TablesCommand, args=list(argv), prog="kairos bench tables")
    behind = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        made = filled(text)
        if made != text:
            behind.append(str(path.relative_to(ROOT)))
            if not command.check:
                path.write_text(made, encoding="utf-8")
    verb = "behind its results" if command.check else "written"
    sys.stdout.write("".join(f"{name}: {verb}\n" for name in behind))
    return int(command.check and bool(behind))
