"""`kairos train DATA ... --out WORLD`: from a dataset to a world."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kairos_env.agents.training.config import WORLD_STAGES, TrainConfig
from kairos_env.agents.training.learner import DivergedError
from kairos_env.world_model.config import LayerKind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Learn a world from recorded episodes; the same command goes on with a stopped run."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Dataset folders."""
    out: Path
    """Folder of the world to write."""
    minutes: float = 60.0
    """Wall-clock budget."""
    steps: tuple[int, int, int, int] | None = None
    """Updates of tokenizer, dynamics, rollout and unroll instead of a budget in minutes: the same
    weights on every machine of the same kind."""
    size: str = "small"
    """tiny, small or medium."""
    layers: tuple[LayerKind, ...] | None = None
    """Memory of each layer instead of the size's own, e.g. SWA SWA DSWA SWA for windows alone."""
    name: str | None = None
    """Name of the world; the folder's name when not given."""
    description: str = ""
    """One sentence for its card."""
    seed: int = 0
    threads: int | None = None
    """CPU threads. On a shared machine one thread is far faster than several that wait."""
    device: str = "cpu"


def run_config(arguments: Arguments) -> TrainConfig:
    """The run that the arguments ask for."""
    options = dict(vars(arguments))
    steps = options.pop("steps")
    if steps is not None:
        pairs = zip(WORLD_STAGES, steps, strict=True)
        options["stages"] = tuple(dataclasses.replace(stage, steps=n) for stage, n in pairs)
    return TrainConfig(**options)


def main(argv: Sequence[str]) -> int:
    """The command."""
    from kairos_env.agents.training.loop import train

    arguments = tyro.cli(Arguments, args=list(argv), prog="kairos train")
    console = Console(stderr=True)
    try:
        folder = train(run_config(arguments))
    except KeyboardInterrupt:
        return 130
    except (ValueError, ImportError, OSError, DivergedError) as error:
        console.print(f"kairos train: {error}", style="red", highlight=False)
        return 1
    console.print(f"wrote {folder}. Open it with gymnasium.make('Kairos-v0', world='{folder}')")
    return 0
