"""`kairos bench contraction`: how the delta rule forgets errors, measured on the kernels.

One token maps the memory S to A S + b k v', linear in S. Two memories that read the same tokens
therefore approach each other by the norm of A, and a memory that reads perturbed tokens strays by
e_t = A_t e_(t-1) + d_t, exactly. Everything here follows from these two lines (docs/theory.md):

    factor      the norm of A has a closed form for both update forms, below 1 for unit keys
    chain       measured error <= exact products <= recursion of factors <= closed bound
    half-lives  what the heads of a trained world do with it

B settings, T tokens, K key size, V value size; a decay, b strength of the write, k key, v value.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kairos_env.benchmarks.machine import write_results
from kairos_env.benchmarks.transformer import own_model
from kairos_env.kernels.gated_delta import gated_delta_rule
from kairos_env.kernels.gated_delta.op import Form, gated_delta_boundaries
from kairos_env.terminal import run_command
from kairos_env.world_model.delta_net import DeltaState, GatedDeltaNet

if TYPE_CHECKING:
    from kairos_env.worlds import World

FORMS: tuple[Form, ...] = ("paper", "fla")
SIZES = ((2, 3), (4, 4), (8, 8), (16, 8))
"""Key and value sizes among which the settings are shared."""
EQUALITY = 1e-10
"""Relative difference up to which float64 counts as equal."""
CLASSES = (5.0, 50.0, 500.0, math.inf)
"""Half-lives in tokens by which the bounds are reported."""


@dataclass(frozen=True, kw_only=True)
class ContractionBench:
    """Check theorem 2 on the kernels and read the half-lives of a trained world."""

    settings: int = 1000
    """Random settings, half of them in each update form."""
    tokens: int = 48
    world: str = "push"
    """Whose heads to read: a bundled world's name or a folder; empty for none."""
    frames: int = 100
    """Dreamed frames over which its heads are watched."""
    seed: int = 0
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """A few settings and frames, to see that it runs; writes nothing unless --out is given."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        least = 2 * len(SIZES)
        if self.settings < least:
            raise ValueError(f"--settings must be at least {least}, got {self.settings}")
        for name in ("tokens", "frames"):
            if getattr(self, name) < 2:
                raise ValueError(f"--{name} must be at least 2, got {getattr(self, name)}")


# ---- one token


def factor(a: Tensor, b: Tensor, k: Tensor, form: Form) -> Tensor:
    """How much one token shrinks a difference of memories: the spectral norm of A, K >= 2.

    A is a I - b kk' (paper) or a (I - b kk') (fla): symmetric, with the eigenvalue a across k and
    a - b|k|^2 or a (1 - b|k|^2) along it.
    """
    square = k.square().sum(-1)
    along = (a - b * square).abs() if form == "paper" else a * (1 - b * square).abs()
    return torch.maximum(a, along)


def transition(a: Tensor, b: Tensor, k: Tensor, form: Form) -> Tensor:
    """The matrix A of one token, (..., K, K)."""
    eye = torch.eye(k.shape[-1], dtype=k.dtype)
    erase = b[..., None, None] * k[..., :, None] * k[..., None, :]
    kept = a[..., None, None]
    return kept * eye - erase if form == "paper" else kept * (eye - erase)


def kernel_transition(
    a: Tensor, b: Tensor, k: Tensor, form: Form, backend: str | None = None
) -> Tensor:
    """The same matrix as a kernel applies it: what it makes of the memory I when v is zero."""
    N, K = k.shape
    key = k.view(N, 1, 1, K)
    precise = torch.float64 if k.dtype == torch.float64 else torch.float32
    state = torch.eye(K, dtype=precise).expand(N, 1, K, K)
    gates = a.log().view(N, 1, 1), b.view(N, 1, 1)
    _, after = gated_delta_rule(
        key, key, torch.zeros_like(key), *gates, state=state, form=form, backend=backend
    )
    return after[:, 0]


# ---- many tokens


class Tokens(NamedTuple):
    """B sequences of what the rule reads."""

    a: Tensor
    """(B, T), in (0, 1)."""
    b: Tensor
    """(B, T), in (0, 1)."""
    k: Tensor
    """(B, T, K), unit length."""
    v: Tensor
    """(B, T, V)."""


class Chain(NamedTuple):
    """The error after the last token and four bounds of it, loosest last, each (B,)."""

    measured: Tensor
    products: Tensor
    """Sum over t of |d_t| times the norm of the product of all later A."""
    recursion: Tensor
    """r_t = factor_t r_(t-1) + |d_t|."""
    closed: Tensor
    """max |d| / (1 - max factor)."""
    constants: Tensor
    """The same with |d| bounded by the largest memory, key and value and the input errors."""


def draw(B: int, T: int, sizes: tuple[int, int], generator: torch.Generator) -> Tokens:
    """Random sequences: half-lives over four decades, keys from scattered to nearly equal."""
    K, V = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    half_life = 0.5 * 10 ** (4 * uniform(B, 1)) * (0.5 * normal(B, T)).exp()
    alike = uniform(B, 1, 1)
    keys = alike * normal(B, 1, K) + (1 - alike) * normal(B, T, K)
    return Tokens(2 ** (-1 / half_life), uniform(B, T), unit(keys), normal(B, T, V))


def perturbed(tokens: Tokens, generator: torch.Generator) -> Tokens:
    """The same sequences as somebody reads them whose inputs are off, each by its own amount."""
    B = len(tokens.a)
    size = 10 ** (-1 - 3 * torch.rand(B, dtype=torch.float64, generator=generator))

    def off(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        return noise * size.view(B, *[1] * (x.ndim - 1))

    return Tokens(
        2 ** (tokens.a.log2() * off(tokens.a).exp()),
        (tokens.b + off(tokens.b)).clamp(1e-6, 1 - 1e-6),
        unit(tokens.k + off(tokens.k)),
        tokens.v + off(tokens.v),
    )


def unit(x: Tensor) -> Tensor:
    """Length 1 over the last axis."""
    y: Tensor = x / x.norm(dim=-1, keepdim=True)
    return y


def memories(tokens: Tokens, form: Form, start: Tensor | None = None) -> Tensor:
    """The kernel's memory before and after every token: (B, T + 1, K, V)."""
    a, b, k, v = tokens
    key = k[:, :, None]
    _, before, last = gated_delta_boundaries(
        key,
        key,
        v[:, :, None],
        a.log()[:, :, None],
        b[:, :, None],
        chunk_tokens=1,
        state=start,
        form=form,
        backend="reference",
    )
    return torch.cat([before[:, :, 0], last], dim=1)


