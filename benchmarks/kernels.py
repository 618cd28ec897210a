"""How fast the kernels are: against their twins, against full attention, against the machine.

Nothing is reported unless every fast kernel first agrees with its twin, forward and backward.

H heads, D head size (keys and values), B = 1 throughout; tokens come in frames.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kairos_env.benchmarks.machine import write_results
from kairos_env.benchmarks.timing import Clock, Work, crossover, matmul_peak
from kairos_env.benchmarks.transformer import ageing, make_world, scaling
from kairos_env.kernels import dispatch
from kairos_env.kernels.gated_delta import gated_delta_rule
from kairos_env.kernels.window_attention import (
    FrameCache,
    append_frames,
    window_attention,
    window_attention_step,
)

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
# Twins are slow by design; beyond these sizes they are not asked.
LOOP_TWIN_TOKENS = 4096
DENSE_TWIN_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class KernelBench:
    """Measure the kernels on this machine and write benchmarks/results/kernels-MACHINE.json."""

    tokens: tuple[int, ...] = (256, 1024, 4096, 16384, 65536)
    """Lengths of the sequences."""
    backward_tokens: int = 16384
    """Longest sequence whose backward pass is measured too: full attention takes minutes beyond."""
    frame_tokens: int = 64
    heads: int = 8
    head_size: int = 64
    window: int = 3
    """Frames that a query sees, its own included; with the dilation, as in the published nets."""
    dilation: int = 4
    """Of the dilated window."""
    stream_frames: tuple[int, ...] = (10, 1000, 10000)
    """Frames at which the cost of the next streaming step is measured."""
    rounds: int = 20
    seconds: float = 4.0
    """Most time for one candidate at one size."""
    threads: int | None = None
    """All cores by default."""
    device: Literal["cpu", "cuda"] = "cpu"
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """A few small sizes, to see that it runs; writes nothing unless --out is given."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every section needs."""

    settings: KernelBench
    clock: Clock
    dtype: torch.dtype

    def draw(self, seed: int, *shape: int) -> Tensor:
        """Random numbers, the same in every run."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.settings.device, self.dtype)


class DisagreementError(RuntimeError):
    """A fast kernel does not give its twin's answer: its speed means nothing."""


# ---- inputs


def delta_inputs(bench: Bench, tokens: int) -> list[Tensor]:
    """q, k, v, g, beta as a layer makes them: normalised keys, half-lives from one token up."""
    heads, size = bench.settings.heads, bench.settings.head_size
    q, k, v = (bench.draw(seed, 1, tokens, heads, size) for seed in range(3))
    g = -0.1 * F.softplus(bench.draw(3, 1, tokens, heads).float())
    beta = bench.draw(4, 1, tokens, heads).float().sigmoid()
    return [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta]


