"""The public functions: check the input once, pick a backend, call it.

Three ways to look around in a clip. A band counts tokens and does not care where frames begin;
phases count tokens too, among every n-th frame only; frame sets name the frames that each frame
sees.

B batch, N tokens, T frames, L tokens a frame, H heads, D head size.
"""

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from kairos_env.kernels import dispatch
from kairos_env.kernels.clip_attention import reference
from kairos_env.kernels.clip_attention import torch as blocked

BACKENDS: dict[str, ModuleType] = {"torch": blocked, "reference": reference}

FrameSets = Sequence[Sequence[int]]
"""For every query frame the frames that it sees, each named once."""


def band_attention(
    q: Tensor, k: Tensor, v: Tensor, *, reach: int, backend: str | None = None
) -> Tensor:
    """Query token i attends key token j when |i - j| <= reach, both ends included.

    Args:
        q: (B, N, H, D) queries.
        k: (B, N, H, D) keys.
        v: (B, N, H, D) values.
        reach: tokens to each side.
        backend: overrides the choice of `kernels.dispatch`.

    Returns:
        (B, N, H, D).

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(q, k, v, 4)
    _check_number("reach", reach, 0)
    output: Tensor = _module(q, backend).band_attention(q, k, v, reach=reach)
    return output


def phase_attention(
    q: Tensor, k: Tensor, v: Tensor, *, dilation: int, reach: int, backend: str | None = None
) -> Tensor:
    """Frames of one phase, f mod dilation, laid end to end, and a band of tokens over them.

    The clip is first padded with whole frames of zeros by `dilation - T mod dilation`, so by a full
    round of phases when it divides. The padded keys are attended like any other: logit 0, value 0.

    Args:
        q: (B, T, L, H, D) queries.
        k: (B, T, L, H, D) keys.
        v: (B, T, L, H, D) values.
        dilation: number of phases.
        reach: tokens to each side, counted inside the phase.
        backend: overrides the choice of `kernels.dispatch`.

    Returns:
        (B, T, L, H, D).

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(q, k, v, 5)
    _check_number("reach", reach, 0)
    _check_number("dilation", dilation, 1)
    module = _module(q, backend)
    output: Tensor = module.phase_attention(q, k, v, dilation=dilation, reach=reach)
    return output


def frame_attention(
    q: Tensor, k: Tensor, v: Tensor, *, sees: FrameSets, backend: str | None = None
) -> Tensor:
    """Query frame i attends all tokens of the frames in `sees[i]`.

    Args:
        q: (B, T, L, H, D) queries.
        k: (B, T, L, H, D) keys.
        v: (B, T, L, H, D) values.
        sees: T non-empty sets of frames.
        backend: overrides the choice of `kernels.dispatch`.

    Returns:
        (B, T, L, H, D).

    Raises:
        ValueError: the shapes do not fit, or a set is empty or names a frame that is not there.
    """
    _check(q, k, v, 5)
    _check_sets(sees, q.shape[1])
    output: Tensor = _module(q, backend).frame_attention(q, k, v, sees=sees)
    return output


def _module(q: Tensor, backend: str | None) -> ModuleType:
    return BACKENDS[dispatch.pick("clip_attention", device=q.device.type, backend=backend)]


def _check(q: Tensor, k: Tensor, v: Tensor, dimensions: int) -> None:
    got = (
        f"q {tuple(q.shape)} {q.dtype}, k {tuple(k.shape)} {k.dtype}, v {tuple(v.shape)} {v.dtype}"
    )
    if q.ndim != dimensions or q.shape != k.shape or k.shape != v.shape or q.numel() == 0:
        axes = "(batch, tokens, heads, size)" if dimensions == 4 else "(batch, frames, tokens, ...)"
        raise ValueError(f"clip_attention: q, k and v must share one shape {axes}, got {got}")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        raise ValueError(f"clip_attention: q, k and v need one floating-point dtype, got {got}")


def _check_number(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"clip_attention: {name} must be at least {least}, got {value}")


def _check_sets(sees: FrameSets, frames: int) -> None:
    if len(sees) != frames:
        raise ValueError(
            f"clip_attention: {frames} query frames need as many sets, got {len(sees)}"
        )
    for frame, seen in enumerate(sees):
        if not seen or len(set(seen)) < len(seen) or not set(seen) <= set(range(frames)):
            raise ValueError(
                f"clip_attention: frame {frame} sees {list(seen)}; name at least one of the frames "
                f"0 to {frames - 1}, each once"
            )
