"""The whole report of one world.

record held-out episodes         the truth, and forks of it
roll every predictor out         same histories, same actions
compare                          metrics.py, behaviour.py
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.benchmarks.fidelity.behaviour import counterfactual, reappearance, uncertainty
from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.fidelity.episodes import HELD_OUT_FROM, Group, HeldOut, Truth
from kairos_env.benchmarks.fidelity.metrics import (
    Json,
    Yardstick,
    by_horizon,
    by_policy,
    compare,
    errors,
    paired,
    reward,
    termination,
)
from kairos_env.benchmarks.fidelity.objects import ObjectFinder
from kairos_env.benchmarks.fidelity.predictors import (
    CopyLast,
    Dream,
    MeanFrame,
    Predictor,
    Replay,
)
from kairos_env.benchmarks.fidelity.statistics import Bootstrap
from kairos_env.benchmarks.fidelity.traces import Trace, roll_out
from kairos_env.real import RealEnv
from kairos_env.real.scenes import SceneObject

if TYPE_CHECKING:
    from kairos_env.worlds import World

TRUTH, DREAM, COPY, MEAN, CONV = "truth", "dream", "copy", "mean", "conv"
# These look at the actions, so their counterfactuals mean something.
ACTING = (DREAM, CONV)

Progress = Callable[[str, int, int], None]
Pictures = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What every predictor said of all episodes."""

    traces: dict[str, Trace]
    """By predictor; "truth" among them."""
    forks: dict[str, tuple[Trace, Trace]]
    """The same after two action sequences from one moment; empty where time cannot go back."""
    valid: NDArray[np.bool_]
    """(B, T)."""
    forks_valid: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None
    labels: tuple[str, ...]
    skipped: int
    finder: ObjectFinder | None
    pictures: dict[str, Pictures]
    """Frames of the first episodes, by predictor."""
    seconds: dict[str, float]
    """Processor time, by predictor."""


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Everything measured, and the pictures to look at."""

    document: Json
    """As it is written; estimates are `Estimate`s still."""
    pictures: dict[str, Pictures]
    """(shown, T, H, W, 3) by predictor, truth among them."""
    lengths: NDArray[np.int64]
    """Frames that exist of these."""


def measure(
    world: "World",
    config: FidelityConfig,
    *,
    conv: Predictor | None = None,
    others: Mapping[str, Predictor] | None = None,
    beside: "Mapping[str, World] | None" = None,
    on_progress: Progress | None = None,
) -> Report:
    """Compare a world with its true twin on episodes that it has never seen.

    Args:
        world: From `load_world`.
        config: What to measure.
        conv: The trained baseline; it is left out of the report when None.
        others: More predictors to be put beside the dream, by name.
        beside: Other worlds of the same environment, by name: they dream the same episodes, and the
            report says how the world's errors differ from theirs, episode by episode.
        on_progress: Called with (what is being done, done, of).

    Raises:
        EpisodesError: Nearly all episodes end before a dream can begin.
        ValueError: A world beside it was learned from another environment, begins with another
            number of frames, or has a name that is taken.
    """
    beside = beside or {}
    F = world.manifest.environment.frames_per_chunk
    predictors: dict[str, Predictor] = {
        DREAM: Dream(world.model),
        COPY: CopyLast(F),
        MEAN: MeanFrame(world.starts, F),
    }
    if conv is not None:
        predictors[CONV] = conv
    predictors |= others or {}
    for name, other in beside.items():
        require_comparable(world, name, other, taken={TRUTH, *predictors})
        predictors[name] = Dream(other.model)
    acting = (*ACTING, *beside)
    compared = (*beside, CONV)
    held_out = HeldOut(world.manifest.environment, world.model.config.history, config)
    try:
        evidence = gather(held_out, predictors, config, acting=acting, on_progress=on_progress)
    finally:
        held_out.close()
    heads = world.model.heads
    scales = float(heads.reward_scale), heads.state_scale.double().cpu().numpy()
    names = world.manifest.environment.state_names
    document = {
        "world": identity(world),
        "config": dataclasses.asdict(config),
        "policies": [dataclasses.asdict(spec) for spec in held_out.specs],
        "history": held_out.history,
        **summarise(
            evidence, config, state_names=names, scales=scales, acting=acting, compared=compared
        ),
        "beside": {name: identity(other) for name, other in beside.items()},
        "cpu_seconds": {name: round(value, 1) for name, value in evidence.seconds.items()},
    }
    lengths = evidence.valid.sum(1)[: config.shown]
    return Report(document, evidence.pictures, lengths)


def identity(world: "World") -> Json:
    """Which world it was."""
    path = None if world.path is None else str(world.path)
    return {"name": world.name, "path": path, "fingerprint": world.fingerprint}


def require_comparable(world: "World", name: str, other: "World", *, taken: set[str]) -> None:
    """Refuse a world that cannot dream the same episodes, or whose name says something else.

    Raises:
        ValueError: So it is.
    """
    if name in taken:
        raise ValueError(
            f"{name!r} already stands for something in this report; give the world beside as a path"
        )
    ours, its = world.manifest.environment, other.manifest.environment
    same = ("id", "kwargs", "chunk", "frames_per_chunk", "frame_size", "action_space")
    for field in same:
        mine, theirs = getattr(ours, field), getattr(its, field)
        if mine != theirs:
            raise ValueError(
                f"worlds are compared on the same episodes, and {name} was learned from another "
                f"environment than {world.name}: its {field} is {theirs!r}, not {mine!r}"
            )
    mine, theirs = world.model.config.history, other.model.config.history
    if mine != theirs:
        raise ValueError(
            f"worlds are compared from the same true frames, and dreams of {name} begin with "
            f"{theirs} of them, those of {world.name} with {mine}"
        )


def gather(
    held_out: HeldOut,
    predictors: Mapping[str, Predictor],
    config: FidelityConfig,
    *,
    acting: tuple[str, ...] = ACTING,
    on_progress: Progress | None = None,
) -> Evidence:
    """Record the episodes group by group and roll every predictor out on each.

    Args:
        held_out: The episodes.
        predictors: By name.
        config: What to measure.
        acting: Names of those that look at the actions, as far as there are such predictors.
        on_progress: Called with (what is being done, done, of).
    """
    everyone = {TRUTH: Replay(), **predictors}
    traces: dict[str, list[Trace]] = {name: [] for name in everyone}
    forks: dict[str, list[tuple[Trace, Trace]]] = {name: [] for name in (TRUTH, *predictors)}
    pictures: dict[str, list[Pictures]] = {name: [] for name in everyone}
    seconds = dict.fromkeys(everyone, 0.0)
    groups: list[Group] = []
    finder: ObjectFinder | None = None
    tell = on_progress or (lambda what, done, of: None)
    clock = time.process_time()
    for group in held_out:
        seconds[TRUTH] += time.process_time() - clock
        if not groups:
            finder = object_finder(held_out.env, group.truth.history[:, -1])
        seen, total = sum(len(g.labels) for g in groups), config.episodes
        keep = max(0, config.shown - seen)
        for name, predictor in everyone.items():
            clock = time.process_time()
            trace, shown = roll_out(
                predictor, group.truth, finder=finder, tolerance=config.tolerance, keep=keep
            )
            traces[name].append(trace)
            pictures[name].append(shown)
            if group.forks is not None and name in (TRUTH, *acting):
                a, b = (roll_out(predictor, truth, finder=finder)[0] for truth in group.forks)
                forks[name].append((a, b))
            seconds[name] += time.process_time() - clock
            tell(name, seen + len(group.labels), total)
        groups.append(_without_pixels(group))
        clock = time.process_time()
    return Evidence(
        traces={name: Trace.concat(parts) for name, parts in traces.items()},
        forks={name: _joined(parts) for name, parts in forks.items() if parts},
        valid=np.concatenate([group.truth.valid for group in groups]),
        forks_valid=_forks_valid(groups),
        labels=tuple(label for group in groups for label in group.labels),
        skipped=sum(group.skipped for group in groups),
        finder=finder,
        pictures={name: np.concatenate(parts) for name, parts in pictures.items()},
        seconds=seconds,
    )


def summarise(
    evidence: Evidence,
    config: FidelityConfig,
    *,
    state_names: tuple[str, ...] = (),
    scales: tuple[float, NDArray[np.floating[Any]]] | None = None,
    acting: tuple[str, ...] = ACTING,
    compared: tuple[str, ...] = (),
) -> Json:
    """All figures.

    Args:
        evidence: From `gather`.
        config: The thresholds.
        state_names: Of the state's numbers.
        scales: Deviations of reward and state (S,) in which the dream tells its uncertainty.
        acting: Names of the predictors that look at the actions.
        compared: Names of those whose errors the dream's are compared with, episode by episode, as
            far as there are such predictors.
    """
    S = evidence.traces[TRUTH].state.shape[-1]
    names = state_names or tuple(f"state_{i}" for i in range(S))
    B = len(evidence.valid)
    yard = Yardstick(
        config=config,
        bootstrap=Bootstrap(B, resamples=config.resamples, seed=config.seed),
        truth=evidence.traces[TRUTH],
        valid=evidence.valid,
        finder=evidence.finder,
        state_names=names,
    )
    guesses = {name: trace for name, trace in evidence.traces.items() if name != TRUTH}
    missed = {name: errors(yard, trace) for name, trace in guesses.items()}
    ours = missed[DREAM]
    document: Json = {
        "held_out": _held_out(evidence, yard),
        "detector": _detector(yard),
        "predictors": {name: by_horizon(yard, its) for name, its in missed.items()},
        "dream_by_policy": by_policy(yard, ours, evidence.labels),
        "dream_is_better": compare(yard, ours, {k: v for k, v in missed.items() if k != DREAM}),
        "paired": {name: paired(yard, ours, missed[name]) for name in compared if name in missed},
        "reward": {name: reward(yard, guesses[name]) for name in acting if name in guesses},
        "termination": {
            name: _terminations(yard, guesses[name]) for name in acting if name in guesses
        },
        "counterfactual": _counterfactuals(evidence, yard, acting),
        "reappearance": {name: reappearance(yard, trace) for name, trace in guesses.items()},
    }
    if scales is not None:
        document["uncertainty"] = uncertainty(yard, guesses[DREAM], scales)
    return document


def object_finder(env: RealEnv, sample: Pictures) -> ObjectFinder | None:
    """Finds the objects of our own scenes; None for environments that do not name theirs.

    Args:
        env: The truth.
        sample: True pictures (N, H, W, 3).
    """
    objects = getattr(env.low_level.unwrapped, "objects", ())
    if not isinstance(objects, tuple) or not objects:
        return None
    if not all(isinstance(thing, SceneObject) for thing in objects):
        return None
    return ObjectFinder(objects, sample)


def _held_out(evidence: Evidence, yard: Yardstick) -> Json:
    """What the episodes were."""
    lengths = evidence.valid.sum(1)
    ended = evidence.traces[TRUTH].first_end > 0
    policies = {
        label: {
            "episodes": int(chosen.sum()),
            "frames": int(lengths[chosen].sum()),
            "terminated": int(ended[chosen].sum()),
        }
        for label in sorted(set(evidence.labels))
        for chosen in [np.array([one == label for one in evidence.labels])]
    }
    return {
        "seeds": f"all reset seeds are {HELD_OUT_FROM} or more; `kairos collect` uses smaller ones",
        "episodes": len(lengths),
        "frames": int(lengths.sum()),
        "terminated": int(ended.sum()),
        "ended_within_history": evidence.skipped,
        "by_policy": policies,
        "forks": 0 if evidence.forks_valid is None else len(evidence.forks_valid[0]),
        "state_deviation": {
            name: float(d) if np.isfinite(d) else None
            for name, d in zip(yard.state_names, yard.state_deviation, strict=True)
        },
    }


def _detector(yard: Yardstick) -> Json:
    """How exact the eyes are: objects as seen in true pictures against the simulator's state."""
    if yard.finder is None or not yard.truth.state.shape[-1]:
        return {}
    true = yard.finder.places_in_state(yard.truth.state)
    error = np.linalg.norm(yard.truth.place - true, axis=-1)
    error = np.where(yard.visible(), error, np.nan)
    return {
        name: {
            "error_px": yard.bootstrap.mean(error[..., i]),
            "full_area_px": float(yard.finder.full_areas()[i]),
        }
        for i, name in enumerate(yard.names)
    }


