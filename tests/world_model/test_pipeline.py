"""The sampler of published networks: its options do what they say, and bad ones are refused."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kairos_env.world_model.config import HYBRID, DeltaConfig, StreamConfig, TransformerConfig
from kairos_env.world_model.flow import Schedule
from kairos_env.world_model.published.mixture import Clip, PublishedMixture
from kairos_env.world_model.published.pipeline import (
    Denoised,
    Sampler,
    denoise,
    latent_shape,
    published_noise,
)
from kairos_env.world_model.published.wan_vae import video_to_pixels
from kairos_env.world_model.teacache import TeaCache

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

CONFIG = TransformerConfig(
    layers=HYBRID,
    heads=2,
    head_dim=8,
    video=StreamConfig(dim=16, ffn_dim=24, channels=4),
    action=StreamConfig(dim=10, ffn_dim=14, channels=3),
    delta=DeltaConfig(heads=2, key_dim=4, value_dim=6, decay="token", half_life=None),
    freq_dim=8,
    text_dim=12,
    state_dim=5,
    semantics="flex",
)
VIDEO = Schedule.for_video(4, tokens=6, frames=5)
ACTION = Schedule.for_actions(4)


@pytest.fixture
def network() -> PublishedMixture:
    network = PublishedMixture(CONFIG)
    generator = torch.Generator().manual_seed(5)
    for parameter in network.requires_grad_(False).parameters():
        parameter.normal_(std=0.2, generator=generator)
    return network


def noise_of(*, actions: bool = False) -> Clip:
    text = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(6))
    clip = Clip(latents=published_noise((1, 5, 4, 4, 6), seed=1, dtype=torch.float32), text=text)
    if not actions:
        return clip
    noise = published_noise((1, 6, 3), seed=1, dtype=torch.float32)
    return dataclasses.replace(clip, actions=noise)


def latents_of(result: Denoised) -> torch.Tensor:
    assert result.latents is not None
    return result.latents


def test_given_frames_are_kept_and_shape_the_rest(network: PublishedMixture) -> None:
    clip, sampler = noise_of(), Sampler(video=VIDEO)
    first = torch.ones(1, 2, 4, 4, 6)
    pictured = latents_of(denoise(network, clip, sampler=sampler, first=first))
    assert torch.equal(pictured[:, :2], first)
    alone = latents_of(denoise(network, clip, sampler=sampler))
    assert not torch.allclose(pictured[:, 2:], alone[:, 2:], atol=1e-3)


def test_few_steps_end_at_the_estimate_and_ignore_guidance(network: PublishedMixture) -> None:
    few = Sampler(video=Schedule.few_step(), few_step=True)
    first = torch.ones(1, 1, 4, 4, 6)
    result = latents_of(denoise(network, noise_of(), sampler=few, first=first))
    assert not torch.equal(result[:, :1], first)  # not put back after the last step
    guided = dataclasses.replace(few, guidance=7.0)
    assert torch.equal(
        latents_of(denoise(network, noise_of(), sampler=guided, first=first)), result
    )


def test_guidance_leads_away_from_the_negative_text(network: PublishedMixture) -> None:
    clip = noise_of(actions=True)
    plain = Sampler(video=VIDEO, action=ACTION)
    negative = torch.zeros(1, 7, 12)
    one = denoise(network, clip, sampler=plain)
    strong = dataclasses.replace(plain, guidance=5.0)
    five = denoise(network, clip, sampler=strong, negative=negative)
    assert not torch.allclose(latents_of(one), latents_of(five), atol=1e-3)
    assert one.actions is not None
    assert five.actions is not None
    assert torch.equal(one.actions, five.actions)
    same = denoise(network, clip, sampler=strong, negative=clip.text)
    torch.testing.assert_close(latents_of(same), latents_of(one), atol=1e-4, rtol=1e-4)


def test_teacache_skips_blocks_only_above_threshold_zero(
    network: PublishedMixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    run = network.run

    def counted(*inputs: object, **options: object) -> object:
        runs.append(1)
        return run(*inputs, **options)

    monkeypatch.setattr(network, "run", counted)
    sampler = Sampler(video=Schedule.for_video(6, tokens=6, frames=5), guidance=3.0)
    negative = torch.zeros(1, 2, 12)

    def result(threshold: float) -> tuple[torch.Tensor, int]:
        runs.clear()
        cache = TeaCache(steps=6, coefficients=(1.0, 0.0), threshold=threshold)
        cached = dataclasses.replace(sampler, teacache=cache)
        return latents_of(denoise(network, noise_of(), sampler=cached, negative=negative)), len(
            runs
        )

    exact = latents_of(denoise(network, noise_of(), sampler=sampler, negative=negative))
    never, runs_never = result(0.0)
    always, runs_always = result(1e9)
    assert torch.equal(never, exact)
    assert runs_never == 2 * 6
    assert runs_always == 2 * 2  # first and last step, in both branches
    assert not torch.equal(always, exact)


def test_sizes_round_up_to_tokens_and_latent_frames() -> None:
    assert latent_shape(height=480, width=832, frames=81) == (21, 60, 104)
    assert latent_shape(height=481, width=817, frames=82) == (22, 62, 104)
    assert latent_shape(height=1, width=16, frames=1) == (1, 2, 2)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        latent_shape(height=16, width=16, frames=0)


def test_noise_is_the_published_one_for_a_seed() -> None:
    stored = load_file(GOLDEN / "denoise_wam.safetensors")
    video = stored["in.noise_video"].transpose(1, 2)
    assert latent_shape(height=32, width=48, frames=33) == (9, *video.shape[3:])
    assert torch.equal(published_noise(tuple(video.shape), seed=7, dtype=torch.float32), video)
    action = stored["in.noise_action"]
    assert torch.equal(published_noise(tuple(action.shape), seed=7, dtype=torch.float32), action)
    assert published_noise((1, 2, 3), seed=7).dtype == torch.bfloat16


def test_pixels_are_clipped_and_truncated() -> None:
    video = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).view(1, 1, 1, 1, 6)
    assert video_to_pixels(video).flatten().tolist() == [0, 0, 127, 254, 255, 255]


def test_options_that_do_not_fit_are_refused(network: PublishedMixture) -> None:
    clip, both = noise_of(), noise_of(actions=True)
    sampler = Sampler(video=VIDEO, action=ACTION)
    change = dataclasses.replace
    with pytest.raises(ValueError, match="denoise needs noise"):
        denoise(network, change(clip, latents=None), sampler=sampler)
    with pytest.raises(ValueError, match=r"needs Sampler\.video"):
        denoise(network, clip, sampler=Sampler())
    with pytest.raises(ValueError, match=r"needs Sampler\.action"):
        denoise(network, both, sampler=Sampler(video=VIDEO))
    with pytest.raises(ValueError, match=r"guidance 5.0 needs features of a negative text"):
        denoise(network, clip, sampler=change(sampler, guidance=5.0))
    with pytest.raises(ValueError, match="TeaCache is for video without actions"):
        denoise(network, both, sampler=change(sampler, teacache=TeaCache(steps=4)))
    with pytest.raises(ValueError, match=r"\[1, 1, 4, 4, 8\] do not fit into latents"):
        denoise(network, clip, sampler=sampler, first=torch.zeros(1, 1, 4, 4, 8))
    with pytest.raises(ValueError, match="equally many steps"):
        denoise(network, both, sampler=change(sampler, action=Schedule.for_actions(3)))
