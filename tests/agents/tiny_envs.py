"""Environments that need no renderer, for tests of collection; workers import this file by name."""

import os
import time
from pathlib import Path

import gymnasium
import numpy as np

SIDE = 16


class Ball(gymnasium.Env):
    """A square that is driven over a 16x16 picture; the episode ends when it reaches the right."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self, *, render_mode=None, discrete=False, delay=0.0, die_at="", die_once="", fail_at=""
    ):
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)
        self.action_space = (
            gymnasium.spaces.Discrete(4)
            if discrete
            else gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
        )
        self.delay = delay
        # Files whose presence makes the process die, once or always, or an episode fail.
        self.die_at = die_at
        self.die_once = die_once
        self.fail_at = fail_at
        self.state = np.zeros(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.array([*self.np_random.uniform(3, 9, 2), 0.0])
        return self.state.astype(np.float32), {}

    def step(self, action):
        time.sleep(self.delay)
        if self.die_at and Path(self.die_at).exists() and self.state[2] == 3:
            os._exit(9)
        if self.die_once and Path(self.die_once).exists() and self.state[2] == 3:
            Path(self.die_once).unlink()
            os._exit(9)
        if self.fail_at and Path(self.fail_at).exists() and self.state[2] == 3:
            raise FloatingPointError("the simulation became unstable")
        move = np.eye(4)[action][:2] - np.eye(4)[action][2:] if np.ndim(action) == 0 else action
        self.state = np.append(
            np.clip(self.state[:2] + np.asarray(move) * 0.4, 1, 14), self.state[2] + 1
        )
        won = bool(self.state[0] > 12)
        return self.state.astype(np.float32), float(won) - 0.01, won, False, {"success": won}

    def render(self):
        frame = np.full((SIDE, SIDE, 3), (30, 60, 90), np.uint8)
        column, row = self.state[:2].astype(int)
        frame[row - 1 : row + 2, column - 1 : column + 2] = (220, 200, int(self.state[2]) % 200)
        return frame


class Opaque(gymnasium.Env):
    """An environment whose state nobody documents: no snapshot can be taken."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, *, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.ones(2, np.float32), 0.0, False, False, {}

    def render(self):
        return np.zeros((SIDE, SIDE, 3), np.uint8)


gymnasium.register("TinyBall-v0", entry_point=Ball)
gymnasium.register("TinyOpaque-v0", entry_point=Opaque)
