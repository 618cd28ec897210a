"""What a dream leaves as it was, drawn as it was truly seen.

An autoencoder draws a standing thing nearly where it is, and a little elsewhere once its latent has
trembled. But a dream begins with a true picture. So where the decoder draws what it also makes of
that picture, the picture itself is shown. Nothing is remembered here of what the dream has changed:
that is the network's to know.

Shapes: B dreams, T frames, H W pixels.
"""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

# Pixels count as drawn alike together with those that touch them: so the rim of a thing that moves
# by a part of a pixel moves with it.
AROUND = 3
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
    seen, drawn = backdrop.to(torch.float32).unsqueeze(2).unbind(1)  # (B, 1, H, W, 3) each
    colours = frames.to(torch.float32)
    distance = (colours - drawn).abs().amax(-1)  # (B, T, H, W)
    distance = max_pool2d(distance, AROUND, stride=1, padding=AROUND // 2)
    alike = (OTHERWISE - distance / (255.0 * tolerance)) / (OTHERWISE - 1.0)
    mixed: Tensor = colours.lerp(seen, alike.clamp_(0.0, 1.0).unsqueeze(-1))
    return mixed.round_().to(torch.uint8)
