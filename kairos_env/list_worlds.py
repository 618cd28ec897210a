"""`kairos worlds`: the bundled worlds and what was measured of them; settings of one's own."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from kairos_env.adjust import adjust_world, blend, go_back, parse_settings
from kairos_env.card import flat
from kairos_env.catalogue import BUNDLED, UNTRAINED, bundled_worlds, default_world, find_world
from kairos_env.remake import remake_script, runs_of
from kairos_env.terminal import run_command
from kairos_env.worlds import read_manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldsOptions:
    """List the bundled worlds, say everything about one, or change settings of one's own."""

    world: tyro.conf.Positional[str | None] = None
    """A world to describe: a bundled one's name, a folder, or OWNER/NAME on the hub."""
    remake: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a shell script that records the world's data and trains it again: pipe it into sh."""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """Change a world where it stands, as NAME=NUMBER: second_look, stillness, homing,
    reserve, end_threshold, denoise_steps, history_noise or backdrop. Weights stay; measure it
    again."""
    back: float | None = None
    """Bring its weights back this share of the way (0.3, say) to the world that its last run began
    with, named by --from: a part of what the run has learned for a part of what it has lost."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """The world that the last run began with."""
    blend: float | None = None
    """Mix its weights with this share (0.5, say) of those of another run from the same world, named
    by --with: what is chance in either is less in both."""
    sister: Annotated[str | None, tyro.conf.arg(name="with")] = None
    """The other run's world."""
    why: str = ""
    """What speaks for such a change: it stands in world.json, in the card and in --remake."""


def main(argv: Sequence[str]) -> int:
    """Run `kairos worlds`; returns the exit status."""
    return run_command(
        "kairos worlds", WorldsOptions, run, argv, also=(), failed=2, interrupted="Interrupted."
    )


def run(options: WorldsOptions) -> None:
    """Print one world or all."""
    world = options.world
    if world == UNTRAINED:
        raise ValueError(f"{UNTRAINED} is built with random weights: no world.json describes it")
    changes = changes_of(options)
    if changes:
        folder = changed(options, changes)
        Console().print(f"changed {folder}; what was measured of it before is left out")
        return
    if options.remake:
        manifest = read_manifest(find_world(default_world() if world is None else world))
        sys.stdout.write(remake_script(manifest))
        return
    Console().print(overview() if world is None else details(find_world(world)))


def changes_of(options: WorldsOptions) -> list[str]:
    """The options that change a world, as far as they are given."""
    given = {"--set": options.settings or None, "--back": options.back, "--blend": options.blend}
    return [name for name, value in given.items() if value is not None]


def changed(options: WorldsOptions, changes: list[str]) -> Path:
    """Change one world as the options say; returns its folder."""
    world, why = options.world, options.why
    if len(changes) > 1:
        raise ValueError(f"{' and '.join(changes)} are different changes: make one after the other")
    if world is None:
        raise ValueError(f"{changes[0]} changes one world: name its folder")
    if options.back is not None:
        if options.start is None:
            raise ValueError("--back wants to know where the last run began: name it with --from")
        return go_back(world, options.start, options.back, why)
    if options.blend is not None:
        if options.sister is None:
            raise ValueError("--blend wants to know the other run's world: name it with --with")
        return blend(world, options.sister, options.blend, why)
    return adjust_world(world, parse_settings(options.settings), why)


def overview() -> Table:
    """One row per bundled world."""
    table = Table("", "world", "learned from", "step", "size", "what it is")
    for name in bundled_worlds():
        manifest = read_manifest(BUNDLED / name)
        e = manifest.environment
        table.add_row(
            "default" if name == default_world() else "",
            name,
            e.id,
            f"{e.chunk} actions, {e.seconds_per_step:g} s",
            f"{megabytes(BUNDLED / name):.1f} MB",
            manifest.description,
        )
    mark = "default" if default_world() == UNTRAINED else ""
    text = "random weights, for trying things out"
    table.add_row(mark, UNTRAINED, "nothing", "4 actions, 0.16 s", "in code", text)
    return table


def details(folder: Path) -> Table:
    """Everything that world.json says, one row per leaf."""
    manifest = read_manifest(folder)
    table = Table(show_header=False, title=f"{manifest.name}: {manifest.description}")
    table.add_row("folder", f"{folder} ({megabytes(folder):.1f} MB)")
    e = manifest.environment
    table.add_row("learned from", f"{e.id} {dict(e.kwargs) or ''}")
    table.add_row("actions", f"{e.chunk_space}")
    table.add_row("frames", f"{e.frame_size} x {e.frame_size}, {e.fps:g} a second")
    table.add_row("horizon", f"{e.horizon} steps of {e.seconds_per_step:g} s")
    table.add_row("reward", e.reward)
    table.add_row("termination", e.termination)
    runs = runs_of(manifest.provenance)
    told = [(f"made, run {n}" if len(runs) > 1 else "made", run) for n, run in enumerate(runs, 1)]
    for title, values in (*told, ("measured", manifest.fidelity)):
        for name, value in flat(values):
            table.add_row(f"{title}: {name}", value)
    return table


def megabytes(folder: Path) -> float:
    """Size of a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6
