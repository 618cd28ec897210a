"""Window attention: fast = twin, streaming = parallel, nothing leaks from the future or a slot."""

import itertools

import pytest
import torch
from torch import Tensor

from kairos_env.kernels.window_attention import (
    FrameCache,
    append_frames,
    window_attention,
    window_attention_step,
)
from kairos_env.kernels.window_attention import torch as grouped

H, D = 2, 4
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}
WINDOWS = [(1, 1), (2, 1), (3, 1), (3, 2), (2, 4), (4, 3)]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def streams(
    batch: int, frames: int, tokens: tuple[int, int, int] = (3, 5, 2), dtype=torch.float64
) -> list[Tensor]:
    """q, k, v and the history's keys and values, all with their own number of tokens."""
    counts = (tokens[0], tokens[1], tokens[1], tokens[2], tokens[2])
    return [draw(i, batch, frames, n, H, D, dtype=dtype) for i, n in enumerate(counts)]


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, draw(9, *output.shape, dtype=output.dtype))


@pytest.fixture(params=[1, 10**9], ids=["frame by frame", "in groups"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "BIG_FRAME", request.param)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_fast_equals_twin_forward_and_backward(frames: int, with_history: bool) -> None:
    inputs = [x.requires_grad_() for x in streams(2, frames)]
    q, k, v, hk, hv = inputs
    used = inputs if with_history else inputs[:3]
    for (window, dilation), chunk in itertools.product(WINDOWS, (1, 2, 4)):
        results = []
        for backend in ("torch", "reference"):
            o = window_attention(
                q,
                k,
                v,
                window=window,
                dilation=dilation,
                chunk_frames=chunk,
                history=(hk, hv) if with_history else None,
                backend=backend,
            )
            # one frame has no history: its gradient is zero
            grads = torch.autograd.grad(o, used, draw(9, *o.shape), materialize_grads=True)
            results.append((o, *grads))
        for fast, slow in zip(*results, strict=True):
            torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11)


