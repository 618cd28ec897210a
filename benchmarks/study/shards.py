"""A study on disk: one file for each policy and side, written whole or not at all.

    plan.json            what is studied; a folder holds one study
    shards/openings.npz  start states
    shards/00-truth.npz  outcomes of the first policy in truth
    shards/drift.*       errors of replayed held-out episodes

Killed at any moment, the same command goes on with the shards that are missing and ends with the
same numbers, since every shard is a function of the plan alone.
"""

import dataclasses
import io
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from kairos_env.agents.data.files import write_bytes
from kairos_env.benchmarks.fidelity.measure import object_finder
from kairos_env.benchmarks.fidelity.objects import ObjectFinder
from kairos_env.benchmarks.study.config import StudyConfig
from kairos_env.benchmarks.study.eyes import Eyes
from kairos_env.benchmarks.study.grades import EXPERT, Actor, Grade, Tape
from kairos_env.benchmarks.study.openings import (
    Openings,
    find_openings,
    open_twin,
    read_openings,
    write_openings,
)
from kairos_env.benchmarks.study.sides import (
    DREAM,
    REPLAY,
    TRUTH,
    Film,
    Outcomes,
    in_dream,
    in_truth,
    replayed,
)
from kairos_env.spaces import chunk_space
from kairos_env.worlds import World, load_world

if TYPE_CHECKING:
    from kairos_env.real import RealEnv

FORMAT = 1
PLAN, SHARDS = "plan.json", "shards"
# What may change from one call to the next without changing a number that is there already.
FREE = ("resamples", "films")

Task = tuple[int, str]
"""A policy's place and a side."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that decides the outcomes."""

    world: World
    config: StudyConfig
    grades: tuple[Grade, ...]

    @property
    def steps(self) -> int:
        """Env steps until an episode is cut off."""
        return self.config.steps or self.world.manifest.environment.horizon

    def document(self) -> dict[str, Any]:
        """As it is written beside the shards."""
        config = dataclasses.asdict(self.config) | {"steps": self.steps}
        e = self.world.manifest.environment
        return {
            "format": FORMAT,
            "world": self.world.name,
            "fingerprint": self.world.fingerprint,
            "environment": {"id": e.id, "kwargs": dict(e.kwargs), "chunk": e.chunk},
            "config": {name: value for name, value in config.items() if name not in FREE},
            "grades": [dataclasses.asdict(grade) for grade in self.grades],
        }


