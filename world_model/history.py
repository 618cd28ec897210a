"""Frames and actions as the transformer reads them: each frame beside what came before it.

Shapes: B batch, T frames, C h w a latent frame, P previous frames, A actions per frame, D their
size.
"""

import torch
from torch import Tensor


def with_previous(latents: Tensor, P: int) -> Tensor:
    """The P frames before each of (B, T, C, h, w), oldest first: (B, T, P, C, h, w).

    Before the first frame stands the first frame itself: nothing has moved yet.
    """
    T = latents.shape[1]
    padded = torch.cat([latents[:, :1].expand(-1, P, -1, -1, -1), latents], dim=1)
    return torch.stack([padded[:, i : i + T] for i in range(P)], dim=2)


def led_by(actions: Tensor) -> Tensor:
    """Actions (B, T - 1, A, D) beside the frames that they lead to: (B, T, A, D), first unknown."""
    B, _, A, D = actions.shape
    return torch.cat([actions.new_zeros(B, 1, A, D), actions], dim=1)
