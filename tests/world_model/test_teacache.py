"""Promises of TeaCache beyond the published numbers."""

import pytest
import torch

from kairos_env.world_model.teacache import TeaCache, TeaCacheState


def decisions(cache: TeaCache, modulations: list[torch.Tensor]) -> tuple[list[bool], int]:
    """Run a sampler's worth of steps; return what was skipped and how often the blocks ran."""
    state, skipped, calls = TeaCacheState(), [], 0

    def blocks(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return 2 * x

    for modulation in modulations:
        _, state = cache.run(state, modulation, torch.ones(2), blocks)
        skipped.append(state.skipped)
    return skipped, calls


def test_first_and_last_step_always_compute() -> None:
    still = [torch.ones(3)] * 5  # nothing changes: everything between is skipped
    cache = TeaCache(steps=5, coefficients=(1.0, 0.0))
    assert decisions(cache, still) == ([False, True, True, True, False], 2)


def test_small_changes_add_up_until_the_threshold() -> None:
    growing = [torch.ones(3) * 1.04**i for i in range(8)]  # r = 0.04 at each step
    cache = TeaCache(steps=8, coefficients=(1.0, 0.0), threshold=0.1)
    skipped, _ = decisions(cache, growing)
    assert skipped == [False, True, True, False, True, True, False, False]


def test_threshold_zero_never_skips() -> None:
    cache = TeaCache(steps=4, coefficients=(1.0, 0.0), threshold=0.0)
    assert decisions(cache, [torch.ones(3)] * 4) == ([False] * 4, 4)


def test_a_skipped_step_adds_the_residual_of_the_last_computed_one() -> None:
    cache = TeaCache(steps=3, coefficients=(1.0, 0.0))
    _, state = cache.run(TeaCacheState(), torch.ones(1), torch.tensor([1.0]), lambda x: 5 * x)
    y, _ = cache.run(state, torch.ones(1), torch.tensor([10.0]), lambda x: 5 * x)
    assert y == 14


def test_two_branches_do_not_share_their_state() -> None:
    cache = TeaCache(steps=4, coefficients=(1.0, 0.0))
    _, one = cache.run(TeaCacheState(), torch.ones(1), torch.ones(1), lambda x: 3 * x)
    _, two = cache.run(TeaCacheState(), torch.ones(1), torch.ones(1), lambda x: 7 * x)
    assert cache.run(one, torch.ones(1), torch.ones(1), lambda x: x)[0] == 3
    assert cache.run(two, torch.ones(1), torch.ones(1), lambda x: x)[0] == 7


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Wan2\.1-T2V-14B"):
        TeaCache.published("Wan9", steps=4)
