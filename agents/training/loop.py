"""Train a world: stage by stage, update by update, stoppable at any moment.

    for each stage:             tokenizer, dynamics, rollout
        while updates are left:
            update              one optimizer step on the next batch
            log, validate, save now and then
    write the world

A run that was killed goes on from its last checkpoint when the same command is given again, and
ends with the same weights as if it had never stopped. Under `torchrun` several processes do it
together (processes.py).
"""

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch

from kairos_env.adjust import settings_of, with_settings
from kairos_env.agents.data.files import read_json, write_json
from kairos_env.agents.runs import refuse_another
from kairos_env.agents.training import processes
from kairos_env.agents.training.checkpoints import (
    BrokenCheckpointError,
    Checkpoint,
    Progress,
    same_run,
    save_checkpoint,
)
from kairos_env.agents.training.clips import TrainingData
from kairos_env.agents.training.config import TrainConfig
from kairos_env.agents.training.export import export_world
from kairos_env.agents.training.learner import Learner, make_learner
from kairos_env.agents.training.log import RunLog
from kairos_env.agents.training.validation import validate
from kairos_env.agents.training.widening import widened
from kairos_env.world_model.config import to_json
from kairos_env.world_model.presets import world_config
from kairos_env.world_model.published.forward import forward_world
from kairos_env.world_model.published.world import PublishedWorld
from kairos_env.world_model.world_model import WorldConfig, WorldModel
from kairos_env.worlds import load_world

# Seed of what a world to begin with does not have. That begins alike in every run from it: the
# weights of two such runs can only be mixed (`--blend`) where they grew out of the same ones.
TAKEN_ON = 0
CHECKPOINT, CONFIG = "checkpoint.safetensors", "train.json"
# Updates before the rate is measured, and from which it is measured.
WARM, MEASURED = 5, 20


def train(config: TrainConfig) -> Path:
    """Run all stages and write the world; returns its folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    with processes.joined(config.device):
        return train_together(config)


def train_together(config: TrainConfig) -> Path:
    """What each process of a run does."""
    for stage in config.stages:
        processes.my_rows(stage.batch)  # refuses a batch that cannot be shared
    with processes.first_goes_ahead():
        config.folder.mkdir(parents=True, exist_ok=True)
        note = open_run(config)
        data = TrainingData(config)
    world = build_world(config, data)
    progress, checkpoint = resume(config, note, world)
    with RunLog(config) as log:
        run = Run(config, note, data, world, progress, log)
        for number in range(progress.stage, len(config.stages)):
            if number == config.first_dynamics and not progress.step:
                fit_statistics(config, world, data)  # before anything is encoded with them
            learner = make_learner(config, number, world, data)
            if checkpoint is not None and progress.step:
                checkpoint.restore_learner(learner)
            checkpoint = None
            run_stage(run, learner)
            finish_stage(run, learner)
    with processes.first_goes_ahead():
        if processes.number() == 0:
            export_world(config, world, data, progress)
    return config.out


@dataclasses.dataclass
class Run:
    """What all stages of a run share."""

    config: TrainConfig
    note: dict[str, object]
    """The config as JSON, kept in every checkpoint."""
    data: TrainingData
    world: WorldModel
    progress: Progress
    log: RunLog


def run_stage(run: Run, learner: Learner) -> None:
    """All updates of one stage."""
    config, log = run.config, run.log
    log.stage(learner)
    clock = Clock(run.progress)
    with Interrupt() as interrupt:
        while learner.planned is None or learner.step < learner.planned:
            if learner.planned is None:
                seconds = clock.seconds_since(WARM)
                learner.planned = processes.said_by_first(plan(config, learner, seconds))
            metrics = learner.update()
            clock.tick(learner.step)
            log.update(learner, metrics)
            if learner.step % config.validate_every == 0:
                log.validation(learner, validate(learner))
            if not learner.between_groups:
                continue
            stop, due = processes.any_of(interrupt.came, clock.due(config.save_every))
            if stop or due:
                save(run, learner)
                if stop:
                    log.say(f"stopped at update {learner.step}; the same command goes on")
                    raise KeyboardInterrupt
    log.validation(learner, validate(learner))


@dataclasses.dataclass
class Clock:
    """Time spent, time since the last checkpoint, and the rate of updates."""

    progress: Progress
    last: float = dataclasses.field(default_factory=time.perf_counter)
    cpu: float = dataclasses.field(default_factory=time.process_time)
    saved: float = dataclasses.field(default_factory=time.perf_counter)
    marks: dict[int, float] = dataclasses.field(default_factory=dict)

    def tick(self, step: int) -> None:
        """An update is done."""
        now, cpu = time.perf_counter(), time.process_time()
        self.progress.seconds += now - self.last
        self.progress.cpu_seconds += cpu - self.cpu
        self.last, self.cpu = now, cpu
        if step <= WARM + MEASURED:
            self.marks[step] = now

    def seconds_since(self, step: int) -> float:
        """Since an early update; 0 before it."""
        return self.last - self.marks[step] if step in self.marks else 0.0

    def due(self, minutes: float) -> bool:
        """Whether a checkpoint is due; asking starts the next wait."""
        if self.last - self.saved < 60.0 * minutes:
            return False
        self.saved = self.last
        return True


class Interrupt:
    """Ctrl-C and a polite kill wait for the end of a group of updates; a second one does not.

    Except under torchrun, which passes the first one on a second time.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came and processes.count() == 1:
            raise KeyboardInterrupt
        self.came = True


