"""Operations and sizes of networks, counted, not timed.

A multiplication and an addition are two operations; only matrix products, convolutions and
attention count, as everywhere. The delta rule's own kernel is invisible to torch's counter, so its
operations are added from their formula.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kairos_env.benchmarks.timing import Work
from kairos_env.kernels import dispatch
from kairos_env.world_model.config import LayerKind, TransformerConfig
from kairos_env.world_model.presets import PUBLISHED
from kairos_env.world_model.published.mixture import Clip, PublishedMixture
from kairos_env.world_model.published.pipeline import latent_shape
from kairos_env.world_model.world_model import WorldModel

CLIPS = {"480p, 5 s": (480, 832, 81), "720p, 15 s": (704, 1280, 241)}
"""Height, width and frames of the clips that the paper times."""
TEXT_TOKENS = 512


def counted(work: Work) -> int:
    """Operations of a call, without those of native kernels."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def delta_operations(config: TransformerConfig, tokens: int) -> int:
    """Of the delta rule over tokens: read with k, write, read with q, and the short convolution."""
    d = config.delta
    channels = d.heads * (2 * d.key_dim + d.value_dim)
    per_token = 6 * d.heads * d.key_dim * d.value_dim + 2 * d.conv * channels
    return config.layers.count("GLA") * tokens * per_token


def step_operations(model: WorldModel, *, decode: bool) -> int:
    """One step of one dream: denoising, the clean pass, the heads, and the picture."""
    config = model.config
    state, chunk = fresh_dreams(model, 1)
    total = counted(lambda: model.step(state, chunk, decode=decode))
    if native_delta(config.transformer):
        tokens = config.latents_per_chunk * config.frame_tokens
        total += (config.denoise_steps + 1) * delta_operations(config.transformer, tokens)
    return total


def native_delta(config: TransformerConfig) -> bool:
    """Whether the delta rule runs in a kernel of our own here, which the counter does not see."""
    d = config.delta
    name: str = dispatch.pick(
        "gated_delta",
        device="cpu",
        form="fla",
        key_size=d.key_dim,
        value_size=d.value_dim,
        dtype=torch.float32,
        tracing=False,
    )
    return name == "cpu"


def fresh_dreams(model: WorldModel, batch: int) -> tuple[Any, Tensor]:
    """Dreams that begin in grey, and a chunk of resting actions for them."""
    config = model.config
    seen = config.history // config.tokenizer.temporal
    latents = torch.zeros(batch, seen, *config.latent_shape)
    state = model.start_latents(latents, None, seeds=torch.arange(batch))
    return state, torch.zeros(batch, config.chunk, config.action_size)


def parameters(model: torch.nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in model.parameters())


def published_row(name: str) -> dict[str, Any]:
    """The size of a published network."""
    with torch.device("meta"):
        size = parameters(PublishedMixture(PUBLISHED[name]))
    return {"name": name, "parameters": size, "gigabytes_bfloat16": 2e-9 * size}


def pass_operations(config: TransformerConfig, height: int, width: int, frames: int) -> int:
    """One pass of a published video stream over a clip.

    Nothing is computed: the tensors have no memory behind them. Layers of a kind are alike, so one
    of each is counted, a GLA layer at two short lengths because its cost is a straight line.
    """
    clip = latent_shape(height=height, width=width, frames=frames)
    total = _operations(config, ("SWA",), clip) - _layer_operations(config, "SWA", clip)
    for kind in ("SWA", "DSWA"):
        total += config.layers.count(kind) * _layer_operations(config, kind, clip)
    first, second = (_layer_operations(config, "GLA", (T, *clip[1:])) for T in (1, 2))
    return total + config.layers.count("GLA") * (first + (clip[0] - 1) * (second - first))


def _layer_operations(
    config: TransformerConfig, kind: LayerKind, latent: tuple[int, int, int]
) -> int:
    """What a second layer of a kind adds."""
    one, two = (_operations(config, (kind,) * n, latent) for n in (1, 2))
    return two - one


def _operations(
    config: TransformerConfig, layers: tuple[LayerKind, ...], latent: tuple[int, int, int]
) -> int:
    """Of a network of these layers over a clip of latents (T, rows, columns)."""
    T, rows, columns = latent
    with torch.device("meta"):
        network = PublishedMixture(dataclasses.replace(config, layers=layers, action=None))
        clip = Clip(
            latents=torch.zeros(1, T, config.video.channels, rows, columns),
            timestep=torch.zeros(1),
            text=torch.zeros(1, TEXT_TOKENS, config.text_dim or 0),
        )
    return counted(lambda: network(clip))
