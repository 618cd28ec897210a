"""Worlds whose tokenizer codes several frames together: the same face, fewer latent frames."""

import pytest
import torch
from tiny_worlds import ACTIONS, STATES, K, make_clips, random_chunks, start

from kairos_env.world_model.history import at_last, coded, together
from kairos_env.world_model.presets import world_config
from kairos_env.world_model.world_model import WorldModel

R = 2


@pytest.fixture(scope="module")
def world() -> WorldModel:
    config = world_config(
        "tiny", action_size=ACTIONS, state_size=STATES, chunk=K, frames_per_chunk=R, temporal=R
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        world = WorldModel(config)
        with torch.no_grad():
            for parameter in world.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return world


def test_a_step_shows_every_frame_and_remembers_one_latent_frame(world: WorldModel) -> None:
    state = start(world, make_clips(2, 6, frames_per_chunk=R), frames=4)
    assert state.frame.tolist() == [2, 2]
    state, prediction = world.step(state, random_chunks(2, 1)[0])
    assert state.frame.tolist() == [3, 3]
    assert prediction.frames is not None
    assert prediction.frames.shape == (2, R, 64, 64, 3)
    assert prediction.state.shape == (2, R, STATES)
    assert prediction.reward.shape == prediction.end_probability.shape == (2, R)
    assert not prediction.reward[:, 0].any()
    assert not prediction.end_probability[:, 0].any()


def test_a_step_remembers_what_a_start_from_its_frames_remembers(world: WorldModel) -> None:
    clips = make_clips(2, 4, frames_per_chunk=R)
    latents = world.tokenizer.encode(clips["frames"])
    chunk = random_chunks(2, 1)[0]
    state = world.start_latents(latents, clips["actions"], seeds=torch.arange(2))
    state, prediction = world.step(state, chunk)
    once = world.start_latents(
        torch.cat([latents, prediction.latents[:, ::R]], dim=1),
        torch.cat([clips["actions"], chunk.unflatten(1, (R, -1))], dim=1),
        seeds=torch.arange(2),
    ).tensors()
    for name, value in state.tensors().items():
        torch.testing.assert_close(value, once[name], atol=1e-5, rtol=1e-5, msg=name)


def test_observed_frames_are_remembered_as_started_ones(world: WorldModel) -> None:
    clips = make_clips(2, 6, frames_per_chunk=R)
    state = start(world, clips, frames=4)
    state = world.observe(state, clips["frames"][:, 4:], clips["actions"][:, 3:])
    once = start(world, clips, frames=6).tensors()
    for name, value in state.tensors().items():
        torch.testing.assert_close(value, once[name], atol=1e-5, rtol=1e-5, msg=name)


def test_the_loss_reads_clips_of_latent_frames(world: WorldModel) -> None:
    clips = make_clips(2, 8, frames_per_chunk=R)
    clips = coded(clips, R)
    assert clips["actions"].shape == (2, 3, K, ACTIONS)
    loss, metrics = world.loss(clips, world.draw(clips, torch.Generator().manual_seed(0)))
    assert loss.isfinite()
    assert {"video_mse", "state_error"} <= metrics.keys()


def test_what_happens_to_frames_happens_to_their_latent_frame() -> None:
    clips = {
        "actions": torch.arange(5.0)[None, :, None, None],
        "rewards": torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]),
        "terminated": torch.tensor([[False, False, False, True, False]]),
        "state": torch.arange(6.0)[None, :, None],
        "valid": torch.tensor([[True, True, True, True, True, False]]),
    }
    found = coded(clips, R)
    assert found["actions"].flatten(2).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
    assert found["rewards"].tolist() == [[5.0, 9.0]]
    assert found["terminated"].tolist() == [[False, True]]
    assert found["state"].flatten().tolist() == [1.0, 3.0, 5.0]
    assert found["valid"].tolist() == [[True, True, True]]
    assert at_last(found["rewards"], R).tolist() == [[0.0, 5.0, 0.0, 9.0]]
    with pytest.raises(ValueError, match="multiple of 2 frames"):
        together(clips["actions"][:, :4], R)


def test_frames_that_do_not_fill_a_latent_frame_are_refused(world: WorldModel) -> None:
    clips = make_clips(2, 6, frames_per_chunk=R)
    with pytest.raises(ValueError, match="codes 2 frames together"):
        start(world, clips, frames=3)
    with pytest.raises(ValueError, match="frames_per_chunk must be a multiple"):
        world_config("tiny", action_size=2, state_size=0, frames_per_chunk=1, temporal=2)
