"""Damage that long dreams do to themselves, made by hand: what short dreams never show.

Where one thing has passed over another, a dream may leave a little of its colour behind. Nothing
moves there afterwards, so it stays, and the thing below is lost. A dream that begins with such a
picture, and is judged by the truth, teaches to put it right.

Legend: B clips, T frames, C channels, h x w places.
"""

import numpy as np
import torch
from torch import Tensor

SIDES = (2, 3)
"""Fewest and most places that a side of the damage has."""
SHARES = (0.15, 0.6)
"""Least and most of the other thing's look that is mixed in."""


def damaged(latents: Tensor, real: int, share: float, random: np.random.Generator) -> Tensor:
    """Clips (B, T, C, h, w) in which things are damaged in the frames 1 .. `real` - 1.

    Frame 0 stays: it is what a dream can know better from. So do the frames from `real` on, by
    which the dream is judged.

    Args:
        latents: The clips.
        real: True frames that the dream begins with.
        share: Of the clips that are damaged.
        random: Where, how large, how much.
    """
    B, (h, w) = len(latents), latents.shape[-2:]
    hit = random.random(B) < share
    to, source = (_places(latents[:, 0], random) for _ in range(2))
    side = random.integers(*SIDES, size=B, endpoint=True)
    mixed = random.uniform(*SHARES, size=B) * hit
    if real < 2 or not hit.any():
        return latents
    rows, columns = np.arange(h), np.arange(w)
    inside = [
        (axis >= (to[:, i] - side // 2)[:, None]) & (axis < (to[:, i] - side // 2 + side)[:, None])
        for i, axis in enumerate((rows, columns))
    ]
    mask = mixed[:, None, None] * inside[0][:, :, None] * inside[1][:, None, :]  # (B, h, w)
    # what stands at `source` comes to stand at `to`
    row = (rows - (to - source)[:, :1]) % h
    column = (columns - (to - source)[:, 1:]) % w
    clip = torch.arange(B)[:, None, None]
    here = (clip, torch.from_numpy(row)[:, :, None], torch.from_numpy(column)[:, None, :])
    history = latents[:, 1:real]
    moved = history.permute(0, 3, 4, 1, 2)[here].permute(0, 3, 4, 1, 2)
    much = torch.from_numpy(mask).to(history)[:, None, None]
    return torch.cat([latents[:, :1], history + much * (moved - history), latents[:, real:]], 1)


def _places(frames: Tensor, random: np.random.Generator) -> np.ndarray:
    """A place (B, 2) of each frame (B, C, h, w), most likely one where something is."""
    B, w = len(frames), frames.shape[-1]
    flat = frames.detach().float().cpu().flatten(2)
    unlike = (flat - flat.median(2, keepdim=True).values).square().sum(1).numpy() + 1e-6
    ends = unlike.cumsum(1)
    chosen = (ends < random.random((B, 1)) * ends[:, -1:]).sum(1)
    return np.stack(np.divmod(chosen, w), 1)