def chain(true: Tokens, read: Tokens, form: Form) -> tuple[Chain, Tensor]:
    """Measured error and its bounds, and how far the linear formula is from the error, relative.

    The increments d_t are measured as well: the token as it was read against the true token, both
    on the memory of the one who reads wrongly.
    """
    B, T, K = true.k.shape
    right, wrong = memories(true, form), memories(read, form)
    one = Tokens(*(x.flatten(0, 1)[:, None] for x in true))
    step = memories(one, form, wrong[:, :-1].flatten(0, 1)[:, None])[:, 1]
    d = wrong[:, 1:] - step.view(B, T, *step.shape[1:])  # (B, T, K, V)
    size = d.flatten(2).norm(dim=-1)
    A, rho = transition(true.a, true.b, true.k, form), factor(true.a, true.b, true.k, form)
    later = torch.eye(K, dtype=A.dtype).expand(B, K, K)
    linear, products = torch.zeros_like(d[:, 0]), torch.zeros_like(size[:, 0])
    for t in reversed(range(T)):
        linear = linear + later @ d[:, t]
        products = products + torch.linalg.matrix_norm(later, ord=2) * size[:, t]
        later = later @ A[:, t]
    recursion = torch.zeros_like(products)
    for t in range(T):
        recursion = rho[:, t] * recursion + size[:, t]
    error = (wrong - right)[:, -1]
    away = (error - linear).flatten(1).norm(dim=-1) / wrong[:, -1].flatten(1).norm(dim=-1)
    room = 1 - rho.amax(1)
    bounds = Chain(
        measured=error.flatten(1).norm(dim=-1),
        products=products,
        recursion=recursion,
        closed=size.amax(1) / room,
        constants=increment_bound(true, read, wrong) / room,
    )
    return bounds, away


