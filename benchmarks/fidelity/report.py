"""A report on the screen, as JSON, and in the world's own card."""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from kairos_env.agents.data.files import write_bytes, write_json
from kairos_env.benchmarks.fidelity.measure import CONV, DREAM, TRUTH, Report
from kairos_env.benchmarks.fidelity.metrics import Json
from kairos_env.benchmarks.fidelity.statistics import Estimate
from kairos_env.benchmarks.fidelity.strips import strips
from kairos_env.benchmarks.machine import commit, describe_machine
from kairos_env.worlds import rewrite_manifest

if TYPE_CHECKING:
    from kairos_env.worlds import World

FORMAT = 1
DIGITS = 6  # significant ones that are kept


def document(report: Report, *, command: str, device: str, more: Mapping[str, Any]) -> Json:
    """Everything, as JSON values, with where and how it was measured."""
    return {
        "name": "fidelity",
        "format": FORMAT,
        "command": command,
        "commit": commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
        **plain({**report.document, **more}),
    }


def write_report(path: Path, content: Json) -> None:
    """Write the JSON, whole or not at all."""
    write_json(path, content)


def write_strips(path: Path, report: Report) -> None:
    """Write the picture: truth, dream, and the baseline that moves."""
    import imageio.v3 as iio

    shown = [report.pictures[name] for name in (TRUTH, DREAM, CONV) if name in report.pictures]
    write_bytes(path, iio.imwrite("<bytes>", strips(shown, report.lengths), extension=".png"))


def write_into_world(world: "World", content: Json) -> None:
    """Put the summary into world.json, and into the card that is made from it.

    Raises:
        ValueError: The world was made in code and stands in no folder.
    """
    if world.path is None:
        raise ValueError("this world stands in no folder, so there is no world.json to write into")
    manifest = dataclasses.replace(world.manifest, fidelity=summary(content))
    rewrite_manifest(world.path, manifest)


def summary(content: Json) -> Json:
    """The figures by which worlds are told apart, from a document."""
    dream, reward = content["predictors"][DREAM]["horizons"], content["reward"][DREAM]
    result: Json = {
        "episodes": content["held_out"]["episodes"],
        "frames": content["held_out"]["frames"],
        "seed": content["config"]["seed"],
        "measured_at": content["measured_at"],
        "commit": content["commit"],
        "psnr": {h: _value(row["psnr"]) for h, row in dream.items()},
        "reward_r2": _value(reward["r2"]),
    }
    if any("state" in row for row in dream.values()):
        result["state_error"] = {h: _value(row.get("state")) for h, row in dream.items()}
    for row in dream.values():
        for name in row.get("objects", {}):
            result[f"{name}_error_px"] = {
                h: _value(other["objects"][name]["error_px"]) for h, other in dream.items()
            }
            result[f"{name}_present"] = {
                h: _value(other["objects"][name]["present"]) for h, other in dream.items()
            }
        break
    for frames, ends in content["termination"][DREAM].items():
        result[f"end_within_{frames}"] = {
            which: _value(ends[which]) for which in ("precision", "recall")
        }
    for step, row in content["counterfactual"].get(DREAM, {}).items():
        if "state" in row:
            result.setdefault("counterfactual_r2", {})[step] = _value(row["state"]["r2"])
    if content.get("uncertainty", {}).get("n"):
        known = content["uncertainty"]
        result["uncertainty"] = {
            name: _value(known[name]) for name in ("spearman", "expected", "actual")
        }
    return result


def print_report(content: Json, console: Console) -> None:
    """Tables for a person."""
    held_out = content["held_out"]
    console.print(
        f"[bold]{content['world']['name']}[/]: {held_out['episodes']} held-out episodes, "
        f"{held_out['frames']} frames, {held_out['terminated']} of them terminate; "
        f"dreamed after {content['history']} true frames. Intervals: 95 %, over episodes",
        highlight=False,
    )
    for line in _legend(content):
        console.print(line, style="dim", highlight=False)
    console.print(_horizon_table(content))
    console.print(_wins_table(content["dream_is_better"]))
    console.print(_behaviour_table(content))
    for name, row in content["paired"].items():
        console.print(_paired_table(name, row))
    for table in _gap_tables(content):
        console.print(table)
    if content.get("uncertainty", {}).get("n"):
        console.print(_uncertainty_table(content["uncertainty"]))


def _legend(content: Json) -> list[str]:
    conv = content["conv_baseline"]
    lines = ["copy: the last true frame. mean: the average frame"]
    if "updates" in conv:
        lines[0] += (
            f". conv: a network without memory ({conv['parameters'] / 1e6:.1f} M parameters, "
            f"{conv['updates']} updates on {conv['training_frames']} frames)"
        )
    return lines


def _horizon_table(content: Json) -> Table:
    """Errors: a block a quantity, a row a predictor, a column a horizon."""
    predictors = content["predictors"]
    dream = predictors[DREAM]["horizons"]
    heads = [f"frame {h} ({row['n']})" for h, row in dream.items()]
    table = _table("drift", "", *heads)
    first = next(iter(dream.values()))

    def block(title: str, read: Callable[[Json], Json | None], *, percent: bool = False) -> None:
        table.add_section()
        table.add_row(title, style="italic")
        for name, rows in predictors.items():
            cells = [show(read(row), percent=percent) for row in rows["horizons"].values()]
            table.add_row(f"  {name}", *cells, style="bold" * (name == DREAM))

    def of(thing: str, what: str) -> Callable[[Json], Json | None]:
        return lambda row: row["objects"][thing][what]

    for thing in first.get("objects", {}):
        block(f"{thing}, px", of(thing, "error_px"))
        block(f"{thing}, present", of(thing, "present"), percent=True)
    if "state" in first:
        block("state, deviations", lambda row: row.get("state"))
    block("PSNR, dB", lambda row: row["psnr"])
    return table


