"""The gated delta rule by flash-linear-attention, for CUDA (the `gpu` extra).

Their op gives no states between chunks of ours, so boundaries cost one call a chunk. It computes in
16 bits, or in TF32 for float32 inputs, and is therefore chosen by itself for 16-bit inputs only.

B batch, T tokens, Hk key heads, Hv value heads, K key size, V value size.
"""

import importlib.util

import torch
from torch import Tensor

LARGEST_KEY = 256


def obstacle(
    *, form: str, key_size: int, value_size: int, dtype: torch.dtype, asked: bool, **_: object
) -> str | None:
    """Why their op cannot, or should not, run in this case."""
    if importlib.util.find_spec("fla") is None:
        return 'flash-linear-attention is not installed: pip install "kairos-env[gpu]"'
    if form != "fla":
        return f"their op has no form {form!r}"
    if key_size != value_size or key_size > LARGEST_KEY:
        return f"their op is fast for key size = value size <= {LARGEST_KEY} only"
    if dtype == torch.float64 or (dtype == torch.float32 and not asked):
        return f"too coarse for {dtype}"
    return None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch gives no type
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
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    outputs, boundaries = [], []
    pieces = (torch.split(x, chunk_tokens, 1) for x in (q, k, v, g.float(), beta.float()))
    for chunk in zip(*pieces, strict=True):
        boundaries.append(state)
        o, state = chunk_gated_delta_rule(
            *(x.contiguous() for x in chunk),
            scale=scale,
            initial_state=state,
            output_final_state=True,
        )
        outputs.append(o)
    return torch.cat(outputs, 1), torch.stack(boundaries, 1), state