def increment_bound(true: Tokens, read: Tokens, memory: Tensor) -> Tensor:
    """Lemma 4: a bound of every |d_t| by constants of the sequence, (B,).

    It holds for both forms where keys have unit length and a, b lie in (0, 1).
    """
    S = memory.flatten(2).norm(dim=-1).amax(1)
    K, V = (
        torch.maximum(x.norm(dim=-1), y.norm(dim=-1)).amax(1)
        for x, y in ((true.k, read.k), (true.v, read.v))
    )
    da, db = ((x - y).abs().amax(1) for x, y in ((true.a, read.a), (true.b, read.b)))
    dk, dv = ((x - y).norm(dim=-1).amax(1) for x, y in ((true.k, read.k), (true.v, read.v)))
    bound: Tensor = S * da + K * (V + S * K) * db + K * dv + (V + 2 * S * K) * dk
    return bound


# ---- sections


def factor_section(bench: ContractionBench) -> dict[str, Any]:
    """The closed form of the factor against the kernels' own matrices."""
    generator = torch.Generator().manual_seed(bench.seed)
    count = bench.settings // (2 * len(SIZES))
    rows = []
    for form in FORMS:
        errors: dict[str, float] = {}
        largest = 0.0
        for sizes in SIZES:
            a, b, k, _ = (x[:, 0] for x in draw(count, 1, sizes, generator))
            exact = factor(a, b, k, form)
            largest = max(largest, exact.max().item())
            for name, backend, dtype in (
                ("reference, float64", "reference", torch.float64),
                ("torch, float32", "torch", torch.float32),
                ("chosen here, float32", None, torch.float32),
            ):
                A = kernel_transition(a.to(dtype), b.to(dtype), k.to(dtype), form, backend)
                norm = torch.linalg.matrix_norm(A.double(), ord=2)
                off = (norm - exact).abs().max().item()
                errors[name] = max(errors.get(name, 0.0), off)
        rows.append({"form": form, "largest_factor": largest, "largest_error": errors})
    return {"settings": 2 * count * len(SIZES), "rows": rows}


def chain_section(bench: ContractionBench) -> dict[str, Any]:
    """Equality and the chain of bounds over random settings, and how loose each bound is."""
    generator = torch.Generator().manual_seed(bench.seed)
    chains, half_lives, asked, sums, away = [], [], [], [], 0.0
    shares = [(form, sizes) for form in FORMS for sizes in SIZES]
    for i, (form, sizes) in enumerate(shares):
        count = bench.settings // len(shares) + (i < bench.settings % len(shares))
        true = draw(count, bench.tokens, sizes, generator)
        bounds, off = chain(true, perturbed(true, generator), form)
        chains.append(torch.stack(bounds))  # (5, count)
        half_lives.append((-1 / true.a.log2()).median(1).values)
        asked.append(true.k.square().sum(-1) < 1 - true.a)
        sums.append(true.a + true.b)
        away = max(away, off.max().item())
    values, half_life = torch.cat(chains, 1), torch.cat(half_lives)
    lower, upper = values[:-1], values[1:]
    violated = lower > upper * (1 + EQUALITY)
    return {
        "settings": values.shape[1],
        "tokens": bench.tokens,
        "violations": int(violated.sum()),
        "linear_formula_off_by": away,
        "equal_within": EQUALITY,
        # The paper asks for |k|^2 < 1 - a and shrinks by a + b|k|^2; here |k| = 1.
        "paper_condition_holds": _share(asked),
        "paper_factor_at_least_1": _share([total >= 1 for total in sums]),
        "looseness": _looseness(values, half_life),
    }


