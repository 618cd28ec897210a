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

from kairos_env.agents.imagine.statistics import price
from kairos_env.benchmarks.machine import ROOT
from kairos_env.terminal import percent

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
            ["random chunks", "", f"{zero['return']:.2f}", "0", percent(zero["success"]), "0"]
        )
        for name, row in result["methods"].items():
            solved = None if row["success"] is None else row["success"]["value"]
            spent = price(result, name)
            scores = (interval(row[key]) for key in ("return", "normalised"))
            rows.append([name, row["return"]["runs"], *scores, percent(solved), f"{spent:,.0f}"])
        head = ("policy", "seeds", "real return", "normalised", "solved", "real actions")
        guarded = " with the guard" * result["config"]["guard"]
        text += f"World `{result['world']}`{guarded}:\n\n"
        text += markdown(head, rows) + origin(result) + "\n"
        text += agents_remarks(result) + "\n"
    return text.removesuffix("\n")


def evolve_table(root: Path) -> str:
    """Rounds of self-evolution, and the control without the loop."""
    text = ""
    for result in results("evolve", root):
        rows = [evolve_row(row) for row in (*result["rounds"], *filter(None, [result["control"]]))]
        zero = result["rounds"][0]["random"]
        rows.insert(0, ["random", f"{zero['return']:.2f}", percent(zero["success"]), *[""] * 5])
        head = ("", "real return", "solved", "in examinations", "dreamed", "real actions")
        fidelity = ("held-out", "last policy's")
        text += f"{result['config']['env']}:\n\n"
        text += markdown((*head, *fidelity), rows) + origin(result) + "\n"
    return text.removesuffix("\n")


def evolve_row(row: Results) -> list[str]:
    """A round: what its policy is worth, what it was on the way, how true the world is."""
    examined, real = row["policy"]["examined"], row["real"]
    error = "" if real.get("error") is None else f" ± {real['error']:.2f}"
    found = [row["fidelity"][name].get("psnr@10") for name in ("held-out", "last")]
    psnr = ["-" if value is None else f"{value:.1f}" for value in found]  # no episode is so long
    return [
        row["name"],
        f"{real['return']:.2f}{error}",
        percent(real["success"]),
        ", ".join(f"{exam['real']:.1f}" for exam in examined),
        ", ".join(f"{exam['dreamed']:.1f}" for exam in examined),
        f"{sum(row['real_steps'].values()):,}",
        *psnr,
    ]


def agents_remarks(result: Results) -> str:
    """What stands below the table of a study: the gap, the price of reality, the guard's words."""
    remarks = guard_remarks(result)
    gap, reached = result["exploit_gap"], result.get("converged_reached")
    if gap is not None:
        values = (f"{interval(gap[which])} of the scale ({which})" for which in ("kept", "last"))
        remarks.append(f"Dreamed minus real return: {', '.join(values)}.")
    if reached is not None:
        remarks.append(
            f"Practice in reality alone had gained {percent(reached['share'])} of its final gain "
            f"after {reached['actions']:,.0f} real actions ({reached['runs']} seeds)."
        )
    return "\n".join(f"{remark}\n" for remark in remarks)


def guard_remarks(result: Results) -> list[str]:
    """What the guard did: in its words for one practice, counted for several."""
    runs = result["runs"]["dream"]
    stopped = [run["stopped"] for run in runs if run["stopped"]]
    if not stopped or len(runs) == 1:
        return [f"The guard {reason}." for reason in stopped]
    zero = result["random"]["return"]
    kept, last = ([run[which]["return"] for run in runs] for which in ("kept", "last"))
    fallen = [(a - b) / abs(a) for a, b in zip(kept, last, strict=True)]
    lost = [(a - b) / (a - zero) if a > zero else 0.0 for a, b in zip(kept, last, strict=True)]
    return [
        f"The guard ended {len(stopped)} of {len(runs)} practices. On the test episodes the last "
        f"policies' returns had fallen below the kept ones' by {percents(fallen)} of these. Of "
        f"what the kept ones gain over random chunks, that is {percents(lost)}."
    ]


