"""Which video tokens see which, in networks with published weights.

Two definitions exist, named after the library that ran them first. "flash" counts tokens: a window
reaches so many tokens to each side, wherever frames begin, and dilated layers pad the clip with
zeros that are attended. "flex" counts frames, and knows history frames. Both look both ways in
time, so neither can stream; our own worlds use neither.

Shapes: B batch, T frames, L tokens per frame, A actions, H heads, d head width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from kairos_env.kernels.clip_attention.op import band_attention, frame_attention, phase_attention
from kairos_env.world_model.config import TransformerConfig


def video_attention(
    q: Tensor, k: Tensor, v: Tensor, *, config: TransformerConfig, layer: int, history_frames: int
) -> Tensor:
    """What the video tokens of one layer read: q, k, v (B, T, L, H, d) to (B, T, L, H, d)."""
    if config.semantics == "flex":
        sees = visible_frames(q.shape[1], config=config, layer=layer, history_frames=history_frames)
        return frame_attention(q, k, v, sees=sees)
    if config.semantics == "flash":
        return token_window(q, k, v, config=config, layer=layer)
    raise ValueError(
        f"published windows need semantics 'flash' or 'flex', this config says {config.semantics!r}"
    )


def token_window(
    q: Tensor, k: Tensor, v: Tensor, *, config: TransformerConfig, layer: int
) -> Tensor:
    """The "flash" definition. It ignores history frames."""
    T, L = q.shape[1:3]
    dilation = layer_dilation(config, layer)
    reach = config.window * L
    if too_short(T, dilation):
        dilation = 1
    if dilation > 1:
        return phase_attention(q, k, v, dilation=dilation, reach=reach)
    if config.layers[layer] == "FA":
        reach = T * L
    flat = (x.flatten(1, 2) for x in (q, k, v))
    return band_attention(*flat, reach=reach).view_as(q)


def visible_frames(
    frames: int, *, config: TransformerConfig, layer: int, history_frames: int
) -> tuple[tuple[int, ...], ...]:
    """The "flex" definition: for every frame of a clip the frames that it sees."""
    rules, dilation = config.published, layer_dilation(config, layer)
    everything = config.layers[layer] == "FA"

    def sees(query: int, key: int) -> bool:
        distance = abs(key - query)
        near = distance % dilation == 0 and distance < config.window * dilation
        seen = everything or near
        if rules.restrict_history and query < history_frames:
            seen = seen and key < history_frames
        return seen or (rules.all_history and key < history_frames)

    return tuple(tuple(key for key in range(frames) if sees(query, key)) for query in range(frames))


def action_attention(
    q: Tensor, k: Tensor, v: Tensor, *, history: tuple[Tensor, Tensor] | None
) -> Tensor:
    """What action tokens read: all actions, and the video tokens of history frames if any.

    Args:
        q: (B, 1, A, H, d) queries of the actions.
        k: (B, 1, A, H, d) keys.
        v: (B, 1, A, H, d) values.
        history: keys and values (B, h, L, H, d) of the history frames; None in layers that do not
            share attention.
    """
    pairs = [(k, v)] if history is None else [history, (k, v)]
    keys, values = (
        torch.cat([x.flatten(1, 2) for x in side], 1) for side in zip(*pairs, strict=True)
    )
    read = F.scaled_dot_product_attention(
        q.flatten(1, 2).transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    )
    return read.transpose(1, 2).reshape(q.shape)


def layer_dilation(config: TransformerConfig, layer: int) -> int:
    """The dilation of one layer."""
    if config.published.dilations is not None:
        return config.published.dilations[layer]
    return config.layer_dilation(config.layers[layer])


def too_short(frames: int, dilation: int) -> bool:
    """Whether a clip holds less than two rounds of phases; "flash" does not dilate it then."""
    return frames // dilation <= 1
