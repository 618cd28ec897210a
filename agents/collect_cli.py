"""`kairos collect`: the command line of collect.py."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kairos_env.agents.collect import CollectReport, collect
from kairos_env.agents.data.video import Codec
from kairos_env.agents.data.writer import EPISODES_PER_FILE
from kairos_env.terminal import percent, run_command


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Record episodes of a real environment into a dataset (LeRobot v3.0 layout).

    Stopped, killed or out of disk space: the same command continues. The same seed gives the same
    dataset.
    """

    env: tyro.conf.Positional[str]
    """KairosPush-v0, any Gymnasium id, metaworld/TASK, robosuite/TASK, or a world."""
    out: Path
    """Folder of the dataset."""
    episodes: int = 100
    """How many the dataset shall hold."""
    policy: tuple[str, ...] = ("random",)
    """NAME[@NOISE][:WEIGHT] ...: random, smooth, expert, visitor, loiterer, or the path of
    an SB3 checkpoint; NOISE is the share of the time in which smooth noise acts instead."""
    workers: int = 1
    """Processes that record, or actors on --cluster."""
    cluster: str | None = None
    """Record on a Ray cluster (extra ray): auto for the one that this machine has joined,
    HOST:PORT, or local for this machine alone."""
    seed: int = 0
    """Decides everything, together with the number of an episode."""
    chunk: int | None = None
    """Low-level actions per step (4, or the world's)."""
    frames_per_chunk: int | None = None
    """Frames per step (1, or the world's)."""
    frame_size: int | None = None
    """Side of the picture in pixels (64, or the world's)."""
    horizon: int | None = None
    """Steps until an episode is cut off (the environment's own limit)."""
    camera: str | None = None
    """A camera of a MuJoCo model, by name."""
    env_kwargs: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """More arguments for the environment, as a JSON object."""
    text: str | None = None
    """What the episodes show, in words (the environment's name)."""
    codec: Codec = "lossless"
    """How pictures are stored; lossless is exact."""
    episodes_per_file: int = EPISODES_PER_FILE
    """Episodes in each video and data file."""

    def make_real_arguments(self) -> dict[str, Any]:
        """What `make_real` gets: only what was asked for."""
        named = {
            "chunk": self.chunk,
            "frames_per_chunk": self.frames_per_chunk,
            "frame_size": self.frame_size,
            "horizon": self.horizon,
            "camera": self.camera,
        }
        try:
            more = json.loads(self.env_kwargs)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"--env-kwargs must be JSON, got {self.env_kwargs!r}: {error}"
            ) from error
        if not isinstance(more, dict):
            raise ValueError(f"--env-kwargs must be a JSON object, got {self.env_kwargs!r}")
        return {name: value for name, value in named.items() if value is not None} | more


def run(argv: Sequence[str]) -> int:
    """Run `kairos collect` with these arguments; returns the exit status."""
    return run_command("kairos collect", CollectOptions, _collect, argv)


def _collect(options: CollectOptions) -> None:
    _print(_collect_with_bar(options))


def _collect_with_bar(options: CollectOptions) -> CollectReport:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[frames]} frames"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(options.env, total=options.episodes, frames=0)
        return collect(
            options.env,
            episodes=options.episodes,
            out=options.out,
            policies=options.policy,
            workers=options.workers,
            cluster=options.cluster,
            seed=options.seed,
            text=options.text,
            codec=options.codec,
            episodes_per_file=options.episodes_per_file,
            on_episode=lambda done, frames: bar.update(task, completed=done, frames=frames),
            **options.make_real_arguments(),
        )


def _print(report: CollectReport) -> None:
    console = Console(file=sys.stdout)
    table = Table("policy", "episodes", "success", title=f"{report.out}")
    for policy, (episodes, success) in report.by_policy.items():
        table.add_row(policy, str(episodes), percent(success, 1))
    console.print(table)
    console.print(
        f"{report.episodes} episodes, {report.frames} frames; "
        f"{percent(report.terminated, 1)} terminated, success {percent(report.success, 1)}, "
        f"mean return {report.mean_return:.2f}"
    )
    if report.new_episodes:
        console.print(
            f"recorded {report.new_episodes} episodes ({report.new_frames} frames) in "
            f"{report.seconds:.1f} s: {report.frames_per_second:.0f} frames/s"
        )
