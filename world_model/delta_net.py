"""The layer with unbounded memory: a gated delta rule with short convolutions and an output gate.

What it remembers of everything it has read is one matrix per head and the last inputs of the
convolution, so a step costs the same at frame 10 and at frame 100,000. The layer is causal over the
tokens of frames in order.

Shapes: B batch, N tokens (frames flattened), D width, H heads, K key width, V value width, C
convolved channels.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kairos_env.kernels.gated_delta.op import (
    gated_delta_boundaries,
    gated_delta_rule,
    short_conv,
)
from kairos_env.world_model.attention import RMSNorm
from kairos_env.world_model.config import DeltaConfig


@dataclasses.dataclass(frozen=True)
class DeltaState:
    """What the layer remembers."""

    memory: Tensor
    """(B, H, K, V), float32."""
    tail: Tensor
    """(B, W - 1, C): the last inputs of the short convolution, oldest first."""


class GatedDeltaNet(nn.Module):
    """q, k, v = silu(conv(linear)); S <- e^g S; u = beta (v - S^T k); S <- S + k u^T; o = S^T q."""

    def __init__(self, dim: int, config: DeltaConfig, frame_tokens: int, eps: float) -> None:
        super().__init__()
        self.config = config
        # With decay per frame, each of a frame's L tokens carries an L-th of it.
        self.tokens_per_decay = frame_tokens if config.decay == "frame" else 1
        keys, values = config.heads * config.key_dim, config.heads * config.value_dim
        self.query = nn.Linear(dim, keys, bias=False)
        self.key = nn.Linear(dim, keys, bias=False)
        self.value = nn.Linear(dim, values, bias=False)
        self.query_conv = nn.Parameter(torch.empty(keys, 1, config.conv))
        self.key_conv = nn.Parameter(torch.empty(keys, 1, config.conv))
        self.value_conv = nn.Parameter(torch.empty(values, 1, config.conv))
        self.decay = nn.Linear(dim, config.heads, bias=False)
        self.write = nn.Linear(dim, config.heads, bias=False)
        self.log_rate = nn.Parameter(torch.empty(config.heads))
        self.decay_bias = nn.Parameter(torch.empty(config.heads))
        self.gate = nn.Linear(dim, values, bias=False)
        self.output_norm = RMSNorm(config.value_dim, eps)
        self.output = nn.Linear(values, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the convolutions and the decay; the linear layers initialise themselves."""
        for weight in (self.query_conv, self.key_conv, self.value_conv):
            nn.init.uniform_(weight, -(self.config.conv**-0.5), self.config.conv**-0.5)
        if self.config.half_life is None:
            published_decay_(self.log_rate, self.decay_bias)
        else:
            spread_half_lives_(self.log_rate, self.decay_bias, self.config.half_life)
            # Half-lives start where they were put; the input learns to move them.
            nn.init.normal_(self.decay.weight, std=0.02 / math.sqrt(self.decay.in_features))

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: queries, keys and values side by side."""
        return self.config.heads * (2 * self.config.key_dim + self.config.value_dim)

    def empty_state(self, batch: int) -> DeltaState:
        """The memory of somebody who has seen nothing."""
        c = self.config
        weight = self.query.weight
        precise = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return DeltaState(
            weight.new_zeros(batch, c.heads, c.key_dim, c.value_dim, dtype=precise),
            weight.new_zeros(batch, c.conv - 1, self.conv_channels),
        )

    def forward(self, x: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        """Read x (B, N, D) after everything in `state`; returns the output and the new memory."""
        inputs = self._conv_inputs(x)
        q, k, v, tail = self._convolve(inputs, state.tail)
        g, beta = self._gates(x)
        o, memory = gated_delta_rule(q, k, v, g, beta, state=state.memory)
        return self._emit(o, x), DeltaState(memory, tail)

    def forward_with_boundaries(
        self, x: Tensor, state: DeltaState, chunk_tokens: int
    ) -> tuple[Tensor, DeltaState]:
        """Read x and keep the memory *before* each chunk: states (B, N / chunk_tokens, ...)."""
        inputs = self._conv_inputs(x)
        q, k, v, _ = self._convolve(inputs, state.tail)
        g, beta = self._gates(x)
        o, memories, _ = gated_delta_boundaries(
            q, k, v, g, beta, chunk_tokens=chunk_tokens, state=state.memory
        )
        padded = torch.cat([state.tail.to(inputs.dtype), inputs], dim=1)  # (B, W-1 + N, C)
        tails = padded.unfold(1, self.config.conv - 1, chunk_tokens)[:, : memories.shape[1]]
        return self._emit(o, x), DeltaState(memories, tails.transpose(-1, -2))

    def _conv_inputs(self, x: Tensor) -> Tensor:
        return torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1)

    def _convolve(self, inputs: Tensor, tail: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Convolve, and split into normalised queries and keys and plain values, per head."""
        weight = torch.cat([self.query_conv, self.key_conv, self.value_conv])[:, 0]
        y, tail = short_conv(inputs, weight.to(inputs.dtype), tail.to(inputs.dtype))
        c = self.config
        keys = c.heads * c.key_dim
        q, k, v = F.silu(y).split([keys, keys, c.heads * c.value_dim], dim=-1)
        q, k = (unit_length(t.unflatten(-1, (c.heads, c.key_dim))) for t in (q, k))
        return q, k, v.unflatten(-1, (c.heads, c.value_dim)), tail

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log decay g <= 0 and write strength beta in (0, 1), both (B, N, H), at least float32."""
        precise = torch.promote_types(x.dtype, torch.float32)
        rate = self.log_rate.to(precise).exp() / self.tokens_per_decay
        g = -rate * F.softplus(self.decay(x).to(precise) + self.decay_bias.to(precise))
        return g, self.write(x).to(precise).sigmoid()

    def _emit(self, o: Tensor, x: Tensor) -> Tensor:
        gate = self.gate(x).unflatten(-1, (self.config.heads, self.config.value_dim))
        y: Tensor = self.output((self.output_norm(o.to(x.dtype)) * F.silu(gate)).flatten(-2))
        return y

    @torch.no_grad()
    def half_lives(self) -> Tensor:
        """Half-life of each head at its bias, (H,), in frames or tokens as the config counts."""
        return math.log(2) / (self.log_rate.exp() * F.softplus(self.decay_bias))


def unit_length(x: Tensor) -> Tensor:
    """Give x / sqrt(sum x^2 + 1e-6) over the last axis, in at least float32."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    return (precise * torch.rsqrt((precise * precise).sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


@torch.no_grad()
def published_decay_(log_rate: Tensor, decay_bias: Tensor) -> None:
    """The published draw: rate uniform in (0, 16), step log-uniform in (0.001, 0.1)."""
    log_rate.copy_(torch.empty_like(log_rate).uniform_(0.0, 16.0).clamp_min(1e-8).log())
    low, high = math.log(0.001), math.log(0.1)
    step = torch.empty_like(decay_bias).uniform_(low, high).exp().clamp_min(1e-4)
    decay_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus


@torch.no_grad()
def spread_half_lives_(
    log_rate: Tensor, decay_bias: Tensor, half_life: tuple[float, float]
) -> None:
    """Give the heads half-lives from the shortest to the longest, evenly spaced in logarithm."""
    shortest, longest = map(math.log, half_life)
    half_lives = torch.linspace(shortest, longest, log_rate.numel(), dtype=torch.float64).exp()
    decay_bias.zero_()  # softplus(0) = ln 2, so the rate below is one over the half-life
    log_rate.copy_(-half_lives.log())
