"""The page of a study: one file with its plots and moving pictures in it, no script, no network."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from kairos_env.agents.data.files import write_bytes
from kairos_env.benchmarks.fidelity.measure import DREAM
from kairos_env.benchmarks.fidelity.report import show
from kairos_env.benchmarks.study.figures import FIGURE_NAMES, SCORE_NAMES, Figure
from kairos_env.benchmarks.study.films import Clip
from kairos_env.benchmarks.study.sides import TRUTH
from kairos_env.benchmarks.study.summary import SIDES, Json, figure_cell

PAGE = Path(__file__).with_name("page.html")
TILES = ("pearson", "mmrv", "slope", "regret")


def write_page(
    path: Path,
    content: Json,
    plots: Sequence[Figure],
    *,
    acted: Sequence[Clip] = (),
    replays: Sequence[Clip] = (),
) -> None:
    """Write the report of one study, whole or not at all.

    Args:
        path: Where.
        content: The study's document.
        plots: From `figures`.
        acted: Policies in truth and dream.
        replays: The same actions in truth and dream.
    """
    title = f"{content['world']['name']}: does the dream rank policies as the truth does?"
    by_name = {plot.name: plot for plot in plots}
    parts = [
        _head(title, content),
        _tiles(content),
        plots_row([plot for plot in plots if plot.name.startswith("ranking")]),
        *_section("Policy by policy", plots_row([by_name["policies"], by_name["doubts"]])),
        _scroll(_policy_table(content)),
        *_section("Every way of asking", _scroll(_side_table(content))),
    ]
    if acted:
        parts += _section(
            "Policies in truth and dream",
            "<p>The first start state, best policy first. Each acts on what it sees there, so the "
            "two may part; a side whose episode is over fades.</p>",
            _films(acted),
        )
    if content["drift"]:
        parts += _section("Drift", plots_row([by_name["drift"]]), _films(replays))
        parts += _section("Reward, ends, answers to actions", _scroll(_behaviour(content["drift"])))
        if "uncertainty" in by_name:
            parts += _section(
                "Does it know what it does not know?", plots_row([by_name["uncertainty"]])
            )
    parts += _section("How it was measured", *_made(content))
    write_text(path, title, parts)


def write_text(path: Path, title: str, parts: Iterable[str]) -> None:
    """Put a body into the page's frame and write it."""
    frame = Template(PAGE.read_text(encoding="utf-8"))
    page = frame.substitute(title=html.escape(title), body="\n".join(parts))
    write_bytes(path, page.encode())


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of texts; its first column names the rows."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = [
        f"<tr><th>{html.escape(first)}</th>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    ]
    told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{told}<tr>{top}</tr>{''.join(lines)}</table>"


def _head(title: str, content: Json) -> str:
    c, env_id = content["config"], html.escape(content["environment"]["id"])
    return (
        f"<h1>{html.escape(title)}</h1><p class='soft'>{env_id}: "
        f"{len(content['policies'])} policies, {c['episodes']} episodes each in truth and dream, "
        f"cut off after {c['steps']} steps. Both begin in the same states, which no training has "
        f"seen, and policies have the same noise.</p>"
    )


def _tiles(content: Json) -> str:
    name, found = next(iter(content["agreement"][DREAM].items()))
    tiles = []
    for figure in TILES:
        one, perfect = found[figure]["estimate"], found[figure]["ceiling"]
        value = "-" if one["value"] is None else f"{one['value']:.3f}"
        lines = [f"<b>{value}</b>", f"{FIGURE_NAMES[figure]}, {SCORE_NAMES[name]}"]
        if one["value"] is not None:
            lines.append(f"<span>95 %: {one['low']:.3f} to {one['high']:.3f}</span>")
        if found[figure].get("fisher"):
            low, high = found[figure]["fisher"]
            lines.append(f"<span>over policies: {low:.3f} to {high:.3f}</span>")
        if perfect["median"] is not None:
            lines.append(f"<span>perfect dream: {perfect['median']:.3f}</span>")
        tiles.append(f"<div class='tile'>{''.join(lines)}</div>")
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _section(title: str, *parts: str) -> list[str]:
    return [f"<h2>{html.escape(title)}</h2>", *parts]