def _wins_table(better: Json) -> Table:
    """At how many frames the dream is the better one: a row a baseline, a column a quantity."""
    title = "frames at which the dream is truer than a baseline; +: surely, -: surely not"
    table = _table(title, "", *next(iter(better.values())))
    for name, row in better.items():
        cells = (
            f"{one['frames']} of {one['of']} (+{one['surely']}, -{one['surely_not']})"
            for one in row.values()
        )
        table.add_row(name, *cells)
    return table


def _behaviour_table(content: Json) -> Table:
    """Reward, ends and counterfactuals, a column a predictor."""
    names = list(content["reward"])
    table = _table("reward, ends, answers to actions", "", *names)
    frames = content["reward"][DREAM]["frames"]

    def add(label: str, values: list[Any], *, percent: bool = False) -> None:
        table.add_row(label, *(show(value, percent=percent, n=True) for value in values))

    add(f"reward R², {frames} frames", [content["reward"][name]["r2"] for name in names])
    add(f"return R², {frames} frames", [content["reward"][name]["return_r2"] for name in names])
    for within in content["termination"][DREAM]:
        rows = [content["termination"][name][within] for name in names]
        label = f"end within {within} frames, ±{rows[0]['tolerance']}"
        for what in ("precision", "recall"):
            add(f"{label}: {what}", [row[what] for row in rows], percent=True)
            add(f"    exact: {what}", [row["strict"][what] for row in rows], percent=True)
    futures = content["counterfactual"]
    for step in futures.get(DREAM, {}):
        rows = [futures.get(name, {}).get(step, {}) for name in names]
        for what in ("r2", "cosine"):
            word = "R²" if what == "r2" else what
            values = [(row.get("state") or {}).get(what) for row in rows]
            add(f"s'(a) - s'(b) after {step} steps, state: {word}", values)
            for thing in rows[0].get("objects", {}):
                values = [((row.get("objects") or {}).get(thing) or {}).get(what) for row in rows]
                if values[0] is not None:
                    add(f"s'(a) - s'(b) after {step} steps, {thing}: {word}", values)
    return table


def _paired_table(name: str, row: Json) -> Table:
    """The dream's errors less those of another world, a column a horizon."""
    horizons = row["horizons"]
    heads = [f"frame {h}" for h in horizons]
    title = f"errors less those of {name}, episode by episode: below 0 the dream is truer"
    table = _table(title, "", *heads)
    frames = list(horizons.values())
    for thing in frames[0].get("objects", {}):
        table.add_row(f"{thing}, px", *(show(f["objects"][thing]["error_px"]) for f in frames))
    table.add_row("squared error of the picture", *(show(f["squared_error"]) for f in frames))
    table.add_row("squared error of rewards", show(row["reward_squared"]))
    return table


def _gap_tables(content: Json) -> list[Table]:
    """What comes back into sight: a table an object."""
    tables = []
    for thing in content["reappearance"][DREAM]:
        columns = ("", "g", "n", "error, px", "present", "late, frames", "off by, frames")
        table = _table(f"{thing}: back in sight after g hidden frames", *columns)
        for name, things in content["reappearance"].items():
            for gap in things[thing]["gaps"]:
                if gap["n"]:
                    to = f"-{gap['to']}" if gap["to"] else "+"
                    cells = show(gap["error_px"]), show(gap["present"], percent=True)
                    late = show(gap["late_frames"]), show(gap["late_frames_abs"])
                    table.add_row(name, f"{gap['from']}{to}", str(gap["n"]), *cells, *late)
        tables.append(table)
    return tables


def _uncertainty_table(known: Json) -> Table:
    title = (
        f"uncertainty, in deviations: {show(known['expected'])} expected, {show(known['actual'])} "
        f"actual, rank correlation {show(known['spearman'])}"
    )
    table = _table(title, "frames, by expected error", "expected", "actual")
    for row in known["table"]:
        table.add_row(str(row["n"]), f"{row['expected']:.3f}", f"{row['actual']:.3f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left", title_style="bold")
    table.box, table.pad_edge = box.SIMPLE_HEAD, False
    return table


def show(estimate: Json | None, *, percent: bool = False, n: bool = False) -> str:
    """`1.23 [1.10, 1.40]`, or a dash where nothing was measured."""
    if estimate is None:
        return "-"
    of = f" of {estimate['n']}" * n
    if estimate["value"] is None:
        return f"-{of}"
    numbers = [estimate[key] * (100 if percent else 1) for key in ("value", "low", "high")]
    value, low, high = (f"{x:.0f}" if percent else _short(x) for x in numbers)
    interval = "" if value == low == high else f" [{low}, {high}]"
    return f"{value}{interval}" + " %" * percent + of


def _short(x: float) -> str:
    return f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}" if abs(x) >= 0.1 or not x else f"{x:.3f}"


def _value(estimate: Json | None) -> float | None:
    """A number for the card, short enough to read."""
    if estimate is None or estimate["value"] is None:
        return None
    return float(f"{estimate['value']:.4g}")


def plain(value: Any) -> Any:
    """Estimates and tuples as JSON values, floats with the digits that mean something."""
    if isinstance(value, Estimate):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return value
