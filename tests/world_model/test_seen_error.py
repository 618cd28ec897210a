"""Dreamed frames judged as pictures."""

import pytest
import torch
from tiny_worlds import make_clips, make_world
from torch import Tensor
from torch.nn.functional import interpolate

from kairos_env.world_model.objective import SEEN_EVERY, seen_error
from kairos_env.world_model.tokenizer import Tokenizer

B, T = 3, 10
SEEDS = torch.tensor([4, 5, 7])


def coded() -> tuple[Tokenizer, Tensor]:
    tokenizer = make_world().tokenizer
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer, tokenizer.encode(make_clips(B, T)["frames"]).detach()


def test_the_truth_has_no_error_and_every_clip_shows_other_frames() -> None:
    tokenizer, truth = coded()
    error, (rows, columns) = seen_error(tokenizer, truth, truth, SEEDS)
    assert error.shape == (B, 3, 1, 8, 8)
    assert not error.any()
    assert columns.tolist() == [[0, 4, 8], [1, 5, 9], [3, 7, 9]]
    assert (rows == torch.arange(B)[:, None]).all()


def test_an_error_is_found_where_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, truth = coded()
    # a decoder that shows every place as it is: a real one's norms spread a little everywhere
    monkeypatch.setattr(tokenizer, "decode_pixels", lambda z: interpolate(z[:, :3], (64, 64)))
    dreamed = truth.clone()
    dreamed[0, SEEN_EVERY, :, :4] += 2.0  # the upper half of one picture
    error, _ = seen_error(tokenizer, dreamed, truth, SEEDS)
    assert (error[0, 1, 0, :4] > 1.0).all()
    error[0, 1, 0, :4] = 0.0
    assert not error.any()


def test_latents_learn_from_their_pictures() -> None:
    tokenizer, truth = coded()
    tokenizer.requires_grad_(False)
    dreamed = (truth + 0.5).requires_grad_()
    error, (rows, columns) = seen_error(tokenizer, dreamed, truth, SEEDS)
    error.sum().backward()
    assert dreamed.grad is not None
    seen = torch.zeros(B, T, dtype=torch.bool)
    seen[rows, columns] = True
    assert torch.equal(dreamed.grad.flatten(2).any(-1), seen)


def test_slices_of_a_batch_add_up() -> None:
    world, clips = make_world(), make_clips(2, 6)
    clips["latents"] = world.tokenizer.encode(clips["frames"]).detach()
    seeds = torch.arange(2)
    both, *_ = world.unrolled_loss(clips, real=2, seeds=seeds)
    slices = [slice(0, 1), slice(1, 2)]
    parts = [
        world.unrolled_loss({k: v[s] for k, v in clips.items()}, real=2, seeds=seeds[s])[0]
        for s in slices
    ]
    torch.testing.assert_close(both, torch.stack(parts).mean())
