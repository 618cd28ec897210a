"""Sizes, operations and times of our worlds and of their peers, measured in turns.

Times are processor times of one thread, the medians of turns: on a shared machine the clock on the
wall measures the others. The machine's load stands in the results.
"""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from kairos_env.benchmarks.efficiency.flops import (
    CLIPS,
    counted,
    fresh_dreams,
    parameters,
    pass_operations,
    published_row,
    step_operations,
)
from kairos_env.benchmarks.efficiency.peers import RSSM, RSSMConfig, UNet, UNetConfig
from kairos_env.benchmarks.timing import Clock, Work
from kairos_env.benchmarks.transformer import ageing, make_world, own_model, scaling
from kairos_env.world_model.presets import PUBLISHED
from kairos_env.world_model.world_model import WorldModel
from kairos_env.worlds import World

if TYPE_CHECKING:
    from kairos_env.vector_env import DreamVectorEnv

Json = dict[str, Any]
SIZES = ("tiny", "small", "medium")
OURS = "world"
BYTES = 4  # of a number


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficiencyConfig:
    """What is measured."""

    world: str = "push"
    """The world that is timed: a bundled one's name or a folder."""
    batches: tuple[int, ...] = (1, 8, 64)
    """Dreams that are stepped together."""
    lengths: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Frames of one parallel pass."""
    ages: tuple[int, ...] = (10, 100, 1000)
    """Frames after which the cost of the next step is measured."""
    env_steps: int = 20
    """Steps of the environment that are timed in one go."""
    rounds: int = 9
    """Turns of every candidate."""
    seconds: float = 3.0
    """What a candidate may use; one that needs more in a call is measured once."""
    clips: tuple[str, ...] = tuple(CLIPS)
    """Of the published networks' operations."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("batches", "lengths", "ages"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name} must be positive numbers, got {values}")
        if len(set(self.lengths)) < 3:
            raise ValueError(f"a straight line needs at least 3 lengths, got {self.lengths}")
        for name in ("env_steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        unknown = sorted(set(self.clips) - set(CLIPS))
        if unknown:
            raise ValueError(f"no clip {', '.join(unknown)}; there are {', '.join(CLIPS)}")


def measure(config: EfficiencyConfig, world: World) -> Json:
    """All sections."""
    model = own_model(world)
    clock = Clock(rounds=config.rounds, seconds=config.seconds, processor=True)
    load = os.getloadavg()[0]
    results = {
        "config": dataclasses.asdict(config),
        "world": {"name": world.name, "fingerprint": world.fingerprint},
        "sizes": sizes(model),
        "peers": [peer_row(name, peer) for name, peer in peers(model).items()],
        "published": published(config),
        "latency": latency(model, config, clock),
        "environment": environment(world, config, clock),
        "length": scaling(model, clock, config.lengths),
        "age": ageing(model, clock, config.ages),
    }
    return results | {"load": [round(load, 2), round(os.getloadavg()[0], 2)]}


# ---- counted


def sizes(timed: WorldModel) -> list[Json]:
    """Our sizes and the world that is timed: numbers, memory, operations of a step of one dream."""
    models = {size: make_world(size, "cpu", torch.float32) for size in SIZES}
    return [size_row(name, model) for name, model in {**models, OURS: timed}.items()]


def size_row(name: str, model: WorldModel) -> Json:
    """One of our worlds; the memory of a dream is what it carries from step to step."""
    state, _ = fresh_dreams(model, 1)
    return {
        "name": name,
        "layers": list(model.config.transformer.layers),
        "parameters": parameters(model),
        "of_them_dynamics": parameters(model.mixture),
        "megabytes": 1e-6 * BYTES * parameters(model),
        "kilobytes_per_dream": 1e-3 * state.nbytes(),
        "megaflops_per_step": 1e-6 * step_operations(model, decode=False),
        "megaflops_per_step_with_picture": 1e-6 * step_operations(model, decode=True),
    }


def peers(model: WorldModel) -> dict[str, UNet | RSSM]:
    """The other kinds of world model, for the same actions, with weights that are always the same.

    Their pictures are decoded in every step: the one works in pixels, the other is timed so.
    """
    actions = model.config.chunk * model.config.action_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: dict[str, UNet | RSSM] = {
            "U-Net denoiser, 3 steps": UNet(UNetConfig(action_size=actions)),
            "RSSM": RSSM(RSSMConfig(action_size=actions)),
        }
    for peer in made.values():
        for weight in peer.eval().parameters():
            if weight.ndim == 4:
                # In the order of numbers in which a loaded world is held, too.
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return made


def peer_row(name: str, peer: UNet | RSSM) -> Json:
    """The same figures of a peer."""
    state = peer.start(1)
    parts = [state] if isinstance(state, torch.Tensor) else [state.recurrent, state.sampled]
    return {
        "name": name,
        "parameters": parameters(peer),
        "megabytes": 1e-6 * BYTES * parameters(peer),
        "kilobytes_per_dream": 1e-3 * BYTES * sum(part.numel() for part in parts),
        "megaflops_per_step_with_picture": 1e-6 * counted(peer_step(peer, 1)),
    }


def published(config: EfficiencyConfig) -> Json:
    """The published networks; their video streams differ by the text's width alone."""
    first = PUBLISHED["kairos-4b"]
    return {
        "networks": [published_row(name) for name in PUBLISHED],
        "video_teraflops_per_pass": {
            clip: 1e-12 * pass_operations(first, *CLIPS[clip]) for clip in config.clips
        },
    }


# ---- timed


def latency(model: WorldModel, config: EfficiencyConfig, clock: Clock) -> list[Json]:
    """Milliseconds of a step, everybody in turns, batch by batch."""
    rows = []
    for batch in config.batches:
        works: dict[str, Work] = {
            OURS: our_step(model, batch, decode=True),
            f"{OURS}, no picture": our_step(model, batch, decode=False),
        }
        works |= {name: peer_step(peer, batch) for name, peer in peers(model).items()}
        with torch.no_grad():
            seconds = clock.medians(works)
        rows.append(
            {
                "batch": batch,
                "step_ms": {name: round(1e3 * value, 3) for name, value in seconds.items()},
                "times_ours": {
                    name: round(value / seconds[OURS], 3) for name, value in seconds.items()
                },
            }
        )
    return rows


def our_step(model: WorldModel, batch: int, *, decode: bool) -> Work:
    """A step of dreams that have just begun."""
    state, chunk = fresh_dreams(model, batch)
    return lambda: model.step(state, chunk, decode=decode)


def peer_step(peer: UNet | RSSM, batch: int) -> Work:
    """The same of a peer."""
    actions = torch.zeros(batch, peer.config.action_size)
    if isinstance(peer, UNet):
        past = peer.start(batch)
        return lambda: peer.step(past, actions)
    state = peer.start(batch)
    return lambda: peer.step(state, actions)


def _steps(env: "DreamVectorEnv", actions: Sequence[Any]) -> None:
    for action in actions:
        env.step(action)


def environment(world: World, config: EfficiencyConfig, clock: Clock) -> list[Json]:
    """Steps a second through Gymnasium, pictures and all."""
    from kairos_env.vector_env import DreamVectorEnv

    rows = []
    for batch in config.batches:
        env = DreamVectorEnv(batch, world=world)
        env.reset(seed=0)
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(config.env_steps)]
        seconds = clock.medians({"env": partial(_steps, env, actions)})["env"]
        env.close()
        rate = batch * config.env_steps / seconds
        rows.append({"batch": batch, "env_steps_per_second": round(rate, 1)})
    return rows
