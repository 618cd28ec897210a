"""Which version of a kernel runs: picked once a case, told on request, overridden by one variable.

`KAIROS_KERNELS=reference` asks for one backend everywhere,
`KAIROS_KERNELS=gated_delta=torch,short_conv=torch` for one each. What was asked for by name is used
or refused with the reason; only the automatic choice moves on to the next backend.
"""

import difflib
import importlib
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch

VARIABLE = "KAIROS_KERNELS"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One version of an operation. The operation's `op.py` maps the name to the module."""

    name: str
    devices: tuple[str, ...] = ()
    """Device types that it runs on; empty means all of them."""
    obstacle: str | None = None
    """`module:function` returning why it should not run on this machine or in this case, or None.
    Called with the case and `asked` (by name), when the backend is first considered."""


_TORCH = (Backend(name="torch"), Backend(name="reference"))
_DELTA = "kairos_env.kernels.gated_delta"
_CPU = Backend(name="cpu", devices=("cpu",), obstacle=f"{_DELTA}.cpu:obstacle")
_FLA = Backend(name="fla", devices=("cuda",), obstacle=f"{_DELTA}.fla:obstacle")
# Fastest first. The reference stands last and is only picked by name.
OPERATIONS: dict[str, tuple[Backend, ...]] = {
    "gated_delta": (_CPU, _FLA, *_TORCH),
    "short_conv": (_CPU, *_TORCH),
    "window_attention": _TORCH,
    "clip_attention": _TORCH,
}
_HEAD = {"key_size": 64, "value_size": 64, "form": "fla"}
# The case of each operation that `describe` tells about, where backends ask for one.
_TYPICAL: dict[tuple[str, str], dict[str, Hashable]] = {
    ("gated_delta", "cpu"): {**_HEAD, "tracing": False, "dtype": torch.float32},
    ("gated_delta", "cuda"): {**_HEAD, "tracing": False, "dtype": torch.bfloat16},
    ("short_conv", "cpu"): {"tracing": False},
    ("short_conv", "cuda"): {"tracing": False},
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was picked for one case, and why."""

    operation: str
    device: str
    backend: str
    reason: str


Case = tuple[tuple[str, Hashable], ...]
_choices: dict[tuple[str, str, str | None, Case], Choice] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch gives no type
def pick(operation: str, *, device: str, backend: str | None = None, **case: Hashable) -> str:
    """The backend's name for an operation on a device type; `case` is what backends may refuse."""
    return choose(operation, device=device, backend=backend, **case).backend


def choose(operation: str, *, device: str, backend: str | None = None, **case: Hashable) -> Choice:
    """The choice for one case; made once and kept until the variable changes."""
    return _choose(operation, device, backend, case)


def requested(operation: str) -> str | None:
    """The backend that the environment variable names for this operation."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    wishes = _parse(text)
    everywhere = wishes.get("*")
    if everywhere not in [backend.name for backend in OPERATIONS[operation]]:
        everywhere = None
    return wishes.get(operation, everywhere)


def describe() -> list[tuple[str, str, str, str]]:
    """Rows (operation, device, backend, reason) for the devices of this machine.

    Looks at everything that could be picked first, so it may compile.
    """
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    choices = [
        _choose(operation, device, None, _TYPICAL.get((operation, device), {}))
        for operation in OPERATIONS
        for device in devices
    ]
    return [(c.operation, c.device, c.backend, c.reason) for c in choices]


def rounds_fast(device: str) -> bool:
    """Whether products in bfloat16 are worth it: on a GPU, or a CPU with instructions for them.

    Without them they are computed all the same, eight times slower than in float32.
    """
    if torch.device(device).type != "cpu":
        return True
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def forget() -> None:
    """Drop all choices, so that the machine is looked at again."""
    _choices.clear()


def _choose(
    operation: str, device: str, backend: str | None, case: Mapping[str, Hashable]
) -> Choice:
    wanted = backend or requested(operation)
    key = (operation, device, wanted, tuple(case.items()))
    if key not in _choices:
        _choices[key] = _decide(operation, device, wanted, case)
    return _choices[key]


def _decide(
    operation: str, device: str, wanted: str | None, case: Mapping[str, Hashable]
) -> Choice:
    if wanted is not None:
        return _asked_for(operation, device, wanted, case)
    reasons: list[str] = []
    for backend in OPERATIONS[operation][:-1]:
        obstacle = _obstacle(backend, device, case, asked=False)
        if obstacle is None:
            reason = "; ".join([*reasons, "the fastest that runs here"])
            return Choice(operation=operation, device=device, backend=backend.name, reason=reason)
        reasons.append(f"not {backend.name}: {obstacle}")
    raise RuntimeError(f"{operation} has no backend for {device}: {'; '.join(reasons)}")


def _asked_for(operation: str, device: str, wanted: str, case: Mapping[str, Hashable]) -> Choice:
    backends = {backend.name: backend for backend in OPERATIONS[operation]}
    if wanted not in backends:
        raise ValueError(_unknown("backend", operation, wanted, list(backends)))
    obstacle = _obstacle(backends[wanted], device, case, asked=True)
    if obstacle is not None:
        raise RuntimeError(
            f"{operation}: the backend {wanted!r} was asked for by name, but cannot run on "
            f"{device}: {obstacle}"
        )
    return Choice(
        operation=operation,
        device=device,
        backend=backends[wanted].name,
        reason="asked for by name",
    )


def _obstacle(
    backend: Backend, device: str, case: Mapping[str, Hashable], *, asked: bool
) -> str | None:
    if backend.devices and device not in backend.devices:
        return f"runs on {', '.join(backend.devices)} only"
    if backend.obstacle is None:
        return None
    module, function = backend.obstacle.split(":")
    reason: str | None = getattr(importlib.import_module(module), function)(**case, asked=asked)
    return reason


def _parse(text: str) -> dict[str, str]:
    """`"a"` means a everywhere it exists; `"op=a,other=b"` one each."""
    wishes: dict[str, str] = {}
    for part in text.split(","):
        operation, _, name = part.strip().rpartition("=")
        wishes[operation.strip() or "*"] = name.strip()
    where = f"{VARIABLE}={text}"
    for operation, name in wishes.items():
        if operation != "*" and operation not in OPERATIONS:
            raise ValueError(_unknown("operation", where, operation, list(OPERATIONS)))
        homes = OPERATIONS.values() if operation == "*" else [OPERATIONS[operation]]
        names = sorted({backend.name for home in homes for backend in home})
        if name not in names:
            raise ValueError(_unknown("backend", where, name, names))
    return wishes


def _unknown(kind: str, where: str, name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{where}: no {kind} {name!r}; there are {', '.join(names)}{hint}"
