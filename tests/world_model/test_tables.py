"""Tensors computed once serve dreams and training alike."""

import torch
from torch import Tensor

from kairos_env.world_model.tables import table


def test_a_table_is_made_once_for_each_of_its_arguments() -> None:
    calls = []

    @table
    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    assert [double(1), double(2), double(1)] == [2, 4, 2]
    assert calls == [1, 2]


def test_a_table_that_a_dream_asked_for_first_can_be_trained_with() -> None:
    @table
    def ones(count: int) -> Tensor:
        return torch.ones(count)

    with torch.inference_mode():
        ones(3)
    x = torch.zeros(3, requires_grad=True)
    (x * ones(3)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(3))
