"""Frames and actions as the transformer reads them: each frame beside what came before it.

Shapes: B batch, T frames, C h w a latent frame, P previous frames, A actions per frame, D their
size.
"""

import torch
from torch import Tensor


def with_previous(latents: Tensor, P: int, *, anchor: bool = False) -> Tensor:
    """The P frames before each of (B, T, C, h, w), oldest first: (B, T, P, C, h, w).

    Before the first frame stands the first frame itself: nothing has moved yet. With an anchor the
    oldest of the P is always the first frame.
    """
    T = latents.shape[1]
    padded = torch.cat([latents[:, :1].expand(-1, P, -1, -1, -1), latents], dim=1)
    previous = torch.stack([padded[:, i : i + T] for i in range(P)], dim=2)
    if anchor:
        previous[:, :, 0] = latents[:, :1]
    return previous


def slide(previous: Tensor, frames: Tensor, *, anchor: bool = False) -> tuple[Tensor, Tensor]:
    """Let F frames (B, F, C, h, w) follow `previous` (B, P, C, h, w).

    Returns:
        The frames before each of them (B, F, P, C, h, w), and those before the next one
        (B, P, C, h, w). An anchor, the oldest of `previous`, stays where it is.
    """
    F, P = frames.shape[1], previous.shape[1]
    known = torch.cat([previous, frames], dim=1)
    windows = torch.stack([known[:, i : i + P] for i in range(F + 1)], dim=1)
    if anchor:
        windows[:, :, 0] = previous[:, :1]
    return windows[:, :-1], windows[:, -1]


def led_by(actions: Tensor) -> Tensor:
    """Actions (B, T - 1, A, D) beside the frames that they lead to: (B, T, A, D), first unknown."""
    B, _, A, D = actions.shape
    return torch.cat([actions.new_zeros(B, 1, A, D), actions], dim=1)
