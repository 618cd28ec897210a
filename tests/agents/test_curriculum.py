"""The curriculum: three stages in one run, a world that listens, a comparison that counts time."""

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tiny_envs  # noqa: F401 (registers the environments)
import torch

import kairos_env  # noqa: F401 (registers Kairos-v0)
from kairos_env.agents.collect import collect
from kairos_env.agents.training import curriculum, loop
from kairos_env.agents.training.checkpoints import Checkpoint
from kairos_env.agents.training.clips import TrainingData
from kairos_env.agents.training.config import StageConfig, TrainConfig
from kairos_env.agents.training.curriculum import WATCH, Curriculum
from kairos_env.benchmarks import curriculum as comparison
from kairos_env.errors import OptionError
from kairos_env.worlds import load_world

TEXTS = ("the ball rolls", "nothing is to be done")


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("robot") / "ball"
    collect("TinyBall-v0", episodes=12, out=out, chunk=2, frame_size=32, horizon=10, text=TEXTS[0])
    return out


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings with another chunk, so with other actions: only to be watched."""
    out = tmp_path_factory.mktemp("films") / "ball"
    collect("TinyBall-v0", episodes=14, out=out, chunk=4, frame_size=48, horizon=10, text=TEXTS[1])
    return out


def tiny(robot: Path, films: Path) -> Curriculum:
    return Curriculum(
        robot=(robot,),
        video=(films,),
        behaviour=(films,),
        steps=(3, 4, 3, 4),
        frames=(4, 4, 6),
        video_size=16,
        batch=4,
        rollout=0.0,
    )


@pytest.fixture(scope="module")
def world(robot: Path, films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = curriculum.Arguments(
        curriculum=tiny(robot, films),
        out=tmp_path_factory.mktemp("worlds") / "ball",
        size="tiny",
        threads=1,
    )
    config = dataclasses.replace(curriculum.run_config(arguments), validation_share=0.3)
    return loop.train(config)


def test_one_run_goes_through_all_stages_and_says_so(world: Path) -> None:
    stages = load_world(world).manifest.provenance["stages"]
    assert [entry["stage"] for entry in stages] == ["tokenizer", "video", "behaviour", "robot"]
    folder = world.with_name(world.name + ".training")
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = {r["stage"]: r for r in records if r["kind"] == "validation"}
    assert {"video_mse", "copy_mse"} <= found["video"].keys()
    assert "policy_loss" not in found["video"]
    assert "psnr@1" in found["robot"]


def test_stages_without_actions_leave_what_reads_actions_as_it_was(
    robot: Path, films: Path, tmp_path: Path
) -> None:
    stages = tiny(robot, films).stages()
    config = TrainConfig(
        data=(robot,), out=tmp_path / "w", size="tiny", text=True, stages=stages[:2], threads=1
    )
    fresh = loop.build_world(config, TrainingData(config)).state_dict()
    loop.train(config)
    trained = Checkpoint(config.folder / loop.CHECKPOINT).part("world.")
    moved = {name for name, x in trained.items() if not torch.equal(x, fresh[name])}
    assert any(name.startswith("mixture.video.head.") for name in moved)
    fitted = {"heads.reward_mean", "heads.reward_scale", "heads.state_mean", "heads.state_scale"}
    kept = ("heads.", "mixture.action.head.")
    assert not [name for name in moved - fitted if name.startswith(kept)]


def test_a_world_of_a_curriculum_reads_words(world: Path) -> None:
    env = gym.make("Kairos-v0", world=str(world), observation="latent")
    action = env.action_space.sample()
    latents = {}
    for text in (None, "", "move the ball to the left"):
        env.reset(seed=3, options=None if text is None else {"text": text})
        latents[text] = env.step(action)[0]
    np.testing.assert_array_equal(latents[None], latents[""])
    assert np.abs(latents[""] - latents["move the ball to the left"]).max() > 0
    with pytest.raises(OptionError, match="text must be words"):
        env.reset(options={"text": 7})
    env.close()


def test_each_dream_of_a_batch_can_be_told_something_else(world: Path) -> None:
    env = gym.make_vec("Kairos-v0", num_envs=2, world=str(world), observation="latent")
    env.reset(seed=[3, 3], options={"text": ["up", "down"]})
    mixed = env.step(np.zeros(env.action_space.shape, env.action_space.dtype))[0]
    assert not np.array_equal(mixed[0], mixed[1])
    env.reset(seed=[3, 3], options={"text": "up"})
    same = env.step(np.zeros(env.action_space.shape, env.action_space.dtype))[0]
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    with pytest.raises(OptionError, match="a list of 2 texts"):
        env.reset(options={"text": ["up"]})
    env.close()


def test_the_comparison_gives_both_the_same_processor_time(
    robot: Path, films: Path, tmp_path: Path
) -> None:
    arguments = comparison.Arguments(
        curriculum=dataclasses.replace(tiny(robot, films), steps=(2, 2, 2, 4)),
        out=tmp_path,
        seeds=(0,),
        validation_share=0.3,
    )
    document = comparison.compare(arguments)
    (pair,) = document["pairs"]
    three, alone = pair[comparison.THREE], pair[comparison.ALONE]
    seconds = [entry["cpu_seconds"] for entry in three["stages"]]
    expected = round(4 * sum(seconds[1:]) / seconds[-1])
    assert [entry["updates"] for entry in alone["stages"]] == [2, expected]
    assert expected > 4
    assert three["figures"].keys() == alone["figures"].keys() >= {"video_mse", "policy_loss"}
    row = document["summary"]["video_mse"]
    assert row["difference"] == row[comparison.THREE] - row[comparison.ALONE]
    json.dumps(document, allow_nan=False)


def test_contradictions_are_named(robot: Path) -> None:
    with pytest.raises(ValueError, match="films show no actions"):
        StageConfig(name="x", learns="dynamics", films=(robot,))
    with pytest.raises(ValueError, match="a dream needs actions"):
        StageConfig(name="x", learns="dynamics", loss=WATCH, rollout=0.5)
    with pytest.raises(ValueError, match="no data"):
        StageConfig(name="x", learns="dynamics", own=False)
    with pytest.raises(ValueError, match="--steps"):
        comparison.Arguments(curriculum=Curriculum(robot=(robot,)), out=Path("a"))