@pytest.mark.parametrize("frames", [63, 500])
def test_odd_lengths_equal_the_twin(frames: int) -> None:
    inputs = [x.requires_grad_() for x in streams(1, frames, (1, 1, 1))[:3]]
    results = []
    for backend in ("torch", "reference"):
        o = window_attention(*inputs, window=3, dilation=2, chunk_frames=4, backend=backend)
        results.append((o, *gradients(o, inputs)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precisions_stay_close_to_the_twin(dtype: torch.dtype, tolerance: float) -> None:
    q, k, v, _, _ = streams(2, 9, dtype=dtype)
    fast = window_attention(q, k, v, window=3, chunk_frames=2)
    slow = window_attention(
        *(x.double() for x in (q, k, v)), window=3, chunk_frames=2, backend="reference"
    )
    assert fast.dtype == dtype
    torch.testing.assert_close(fast.double(), slow, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(("window", "dilation"), WINDOWS)
def test_streaming_equals_parallel(
    window: int, dilation: int, batch: int, dtype: torch.dtype
) -> None:
    frames = 11
    q, k, v, hk, hv = streams(batch, frames, dtype=dtype)
    for chunk in (1, 2, 3, 5):
        parallel = window_attention(
            q, k, v, window=window, dilation=dilation, chunk_frames=chunk, history=(hk, hv)
        )
        cache = FrameCache.empty(batch, window, dilation, 2, H, D, dtype=dtype)
        steps = []
        for start in range(0, frames, chunk):
            now = slice(start, start + chunk)
            steps.append(
                window_attention_step(
                    q[:, now], k[:, now], v[:, now], cache, window=window, dilation=dilation
                )
            )
            cache = append_frames(cache, hk[:, now], hv[:, now])
        torch.testing.assert_close(torch.cat(steps, 1), parallel, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_prefill_of_several_chunks_equals_chunk_by_chunk(chunk: int, backend: str) -> None:
    window, dilation, frames = 3, 2, 13
    q, k, v, _, _ = streams(2, frames, (3, 4, 4))
    whole = window_attention(q, k, v, window=window, dilation=dilation, chunk_frames=chunk)
    cut = 2 * chunk
    cache = FrameCache.empty(2, window, dilation, 4, H, D, dtype=q.dtype)
    outputs = []
    for part in (slice(0, cut), slice(cut, frames)):
        outputs.append(
            window_attention(
                q[:, part],
                k[:, part],
                v[:, part],
                window=window,
                dilation=dilation,
                chunk_frames=chunk,
                cache=cache,
                backend=backend,
            )
        )
        cache = append_frames(cache, k[:, part], v[:, part])
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=1e-11)


def test_gradients_reach_the_cache() -> None:
    q, k, v, _, _ = streams(2, 1, (3, 4, 4))
    cache = append_frames(
        FrameCache.empty(2, 3, 1, 4, H, D, dtype=q.dtype),
        draw(1, 2, 3, 4, H, D),
        draw(2, 2, 3, 4, H, D),
    )
    cache.k.requires_grad_()
    cache.v.requires_grad_()
    results = [
        gradients(
            window_attention(q, k, v, window=3, cache=cache, backend=backend), [cache.k, cache.v]
        )
        for backend in ("torch", "reference")
    ]
    for fast, slow in zip(*results, strict=True):
        assert slow.abs().max() > 0.01
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11)


def test_a_cache_counts_frames_for_each_item_alone() -> None:
    """Items that started at different times answer as they would alone."""
    window, dilation, tokens = 3, 2, 4
    histories = [draw(n, 1, n, tokens, H, D) for n in (0, 1, 3, 9)]
    caches = [
        append_frames(FrameCache.empty(1, window, dilation, tokens, H, D, dtype=x.dtype), x, 2 * x)
        for x in histories
    ]
    together = FrameCache(
        k=torch.cat([c.k for c in caches]),
        v=torch.cat([c.v for c in caches]),
        frames=torch.cat([c.frames for c in caches]),
    )
    q, k, v, _, _ = streams(4, 3)
    batched = window_attention_step(q, k, v, together, window=window, dilation=dilation)
    for i, cache in enumerate(caches):
        one = slice(i, i + 1)
        alone = window_attention_step(
            q[one], k[one], v[one], cache, window=window, dilation=dilation
        )
        torch.testing.assert_close(batched[one], alone, rtol=0, atol=1e-12)


def test_a_reset_slot_sees_nothing_and_changes_no_neighbour() -> None:
    window, tokens = 4, 3
    q, k, v, _, _ = streams(3, 2)
    full = append_frames(
        FrameCache.empty(3, window, 1, tokens, H, D, dtype=q.dtype),
        draw(1, 3, 5, tokens, H, D),
        draw(2, 3, 5, tokens, H, D),
    )
    before = window_attention_step(q, k, v, full, window=window)
    garbage = full.k.clone()
    garbage[1] = torch.nan
    frames = full.frames.clone()
    frames[1] = 0
    reset = FrameCache(k=garbage, v=garbage.clone().where(garbage.isnan(), full.v), frames=frames)
    after = window_attention_step(q, k, v, reset, window=window)
    fresh = window_attention(q[1:2], k[1:2], v[1:2], window=window, chunk_frames=2)
    torch.testing.assert_close(after[1:2], fresh, rtol=0, atol=1e-12)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("either_way")
def test_a_changed_future_never_changes_the_past() -> None:
    chunk, frames, cut = 2, 10, 6
    inputs = streams(2, frames)
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[:, cut:] = torch.nan
    results = [
        window_attention(q, k, v, window=3, dilation=2, chunk_frames=chunk, history=(hk, hv))
        for q, k, v, hk, hv in (inputs, changed)
    ]
    assert torch.equal(results[0][:, :cut], results[1][:, :cut])
    assert results[1][:, cut:].isnan().all()


def test_a_chunk_sees_both_ways_and_takes_its_own_frames_from_the_stream() -> None:
    q, k, v, hk, hv = streams(1, 4)
    how = {"window": 4, "chunk_frames": 4}
    base = window_attention(q, k, v, history=(hk, hv), **how)
    assert torch.equal(base, window_attention(q, k, v, history=(hk + 1, hv + 1), **how))
    later = v.clone()
    later[:, 3] += 1
    assert (window_attention(q, k, later, history=(hk, hv), **how)[:, 0] != base[:, 0]).all()


def test_appending_leaves_the_old_cache_alone_and_takes_any_number_of_frames() -> None:
    window, dilation = 3, 2
    cache = FrameCache.empty(2, window, dilation, 3, H, D, dtype=torch.float64)
    frames = draw(3, 2, 11, 3, H, D)
    at_once = append_frames(cache, frames, frames)
    assert (cache.k == 0).all()
    assert cache.frames.tolist() == [0, 0]
    one_by_one = cache
    for i in range(11):
        one_by_one = append_frames(one_by_one, frames[:, i : i + 1], frames[:, i : i + 1])
    assert torch.equal(at_once.k, one_by_one.k)
    assert at_once.frames.tolist() == [11, 11]


def test_strided_input_works() -> None:
    x = draw(0, 2, H, 5, 3, D)
    q = x.permute(0, 2, 3, 1, 4)  # (B, T, L, H, D), not contiguous
    torch.testing.assert_close(
        window_attention(q, q, q, window=2),
        window_attention(*(q.contiguous(),) * 3, window=2),
        rtol=0,
        atol=1e-12,
    )


def test_it_compiles_without_a_break(clean_scratch: None) -> None:
    q, k, v, _, _ = streams(1, 6, (3, 4, 4))
    cache = FrameCache.empty(1, 3, 2, 4, H, D, dtype=q.dtype)

    def step(q: Tensor, k: Tensor, v: Tensor, cache: FrameCache) -> tuple[Tensor, FrameCache]:
        o = window_attention(q, k, v, window=3, dilation=2, chunk_frames=2, cache=cache)
        return o, append_frames(cache, k, v)

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v, cache)[0], step(q, k, v, cache)[0])


