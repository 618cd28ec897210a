"""`kairos train DATA ... --out WORLD`: from a dataset to a world."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from rich.console import Console

from kairos_env.agents.training.allocator import keep_freed_memory
from kairos_env.agents.training.config import (
    FINISHING_STAGES,
    FURTHER_STAGES,
    ROBOT_STAGES,
    WORLD_STAGES,
    StageConfig,
    TrainConfig,
    dreaming,
    exacting,
    remembering,
)
from kairos_env.agents.training.learner import DivergedError
from kairos_env.terminal import run_command
from kairos_env.world_model.config import LayerKind

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Learn a world from recorded episodes; the same command goes on with a stopped run."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Dataset folders."""
    out: Path
    """Folder of the world to write."""
    minutes: float = 60.0
    """Wall-clock budget."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """A world to begin with, by name or folder; the default is then only the last stage."""
    stages: tuple[str, ...] | None = None
    """Stages to run, in this order: tokenizer, dynamics, rollout, unroll. Default: all. An imported
    network learns to answer to actions in the stage robot. A world that dreams already learns in
    the stage decoder to draw more exactly what it dreams, and in the stage heads to read it; all
    else stays as it is."""
    steps: tuple[int, ...] | None = None
    """Updates of each stage instead of a budget in minutes: the same weights on every machine of
    the same kind."""
    size: str = "small"
    """tiny, compact, wide, small or medium."""
    layers: tuple[LayerKind, ...] | None = None
    """Memory of each layer instead of the size's own, e.g. SWA SWA DSWA SWA for windows alone."""
    reshape: bool = False
    """With --from: build the world in the shape of --size and --layers (as this version makes it),
    and take every weight that fits from the world to begin with."""
    memory: int | None = None
    """Frames that the world shall remember what it no longer sees, where that is more than a few:
    it then learns from clips that are longer than that."""
    dream_frames: int | None = None
    """Frames of the clips whose end is dreamed, in the stages rollout and unroll: the longer, the
    later it shows whether a dream repairs its own damage. Batches shrink as clips grow."""
    legs: int = 1
    """With --dream-frames, in the stage unroll: updates that such a dream lasts. Each learns from
    its part of the dream and leaves the next one where it stopped, so batches need not shrink."""
    learning_rate: float | None = None
    """Highest learning rate of every stage, instead of the stages' own (0.002 to 0.0005). A world
    that is good already loses less on the way with less, such as 0.0002."""
    squared_to: float | None = None
    """Error of a place of a dreamed frame, in the stage unroll, up to which it counts squared, and
    less beyond. The default, 0.2, lets go what a dream has lost; more, such as 2, asks for exact
    places late in a dream, of a world in which all can be foreseen."""
    restore: bool = False
    """The head may say, place by place, that a frame looks there as the dream's first one did: for
    a camera that stands still. A world to begin with takes it on with --reshape."""
    reserve: float = 0.0
    """With --restore: the share, from 0 to 1, below which nothing of a place is restored, so that
    a little of it in every frame does not add up."""
    temporal: int = 1
    """Frames coded as one latent frame: fewer, richer steps of thought. The data must have been
    collected with a multiple of it as --frames-per-chunk."""
    text: bool = False
    """The world reads what it is told in words: it learns from the texts of the episodes."""
    history: int | None = None
    """Frames that a dream is begun with. Three show a speed; more show it more exactly, which tells
    where something comes back that is long out of sight. Default: three, or as --from has it."""
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
    options = vars(arguments) | {"stages": chosen_stages(arguments)}
    del options["steps"]
    memory, dreams, legs = (options.pop(name) for name in ("memory", "dream_frames", "legs"))
    squared_to, rate = options.pop("squared_to"), options.pop("learning_rate")
    if dreams is not None:
        require_stage("--dream-frames", options["stages"], lambda stage: stage.dreams)
        if legs != 1:
            require_stage("--legs", options["stages"], lambda stage: stage.unroll > 0)
        options["stages"] = tuple(dreaming(stage, dreams, legs) for stage in options["stages"])
    elif legs != 1:
        raise ValueError("--legs divides long dreams: say how long with --dream-frames")
    if memory is not None:
        if memory < 1:
            raise ValueError(f"--memory is a number of frames, at least 1, got {memory}")
        options["stages"] = tuple(remembering(stage, memory) for stage in options["stages"])
        options["recollect"] = True
    if squared_to is not None:
        require_stage("--squared-to", options["stages"], lambda stage: stage.unroll > 0)
        options["stages"] = tuple(exacting(stage, squared_to) for stage in options["stages"])
    if rate is not None:
        options["stages"] = tuple(
            dataclasses.replace(stage, learning_rate=rate) for stage in options["stages"]
        )
    return TrainConfig(**options)


def require_stage(
    option: str, stages: tuple[StageConfig, ...], concerns: Callable[[StageConfig], bool]
) -> None:
    """Refuse an option that would change nothing."""
    if any(map(concerns, stages)):
        return
    useful = " or ".join(stage.name for stage in WORLD_STAGES if concerns(stage))
    names = ", ".join(stage.name for stage in stages)
    raise ValueError(
        f"{option} is about the stage {useful}; this run has {names}. "
        "Name one of those, or leave the option out"
    )


def chosen_stages(arguments: Arguments) -> tuple[StageConfig, ...]:
    """The stages that are named, or those that a run of this kind has, with their updates."""
    known = FURTHER_STAGES if arguments.start else WORLD_STAGES
    stages = {stage.name: stage for stage in (*known, *FINISHING_STAGES, *ROBOT_STAGES)}
    default = known[-1:] if arguments.start else known
    names = arguments.stages or tuple(stage.name for stage in default)
    unknown = [name for name in names if name not in stages]
    if unknown:
        raise ValueError(f"no stage {', '.join(unknown)}; there are {', '.join(stages)}")
    if arguments.steps is None:
        return tuple(stages[name] for name in names)
    if len(arguments.steps) != len(names):
        raise ValueError(
            f"steps has {len(arguments.steps)} numbers for {len(names)} stages: {', '.join(names)}"
        )
    pairs = zip(names, arguments.steps, strict=True)
    return tuple(dataclasses.replace(stages[name], steps=steps) for name, steps in pairs)


def main(argv: Sequence[str]) -> int:
    """The command."""
    return train_command("kairos train", Arguments, run_config, argv)


def train_command(
    program: str,
    options: type[Options],
    config_of: Callable[[Options], TrainConfig],
    argv: Sequence[str],
) -> int:
    """What every command does that ends with a world; returns its exit status."""

    def run(arguments: Options) -> None:
        from kairos_env.agents.training.loop import train

        keep_freed_memory()
        folder = train(config_of(arguments))
        told = f"wrote {folder}. Open it with gymnasium.make('Kairos-v0', world='{folder}')"
        Console(stderr=True).print(told)

    # The run itself says where it stopped.
    return run_command(program, options, run, argv, also=(DivergedError,), interrupted="")
