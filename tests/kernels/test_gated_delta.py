"""The gated delta rule and its convolution: fast = twin, streaming = parallel, hard inputs."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kairos_env.kernels import dispatch
from kairos_env.kernels.gated_delta import (
    cpu,
    fla,
    gated_delta_boundaries,
    gated_delta_rule,
    reference,
    short_conv,
)

FORMS = ("fla", "paper")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}
KINDS = ("plain", "near-equal keys", "strong decay")
NO_COMPILER = cpu.obstacle(tracing=False)


@pytest.fixture(params=["torch", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and NO_COMPILER is not None:
        pytest.skip(NO_COMPILER)
    return str(request.param)


def draw(
    batch: int,
    tokens: int,
    *,
    key_heads: int = 1,
    heads: int = 2,
    key_size: int = 6,
    value_size: int = 5,
    kind: str = "plain",
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """q, k, v, g, beta and a start state."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q = F.normalize(normal(batch, tokens, key_heads, key_size), dim=-1)
    k = normal(batch, tokens, key_heads, key_size)
    g, beta = -F.softplus(normal(batch, tokens, heads)), normal(batch, tokens, heads).sigmoid()
    if kind == "near-equal keys":  # neighbouring patches of a still video, with beta in (1, 2)
        k = k[:, :1] + 1e-3 * k
        g, beta = 1e-3 * g, 1 + beta
    if kind == "strong decay":  # a memory that is kept, with cliffs
        g = torch.where(torch.rand(g.shape, generator=generator) < 0.1, -30.0, 1e-3 * g)
    k = F.normalize(k, dim=-1)
    v, state = normal(batch, tokens, heads, value_size), normal(batch, heads, key_size, value_size)
    return [x.to(dtype) for x in (q, k, v, g, beta, state)]


def run(inputs: list[Tensor], **how: Any) -> tuple[Tensor, ...]:
    *streams, state = inputs
    return gated_delta_boundaries(*streams, state=state, **how)


def run_with_gradients(inputs: list[Tensor], **how: Any) -> tuple[Tensor, ...]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = run(inputs, **how)
    weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in outputs]
    return *outputs, *torch.autograd.grad(outputs, inputs, weights)


def assert_near(fast: tuple[Tensor, ...], slow: tuple[Tensor, ...], tolerance: float) -> None:
    names = ("o", "boundaries", "final", "dq", "dk", "dv", "dg", "dbeta", "dstate")
    for name, a, b in zip(names[: len(fast)], fast, slow, strict=True):
        size = max(1.0, b.abs().max().item())
        error = (a.to(b.dtype) - b).abs().max().item() / size
        assert error <= tolerance, f"{name} is off by {error}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("tokens", "chunk"), [(1, 1), (63, 63), (100, 17), (150, 70)])
def test_fast_equals_twin_forward_and_backward(
    backend: str, tokens: int, chunk: int, form: str, kind: str
) -> None:
    inputs = draw(2, tokens, key_heads=2, heads=4, kind=kind)
    how: dict[str, Any] = {"chunk_tokens": chunk, "form": form}
    slow = run_with_gradients(inputs, backend="reference", **how)
    assert_near(run_with_gradients(inputs, backend=backend, **how), slow, 1e-11)
    single = [x.float() for x in inputs]
    assert_near(run_with_gradients(single, backend=backend, **how), slow, 2e-5)
    with torch.no_grad():  # stores less on the way
        assert_near(run(single, backend=backend, **how), slow[:3], 2e-5)


def test_500_tokens_equal_the_twin(backend: str) -> None:
    inputs = draw(1, 500, heads=1)
    how: dict[str, Any] = {"chunk_tokens": 128, "form": "fla"}
    slow = run_with_gradients(inputs, backend="reference", **how)
    assert_near(run_with_gradients(inputs, backend=backend, **how), slow, 1e-11)


