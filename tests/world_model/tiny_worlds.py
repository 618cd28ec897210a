"""Worlds, clips and dreams of the smallest size that still has every part.

Legend: B clips or dreams, T frames, K actions a step, F frames a step, A = K / F actions a frame.
"""

import dataclasses

import torch
from torch import Tensor

from kairos_env.world_model.presets import world_config
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.world_model import WorldModel

ACTIONS, STATES, K = 2, 3, 4


def make_world(*, frames_per_chunk: int = 1, seed: int = 0, **shape: float) -> WorldModel:
    """A tiny world in which nothing is zero, as much of it is at initialisation.

    `shape` names fields of `TransformerConfig`.
    """
    config = world_config(
        "tiny",
        action_size=ACTIONS,
        state_size=STATES,
        chunk=K,
        frames_per_chunk=frames_per_chunk,
    )
    transformer = dataclasses.replace(config.transformer, **shape)
    config = dataclasses.replace(config, transformer=transformer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        world = WorldModel(config)
        with torch.no_grad():
            for parameter in world.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return world


def make_clips(B: int, T: int, *, frames_per_chunk: int = 1, seed: int = 1) -> dict[str, Tensor]:
    """Clips of a bright square that the first action moves over a dark floor."""
    generator = torch.Generator().manual_seed(seed)
    A = K // frames_per_chunk
    actions = torch.rand((B, T - 1, A, ACTIONS), generator=generator) * 2 - 1
    place = torch.randint(16, 32, (B, 1), generator=generator)
    moved = (4 * actions[:, :, 0, 0]).round().long().cumsum(1)
    columns = torch.cat([place, place + moved], dim=1).clamp(0, 52)  # (B, T)
    pixel = torch.arange(64)
    inside = (pixel >= columns[..., None]) & (pixel < columns[..., None] + 12)
    frames = torch.full((B, T, 64, 64, 3), 40, dtype=torch.uint8)
    frames[:, :, 26:38] = torch.where(inside[:, :, None, :, None], 220, 40).to(torch.uint8)
    terminated = torch.zeros((B, T - 1), dtype=torch.bool)
    terminated[0, -1] = True
    return {
        "frames": frames,
        "actions": actions,
        "rewards": actions.mean((2, 3)),
        "terminated": terminated,
        "state": torch.randn((B, T, STATES), generator=generator),
        "valid": torch.ones((B, T), dtype=torch.bool),
    }


def start(world: WorldModel, clips: dict[str, Tensor], frames: int = 3) -> DreamState:
    """Dreams from the first frames of clips; dream i has seed 10 + i."""
    B = len(clips["valid"])
    return world.start(
        clips["frames"][:, :frames],
        clips["actions"][:, : frames - 1],
        seeds=torch.arange(10, 10 + B),
    )


def random_chunks(B: int, steps: int, seed: int = 3) -> Tensor:
    """Action chunks in [-1, 1]: (steps, B, K, action size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((steps, B, K, ACTIONS), generator=generator) * 2 - 1