def _share(parts: Sequence[Tensor]) -> float:
    return torch.cat([part.flatten() for part in parts]).double().mean().item()


def _looseness(values: Tensor, half_life: Tensor) -> list[dict[str, Any]]:
    """Each bound divided by the measured error, by half-life."""
    rows, low = [], 0.0
    for high in CLASSES:
        chosen = (half_life >= low) & (half_life < high)
        if chosen.any():
            ratios = values[1:, chosen] / values[0, chosen]
            rows.append(
                {
                    "half_life_from": low,
                    "half_life_to": None if math.isinf(high) else high,
                    "settings": int(chosen.sum()),
                    "median": _by_bound(ratios.median(1).values),
                    "largest": _by_bound(ratios.amax(1)),
                }
            )
        low = high
    return rows


def _by_bound(values: Tensor) -> dict[str, float]:
    return dict(zip(Chain._fields[1:], values.tolist(), strict=True))


def half_life_section(world: "World", frames: int, dreams: int = 8) -> dict[str, Any]:
    """What is left of a memory while a world dreams on, head by head.

    Every frame's linear map is taken from the layer itself: its memory after the frame when it
    started from R, less the same when it started from nothing.
    """
    layers = {
        f"layer {i}": block.delta
        for i, block in enumerate(own_model(world).mixture.video.blocks)
        if isinstance(block.delta, GatedDeltaNet)
    }
    if not layers:
        return {"world": world.name, "layers": {}}
    left = {name: _Retention(layer, dreams) for name, layer in layers.items()}
    handles = [layer.register_forward_pre_hook(left[n].note) for n, layer in layers.items()]
    try:
        _dream(world, frames, dreams, list(left.values()))
    finally:
        for handle in handles:
            handle.remove()
    return {
        "world": world.name,
        "fingerprint": world.fingerprint,
        "unit": "frames",
        "dreams": dreams,
        "frames": frames,
        "layers": {name: one.summary(frames) for name, one in left.items()},
    }


class _Retention:
    """The product of a layer's maps over the frames that were committed to its memory.

    Kept as a matrix of norm 1 and the logarithm of its norm: float32 would lose the rest.
    """

    def __init__(self, layer: GatedDeltaNet, dreams: int) -> None:
        c = layer.config
        self._layer = layer
        self._inputs: tuple[Tensor, DeltaState] | None = None
        eye = torch.eye(c.key_dim) / math.sqrt(c.key_dim)
        self._left = eye.repeat(dreams, c.heads, 1, 1)  # (B, H, K, K)
        self._log = torch.zeros(dreams, c.heads, dtype=torch.float64)

    def note(self, _: object, inputs: tuple[Tensor, DeltaState]) -> None:
        """A forward pass begins; of a step's passes the last one commits."""
        self._inputs = inputs

    @torch.no_grad()
    def commit(self) -> None:
        """The step is over."""
        assert self._inputs is not None
        x, state = self._inputs
        empty = torch.zeros_like(state.memory)
        written = self._after(x, state, empty)
        columns = []
        for part in self._left.split(empty.shape[-1], dim=-1):  # a memory holds V columns
            start = empty.clone()
            start[..., : part.shape[-1]] = part
            columns.append((self._after(x, state, start) - written)[..., : part.shape[-1]])
        left = torch.cat(columns, dim=-1)
        norm = left.flatten(2).norm(dim=-1)
        self._left, self._log = left / norm[..., None, None], self._log + norm.double().log()

    def _after(self, x: Tensor, state: DeltaState, memory: Tensor) -> Tensor:
        return self._layer.forward(x, replace(state, memory=memory))[1].memory

    def summary(self, frames: int) -> dict[str, Any]:
        """Half-lives of each head: at its bias, of a random memory, and of what lasts longest."""
        K = self._left.shape[-1]
        slowest = torch.linalg.matrix_norm(self._left.double(), ord=2).log() + math.log(K) / 2
        return {
            "at_bias": _figures(self._layer.half_lives()),
            "random_memory": _figures(_half_life(self._log, frames)),
            "slowest_direction": _figures(_half_life(self._log + slowest, frames)),
            "left_of_random_memory": _figures(self._log.median(0).values.exp()),
        }


