"""Small worlds for tests: untrained, with every part doing something."""

import functools

import torch

from kairos_env.untrained import untrained_world


@functools.cache
def plain():
    """One frame per step, two continuous actions."""
    return untrained_world()


@functools.cache
def chosen():
    """Three discrete actions."""
    return untrained_world(discrete=3)


@functools.cache
def pairs():
    """Two frames per step."""
    return untrained_world(frames_per_chunk=2)


@functools.cache
def ending(frames_per_chunk=1):
    """Episodes end by themselves, most of them within a few steps."""
    world = untrained_world(frames_per_chunk=frames_per_chunk)
    with torch.no_grad():
        world.model.heads.end.weight.mul_(100.0)
        world.model.heads.end.bias.fill_(-1.0 if frames_per_chunk == 1 else 1.2)
    return world