@pytest.mark.parametrize(("key_size", "value_size"), [(64, 64), (128, 32), (1, 1), (20, 70)])
def test_any_head_size(backend: str, key_size: int, value_size: int) -> None:
    inputs = draw(1, 37, key_size=key_size, value_size=value_size, dtype=torch.float32)
    slow = run_with_gradients([x.double() for x in inputs], chunk_tokens=9, backend="reference")
    assert_near(run_with_gradients(inputs, chunk_tokens=9, backend=backend), slow, 1e-5)


def test_bfloat16_inputs_keep_a_float32_state(backend: str) -> None:
    *streams, _ = (x.to(torch.bfloat16) for x in draw(2, 63))
    o, final = gated_delta_rule(*streams, backend=backend)
    slow, slow_final = gated_delta_rule(*(x.double() for x in streams), backend="reference")
    assert o.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    torch.testing.assert_close(final.double(), slow_final, rtol=0, atol=1e-5)
    torch.testing.assert_close(o.double(), slow, rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("form", FORMS)
def test_streaming_equals_parallel(backend: str, form: str, batch: int, dtype: torch.dtype) -> None:
    tokens = 90
    *streams, state = draw(batch, tokens, dtype=dtype)
    whole, whole_final = gated_delta_rule(*streams, state=state, form=form, backend=backend)
    for cuts in ([1] * tokens, [64, 1, 1, 24], [7, 13, 33, 2, 35], [16] * 5 + [10]):
        now, outputs = state, []
        for piece in zip(*(torch.split(x, cuts, 1) for x in streams), strict=True):
            o, now = gated_delta_rule(*piece, state=now, form=form, backend=backend)
            outputs.append(o)
        torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=TOLERANCE[dtype])
        torch.testing.assert_close(now, whole_final, rtol=0, atol=TOLERANCE[dtype])


def test_boundaries_are_the_states_of_a_stream(backend: str) -> None:
    *streams, state = draw(2, 50)
    _, boundaries, final = gated_delta_boundaries(
        *streams, chunk_tokens=20, state=state, backend=backend
    )
    assert torch.equal(boundaries[:, 0], state)
    for chunk, after in ((0, boundaries[:, 1]), (1, boundaries[:, 2]), (2, final)):
        tokens = slice(20 * chunk, 20 * chunk + 20)
        _, state = gated_delta_rule(*(x[:, tokens] for x in streams), state=state, backend=backend)
        torch.testing.assert_close(after, state, rtol=0, atol=1e-11)


def test_a_gradient_through_boundaries_alone(backend: str) -> None:
    """Training reads the clean stream only through its boundary states."""
    results = []
    for name in (backend, "reference"):
        inputs = [x.requires_grad_() for x in draw(2, 40)]
        _, boundaries, _ = run(inputs, chunk_tokens=16, backend=name)
        weight = torch.linspace(-1, 1, boundaries.numel(), dtype=torch.float64)
        # the queries have no part in any state
        results.append(torch.autograd.grad(boundaries.flatten() @ weight, inputs[1:]))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11)


def test_a_changed_future_never_changes_the_past(backend: str) -> None:
    cut = 41
    *streams, state = draw(2, 60)
    how: dict[str, Any] = {"chunk_tokens": 20, "state": state, "backend": backend}
    o, boundaries, _ = gated_delta_boundaries(*streams, **how)
    changed = [torch.cat([x[:, :cut], x[:, cut:] / 2], 1) for x in streams]
    other, other_boundaries, _ = gated_delta_boundaries(*changed, **how)
    assert torch.equal(o[:, :cut], other[:, :cut])
    assert torch.equal(boundaries, other_boundaries)
    assert (o[:, cut:] != other[:, cut:]).any(-1).all()
    # a NaN spoils its own chunk at most
    poisoned = [torch.cat([x[:, :cut], x[:, cut:] * torch.nan], 1) for x in streams]
    other, other_boundaries, _ = gated_delta_boundaries(*poisoned, **how)
    assert torch.equal(o[:, :40], other[:, :40])
    assert torch.equal(boundaries, other_boundaries)