def _half_life(log_left: Tensor, frames: int) -> Tensor:
    """Frames until half is left, (H,), from the logarithm of what is left after `frames`, (B, H).

    The middle dream's.
    """
    lost = -log_left.median(0).values
    return math.log(2) * frames / lost.clamp_min(1e-12)


def _figures(x: Tensor) -> list[float]:
    return [float(f"{value:.3g}") for value in x.tolist()]


def _dream(world: "World", frames: int, dreams: int, watched: Sequence[_Retention]) -> None:
    """Smooth random actions from the world's first starts."""
    model = own_model(world)
    config = model.config
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(dreams) % len(world.starts)
    state = model.start(
        torch.from_numpy(world.starts.frames)[rows],
        torch.from_numpy(world.starts.actions)[rows],
        seeds=torch.arange(dreams),
    )
    action = torch.zeros(dreams, config.chunk, config.action_size)
    for _ in range(-(-frames // config.frames_per_chunk)):
        fresh = torch.randn(dreams, 1, config.action_size, generator=generator)
        action = (0.8 * action + 0.6 * fresh).clamp(-1, 1)
        state, _ = model.step(state, action, decode=False)
        for one in watched:
            one.commit()


# ---- the command


def measure(bench: ContractionBench) -> dict[str, Any]:
    """All sections."""
    results: dict[str, Any] = {"factor": factor_section(bench), "chain": chain_section(bench)}
    if bench.world:
        from kairos_env.worlds import load_world

        results["half_lives"] = half_life_section(load_world(bench.world), bench.frames)
    return results


def main(argv: Sequence[str]) -> int:
    """`kairos bench contraction`; fails when the theorem does."""
    return run_command("kairos bench contraction", ContractionBench, run, argv, also=())


def run(bench: ContractionBench) -> int:
    """Measure, print, write; 1 when a bound was broken."""
    if bench.quick:
        bench = replace(bench, settings=80, tokens=16, frames=10)
    torch.set_num_threads(1)
    results = measure(bench)
    _show(results)
    if not bench.quick or bench.out is not None:
        Console().print(f"written to {write_results('contraction', results, folder=bench.out)}")
    linear = results["chain"]["linear_formula_off_by"] <= EQUALITY
    return int(results["chain"]["violations"] > 0 or not linear)


def _show(results: Mapping[str, Any]) -> None:
    console = Console()
    table = Table("form", "largest factor", *results["factor"]["rows"][0]["largest_error"])
    for row in results["factor"]["rows"]:
        errors = [f"{error:.1e}" for error in row["largest_error"].values()]
        table.add_row(row["form"], f"{row['largest_factor']:.5f}", *errors)
    console.print("factor of one token: kernels against the closed form", table)
    found = results["chain"]
    console.print(
        f"{found['settings']} settings of {found['tokens']} tokens: {found['violations']} "
        f"violations; the linear formula is off by {found['linear_formula_off_by']:.1e}"
    )
    table = Table("half-life, tokens", "settings", *Chain._fields[1:])
    for row in found["looseness"]:
        upper = "" if row["half_life_to"] is None else f"{row['half_life_to']:g}"
        cells = [f"{value:.3g}" for value in row["median"].values()]
        table.add_row(f"{row['half_life_from']:g} - {upper}", str(row["settings"]), *cells)
    console.print("each bound divided by the measured error, median", table)
    for layer, row in results.get("half_lives", {}).get("layers", {}).items():
        console.print(f"{results['half_lives']['world']}, {layer}: half-lives in frames", row)