def percents(shares: Iterable[float]) -> str:
    """Shares from the smallest to the largest."""
    return ", ".join(percent(share) for share in sorted(shares))


def memory_table(root: Path) -> str:
    """Excess risk of trained readers beside the closed form, task by task."""
    text = ""
    for result in results("memory", root):
        cells = result["cells"]
        for task in dict.fromkeys(one["task"] for one in cells):
            readers = [one for one in cells if one["task"] == task]
            heads = [
                f"{one['reader']} ({'all' if one['reach'] is None else one['reach']})"
                for one in readers
            ]
            rows = [
                [
                    gaps[0]["gap"],
                    *(f"{gap['excess']:.4f} / {gap['closed_excess']:.4f}" for gap in gaps),
                    ", ".join(f"{gap['risk_ratio']:.3f}" for gap in gaps),
                ]
                for gaps in zip(*(one["gaps"] for one in readers), strict=True)
            ]
            text += f"{task.capitalize()}:\n\n"
            text += markdown(("gap", *heads, "risk / closed form"), rows) + "\n"
        found = result["verdict"]
        sizes = ", ".join(f"{one['parameters']:,}" for one in readers)
        text += (
            f"{found['agree']} of {found['rows']} within 10 % of the closed form or two standard "
            f"errors, {found['below_bound']} below the bound; {sizes} parameters.\n"
        )
        text += origin(result)
    return text


def pixel_memory_table(root: Path) -> str:
    """What worlds know of a hidden thing, and where it is when it is back, by hidden frames."""
    text = ""
    for result in results("pixel-memory", root):
        found = result["back_in_sight"]
        heads = []
        for name in found:
            facts = result["worlds"].get(name)
            heads.append(name if facts is None else f"{name} ({facts['reach'] or 'all'})")
        for thing in next(iter(found.values())):
            columns = [what[thing] for what in found.values()]
            said = [what["said_while_hidden"] for what in columns]
            back = [what["gaps"] for what in columns]
            blank = ("",) * len(heads)
            rows = [
                *_gap_rows(said, "frames", "error_px", known),
                ("*when it is back in sight: px off in the picture*", *blank),
                *_gap_rows(back, "n", "error_px", known),
                ("*shown again at all*", *blank),
                *_gap_rows(back, "n", "shown_again", lambda found: percent(found["value"])),
            ]
            text += markdown((f"{thing}, while it is hidden: px off in the state", *heads), rows)
        text += origin(result)
        for name, facts in result["worlds"].items():
            if then := facts.get("measured"):
                where = f"{then['machine']['processor']}, commit {then['commit'][:10]}"
                text += f"\n{name}: measured on the same episodes before, {where}.\n"
    return text


def _gap_rows(
    found: list[list[Results]], counted: str, key: str, show: Callable[[Results], str]
) -> list[tuple[str, ...]]:
    """A row for each span of hidden frames that occurred, a column a predictor."""
    rows = []
    for parts in zip(*found, strict=True):
        if parts[0][counted]:
            to = f" to {parts[0]['to']}" if parts[0]["to"] else " or more"
            what = f"{parts[0]['from']}{to} frames ({parts[0][counted]:,})"
            rows.append((what, *(show(part[key]) for part in parts)))
    return rows


def contraction_table(root: Path) -> str:
    """How loose each bound is."""
    text = ""
    for result in results("contraction", root):
        found = result["chain"]
        rows = []
        for row in found["looseness"]:
            upper = row["half_life_to"]
            span = f"{row['half_life_from']:g} - {upper:g}" if upper else "longer"
            rows.append([span, row["settings"], *map(cell, row["median"].values())])
        head = ("half-life, tokens", "settings", *found["looseness"][0]["median"])
        text += markdown(head, rows)
        text += (
            f"\n{found['settings']:,} settings of {found['tokens']} tokens: {found['violations']} "
            f"violations; the linear formula is off by {found['linear_formula_off_by']:.1e} at "
            f"most. The printed condition held in {percent(found['paper_condition_holds'])} of the "
            f"tokens, a + b was 1 or more in {percent(found['paper_factor_at_least_1'])}.\n"
        )
        text += origin(result)
    return text


