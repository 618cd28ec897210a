"""An imported network learns to answer to actions through `kairos train --from`."""

import dataclasses
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from kairos_env.agents.collect import collect
from kairos_env.agents.training.clips import TrainingData
from kairos_env.agents.training.config import ROBOT_STAGES, TrainConfig
from kairos_env.agents.training.loop import build_world, train
from kairos_env.benchmarks import lamp
from kairos_env.benchmarks.published import PublishedBench, answers
from kairos_env.official import Export, Import, export_official, import_official
from kairos_env.world_model.published.forward import forward_world
from kairos_env.world_model.published.untrained import TINY, without_actions, write_checkpoint
from kairos_env.worlds import World, load_world

PICTURES = torch.from_numpy(lamp.histories(4, 2, seed=0)[0]).flatten(0, 1)


def imported(folder: Path, *, actions: bool = True) -> World:
    config = TINY if actions else without_actions(TINY)
    checkpoint = write_checkpoint(folder / "ck", PICTURES, config=config)
    options = Import(folder=checkpoint, out=folder / "world", frame_size=32, clip_frames=4)
    return load_world(import_official(options))


@pytest.mark.parametrize("actions", [True, False])
def test_what_the_network_knows_is_carried_over(tmp_path: Path, actions: bool) -> None:
    old = imported(tmp_path, actions=actions).dreamer
    world = forward_world(
        old,  # type: ignore[arg-type]
        action_size=3,
        state_size=2,
        frame_size=(32, 32),
        chunk=2,
        frames_per_chunk=1,
    )
    theirs, mine = old.state_dict(), world.state_dict()
    for name in ("video.blocks.0.attention.query.weight", "video.embed.linear.weight"):
        assert torch.equal(mine[f"mixture.{name}"], theirs[f"network.{name}"])
    assert not mine["mixture.video.embed.previous.linear.weight"].any()
    assert world.mixture.action is not None
    assert world.mixture.action.head.out_features == 3


def test_it_trains_into_an_ordinary_world(tmp_path: Path) -> None:
    world = imported(tmp_path)
    collect(lamp.NAME, episodes=6, out=tmp_path / "data", chunk=1, frame_size=32, horizon=8)
    stage = dataclasses.replace(ROBOT_STAGES[0], steps=2, batch=2, frames=4)
    config = TrainConfig(
        data=(tmp_path / "data",),
        out=tmp_path / "mine",
        start=str(world.path),
        stages=(stage,),
        threads=1,
        validation_share=0.2,
        bfloat16=False,
    )
    runs = [dataclasses.replace(config, seed=seed) for seed in (1, 2)]
    recorded = TrainingData(config)
    one, other = (build_world(run, recorded).state_dict() for run in runs)
    assert all(torch.equal(x, other[name]) for name, x in one.items())  # so they can be mixed
    env = gymnasium.make("kairos_env:Kairos-v0", world=str(train(config)))
    frames = []
    for action in (-1.0, 1.0):
        env.reset(seed=0)
        chunk = np.full(env.action_space.shape, action, np.float32)
        info = env.step(chunk)[4]
        frames.append(info["frames"])
    assert "answers_to_actions" not in info
    assert info["state"].shape == (3,)
    assert not np.array_equal(*frames)
    with pytest.raises(ValueError, match="only a world that came from"):
        export_official(Export(world=str(tmp_path / "mine"), out=tmp_path / "x"))


@pytest.mark.slow
def test_fifty_updates_teach_it_to_answer(tmp_path: Path) -> None:
    learned = answers(tmp_path, PublishedBench(pairs=32))
    assert learned["r2_imported"] == 0.0
    assert learned["r2_trained"] > 0.01
