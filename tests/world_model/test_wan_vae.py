"""Promises of the streamed video autoencoder beyond the published numbers."""

import pytest
import torch

from kairos_env.world_model.published.tiling import Tiling, run_tiled
from kairos_env.world_model.published.wan_vae import (
    WanVae,
    WanVaeConfig,
    pixels_to_video,
    video_to_pixels,
)

SMALL = WanVaeConfig(dim=4, dim_mult=(1, 2, 2), temporal_downsample=(True, True), num_res_blocks=1)


@pytest.fixture(scope="module")
def vae() -> WanVae:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WanVae(SMALL).requires_grad_(False)


def video(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, frames, 8, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_changed_future_never_changes_the_past(vae: WanVae) -> None:
    clip = video(9)
    other = torch.cat([clip[:, :, :5], video(4, seed=1)], dim=2)
    assert torch.equal(vae.encode(clip)[:, :, :2], vae.encode(other)[:, :, :2])
    latents = vae.encode(clip)
    other = latents.clone()
    other[:, :, 2] += 1
    assert torch.equal(vae.decode(latents)[:, :, :5], vae.decode(other)[:, :, :5])


def test_two_streams_from_one_state_do_not_disturb_each_other(vae: WanVae) -> None:
    clip = video(9)
    _, state = vae.encode_chunk(clip[:, :, :1])
    once, _ = vae.encode_chunk(clip[:, :, 1:5], state)
    vae.encode_chunk(-clip[:, :, 1:5], state)
    again, _ = vae.encode_chunk(clip[:, :, 1:5], state)
    assert torch.equal(once, again)


def test_chunks_of_several_groups_are_the_same_stream(vae: WanVae) -> None:
    clip = video(9)
    first, state = vae.encode_chunk(clip[:, :, :1])
    rest, _ = vae.encode_chunk(clip[:, :, 1:], state)
    torch.testing.assert_close(torch.cat([first, rest], 2), vae.encode(clip), atol=1e-5, rtol=1e-5)


def test_leftover_frames_are_dropped(vae: WanVae) -> None:
    assert vae.encode(video(8)).shape[2] == 2
    assert vae.decode(vae.encode(video(8))).shape == (1, 3, 5, 8, 12)


def test_one_tile_that_covers_everything_changes_nothing(vae: WanVae) -> None:
    clip, tiling = video(5), Tiling(size=(9, 9))
    assert torch.equal(vae.encode(clip, tiling=tiling), vae.encode(clip))


@pytest.mark.parametrize(
    ("size", "overlap"), [((3, 4), (1, 2)), ((4, 3), (0, 0)), ((2, 5), (1, 4))]
)
def test_tiles_of_a_pointwise_map_blend_to_the_map_itself(
    size: tuple[int, int], overlap: tuple[int, int]
) -> None:
    x = torch.rand(2, 3, 2, 7, 11, generator=torch.Generator().manual_seed(0))

    def enlarge(tile: torch.Tensor) -> torch.Tensor:
        return tile.repeat_interleave(8, 3).repeat_interleave(8, 4)

    tiled = run_tiled(enlarge, x, Tiling(size=size, overlap=overlap), enter=1, leave=8)
    torch.testing.assert_close(tiled, enlarge(x))


def test_pixels_survive_the_way_to_video_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(-1, -1, -1, -1, 3)
    back = video_to_pixels(pixels_to_video(pixels) + 1e-6)
    assert torch.equal(back, pixels)
    assert video_to_pixels(torch.full((1, 3, 1, 1, 1), 9.0)).max() == 255


def test_what_does_not_fit_is_refused(vae: WanVae) -> None:
    with pytest.raises(ValueError, match="begin with one frame"):
        vae.encode_chunk(video(5))
    _, state = vae.encode_chunk(video(1))
    with pytest.raises(ValueError, match="multiple of 4"):
        vae.encode_chunk(video(3), state)
    with pytest.raises(ValueError, match="multiples of 4"):
        vae.encode(video(1)[..., :11])
    with pytest.raises(ValueError, match="one latent frame"):
        vae.decode_chunk(torch.zeros(1, 16, 2, 2, 2))
    with pytest.raises(ValueError, match="overlap"):
        Tiling(size=(3, 3), overlap=(3, 0))
    with pytest.raises(ValueError, match="one temporal_downsample"):
        WanVaeConfig(dim_mult=(1, 2))


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        whole = WanVae(WanVaeConfig())
    assert len(whole.state_dict()) == 194
    assert sum(p.numel() for p in whole.parameters()) == 126_892_531
