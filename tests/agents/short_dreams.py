"""Dreams that have just begun."""

import torch


def a_dream(world, seed=0):
    """From a world's first start."""
    starts = world.starts
    frames, actions = torch.from_numpy(starts.frames[:1]), torch.from_numpy(starts.actions[:1])
    return world.model.start(frames, actions, seeds=torch.tensor([seed]))
