"""Act in the real twin from pixels: a dream follows what is truly seen, a decider acts in it.

The dream's memory is the policy's memory. After every real step the true frames and the actions
that led to them are committed to it, so it never sees its own predictions and costs the same at
any age.

Legend: K low-level actions per step, D numbers per action, F frames per step.
"""

import time
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from gymnasium import Env
from numpy.typing import NDArray

from kairos_env.agents.planning.planner import Planner, dreaming_model
from kairos_env.agents.planning.search import Array
from kairos_env.agents.policies import Chunk, Frame, Step, execute
from kairos_env.spaces import chunk_space, decode_actions, encode_actions
from kairos_env.world_model.state import DreamState
from kairos_env.worlds import World


class Decider(Protocol):
    """Says what to do next in a dream."""

    world: World

    def begin(self, generator: np.random.Generator) -> None:
        """A new episode; draw from `generator` alone from now on."""

    def decide(self, dream: DreamState) -> NDArray[np.float32]:
        """The next chunk (K, D), encoded, of one dream; the dream stays as it is."""


class FollowingPolicy:
    """A `Policy` for the real twin of a world that sees pixels alone.

    It must take every step of an episode itself: what another policy does goes unseen.
    `info["decision_seconds"]` of each step tells how long it looked and thought, on the clock, and
    `info["decision_cpu_seconds"]` how much processor time that took.

    Args:
        decider: Decides in the dream that follows.
        text: What the dream is told, for a world that reads text.

    Attributes:
        dream: What it remembers of the episode; None before the first step.
    """

    def __init__(self, decider: Decider, *, text: str = "") -> None:
        if text and dreaming_model(decider.world).text is None:
            raise ValueError(f"world {decider.world.name!r} reads no text, got {text!r}")
        self.decider, self.text = decider, text
        self.world = decider.world
        self.dream: DreamState | None = None

    def begin(self, env: Env[Frame, Chunk], generator: np.random.Generator) -> None:
        """Forget the last episode.

        Raises:
            ValueError: The environment does not take this world's chunks.
        """
        e = self.world.manifest.environment
        expected = chunk_space(e.space, e.chunk)
        if env.action_space != expected:
            raise ValueError(
                f"world {self.world.name!r} acts in {expected}, this environment takes "
                f"{env.action_space}; make it with world.make_twin()"
            )
        self.dream = None
        self._seed = int(generator.integers(2**62))
        self.decider.begin(generator)

    def step(self, env: Env[Frame, Chunk], frame: Frame) -> Step:
        """Look, decide, act.

        Args:
            env: The real twin.
            frame: Its present frame; only that of the first step is looked at, later ones come with
                the steps.
        """
        start = _clocks()
        dream = self.dream
        if dream is None:
            dream = first_sight(self.world, frame, self._seed, self.text)
        chunk = decode_actions(env.action_space, self.decider.decide(dream))
        decided = _clocks()
        step = execute(env, chunk)
        executed = _clocks()
        self.dream = follow(self.world, dream, step)
        wall, cpu = _clocks() - executed + decided - start
        times = {"decision_seconds": float(wall), "decision_cpu_seconds": float(cpu)}
        return replace(step, info={**step.info, **times})


def _clocks() -> NDArray[np.float64]:
    """Seconds on the clock, and of processor time."""
    return np.array([time.perf_counter(), time.process_time()])


def first_sight(world: World, frame: Frame, seed: int, text: str = "") -> DreamState:
    """A dream that has seen one true frame, at rest for the length of a chunk."""
    model = dreaming_model(world)
    F = model.config.frames_per_chunk
    frames = torch.from_numpy(np.repeat(frame[None, None], F, axis=1)).to(model.device)
    told, mask = (None, None) if model.text is None else model.text.encode([text])
    seeds = torch.tensor([seed], device=model.device)
    return model.start(frames, seeds=seeds, text=told, text_mask=mask)


def follow(world: World, dream: DreamState, step: Step) -> DreamState:
    """The dream after a real step, as it truly went."""
    model = dreaming_model(world)
    told = encode_actions(world.manifest.environment.space, step.chunk)
    actions = torch.from_numpy(told).unflatten(0, (model.config.frames_per_chunk, -1))
    frames = torch.from_numpy(np.array(step.info["frames"]))
    return model.observe(dream, frames[None].to(model.device), actions[None].to(model.device))


class PlanningDecider:
    """Plans every step anew, beginning from the rest of the last plan."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.world = planner.world

    def begin(self, generator: np.random.Generator) -> None:
        """Forget the last plan."""
        self._generator = generator
        self._guesses: Array | None = None

    def decide(self, dream: DreamState) -> NDArray[np.float32]:
        """The first step of the best plan."""
        plan = self.planner.plan(dream, self._generator, self._guesses)
        self._guesses = plan.guesses
        return plan.chunk


class MPCPolicy(FollowingPolicy):
    """Model-predictive control of the real twin from pixels.

    Args:
        planner: Finds what to do.
        text: What the dream is told, for a world that reads text.
    """

    def __init__(self, planner: Planner, *, text: str = "") -> None:
        super().__init__(PlanningDecider(planner), text=text)
