"""`kairos bench quantise`: weights in 8 and 4 bits: what they save, and what they cost a dream.

Two places. A bundled world dreams the same starts, seeds and actions with each precision: how far
do its states stray from those of float32? And the linear layers of the published 4B network, one of
each shape, are timed and compared with the weights that they were rounded from.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from kairos_env.benchmarks.machine import write_results
from kairos_env.benchmarks.timing import Clock
from kairos_env.dreams import Precision
from kairos_env.vector_env import DreamVectorEnv
from kairos_env.world_model.presets import PUBLISHED
from kairos_env.world_model.published.mixture import PublishedMixture
from kairos_env.world_model.quantise import (
    GROUP,
    WEIGHTS,
    WeightOnlyLinear,
    WeightPrecision,
    fits,
    nbytes,
)
from kairos_env.worlds import load_world

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", *WEIGHTS)
MARKS = (1, 10, 50)
BYTES: Mapping[str, float] = {"bfloat16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5}


@dataclass(frozen=True, kw_only=True)
class QuantiseBench:
    """Measure weights in 8 and 4 bits on a world and on the layers of the published network."""

    world: str = "push"
    dreams: int = 4
    steps: int = 50
    tokens: tuple[int, ...] = (1, 64)
    """Rows that a layer is given."""
    layout: str = "kairos-4b"
    """Published network whose layers are timed."""
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""


def main(argv: Sequence[str]) -> int:
    """The command."""
    command = tyro.cli(QuantiseBench, args=list(argv), prog="kairos bench quantise")
    console = Console(stderr=True)
    results = {
        "world": world_rows(command),
        "layers": layer_rows(command),
        "layout": layout_rows(command),
    }
    path = write_results("quantise", results, folder=command.out)
    console.print(f"wrote {path}")
    return 0


def world_rows(command: QuantiseBench) -> dict[str, Any]:
    """Size, time and drift of each precision on a world."""
    world = load_world(command.world)
    scale = world.model.heads.state_scale.cpu().numpy()
    rows, reference = {}, None
    for precision in track(PRECISIONS, "dreaming", console=Console(file=sys.stderr)):
        envs = DreamVectorEnv(command.dreams, world=world, precision=precision, decode=False)
        states, seconds = dreamed(envs, command)
        reference = states if reference is None else reference
        apart = np.sqrt(np.square((states - reference) / scale).mean((1, 2)))  # (T,)
        rows[precision] = {
            "megabytes": nbytes(envs.world.dreamer) / 1e6,
            "blocks_megabytes": nbytes(envs.world.model.mixture) / 1e6,
            "step_ms": 1000 * seconds,
            "apart": {str(step): float(apart[step - 1]) for step in MARKS if step <= command.steps},
        }
        envs.close()
    return {"name": world.name, "dreams": command.dreams, "rows": rows}


def dreamed(envs: DreamVectorEnv, command: QuantiseBench) -> tuple[NDArray[np.float32], float]:
    """States (T, B, S) of dreams under random actions, and processor seconds of a step."""
    clock, times = Clock(processor=True), []
    states: list[NDArray[np.float32]] = []
    envs.action_space.seed(0)
    envs.reset(seed=0)
    for _ in range(command.steps):
        actions = envs.action_space.sample()
        times.append(clock.once(partial(step, envs, actions, states)))
    return np.stack(states), float(np.median(times))


def step(
    envs: DreamVectorEnv, actions: NDArray[np.float32], states: list[NDArray[np.float32]]
) -> None:
    """One step of all dreams; keeps their states."""
    states.append(envs.step(actions)[4]["state"])


def layer_rows(command: QuantiseBench) -> list[dict[str, Any]]:
    """Each shape of a linear layer in the layout's blocks: error, and time by number of rows."""
    rows = []
    for shape, count in sorted(shapes_of(command.layout).items()):
        generator = torch.Generator().manual_seed(0)
        layer = nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16).requires_grad_(
            False
        )
        with torch.no_grad():
            layer.weight.normal_(std=1 / math.sqrt(shape[1]), generator=generator)
        layers = {"bfloat16": layer} | {p: WeightOnlyLinear(layer, p) for p in WEIGHTS}
        row: dict[str, Any] = {"outputs": shape[0], "inputs": shape[1], "count": count}
        for M in command.tokens:
            x = torch.randn(M, shape[1], generator=generator).bfloat16()
            row[f"ms_{M}"] = timed(layers, x)
            exact = x.float() @ layer.weight.float().T
            row["error"] = {
                name: float((candidate(x).float() - exact).norm() / exact.norm())
                for name, candidate in layers.items()
            }
        rows.append(row)
    return rows


@torch.inference_mode()
def timed(layers: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Processor milliseconds of each candidate."""
    works = {name: (lambda layer=layer: layer(x)) for name, layer in layers.items()}
    times = Clock(rounds=3, seconds=0.4, processor=True).medians(works)
    return {name: 1000 * seconds for name, seconds in times.items()}


def shapes_of(layout: str) -> dict[tuple[int, int], int]:
    """How often each shape of a linear layer stands in the blocks of a published network."""
    with torch.device("meta"):
        network = PublishedMixture(PUBLISHED[layout])
    counts: dict[tuple[int, int], int] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and ".blocks." in name and layer.out_features >= GROUP:
            shape = (layer.out_features, layer.in_features)
            counts[shape] = counts.get(shape, 0) + 1
    return counts


def layout_rows(command: QuantiseBench) -> dict[str, Any]:
    """Bytes of the whole network at each precision, counted on the meta device."""
    with torch.device("meta"):
        network = PublishedMixture(PUBLISHED[command.layout])
    whole = sum(parameter.numel() for parameter in network.parameters())
    rows = {"bfloat16": 2.0 * whole / 1e9}
    for precision in WEIGHTS:
        saved = sum(
            saving(layer, precision)
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear) and ".blocks." in name and fits(layer, precision)
        )
        rows[precision] = (2.0 * whole - saved) / 1e9
    return {"name": command.layout, "parameters": whole, "gigabytes": rows}


def saving(layer: nn.Linear, precision: WeightPrecision) -> float:
    """Bytes that a rounded layer does not need any more, its scales in bfloat16 counted."""
    N, K = layer.out_features, layer.in_features
    scales = 4 * N * (K // GROUP) if precision == "int4" else 2 * N
    return (2.0 - BYTES[precision]) * N * K - scales
