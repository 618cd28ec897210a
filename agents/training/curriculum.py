"""`kairos curriculum ROBOT --out WORLD`: watch, then listen, then act.

| stage | data | what is learned | frames |
|---|---|---|---|
| tokenizer | everything | frames to latents and back | 2 |
| video | films of anything | what comes next; nobody says what was done | few, small |
| behaviour | films with words | what comes next, told what is to happen | more |
| robot | trajectories | what actions do, and which are done: video and actions jointly | most |

All of it is one `TrainConfig`: data, objective, and a schedule of resolution and length by stage.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from kairos_env.agents.training.cli import train_command
from kairos_env.agents.training.config import StageConfig, TrainConfig
from kairos_env.world_model.objective import LossConfig

# Frames alone count: no actions, rewards or states, and no text; then with text.
WATCH = LossConfig(unknown_actions=1.0, untold=1.0, heads_weight=0.0, action_weight=0.0)
LISTEN = dataclasses.replace(WATCH, untold=0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Data and schedule of the three stages, and of the tokenizer before them."""

    robot: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Datasets of the environment that is to be dreamed, with actions."""
    video: tuple[Path, ...] = ()
    """Datasets to watch, of anything; the robot's own when none are named."""
    behaviour: tuple[Path, ...] = ()
    """Datasets whose texts say what happens; the robot's own when none are named."""
    shares: tuple[float, float, float, float] = (0.1, 0.2, 0.2, 0.5)
    """Of the minutes, for tokenizer, video, behaviour and robot."""
    steps: tuple[int, int, int, int] | None = None
    """Updates of the four instead."""
    frames: tuple[int, int, int] = (6, 8, 12)
    """Frames of a clip in the three stages."""
    video_size: int | None = None
    """Side of the frames in the video stage: small pictures cost less. None: the robot's."""
    batch: int = 16
    rollout: float = 0.5
    """Share of the robot stage's updates whose history is the model's own dream."""

    def stages(self) -> tuple[StageConfig, ...]:
        """The stages in order."""
        video, behaviour = self.video or self.robot, self.behaviour or self.robot
        films = tuple(dict.fromkeys(path for path in video + behaviour if path not in self.robot))
        stages = (
            StageConfig(
                name="tokenizer",
                learns="tokenizer",
                batch=2 * self.batch,
                frames=2,
                films=films,
                learning_rate=2e-3,
                ema=0.99,
            ),
            StageConfig(
                name="video",
                learns="dynamics",
                batch=self.batch,
                frames=self.frames[0],
                films=video,
                own=False,
                frame_size=self.video_size,
                loss=WATCH,
                final_rate=0.5,
            ),
            StageConfig(
                name="behaviour",
                learns="dynamics",
                batch=self.batch,
                frames=self.frames[1],
                films=behaviour,
                own=False,
                loss=LISTEN,
                final_rate=0.5,
            ),
            StageConfig(
                name="robot",
                learns="dynamics",
                batch=self.batch,
                frames=self.frames[2],
                rollout=self.rollout,
            ),
        )
        steps = self.steps or (None,) * len(stages)
        return tuple(
            dataclasses.replace(stage, share=share, steps=count)
            for stage, share, count in zip(stages, self.shares, steps, strict=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Learn a world in three stages; the same command goes on with a stopped run."""

    curriculum: Annotated[Curriculum, tyro.conf.arg(name="")]
    out: Path
    """Folder of the world to write."""
    minutes: float = 60.0
    """Wall-clock budget."""
    size: str = "small"
    """tiny, compact, wide, small or medium."""
    description: str = ""
    """One sentence for its card."""
    seed: int = 0
    threads: int | None = None
    """CPU threads. On a shared machine one thread is far faster than several that wait."""
    device: str = "cpu"


def run_config(arguments: Arguments) -> TrainConfig:
    """The run that the arguments ask for; its world reads text."""
    options = dict(vars(arguments))
    curriculum = options.pop("curriculum")
    return TrainConfig(data=curriculum.robot, stages=curriculum.stages(), text=True, **options)


def main(argv: Sequence[str]) -> int:
    """The command."""
    return train_command("kairos curriculum", Arguments, run_config, argv)
