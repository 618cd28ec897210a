"""Rounded weights: close to what they stand for, smaller, and only where they fit."""

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from kairos_env.errors import OptionError
from kairos_env.world_model.quantise import (
    WEIGHTS,
    WeightOnlyLinear,
    WeightPrecision,
    nbytes,
    quantise,
    widened,
)
from kairos_env.world_model.quantise import round_int4 as int4

ERROR = {"int8": 0.01, "fp8": 0.04, "int4": 0.1}
"""Relative error of a product with normal weights."""


def linear(inputs: int = 64, outputs: int = 48) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", WEIGHTS)
def test_products_are_near_those_of_the_weights(
    precision: WeightPrecision, dtype: torch.dtype
) -> None:
    layer = linear().to(dtype)
    rounded = WeightOnlyLinear(layer, precision)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    y, exact = (
        rounded(x).float(),
        nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float()),
    )
    assert y.shape == exact.shape
    assert rounded(x).dtype == dtype
    assert (y - exact).norm() < ERROR[precision] * exact.norm()
    error = (rounded.weight.float() - layer.weight.float()).norm()
    assert error < ERROR[precision] * layer.weight.float().norm()


def test_four_bits_off_the_cpu_mean_the_same_weight() -> None:
    layer = linear()
    packed, scales = int4(layer.weight.to("meta"))
    assert packed.shape == (48, 32)
    groups = layer.weight.unflatten(1, (-1, 32))
    low, high = groups.amin(2), groups.amax(2)
    scale = (high - low) / 15
    levels = ((groups - low[..., None]) / scale[..., None]).round().flatten(1).to(torch.int32)
    packed = (levels[:, ::2] * 16 + levels[:, 1::2]).to(torch.uint8)
    scales = torch.stack([scale, low + 8 * scale], -1).transpose(0, 1)
    torch.testing.assert_close(
        widened(packed, scales, "int4"), WeightOnlyLinear(layer, "int4").weight, atol=1e-5, rtol=0
    )


def test_only_blocks_are_rounded_and_only_layers_that_fit() -> None:
    block = nn.ModuleDict({"wide": linear(), "odd": linear(40, 10)})
    model = nn.ModuleDict({"blocks": nn.ModuleList([block]), "head": linear()})
    before = nbytes(model)
    quantise(model, "int4")
    assert isinstance(block["wide"], WeightOnlyLinear)
    assert isinstance(block["odd"], nn.Linear)
    assert isinstance(model["head"], nn.Linear)
    assert nbytes(model) < 0.7 * before


@pytest.mark.parametrize("precision", WEIGHTS)
def test_a_dream_with_rounded_weights_stays_near_the_dream(precision: WeightPrecision) -> None:
    states = []
    for chosen in ("float32", precision):
        env = gymnasium.make("kairos_env:Kairos-v0", world="push", precision=chosen)
        env.reset(seed=0)
        chunk = np.full(env.action_space.shape, 0.5, np.float32)
        states.append([env.step(chunk)[4]["state"] for _ in range(3)])
    apart = np.abs(np.subtract(*states)).max()
    assert 0 < apart < 0.05


def test_an_unknown_precision_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'int8'.*Did you mean 'int8'"):
        gymnasium.make("kairos_env:Kairos-v0", world="untrained", precision="int 8")
