"""True episodes made by hand: discs that move as told, so every right answer is known."""

import dataclasses

import numpy as np

from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.fidelity.episodes import Truth
from kairos_env.benchmarks.fidelity.measure import DREAM, TRUTH, Evidence
from kairos_env.benchmarks.fidelity.objects import ObjectFinder
from kairos_env.benchmarks.fidelity.predictors import Replay
from kairos_env.benchmarks.fidelity.traces import roll_out
from kairos_env.real.scenes import SceneObject

SIZE = 32
FLOOR, ROOF = (235, 232, 224), (51, 56, 71)
AGENT = SceneObject(
    name="agent", rgb=(26, 77, 230), radius=0.22, shape="disc", state_slice=slice(0, 2)
)
GOAL = SceneObject(
    name="goal",
    rgb=(64, 191, 102),
    radius=0.3,
    shape="disc",
    state_slice=slice(2, 4),
    covered_by=("agent",),
)
BALL = SceneObject(
    name="ball",
    rgb=(250, 153, 26),
    radius=0.25,
    shape="disc",
    state_slice=slice(0, 2),
    gone_behind=("roof",),
)


def picture(discs, *, roof=None, size=SIZE, fine=4):
    """Draw (object, (x, y) in units) in order, with smooth edges; a roof covers columns on top."""
    middle = (np.arange(size * fine) + 0.5) / (size * fine / 2) - 1
    x, y = middle[None, :], -middle[:, None]
    canvas = np.empty((size * fine, size * fine, 3), np.float32)
    canvas[:] = FLOOR
    for thing, place in discs:
        canvas[np.hypot(x - place[0], y - place[1]) < thing.radius] = thing.rgb
    if roof is not None:
        canvas[:, (middle > roof[0]) & (middle < roof[1])] = ROOF
    return canvas.reshape(size, fine, size, fine, 3).mean((1, 3)).round().astype(np.uint8)


def reach_truth(episodes=8, frames=12, *, seed=0, lengths=None, step=0.08):
    """An agent that walks at random, a goal that stands; some episodes terminate early."""
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.uniform(-step, step, (episodes, frames + 2, 2)), 1)
    agent = np.clip(random.uniform(-0.6, 0.6, (episodes, 1, 2)) + walk, -0.75, 0.75)
    goal = random.uniform(-0.6, 0.6, (episodes, 1, 2)).repeat(frames + 2, 1)
    state = np.concatenate([agent, goal], -1).astype(np.float32)
    lengths = np.full(episodes, frames) if lengths is None else np.asarray(lengths)
    pictures = [[picture([(GOAL, row[2:4]), (AGENT, row[0:2])]) for row in rows] for rows in state]
    return made_truth(np.array(pictures), state, lengths, random)


def made_truth(pictures, state, lengths, random):
    """(B, 2 + T) rows, two of them history; an episode shorter than T terminates."""
    B, T = len(pictures), pictures.shape[1] - 2
    beyond = np.arange(T) >= np.asarray(lengths)[:, None]
    frames, states = pictures[:, 2:].copy(), state[:, 2:].copy()
    reward = random.normal(size=(B, T)).astype(np.float32)
    states[beyond], reward[beyond] = np.nan, np.nan
    for i, length in enumerate(lengths):
        frames[i, length:] = frames[i, length - 1]
    ended = np.arange(1, T + 1) == np.asarray(lengths)[:, None]
    ended[np.asarray(lengths) == T] = False
    return Truth(
        history=pictures[:, :2],
        history_actions=np.zeros((B, 1, 1, 2), np.float32),
        history_state=state[:, 1],
        chunks=random.uniform(-1, 1, (B, T, 1, 2)).astype(np.float32),
        frames=frames,
        state=states,
        reward=reward,
        ended=ended,
        length=np.asarray(lengths, np.int64),
        seeds=np.arange(B),
    )


def reordered(truth, order):
    """Other episodes' futures behind these histories."""
    names = ("frames", "state", "reward", "ended", "length")
    return dataclasses.replace(truth, **{name: getattr(truth, name)[order] for name in names})


class Told(Replay):
    """Replays another truth than the one it is compared with."""

    def __init__(self, truth, *, uncertainty=None):
        self._truth, self._uncertainty = truth, uncertainty

    def start(self, truth):
        return super().start(self._truth)

    def step(self, memory, chunk):
        _, rows, frame = memory
        memory, guess = super().step(memory, chunk)
        if self._uncertainty is not None:
            column = min(frame, self._uncertainty.shape[1] - 1)
            guess = guess._replace(uncertainty=self._uncertainty[rows, column])
        return memory, guess


def evidence(truth, dream, *, objects=(AGENT, GOAL), forks=None, tolerance=1):
    """What `gather` would have found; forks are ((truth a, truth b), (dream a, dream b))."""
    finder = ObjectFinder(objects, truth.history[:, -1])

    def trace(predictor, of):
        return roll_out(predictor, of, finder=finder, tolerance=tolerance)[0]

    pairs = {}
    if forks is not None:
        true, said = forks
        pairs = {
            TRUTH: tuple(trace(Replay(), one) for one in true),
            DREAM: tuple(trace(guess, one) for guess, one in zip(said, true, strict=True)),
        }
    return Evidence(
        traces={TRUTH: trace(Replay(), truth), DREAM: trace(dream, truth)},
        forks=pairs,
        valid=truth.valid,
        forks_valid=None if forks is None else tuple(one.valid for one in forks[0]),
        labels=("someone",) * len(truth),
        skipped=0,
        finder=finder,
        pictures={},
        seconds={},
    )


def small_config(**changes):
    """Thresholds for twelve frames."""
    values = {"horizon": 12, "horizons": (1, 6, 12), "reward_frames": 6, "resamples": 200}
    return FidelityConfig(**{**values, "fork_steps": (3, 6), **changes})
