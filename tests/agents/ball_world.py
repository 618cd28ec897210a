"""A small world of the ball, with random weights: everything of learning in dreams, in seconds."""

from pathlib import Path

import numpy as np
import tiny_envs  # noqa: F401 (registers the environments)
import torch

from kairos_env.agents.collect import collect
from kairos_env.agents.data.readers import open_dataset
from kairos_env.manifest import EnvironmentSpec, Manifest
from kairos_env.starts import Starts
from kairos_env.world_model.presets import world_config
from kairos_env.world_model.world_model import WorldModel
from kairos_env.worlds import save_world

CHUNK, HORIZON = 2, 14


def make_data(folder: Path, episodes: int = 16) -> Path:
    out = folder / "ball"
    policies = ["random:0.3", "smooth:0.7"]
    options = {"chunk": CHUNK, "frame_size": 16, "horizon": HORIZON}
    collect("TinyBall-v0", episodes=episodes, policies=policies, out=out, **options)
    return out


def make_world(folder: Path, data: Path) -> Path:
    """Random weights; the statistics of states and rewards are those of the data."""
    dataset = open_dataset(data)
    torch.manual_seed(0)
    config = world_config(
        "tiny", action_size=2, state_size=3, frame_size=(16, 16), chunk=CHUNK, frames_per_chunk=1
    )
    model = WorldModel(config)
    episode = dataset.episode(0)
    state = torch.from_numpy(np.concatenate([dataset.table(i).state for i in range(len(dataset))]))
    model.heads.fit_statistics(torch.from_numpy(episode.rewards), state)
    space = {"kind": "box", "low": [-2.0, -2.0], "high": [2.0, 2.0]}
    manifest = Manifest(
        name="ball",
        description="Random weights.",
        environment=EnvironmentSpec(
            id="TinyBall-v0",
            chunk=CHUNK,
            frame_size=16,
            horizon=HORIZON,
            fps=10,
            action_space=space,
            reward="the environment's",
            termination="as the environment terminates",
        ),
        model=config,
        provenance={"data": {"environment_steps": 64}},
    )
    starts = Starts(episode.frames[None, :3], episode.actions[None, :2], episode.state[None, 2])
    return save_world(folder / "world", model, manifest=manifest, starts=starts)


def short_run(world, **changes):
    """A run of `kairos imagine` that is over in seconds."""
    from kairos_env.agents.imagine.config import ImagineConfig

    options = {"envs": 3, "horizon": 3, "exam_episodes": 2, "test_episodes": 2}
    return ImagineConfig(**{"world": str(world), **options, **changes})
