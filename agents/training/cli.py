"""`kairos train DATA ... --out WORLD`: from a dataset to a world."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kairos_env.agents.training.config import TrainConfig
from kairos_env.agents.training.learner import DivergedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Learn a world from recorded episodes. The same command goes on with a run that was stopped."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Dataset folders."""
    out: Path
    """Folder of the world to write."""
    minutes: float = 60.0
    """Wall-clock budget."""
    size: str = "small"
    """tiny, small or medium."""
    name: str | None = None
    """Name of the world; the folder's name when not given."""
    description: str = ""
    """One sentence for its card."""
    seed: int = 0
    threads: int | None = None
    """CPU threads. On a shared machine one thread is far faster than several that wait."""
    device: str = "cpu"


def main(argv: Sequence[str]) -> int:
    """The command."""
    from kairos_env.agents.training.loop import train

    arguments = tyro.cli(Arguments, args=list(argv), prog="kairos train")
    console = Console(stderr=True)
    try:
        folder = train(TrainConfig(**vars(arguments)))
    except KeyboardInterrupt:
        return 130
    except (ValueError, ImportError, OSError, DivergedError) as error:
        console.print(f"kairos train: {error}", style="red", highlight=False)
        return 1
    console.print(f"wrote {folder}. Open it with gymnasium.make('Kairos-v0', world='{folder}')")
    return 0
