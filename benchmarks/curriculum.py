"""`kairos bench curriculum`: is it worth watching films before the robot's own recordings?

Two worlds of one size, seed and tokenizer get the same processor time: one goes through the three
stages of `kairos curriculum`, the other spends all of it on the robot stage. Both are judged on the
robot's held-out episodes. With several seeds the differences between pairs say how sure that is.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from kairos_env.agents.training.clips import TrainingData
from kairos_env.agents.training.config import StageConfig, TrainConfig
from kairos_env.agents.training.curriculum import Curriculum
from kairos_env.agents.training.learner import DivergedError
from kairos_env.agents.training.loop import train
from kairos_env.agents.training.validation import dream, explain
from kairos_env.benchmarks.machine import write_results
from kairos_env.terminal import run_command
from kairos_env.world_model.world_model import WorldModel
from kairos_env.worlds import load_world

THREE, ALONE = "three stages", "robot stage alone"
FIGURES = {
    "video_mse": "next latent frame, squared error",
    "psnr@1": "dreamed frame 1, dB",
    "psnr@10": "dreamed frame 10, dB",
    "policy_loss": "policy, velocity error",
    "inverse_loss": "inverse dynamics, velocity error",
    "joint_loss": "joint mode, velocity error of actions",
    "reward_error": "reward, squared error in deviations",
    "state_error": "state, squared error in deviations",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare three stages with the last one alone; what is trained already is kept."""

    curriculum: Annotated[Curriculum, tyro.conf.arg(name="")]
    out: Path
    """Folder for the worlds."""
    seeds: tuple[int, ...] = (0, 1, 2)
    size: str = "tiny"
    validation_share: float = 0.1
    """Share of episodes to judge with."""
    results: Path | None = None
    """Folder for the JSON; benchmarks/results of the checkout when not given."""

    def __post_init__(self) -> None:
        """Equal compute needs known updates."""
        if self.curriculum.steps is None:
            raise ValueError(
                "name the updates with --steps TOKENIZER VIDEO BEHAVIOUR ROBOT: a budget in "
                "minutes would measure the machine's other work"
            )


def main(argv: Sequence[str]) -> int:
    """The command."""
    return run_command("kairos bench curriculum", Arguments, run, argv, also=(DivergedError,))


def run(arguments: Arguments) -> None:
    """Compare, print, write."""
    document = compare(arguments)
    print_table(document, Console())
    path = write_results("curriculum", document, folder=arguments.results)
    Console(stderr=True).print(f"wrote {path}")


def compare(arguments: Arguments) -> dict[str, Any]:
    """Train and judge both worlds for every seed."""
    torch.set_num_threads(1)
    pairs = [compare_one(arguments, seed) for seed in arguments.seeds]
    names = [name for name in FIGURES if all(name in pair[THREE]["figures"] for pair in pairs)]
    return {
        "config": {
            "size": arguments.size,
            "seeds": arguments.seeds,
            "steps": arguments.curriculum.steps,
            "robot": [str(path) for path in arguments.curriculum.robot],
            "video": [str(path) for path in arguments.curriculum.video],
            "behaviour": [str(path) for path in arguments.curriculum.behaviour],
        },
        "pairs": pairs,
        "summary": {name: summarise(pairs, name) for name in names},
    }


def compare_one(arguments: Arguments, seed: int) -> dict[str, Any]:
    """Both worlds of one seed."""
    stages = arguments.curriculum.stages()
    robot = stages[-1]
    three = TrainConfig(
        data=arguments.curriculum.robot,
        out=arguments.out / f"three-{seed}",
        size=arguments.size,
        text=True,
        seed=seed,
        threads=1,
        validation_share=arguments.validation_share,
        stages=stages,
    )
    history = learn(three)
    seconds = [entry["cpu_seconds"] for entry in history]
    updates = round(history[-1]["updates"] * sum(seconds[1:]) / seconds[-1])
    longer = dataclasses.replace(robot, steps=updates)
    alone = dataclasses.replace(
        three, out=arguments.out / f"alone-{seed}", stages=(stages[0], longer)
    )
    return {
        "seed": seed,
        THREE: {"stages": history, "figures": judge(three, robot)},
        ALONE: {"stages": learn(alone), "figures": judge(alone, robot)},
    }


def learn(config: TrainConfig) -> list[dict[str, Any]]:
    """Train a world, or go on; updates and processor seconds of its stages."""
    history = load_world(train(config)).manifest.provenance["stages"]
    return [dict(entry) for entry in history]


@torch.no_grad()
def judge(config: TrainConfig, stage: StageConfig) -> dict[str, float]:
    """Figures of a trained world on held-out episodes."""
    world, data = load_world(config.out).model, TrainingData(config)
    assert isinstance(world, WorldModel)
    picture = config.folder / "held-out.png"
    figures = explain(world, data, stage) | dream(world, data, stage, picture)
    return {name: round(figures[name], 5) for name in FIGURES if name in figures}


def summarise(pairs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Means over seeds, and the mean difference with its standard error."""
    three, alone = (
        np.array([pair[which]["figures"][name] for pair in pairs]) for which in (THREE, ALONE)
    )
    gap = three - alone
    error = float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else None
    return {
        THREE: float(three.mean()),
        ALONE: float(alone.mean()),
        "difference": float(gap.mean()),
        "standard_error": error,
    }


def lines(document: dict[str, Any]) -> list[tuple[list[str], float | None]]:
    """Each figure's name and numbers as they are shown, and the standard error."""
    return [
        (
            [FIGURES[name], *(f"{row[key]:.4f}" for key in (THREE, ALONE, "difference"))],
            row["standard_error"],
        )
        for name, row in document["summary"].items()
    ]


def print_table(document: dict[str, Any], console: Console) -> None:
    """The comparison, for a person."""
    table = Table(title=f"held-out episodes, {len(document['pairs'])} seeds")
    for head in ("", THREE, ALONE, "difference", "standard error"):
        table.add_column(head, justify="left" if not head else "right")
    for cells, error in lines(document):
        table.add_row(*cells, "" if error is None else f"{error:.4f}")
    console.print(table)
