"""How a whole network scales: a pass against its frames, a step of the dream against its age.

T frames; the network is one of our own worlds' by size, with random weights.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kairos_env.benchmarks.timing import Clock
from kairos_env.world_model.history import led_by, with_previous
from kairos_env.world_model.mixture import FORWARD, Inputs
from kairos_env.world_model.presets import world_config
from kairos_env.world_model.world_model import WorldModel

if TYPE_CHECKING:
    from kairos_env.worlds import World

ACTION_SIZE, STATE_SIZE = 2, 6


def make_world(size: str, device: str, dtype: torch.dtype) -> WorldModel:
    """A network of a size, with the same weights in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        world = WorldModel(world_config(size, action_size=ACTION_SIZE, state_size=STATE_SIZE))
    return world.to(device, dtype).eval().requires_grad_(False)


def own_model(world: "World") -> WorldModel:
    """The network of a world, where it is of our own kind.

    Raises:
        ValueError: It is an imported network, whose layers are read in another way.
    """
    if not isinstance(world.model, WorldModel):
        raise ValueError(
            f"{world.name} is an imported network; this is measured on worlds that were trained "
            "here, such as the bundled ones"
        )
    return world.model


def scaling(world: WorldModel, clock: Clock, frames: Sequence[int]) -> dict[str, Any]:
    """Seconds of one parallel pass over T frames, and the straight line through them."""
    with torch.no_grad():
        passes = {str(T): _parallel_pass(world, T) for T in frames}
        seconds = clock.medians(passes)
    milliseconds = [1e3 * seconds[str(T)] for T in frames]
    slope, intercept, r2 = linear_fit(frames, milliseconds)
    return {
        "frames": list(frames),
        "pass_ms": [round(x, 3) for x in milliseconds],
        "ms_per_frame": round(slope, 4),
        "intercept_ms": round(intercept, 3),
        "linear_fit_r2": round(r2, 6),
    }


def ageing(world: WorldModel, clock: Clock, ages: Sequence[int]) -> dict[str, Any]:
    """Seconds of the next step of dreams that are so many frames old, reached by dreaming."""
    device, F = world.device, world.config.frames_per_chunk
    start = torch.zeros(1, 3, *world.config.latent_shape, device=device)
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    chunk = torch.zeros(1, world.config.chunk, world.config.action_size, device=device)
    weights = next(world.mixture.parameters())
    state = world.start_latents(start.to(weights), None, seeds=seed)
    states = {}
    for age in range(max(ages) + 1):
        if age in ages:
            states[age] = state
        if age < max(ages):
            state, _ = world.step(state, chunk.to(weights), decode=False)
    steps = {str(age): _step(world, old, chunk.to(weights)) for age, old in states.items()}
    seconds = clock.medians(steps)
    youngest = seconds[str(min(ages))]
    return {
        "frames_per_step": F,
        "step_ms": {age: round(1e3 * s, 4) for age, s in seconds.items()},
        "ratio_to_first": {age: round(s / youngest, 4) for age, s in seconds.items()},
        "state_bytes": {str(age): old.nbytes() for age, old in states.items()},
    }


def linear_fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and R^2 of a least-squares line."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    slope, intercept = np.polyfit(xs, ys, 1)
    residual = ys - (slope * xs + intercept)
    return float(slope), float(intercept), float(1.0 - residual.var() / ys.var())


def _parallel_pass(world: WorldModel, T: int) -> Any:
    config = world.config
    weights = next(world.mixture.parameters())
    generator = torch.Generator().manual_seed(T)
    latents = torch.randn((1, T, *config.latent_shape), generator=generator).to(weights)
    actions = torch.zeros(1, T - 1, config.actions_per_frame, config.action_size).to(weights)
    clean = torch.zeros(1, T).to(weights)
    inputs = Inputs(
        first_frame=torch.zeros(1, dtype=torch.int64, device=weights.device),
        latents=latents,
        previous=with_previous(latents, config.transformer.previous_frames),
        video_noise=clean,
        actions=led_by(actions),
        action_noise=clean,
    )
    return lambda: world.mixture(inputs, FORWARD, chunk_frames=config.frames_per_chunk)


def _step(world: WorldModel, state: Any, chunk: torch.Tensor) -> Any:
    return lambda: world.step(state, chunk, decode=False)
