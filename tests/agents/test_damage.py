"""Damage made by hand: where things are, in some clips, and never in what judges a dream."""

import numpy as np
import pytest
import torch

from kairos_env.agents.training.damage import damaged


@pytest.fixture
def clips() -> torch.Tensor:
    """(B, T, C, h, w): two things of different look on an empty ground, standing still."""
    frames = torch.zeros(64, 6, 2, 8, 8)
    frames[:, :, 0, 1:3, 1:3] = 1.0
    frames[:, :, 1, 5:7, 5:7] = -1.0
    return frames


def test_only_the_history_after_the_first_frame_is_damaged(clips: torch.Tensor) -> None:
    before = clips.clone()
    made = damaged(clips, 4, 1.0, np.random.default_rng(0))
    assert torch.equal(clips, before)
    assert torch.equal(made[:, 0], clips[:, 0])
    assert torch.equal(made[:, 4:], clips[:, 4:])
    touched = (made != clips).flatten(2).any(2)[:, 1:4]
    assert torch.equal(touched.all(1), touched.any(1))  # it stays where it is
    assert 0.3 < touched.any(1).float().mean() < 1.0  # a thing mixed with itself is whole


def test_things_are_mixed_where_things_are(clips: torch.Tensor) -> None:
    made = damaged(clips, 2, 1.0, np.random.default_rng(0))
    change = (made - clips)[:, 1].abs()
    assert change.max() <= 0.6 + 1e-6  # what was there remains in part
    near = torch.zeros(8, 8, dtype=torch.bool)
    near[0:5, 0:5] = near[4:8, 4:8] = True
    assert not change.sum(1)[:, ~near].any()
    both = made[:, 1, 0].abs().flatten(1) * made[:, 1, 1].abs().flatten(1)
    assert (both > 0.1).any()  # one thing shows through the other


def test_the_share_says_how_many(clips: torch.Tensor) -> None:
    whole = damaged(clips, 4, 0.0, np.random.default_rng(0))
    assert torch.equal(whole, clips)
    few = damaged(clips, 4, 0.25, np.random.default_rng(0))
    many = damaged(clips, 4, 1.0, np.random.default_rng(0))
    counted = [int((x != clips).flatten(1).any(1).sum()) for x in (few, many)]
    assert 0 < counted[0] < counted[1] / 2
    assert torch.equal(damaged(clips, 1, 1.0, np.random.default_rng(0)), clips)
