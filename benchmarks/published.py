"""`kairos bench published`: what importing costs, and whether an imported network learns to answer.

Memory: a random checkpoint of a billion parameters is written in shards, and loaded by a process of
its own that says how much memory it had at most.

Answering: a small random network in the official layout is imported, dreams, and is trained on for
a few updates with actions; then the same starts are stepped with different actions. The measure is
R² of the difference between two futures, dreamed against true, in latents: 0 for a world that does
not answer.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor

from kairos_env.agents.collect import collect
from kairos_env.agents.training.config import ROBOT_STAGES, TrainConfig
from kairos_env.agents.training.loop import train
from kairos_env.benchmarks import lamp
from kairos_env.benchmarks.machine import write_results
from kairos_env.official import Import, import_official
from kairos_env.world_model.checkpoint import load_official, save_official
from kairos_env.world_model.config import TransformerConfig
from kairos_env.world_model.presets import KAIROS_4B
from kairos_env.world_model.published.mixture import PublishedMixture
from kairos_env.world_model.published.untrained import write_checkpoint
from kairos_env.world_model.published.world import PublishedWorld
from kairos_env.worlds import World, load_world

SHARD = 5 * 10**8
HISTORY = 3


@dataclass(frozen=True, kw_only=True)
class PublishedBench:
    """Measure the memory of loading, and what fine-tuning teaches an imported network."""

    parts: tuple[Literal["answers", "loading"], ...] = ("answers", "loading")
    """What to measure; each has a results file of its own."""
    layers: int = 8
    """Of the network whose loading is measured; the published one has 32."""
    updates: int = 50
    """With actions, after the import."""
    rate: float = 3e-3
    """Their learning rate."""
    episodes: int = 40
    """Recorded for them."""
    pairs: int = 64
    """Pairs of futures that are compared."""
    threads: int = 1
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""


def main(argv: Sequence[str]) -> int:
    """The command; `--load FILE` is what it asks of its own process."""
    if argv[:1] == ["--load"]:
        print(loaded(argv[1]))  # noqa: T201
        return 0
    command = tyro.cli(PublishedBench, args=list(argv), prog="kairos bench published")
    torch.set_num_threads(command.threads)
    console = Console(stderr=True)
    for part in command.parts:
        with tempfile.TemporaryDirectory() as folder:
            results = (
                answers(Path(folder), command)
                if part == "answers"
                else memory(Path(folder), command.layers)
            )
        console.print(f"wrote {write_results(part, results, folder=command.out)}")
    return 0


def memory(folder: Path, layers: int) -> dict[str, Any]:
    """Peak memory of loading a random network of so many layers, against its size."""
    config = replace(KAIROS_4B, layers=KAIROS_4B.layers[:layers])
    size = write_random(config, folder / "random")
    program = [sys.executable, "-m", "kairos_env.cli", "bench", "published", "--load"]
    runs = {
        name: int(subprocess.run([*program, target], capture_output=True, check=True).stdout)
        for name, target in (("nothing", ""), ("checkpoint", str(folder / "random")))
    }
    return {
        "layers": layers,
        "parameters": size // 2,
        "megabytes": size / 1e6,
        "peak_megabytes": runs["checkpoint"] / 1e6,
        "peak_without_megabytes": runs["nothing"] / 1e6,
        "ratio": runs["checkpoint"] / size,
    }


def loaded(path: str) -> int:
    """Bytes that this process had at most, after loading a network and reading every weight."""
    if path:
        network = load_official(path)
        for parameter in network.parameters():
            parameter.detach().sum()
    # Not getrusage: its maximum is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(kilobytes)


def write_random(config: TransformerConfig, folder: Path) -> int:
    """Write a network with random weights in bfloat16, in shards; returns its bytes."""
    with torch.device("meta"):
        network = PublishedMixture(config).to(torch.bfloat16)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.03, 0.03, generator=generator)
    save_official(network, folder, shard_bytes=SHARD)
    return sum(tensor.nbytes for tensor in network.parameters())


def answers(folder: Path, command: PublishedBench) -> dict[str, Any]:
    """R² of two futures' difference before and after a few updates with actions."""
    futures = lamp_futures(command.pairs)
    checkpoint = write_checkpoint(folder / "checkpoint", futures.history.flatten(0, 1))
    options = Import(
        folder=checkpoint, out=folder / "imported", frame_size=lamp.SIDE, clip_frames=4, steps=4
    )
    world = load_world(import_official(options))
    before = r2(world, futures)
    data = folder / "data"
    collect(lamp.NAME, episodes=command.episodes, out=data, chunk=1, frame_size=32, horizon=30)
    stage = replace(
        ROBOT_STAGES[0], steps=command.updates, batch=8, frames=8, learning_rate=command.rate
    )
    config = TrainConfig(
        data=(data,),
        out=folder / "trained",
        start=str(world.path),
        stages=(stage,),
        threads=command.threads,
    )
    trained = load_world(train(config))
    return {
        "environment": lamp.NAME,
        "updates": command.updates,
        "pairs": command.pairs,
        "r2_imported": before,
        "r2_trained": r2(trained, futures),
    }


class Futures(NamedTuple):
    """Histories with two actions each, and what they lead to."""

    history: Tensor
    """(N, T, H, W, 3) uint8."""
    before: Tensor
    """(N, T - 1, 1, D)."""
    actions: tuple[Tensor, Tensor]
    """Each (N, 1, D)."""
    frames: tuple[Tensor, Tensor]
    """Each (N, H, W, 3) uint8."""


def lamp_futures(count: int) -> Futures:
    """Two true futures of each history."""
    seen, before, colour = lamp.histories(count, HISTORY, seed=1)
    random = np.random.default_rng(2)
    chunks = random.uniform(-1, 1, (2, count, 1, 3)).astype(np.float32)
    after = [np.clip(colour + lamp.RATE * chunk[:, 0], 0, 1) for chunk in chunks]
    pictures = [np.stack([lamp.picture(c) for c in colours]) for colours in after]
    first, second = (torch.from_numpy(chunk) for chunk in chunks)
    one, other = (torch.from_numpy(frames) for frames in pictures)
    return Futures(torch.from_numpy(seen), torch.from_numpy(before), (first, second), (one, other))


@torch.no_grad()
def r2(world: World, futures: Futures) -> float:
    """1 - |dreamed difference - true difference|² / |true difference|², in latents.

    An imported network takes chunks of its own size; they move nothing, which is the point.
    """
    model, seeds = world.dreamer, torch.arange(len(futures.history))
    tokenizer = model.tokenizer
    known = None if isinstance(model, PublishedWorld) else futures.before
    state = model.start_latents(tokenizer.encode(futures.history), known, seeds=seeds)
    shape = (len(seeds), model.config.chunk, model.config.action_size)
    dreamed, true = [], []
    for actions, frames in zip(futures.actions, futures.frames, strict=True):
        chunk = actions.mean() * torch.ones(shape) if known is None else actions
        dreamed.append(model.step(state, chunk)[1].latents[:, 0].float())
        true.append(tokenizer.encode(frames[:, None])[:, 0].float())
    difference = true[0] - true[1]
    error = dreamed[0] - dreamed[1] - difference
    return 1.0 - float(error.square().sum() / difference.square().sum())