@pytest.mark.parametrize("size", [5, 64])
def test_a_broken_item_never_changes_its_neighbours(backend: str, size: int) -> None:
    inputs = draw(3, 20, key_size=size, value_size=size, dtype=torch.float32)
    clean = run_with_gradients(inputs, chunk_tokens=20, backend=backend)
    broken = [x.clone() for x in inputs]
    for x in broken:
        x[0] = torch.nan
    for a, b in zip(
        run_with_gradients(broken, chunk_tokens=20, backend=backend), clean, strict=True
    ):
        torch.testing.assert_close(a[1:], b[1:], rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(NO_COMPILER is not None, reason=str(NO_COMPILER))
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(3, 40, heads=4, dtype=torch.float32)
    alone = run_with_gradients(inputs, chunk_tokens=16, backend="cpu")
    monkeypatch.setattr(cpu, "_threads", lambda work: 3)
    together = run_with_gradients(inputs, chunk_tokens=16, backend="cpu")
    assert all(map(torch.equal, alone, together))


def test_strided_inputs_work(backend: str) -> None:
    """Views into one wide projection, as a layer makes them."""
    q, k, v, g, beta, state = draw(2, 21, key_heads=2, heads=2, key_size=4, value_size=4)
    wide = torch.cat([q, k, v], 2)
    views = [*wide.split(2, 2), g.transpose(1, 2).contiguous().transpose(1, 2), beta]
    fast = run_with_gradients([*views, state], chunk_tokens=8, backend=backend)
    slow = run_with_gradients([q, k, v, g, beta, state], chunk_tokens=8, backend="reference")
    assert_near(fast, slow, 1e-11)
    columns = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v, g, beta)]
    backwards = [x.mT.contiguous().mT for x in columns[:3]] + columns[3:]
    assert_near(run([*backwards, state], chunk_tokens=8, backend=backend), slow[:3], 1e-11)


def test_it_compiles_without_a_break(clean_scratch: None) -> None:
    *streams, _ = draw(1, 40)
    compiled = torch.compile(gated_delta_rule, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*streams), gated_delta_rule(*streams))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 3, 63])
def test_short_conv_equals_its_twin(backend: str, tokens: int, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, tokens, 5), (5, width), (2, width - 1, 5))
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    results = []
    for name in (backend, "reference"):
        x = [y.clone().requires_grad_() for y in inputs]
        outputs = short_conv(*x, backend=name)
        weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) for y in outputs]
        grads = torch.autograd.grad(outputs, x, weights, materialize_grads=True)
        results.append((*outputs, *grads))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_short_conv_streams(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 20, 6, generator=generator).to(dtype)
    w = torch.randn(6, 4, generator=generator).to(dtype)
    whole, tail = short_conv(x.mT.contiguous().mT, w, backend=backend)
    for cuts in ([1] * 20, [2, 2, 16], [17, 3]):
        state, outputs = None, []
        for piece in torch.split(x, cuts, 1):
            y, state = short_conv(piece, w, state, backend=backend)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=1e-6)
        assert torch.equal(state, tail)
    causal = F.conv1d(F.pad(x.mT.double(), (3, 0)), w.double()[:, None], groups=6).mT
    torch.testing.assert_close(
        whole.double(), causal, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-5
    )


