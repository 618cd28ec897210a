"""Golden cases: tensors computed by the published implementation on small random weights.

A case is NAME.json (configuration, tolerances, what each tensor is) beside NAME.safetensors. The
folder is tests/data/golden unless the environment variable KAIROS_GOLDEN names another one of the
same format; sizes, seeds and even the list of cases may differ there, so tests take everything from
the JSON.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(os.environ.get("KAIROS_GOLDEN") or Path(__file__).parent / "data" / "golden")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One golden case."""

    name: str
    spec: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.spec["config"])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise KeyError(
                f"golden case {self.name} has no tensor {name}; it has {sorted(self.tensors)}"
            )
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self, pattern: str) -> list[str]:
        """Names of the tensors that match a regular expression whole, in file order."""
        return [name for name in self.tensors if re.fullmatch(pattern, name)]

    def variants(self, pattern: str) -> list[str]:
        """What the one group of a pattern captures over all tensor names, without repeats."""
        found = (re.fullmatch(pattern, name) for name in self.tensors)
        return list(dict.fromkeys(match.group(1) for match in found if match))

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors named ``prefix.*``, without it; weights may be those of another case."""
        own = {
            n[len(prefix) + 1 :]: t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")
        }
        if not own and "weights_from" in self.spec:
            return load_case(self.spec["weights_from"]).group(prefix)
        return own


def available(name: str) -> bool:
    """Whether the folder holds this case."""
    return (FOLDER / f"{name}.json").is_file() and (FOLDER / f"{name}.safetensors").is_file()


@lru_cache(maxsize=4)
def _read(name: str) -> Case:
    spec = json.loads((FOLDER / f"{name}.json").read_text())
    return Case(name=name, spec=spec, tensors=load_file(FOLDER / f"{name}.safetensors"))


def load_case(name: str) -> Case:
    """Read one case; skip the calling test, with the reason, where the folder lacks it."""
    if not available(name):
        pytest.skip(f"{FOLDER} holds no golden case {name!r}")
    return _read(name)


def cases(kind: str) -> list[str]:
    """Names of the folder's cases of one kind: ``kind`` itself or ``kind`` with a suffix behind a
    dot or dash.

    Read from the folder while pytest collects; where there is none, ``kind`` itself, so that the
    test skips with a reason.
    """
    found = sorted(
        p.stem for p in FOLDER.glob("*.json") if re.fullmatch(rf"{kind}([.\-].*)?", p.stem)
    )
    return found or [kind]


def tolerance(case: Case, section: str | None = None) -> dict[str, float]:
    """The tolerances {atol, rtol} of a case or of one of its sections."""
    tol = case.spec["tol"] or {}
    if section is not None:
        tol = tol[section]
    if "atol" not in tol:
        raise KeyError(
            f"golden case {case.name} has tolerances per section: name one of {sorted(tol)}"
        )
    return {"atol": float(tol["atol"]), "rtol": float(tol.get("rtol", 0.0))}


# Results that a test of this run has looked at, by case.
compared: dict[str, set[str]] = {}


def compare(case: Case, name: str, tensor: Tensor, *, section: str | None = None) -> None:
    """Assert |a - b| <= atol + rtol |b| against the golden tensor b; booleans must be equal."""
    compare_with(case, name, tensor, case[name], section=section)


def compare_with(
    case: Case, name: str, tensor: Tensor, expected: Tensor, *, section: str | None = None
) -> None:
    """Like `compare`, where the golden tensor of that name had to be brought into our form."""
    compared.setdefault(case.name, set()).add(name)
    assert tensor.shape == expected.shape, (
        f"{case.name}: {name} has shape {tuple(tensor.shape)}, not {tuple(expected.shape)}"
    )
    if expected.dtype == torch.bool:
        assert torch.equal(tensor, expected), (
            f"{case.name}: {name} differs in {int((tensor != expected).sum())} places"
        )
        return
    tol = tolerance(case, section)
    torch.testing.assert_close(
        tensor.detach().to(expected.dtype),
        expected,
        **tol,
        msg=lambda text: f"{case.name}: {name}\n{text}",
    )
