"""Promises of the counter-based random numbers."""

import math
import time

import pytest
import torch

from kairos_env.world_model.noise import counter_bits, counter_normal, philox

ONES = 0xFFFFFFFF
# Known answers published with the Random123 library: counter, key, result of philox4x32-10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    x, y = philox(ids(*counter[0::2]), ids(*counter[1::2]), ids(*key))
    assert (x[0], y[0], x[1], y[1]) == expected


def philox_by_the_book(counter: list[int], key: list[int]) -> list[int]:
    """The slow twin, in Python integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & ONES, (p >> 32) ^ d ^ m, p & ONES
        k, m = (k + 0x9E3779B9) & ONES, (m + 0xBB67AE85) & ONES
    return [a, c, b, d]


def test_words_encrypt_block_stream_and_counter_under_the_seed() -> None:
    seeds, counters = (-3, 1 << 40), ((5 << 32) + 7, -1)
    words = counter_bits(ids(*seeds), ids(*counters), 3, stream=9)
    for item, (seed, counter) in enumerate(zip(seeds, counters, strict=True)):
        for block in range(3):
            plain = [counter & ONES, block, (counter >> 32) & ONES, 9]
            key = [seed & ONES, (seed >> 32) & ONES]
            assert words[item, :, block].tolist() == philox_by_the_book(plain, key)


def test_an_item_is_the_same_in_every_batch_and_slot() -> None:
    seeds, counters = torch.arange(-3, 60), torch.arange(63) * 7
    batch = counter_normal(seeds, counters, (4, 5, 3))
    for slot in (0, 1, 31, 62):
        alone = counter_normal(seeds[slot : slot + 1], counters[slot : slot + 1], (4, 5, 3))
        assert torch.equal(alone[0], batch[slot])
    order = torch.randperm(63, generator=torch.Generator().manual_seed(0))
    assert torch.equal(counter_normal(seeds[order], counters[order], (4, 5, 3)), batch[order])


def test_seed_counter_and_stream_all_matter() -> None:
    base = counter_normal(ids(1), ids(2), (8,))
    for other in (
        counter_normal(ids(3), ids(2), (8,)),
        counter_normal(ids(1), ids(3), (8,)),
        counter_normal(ids(1), ids(2), (8,), stream=1),
        counter_normal(ids(1 + (1 << 32)), ids(2), (8,)),
        counter_normal(ids(1), ids(2 + (1 << 32)), (8,)),
        counter_normal(ids(2), ids(1), (8,)),
    ):
        assert not (other == base).any()


def test_numbers_are_standard_normal() -> None:
    z = counter_normal(torch.arange(64), torch.zeros(64, dtype=torch.int64), (1 << 15,)).double()
    n = z.numel()
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert float(z.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    assert float(z.pow(3).mean()) == pytest.approx(0, abs=4 * math.sqrt(15 / n))
    assert float(z.pow(4).mean()) == pytest.approx(3, abs=4 * math.sqrt(96 / n))
    # Kolmogorov-Smirnov distance; 1.95 / sqrt(n) is exceeded once in a thousand draws
    cdf = torch.special.ndtr(z.flatten().sort().values)
    assert float((cdf - torch.arange(n) / n).abs().max()) < 1.95 / math.sqrt(n)
    assert 4 < float(z.abs().max()) < 5


def test_neighbours_are_uncorrelated() -> None:
    z = counter_normal(torch.arange(512), torch.arange(512), (512,)).double()
    limit = 5 / math.sqrt(z.numel())
    for a, b in (
        (z[:, 1:], z[:, :-1]),
        (z[1:], z[:-1]),
        (z[:, 4:], z[:, :-4]),
        (z, counter_normal(torch.arange(512), torch.arange(512) + 1, (512,)).double()),
        (z, counter_normal(torch.arange(512), torch.arange(512), (512,), stream=1).double()),
    ):
        assert abs(float((a * b).mean())) < limit


def test_no_global_generator_is_touched() -> None:
    before = torch.random.get_rng_state()
    counter_normal(ids(1), ids(2), (8,))
    assert torch.equal(before, torch.random.get_rng_state())


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        counter_normal(ids(1, 2), ids(1), (3,))
    with pytest.raises(TypeError, match="int64"):
        counter_normal(torch.zeros(1), ids(1), (3,))


@pytest.mark.slow
def test_one_latent_costs_less_than_a_hundred_microseconds() -> None:
    key, counter, best = ids(1), ids(2), math.inf
    for _ in range(2000):
        start = time.perf_counter()
        with torch.inference_mode():
            counter_normal(key, counter, (4, 8, 8))
        best = min(best, time.perf_counter() - start)
    assert best < 100e-6


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    seeds, counters = torch.arange(-9, 91), torch.arange(100)
    there = counter_normal(seeds.cuda(), counters.cuda(), (4, 8, 8)).cpu()
    assert torch.equal(there, counter_normal(seeds, counters, (4, 8, 8)))