def frame_inputs(bench: Bench, tokens: int) -> list[Tensor]:
    """q, k, v in frames."""
    s = bench.settings
    shape = (1, max(1, tokens // s.frame_tokens), min(s.frame_tokens, tokens), s.heads, s.head_size)
    return [bench.draw(seed, *shape) for seed in range(3)]


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token attends all earlier ones: what a transformer without windows would do."""
    q, k, v = (x.flatten(1, -3).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def with_backward(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Work:
    """The function and its gradients, as one piece of work."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    weight = torch.ones_like(function(*inputs))

    def work() -> object:
        return torch.autograd.grad(function(*leaves), leaves, weight)

    return work


# ---- the check that comes first


def check(bench: Bench) -> None:
    """Compare what will be measured with its twin, forward and backward, at an odd length.

    Raises:
        DisagreementError: a number is further from the twin's than its tolerance.
    """
    delta = delta_inputs(bench, 63)
    frames = frame_inputs(bench, 5 * bench.settings.frame_tokens)
    for name, function, inputs in (
        ("gated_delta", _delta, delta),
        ("window_attention", _window(bench, 1), frames),
        ("dilated window_attention", _window(bench, 2), frames),
    ):
        fast = _results(function, inputs, None)
        slow = _results(function, [x.double() for x in inputs], "reference")
        worst = max(
            ((a.double() - b).abs().max() / b.abs().max().clamp(min=1)).item()
            for a, b in zip(fast, slow, strict=True)
        )
        if not worst <= TOLERANCE[bench.dtype]:
            raise DisagreementError(
                f"{name} differs from its twin by {worst:.1e}, more than "
                f"{TOLERANCE[bench.dtype]:.0e}: run the tests of kernels/; no speed is reported"
            )


def _results(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], backend: str | None
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves, backend=backend)
    weight = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    return [output, *torch.autograd.grad(output, leaves, weight.to(output.dtype))]


def _delta(*inputs: Tensor, backend: str | None = None) -> Tensor:
    return gated_delta_rule(*inputs, backend=backend)[0]


def _window(bench: Bench, dilation: int) -> Callable[..., Tensor]:
    def attend(*inputs: Tensor, backend: str | None = None) -> Tensor:
        return window_attention(
            *inputs, window=bench.settings.window, dilation=dilation, backend=backend
        )

    return attend


# ---- sections


def gated_delta_section(bench: Bench) -> dict[str, Any]:
    """The gated delta rule over whole sequences."""
    rows = []
    for tokens in bench.settings.tokens:
        inputs = delta_inputs(bench, tokens)
        candidates: dict[str, Callable[..., Tensor]] = {
            "fast": _delta,
            "torch": lambda *x: _delta(*x, backend="torch"),
            "full": lambda q, k, v, *_: full_attention(q, k, v),
        }
        if tokens <= LOOP_TWIN_TOKENS:
            candidates["twin"] = lambda *x: _delta(*x, backend="reference")
        rows.append(_row(bench, tokens, candidates, inputs))
    # reading with k and q and writing, a multiplication and an addition each
    size = bench.settings.head_size
    return _section(rows, lambda tokens: 6 * tokens * bench.settings.heads * size**2)


def window_section(bench: Bench) -> dict[str, Any]:
    """Windows of frames over whole sequences."""
    settings, rows = bench.settings, []
    for tokens in settings.tokens:
        inputs = frame_inputs(bench, tokens)
        candidates: dict[str, Callable[..., Tensor]] = {
            "fast": _window(bench, 1),
            "dilated": _window(bench, settings.dilation),
            "full": full_attention,
        }
        if tokens <= DENSE_TWIN_TOKENS:
            candidates["twin"] = lambda *x: _window(bench, 1)(*x, backend="reference")
        rows.append(_row(bench, tokens, candidates, inputs))

    def operations(tokens: int) -> int:
        frames = max(1, tokens // settings.frame_tokens)
        pairs = sum(min(i + 1, settings.window) for i in range(frames)) * settings.frame_tokens**2
        return 4 * pairs * settings.heads * settings.head_size

    return _section(rows, operations)


def streaming_section(bench: Bench) -> dict[str, Any]:
    """The cost of the next frame after a short and a long past, reached by streaming it."""
    steps: dict[str, dict[str, Work]] = {"gated_delta": {}, "window_attention": {}, "full": {}}
    q, k, v = frame_inputs(bench, bench.settings.frame_tokens)
    token = delta_inputs(bench, bench.settings.frame_tokens)
    memory, cache, seen = None, _empty_cache(bench), 0
    for frame in sorted(bench.settings.stream_frames):
        for _ in range(frame - seen):
            memory = gated_delta_rule(*token, state=memory)[1]
            cache = append_frames(cache, k, v)
        seen = frame
        steps["gated_delta"][str(frame)] = _delta_step(token, memory)
        steps["window_attention"][str(frame)] = _window_step(bench, (q, k, v), cache)
        if frame <= 1000:  # ten thousand frames of keys and values would not fit
            steps["full"][str(frame)] = _full_step(bench, q, frame)
    clock = Clock(
        device=bench.clock.device, rounds=10 * bench.clock.rounds, seconds=bench.clock.seconds
    )
    return {name: _streaming_row(clock, work) for name, work in steps.items()}


def transformer_section(bench: Bench) -> dict[str, Any]:
    """A whole network: time against frames, and a dream's step against its age."""
    quick = bench.settings.quick
    world = make_world("tiny" if quick else "small", bench.settings.device, bench.dtype)
    frames = (4, 8) if quick else (16, 32, 64, 128, 256, 512)
    clock = Clock(device=bench.clock.device, rounds=3 * bench.clock.rounds, seconds=4.0)
    return {
        "size": "tiny" if quick else "small",
        "parameters": sum(p.numel() for p in world.mixture.parameters()),
        **scaling(world, clock, frames),
        "dream": ageing(world, clock, (2, 4) if quick else bench.settings.stream_frames),
    }


# A section is a function from a Bench to JSON.
SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "gated_delta": gated_delta_section,
    "window_attention": window_section,
    "streaming": streaming_section,
    "transformer": transformer_section,
}


def _row(
    bench: Bench,
    tokens: int,
    candidates: dict[str, Callable[..., Tensor]],
    inputs: Sequence[Tensor],
) -> dict[str, Any]:
    with torch.no_grad():
        forward = bench.clock.medians({n: _bind(f, inputs) for n, f in candidates.items()})
    row: dict[str, Any] = {"tokens": tokens, "forward_ms": _milliseconds(forward)}
    if tokens <= bench.settings.backward_tokens:
        both = {n: with_backward(f, inputs[:]) for n, f in candidates.items() if n != "full"}
        both["full"] = with_backward(candidates["full"], inputs[:3])
        row["forward_backward_ms"] = _milliseconds(bench.clock.medians(both))
    return row


def _bind(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Work:
    return lambda: function(*inputs)


def _milliseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(1e3 * value, 4) for name, value in seconds.items()}


def _section(rows: list[dict[str, Any]], operations: Callable[[int], int]) -> dict[str, Any]:
    for row in rows:
        row["gflops"] = round(1e-6 * operations(row["tokens"]) / row["forward_ms"]["fast"], 2)
    sizes = [row["tokens"] for row in rows]
    crossings = {}
    for kind in ("forward_ms", "forward_backward_ms"):
        measured = [row.get(kind, {}) for row in rows]
        crossings[kind.removesuffix("_ms")] = crossover(
            sizes, [row.get("fast") for row in measured], [row.get("full") for row in measured]
        )
    return {"rows": rows, "faster_than_full_attention_from_tokens": crossings}


def _empty_cache(bench: Bench) -> FrameCache:
    s = bench.settings
    return FrameCache.empty(
        1, s.window, s.dilation, s.frame_tokens, s.heads, s.head_size, s.device, bench.dtype
    )


def _delta_step(token: list[Tensor], memory: Tensor | None) -> Work:
    return lambda: gated_delta_rule(*token, state=memory)


def _window_step(bench: Bench, qkv: tuple[Tensor, Tensor, Tensor], cache: FrameCache) -> Work:
    def step() -> object:
        o = window_attention_step(
            *qkv, cache, window=bench.settings.window, dilation=bench.settings.dilation
        )
        return o, append_frames(cache, *qkv[1:])

    return step


def _full_step(bench: Bench, q: Tensor, frames: int) -> Work:
    s = bench.settings
    keys = bench.draw(0, 1, s.heads, frames * s.frame_tokens, s.head_size)
    query = q[:, 0].transpose(1, 2)
    return lambda: F.scaled_dot_product_attention(query, keys, keys)


def _streaming_row(clock: Clock, work: dict[str, Work]) -> dict[str, Any]:
    with torch.no_grad():
        seconds = clock.medians(work)
    first = next(iter(seconds.values()))
    return {
        "step_ms": _milliseconds(seconds),
        "ratio_to_first": {frame: round(value / first, 4) for frame, value in seconds.items()},
    }


# ---- the command


def measure(settings: KernelBench) -> dict[str, Any]:
    """Check, then measure everything.

    Raises:
        DisagreementError: a fast kernel does not agree with its twin.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dtype = torch.bfloat16 if settings.device == "cuda" else torch.float32
    clock = Clock(device=settings.device, rounds=settings.rounds, seconds=settings.seconds)
    bench = Bench(settings=settings, clock=clock, dtype=dtype)
    check(bench)
    load = round(os.getloadavg()[0], 2)
    sections, peaks = {}, [_peak_gflops(bench)]
    for name, section in SECTIONS.items():
        sections[name] = section(bench)
        peaks.append(_peak_gflops(bench))
    for section_results in sections.values():
        for row in section_results.get("rows", ()):
            row["fraction_of_peak"] = round(row["gflops"] / max(peaks), 3)
    names = ("frame_tokens", "heads", "head_size", "window", "dilation", "rounds")
    return {
        "settings": {
            "dtype": str(dtype).removeprefix("torch."),
            **{name: getattr(settings, name) for name in names},
        },
        "backends": [" ".join(row[:3]) for row in dispatch.describe() if row[1] == settings.device],
        "load_before": load,
        "matmul_peak_gflops": max(peaks),
        "agrees_with_twins_within": TOLERANCE[dtype],
        **sections,
    }


def _peak_gflops(bench: Bench) -> float:
    """Of a large matrix product; asked between the sections, because other work may slow one."""
    size = 256 if bench.settings.quick else 2048
    return round(1e-9 * matmul_peak(bench.clock, bench.dtype, size), 1)


def quicker(settings: KernelBench) -> KernelBench:
    """Small enough for a smoke test."""
    return KernelBench(
        **{
            **vars(settings),
            "tokens": (256, 512),
            "frame_tokens": 16,
            "heads": 2,
            "head_size": 16,
            "stream_frames": (10, 50),
            "rounds": 2,
            "seconds": 0.1,
        }
    )


def main(argv: Sequence[str]) -> int:
    """`kairos bench kernels`."""
    settings = tyro.cli(KernelBench, args=list(argv), prog="kairos bench kernels")
    if settings.quick:
        settings = quicker(settings)
    try:
        results = measure(settings)
    except DisagreementError as error:
        sys.stderr.write(f"kairos bench kernels: {error}\n")
        return 1
    _show(results)
    if not settings.quick or settings.out is not None:
        path = write_results("kernels", results, device=settings.device, folder=settings.out)
        Console().print(f"written to {path}")
    return 0


def _show(results: dict[str, Any]) -> None:
    console = Console()
    console.print(f"matrix product: {results['matmul_peak_gflops']} GFLOP/s")
    for name in ("gated_delta", "window_attention"):
        section = results[name]
        table = Table("tokens", "fast", "twin", "full attention", "of peak", title=f"{name}, ms")
        for row in section["rows"]:
            times = row["forward_ms"]
            cells = [times["fast"], times.get("twin", "-"), times["full"], row["fraction_of_peak"]]
            table.add_row(str(row["tokens"]), *map(str, cells))
        console.print(table)
        console.print(f"faster from {section['faster_than_full_attention_from_tokens']} tokens on")
    table = Table("next frame after", *results["streaming"]["gated_delta"]["step_ms"])
    for name, row in results["streaming"].items():
        table.add_row(f"{name}, ms", *map(str, row["step_ms"].values()))
    console.print(table)
