"""The gated delta rule in chunks, plain torch: CPU and CUDA, gradients by autograd.

Inside a chunk that starts from the state S0, with G the running sum of g and R = G (form "fla") or
R = G - g ("paper", where the decay spares the erased read), the updates u solve a triangular
system:

    u_t + beta_t sum_{i<t} e^(R_t - G_i) (k_t . k_i) u_i = beta_t (v_t - e^(R_t) S0^T k_t)
    o_t = e^(G_t) S0^T q_t + sum_{i<=t} e^(G_t - G_i) (q_t . k_i) u_i
    S   = e^(G_C) S0 + sum_i e^(G_C - G_i) k_i u_i^T

Everything but S0 is computed for all chunks at once. The system is solved, not inverted by a
series: the neighbouring tokens of a still video have nearly equal keys, and the series diverges
there. The state and the solve are float32 at least, whatever the inputs are.

B batch, T tokens, N chunks of C tokens, Hk key heads, Hv value heads, K key size, V value size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SOLVE_TOKENS = 32
"""Most tokens of a triangular system; 16 and 64 are slower on a CPU at common sizes."""


@dataclass(frozen=True, kw_only=True)
class _Chunks:
    """What every chunk contributes before it knows its start state; (B, N, Hv, C, ...)."""

    q: Tensor  # e^G q, so that q @ S0 is what the start state gives to the output
    k: Tensor  # e^(G_C - G) k, so that k^T @ u is what the updates give to the state
    inside: Tensor  # (C, C): how the updates reach the outputs
    u: Tensor  # updates if the start state were zero
    w: Tensor  # u = u - w @ S0
    decay: Tensor  # (B, N, Hv, 1, 1): e^(G_C)


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
    tokens, kind = v.shape[1], state.dtype
    span = min(chunk_tokens, tokens)
    parts = -(-span // SOLVE_TOKENS)
    size = -(-span // parts)
    g, beta, v_, q, k = (_split(x.to(kind), span, parts, size) for x in (g, beta, v, q * scale, k))
    groups = v_.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(groups, 2), k.repeat_interleave(groups, 2)
    chunks = _prepare(q, k, v_, g, beta, form)
    outputs, starts, final = _scan(chunks, state)
    o = outputs.transpose(2, 3).flatten(3)  # (B, N, C, Hv * V)
    o = o.reshape(o.shape[0], -1, parts * size, *v.shape[2:])[:, :, :span]
    return o.flatten(1, 2)[:, :tokens].to(v.dtype), starts[:, ::parts], final


def _split(x: Tensor, span: int, parts: int, size: int) -> Tensor:
    """(B, T, H, ...) to (B, N, H, C, ...): spans, each padded to `parts` chunks of `size` tokens.

    Zeros are padding that changes nothing: no decay (g), no update (beta).
    """
    batch, tokens, heads, *last = x.shape
    spans = -(-tokens // span)
    x = x.reshape(batch, tokens, -1)
    x = F.pad(x, (0, 0, 0, spans * span - tokens)).view(batch, spans, span, -1)
    x = F.pad(x, (0, 0, 0, parts * size - span)).view(batch, spans * parts, size, heads, *last)
    return x.transpose(2, 3).contiguous()


def _prepare(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, form: str) -> _Chunks:
    total = g.cumsum(-1)  # G (B, N, Hv, C)
    read = total if form == "fla" else F.pad(total[..., :-1], (1, 0))  # R
    between = _sums_between(g)  # G_t - G_i
    size = g.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=g.device).tril()
    inside = between.masked_fill(~lower, -torch.inf).exp()
    earlier = between if form == "fla" else F.pad(between[..., :-1, :], (0, 0, 1, 0))
    before = earlier.masked_fill(~lower.tril(-1), -torch.inf).exp()
    system = beta[..., None] * before * (k @ k.mT)
    one = torch.eye(size, dtype=g.dtype, device=g.device)
    inverse = torch.linalg.solve_triangular(system, one, upper=False, unitriangular=True)
    return _Chunks(
        q=q * total.exp()[..., None],
        k=k * between[..., -1, :].exp()[..., None],
        inside=inside * (q @ k.mT),
        u=inverse @ (beta[..., None] * v),
        w=inverse @ ((beta * read.exp())[..., None] * k),
        decay=total[..., -1, None, None].exp(),
    )


def _sums_between(g: Tensor) -> Tensor:
    """(..., C) to (..., C, C): the sum of g over i < s <= t, added up term by term.

    The difference of two running sums would lose all digits of a small sum behind a strong decay.
    """
    size = g.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=g.device).tril(-1)
    return g[..., None].masked_fill(~later, 0.0).cumsum(-2)


def _scan(chunks: _Chunks, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Carry the state through the chunks: outputs (B, N, Hv, C, V), start states, final state."""
    outputs, starts = [], []
    pieces = (chunks.q, chunks.k.mT, chunks.inside, chunks.u, chunks.w, chunks.decay)
    for q, kt, inside, u, w, decay in zip(*(x.unbind(1) for x in pieces), strict=True):
        starts.append(state)
        u = u - w @ state
        outputs.append(q @ state + inside @ u)
        state = decay * state + kt @ u
    return torch.stack(outputs, 1), torch.stack(starts, 1), state


def short_conv(x: Tensor, w: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.short_conv`: W shifted products, several times faster on a CPU than `conv1d`."""
    tokens = x.shape[1]
    seen = torch.cat([state, x], 1)
    w = w.to(x.dtype)
    y = seen[:, :tokens] * w[:, 0]
    for shift in range(1, w.shape[1]):
        y = torch.addcmul(y, seen[:, shift : shift + tokens], w[:, shift])
    return y, seen[:, tokens:]
