"""What the kernel tests share: fresh memory holds NaN, so that an unwritten number shows."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        fresh = make(*arguments, **options)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    return poisoned


@pytest.fixture(autouse=True)
def poisoned_scratch(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    if "clean_scratch" not in request.fixturenames:
        monkeypatch.setattr(torch, "empty", _poisoned(torch.empty))
        monkeypatch.setattr(torch, "empty_like", _poisoned(torch.empty_like))
        monkeypatch.setattr(Tensor, "new_empty", _poisoned(Tensor.new_empty))
    return


@pytest.fixture
def clean_scratch() -> None:
    """For what torch itself does with `empty`, such as compiling."""
