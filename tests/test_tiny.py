"""The whole promise in seconds: make, reset, step, one update, save, load, dream again."""

import gymnasium as gym
import numpy as np
import torch

import kairos_env
from kairos_env.untrained import untrained_config, untrained_world
from kairos_env.world_model.world_model import WorldModel
from kairos_env.worlds import load_world, save_world


def clips(model, *, B=2, T=4):
    generator = np.random.default_rng(0)
    c = model.config
    shape = (B, T - 1, c.actions_per_frame, c.action_size)
    state = generator.standard_normal((B, T, c.heads.state_size)).astype(np.float32)
    return {
        "frames": torch.from_numpy(generator.integers(0, 256, (B, T, 64, 64, 3), np.uint8)),
        "actions": torch.from_numpy(generator.uniform(-1, 1, shape).astype(np.float32)),
        "rewards": torch.ones(B, T - 1),
        "terminated": torch.zeros(B, T - 1, dtype=torch.bool),
        "state": torch.from_numpy(state),
        "valid": torch.ones(B, T, dtype=torch.bool),
    }


def learn(model, *, steps):
    """A few updates on one batch with fixed noise; the losses."""
    batch = clips(model)
    draws = model.draw(batch, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss, _ = model.loss(batch, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_whole_promise(tmp_path):
    assert kairos_env.__version__
    env = gym.make("Kairos-v0", world="untrained")
    frame, _ = env.reset(seed=0)
    assert frame.shape == (64, 64, 3)
    env.step(env.action_space.sample())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WorldModel(untrained_config())
    losses = learn(model, steps=4)
    assert losses[-1] < losses[0]

    like = untrained_world()
    save_world(tmp_path / "mine", model, manifest=like.manifest, starts=like.starts)
    assert load_world(tmp_path / "mine").manifest == like.manifest
    dreams = []
    for _ in range(2):
        env = gym.make("Kairos-v0", world=str(tmp_path / "mine"))
        env.reset(seed=1)
        dreams.append(env.step(np.zeros(env.action_space.shape, np.float32))[0])
    assert np.array_equal(*dreams)