def half_life_table(root: Path) -> str:
    """What the heads of a trained world remember."""
    text = ""
    for result in results("contraction", root):
        found = result.get("half_lives")
        if not found:
            continue
        rows = [
            [f"{layer}, head {i}", *(cell(value) for value in values)]
            for layer, row in found["layers"].items()
            for i, values in enumerate(
                zip(
                    row["at_bias"],
                    row["random_memory"],
                    row["slowest_direction"],
                    row["left_of_random_memory"],
                    strict=True,
                )
            )
        ]
        kept = f"left after {found['frames']} frames"
        head = ("half-life, frames", "at its bias", "random memory", "slowest direction", kept)
        text += f"World `{found['world']}`, {found['dreams']} dreams:\n\n"
        text += markdown(head, rows) + origin(result)
    return text


def ablation_table(root: Path) -> str:
    """Kinds of memory, trained alike."""
    from kairos_env.benchmarks.ablation import figures

    text = ""
    for result in results("ablation", root):
        for scene in dict.fromkeys(row["scene"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["scene"] == scene]
            told = [figures(row) for row in rows]
            lines = [
                ["parameters", *(f"{row['parameters']:,}" for row in rows)],
                ["MFLOP a step", *(f"{row['megaflops_per_step']:.1f}" for row in rows)],
                [
                    "updates",
                    *(" + ".join(str(s["updates"]) for s in row["stages"]) for row in rows),
                ],
                *([name, *(known(one.get(name)) for one in told)] for name in told[0]),
            ]
            head = ("", *(f"{row['variant']} (reach {row['reach']})" for row in rows))
            text += f"{scene}:\n\n" + markdown(head, lines) + "\n"
        text += origin(result).removeprefix("\n")
    return text or "Not measured on any machine yet.\n"


def curriculum_table(root: Path) -> str:
    """Three stages beside the last one alone, for equal processor time."""
    from kairos_env.benchmarks.curriculum import ALONE, THREE, lines

    text = ""
    for result in results("curriculum", root):
        rows = [[*cells, cell(error)] for cells, error in lines(result)]
        seeds = len(result["config"]["seeds"])
        head = (f"held-out episodes, means of {seeds} seeds", THREE, ALONE, "difference")
        text += markdown((*head, "standard error"), rows) + origin(result)
    return text or "Not measured on any machine yet.\n"


def size_table(root: Path) -> str:
    """Numbers, memory and operations of our worlds, their peers and the published networks."""
    text = ""
    for result in results("efficiency", root):
        rows = [
            [
                result["world"]["name"] if row["name"] == "world" else row["name"],
                f"{1e-6 * row['parameters']:.2f}",
                f"{row['megabytes']:.1f}",
                f"{row['kilobytes_per_dream']:.0f}",
                cell(row.get("megaflops_per_step")),
                cell(row["megaflops_per_step_with_picture"]),
            ]
            for row in result["sizes"] + result["peers"]
        ]
        head = ("", "parameters, M", "weights, MB", "memory of a dream, kB")
        text += markdown((*head, "MFLOP a step", "with the picture"), rows) + "\n"
        rows = [
            [row["name"], f"{1e-9 * row['parameters']:.3f}", f"{row['gigabytes_bfloat16']:.1f}"]
            for row in result["published"]["networks"]
        ]
        text += markdown(("published", "parameters, G", "bfloat16, GB"), rows)
        costs = result["published"]["video_teraflops_per_pass"]
        text += "".join(
            f"\nOne pass of the video stream over {clip}: {cell(cost)} TFLOP.\n"
            for clip, cost in costs.items()
        )
        text += origin(result)
    return text


def latency_table(root: Path) -> str:
    """Times of a step, in turns."""
    text = ""
    for result in results("efficiency", root):
        names = list(result["latency"][0]["step_ms"])
        rows = [
            [
                row["batch"],
                *(f"{cell(row['step_ms'][n])} ({cell(row['times_ours'][n])})" for n in names),
                cell(rate["env_steps_per_second"]),
            ]
            for row, rate in zip(result["latency"], result["environment"], strict=True)
        ]
        head = ("dreams", *(f"{name}, ms" for name in names), "env steps / CPU s")
        text += markdown(head, rows)
        text += (
            f"\nLoad of the machine before and after: {result['load'][0]}, {result['load'][1]}.\n"
        )
        text += origin(result)
    return text


def growth_table(root: Path) -> str:
    """Time against length, and the next step against age, in the run of the peers."""
    text = ""
    for result in results("efficiency", root):
        length, age = result["length"], result["age"]
        head = ("frames of one pass", *length["frames"], "R² of a line")
        row = ("ms", *map(cell, length["pass_ms"]), f"{length['linear_fit_r2']:.5f}")
        text += markdown(head, [row]) + "\n"
        head = ("age of a dream, frames", *age["step_ms"])
        sizes = {f"{1e-3 * size:.0f}" for size in age["state_bytes"].values()}
        rows = [
            ("next step, ms", *map(cell, age["step_ms"].values())),
            ("against the first", *map(cell, age["ratio_to_first"].values())),
        ]
        text += markdown(head, rows) + f"\nMemory at every age: {' or '.join(sorted(sizes))} kB.\n"
        text += origin(result)
    return text


def study_table(root: Path) -> str:
    """How policies' scores in a dream stand for their scores in truth, by world and side."""
    sides = {"dream": "acting", "state": "acting on the state head", "replay": "replayed"}
    figures = ("pearson", "spearman", "mmrv", "slope", "regret")
    studies, rows = results("study", root), []
    for result in studies:
        name = result["world"]["name"]
        for side, scores in result["agreement"].items():
            for score, found in scores.items():
                cells = [known(found[figure]["estimate"]) for figure in figures]
                rows.append([name, sides[side], score, *cells])
        for score, found in result["agreement"]["dream"].items():
            perfect = [cell(found[figure]["ceiling"]["median"]) for figure in figures]
            rows.append([name, "*a perfect dream*", score, *perfect])
    head = ("world", "in the dream", "score", "Pearson r", "Spearman", "MMRV", "slope", "Regret@1")
    return markdown(head, rows) + "".join(map(origin, studies))


def fidelity_table(root: Path) -> str:
    """Where objects are in the dreams of the bundled worlds, against the truth."""
    rows: list[list[str]] = []
    reports = [r for r in results("fidelity", root) if "objects" in last_frame(r, "dream")]
    for result in reports:
        late = result["predictors"]["dream"]["horizons"]
        for name, found in late["100"]["objects"].items():
            errors = [cell(late[h]["objects"][name]["error_px"]["value"]) for h in ("10", "50")]
            errors.append(cell(found["error_px"]["value"]))
            present = percent(found["present"]["value"])
            rows.append([result["world"]["name"], name, *errors, present])
    head = ("world", "object", "px at frame 10", "50", "100", "still there at 100")
    return markdown(head, rows) + "".join(map(origin, reports))


def beside_table(root: Path) -> str:
    """Worlds that dreamed the same episodes: errors at the last frame, and how these differ."""
    text = ""
    for result in results("beside", root):
        own = str(result["world"]["path"] or result["world"]["name"])
        short = apart([own, *(told["path"] or told["name"] for told in result["beside"].values())])
        named = dict(zip(["dream", *result["beside"]], short, strict=True))
        frame = list(result["predictors"]["dream"]["horizons"])[-1]
        things = list(last_frame(result, "dream").get("objects", {}))
        rows = []
        for name, title in named.items():
            last = last_frame(result, name)
            placed = [interval(last["objects"][thing]["error_px"]) for thing in things]
            missed = interval(result["reward"][name]["squared_error"])
            rows.append([title, *placed, interval(squared_error(last["psnr"])), missed])
        for name, row in result["paired"].items():
            last = row["horizons"][frame]
            placed = [interval(last["objects"][thing]["error_px"]) for thing in things]
            title = f"*{named['dream']} less {named[name]}*"
            pictured = interval(last["squared_error"])
            rows.append([title, *placed, pictured, interval(row["reward_squared"])])
        frames = result["reward"]["dream"]["frames"]
        head = (f"after {frame} dreamed frames", *(f"{thing}, px" for thing in things))
        rest = ("squared error of the picture", f"of rewards, {frames} frames")
        text += markdown((*head, *rest), rows) + origin(result) + "\n"
    return text.removesuffix("\n")


def squared_error(psnr: Mapping[str, Any]) -> Results:
    """The mean squared error of pictures that a PSNR of theirs says."""
    low, value, high = (255.0**2 / 10 ** (psnr[key] / 10) for key in ("high", "value", "low"))
    return {"low": low, "value": value, "high": high}


def apart(paths: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them begin and end with."""
    parts = [Path(path).parts for path in paths]
    ends = []
    for step in (1, -1):
        alike = zip(*(part[::step] for part in parts), strict=False)
        ends.append(next((i for i, names in enumerate(alike) if len(set(names)) > 1), 0))
    first, last = ends
    return [str(Path(*part[first : len(part) - last])) for part in parts]


def last_frame(result: Results, predictor: str) -> Results:
    """What a fidelity report says of a predictor's last frame."""
    frames: Mapping[str, Results] = result["predictors"][predictor]["horizons"]
    return list(frames.values())[-1]


def picture_table(root: Path) -> str:
    """The same where nobody knows objects: pictures, states and rewards."""
    reports = [r for r in results("fidelity", root) if "objects" not in last_frame(r, "dream")]
    rows = []
    for result in reports:
        frame = list(result["predictors"]["dream"]["horizons"])[-1]
        for name in result["predictors"]:
            last, reward = last_frame(result, name), result["reward"].get(name)
            told = [known(last["psnr"]), known(last["state"]), known(reward and reward["r2"])]
            rows.append([result["world"]["name"], frame, name, *told])
    head = ("world", "frame", "", "PSNR, dB", "state, deviations", "reward R², 20 frames")
    return markdown(head, rows) + "".join(map(origin, reports))


def known(estimate: Mapping[str, Any] | None) -> str:
    """An interval, or a hyphen where nothing could be measured."""
    return interval(estimate if estimate and estimate["value"] is not None else None)


def interval(estimate: Mapping[str, Any] | None) -> str:
    """A statistic with where 95 % of its bootstrap draws lie."""
    if estimate is None:
        return "-"
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"


def environment_table(root: Path) -> str:
    """Steps a second behind Gymnasium's interface, and where their time goes."""
    text = ""
    for result in results("environment", root):
        rows = []
        for row in result["speed"]:
            names = ["steps_per_cpu_second", "step_ms", "decoding_ms", "denoising_pass_ms"]
            names += ["rest_ms", "gflop_per_dream", "fraction_of_matmul_peak"]
            rows.append([row["dreams"], *(cell(row[n]) for n in names), row["torch_operations"]])
        head = ["dreams", "steps / CPU second", "a step, ms", "decoding", "a denoising pass"]
        head += ["the rest", "GFLOP a dream", "of matmul peak", "torch calls"]
        text += f"World `{result['world']['name']}`:\n\n" + markdown(head, rows) + origin(result)
        text += "\n"
    return text.removesuffix("\n")


def snapshot_table(root: Path) -> str:
    """What it costs to go back, to fork, and to begin."""
    rows, text = [], ""
    for result in results("environment", root):
        s, cold = result["snapshots"], result["cold_start"]
        times = [cell(s[f"{name}_ms"]) for name in ("snapshot", "restore", "save", "load")]
        exact = f"bit for bit after {s['exact_after_steps']:,} steps"
        rows.append(
            [
                result["world"]["name"],
                f"{s['bytes']:,}",
                *times,
                exact if s["exact_after_steps"] else "no",
                f"{s['forks']:,}: {s['fork_ms']:.0f} ms, {s['forks_bytes'] / 2**20:.0f} MiB",
                f"{cold['wall_seconds']:.1f}",
            ]
        )
    head = ("world", "bytes", "snapshot, ms", "restore", "save", "load", "goes on", "forks")
    text = markdown((*head, "new process to first step, s"), rows) if rows else ""
    return text + "".join(origin(result) for result in results("environment", root)[-1:])


def endurance_table(root: Path) -> str:
    """Dreams that go on and on."""
    rows = []
    for result in results("environment", root):
        for row in result["long"]:
            ratio = row["old_to_young"]
            ms = [cell(row[name]) for name in ("young_ms", "old_ms")]
            ms += ["-" if ratio is None else f"{ratio:.3f}"]
            growth = f"{100 * row['memory_growth']:.1f} % ({100 * row['memory_trend']:.1f} %)"
            found = "all" if row["in_space"] else "not all"
            name = result["world"]["name"]
            largest = cell(row["largest_deviation"])
            rows.append([name, row["dreams"], f"{row['steps']:,}", *ms, growth, found, largest])
    head = ["world", "dreams", "steps", "at step 100, ms", "at the end", "ratio"]
    head += [
        "memory grew at most (and stayed)",
        "observations in their space",
        "largest state, deviations",
    ]
    if not rows:
        return "Not measured yet.\n"
    # A long run may have been measured by itself: then it says where it comes from.
    origins = [
        origin({**result, **{k: row[k] for k in ("commit", "command") if k in row}})
        for result in results("environment", root)
        for row in result["long"]
    ]
    return markdown(head, rows) + "".join(dict.fromkeys(origins))


def dial_table(root: Path) -> str:
    """Speed and fidelity of each setting, by world."""
    text = ""
    for result in results("dial", root):
        first = result["rows"][0]
        marks = [key for key in first if key.startswith("at_")]
        head = ["setting", *(f"ms, {B} dreams" for B in first["step_ms"])]
        for mark in marks:
            objects = [f"{name}, px" for name in first[mark]["objects_px"]]
            head += [f"PSNR, frame {mark[3:]}", "state", *objects]
        rows = []
        for row in result["rows"]:
            line = [row["setting"], *(cell(ms) for ms in row["step_ms"].values())]
            for mark in marks:
                errors = row.get(mark, {"psnr": None, "state": None, "objects_px": {}})
                found = [errors["objects_px"].get(name) for name in first[mark]["objects_px"]]
                line += [cell(value) for value in (errors["psnr"], errors["state"], *found)]
            rows.append(line)
        title = f"World `{result['world']['name']}`, {result['episodes']} held-out episodes:\n\n"
        text += title + markdown(head, rows) + origin(result) + "\n"
    return text.removesuffix("\n")


ENDS = ("drained", "after_kill", "after_kill_same")
"""How many clients have their answer when the policy service ends."""


def serve_table(root: Path) -> str:
    """Latency of the policy service, and what it survives."""
    text = ""
    for result in results("serve", root):
        rows = []
        for row in result["rows"]:
            times = row["latency_ms"]
            refused = all(400 <= status < 500 for status in row["hostile"].values())
            rows.append(
                [row["world"], row["clients"], row["requests"], row["errors"]]
                + [cell(row["per_second"]), cell(row["mean_batch"])]
                + [cell(times[name]) for name in ("p50", "p90", "p99")]
                + ["all 4xx" if refused else "not all 4xx"]
                + [f"{row[end]}/{row['clients']}" for end in ENDS]
            )
        head = ("world", "clients", "requests", "errors", "a second", "in a batch", "p50, ms")
        ends = ("answered while closing", "after a kill", "same bits")
        text += markdown((*head, "p90", "p99", "broken bodies", *ends), rows)
        text += f"\nLoad average of the machine meanwhile: {result['load_average']:.0f}.\n"
        text += origin(result)
    return text


def quantise_table(root: Path) -> str:
    """Rounded weights in a world: size, speed, distance from the same dream in float32."""
    text = ""
    for result in results("quantise", root):
        world, rows = result["world"], []
        for precision, row in world["rows"].items():
            apart = [cell(value) for value in row["apart"].values()]
            sizes = [f"{row[name]:.1f}" for name in ("megabytes", "blocks_megabytes")]
            rows.append([precision, *sizes, cell(row["step_ms"]), *apart])
        marks = [f"apart at step {mark}" for mark in world["rows"]["float32"]["apart"]]
        head = ("precision", "MB", "of it blocks", "CPU ms a step", *marks)
        text += f"World `{world['name']}`, {world['dreams']} dreams at once; distances of states "
        text += f"in deviations of the data:\n\n{markdown(head, rows)}{origin(result)}"
    return text


def layers_table(root: Path) -> str:
    """Rounded weights in the layers of the published network."""
    text = ""
    for result in results("quantise", root):
        names, rows = list(result["layers"][0]["error"]), []
        counts = sorted(key for key in result["layers"][0] if key.startswith("ms_"))
        for row in result["layers"]:
            times = [" / ".join(cell(row[key][name]) for key in counts) for name in names]
            errors = [f"{row['error'][name]:.3f}" for name in names[1:]]
            rows.append([f"{row['outputs']} x {row['inputs']}", row["count"], *times, *errors])
        tokens = " / ".join(key.removeprefix("ms_") for key in counts)
        head = ["layer", "in all", *(f"{name}, CPU ms" for name in names)]
        head += [f"error {name}" for name in names[1:]]
        text += f"Times for {tokens} rows:\n\n{markdown(head, rows)}"
        sizes = result["layout"]["gigabytes"]
        whole = ", ".join(f"{name} {size:.2f} GB" for name, size in sizes.items())
        text += f"\nThe whole `{result['layout']['name']}` network: {whole}.\n{origin(result)}"
    return text


def loading_table(root: Path) -> str:
    """Memory of loading a published checkpoint."""
    text = ""
    for result in results("loading", root):
        rows = [
            ("parameters of a random checkpoint", f"{result['parameters']:,}"),
            ("its size, MB", cell(result["megabytes"])),
            ("peak memory of a process that loads it, MB", cell(result["peak_megabytes"])),
            ("of a process that loads nothing", cell(result["peak_without_megabytes"])),
            ("peak / size", f"{result['ratio']:.2f}"),
        ]
        text += markdown(("what", "value"), rows) + origin(result)
    return text


def answers_table(root: Path) -> str:
    """Whether an imported network has learned to answer."""
    text = ""
    for result in results("answers", root):
        rows = [
            ("imported", f"{result['r2_imported']:.4f}"),
            (f"after {result['updates']} updates with actions", f"{result['r2_trained']:.4f}"),
        ]
        text += markdown(("network", "counterfactual R²"), rows) + origin(result)
    return text


def cell(value: float | None) -> str:
    """A number with three figures, or a hyphen where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


TABLES: dict[str, Callable[[Path], str]] = {
    "fidelity": fidelity_table,
    "beside": beside_table,
    "pictures": picture_table,
    "kernels": kernel_table,
    "streaming": streaming_table,
    "scaling": scaling_table,
    "data": data_table,
    "environment": environment_table,
    "snapshots": snapshot_table,
    "endurance": endurance_table,
    "dial": dial_table,
    "agents": agents_table,
    "evolve": evolve_table,
    "memory": memory_table,
    "pixel_memory": pixel_memory_table,
    "contraction": contraction_table,
    "half_lives": half_life_table,
    "ablation": ablation_table,
    "curriculum": curriculum_table,
    "sizes": size_table,
    "latency": latency_table,
    "growth": growth_table,
    "planning": partial(decision_table, "planning"),
    "acting": partial(decision_table, "acting"),
    "study": study_table,
    "serve": serve_table,
    "quantise": quantise_table,
    "layers": layers_table,
    "loading": loading_table,
    "answers": answers_table,
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