BAD = {
    "frames differ": ({"k": (2, 4, 3, H, D), "v": (2, 4, 3, H, D)}, {}, "tokens a frame only"),
    "v unlike k": ({"v": (2, 5, 4, H, D)}, {}, "v and k must have one shape"),
    "an axis missing": ({"q": (2, 5, 3, D)}, {}, "q must be .batch, frames, tokens"),
    "no frames": (dict.fromkeys("qkv", (2, 0, 3, H, D)), {}, "no frames"),
    "window zero": ({}, {"window": 0}, "window must be at least 1, got 0"),
    "dilation zero": ({}, {"dilation": 0}, "dilation must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_shapes_are_named(case: str) -> None:
    shapes, options, message = BAD[case]
    inputs = {n: torch.zeros(shapes.get(n, (2, 5, 3, H, D))) for n in "qkv"}
    with pytest.raises(ValueError, match=message):
        window_attention(**inputs, **{"window": 2, **options})


def test_a_cache_of_another_window_is_refused() -> None:
    q, k, v, _, _ = streams(2, 1)
    cache = FrameCache.empty(2, 4, 1, 2, H, D, dtype=q.dtype)
    with pytest.raises(ValueError, match=r"need \(2, 2, tokens"):
        window_attention_step(q, k, v, cache, window=3)
    with pytest.raises(ValueError, match=r"dtype torch\.float64"):
        window_attention_step(
            q, k, v, FrameCache.empty(2, 3, 1, 2, H, D, dtype=torch.float32), window=3
        )
    with pytest.raises(ValueError, match="tokens a frame and k has"):
        window_attention(*streams(2, 2)[:3], window=4, cache=cache)
    with pytest.raises(ValueError, match="the cache holds frames of shape"):
        append_frames(cache, k, v)
    with pytest.raises(ValueError, match="one floating-point dtype"):
        window_attention(q, k.float(), v.float(), window=3)