def _terminations(yard: Yardstick, trace: Trace) -> Json:
    """Within the first frames and within the horizon; with the tolerance and strictly."""
    config = yard.config
    result: Json = {}
    for frames in sorted({min(config.reward_frames, config.horizon), config.horizon}):
        result[str(frames)] = {
            "tolerance": config.tolerance,
            **termination(yard, trace, frames=frames, tolerance=config.tolerance),
            "strict": termination(yard, trace, frames=frames, tolerance=0),
        }
    return result


def _counterfactuals(evidence: Evidence, yard: Yardstick, acting: tuple[str, ...]) -> Json:
    if evidence.forks_valid is None:
        return {}
    valid = evidence.forks_valid
    boot = Bootstrap(len(valid[0]), resamples=yard.config.resamples, seed=yard.config.seed)
    first, second = (
        dataclasses.replace(yard, truth=trace, valid=exist, bootstrap=boot)
        for trace, exist in zip(evidence.forks[TRUTH], valid, strict=True)
    )
    F = valid[0].shape[1] // max(yard.config.fork_steps)
    return {
        name: {
            str(step): counterfactual(
                (first, second),
                evidence.forks[name],
                frame=step * F,
                deviation=yard.state_deviation,
            )
            for step in yard.config.fork_steps
        }
        for name in acting
        if name in evidence.forks
    }


def _forks_valid(groups: list[Group]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    pairs = [group.forks for group in groups if group.forks is not None]
    if not pairs:
        return None
    a, b = (np.concatenate([pair[i].valid for pair in pairs]) for i in (0, 1))
    return a, b


def _joined(parts: list[tuple[Trace, Trace]]) -> tuple[Trace, Trace]:
    return Trace.concat([a for a, _ in parts]), Trace.concat([b for _, b in parts])


def _without_pixels(group: Group) -> Group:
    """What is still needed once a group is done: its memory goes to the next one."""

    def drop(truth: Truth) -> Truth:
        thin = truth.frames[..., :0, :0, :]
        return dataclasses.replace(truth, frames=thin.copy(), history=truth.history[:0])

    forks = None if group.forks is None else (drop(group.forks[0]), drop(group.forks[1]))
    return dataclasses.replace(group, truth=drop(group.truth), forks=forks)
