"""Histories in which something is lost, so that the network learns to bring it back."""

import dataclasses

import torch
from tiny_worlds import make_clips, make_world
from torch import Tensor

from kairos_env.world_model.objective import DAMAGED_FRAMES, Damage

B, T, C = 64, 12, 4
BACKGROUND = torch.zeros(C, 8, 8)


def clips() -> Tensor:
    """One thing of two places a side on an empty floor, each frame of its own brightness."""
    truth = torch.zeros(B, T, C, 8, 8)
    for i in range(B):
        row, column = i % 7, i // 7 % 7
        truth[i, :, :, row : row + 2, column : column + 2] = (
            1 + torch.arange(T)[:, None, None, None]
        )
    return truth


def chance(seed: int = 0) -> Tensor:
    return torch.rand((B, 9), generator=torch.Generator().manual_seed(seed))


def damaged(truth: Tensor, *, share: float, chance: Tensor) -> Tensor:
    return Damage.draw(truth, BACKGROUND, share=share, chance=chance)(truth)


def changed(truth: Tensor, history: Tensor) -> Tensor:
    """(B, T, h, w)."""
    return (truth != history).any(2)


def test_damage_is_where_something_is_and_lasts_a_few_frames() -> None:
    truth = clips()
    wrong = changed(truth, damaged(truth, share=1.0, chance=chance()))
    assert not wrong[:, 0].any()  # what a dream began with is certain
    frames = wrong.any((2, 3))
    assert (frames.sum(1) <= DAMAGED_FRAMES).all()
    assert (frames.sum(1) > 0).float().mean() > 0.95
    for row in frames:  # without a gap
        where = row.nonzero().flatten().tolist()
        assert where == list(range(where[0], where[0] + len(where))) if where else True


def test_things_vanish_or_turn_up_beside_themselves() -> None:
    truth = clips()
    history = damaged(truth, share=1.0, chance=chance())
    first = changed(truth, history).any((2, 3)).float().argmax(1)
    each = torch.arange(B)
    before, after = (x[each, first].ne(0).any(1).sum((1, 2)) for x in (truth, history))
    assert (after < before).float().mean() > 0.4
    assert (history[each, first].ne(0) & truth[each, first].eq(0)).any((1, 2, 3)).any()


def test_a_share_of_the_clips_is_damaged_and_the_others_are_as_they_were() -> None:
    truth = clips()
    history = damaged(truth, share=0.3, chance=chance())
    hit = changed(truth, history).any((1, 2, 3))
    assert not hit[chance()[:, 0] >= 0.3].any()
    assert 0.15 < hit.float().mean() < 0.45


def test_each_clip_is_damaged_alike_in_any_batch() -> None:
    truth, draws = clips(), chance()
    whole = damaged(truth, share=1.0, chance=draws)
    part = damaged(truth[7:9], share=1.0, chance=draws[7:9])
    assert torch.equal(part, whole[7:9])


def test_the_loss_asks_for_the_truth_after_a_damaged_history() -> None:
    world = make_world()
    world.config = dataclasses.replace(
        world.config, loss=dataclasses.replace(world.config.loss, damage=1.0)
    )
    scene = make_clips(2, 8)
    draws = world.draw(scene, torch.Generator().manual_seed(1))
    _, harmed = world.loss(scene, draws)
    whole = dataclasses.replace(draws, damage=torch.cat([torch.ones(2, 1), draws.damage[:, 1:]], 1))
    _, unharmed = world.loss(scene, whole)
    # copying the frame before is wrong only where the history is
    assert harmed["copy_mse"] > unharmed["copy_mse"]


def test_a_damaged_dream_is_shown_whole_and_remembered_damaged() -> None:
    world = make_world()
    scene = make_clips(2, 8)
    latents = world.tokenizer.encode(scene["frames"]).detach()
    lost = torch.zeros(2, 8, 1, 8, 8, dtype=torch.bool)
    lost[0, 5] = True
    damage = Damage(
        where=lost,
        cut_out=torch.ones(2, dtype=torch.bool),
        shifts=((1, 1), (1, 1)),
        background=world.tokenizer.background_latent(),
    )
    seeds = torch.arange(2)
    whole, _ = world.unroll(latents, scene["actions"], real=3, seeds=seeds)
    shown, _ = world.unroll(latents, scene["actions"], real=3, seeds=seeds, damage=damage)
    assert torch.equal(shown[:, :6], whole[:, :6])  # what was predicted before anything was lost
    torch.testing.assert_close(shown[1], whole[1])
    assert not torch.allclose(shown[0, 6:], whole[0, 6:])
