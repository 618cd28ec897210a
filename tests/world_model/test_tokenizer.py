"""Promises of the tokenizer: pixels to latents and back."""

import dataclasses

import pytest
import torch
from torch import Tensor

from kairos_env.world_model.presets import world_config
from kairos_env.world_model.tokenizer import Tokenizer, TokenizerConfig

SMALL = TokenizerConfig(frame_size=(16, 24), channels=(8, 8))


def make_tokenizer(config: TokenizerConfig) -> Tokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tokenizer(config)


def random_frames(B: int, T: int, size: tuple[int, int] = (16, 24), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (B, T, *size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("pixels", [64, 128])
@torch.no_grad()
def test_frames_of_a_world_become_latents_of_eight_by_eight(pixels: int) -> None:
    size = (pixels, pixels)
    config = world_config("tiny", action_size=2, state_size=0, frame_size=size)
    tokenizer = make_tokenizer(config.tokenizer)
    frames = random_frames(2, 3, size)
    latents = tokenizer.encode(frames)
    assert latents.shape == (2, 3, *config.latent_shape) == (2, 3, 4, 8, 8)
    assert latents.dtype == torch.float32
    decoded = tokenizer.decode(latents)
    assert (decoded.shape, decoded.dtype) == (frames.shape, torch.uint8)


@torch.no_grad()
def test_height_and_width_may_differ() -> None:
    tokenizer = make_tokenizer(SMALL)
    frames = random_frames(2, 3)
    latents = tokenizer.encode(frames)
    assert latents.shape == (2, 3, 4, 4, 6)
    assert tokenizer.decode(latents).shape == frames.shape


@torch.no_grad()
def test_two_frames_coded_together() -> None:
    config = TokenizerConfig(frame_size=(16, 24), channels=(8, 8), temporal=2)
    tokenizer = make_tokenizer(config)
    frames = random_frames(2, 6)
    latents = tokenizer.encode(frames)
    assert latents.shape == (2, 3, 4, 4, 6)
    assert tokenizer.decode(latents).shape == frames.shape
    assert tokenizer.background_latent().shape == (4, 4, 6)
    changed = frames.clone()
    changed[:, 3] = 255 - changed[:, 3]  # one frame of the second pair
    different = (tokenizer.encode(changed) != latents).flatten(2).any(2)
    assert different.tolist() == [[False, True, False]] * 2
    with pytest.raises(ValueError, match="codes 2 frames together, got 5 frames; pass a multiple"):
        tokenizer.encode(frames[:, :5])


@torch.no_grad()
def test_decoding_undoes_the_order_of_coding() -> None:
    """With an identity in place of the network, every pixel comes back where it was."""
    config = TokenizerConfig(frame_size=(16, 24), channels=(8, 8), temporal=2)
    tokenizer = make_tokenizer(config)
    frames = random_frames(2, 4)
    pixels = tokenizer._pack(frames)  # (N, 3r, H, W)
    tokenizer.decoder = torch.nn.Identity()
    tokenizer.latent_mean, tokenizer.latent_scale = torch.zeros(6), torch.ones(6)
    assert torch.equal(tokenizer.decode((pixels - 0.5).unflatten(0, (2, 2))), frames)


@torch.no_grad()
def test_colours_beyond_the_range_are_cut_off() -> None:
    tokenizer = make_tokenizer(SMALL)
    for far, colour in ((1e4, 255), (-1e4, 0)):
        tokenizer.decoder[-1].weight.zero_()
        tokenizer.decoder[-1].bias.fill_(far)
        assert (tokenizer.decode(torch.zeros(1, 1, 4, 4, 6)) == colour).all()


@torch.no_grad()
def test_a_frame_is_coded_the_same_in_every_batch() -> None:
    tokenizer = make_tokenizer(SMALL)
    frames = random_frames(3, 4)
    together = tokenizer.encode(frames)
    alone = tokenizer.encode(frames[1:2, 2:3])
    torch.testing.assert_close(together[1, 2], alone[0, 0], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_latents_have_mean_zero_and_deviation_one() -> None:
    tokenizer = make_tokenizer(SMALL)
    frames = random_frames(4, 4)
    before = tokenizer.encode(frames)
    tokenizer.fit_statistics(frames)
    latents = tokenizer.encode(frames)
    assert (before.mean((0, 1, 3, 4)).abs() > 1e-3).any()
    torch.testing.assert_close(latents.mean((0, 1, 3, 4)), torch.zeros(4), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(latents.std((0, 1, 3, 4)), torch.ones(4), atol=1e-5, rtol=0.0)


@torch.no_grad()
def test_statistics_do_not_change_what_is_decoded() -> None:
    tokenizer = make_tokenizer(SMALL)
    frames = random_frames(2, 2)
    before = tokenizer.decode_pixels(tokenizer.encode(frames).flatten(0, 1))
    tokenizer.fit_statistics(random_frames(4, 4, seed=1))
    after = tokenizer.decode_pixels(tokenizer.encode(frames).flatten(0, 1))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_background_is_the_median_and_what_differs_is_foreground() -> None:
    tokenizer = make_tokenizer(SMALL)
    still = random_frames(1, 1)[0, 0]
    frames = still.repeat(5, 1, 1, 1)
    frames[2] = 255 - still
    tokenizer.fit_background(frames)
    assert torch.equal(tokenizer.background, still.permute(2, 0, 1) / 255.0)
    expected = tokenizer.encode(still[None, None])[0, 0]
    torch.testing.assert_close(tokenizer.background_latent(), expected)
    other = still.clone()
    other[3, 5, 0] ^= 128
    foreground = tokenizer.foreground(tokenizer._pack(other[None, None]))
    assert foreground.shape == (1, 1, 16, 24)
    assert foreground.nonzero().tolist() == [[0, 0, 3, 5]]


def test_the_loss_weighs_the_foreground() -> None:
    tokenizer = make_tokenizer(dataclasses.replace(SMALL, motion_weight=0.0))
    frames, eps = random_frames(2, 2), torch.zeros(4, 4, 4, 6)
    background = (tokenizer.background * 255).round().to(torch.uint8).permute(1, 2, 0)
    flat = background.expand(2, 2, 16, 24, 3)
    for shown, weight in ((frames, 5.0), (flat, 1.0)):  # all foreground, and none
        total, metrics = tokenizer.loss(shown, eps)
        mse = 10 ** (-metrics["psnr"] / 10)
        expected = weight * mse + 1e-5 * metrics["kl"]
        torch.testing.assert_close(total.detach(), expected, rtol=2e-2, atol=0.0)


def test_the_loss_falls_on_one_batch() -> None:
    tokenizer = make_tokenizer(SMALL)
    frames = random_frames(1, 1).repeat(1, 3, 1, 1, 1) // 2
    eps = torch.randn((3, 4, 4, 6), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, metrics = tokenizer.loss(frames, eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert not any(value.requires_grad for value in metrics.values())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 2, 16, 24, 3),
        torch.zeros(1, 2, 24, 16, 3, dtype=torch.uint8),
        torch.zeros(1, 2, 3, 16, 24, dtype=torch.uint8),
        torch.zeros(2, 16, 24, 3, dtype=torch.uint8),
    ],
    ids=["float", "turned", "channels-first", "no-batch"],
)
def test_frames_of_another_kind_are_refused(frames: Tensor) -> None:
    expected = r"uint8 of shape \(batch, frames, 16, 24, 3\), got"
    with pytest.raises(ValueError, match=expected):
        make_tokenizer(SMALL).encode(frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_size": (60, 64)}, r"3 halvings need a frame size divisible by 8, got \(60, 64\)"),
        ({"frame_size": (0, 64)}, r"got \(0, 64\)"),
        ({"channels": ()}, "a positive number for each halving"),
        ({"channels": (0, 8, 8)}, "a positive number for each halving"),
        ({"channels": (8, 8, 12)}, "the last one divisible by 8"),
        ({"temporal": 0}, "TokenizerConfig.temporal must be a positive whole number"),
        ({"latent_channels": 0}, "TokenizerConfig.latent_channels must be a positive whole number"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**change)


def test_what_moves_counts_more_than_what_stands() -> None:
    config = dataclasses.replace(SMALL, foreground_weight=1.0, motion_weight=3.0, kl_weight=0.0)
    tokenizer = make_tokenizer(config)
    frames = torch.full((1, 3, *config.frame_size, 3), 128, dtype=torch.uint8)
    frames[:, 2, 4:8, 4:8] = 255
    moved = tokenizer.moving(frames)
    assert moved.shape == (3, 1, *config.frame_size)
    assert not moved[0].any()  # alike in the first two frames
    for late in moved[1:]:  # gone after the second, come with the third
        assert late[0, 4:8, 4:8].all()
        assert late.sum() == 16
    eps = torch.zeros(3, config.latent_channels, *config.latent_size)
    with torch.no_grad():
        weighted, _ = tokenizer.loss(frames, eps)
        tokenizer.config = dataclasses.replace(config, motion_weight=0.0)
        plain, _ = tokenizer.loss(frames, eps)
    assert weighted > plain


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 16, 24)])
@torch.no_grad()
def test_a_sketch_is_what_the_picture_is_drawn_from(channels: tuple[int, ...]) -> None:
    config = TokenizerConfig(frame_size=(16, 24), channels=channels)
    tokenizer = make_tokenizer(config)
    latents = torch.randn(3, 4, *config.latent_size, generator=torch.Generator().manual_seed(0))
    sketch = tokenizer.sketch(latents)
    h, w = config.latent_size
    assert sketch.shape == (3, config.sketch_channels, 2 * h, 2 * w)
    frames = tokenizer.finish(sketch[None])
    torch.testing.assert_close(frames, tokenizer.decode(latents[None]), rtol=0, atol=0)
