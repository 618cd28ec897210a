"""Examinations: one policy, fresh start states, its returns in the dream and in reality.

Shapes: n episodes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.imagine.config import ImagineConfig
from kairos_env.agents.imagine.envs import RealAsDream, held
from kairos_env.agents.imagine.guard import Reading
from kairos_env.vector_env import DreamVectorEnv
from kairos_env.worlds import World

Returns = NDArray[np.float64]
# Observations (n, ...) to chunks (n, K, D).
Actor = Callable[[NDArray[Any]], NDArray[Any]]

# Seeds of the real episodes; no collection uses them, and no two purposes share one.
EXAM_SEED, TEST_SEED = 3_000_000, 4_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class RealResult:
    """How a policy did in reality."""

    returns: Returns
    success: float | None
    """Share of solved episodes; None where the task has no such notion."""
    low_level_steps: int
    """What this cost in actions of the real environment."""


class Examiner:
    """Holds the real twin and the dream that policies are examined in.

    The starts are those of fresh real episodes; each dream begins from the true first frame.

    Args:
        config: What the policy sees, and how many episodes.
        world: The dream's.
    """

    def __init__(self, config: ImagineConfig, world: World) -> None:
        self.config = config
        self.world = world
        self.chunk = world.manifest.environment.chunk
        self.real = RealAsDream(world, config.observation)
        self.seeds = [EXAM_SEED + i for i in range(config.exam_episodes)]
        self._starts = self._first_sights()
        self._dreams: DreamVectorEnv | None = None

    def read(self, act: Actor, steps: int, *, dream: bool = True) -> tuple[Reading, RealResult]:
        """Examine a policy that has practised for `steps`; real alone where `dream` is False."""
        real = self.in_reality(act, self.seeds)
        dreamed, uncertainty = self.in_dream(act) if dream else (None, None)
        return Reading(steps, dreamed, real.returns, uncertainty), real

    def test(self, act: Actor) -> RealResult:
        """The measure that counts: real episodes that no examination has seen."""
        return self.in_reality(act, [TEST_SEED + i for i in range(self.config.test_episodes)])

    def random(self) -> Actor:
        """Who knows nothing: chunks drawn evenly."""
        space = self.real.action_space
        space.seed(0)
        return lambda seen: np.stack([space.sample() for _ in seen])

    def in_reality(self, act: Actor, seeds: list[int]) -> RealResult:
        """One real episode for each seed."""
        returns, solved, executed = np.zeros(len(seeds)), [], 0
        for episode, seed in enumerate(seeds):
            observation, _ = self.real.reset(seed=seed)
            over = False
            while not over:
                step = self.real.step(act(observation[None])[0])
                observation, reward, terminated, truncated, info = step
                returns[episode] += reward
                executed += int(info["executed"])
                over = terminated or truncated
            if "success" in info:
                solved.append(bool(info["success"]))
        success = float(np.mean(solved)) if solved else None
        return RealResult(returns, success, executed)

    def in_dream(self, act: Actor) -> tuple[Returns, float]:
        """Dreamed returns from the same starts, and the mean uncertainty on the way."""
        n = len(self.seeds)
        if self._dreams is None:
            pixels = self.config.observation == "pixels"
            kind = self.config.observation
            self._dreams = DreamVectorEnv(n, world=self.world, observation=kind, decode=pixels)
        seeds = [EXAM_SEED + i for i in range(n)]
        observation, _ = self._dreams.reset(seed=seeds, options=self._starts)
        returns, alive, doubts = np.zeros(n), np.ones(n, bool), []
        while alive.any():
            observation, rewards, terminated, truncated, infos = self._dreams.step(
                act(cast(NDArray[Any], observation))
            )
            returns += np.where(alive, rewards, 0.0)
            doubts += list(infos["uncertainty"][alive])
            alive &= ~(terminated | truncated)
        return returns, float(np.mean(doubts))

    def close(self) -> None:
        """Free simulator and dreams."""
        self.real.close()
        if self._dreams is not None:
            self._dreams.close()

    def _first_sights(self) -> dict[str, Any]:
        """The first frame and state of each examined episode, as a dream's reset takes them."""
        twin = self.world.make_twin()
        sights = [twin.reset(seed=seed) for seed in self.seeds]
        twin.close()
        frames = np.stack([frame[None] for frame, _ in sights])  # (n, 1, H, W, 3)
        return {"frames": frames, "state": np.stack([info["state"] for _, info in sights])}


def actor(predict: Callable[[NDArray[Any]], NDArray[Any]], chunk: int, *, hold: bool) -> Actor:
    """A policy's prediction as whole chunks."""
    return (lambda seen: held(predict(seen), chunk)) if hold else predict
