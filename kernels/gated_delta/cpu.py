"""The gated delta rule in C++ (gated_delta.cpp), called through ctypes, gradients included.

B batch, T tokens, Hk key heads, Hv value heads, K key size, V value size, C channels.
"""

import ctypes
from ctypes import c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kairos_env.kernels import native

SOURCE = Path(__file__).with_name("gated_delta.cpp")
SEGMENT = 64
"""Tokens between the states that the backward pass starts from."""
THREADS_FROM = 4_000_000
"""Numbers of state touched (B T Hv K V) from which starting threads is worth it."""


class _Stream(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("batch_stride", c_int64),
        ("token_stride", c_int64),
        ("head_stride", c_int64),
    )


def _fields(kind: Any, names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names.split())


class _DeltaProblem(ctypes.Structure):
    _fields_ = (
        *_fields(c_int64, "batch tokens key_heads value_heads key_size value_size"),
        *_fields(c_int64, "span segment stored paper threads"),
        ("scale", c_double),
        *_fields(_Stream, "q k v"),
        *_fields(c_void_p, "g beta start o final_state states residual"),
    )


class _DeltaGradients(ctypes.Structure):
    _fields_ = _fields(c_void_p, "o boundary final_state q k v g beta start")


class _ConvProblem(ctypes.Structure):
    _fields_ = (
        *_fields(c_int64, "batch tokens channels width threads"),
        ("x", c_void_p),
        *_fields(c_int64, "batch_stride token_stride"),
        *_fields(c_void_p, "weight state y"),
    )


class _ConvGradients(ctypes.Structure):
    _fields_ = _fields(c_void_p, "y x weight")


def obstacle(*, tracing: bool, **_: object) -> str | None:
    """Why the compiled code cannot run here."""
    if tracing:
        return "torch.compile cannot look into it"
    return native.obstacle(SOURCE)


