"""Weights in 8 or 4 bits: less memory and less to read, for a little error.

| precision | a weight is | bytes | the product |
|---|---|---|---|
| int8 | a row's scale times -127 .. 127 | 1 | aten's int8 kernel on a CPU |
| fp8 | a row's scale times a float8 (e4m3) | 1 | widened first |
| int4 | a group's offset plus its scale times 0 .. 15 | 1/2 | aten's int4 kernel on a CPU |

Only the weights of the blocks' linear layers are rounded, where most of a transformer is; sums,
norms, convolutions and activations stay as they are. Off the CPU int8 and int4 are widened first.

Shapes: N outputs, K inputs, G groups of `GROUP` inputs.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WeightPrecision = Literal["int8", "int4", "fp8"]
WEIGHTS: tuple[WeightPrecision, ...] = ("int8", "int4", "fp8")

GROUP = 32
"""Inputs that share a scale in 4 bits."""
INT4_OUTPUTS = 16
"""The int4 kernel wants a multiple of so many outputs."""
FP8 = torch.float8_e4m3fn


class WeightOnlyLinear(nn.Module):
    """A linear layer whose weight is rounded; its input and output stay what they are."""

    rounded: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, precision: WeightPrecision) -> None:
        super().__init__()
        self.precision = precision
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rounded, scale = ROUND[precision](linear.weight.detach())
        self.register_buffer("rounded", rounded)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weight that the layer stands for, (N, K)."""
        one = torch.eye(self.in_features, dtype=self.scale.dtype, device=self.scale.device)
        return self._product(one).T

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        y = self._product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _product(self, x: Tensor) -> Tensor:
        """Rows (M, K) by the weight: (M, N)."""
        scale = self.scale.to(x.dtype)
        if self.precision == "fp8" or x.device.type != "cpu":
            return F.linear(x, widened(self.rounded, scale, self.precision))
        if self.precision == "int8":
            return torch._weight_int8pack_mm(x, self.rounded, scale)
        product: Tensor = torch._weight_int4pack_mm_for_cpu(x, self.rounded, GROUP, scale)
        return product


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (N, K) and the scale of each row (N,)."""
    scale = weight.float().abs().amax(1).clamp_min(1e-12) / 127
    rounded = (weight.float() / scale[:, None]).round().clamp(-127, 127)
    return rounded.to(torch.int8), scale.to(weight.dtype)


def round_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float8 (N, K) and the scale of each row (N,)."""
    scale = weight.float().abs().amax(1).clamp_min(1e-12) / torch.finfo(FP8).max
    return (weight.float() / scale[:, None]).to(FP8), scale.to(weight.dtype)


def round_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two weights a byte, and the scale and middle of each group (G, N, 2).

    On a CPU the bytes lie as its kernel wants them, elsewhere row by row.
    """
    groups = weight.float().unflatten(1, (-1, GROUP))  # (N, G, GROUP)
    low, high = groups.amin(2), groups.amax(2)
    scale = ((high - low) / 15).clamp_min(1e-12)
    levels = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
    levels = levels.flatten(1).to(torch.int32)  # (N, K)
    middle = low + 8 * scale  # the kernel computes (level - 8) scale + middle
    scales = torch.stack([scale, middle], -1).transpose(0, 1).contiguous().to(weight.dtype)
    if weight.device.type == "cpu":
        return torch._convert_weight_to_int4pack_for_cpu(levels, 1), scales
    return (levels[:, ::2] * 16 + levels[:, 1::2]).to(torch.uint8), scales


ROUND = {"int8": round_int8, "int4": round_int4, "fp8": round_fp8}


def widened(rounded: Tensor, scale: Tensor, precision: WeightPrecision) -> Tensor:
    """The weight (N, K) in the scale's type."""
    if precision != "int4":
        return rounded.to(scale.dtype) * scale[:, None]
    levels = torch.stack([rounded // 16, rounded % 16], -1).flatten(1)  # (N, K)
    groups = levels.unflatten(1, (-1, GROUP)).to(scale.dtype)
    spread, middle = scale.transpose(0, 1).unbind(-1)  # (N, G)
    whole: Tensor = ((groups - 8) * spread[..., None] + middle[..., None]).flatten(1)
    return whole


def quantise(model: nn.Module, precision: WeightPrecision) -> nn.Module:
    """Round the linear layers of all blocks, in place; layers that do not fit stay as they are."""
    for name, parent in list(model.named_modules()):
        if ".blocks." not in f".{name}.":
            continue
        for child, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and fits(layer, precision):
                setattr(parent, child, WeightOnlyLinear(layer, precision))
    return model


def fits(layer: nn.Linear, precision: WeightPrecision) -> bool:
    """Whether the layer's sizes suit the kernel."""
    if precision != "int4":
        return True
    return layer.in_features % GROUP == 0 and layer.out_features % INT4_OUTPUTS == 0


def nbytes(model: nn.Module) -> int:
    """Bytes of all weights."""
    return sum(x.numel() * x.element_size() for x in model.state_dict().values())
