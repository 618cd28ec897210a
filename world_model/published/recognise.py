"""What a published checkpoint holds, read from the names and shapes of its tensors.

Sizes follow from shapes. What does not is taken from the official configuration where it is given:
which windowed layers are dilated and by how much, the window, and how it is counted. Without it
they are those of all published checkpoints: every third layer of four is dilated by 4, the window
is 3 frames, networks with actions count frames ("flex") and the others tokens ("flash").
"""

import itertools
from collections.abc import Mapping
from typing import Any

from kairos_env.world_model.config import (
    HYBRID,
    DeltaConfig,
    LayerKind,
    PublishedRules,
    Semantics,
    StreamConfig,
    TransformerConfig,
)
from kairos_env.world_model.published.wan_vae import LATENT_MEAN, LATENT_STD, WanVaeConfig

Shapes = Mapping[str, tuple[int, ...]]

HEAD_DIM = 128
"""Of all published checkpoints; used where no delta rule tells the number of heads."""
DELTA_KEY_DIM, DELTA_VALUE_DIM = 256, 512
DILATION = 4

# Official name of a kind of layer, ours.
KINDS: Mapping[str, LayerKind] = {"SWA": "SWA", "DSWA": "DSWA", "GATED": "GLA", "FA": "FA"}


def recognise(shapes: Shapes, given: Mapping[str, Any] | None = None) -> TransformerConfig:
    """Derive the config of a published network.

    Args:
        shapes: of all its tensors, names with `video_dit.` or `action_dit.` in front.
        given: the official configuration of the video network as a mapping, or a mapping with the
            keys `video_dit` and `action_dit` that hold one each. Only what shapes do not tell is
            used; where it tells the same in another way, the two must agree.

    Raises:
        ValueError: this is no published network, or the configuration is of another one.
    """
    official = dict((given or {}).get("video_dit", given or {}))
    patch = _shape(shapes, "video_dit.patch_embedding.weight")  # (D, C, 1, p, p)
    layers = _layers(shapes, official)
    heads, head_dim = _heads(shapes, official, layers)
    config = TransformerConfig(
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        video=StreamConfig(
            dim=patch[0],
            ffn_dim=_shape(shapes, "video_dit.blocks.0.ffn.0.weight")[0],
            channels=patch[1],
        ),
        action=_action(shapes),
        delta=_delta(shapes, heads, layers),
        window=official.get("window_size", 3),
        dilation=max(official.get("dilated_lengths", [DILATION])),
        patch=patch[3],
        freq_dim=_shape(shapes, "video_dit.time_embedding.0.weight")[1],
        text_dim=_shape(shapes, "video_dit.text_embedding.0.weight")[1],
        state_dim=_state_dim(shapes),
        semantics=_semantics(shapes, official),
        published=_rules(shapes, official, layers),
        eps=official.get("eps", 1e-6),
    )
    _agree(config, official)
    return config