USUAL = {
    "q": (2, 5, 1, 4),
    "k": (2, 5, 1, 4),
    "v": (2, 5, 2, 4),
    "g": (2, 5, 2),
    "beta": (2, 5, 2),
}
BAD = {
    "q unlike k": ({"q": (2, 5, 1, 3)}, "q and k must be"),
    "v has fewer tokens": ({"v": (2, 4, 2, 4)}, r"got q .* v \(2, 4, 2, 4\)"),
    "g per key head": ({"g": (2, 5, 1)}, r"g and beta must be .* = \(2, 5, 2\)"),
    "3 value heads for 2": (
        {
            "q": (2, 5, 2, 4),
            "k": (2, 5, 2, 4),
            "v": (2, 5, 3, 4),
            "g": (2, 5, 3),
            "beta": (2, 5, 3),
        },
        "value heads must be a multiple of key heads",
    ),
    "no tokens": ({n: (2, 0, *shape[2:]) for n, shape in USUAL.items()}, "at least one token"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_shapes_are_named(case: str) -> None:
    shapes, message = BAD[case]
    inputs = {name: torch.zeros(shapes.get(name, shape)) for name, shape in USUAL.items()}
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(**inputs)


def test_a_state_that_does_not_fit_is_refused() -> None:
    *streams, state = draw(2, 5)
    with pytest.raises(ValueError, match=r"state must be .* \(2, 2, 6, 5\)"):
        gated_delta_rule(*streams, state=state.mT)
    with pytest.raises(ValueError, match=r"in torch\.float64 .* got .* torch\.float32"):
        gated_delta_rule(*streams, state=state.float())
    with pytest.raises(ValueError, match="form must be one of"):
        gated_delta_rule(*streams, form="book")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1"):
        gated_delta_boundaries(*streams, chunk_tokens=0)
    with pytest.raises(ValueError, match="one floating-point dtype"):
        gated_delta_rule(streams[0].float(), *streams[1:])
    with pytest.raises(ValueError, match="on one device, got meta, cpu, cpu"):
        gated_delta_rule(streams[0].to("meta"), *streams[1:])
    with pytest.raises(ValueError, match="x is on cpu and w on meta"):
        short_conv(torch.zeros(2, 5, 3), torch.zeros(3, 4, device="meta"))
    with pytest.raises(ValueError, match="x must be"):
        short_conv(torch.zeros(2, 5, 3), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="the state must be"):
        short_conv(torch.zeros(2, 5, 3), torch.zeros(3, 4), torch.zeros(2, 4, 3))


def test_the_fla_wrapper_feeds_their_op_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument order, layout and boundaries, with the twin in place of their op."""

    def stand_in(q, k, v, g, beta, *, scale, initial_state, output_final_state):
        assert output_final_state
        assert all(x.is_contiguous() for x in (q, k, v, g, beta))
        o, _, final = reference.gated_delta_boundaries(
            q, k, v, g, beta, initial_state, chunk_tokens=10**6, form="fla", scale=scale
        )
        return o, final

    package = ModuleType("fla.ops.gated_delta_rule")
    package.chunk_gated_delta_rule = stand_in  # type: ignore[attr-defined]
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    *streams, state = draw(2, 50, dtype=torch.float32)
    how: dict[str, Any] = {"chunk_tokens": 20, "form": "fla", "scale": 0.3}
    fast = fla.gated_delta_boundaries(*streams, state, **how)
    slow = reference.gated_delta_boundaries(*streams, state, **how)
    assert_near(fast, slow, 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 5e-3)])
def test_fla_agrees_with_the_twin(dtype: torch.dtype, tolerance: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("fla")
    sizes = {"key_size": 64, "value_size": 64, "key_heads": 2, "heads": 4}
    inputs = [x.to("cuda", dtype) for x in draw(2, 300, **sizes)]
    inputs[5] = inputs[5].float()
    how: dict[str, Any] = {"chunk_tokens": 100}
    slow = run_with_gradients([x.double() for x in inputs], backend="reference", **how)
    assert_near(run_with_gradients(inputs, backend="fla", **how), slow, tolerance)
    case = {"form": "fla", "key_size": 64, "value_size": 64, "tracing": False}
    picked = dispatch.choose("gated_delta", device="cuda", dtype=dtype, **case)
    assert picked.backend == ("fla" if dtype == torch.bfloat16 else "torch")


@pytest.mark.gpu
def test_torch_on_cuda_agrees_with_the_twin() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    inputs = [x.to("cuda", torch.float32) for x in draw(2, 300, kind="near-equal keys")]
    slow = run_with_gradients([x.double() for x in inputs], chunk_tokens=64, backend="reference")
    assert_near(run_with_gradients(inputs, chunk_tokens=64, backend="torch"), slow, 2e-5)
