"""`kairos data`: what is in a dataset, what it looks like, whether it is whole."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from kairos_env.agents.data.check import check_dataset
from kairos_env.agents.data.dataset import Dataset
from kairos_env.agents.data.episode import Episode
from kairos_env.agents.data.files import BrokenDataError, DiskFullError, write_bytes
from kairos_env.agents.data.readers import open_dataset


@dataclass(frozen=True, kw_only=True)
class Info:
    """Sizes, lengths, returns and who acted."""

    path: tyro.conf.Positional[Path]
    """A dataset: our own, LeRobot, Minari, robomimic, LIBERO, a folder of videos."""
    camera: str | None = None
    """Which camera, by name."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """A contact sheet: episodes in rows, time from left to right."""

    path: tyro.conf.Positional[Path]
    """A dataset."""
    out: Path = Path("contact-sheet.png")
    """The picture."""
    episodes: int = 8
    """Rows, spread evenly over the dataset."""
    frames: int = 12
    """Columns, spread evenly from the first to the last frame."""
    zoom: int = 2
    """Size of a picture's pixel in the sheet."""
    camera: str | None = None
    """Which camera, by name."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Read everything and name what is broken, by file and episode."""

    path: tyro.conf.Positional[Path]
    """A dataset."""


Command = (
    Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


def main(argv: Sequence[str]) -> int:
    """`kairos data`."""
    command: Any = tyro.cli(Command, args=list(argv), prog="kairos data")
    runners: dict[type, Callable[[Any, Console], int]] = {Info: _info, Show: _show, Check: _check}
    try:
        return runners[type(command)](command, Console(file=sys.stdout))
    except (BrokenDataError, DiskFullError, ValueError, OSError, ImportError) as error:
        Console(stderr=True, soft_wrap=True).print(f"kairos data: {error}", markup=False)
        return 1


def _info(options: Info, console: Console) -> int:
    dataset = open_dataset(options.path, camera=options.camera)
    tables = [dataset.table(index) for index in range(len(dataset))]
    console.print(_overview(dataset, tables))
    if any(episode.policy for episode in tables):
        console.print(_by_policy(tables))
    return 0


def _show(options: Show, console: Console) -> int:
    import imageio.v3 as iio

    dataset = open_dataset(options.path, camera=options.camera)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, options.episodes).round().astype(int))
    sheet = contact_sheet(dataset, chosen, frames=options.frames, zoom=options.zoom)
    content = iio.imwrite("<bytes>", sheet, extension=".png")
    write_bytes(options.out, content)
    table = Table("row", "episode", "frames", "policy", "end", title=str(options.out))
    for row, index in enumerate(chosen):
        episode = dataset.table(int(index))
        end = "terminated" if episode.terminated.any() else "cut off"
        solved = ", solved" if episode.success else ""
        table.add_row(str(row + 1), str(index), str(len(episode)), episode.policy, end + solved)
    console.print(table)
    return 0


def _check(options: Check, console: Console) -> int:
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("reading")
        problems = check_dataset(
            options.path,
            on_episode=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    console.print(
        f"{len(problems)} problems in {options.path}" if problems else f"{options.path} is whole"
    )
    return 1 if problems else 0


def contact_sheet(
    dataset: Dataset, episodes: NDArray[np.int64], *, frames: int, zoom: int = 2
) -> NDArray[np.uint8]:
    """Episodes in rows, evenly spaced frames in columns, on white.

    Args:
        dataset: Where the frames are.
        episodes: Which episodes.
        frames: How many of each.
        zoom: Every pixel becomes a square of this side.
    """
    gap = 2
    height, width = (size * zoom for size in dataset.spec.frame_size)
    shape = (len(episodes) * (height + gap) + gap, frames * (width + gap) + gap, 3)
    sheet = np.full(shape, 255, np.uint8)
    for row, index in enumerate(episodes):
        pictures = dataset.frames(int(index))
        count = min(frames, len(pictures))
        for column, number in enumerate(np.linspace(0, len(pictures) - 1, count).round()):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            large = pictures[int(number)].repeat(zoom, axis=0).repeat(zoom, axis=1)
            sheet[top : top + height, left : left + width] = large
    return sheet


def _overview(dataset: Dataset, episodes: Sequence[Episode]) -> Table:
    spec = dataset.spec
    lengths = dataset.lengths
    returns = np.array([episode.rewards.sum() for episode in episodes])
    known = [episode.success for episode in episodes if episode.success is not None]
    ended = np.array([episode.terminated.any() for episode in episodes])
    transitions = max(int((lengths - 1).sum()), 1)
    table = Table("", "", title=dataset.path, show_header=False)
    table.add_row("layout", spec.layout)
    table.add_row("episodes", str(len(dataset)))
    table.add_row("frames", f"{lengths.sum()}, {spec.frame_size[0]}x{spec.frame_size[1]}")
    table.add_row("frames a second", f"{spec.fps:g}" if spec.fps else "not recorded")
    table.add_row("length", f"{lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f} frames")
    actions = f"{spec.actions_per_frame} x {spec.action_size} numbers a frame"
    table.add_row("actions", actions if spec.has_actions else "none: action-free video")
    table.add_row("state", f"{spec.state_size} numbers" if spec.state_size else "not recorded")
    table.add_row(
        "return", f"{returns.min():.2f} to {returns.max():.2f}, mean {returns.mean():.2f}"
    )
    table.add_row(
        "terminated",
        f"{100 * ended.mean():.1f} % of episodes, {ended.sum() / transitions:.2%} of steps",
    )
    table.add_row("solved", f"{100 * np.mean(known):.1f} %" if known else "not recorded")
    environment = spec.provenance.get("environment")
    if environment:
        table.add_row("environment", ", ".join(f"{k} {v}" for k, v in environment.items()))
        table.add_row("seed", str(spec.provenance.get("seed")))
    texts = sorted({episode.text for episode in episodes if episode.text})
    table.add_row("tasks", "; ".join(texts[:5]) + (" ..." if len(texts) > 5 else ""))
    return table


def _by_policy(episodes: Sequence[Episode]) -> Table:
    table = Table("policy", "episodes", "mean length", "mean return", "solved")
    for policy in sorted({episode.policy for episode in episodes}):
        mine = [episode for episode in episodes if episode.policy == policy]
        solved = [episode.success for episode in mine if episode.success is not None]
        table.add_row(
            policy,
            str(len(mine)),
            f"{np.mean([len(episode) for episode in mine]):.1f}",
            f"{np.mean([episode.rewards.sum() for episode in mine]):.2f}",
            f"{100 * np.mean(solved):.1f} %" if solved else "-",
        )
    return table