def recognise_autoencoder(shapes: Shapes) -> WanVaeConfig:
    """Derive the config of a Wan autoencoder; latents of another depth than 16 are not scaled.

    Raises:
        ValueError: this is no Wan autoencoder.
    """
    if "encoder.conv1.weight" not in shapes or "conv2.weight" not in shapes:
        raise ValueError(
            f"this is no Wan autoencoder: encoder.conv1.weight or conv2.weight is missing among "
            f"{len(shapes)} tensors such as {', '.join(sorted(shapes)[:3])}"
        )
    dim, channels = shapes["encoder.conv1.weight"][0], shapes["conv2.weight"][0]
    stages: list[list[int]] = [[]]  # widths of the residual blocks between two halvings
    temporal: list[bool] = []
    for layer in itertools.count():
        at = f"encoder.downsamples.{layer}"
        if f"{at}.residual.2.weight" in shapes:
            stages[-1].append(shapes[f"{at}.residual.2.weight"][0])
        elif f"{at}.resample.1.weight" in shapes:
            temporal.append(f"{at}.time_conv.weight" in shapes)
            stages.append([])
        else:
            break
    if not all(stages):
        raise ValueError("this is no Wan autoencoder: a stage of the encoder has no block")
    known = channels == len(LATENT_MEAN)
    return WanVaeConfig(
        dim=dim,
        dim_mult=tuple(widths[-1] // dim for widths in stages),
        z_dim=channels,
        num_res_blocks=len(stages[0]),
        temporal_downsample=tuple(temporal),
        latent_mean=LATENT_MEAN if known else (0.0,) * channels,
        latent_std=LATENT_STD if known else (1.0,) * channels,
    )


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(
            f"this is no published video network: {name} is missing among {len(shapes)} tensors "
            f"such as {', '.join(sorted(shapes)[:3])}"
        )
    return shapes[name]


def _layers(shapes: Shapes, official: Mapping[str, Any]) -> tuple[LayerKind, ...]:
    count = 0
    while f"video_dit.blocks.{count}.modulation" in shapes:
        count += 1
    named = official.get("layers_settings")
    if named is not None:
        if len(named) != count or not set(named) <= set(KINDS):
            raise ValueError(
                f"layers_settings names {len(named)} layers of kinds {sorted(set(named))}; the "
                f"checkpoint has {count}, known kinds are {', '.join(KINDS)}"
            )
        return tuple(KINDS[name] for name in named)
    lengths = official.get("dilated_lengths", [])
    return tuple(_kind(shapes, layer, lengths) for layer in range(count))


def _kind(shapes: Shapes, layer: int, lengths: list[int]) -> LayerKind:
    """The first generation names no kinds: it lists the dilations of four layers, and repeats."""
    if f"video_dit.blocks.{layer}.gated_delta.A_log" in shapes:
        return "GLA"
    if len(lengths) > 1:
        return "DSWA" if lengths[layer % len(lengths)] > 1 else "SWA"
    return "DSWA" if HYBRID[layer % len(HYBRID)] == "DSWA" else "SWA"


def _heads(
    shapes: Shapes, official: Mapping[str, Any], layers: tuple[LayerKind, ...]
) -> tuple[int, int]:
    """Number of heads, which the delta rule shares with attention, and their width."""
    recalls = [i for i, kind in enumerate(layers) if kind == "GLA"]
    attends = [i for i, kind in enumerate(layers) if kind != "GLA"]
    name = f"blocks.{attends[0]}.self_attn.q.weight" if attends else "blocks.0.cross_attn.q.weight"
    width = _shape(shapes, f"video_dit.{name}")[0]
    if recalls:
        heads = _shape(shapes, f"video_dit.blocks.{recalls[0]}.gated_delta.A_log")[0]
    else:
        heads = official.get("num_heads", max(1, width // HEAD_DIM))
    if width % heads:
        raise ValueError(f"{heads} heads cannot share an attention of width {width}")
    return heads, width // heads


def _delta(shapes: Shapes, heads: int, layers: tuple[LayerKind, ...]) -> DeltaConfig:
    key_dim, value_dim, conv = DELTA_KEY_DIM, DELTA_VALUE_DIM, 4
    if "GLA" in layers:
        layer = f"video_dit.blocks.{layers.index('GLA')}.gated_delta"
        key_dim = _shape(shapes, f"{layer}.q_proj.weight")[0] // heads
        value_dim = _shape(shapes, f"{layer}.o_norm.weight")[0]
        conv = _shape(shapes, f"{layer}.q_conv1d.weight")[2]
    return DeltaConfig(
        heads=heads, key_dim=key_dim, value_dim=value_dim, conv=conv, decay="token", half_life=None
    )


def _action(shapes: Shapes) -> StreamConfig | None:
    encoder = shapes.get("action_dit.action_encoder.weight")
    if encoder is None:
        return None
    ffn_dim = _shape(shapes, "action_dit.blocks.0.ffn.0.weight")[0]
    return StreamConfig(dim=encoder[0], ffn_dim=ffn_dim, channels=encoder[1])


def _state_dim(shapes: Shapes) -> int | None:
    encoder = shapes.get("action_dit.proprio_encoder.0.weight")
    return encoder[1] if encoder is not None else None


def _semantics(shapes: Shapes, official: Mapping[str, Any]) -> Semantics:
    method = official.get("attn_method")
    if method is None:
        return "flex" if "action_dit.action_encoder.weight" in shapes else "flash"
    if method == "flash":
        return "flash"
    if method == "flex":
        return "flex"
    raise ValueError(f"attn_method is {method!r}; known are flash and flex")


def _rules(
    shapes: Shapes, official: Mapping[str, Any], layers: tuple[LayerKind, ...]
) -> PublishedRules:
    lengths = official.get("dilated_lengths", [])
    dilations = None
    if len({length for length in lengths if length > 1}) > 1:
        repeated = [lengths[i % len(lengths)] for i in range(len(layers))]
        dilations = tuple(
            n if kind == "DSWA" else 1 for n, kind in zip(repeated, layers, strict=True)
        )
    fused = official.get("fuse_vae_embedding_in_latents", True)
    return PublishedRules(
        restrict_history=official.get("restrict_history_query_to_history", True),
        all_history=official.get("all_atten_history", False),
        dilations=dilations,
        separate_timestep=official.get("seperated_timestep", True) and fused,
        image_tokens="video_dit.image_downsample.0.weight" in shapes,
    )


def _agree(config: TransformerConfig, official: Mapping[str, Any]) -> None:
    """The official configuration must be the one of this checkpoint."""
    told = {
        "dim": config.video.dim,
        "ffn_dim": config.video.ffn_dim,
        "in_dim": config.video.channels,
        "out_dim": config.video.channels,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "num_heads": config.heads,
        "num_layers": len(config.layers),
    }
    wrong = [
        f"{key} {official[key]} (the tensors say {value})"
        for key, value in told.items()
        if key in official and official[key] != value
    ]
    if wrong:
        raise ValueError(f"the configuration is of another network: {', '.join(wrong)}")
