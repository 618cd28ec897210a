"""Small checkpoints in the official layout with random weights, for tests and measurements."""

import dataclasses
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from kairos_env.world_model.checkpoint import save_official
from kairos_env.world_model.config import HYBRID, DeltaConfig, StreamConfig, TransformerConfig
from kairos_env.world_model.published.mixture import PublishedMixture
from kairos_env.world_model.published.wan_vae import WanVae, WanVaeConfig, pixels_to_video
from kairos_env.world_model.tensor_files import write_tensors

NETWORK_FILE, AUTOENCODER_FILE = "model.safetensors", "Wan2.1_VAE.safetensors"

TINY = TransformerConfig(
    layers=HYBRID,
    heads=4,
    head_dim=16,
    video=StreamConfig(dim=64, ffn_dim=128, channels=16),
    action=StreamConfig(dim=32, ffn_dim=64, channels=7),
    delta=DeltaConfig(heads=4, key_dim=16, value_dim=16, decay="token", half_life=None),
    freq_dim=32,
    text_dim=24,
    state_dim=8,
    semantics="flex",
)
"""As LIBERO-plus, five hundred times narrower; four layers."""

TINY_AUTOENCODER = WanVaeConfig(dim=16, num_res_blocks=1)


def write_checkpoint(
    folder: Path,
    frames: Tensor,
    *,
    config: TransformerConfig = TINY,
    autoencoder: WanVaeConfig = TINY_AUTOENCODER,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a network and an autoencoder with random weights; returns the folder.

    Args:
        folder: Where.
        frames: (N, H, W, 3) uint8, pictures whose latents get the published mean and deviation.
        config: Of the network.
        autoencoder: Its config.
        prefix: Stands before the network's names.
        dtype: Of the network.
        seed: Of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PublishedMixture(config)
        vae = WanVae(autoencoder)
    fit_latents(vae, frames)
    save_official(network.to(dtype), folder / NETWORK_FILE, prefix=prefix)
    write_tensors(vae.state_dict(), folder / AUTOENCODER_FILE)
    return folder


@torch.no_grad()
def fit_latents(vae: WanVae, frames: Tensor) -> None:
    """Make the latents of these pictures as wide as trained ones; random weights give dots."""
    latents = vae.encode(pixels_to_video(frames[:, None]))  # (N, C, 1, h, w)
    mean, std = (f((0, 2, 3, 4)) for f in (latents.mean, latents.std))
    # In raw units z = s y + m; the last convolution is made to give (y - mean) / std instead.
    s, m = (torch.tensor(x) for x in (vae.config.latent_std, vae.config.latent_mean))
    channels = vae.config.z_dim
    scale = 1 / std.clamp_min(1e-6)
    bias = cast(Tensor, vae.conv1.bias)
    vae.conv1.weight[:channels] *= scale[:, None, None, None, None]
    bias[:channels] = scale * (bias[:channels] - m - s * mean) + m


def without_actions(config: TransformerConfig) -> TransformerConfig:
    """The same network as the first generation has it: video alone."""
    return dataclasses.replace(config, action=None, state_dim=None, semantics="flash")