class Stage:
    """Everything that acts in a study: simulator, world, policies, start states.

    Args:
        plan: What is studied.
        folder: Where the study is kept.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.env = open_twin(plan.world, plan.steps)

    @cached_property
    def openings(self) -> Openings:
        """Start states, found once."""
        path = self.folder / SHARDS / "openings.npz"
        if not path.exists():
            c = self.plan.config
            found = find_openings(self.plan.world, self.env, episodes=c.episodes, seed=c.seed)
            write_openings(path, found)
        return read_openings(path)

    @cached_property
    def eyes(self) -> Eyes | None:
        """For scenes whose objects can be found in pictures."""
        finder: ObjectFinder | None = object_finder(self.env, self.openings.frames[:, -1])
        return None if finder is None else Eyes(finder)

    def actor(self, index: int) -> Actor:
        """A policy, ready to act."""
        grade = self.plan.grades[index]
        experts = {EXPERT: _expert(self.env.name)} if grade.base == EXPERT else {}
        return Actor(grade, self._tape, self._space, experts)

    def run(self, task: Task, *, rows: slice = slice(None), film: Film | None = None) -> Outcomes:
        """One policy on one side.

        Args:
            task: Which.
            rows: Only these start states.
            film: Frames are added to it.
        """
        index, side = task
        world, steps = self.plan.world, self.plan.steps
        batch, openings = self.plan.config.batch, self.openings.index(rows)
        if side == REPLAY:
            truth = read_outcomes(self.folder, (index, TRUTH))
            return replayed(world, truth, openings, steps=steps, batch=batch)
        actor = self.actor(index)
        if side == TRUTH:
            looks = actor.needs_frames or film is not None
            env = self.env if looks else self._undrawn
            return in_truth(env, actor, openings, steps=steps, film=film)
        return in_dream(
            world,
            actor,
            openings,
            steps=steps,
            batch=batch,
            late=actor.grade.late,
            eyes=self.eyes if side == DREAM else None,
            film=film,
        )

    def close(self) -> None:
        """Free the simulators."""
        self.env.close()
        if "_undrawn" in vars(self):
            self._undrawn.close()

    @cached_property
    def _undrawn(self) -> "RealEnv":
        """For policies that look at no pictures."""
        return open_twin(self.plan.world, self.plan.steps, draw=False)

    @cached_property
    def _space(self) -> spaces.Space[Any]:
        e = self.plan.world.manifest.environment
        return chunk_space(e.space, e.chunk)

    @cached_property
    def _tape(self) -> Tape:
        K, D = self.openings.warm.shape[2:]
        return Tape(self.plan.config.seed, self.openings.numbers, self.plan.steps, (K, D))


def tasks(plan: Plan, sides: Sequence[str]) -> list[Task]:
    """Every policy on some sides, in the order in which they are run."""
    return [(index, side) for side in sides for index in range(len(plan.grades))]


def missing(folder: Path, wanted: Sequence[Task]) -> list[Task]:
    """Those that are not there yet."""
    return [task for task in wanted if not _path(folder, task).exists()]


def run_all(stage: Stage, wanted: Sequence[Task], *, workers: int = 1) -> Iterator[Task]:
    """Fill in what is missing; yields each task as it is done."""
    todo = missing(stage.folder, wanted)
    if workers == 1 or len(todo) < 2:
        for task in todo:
            write_outcomes(stage.folder, task, stage.run(task))
            yield task
        return
    if stage.plan.world.path is None:
        raise ValueError("several workers need a world that stands in a folder: use --workers 1")
    # a replay needs what the truth has left
    for phase in ([t for t in todo if t[1] != REPLAY], [t for t in todo if t[1] == REPLAY]):
        yield from _in_processes(stage, phase, workers)


def read_outcomes(folder: Path, task: Task) -> Outcomes:
    """What `write_outcomes` wrote."""
    with np.load(_path(folder, task), allow_pickle=False) as file:
        return Outcomes(**{name: file[name] for name in file.files})


def write_outcomes(folder: Path, task: Task, outcomes: Outcomes) -> None:
    """As `.npz`, whole or not at all."""
    file = io.BytesIO()
    arrays = {f.name: getattr(outcomes, f.name) for f in dataclasses.fields(outcomes)}
    np.savez_compressed(file, **arrays)
    write_bytes(_path(folder, task), file.getvalue())


def _path(folder: Path, task: Task) -> Path:
    return folder / SHARDS / f"{task[0]:02d}-{task[1]}.npz"


def _expert(name: str) -> Callable[..., Any]:
    from kairos_env.real.experts import expert_for

    return expert_for(name)


# -- workers: each has a simulator and a world of its own ------------------------------------------

_here: list[Stage] = []


def _in_processes(stage: Stage, todo: Sequence[Task], workers: int) -> Iterator[Task]:
    stage.openings  # noqa: B018  (written before anybody reads them)
    plan = stage.plan
    arguments = (str(plan.world.path), plan.config, plan.grades, stage.folder)
    pool = ProcessPoolExecutor(
        min(workers, max(len(todo), 1)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_arrive,
        initargs=arguments,
    )
    try:
        futures = {pool.submit(_work, task): task for task in todo}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        pool.shutdown(cancel_futures=True)


def _arrive(world: str, config: StudyConfig, grades: tuple[Grade, ...], folder: Path) -> None:
    """Runs once in each worker."""
    import torch

    # Ctrl-C reaches every process of the terminal; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _here.append(Stage(Plan(load_world(world), config, grades), folder))


def _work(task: Task) -> None:
    stage = _here[0]
    write_outcomes(stage.folder, task, stage.run(task))
