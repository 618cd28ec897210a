"""Actors that dream: each holds the world and a batch of dreams, and rolls a policy out in them.

A rollout follows from the seed of its round and from the policy's weights since the round began.
So a dreamer that died, perhaps to come back on another machine, dreams the round again up to where
it was, and its rollouts are those that would have been.

Shapes: n steps of a rollout, B dreams of one dreamer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer

from kairos_env.agents.imagine.algorithms import make_ppo
from kairos_env.agents.imagine.config import ImagineConfig
from kairos_env.agents.imagine.envs import acting_on_chunks, dream_env, open_world, recorded
from kairos_env.agents.scale.cluster import answers

Rollout = dict[str, NDArray[Any]]
"""The arrays of a filled `RolloutBuffer`, (n, B, ...) each."""
ARRAYS = (
    "observations",
    "actions",
    "rewards",
    "episode_starts",
    "values",
    "log_probs",
    "advantages",
    "returns",
)


class Dreamer:
    """A batch of dreams and a copy of the policy; an actor.

    Args:
        config: The run. Folders that it names must be there on every machine.
        first: The number of its first dream among those of all dreamers.
        threads: CPU threads.
    """

    def __init__(self, config: ImagineConfig, first: int, threads: int) -> None:
        torch.set_num_threads(threads)
        env = acting_on_chunks(config, dream_env(config, open_world(config, recorded(config))))
        self._model = make_ppo(config, env)
        self._first = first
        self._dreamed: list[Any] = []  # references to the weights of this round's rollouts

    def roll_out(self, seed: int, weights: list[Any]) -> Rollout:
        """Dream on with the newest weights.

        Args:
            seed: Of the round.
            weights: References to all weights since the round began; the rollouts that this dreamer
                has not dreamed yet are dreamed first.
        """
        known = len(self._dreamed)
        if not known or weights[:known] != self._dreamed:
            self._begin(seed)
        for reference in weights[len(self._dreamed) :]:
            [parameters] = answers([reference])
            self._model.policy.load_state_dict(parameters)
            self._dream_on()
            self._dreamed.append(reference)
        buffer = self._model.rollout_buffer
        return {name: getattr(buffer, name) for name in ARRAYS}

    def _begin(self, seed: int) -> None:
        """New dreams: the seed of each follows from its number among all, whoever dreams it."""
        self._model.set_random_seed(seed + self._first)
        _, self._callback = self._model._setup_learn(0)
        self._dreamed = []

    def _dream_on(self) -> None:
        model = self._model
        assert model.env is not None, "it was made with one"
        model.collect_rollouts(model.env, self._callback, model.rollout_buffer, model.n_steps)


def fill(buffer: RolloutBuffer, rollouts: Sequence[Rollout]) -> None:
    """Put the dreams of all dreamers beside each other."""
    buffer.reset()
    for name in ARRAYS:
        whole = np.concatenate([rollout[name] for rollout in rollouts], axis=1)
        setattr(buffer, name, whole)
    buffer.pos, buffer.full = buffer.buffer_size, True
