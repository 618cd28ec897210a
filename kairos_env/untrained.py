"""A small world with random weights, made in code: everything runs before anything is trained.

It has the interface of a world of `KairosPush-v0` and shows coloured noise. It says that it is
untrained wherever a world says what it is.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kairos_env.manifest import EnvironmentSpec, Manifest
from kairos_env.starts import Starts
from kairos_env.world_model.config import DeltaConfig, StreamConfig, TransformerConfig
from kairos_env.world_model.heads import HeadsConfig
from kairos_env.world_model.tokenizer import TokenizerConfig
from kairos_env.world_model.world_model import WorldConfig, WorldModel
from kairos_env.worlds import World

SEED = 0
FRAME_SIZE = 64
# So that the placeholder does not end by itself at every other step.
END_LOGIT = -8.0
STIR = 0.01

STATE_NAMES = (
    *("agent_x", "agent_y", "block_x", "block_y", "block_cos", "block_sin"),
    *("agent_vx", "agent_vy", "block_vx", "block_vy", "block_spin", "goal_x", "goal_y"),
)


def untrained_config(*, frames_per_chunk: int = 1, discrete: int | None = None) -> WorldConfig:
    """The smallest model with every kind of memory.

    Args:
        frames_per_chunk: F.
        discrete: Number of actions of a discrete space; None for two continuous numbers.
    """
    action_size, chunk = discrete or 2, 4
    per_frame = chunk // frames_per_chunk
    return WorldConfig(
        tokenizer=TokenizerConfig(frame_size=(FRAME_SIZE, FRAME_SIZE), channels=(8, 8, 8)),
        transformer=TransformerConfig(
            layers=("SWA", "DSWA", "GLA"),
            heads=2,
            head_dim=8,
            video=StreamConfig(dim=16, ffn_dim=32, channels=4),
            action=StreamConfig(dim=16, ffn_dim=32, channels=action_size),
            delta=DeltaConfig(heads=2, key_dim=8, value_dim=8),
            patch=4,
            freq_dim=32,
            stem="conv",
            stem_channels=16,
            head_blocks=1,
            action_conditions_time=True,
            actions_per_frame=per_frame,
        ),
        heads=HeadsConfig(state_size=len(STATE_NAMES), hidden=32, channels=8),
        action_size=action_size,
        chunk=chunk,
        frames_per_chunk=frames_per_chunk,
    )


def untrained_manifest(model: WorldConfig) -> Manifest:
    """What its world.json would say."""
    space = (
        {"kind": "box", "low": [-1.0, -1.0], "high": [1.0, 1.0]}
        if model.action_size == 2
        else {"kind": "discrete", "n": model.action_size, "start": 0}
    )
    return Manifest(
        name="untrained",
        description="Random weights behind the interface of KairosPush-v0. Nothing was learned.",
        environment=EnvironmentSpec(
            id="KairosPush-v0",
            chunk=model.chunk,
            frames_per_chunk=model.frames_per_chunk,
            frame_size=FRAME_SIZE,
            horizon=75,
            fps=25 / model.actions_per_frame,
            action_space=space,
            reward="none: the numbers come from random weights",
            termination="none: the head is biased never to end an episode",
            state_names=STATE_NAMES,
        ),
        model=model,
        provenance={"trained": False, "seed": SEED},
    )


def untrained_world(*, frames_per_chunk: int = 1, discrete: int | None = None) -> World:
    """Build it; the same weights each time, the caller's random numbers untouched."""
    config = untrained_config(frames_per_chunk=frames_per_chunk, discrete=discrete)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        model = WorldModel(config)
    _stir(model)
    nn.init.constant_(model.heads.end.bias, END_LOGIT)
    return World(None, untrained_manifest(config), model, _drawn_starts(config))


@torch.no_grad()
def _stir(model: WorldModel) -> None:
    """Draw the weights that begin at zero, so that noise, actions and memory show in the frames."""
    generator = torch.Generator().manual_seed(SEED)
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            weight.normal_(std=STIR, generator=generator)


def _drawn_starts(config: WorldConfig, count: int = 8) -> Starts:
    """Histories drawn by hand: a blue disc moves, a red square and a green disc stand."""
    random = np.random.default_rng(SEED)
    T = config.history_frames
    state = np.zeros((count, len(STATE_NAMES)), np.float32)
    state[:, [0, 1, 2, 3, 11, 12]] = random.uniform(-0.7, 0.7, (count, 6))
    state[:, 4] = 1.0
    frames = np.empty((count, T, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    for i, entries in enumerate(state):
        for t in range(T):
            agent = entries[0:2] - 0.05 * (T - 1 - t)
            frames[i, t] = _picture(agent, block=entries[2:4], goal=entries[11:13])
    shape = (count, T - 1, config.actions_per_frame, config.action_size)
    return Starts(frames, np.zeros(shape, np.float32), state)


def _picture(
    agent: NDArray[np.float32], *, block: NDArray[np.float32], goal: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The square from -1 to 1 seen from above."""
    place = (np.arange(FRAME_SIZE) + 0.5) / (FRAME_SIZE / 2) - 1.0
    x, y = place[None, :], -place[:, None]
    picture = np.full((FRAME_SIZE, FRAME_SIZE, 3), 235, np.uint8)
    picture[np.hypot(x - goal[0], y - goal[1]) < 0.2] = 64, 191, 102
    picture[np.maximum(abs(x - block[0]), abs(y - block[1])) < 0.156] = 224, 51, 38
    picture[np.hypot(x - agent[0], y - agent[1]) < 0.11] = 26, 77, 230
    return picture
