"""Tensors that never change, computed once: frequencies, places, schedules, constants."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def table(make: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """Remember what `make` gives for each of its (hashable) arguments. Do not write into it.

    A table that a dream asks for first is made outside of its inference mode, so that training may
    use it too. The compiler traces `make` itself: it would warn of a memory of old calls.
    """

    def kept(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    remembered = lru_cache(maxsize=64)(kept)

    @wraps(make)
    def get(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        if torch.compiler.is_compiling():
            return make(*args, **kwargs)
        found: Value = remembered(*args, **kwargs)  # type: ignore[arg-type]  # all are hashable
        return found

    return get


@table
def frequencies(count: int, device: torch.device) -> Tensor:
    """What positions and levels are multiplied with: 10000^(-j / count), float64 (count,)."""
    j = torch.arange(count, dtype=torch.float64, device=device)
    return 10000.0 ** (-j / max(count, 1))
