"""Random numbers that depend on (seed, counter) and on nothing else.

Every dream owns its random stream, so the noise of one dream must not depend on the batch it runs
in, on its slot, or on how many numbers others drew. A counter-based generator gives that without
state: the n-th draw of a seed is a pure function. This is Philox 4x32 with ten rounds (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", 2011), in vectorised integer operations.

The normal numbers come from a piecewise linear quantile function. Its arithmetic (one table
look-up, one product, one sum) is exact IEEE arithmetic wherever an element stands, while the
vectorised and the scalar loops of log, cos and sin may differ in the last bit; so the same (seed,
counter) gives the same bits in any batch and on any device.
"""

import math

import torch
from torch import Tensor

from kairos_env.world_model.tables import table

ROUNDS = 10
PIECES = 14  # log2 of the number of equally likely pieces of the quantile function
FRACTION = 32 - PIECES  # bits left to place a number inside its piece

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what is added to the two key words after each round


def philox(x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Philox 4x32-10: a bijection of the counter (c0, c1, c2, c3), chosen by the key (k0, k1).

    Args:
        x: (2, ...) int64, the counter words c0 and c2 (those that are multiplied first).
        y: (2, ...) int64, the counter words c1 and c3.
        key: (2, ...) int64, the key words. All words are below 2^32; shapes broadcast.

    Returns:
        The words (c0, c2) and (c1, c3) of the result.
    """
    multipliers, weyl, shift, mask = _constants(x.device)
    multipliers = multipliers.view(2, *(1,) * (x.dim() - 1))
    keys = key + weyl.view(ROUNDS, 2, *(1,) * (key.dim() - 1))  # (rounds, 2, ...)
    for round_key in keys.unbind(0):
        product = (x * multipliers).flip(0)  # 64 bits: the high half goes to x, the low half to y
        # bits above the 32nd are carried as they fall and cut off once
        x = ((product >> shift) ^ y).bitwise_xor_(round_key).bitwise_and_(mask)
        y = product
    return x, y & mask


def counter_bits(key: Tensor, counter: Tensor, blocks: int, *, stream: int = 0) -> Tensor:
    """Draw random 32-bit words for each item of a batch.

    Args:
        key: (B,) int64 seeds.
        counter: (B,) int64: which draw of its seed each item makes.
        blocks: how many blocks of four words each item needs.
        stream: keeps draws for different purposes at one (seed, counter) apart, 0 to 2^32 - 1.

    Returns:
        (B, 4, blocks) int64 words below 2^32. Block j encrypts the counter words (low half of
        ``counter``, j, its high half, ``stream``) under the two halves of the seed and gives (c0,
        c2, c1, c3).
    """
    if key.dim() != 1 or key.shape != counter.shape:
        raise ValueError(
            "expected seeds and counters of one shape (B,), "
            f"got {tuple(key.shape)} and {tuple(counter.shape)}"
        )
    if key.dtype != torch.int64 or counter.dtype != torch.int64:
        raise TypeError(f"expected int64 seeds and counters, got {key.dtype} and {counter.dtype}")
    shift, mask = _constants(key.device)[2:]
    words = torch.stack((key, key >> shift, counter, counter >> shift)).bitwise_and_(mask)
    key_words, counter_words = words[..., None].chunk(2)  # each (2, B, 1)
    x, y = philox(counter_words, _blocks(blocks, stream, key.device), key_words)
    return torch.cat((x, y)).transpose(0, 1)


def counter_normal(
    key: Tensor, counter: Tensor, shape: tuple[int, ...], *, stream: int = 0
) -> Tensor:
    """Draw standard normal numbers for each item of a batch.

    Args:
        key: (B,) int64 seeds.
        counter: (B,) int64: which draw of its seed each item makes.
        shape: shape of one item.
        stream: keeps draws for different purposes at one (seed, counter) apart.

    Returns:
        (B, *shape) float32 on the device of ``key``. An item is a function of its own seed,
        counter, stream and shape: bit for bit the same in every batch, slot, process and on every
        device.
    """
    count = math.prod(shape)
    words = counter_bits(key, counter, -(-count // 4), stream=stream)
    return _quantile(words.flatten(1)[:, :count]).view(len(key), *shape)


def _quantile(words: Tensor) -> Tensor:
    """Map 32-bit words to standard normal numbers: high bits choose a piece, low bits a place."""
    left, slope, fraction, low = _pieces(words.device)
    piece = words >> fraction
    # not addcmul: a fused multiply-add rounds once instead of twice, and not on every device
    return (words & low).float().mul_(slope.take(piece)).add_(left.take(piece))


@table
def _pieces(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left ends and slopes of the quantile function's pieces, and the bits to find one's place.

    The outermost pieces have no finite end; theirs is chosen so that the piece keeps its mean.
    """
    count = 1 << PIECES
    ends = torch.special.ndtri(torch.arange(count + 1, dtype=torch.float64) / count)
    edge = float(ends[-2])
    tail_mean = count * math.exp(-0.5 * edge * edge) / math.sqrt(2 * math.pi)
    ends[-1] = 2 * tail_mean - edge
    ends[0] = -ends[-1]
    slope = ends.diff() / (1 << FRACTION)
    left = ends[:-1] + 0.5 * slope  # words are the middles of their cells: the mean is zero
    return (
        left.float().to(device),
        slope.float().to(device),
        torch.tensor(FRACTION, device=device),
        torch.tensor((1 << FRACTION) - 1, device=device),
    )


@table
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Multipliers (2,), key increments per round (rounds, 2), shift and mask, as tensors.

    Python numbers in an operation cost a third of its time on small tensors.
    """
    rounds = torch.arange(ROUNDS, device=device)[:, None]
    return (
        torch.tensor(_MULTIPLIERS, device=device),
        rounds * torch.tensor(_WEYL, device=device),
        torch.tensor(32, device=device),
        torch.tensor(_MASK, device=device),
    )


@table
def _blocks(count: int, stream: int, device: torch.device) -> Tensor:
    """Counter words c1 (number of the block) and c3 (stream), (2, 1, count)."""
    index = torch.arange(count, device=device)
    return torch.stack((index, torch.full_like(index, stream)))[:, None]
