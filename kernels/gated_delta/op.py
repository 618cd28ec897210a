"""The public functions: check the input once, pick a backend, call it.

B batch, T tokens, Hk key heads, Hv value heads (a multiple of Hk), K key size, V value size, C
channels, W convolution width.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from kairos_env.kernels import dispatch
from kairos_env.kernels.gated_delta import cpu, fla, reference
from kairos_env.kernels.gated_delta import torch as chunked

BACKENDS = {"cpu": cpu, "fla": fla, "torch": chunked, "reference": reference}

Form = Literal["fla", "paper"]
"""`fla`: the decay multiplies the read that is erased, S <- e^g S; S += k beta (v - S^T k)^T.
`paper`: it does not, S <- e^g S + k beta (v - S_old^T k)^T."""


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    state: Tensor | None = None,
    form: Form = "fla",
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Write each token into a matrix per head and read it: o_t = scale * S_t^T q_t.

    One token with the state of the last call is a streaming step; any split of a sequence gives the
    same numbers as one call.

    Args:
        q: (B, T, Hk, K) queries. Normalise q and k yourself, the rule takes them as they are.
        k: (B, T, Hk, K) keys; value head h reads key head h // (Hv / Hk).
        v: (B, T, Hv, V) values.
        g: (B, T, Hv) log of the decay, at most 0.
        beta: (B, T, Hv) strength of the write, 0 to 2.
        state: (B, Hv, K, V) start, zero by default; float32, or float64 with float64 inputs.
        form: how decay and erasing meet, see `Form`.
        scale: K ** -0.5 by default.
        backend: overrides the choice of `kernels.dispatch`.

    Returns:
        Outputs (B, T, Hv, V) in the dtype of v, and the final state in its own dtype.

    Raises:
        ValueError: the shapes or dtypes do not fit. Values are not looked at; see
            kernels/README.md.
    """
    o, _, final = gated_delta_boundaries(
        q,
        k,
        v,
        g,
        beta,
        chunk_tokens=max(1, q.shape[1]) if q.ndim > 1 else 1,
        state=state,
        form=form,
        scale=scale,
        backend=backend,
    )
    return o, final


def gated_delta_boundaries(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    chunk_tokens: int,
    state: Tensor | None = None,
    form: Form = "fla",
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `gated_delta_rule`, returning also the state before each chunk.

    The second of the three results holds the states, (B, ceil(T / chunk_tokens), Hv, K, V).
    Training starts every noisy chunk from the state that the clean stream had there.
    """
    _check_inputs(q, k, v, g, beta, form, chunk_tokens)
    batch, _, _, key_size = k.shape
    heads, value_size = v.shape[2:]
    shape = (batch, heads, key_size, value_size)
    state = _start_state(state, shape, v)
    name = dispatch.pick(
        "gated_delta",
        device=v.device.type,
        backend=backend,
        tracing=torch.compiler.is_compiling(),
        form=form,
        key_size=key_size,
        value_size=value_size,
        dtype=v.dtype,
    )
    result: tuple[Tensor, Tensor, Tensor] = BACKENDS[name].gated_delta_boundaries(
        q,
        k,
        v,
        g,
        beta,
        state,
        chunk_tokens=chunk_tokens,
        form=form,
        scale=key_size**-0.5 if scale is None else scale,
    )
    return result


def short_conv(
    x: Tensor, w: Tensor, state: Tensor | None = None, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Causal convolution of each channel with its own W weights: y_t = sum_j w_j x_(t - W + 1 + j).

    Args:
        x: (B, T, C) inputs.
        w: (C, W) weights, the last one for the newest input.
        state: (B, W - 1, C) the inputs before x, zero by default.
        backend: overrides the choice of `kernels.dispatch`.

    Returns:
        y (B, T, C) and the last W - 1 inputs, the state for the next call.

    Raises:
        ValueError: the shapes or dtypes do not fit.
    """
    if x.ndim != 3 or w.ndim != 2 or x.shape[2] != w.shape[0] or w.shape[1] < 1 or x.shape[1] < 1:
        raise ValueError(
            "short_conv: x must be (batch, tokens, channels) with at least one token and w "
            f"(channels, width), got x {tuple(x.shape)} and w {tuple(w.shape)}"
        )
    shape = (x.shape[0], w.shape[1] - 1, x.shape[2])
    if state is None:
        state = x.new_zeros(shape)
    if w.device != x.device:
        raise ValueError(f"short_conv: x is on {x.device} and w on {w.device}; move one of them")
    if tuple(state.shape) != shape or state.dtype != x.dtype or state.device != x.device:
        raise ValueError(
            f"short_conv: the state must be {shape} {x.dtype} on {x.device} (the last width - 1 "
            f"inputs), got {tuple(state.shape)} {state.dtype} on {state.device}"
        )
    name = dispatch.pick(
        "short_conv",
        device=x.device.type,
        backend=backend,
        tracing=torch.compiler.is_compiling(),
    )
    result: tuple[Tensor, Tensor] = BACKENDS[name].short_conv(x, w, state)
    return result


def _start_state(state: Tensor | None, shape: tuple[int, ...], v: Tensor) -> Tensor:
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    if state is None:
        return torch.zeros(shape, dtype=dtype, device=v.device)
    if tuple(state.shape) != shape or state.dtype != dtype or state.device != v.device:
        raise ValueError(
            "gated_delta: the state must be (batch, value heads, key size, value size) = "
            f"{shape} in {dtype} on {v.device}, got {tuple(state.shape)} in {state.dtype} on "
            f"{state.device}"
        )
    return state


def _check_inputs(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, form: str, chunk_tokens: int
) -> None:
    if form not in get_args(Form):
        raise ValueError(f"gated_delta: form must be one of {get_args(Form)}, got {form!r}")
    if chunk_tokens < 1:
        raise ValueError(f"gated_delta: chunk_tokens must be at least 1, got {chunk_tokens}")
    if (
        q.ndim != 4
        or v.ndim != 4
        or q.shape != k.shape
        or v.shape[:2] != k.shape[:2]
        or not v.shape[1]
    ):
        raise ValueError(
            "gated_delta: q and k must be (batch, tokens, key heads, key size) and v (batch, "
            "tokens, value heads, value size) with at least one token, "
            f"got {_shapes(q, k, v, g, beta)}"
        )
    if g.shape != v.shape[:3] or beta.shape != v.shape[:3]:
        raise ValueError(
            f"gated_delta: g and beta must be (batch, tokens, value heads) = {tuple(v.shape[:3])}, "
            f"got {_shapes(q, k, v, g, beta)}"
        )
    if v.shape[2] % k.shape[2]:
        raise ValueError(
            "gated_delta: value heads must be a multiple of key heads, "
            f"got {_shapes(q, k, v, g, beta)}"
        )
    if {x.device for x in (q, k, g, beta)} != {v.device}:
        devices = ", ".join(str(x.device) for x in (q, k, v, g, beta))
        raise ValueError(f"gated_delta: q, k, v, g, beta must be on one device, got {devices}")
    if q.dtype != v.dtype or k.dtype != v.dtype or not v.is_floating_point():
        raise ValueError(
            "gated_delta: q, k and v need one floating-point dtype, "
            f"got {q.dtype}, {k.dtype} and {v.dtype}"
        )


def _shapes(*tensors: Tensor) -> str:
    names = ("q", "k", "v", "g", "beta")
    return ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip(names, tensors, strict=True))