def plan(config: TrainConfig, learner: Learner, seconds: float) -> int | None:
    """How many updates the stage has: as told, or as many as fit its minutes once that is known."""
    if learner.stage.steps is not None:
        return learner.stage.steps
    if learner.step < WARM + MEASURED:
        return None
    longest = seconds / (learner.step - WARM)
    mean = longest * (1.0 - learner.stage.growth / 2.0 if learner.stage.dreams else 1.0)
    return max(learner.step, int(60 * config.minutes_of(learner.stage) / mean))


def finish_stage(run: Run, learner: Learner) -> None:
    """Keep the slow average as the stage's result and step on to the next."""
    progress = run.progress
    learner.target.load_state_dict(learner.whole_average())
    progress.history.append(
        {
            "stage": learner.stage.name,
            "updates": learner.step,
            "cpu_seconds": round(progress.cpu_seconds, 1),
        }
    )
    progress.stage, progress.step, progress.planned = progress.stage + 1, 0, None
    progress.cpu_seconds = 0.0
    save_checkpoint(run.config.folder / CHECKPOINT, run.world, None, progress, run.note)


def save(run: Run, learner: Learner) -> None:
    """Write a checkpoint in the middle of a stage."""
    run.progress.step, run.progress.planned = learner.step, learner.planned
    save_checkpoint(run.config.folder / CHECKPOINT, run.world, learner, run.progress, run.note)


def build_world(config: TrainConfig, data: TrainingData) -> WorldModel:
    """A new world for the data's actions, states and frames, or the one to begin with."""
    world = shaped_world(config, data)
    if config.history is not None:
        world.config = dataclasses.replace(world.config, history=config.history)
    return world


def shaped_world(config: TrainConfig, data: TrainingData) -> WorldModel:
    """The world with the history that its shape has by itself."""
    if config.start is not None and not config.reshape:
        return started_world(config, config.start, data)
    spec = data.spec
    shape = world_config(
        config.size,
        action_size=spec.action_size,
        state_size=spec.state_size,
        frame_size=spec.frame_size,
        chunk=spec.actions_per_frame * data.frames_per_chunk,
        frames_per_chunk=data.frames_per_chunk,
        layers=config.layers,
        text=config.text,
        temporal=config.temporal,
        restore=config.restore,
        reserve=config.reserve,
        recollect=config.recollect,
    )
    start = None if config.start is None else load_world(config.start).model
    if start is not None:
        kept = shape.transformer.restore and not config.reserve
        shape = set_as(shape, start.config, but=() if kept else ("reserve",))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed if start is None else TAKEN_ON)
        world = WorldModel(shape)
    if start is None:
        world.tokenizer.fit_background(data.some_frames(400))
    else:
        take_what_fits(world, start, str(config.start))
    return world.to(config.device)


def set_as(shape: WorldConfig, other: WorldConfig, *, but: Sequence[str] = ()) -> WorldConfig:
    """A shape with the history and the settings of another world: it shall dream as that one."""
    settings = {name: x for name, x in settings_of(other).items() if name not in but}
    return dataclasses.replace(with_settings(shape, settings), history=other.history)


