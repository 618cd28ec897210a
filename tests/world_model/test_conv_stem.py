"""The convolutional head: what stands still stays exactly; a second look corrects the rest."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny_worlds import make_clips, make_world
from torch import Tensor

from kairos_env.world_model.config import TransformerConfig
from kairos_env.world_model.conv_stem import (
    ConvHead,
    homed,
    patches_to_tokens,
    settled,
    tokens_to_patches,
)
from kairos_env.world_model.mixture import FORWARD, Heard, Inputs
from kairos_env.world_model.presets import world_config
from kairos_env.world_model.world_model import WorldModel

B, T, P, C, SIDE = 2, 3, 3, 4, 8


def head(stillness: float, **shape: bool) -> tuple[ConvHead, TransformerConfig]:
    config = world_config("tiny", action_size=2, state_size=0, **shape).transformer
    config = dataclasses.replace(config, stillness=stillness)
    torch.manual_seed(0)
    return ConvHead(config), config


def read(module: ConvHead, config: TransformerConfig, previous: Tensor) -> Tensor:
    tokens = torch.randn(B, T, (SIDE // config.patch) ** 2, config.video.dim)
    features = torch.randn(B * T, config.stem_channels, SIDE, SIDE)
    laid_out = module.lay_out(tokens, (SIDE, SIDE))
    frames: Tensor = module(laid_out, torch.randn(B, T, config.video.dim), features, previous)
    return frames


def size(change: Tensor) -> Tensor:
    """Of each place, (..., h, w)."""
    return change.square().mean(-3).sqrt()


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
def test_patches_and_tokens_are_what_the_convolutions_make_of_them(
    weights: torch.memory_format,
) -> None:
    patch = torch.nn.Conv2d(6, 10, 4, stride=4).double().to(memory_format=weights)
    unpatch = torch.nn.ConvTranspose2d(10, 6, 4, stride=4).double().to(memory_format=weights)
    x = torch.randn(B, 6, 8, 12, dtype=torch.float64)
    tokens = patch(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches_to_tokens(x, patch), tokens)
    grid = tokens.transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(tokens_to_patches(tokens, unpatch, (8, 12)), unpatch(grid))


def test_an_untrained_head_guesses_that_nothing_moves() -> None:
    module, config = head(stillness=0.0)
    still = torch.randn(B, T, 1, C, SIDE, SIDE).expand(-1, -1, P, -1, -1, -1)
    torch.testing.assert_close(read(module, config, still), still[:, :, 0])


def test_places_that_hardly_change_stay_to_the_bit_and_others_move_freely() -> None:
    frames = {}
    previous = torch.randn(B, T, P, C, SIDE, SIDE)
    for stillness in (0.0, 0.15):
        module, config = head(stillness)
        torch.nn.init.normal_(module.conv.weight, std=0.012)
        torch.manual_seed(1)
        frames[stillness] = read(module, config, previous)
    last = previous[:, :, -1]
    small = size(frames[0.0] - last) < 0.15
    assert 0.1 < small.float().mean() < 0.9  # both are there
    expected = torch.where(small[:, :, None], last, frames[0.0])
    assert torch.equal(frames[0.15], expected)


def test_a_change_can_grow_out_of_the_zone_in_which_it_counts_as_none() -> None:
    change = torch.full((1, C, 2, 2), 0.05, requires_grad=True)
    shown = settled(change, 0.15)
    assert not shown.any()
    (shown - 1.0).square().sum().backward()  # the truth moved by one
    assert change.grad is not None
    assert (change.grad < 0).all()  # a step of descent lets it grow


def test_a_dream_in_which_nothing_is_seen_to_move_is_the_same_frame_for_ever() -> None:
    world = make_world(stillness=1e3)
    clips = make_clips(2, 6)
    latents = world.tokenizer.encode(clips["frames"])
    latents = world.rollout(latents, clips["actions"], real=2, seeds=torch.arange(2))
    assert torch.equal(latents[:, 2:], latents[:, 1:2].expand(-1, 4, -1, -1, -1))


def test_a_negative_stillness_is_refused() -> None:
    config = world_config("tiny", action_size=2, state_size=0).transformer
    with pytest.raises(ValueError, match=r"stillness must not be negative, got -0\.1"):
        dataclasses.replace(config, stillness=-0.1)


def test_what_looks_nearly_as_at_first_is_as_at_first() -> None:
    anchor = torch.randn(2, 1, 4, 3, 3)
    change = torch.zeros(2, 5, 4, 3, 3)
    change[..., 0] = 0.05
    change[..., 2] = 0.5
    frames = (anchor + change).requires_grad_()
    home = homed(frames, anchor, 0.1)
    assert torch.equal(home[..., :2], anchor[..., :2].expand(-1, 5, -1, -1, -1))
    assert torch.equal(home[..., 2], frames[..., 2])
    home.sum().backward()
    assert torch.equal(frames.grad, torch.ones_like(frames))


def test_a_dream_that_always_comes_home_is_its_first_frame() -> None:
    clips, seeds = make_clips(2, 8), torch.arange(2)
    world = make_world(homing=1e3)
    assert world.config.transformer.anchor
    latents = world.tokenizer.encode(clips["frames"])
    dream = world.rollout(latents, clips["actions"], real=3, seeds=seeds)
    assert torch.equal(dream[:, 3:], latents[:, :1].expand(-1, 5, -1, -1, -1))


@pytest.mark.parametrize("shape", [{"homing": -0.1}, {"homing": 0.2, "anchor": False}])
def test_without_an_anchor_there_is_no_home(shape: dict[str, Any]) -> None:
    config = world_config("tiny", action_size=2, state_size=0).transformer
    with pytest.raises(ValueError, match="homing must not be negative, and above 0 only with"):
        dataclasses.replace(config, **shape)


def dreamed(**shape: float) -> tuple[WorldModel, Tensor, Tensor]:
    """A world of such a shape, frames before a dream and the first one dreamed."""
    world = make_world(**shape)
    clips = make_clips(2, 4)
    latents = world.tokenizer.encode(clips["frames"])
    return world, latents[:, 2], one_step(world, latents, clips["actions"])


def one_step(world: WorldModel, latents: Tensor, actions: Tensor) -> Tensor:
    """The frame after three true ones."""
    state = world.start_latents(latents[:, :3], actions[:, :2], seeds=torch.arange(2))
    _, prediction = world.step(state, actions[:, 2], decode=False)
    return prediction.latents[:, 0]


def test_a_second_look_touches_only_what_changed() -> None:
    _, before, once = dreamed(stillness=0.4, second_look=0.0)
    _, _, twice = dreamed(stillness=0.4, second_look=0.5)
    still = (once == before).all(1, keepdim=True).expand_as(once)
    assert 0.1 < still.float().mean() < 0.9
    assert torch.equal(twice[still], before[still])
    assert not torch.isclose(twice[~still], once[~still]).all()


def test_a_second_look_is_a_pass_whose_layers_repeat_what_they_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, _, frames = dreamed(second_look=0.5)
    mixture = world.mixture
    calls = []

    def whole_pass(inputs: Inputs, said: Tensor, heard: Heard | None) -> Tensor:
        """The slow way: all layers are run, and what they said before is put in at the end."""
        assert heard is not None
        calls.append(said)
        with monkeypatch.context() as patched:
            patched.setattr(mixture.video.head, "lay_out", lambda *_: said)
            memory = mixture.empty_memory(len(said))
            frames: Tensor = mixture(inputs, FORWARD, chunk_frames=1, memory=memory).video
        return frames

    monkeypatch.setattr(mixture, "look_again", whole_pass)
    clips = make_clips(2, 4)
    latents = world.tokenizer.encode(clips["frames"])
    torch.testing.assert_close(one_step(world, latents, clips["actions"]), frames)
    assert len(calls) == 1


def test_training_through_a_dream_looks_once() -> None:
    clips, seeds = make_clips(2, 6), torch.arange(2)
    losses = []
    for level in (0.0, 0.5):
        world = make_world(second_look=level)
        coded = clips | {"latents": world.tokenizer.encode(clips["frames"])}
        losses.append(world.unrolled_loss(coded, real=3, seeds=seeds)[0])
    assert torch.equal(*losses)


@pytest.mark.parametrize("shape", [{"second_look": 1.0}, {"second_look": 0.5, "stem": "patch"}])
def test_a_second_look_that_cannot_be_taken_is_refused(shape: dict[str, Any]) -> None:
    config = world_config("tiny", action_size=2, state_size=0).transformer
    with pytest.raises(ValueError, match="second_look must be a noise level"):
        dataclasses.replace(config, **shape)


def test_a_head_that_recollects_reads_the_tokens_of_the_frame_before() -> None:
    world = make_world(recollect=True)
    clips = make_clips(2, 6)
    state = world.start(clips["frames"][:, :3], clips["actions"][:, :2], seeds=torch.arange(2))
    assert state.tokens is not None
    other = dataclasses.replace(state, tokens=state.tokens + 1.0)
    frames = [world.step(s, clips["actions"][:, 2])[1].latents for s in (state, other)]
    assert not torch.isclose(*frames).all()
    # What a dream recollects is what it has read itself, also where it read frame by frame.
    first = world.start(clips["frames"][:, :1], seeds=torch.arange(2))
    bit_by_bit = world.observe(first, clips["frames"][:, 1:3], clips["actions"][:, :2])
    torch.testing.assert_close(bit_by_bit.tokens, state.tokens, rtol=1e-4, atol=1e-5)
    assert make_world().start(clips["frames"][:, :1], seeds=torch.arange(2)).tokens is None


@pytest.mark.parametrize("what", ["recollect", "restore"])
def test_a_world_that_learns_it_later_begins_as_it_was(what: str) -> None:
    plain, new = (
        WorldModel(world_config("tiny", action_size=2, state_size=3, **shape))
        for shape in ({}, {what: True})
    )
    new.load_state_dict(plain.state_dict(), strict=False)
    clips = make_clips(2, 4)
    latents = plain.tokenizer.encode(clips["frames"])
    assert torch.equal(*(one_step(world, latents, clips["actions"]) for world in (plain, new)))


@pytest.mark.parametrize(
    ("what", "needs"),
    [
        ("recollect", "needs stem 'conv', got 'patch'"),
        ("restore", "needs stem 'conv' and an anchor, got 'patch' with anchor=True"),
    ],
)
def test_only_a_convolutional_head_recollects_and_restores(what: str, needs: str) -> None:
    config = world_config("tiny", action_size=2, state_size=0).transformer
    with pytest.raises(ValueError, match=f"{what} {needs}"):
        dataclasses.replace(config, stem="patch", second_look=0.0, **{what: True})


@pytest.mark.parametrize("shape", [{"reserve": 0.1}, {"reserve": 1.0, "restore": True}])
def test_a_reserve_without_anything_restored_is_refused(shape: dict[str, Any]) -> None:
    config = world_config("tiny", action_size=2, state_size=0).transformer
    with pytest.raises(ValueError, match="reserve must be a share from 0 up to, not including, 1"):
        dataclasses.replace(config, **shape)


@pytest.mark.parametrize(
    ("said", "reserve", "share"),
    [(-3.0, 0.0, 0.0), (0.25, 0.0, 0.25), (0.25, 0.2, 0.25), (0.25, 0.3, 0.0), (3.0, 0.3, 1.0)],
)
def test_a_head_that_restores_says_how_much_of_the_first_frame_is_back(
    said: float, reserve: float, share: float
) -> None:
    module, config = head(stillness=0.0, restore=True)
    module.reserve = reserve
    torch.nn.init.normal_(module.conv.weight)
    previous = torch.randn(B, T, P, C, SIDE, SIDE)
    rng = torch.get_rng_state()
    drawn = read(module, config, previous)
    assert module.restore is not None
    torch.nn.init.constant_(module.restore.bias, said)
    torch.set_rng_state(rng)
    frames = read(module, config, previous)
    first = previous[:, :, 0]
    torch.testing.assert_close(frames, (1 - share) * drawn + share * first, atol=1e-4, rtol=1e-4)
    # Wherever it is wrong it can learn better, also where it is wholly sure.
    (frames - first + 1.0).square().sum().backward()
    assert module.restore.bias.grad is not None
    assert module.restore.bias.grad.abs() > 0
