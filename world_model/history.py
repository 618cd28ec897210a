"""Frames and actions as the transformer reads them: each frame beside what came before it.

Shapes: B batch, T frames, C h w a latent frame, P previous frames, A actions per frame, D their
size, r frames coded together as one latent frame.
"""

from collections.abc import Mapping

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


def together(actions: Tensor, r: int) -> Tensor:
    """Actions between frames (B, T - 1, A, D) as actions between latent frames of r frames each.

    Those inside the first latent frame lead nowhere and are left out: (B, T / r - 1, r A, D).
    """
    if (actions.shape[1] + 1) % r:
        raise ValueError(
            f"{r} frames are coded together: expected actions between a multiple of {r} frames, "
            f"got {actions.shape[1]} groups of actions"
        )
    groups: Tensor = actions[:, r - 1 :].unflatten(1, (-1, r))
    return groups.flatten(2, 3)


def at_last(values: Tensor, r: int) -> Tensor:
    """Values of latent frames (B, N) as values of frames (B, r N): at the last of r, else zero."""
    if r == 1:
        return values
    frames = values.new_zeros(*values.shape, r)
    frames[..., -1] = values
    return frames.flatten(1)


def cut(clips: Mapping[str, Tensor], first: int, end: int) -> dict[str, Tensor]:
    """Frames first .. end - 1 of clips (B, T), and what lies between them; words stay whole."""
    between = {"actions", "rewards", "terminated"}
    return {
        name: x if name == "words" else x[:, first : end - (name in between)]
        for name, x in clips.items()
    }


def coded(clips: Mapping[str, Tensor], r: int) -> dict[str, Tensor]:
    """Clips of frames as clips of latent frames; latents are those of each frame and its followers.

    Rewards add up, an end anywhere is an end, the state is that after the last frame, and a latent
    frame is there when its first frame is.
    """
    if r == 1:
        return dict(clips)
    changed = {
        "actions": together(clips["actions"], r),
        "rewards": clips["rewards"][:, r - 1 :].unflatten(1, (-1, r)).sum(2),
        "terminated": clips["terminated"][:, r - 1 :].unflatten(1, (-1, r)).any(2),
        "state": clips["state"][:, r - 1 :: r],
        "valid": clips["valid"][:, ::r],
    }
    if "latents" in clips:
        changed["latents"] = clips["latents"][:, ::r]
    return {**clips, **changed}
