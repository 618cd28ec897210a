"""Promises of a world model that follows the truth and acts: observe, act."""

import dataclasses

import pytest
import torch
from tiny_worlds import ACTIONS, K, make_clips, make_world, random_chunks, start
from torch import Tensor

from kairos_env.world_model.flow import Schedule, sample
from kairos_env.world_model.history import led_by, with_previous
from kairos_env.world_model.mixture import FORWARD, POLICY, Inputs
from kairos_env.world_model.noise import counter_normal
from kairos_env.world_model.world_model import ACTION_NOISE, WorldModel

# Float32 over another batch size or another split of one sequence.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return make_world()


# ---------------------------------------------------------------------------------- observe


@pytest.mark.parametrize(
    ("F", "calls"), [(1, [1, 1, 1, 1, 1, 1, 1]), (1, [3, 2, 2]), (2, [2, 2, 2, 2]), (2, [2, 4, 2])]
)
def test_a_history_observed_bit_by_bit_is_remembered_as_one(F: int, calls: list[int]) -> None:
    world, T = make_world(frames_per_chunk=F), sum(calls)
    clips, seeds = make_clips(2, T, frames_per_chunk=F), torch.tensor([4, 5])
    frames, actions = clips["frames"], clips["actions"]
    once = world.start(frames, actions, seeds=seeds).tensors()
    at = calls[0]
    state = world.start(frames[:, :at], actions[:, : at - 1], seeds=seeds)
    for T in calls[1:]:
        state = world.observe(state, frames[:, at : at + T], actions[:, at - 1 : at - 1 + T])
        at += T
    for name, value in state.tensors().items():
        torch.testing.assert_close(value, once[name], atol=TOLERANCE, rtol=1e-5, msg=name)


def test_the_truth_takes_the_place_of_what_would_have_been_dreamed(world: WorldModel) -> None:
    clips, chunk = make_clips(2, 5), random_chunks(2, 1)[0]
    state = start(world, clips, 3)
    dreamed, _ = world.step(state, chunk)
    seen = world.observe(state, clips["frames"][:, 3:4], chunk[:, None])
    truth = world.tokenizer.encode(clips["frames"][:, 3:4])[:, 0]
    assert seen.frame.tolist() == dreamed.frame.tolist() == [4, 4]
    assert torch.allclose(seen.previous[:, -1], truth, atol=TOLERANCE)
    assert not torch.allclose(dreamed.previous[:, -1], truth, atol=1e-2)


def test_unknown_actions_are_not_the_action_zero(world: WorldModel) -> None:
    clips = make_clips(1, 4)
    state, frames = start(world, clips), clips["frames"][:, 3:]
    unknown = world.observe(state, frames).layers[0].frames.k
    nothing = world.observe(state, frames, torch.zeros(1, 1, K, ACTIONS)).layers[0].frames.k
    assert not torch.allclose(unknown, nothing, atol=1e-3)


def test_what_was_not_seen_in_whole_chunks_is_refused() -> None:
    world = make_world(frames_per_chunk=2)
    clips = make_clips(2, 6, frames_per_chunk=2)
    state, frames, actions = start(world, clips, 2), clips["frames"], clips["actions"]
    with pytest.raises(ValueError, match="frames of 2 dreams, in whole chunks of 2"):
        world.observe(state, frames[:, 2:5], actions[:, 1:4])
    with pytest.raises(ValueError, match="frames of 2 dreams"):
        world.observe(state, frames[:1, 2:4], actions[:1, 1:3])
    with pytest.raises(ValueError, match=r"here \(2, 2, 2, 2\), got \(2, 1, 2, 2\)"):
        world.observe(state, frames[:, 2:4], actions[:, 2:3])


# -------------------------------------------------------------------------------------- act


