"""The public functions: check the input once, pick a backend, call it.

B batch, T frames, L tokens a frame, H heads, D head size.
"""

from torch import Tensor

from kairos_env.kernels import dispatch
from kairos_env.kernels.window_attention import reference
from kairos_env.kernels.window_attention import torch as grouped
from kairos_env.kernels.window_attention.cache import FrameCache, ring_slots

BACKENDS = {"torch": grouped, "reference": reference}


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    dilation: int = 1,
    chunk_frames: int = 1,
    history: tuple[Tensor, Tensor] | None = None,
    cache: FrameCache | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention between whole frames: both ways inside a chunk, causal across chunks.

    Query frame i attends frame j when their distance is a multiple of `dilation` and less than
    `window * dilation`, and j is in the same chunk (keys from `k`, `v`) or in an earlier one (keys
    from `history`). Later chunks are never seen. Chunks are counted from the first frame of the
    call; the last one may be shorter.

    Args:
        q: (B, T, Lq, H, D) queries.
        k: (B, T, Lk, H, D) keys of the stream that is being worked on.
        v: (B, T, Lk, H, D) its values.
        window: frames that a query reaches on each side, its own included.
        dilation: distance between the frames that are seen.
        chunk_frames: frames of a chunk.
        history: keys and values (B, T, Lh, H, D) that later chunks look back at, `(k, v)` by
            default. In training this is the clean stream while q, k, v come from the noisy one.
        cache: frames that came before this call; the result equals one call over the whole
            sequence.
        backend: overrides the choice of `kernels.dispatch`.

    Returns:
        (B, T, Lq, H, D).

    Raises:
        ValueError: the shapes do not fit. Values are not looked at; see kernels/README.md.
    """
    _check_numbers(window, dilation, chunk_frames)
    _check_streams(q, k, v)
    if history is not None:
        _check_history(k, *history)
    if cache is not None:
        _check_cache(q, cache, window, dilation)
    if q.shape[1] > chunk_frames and history is None:
        _check_own_history(k, cache)
    name = dispatch.pick("window_attention", device=q.device.type, backend=backend)
    output: Tensor = BACKENDS[name].window_attention(
        q,
        k,
        v,
        window=window,
        dilation=dilation,
        chunk_frames=chunk_frames,
        history=history,
        cache=cache,
    )
    return output


def window_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: FrameCache,
    *,
    window: int,
    dilation: int = 1,
    backend: str | None = None,
) -> Tensor:
    """One chunk of any number of frames against the frames in the cache.

    The cache is read, not written: while a chunk is denoised it is asked many times, and its final
    keys and values are committed once with `append_frames`.
    """
    return window_attention(
        q,
        k,
        v,
        window=window,
        dilation=dilation,
        chunk_frames=max(1, q.shape[1]),
        cache=cache,
        backend=backend,
    )


def _check_numbers(window: int, dilation: int, chunk_frames: int) -> None:
    for name, value in (("window", window), ("dilation", dilation), ("chunk_frames", chunk_frames)):
        if value < 1:
            raise ValueError(f"window_attention: {name} must be at least 1, got {value}")


def _check_streams(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 5:
            raise ValueError(
                f"window_attention: {name} must be (batch, frames, tokens, heads, head size), "
                f"got shape {tuple(x.shape)}"
            )
    if q.shape[1] == 0:
        raise ValueError("window_attention: q has no frames; pass at least one")
    _same_shape("v", v, "k", k)
    if _without_tokens(q) != _without_tokens(k):
        raise ValueError(
            "window_attention: q and k may differ in tokens a frame only, "
            f"got q {tuple(q.shape)} and k {tuple(k.shape)}"
        )
    if q.dtype != k.dtype or q.dtype != v.dtype or not q.is_floating_point():
        raise ValueError(
            "window_attention: q, k and v need one floating-point dtype, "
            f"got {q.dtype}, {k.dtype} and {v.dtype}"
        )


def _check_history(k: Tensor, hk: Tensor, hv: Tensor) -> None:
    _same_shape("history values", hv, "history keys", hk)
    if hk.ndim != 5 or _without_tokens(hk) != _without_tokens(k) or hk.dtype != k.dtype:
        raise ValueError(
            "window_attention: history may differ from k in tokens a frame only, "
            f"got history {tuple(hk.shape)} {hk.dtype} and k {tuple(k.shape)} {k.dtype}"
        )


def _check_cache(q: Tensor, cache: FrameCache, window: int, dilation: int) -> None:
    _same_shape("cache.v", cache.v, "cache.k", cache.k)
    batch, _, _, heads, size = q.shape
    slots = ring_slots(window, dilation)
    shape = tuple(cache.k.shape)
    if cache.k.ndim != 5 or shape[:2] != (batch, slots) or shape[3:] != (heads, size):
        raise ValueError(
            f"window_attention: the cache has shape {shape}, but window {window} and dilation "
            f"{dilation} with q {tuple(q.shape)} need ({batch}, {slots}, tokens, {heads}, {size}); "
            "make it with FrameCache.empty of the same window and dilation"
        )
    if cache.k.dtype != q.dtype or tuple(cache.frames.shape) != (batch,):
        raise ValueError(
            f"window_attention: the cache needs dtype {q.dtype} and one frame count an item, "
            f"got {cache.k.dtype} and counts of shape {tuple(cache.frames.shape)}"
        )


def _check_own_history(k: Tensor, cache: FrameCache | None) -> None:
    """Several chunks without `history`: later ones look back at k and v themselves."""
    if cache is not None and cache.k.shape[2] != k.shape[2]:
        raise ValueError(
            f"window_attention: the cache holds {cache.k.shape[2]} tokens a frame and k has "
            f"{k.shape[2]}; with more than one chunk pass history=(keys, values) of the cached kind"
        )


def _same_shape(name: str, x: Tensor, other: str, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(
            f"window_attention: {name} and {other} must have one shape, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def _without_tokens(x: Tensor) -> tuple[int, ...]:
    batch, frames, _, heads, size = x.shape
    return (batch, frames, heads, size)
