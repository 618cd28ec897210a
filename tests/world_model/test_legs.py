"""A dream that is learned from in parts, and what counts in it."""

import pytest
import torch
from tiny_worlds import make_clips, make_world
from torch.nn.functional import interpolate

from kairos_env.world_model.history import cut
from kairos_env.world_model.objective import standing
from kairos_env.world_model.tokenizer import Tokenizer
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


def test_late_in_a_dream_only_what_stands_counts() -> None:
    world = make_world()
    background = world.tokenizer.background_latent()
    truth = background.expand(1, 2, -1, 8, 8).clone()
    truth[:, :, :, 1, 1] += 2.0  # stands
    truth[:, 0, :, 4, 4] += 2.0  # leaves
    truth[:, 1, :, 5, 5] += 2.0  # comes
    expected = torch.zeros(1, 2, 1, 8, 8)
    expected[:, :, :, 1, 1] = 1.0
    expected[:, 0, :, 4, 4] = 1.0  # it has not moved yet
    torch.testing.assert_close(standing(world, truth, truth[:, :1]), expected + 1e-3)


def test_late_in_a_dream_neither_heads_nor_movers_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_world()
    assert isinstance(world.tokenizer, Tokenizer)
    # a decoder that shows every place as it is: a real one's norms spread a little everywhere
    monkeypatch.setattr(world.tokenizer, "decode_pixels", lambda z: interpolate(z[:, :3], (64, 64)))
    clips = coded(world, 10)
    _, told, after = world.unrolled_loss(cut(clips, 0, 6), real=3, seeds=SEEDS)
    assert "state_error" in told
    late = cut(clips, 5, 10)
    gone = late | {"latents": late["latents"].clone()}
    gone["latents"][:, 1:, :, 3:5] += 5.0  # what was there at first stands no more
    further = gone | {"latents": gone["latents"].clone()}
    further["latents"][:, 1:, :, 3:5] += 5.0
    state = after.detach()
    losses = {}
    for name, part in (("gone", gone), ("further", further)):
        loss, told, _ = world.unrolled_loss(part, real=1, seeds=SEEDS, state=state)
        assert "state_error" not in told
        losses[name] = loss
        losses[f"{name}, first leg"] = world.unrolled_loss(part, real=1, seeds=SEEDS)[0]
    torch.testing.assert_close(losses["further"], losses["gone"], atol=0.0, rtol=0.01)
    assert losses["further, first leg"] > 1.2 * losses["gone, first leg"]


def test_a_cut_clip_keeps_what_lies_between_its_frames() -> None:
    clips = coded(make_world(), 10) | {"words": torch.arange(2 * 5).view(2, 5)}
    part = cut(clips, 3, 7)
    assert {name: x.shape[1] for name, x in part.items()} == {
        **dict.fromkeys(("frames", "latents", "state", "valid"), 4),
        **dict.fromkeys(("actions", "rewards", "terminated"), 3),
        "words": 5,
    }
    assert torch.equal(part["actions"], clips["actions"][:, 3:6])