def uncached_policy(
    world: WorldModel, clips: dict[str, Tensor], at: int, seeds: Tensor, steps: int
) -> Tensor:
    """The chunk after frame `at`, from one parallel run over all frames: no memory anywhere."""
    F = world.config.frames_per_chunk
    latents, actions = world.tokenizer.encode(clips["frames"]), led_by(clips["actions"])
    B, T = latents.shape[:2]
    t = world.config.transformer
    known = torch.ones(B, T, dtype=torch.bool)
    known[:, 0] = False
    inputs = Inputs(
        first_frame=torch.zeros(B, dtype=torch.int64),
        latents=latents,
        previous=with_previous(latents, t.previous_frames, anchor=t.anchor),
        video_noise=torch.zeros(B, T),
        actions=actions,
        actions_known=known,
        action_noise=torch.zeros(B, T),
    )
    trace = world.mixture(inputs, FORWARD, chunk_frames=F, record=True, predict=False).trace

    def velocity(z: Tensor, s: Tensor) -> Tensor:
        noisy = actions.clone()
        noisy[:, at : at + F] = z
        level = torch.zeros(B, T)
        level[:, at : at + F] = s
        now = dataclasses.replace(inputs, actions=noisy, action_noise=level, actions_known=None)
        output = world.mixture(now, POLICY, chunk_frames=F, trace=trace).action
        assert output is not None
        return output[:, at : at + F]

    shape = (F, world.config.actions_per_frame, ACTIONS)
    eps = counter_normal(seeds, torch.full((B,), at), shape, stream=ACTION_NOISE)
    return sample(velocity, eps, Schedule.for_actions(steps)).flatten(1, 2)


@pytest.mark.parametrize("F", [1, 2])
@torch.no_grad()
def test_cached_policy_mode_equals_a_run_over_the_whole_history(F: int) -> None:
    world, seeds = make_world(frames_per_chunk=F), torch.tensor([4, 5])
    clips = make_clips(2, 8, frames_per_chunk=F)
    expected = uncached_policy(world, clips, 6, seeds, steps=3)
    state = world.start(clips["frames"][:, :4], clips["actions"][:, :3], seeds=seeds)
    state = world.observe(state, clips["frames"][:, 4:6], clips["actions"][:, 3:5])
    proposal = world.act(state, denoise_steps=3)
    assert proposal.latents is None
    torch.testing.assert_close(proposal.chunk, expected, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("mode", ["policy", "joint"])
@pytest.mark.parametrize("F", [1, 2])
def test_an_act_is_a_chunk_for_every_dream_and_changes_nothing(F: int, mode: str) -> None:
    world = make_world(frames_per_chunk=F)
    state = start(world, make_clips(2, 4, frames_per_chunk=F), 4)
    before = state.clone().tensors()
    proposal = world.act(state, mode=mode, denoise_steps=2)
    assert proposal.chunk.shape == (2, K, ACTIONS)
    assert (proposal.latents is None) == (mode == "policy")
    if proposal.latents is not None:
        assert proposal.latents.shape == (2, F, *world.config.latent_shape)
    for name, value in state.tensors().items():
        assert torch.equal(value, before[name]), name
    world.step(state, proposal.chunk)


@pytest.mark.parametrize("mode", ["policy", "joint"])
def test_an_act_is_a_function_of_its_dream_and_seed(world: WorldModel, mode: str) -> None:
    state = start(world, make_clips(3, 3))
    chunk = world.act(state, mode=mode).chunk
    assert torch.equal(world.act(state, mode=mode).chunk, chunk)
    alone = world.act(state.index([1]), mode=mode).chunk
    assert (alone[0] - chunk[1]).abs().max() <= TOLERANCE
    other = world.act(state, mode=mode, seeds=state.seed + torch.tensor([0, 7, 0])).chunk
    assert torch.equal(other[[0, 2]], chunk[[0, 2]])
    assert (other[1] - chunk[1]).abs().max() > 1e-2


@torch.no_grad()
def test_policy_mode_runs_no_video() -> None:
    world = make_world(seed=1)
    state = start(world, make_clips(2, 3))
    chunk = world.act(state).chunk
    for parameter in world.mixture.video.parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(world.act(state).chunk, chunk)


def test_what_cannot_act_says_so(world: WorldModel) -> None:
    state = start(world, make_clips(2, 3))
    with pytest.raises(ValueError, match="mode policy or joint, got 'best'"):
        world.act(state, mode="best")
    with pytest.raises(ValueError, match="2 dreams need as many seeds"):
        world.act(state, seeds=torch.arange(3))
    transformer = dataclasses.replace(
        world.config.transformer, action=None, action_conditions_time=False
    )
    blind = WorldModel(dataclasses.replace(world.config, transformer=transformer))
    with pytest.raises(ValueError, match="without an action stream"):
        blind.act(state)