def plots_row(plots: Sequence[Figure]) -> str:
    """Plots with their captions, beside each other where there is room."""
    figures = "".join(
        f"<figure role='img' aria-label='{html.escape(plot.caption, quote=True)}'>{plot.svg()}"
        f"<figcaption>{html.escape(plot.caption)}</figcaption></figure>"
        for plot in plots
    )
    return f"<div class='plots'>{figures}</div>"


def _films(clips: Sequence[Clip]) -> str:
    figures = []
    for clip in clips:
        source = base64.b64encode(clip.webp()).decode()
        panels = "".join(f"<span>{html.escape(panel)}</span>" for panel in clip.panels)
        figures.append(
            f"<figure><img alt='{html.escape(clip.title, quote=True)}' loading='lazy' "
            f"src='data:image/webp;base64,{source}'><div class='panels'>{panels}</div>"
            f"<figcaption>{html.escape(clip.title)}</figcaption></figure>"
        )
    return f"<div class='films'>{''.join(figures)}</div>"


def _scroll(content: str) -> str:
    return f"<div class='scroll'>{content}</div>"


def _policy_table(content: Json) -> str:
    names = list(content["agreement"][DREAM])
    head = ["policy", *(f"{SCORE_NAMES[n]}, {side}" for n in names for side in ("truth", "dream"))]
    rows = [
        [
            row["label"],
            *(show(row[side][name]) for name in names for side in (TRUTH, DREAM)),
            f"{row[DREAM]['same_ending']:.0%}",
            f"{row[DREAM]['uncertainty']:.2f}",
        ]
        for row in content["policies"]
    ]
    return table([*head, "same ending", "uncertainty"], rows)


def _side_table(content: Json) -> str:
    figures = list(FIGURE_NAMES)
    rows: list[list[str]] = []
    for side, by_score in content["agreement"].items():
        for score, found in by_score.items():
            cells = [figure_cell(found[name]["estimate"]) for name in figures]
            rows.append([f"{SIDES[side]}: {SCORE_NAMES[score]}", *cells])
    for score, found in content["agreement"][DREAM].items():
        for kind, word in (("ceiling", "a perfect dream"), ("chance", "chance")):
            cells = [_range(found[name][kind]) for name in figures]
            rows.append([f"{word}: {SCORE_NAMES[score]}", *cells])
    return table(["", *(FIGURE_NAMES[name] for name in figures)], rows)


def _range(extent: Mapping[str, float | None]) -> str:
    if extent["median"] is None:
        return "-"
    return f"{extent['median']:.3f} [{extent['low']:.3f}, {extent['high']:.3f}]"


def _behaviour(drift: Json) -> str:
    reward = drift["reward"][DREAM]
    rows = [
        [f"reward of each of {reward['frames']} frames, R²", show(reward["r2"])],
        [f"summed over {reward['frames']} frames, R²", show(reward["return_r2"])],
    ]
    for frames, ends in drift["termination"][DREAM].items():
        for what in ("precision", "recall"):
            label = f"end within {frames} frames, ±{ends['tolerance']}: {what}"
            rows.append([label, show(ends[what], percent=True, n=True)])
    for step, found in drift["counterfactual"].get(DREAM, {}).items():
        if "state" in found:
            for what, word in (("r2", "R²"), ("cosine", "cosine")):
                label = f"two futures of one moment, after {step} steps: {word}"
                rows.append([label, show(found["state"][what])])
    return table(["", DREAM], rows, "Of the replayed episodes; intervals 95 %.")


def _made(content: Json) -> list[str]:
    machine = content["machine"]
    return [
        f"<p><code>{html.escape(content['command'])}</code></p>",
        f"<p class='soft'>{html.escape(machine.get('accelerator', machine['processor']))}, "
        f"{machine['threads']} threads, torch {html.escape(machine['torch'])}, commit "
        f"{html.escape(content['commit'][:10])}, {html.escape(content['measured_at'])}. World "
        f"{html.escape(content['world']['name'])} {content['world']['fingerprint']}. Everything "
        "is in results.json.</p>",
    ]