def gated_delta_boundaries(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    chunk_tokens: int,
    form: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.gated_delta_boundaries`."""
    kind = state.dtype
    inputs = [_last_contiguous(x.to(kind)) for x in (q, k, v)]
    inputs += [x.to(kind).contiguous() for x in (g, beta, state)]
    span = min(chunk_tokens, v.shape[1])
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        apply: Any = _Rule.apply  # torch leaves it untyped
        o, boundaries, final = apply(*inputs, span, form == "paper", scale)
    else:
        o, boundaries, final, _ = _forward(inputs, span, form == "paper", scale, keep=False)
    return o.to(v.dtype), boundaries, final


class _Rule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *inputs, span, paper, scale = arguments
        o, boundaries, final, (states, residual) = _forward(inputs, span, paper, scale, keep=True)
        ctx.save_for_backward(*inputs, states, residual)
        ctx.settings = (span, paper, scale)
        ctx.set_materialize_grads(False)
        return o, boundaries, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, states, residual = ctx.saved_tensors
        return (*_backward(inputs, states, residual, gradients, *ctx.settings), None, None, None)


def _forward(
    inputs: list[Tensor], span: int, paper: bool, scale: float, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor | None]]:
    """Outputs, boundary states, final state; `keep` stores what the backward pass needs."""
    v, state = inputs[2], inputs[5]
    batch, tokens = v.shape[:2]
    stored = -(-span // SEGMENT) if keep else 1
    spans = -(-tokens // span)
    o, final = v.new_empty(v.shape), torch.empty_like(state)
    states = state.new_empty(batch, spans * stored, *state.shape[1:])
    residual = v.new_empty(v.shape) if keep else None
    problem = _problem(inputs, states, residual, span, paper, scale)
    problem.o, problem.final_state = o.data_ptr(), final.data_ptr()
    _run("delta_forward", v.dtype, problem)
    return o, states[:, ::stored], final, (states, residual)


def _backward(
    inputs: list[Tensor],
    states: Tensor,
    residual: Tensor,
    gradients: tuple[Tensor | None, ...],
    span: int,
    paper: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    _, k, v, g, beta, state = inputs
    d_o, d_boundary, d_final = (None if x is None else x.contiguous() for x in gradients)
    per_value_head = (*v.shape[:3], k.shape[3])
    d_q, d_k = v.new_empty(per_value_head), v.new_empty(per_value_head)
    d_v, d_g, d_beta, d_state = v.new_empty(v.shape), *(map(torch.empty_like, (g, beta, state)))
    problem = _problem(inputs, states, residual, span, paper, scale)
    pointers = (d_o, d_boundary, d_final, d_q, d_k, d_v, d_g, d_beta, d_state)
    _run("delta_backward", v.dtype, problem, _DeltaGradients(*map(_pointer, pointers)))
    if k.shape[2] != v.shape[2]:  # several value heads read one key head
        d_q, d_k = (x.view(*k.shape[:3], -1, k.shape[3]).sum(3) for x in (d_q, d_k))
    return d_q, d_k, d_v, d_g, d_beta, d_state


def _problem(
    inputs: list[Tensor],
    states: Tensor,
    residual: Tensor | None,
    span: int,
    paper: bool,
    scale: float,
) -> _DeltaProblem:
    q, k, v, g, beta, state = inputs
    (batch, tokens, heads, size), key_size = v.shape, k.shape[3]
    return _DeltaProblem(
        batch=batch,
        tokens=tokens,
        key_heads=k.shape[2],
        value_heads=heads,
        key_size=key_size,
        value_size=size,
        span=span,
        segment=SEGMENT,
        stored=states.shape[1] // -(-tokens // span),
        paper=paper,
        threads=_threads(batch * tokens * heads * key_size * size),
        scale=scale,
        q=_stream(q),
        k=_stream(k),
        v=_stream(v),
        g=g.data_ptr(),
        beta=beta.data_ptr(),
        start=state.data_ptr(),
        states=states.data_ptr(),
        residual=_pointer(residual),
    )


def short_conv(x: Tensor, w: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.short_conv`."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    inputs = (_last_contiguous(x.to(kind)), w.to(kind).mT.contiguous(), state.to(kind).contiguous())
    if torch.is_grad_enabled() and any(y.requires_grad for y in inputs):
        apply: Any = _Conv.apply  # torch leaves it untyped
        y: Tensor = apply(*inputs)
    else:
        y = _conv_forward(*inputs)
    kept = w.shape[1] - 1
    if x.shape[1] < kept:
        x = torch.cat([state, x], 1)
    return y.to(x.dtype), x[:, x.shape[1] - kept :]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return _conv_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x, w, state = ctx.saved_tensors
        d_y = gradients[0].contiguous()
        d_seen = x.new_empty(x.shape[0], state.shape[1] + x.shape[1], x.shape[2])
        d_w = x.new_empty(x.shape[0], *w.shape)
        problem = _conv_problem(x, w, state)
        pointers = _ConvGradients(d_y.data_ptr(), d_seen.data_ptr(), d_w.data_ptr())
        _run("conv_backward", x.dtype, problem, pointers)
        return d_seen[:, state.shape[1] :], d_w.sum(0), d_seen[:, : state.shape[1]]


def _conv_forward(x: Tensor, w: Tensor, state: Tensor) -> Tensor:
    y = x.new_empty(x.shape)
    problem = _conv_problem(x, w, state)
    problem.y = y.data_ptr()
    _run("conv_forward", x.dtype, problem)
    return y


def _conv_problem(x: Tensor, w: Tensor, state: Tensor) -> _ConvProblem:
    return _ConvProblem(
        batch=x.shape[0],
        tokens=x.shape[1],
        channels=x.shape[2],
        width=w.shape[0],
        threads=_threads(x.numel() * w.shape[0]),
        x=x.data_ptr(),
        batch_stride=x.stride(0),
        token_stride=x.stride(1),
        weight=w.data_ptr(),
        state=state.data_ptr(),
    )


def _run(name: str, dtype: torch.dtype, *problem: ctypes.Structure) -> None:
    function = getattr(native.load(SOURCE), f"{name}_{str(dtype).removeprefix('torch.')}")
    if function(*map(ctypes.byref, problem)) != 0:
        raise MemoryError(f"{name}: no memory for the scratch of a head")


def _threads(work: int) -> int:
    return torch.get_num_threads() if work >= THREADS_FROM else 1


def _stream(x: Tensor) -> _Stream:
    return _Stream(x.data_ptr(), *x.stride()[:3])


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _last_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