def take_what_fits(world: WorldModel, other: WorldModel, name: str) -> None:
    """Give a world the weights of another one wherever name and shape agree.

    Where its convolutional stem and head have twice the channels, or more such multiples, they are
    given weights with which they compute the same. Layers that it has beyond the other's let
    through what they get. Heads that have learned to do without the sketch hardly take to it, so
    they begin anew.
    """
    theirs = other.state_dict()
    if world.config.heads.sketched and not other.config.heads.sketched:
        for parameter, _ in other.heads.named_parameters():
            del theirs[f"heads.{parameter}"]
    theirs |= widened(world, other, torch.Generator().manual_seed(TAKEN_ON))
    fitting = {n: theirs[n] for n, x in world.state_dict().items() if fits(theirs.get(n), x)}
    foreign = [n for n in world.tokenizer.state_dict() if f"tokenizer.{n}" not in fitting]
    if foreign:
        raise ValueError(
            f"world {name} cannot be reshaped: its tokenizer is another one (first difference: "
            f"{foreign[0]}), and all else was learned on its latents. Train a new world"
        )
    if not any(n.startswith("mixture.") for n in fitting):
        raise ValueError(f"nothing of world {name} but its tokenizer fits; name its --size")
    world.load_state_dict(fitting, strict=False)
    for layer in range(len(other.config.transformer.layers), len(world.config.transformer.layers)):
        world.mixture.let_through(layer)


def fits(mine: torch.Tensor | None, other: torch.Tensor) -> bool:
    """Whether a tensor is there and has the other's shape."""
    return mine is not None and mine.shape == other.shape


def started_world(config: TrainConfig, start: str, data: TrainingData) -> WorldModel:
    """The world to begin with; refuse data of another kind."""
    opened = load_world(start, device=config.device)
    if isinstance(opened.dreamer, PublishedWorld):
        return answering_world(config, opened.dreamer, data)
    world = opened.model
    spec, shape = data.spec, world.config
    pairs = {
        "action size": (shape.action_size, spec.action_size),
        "state size": (shape.heads.state_size, spec.state_size),
        "frame size": (tuple(shape.tokenizer.frame_size), tuple(spec.frame_size)),
        "actions per frame": (shape.actions_per_frame, spec.actions_per_frame),
        "frames per chunk": (shape.frames_per_chunk, data.frames_per_chunk),
    }
    other = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if other:
        told = "; ".join(f"{name}: {mine} and {theirs}" for name, (mine, theirs) in other.items())
        raise ValueError(
            f"world {start} cannot go on with this data: world and data have another {told}. "
            "Record data with the world's settings, or train a new world without a start"
        )
    return world


def answering_world(
    config: TrainConfig, imported: PublishedWorld, data: TrainingData
) -> WorldModel:
    """An imported network as a world of the data's environment, ready to learn its actions."""
    spec = data.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TAKEN_ON)
        world = forward_world(
            imported,
            action_size=spec.action_size,
            state_size=spec.state_size,
            frame_size=spec.frame_size,
            chunk=spec.actions_per_frame * data.frames_per_chunk,
            frames_per_chunk=data.frames_per_chunk,
        )
    world.tokenizer.fit_background(data.some_frames(400))
    fit_heads(world, data)
    return world.to(config.device)


def fit_statistics(config: TrainConfig, world: WorldModel, data: TrainingData) -> None:
    """Measure what latents, rewards and states look like, before anything is trained on them.

    A world to begin with keeps its own: its weights were trained with them.
    """
    if config.start is not None:
        return
    frames = data.some_frames(1000, together=world.config.tokenizer.temporal)
    world.tokenizer.fit_statistics(frames[None].to(world.device))
    fit_heads(world, data)


def fit_heads(world: WorldModel, data: TrainingData) -> None:
    """Measure what rewards and states look like."""
    rows = data.train_rows()
    reward = torch.from_numpy(data.cache.rewards[rows])
    state = torch.from_numpy(data.cache.state[rows])
    world.heads.fit_statistics(reward.to(world.device), state.to(world.device))


def open_run(config: TrainConfig) -> dict[str, object]:
    """The run's config as JSON, kept in its folder; refuse a folder that holds another run."""
    note = as_json(config)
    path = config.folder / CONFIG
    if path.exists() and (config.folder / CHECKPOINT).exists():
        refuse_another(config.folder, same_run(note, read_json(path)))
    write_json(path, note)
    return note


def resume(
    config: TrainConfig, note: dict[str, object], world: WorldModel
) -> tuple[Progress, Checkpoint | None]:
    """Where to begin: the last checkpoint, or the start."""
    path = config.folder / CHECKPOINT
    if not path.exists():
        return Progress(), None
    checkpoint = Checkpoint(path)
    changed = same_run(note, checkpoint.run)
    if changed:
        raise BrokenCheckpointError(
            f"{path} is of a run with another {', '.join(changed)}; delete it to start again"
        )
    checkpoint.restore_world(world)
    return checkpoint.progress, checkpoint


def as_json(config: TrainConfig) -> dict[str, object]:
    """A run's config as JSON values."""
    data = to_json(dataclasses.replace(config))
    data["data"] = [str(path.resolve()) for path in config.data]
    data["out"] = str(config.out)
    plain: dict[str, object] = json.loads(json.dumps(data, default=str))
    return plain
