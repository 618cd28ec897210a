"""Clip attention: the blocked versions against one dense mask, forward and backward."""

import itertools

import pytest
import torch
from torch import Tensor

from kairos_env.kernels.clip_attention import (
    band_attention,
    frame_attention,
    phase_attention,
)
from kairos_env.kernels.clip_attention import torch as blocked


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in "qkv"]


def assert_twins(function, inputs: list[Tensor], tolerance: float = 1e-12, **how) -> None:
    """Outputs and gradients of both backends are equal."""
    results = []
    for backend in ("torch", "reference"):
        output = function(*inputs, backend=backend, **how)
        weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        results.append((output, *torch.autograd.grad((output * weight).sum(), inputs)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("tokens", "reach"), [(1, 0), (7, 0), (63, 5), (63, 61), (63, 200)])
def test_band_equals_its_twin(monkeypatch: pytest.MonkeyPatch, tokens: int, reach: int) -> None:
    monkeypatch.setattr(blocked, "BLOCK", 8)
    assert_twins(band_attention, draw(2, tokens, 3, 4), reach=reach)


@pytest.mark.parametrize("frames", [1, 3, 4, 7, 8, 13])
def test_phases_equal_their_twin_padding_included(
    monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    monkeypatch.setattr(blocked, "BLOCK", 5)
    for dilation, reach in itertools.product((1, 2, 4), (0, 3, 100)):
        assert_twins(phase_attention, draw(2, frames, 3, 2, 4), dilation=dilation, reach=reach)


def test_padding_is_attended() -> None:
    q, k, v = (torch.ones(1, 2, 1, 1, 1) for _ in "qkv")
    # two frames are a whole round of two phases, so another round of zeros follows: each phase
    # holds the frame, logit 1 and value 1, and a padded one, logit 0 and value 0
    output = phase_attention(q, k, v, dilation=2, reach=1)
    torch.testing.assert_close(output.flatten(), torch.ones(2) * torch.sigmoid(torch.tensor(1.0)))


def test_frame_sets_equal_their_twin() -> None:
    sees = [(0,), (0, 1, 2), (0, 1, 2), (1, 4), (4, 2, 0)]
    assert_twins(frame_attention, draw(2, 5, 3, 2, 4), sees=sees)


def test_single_precision_stays_near_its_twin() -> None:
    assert_twins(band_attention, draw(1, 500, 2, 16, dtype=torch.float32), tolerance=2e-4, reach=50)


def test_no_mask_grows_with_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    attend = blocked.F.scaled_dot_product_attention

    def watched(*inputs: Tensor, attn_mask: Tensor | None) -> Tensor:
        sizes.append(0 if attn_mask is None else attn_mask.numel())
        return attend(*inputs, attn_mask=attn_mask)

    monkeypatch.setattr(blocked.F, "scaled_dot_product_attention", watched)
    q, k, v = (torch.zeros(1, 3 * blocked.BLOCK, 1, 1) for _ in "qkv")
    band_attention(q, k, v, reach=10)
    assert max(sizes) == blocked.BLOCK * (blocked.BLOCK + 20)


def test_bad_input_is_refused() -> None:
    q, k, v = (torch.zeros(1, 4, 2, 1, 3) for _ in "qkv")
    flat = [x.flatten(1, 2) for x in (q, k, v)]
    with pytest.raises(ValueError, match=r"share one shape .*q \(1, 8, 1, 3\)"):
        band_attention(flat[0], flat[1][:, 1:], flat[2], reach=1)
    with pytest.raises(ValueError, match="one floating-point dtype"):
        band_attention(flat[0].double(), flat[1], flat[2], reach=1)
    with pytest.raises(ValueError, match="reach must be at least 0, got -1"):
        band_attention(*flat, reach=-1)
    with pytest.raises(ValueError, match="dilation must be at least 1, got 0"):
        phase_attention(q, k, v, dilation=0, reach=1)
    with pytest.raises(ValueError, match="4 query frames need as many sets, got 3"):
        frame_attention(q, k, v, sees=[(0,)] * 3)
    with pytest.raises(ValueError, match=r"frame 2 sees \[4\]; .* 0 to 3"):
        frame_attention(q, k, v, sees=[(0,), (0,), (4,), (0,)])
    with pytest.raises(ValueError, match=r"frame 1 sees \[\]"):
        frame_attention(q, k, v, sees=[(0,), (), (1,), (0,)])
