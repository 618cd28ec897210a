"""More channels for a convolutional stem and head that have learned already.

Every channel is taken k times, side by side, and whoever reads it divides its weight among the
copies: in unequal parts, since copies that are read alike would learn the same for ever. The wider
network computes what the narrow one did, up to rounding, and can learn more. Group norms see the
same: a group holds k copies of the channels that it held.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kairos_env.world_model.world_model import WorldModel

# How unequal the parts are, relative to an even part's own size.
UNEVEN = 0.5


def widened(world: WorldModel, other: WorldModel, generator: torch.Generator) -> dict[str, Tensor]:
    """What the wider stem and head of `world` can take from those of `other`, in their shape.

    Nothing where the worlds differ in more than these channels and the blocks between them.
    """
    ours, theirs = world.config.transformer, other.config.transformer
    same = ("stem", "video", "patch", "previous_frames", "recollect")
    if ours.stem != "conv" or any(getattr(ours, n) != getattr(theirs, n) for n in same):
        return {}
    weights = other.state_dict()
    result: dict[str, Tensor] = {}
    for part in ("mixture.video.embed", "mixture.video.head"):
        for path, module in world.get_submodule(part).named_modules(prefix=part):
            read = 0 if isinstance(module, nn.ConvTranspose2d) else 1
            for name, wider in module.named_parameters(prefix=path, recurse=False):
                if name in weights and multiple(weights[name], wider):
                    result[name] = copied(weights[name], wider.shape, read, generator)
    return result


def multiple(weight: Tensor, mine: Tensor) -> bool:
    """Whether every side of `mine` is that of `weight` or a multiple of it, and one is."""
    return (
        weight.dim() == mine.dim()
        and weight.shape != mine.shape
        and all(m % w == 0 for m, w in zip(mine.shape, weight.shape, strict=True))
    )


def copied(weight: Tensor, shape: Sequence[int], read: int, generator: torch.Generator) -> Tensor:
    """A weight in a shape of more channels; those along `read` are read, in parts that add up."""
    for dim, (few, many) in enumerate(zip(weight.shape, shape, strict=True)):
        copies = many // few
        weight = weight.repeat_interleave(copies, dim)
        if copies > 1 and dim == read and weight.dim() > 1:
            uneven = torch.randn(weight.shape, generator=generator).unflatten(dim, (-1, copies))
            uneven = (uneven - uneven.mean(dim + 1, keepdim=True)).flatten(dim, dim + 1)
            weight = weight / copies
            weight = weight + UNEVEN * weight.square().mean().sqrt() * uneven
    return weight
