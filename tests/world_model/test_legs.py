"""A dream that is learned from in parts, and what counts in it."""

import dataclasses

import pytest
import torch
from tiny_worlds import make_clips, make_world

from kairos_env.world_model.history import cut
from kairos_env.world_model.objective import latent_weights
from kairos_env.world_model.world_model import WorldModel

B, SEEDS = 2, torch.tensor([4, 9])


def coded(world: WorldModel, frames: int, frames_per_chunk: int = 1) -> dict[str, torch.Tensor]:
    clips = make_clips(B, frames, frames_per_chunk=frames_per_chunk)
    return clips | {"latents": world.tokenizer.encode(clips["frames"]).detach()}


@pytest.mark.parametrize("F", [1, 2])
def test_a_dream_in_legs_is_the_same_dream(F: int) -> None:
    world = make_world(frames_per_chunk=F)
    clips = coded(world, 12, F)
    whole, tokens, end = world.unroll(clips["latents"], clips["actions"], real=4, seeds=SEEDS)
    first = cut(clips, 0, 8)
    frames, seen, state = world.unroll(first["latents"], first["actions"], real=4, seeds=SEEDS)
    second = cut(clips, 7, 12)
    more, seen_too, after = world.unroll(
        second["latents"], second["actions"], real=1, seeds=SEEDS, state=state.detach()
    )
    assert torch.equal(torch.cat([frames, more], dim=1), whole)
    assert torch.equal(torch.cat([seen, seen_too], dim=1), tokens)
    expected, left = end.tensors(), after.tensors()
    assert expected.keys() == left.keys()
    assert all(torch.equal(expected[name], left[name]) for name in expected)


def test_a_leg_learns_from_its_own_frames_alone() -> None:
    world = make_world()
    clips = coded(world, 10)
    _, _, after = world.unrolled_loss(cut(clips, 0, 6), real=3, seeds=SEEDS)
    assert any(x.requires_grad for x in after.tensors().values())
    state = after.detach()
    assert not any(x.requires_grad for x in state.tensors().values())
    again = cut(clips, 5, 10)
    loss, metrics, _ = world.unrolled_loss(again, real=1, seeds=SEEDS, state=state)
    loss.backward()
    whole, *_ = world.unroll(
        clips["latents"], clips["actions"], real=3, seeds=SEEDS, look_again=False
    )
    off = (whole[:, 3:] - clips["latents"][:, 6:]).square().mean()
    torch.testing.assert_close(metrics["unrolled_mse"], off.detach())


def test_what_stands_since_the_first_frame_counts_more() -> None:
    world = make_world()
    loss = dataclasses.replace(world.config.loss, standing_weight=6.0)
    world.config = dataclasses.replace(world.config, loss=loss)
    background = world.tokenizer.background_latent()
    truth = background.expand(1, 2, -1, 8, 8).clone()
    truth[:, :, :, 1, 1] += 2.0  # stands
    truth[:, 0, :, 4, 4] += 2.0  # leaves
    truth[:, 1, :, 5, 5] += 2.0  # comes
    weight = latent_weights(world, truth, truth[:, :1]) - latent_weights(world, truth)
    expected = torch.zeros(1, 2, 1, 8, 8)
    expected[:, :, :, 1, 1] = 6.0
    expected[:, 0, :, 4, 4] = 6.0  # it has not moved yet
    torch.testing.assert_close(weight, expected)


def test_a_cut_clip_keeps_what_lies_between_its_frames() -> None:
    clips = coded(make_world(), 10) | {"words": torch.arange(2 * 5).view(2, 5)}
    part = cut(clips, 3, 7)
    assert {name: x.shape[1] for name, x in part.items()} == {
        **dict.fromkeys(("frames", "latents", "state", "valid"), 4),
        **dict.fromkeys(("actions", "rewards", "terminated"), 3),
        "words": 5,
    }
    assert torch.equal(part["actions"], clips["actions"][:, 3:6])
