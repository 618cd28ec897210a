"""What a dream leaves as it was, drawn as it was truly seen.

An autoencoder draws a standing thing nearly where it is, and a little elsewhere once its latent has
trembled. But a dream begins with a true picture. So where the decoder draws what it also makes of
that picture, the picture itself is shown. Nothing is remembered here of what the dream has changed:
that is the network's to know.

Shapes: B dreams, T frames, H W pixels.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

# A difference this many times the tolerance is the decoder's alone; up to there both are mixed.
OTHERWISE = 1.1


def backdrop_of(seen: Tensor, drawn: Tensor) -> Tensor:
    """What frames are shown before.

    Args:
        seen: (B, H, W, 3) uint8, the last true frames.
        drawn: (B, H, W, 3) uint8, the same encoded and decoded.

    Returns:
        (B, 2, H, W, 3) uint8.
    """
    return torch.stack([seen, drawn], dim=1)


def before_backdrop(frames: Tensor, backdrop: Tensor, tolerance: float) -> Tensor:
    """Decoded frames; where they are as the backdrop was drawn, as it was seen.

    Args:
        frames: (B, T, H, W, 3) uint8.
        backdrop: From `backdrop_of`.
        tolerance: The difference (of 0..1 colours) up to which a pixel counts as drawn alike.
    """
    seen, drawn = backdrop.unsqueeze(2).unbind(1)  # (B, 1, H, W, 3) each
    off = torch.where(frames > drawn, frames - drawn, drawn - frames)
    red, green, blue = off.unbind(-1)
    furthest = _around(red.maximum(green).maximum(blue)).to(torch.float32)
    alike = (OTHERWISE - furthest / (255.0 * tolerance)) / (OTHERWISE - 1.0)
    mixed = frames.to(torch.float32).lerp(seen.to(torch.float32), alike.clamp_(0, 1).unsqueeze(-1))
    return mixed.round_().to(torch.uint8)


def _around(off: Tensor) -> Tensor:
    """The largest of each pixel and those that touch it, in (B, T, H, W).

    So the rim of a thing that moves by a part of a pixel moves with it. Row-wise and column-wise
    maxima of bytes take half the time of `max_pool2d`, which wants floats.
    """
    wide = pad(off, (1, 1, 1, 1))
    rows = wide[..., :-2, :].maximum(wide[..., 1:-1, :]).maximum(wide[..., 2:, :])
    return rows[..., :-2].maximum(rows[..., 1:-1]).maximum(rows[..., 2:])
