"""Promises of the world model's verbs: start, step, loss."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from tiny_worlds import ACTIONS, STATES, K, make_clips, make_world, random_chunks, start
from torch import Tensor

from kairos_env.world_model.flow import NoiseLevels
from kairos_env.world_model.noise import counter_normal
from kairos_env.world_model.objective import ACTION_MODES, Draws, LossConfig, read_truth
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.world_model import VIDEO_NOISE, WorldModel

# Matrix products of another batch size may add in another order: float32, latents of size 1, and a
# few steps that feed on each other.
BATCH_TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return make_world()


@pytest.fixture(scope="module")
def pairs() -> WorldModel:
    return make_world(frames_per_chunk=2)


def dream(
    world: WorldModel, state: DreamState, chunks: Tensor, *, denoise_steps: int = 2
) -> tuple[DreamState, Tensor]:
    """Step through chunks: the last state, and the latents (B, steps * F, C, h, w)."""
    latents = []
    for chunk in chunks:
        state, prediction = world.step(state, chunk, denoise_steps=denoise_steps, decode=False)
        latents.append(prediction.latents)
    return state, torch.cat(latents, dim=1)


def draw(world: WorldModel, clips: dict[str, Tensor], seed: int = 0) -> Draws:
    return world.draw(clips, torch.Generator().manual_seed(seed))


MODES = sorted({name for name, _ in ACTION_MODES})


def in_mode(draws: Draws, name: str) -> Draws:
    return dataclasses.replace(draws, mode=[mode for mode, _ in ACTION_MODES].index(name))


# ---------------------------------------------------------------------------------- dreaming


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_step_gives_what_the_shapes_promise(world: WorldModel, frames: int) -> None:
    state = start(world, make_clips(2, 6), frames)
    assert state.frame.tolist() == [frames, frames]
    state, prediction = world.step(state, random_chunks(2, 1)[0])
    assert len(state) == 2
    assert state.frame.tolist() == [frames + 1, frames + 1]
    assert prediction.frames is not None
    assert (prediction.frames.shape, prediction.frames.dtype) == ((2, 1, 64, 64, 3), torch.uint8)
    assert prediction.latents.shape == (2, 1, *world.config.latent_shape)
    assert prediction.reward.shape == prediction.end_probability.shape == (2, 1)
    assert prediction.state.shape == (2, 1, STATES)
    assert prediction.uncertainty.shape == (2,)
    assert ((prediction.end_probability > 0) & (prediction.end_probability < 1)).all()
    assert (prediction.uncertainty > 0).all()
    undecoded = world.step(state, random_chunks(2, 1)[0], decode=False)[1]
    assert undecoded.frames is None


@pytest.mark.parametrize("frames_per_chunk", [1, 2])
def test_places_are_looked_for_once_and_the_picture_goes_on_from_there(
    frames_per_chunk: int,
) -> None:
    """The slow way: both frames of every transition anew, and the picture from its latents."""
    world = make_world(frames_per_chunk=frames_per_chunk)
    sketched = world.heads.sketched
    assert sketched is not None
    clips = make_clips(2, 4, frames_per_chunk=frames_per_chunk)
    state = start(world, clips, 2)
    for chunk in random_chunks(2, 2):
        before = state.previous[:, -1:]
        forgetful = world.step(dataclasses.replace(state, places=None), chunk)[1]
        state, prediction = world.step(state, chunk)
        assert prediction.frames is not None
        assert torch.equal(prediction.frames, world.tokenizer.decode(prediction.latents))
        torch.testing.assert_close(prediction.state, forgetful.state)
        sketch = world.sketch_pairs(torch.cat([before, prediction.latents], dim=1))
        assert sketch is not None
        assert state.places is not None
        torch.testing.assert_close(state.places, sketched.locate(sketch)[:, -1:, 1])
    true = {"frames": clips["frames"][:, 2:], "actions": clips["actions"][:, 1:]}
    observed = world.observe(start(world, clips, 2), **true).places
    torch.testing.assert_close(observed, start(world, clips, 4).places)


@pytest.mark.parametrize("history", [2, 3, 4])
def test_two_frames_per_chunk(pairs: WorldModel, history: int) -> None:
    clips = make_clips(2, 6, frames_per_chunk=2)
    state, prediction = pairs.step(start(pairs, clips, history), random_chunks(2, 1)[0])
    assert state.frame.tolist() == [history + 2] * 2
    assert prediction.frames is not None
    assert prediction.frames.shape == (2, 2, 64, 64, 3)
    assert prediction.reward.shape == (2, 2)
    assert prediction.state.shape == (2, 2, STATES)
    assert not torch.equal(prediction.latents[:, 0], prediction.latents[:, 1])


def test_no_dreams_are_a_batch_too(world: WorldModel) -> None:
    nobody = start(world, make_clips(1, 3)).index([])
    state, prediction = world.step(nobody, random_chunks(0, 1)[0])
    assert len(state) == 0
    assert prediction.frames is not None
    assert prediction.frames.shape == (0, 1, 64, 64, 3)


@pytest.mark.parametrize("F", [1, 2])
def test_a_step_remembers_what_a_start_from_its_frames_remembers(F: int) -> None:
    world = make_world(frames_per_chunk=F)
    clips = make_clips(2, 4, frames_per_chunk=F)
    latents = world.tokenizer.encode(clips["frames"])
    chunk = random_chunks(2, 1)[0]
    state = world.start_latents(latents, clips["actions"], seeds=torch.arange(2))
    state, prediction = world.step(state, chunk)
    once = world.start_latents(
        torch.cat([latents, prediction.latents], dim=1),
        torch.cat([clips["actions"], chunk.unflatten(1, (F, -1))], dim=1),
        seeds=torch.arange(2),
    ).tensors()
    for name, value in state.tensors().items():
        torch.testing.assert_close(value, once[name], atol=1e-5, rtol=1e-5, msg=name)


def test_start_reads_frames_and_latents_alike(world: WorldModel) -> None:
    clips = make_clips(2, 3)
    latents = world.tokenizer.encode(clips["frames"])
    other = world.start_latents(latents, clips["actions"], seeds=torch.arange(10, 12))
    for name, value in start(world, clips).tensors().items():
        assert torch.equal(value, other.tensors()[name]), name


def test_the_same_seeds_give_the_same_frames(world: WorldModel) -> None:
    chunks = random_chunks(3, 3)
    one, other = (dream(world, start(world, make_clips(3, 3)), chunks)[1] for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("steps", [1, 3])
def test_other_seeds_give_other_frames(world: WorldModel, steps: int) -> None:
    state = start(world, make_clips(2, 3))
    other = dataclasses.replace(state, seed=state.seed + torch.tensor([0, 1]))
    chunks = random_chunks(2, 2)
    a, b = (dream(world, s, chunks, denoise_steps=steps)[1] for s in (state, other))
    assert torch.equal(a[0], b[0])
    assert (a[1] - b[1]).abs().max() > 1e-2


def test_actions_change_the_dream_from_their_own_step_on(world: WorldModel) -> None:
    state = start(world, make_clips(1, 3))
    chunks = random_chunks(1, 3)
    changed = chunks.clone()
    changed[1, :, -1] += 0.5
    a, b = (dream(world, state, c)[1] for c in (chunks, changed))
    assert torch.equal(a[:, 0], b[:, 0])
    assert (a[:, 1] - b[:, 1]).abs().max() > 1e-3


def test_a_dream_is_the_same_alone_and_in_a_batch(world: WorldModel) -> None:
    clips, chunks = make_clips(5, 3), random_chunks(5, 4)
    together = dream(world, start(world, clips), chunks)[1]
    for i in (0, 3):
        one = {name: value[i : i + 1] for name, value in clips.items()}
        state = dataclasses.replace(start(world, one), seed=torch.tensor([10 + i]))
        alone = dream(world, state, chunks[:, i : i + 1])[1]
        assert (alone[0] - together[i]).abs().max() <= BATCH_TOLERANCE


def test_a_dream_is_the_same_in_any_order_and_twice(world: WorldModel) -> None:
    chunks = random_chunks(3, 4)
    state, _ = dream(world, start(world, make_clips(3, 3)), chunks[:2])
    order = [2, 0, 2, 1]
    plain = dream(world, state, chunks[2:])[1]
    shuffled = dream(world, state.index(order), chunks[2:, order])[1]
    assert (shuffled - plain[order]).abs().max() <= BATCH_TOLERANCE


def test_a_fresh_start_leaves_the_neighbours_bit_for_bit(world: WorldModel) -> None:
    chunks = random_chunks(3, 14)  # longer than any ring of the memory
    fresh = start(world, make_clips(1, 3, seed=7))
    state, _ = dream(world, start(world, make_clips(3, 3)), chunks[:10], denoise_steps=1)
    undisturbed = dream(world, state, chunks[10:])[1]
    written = dream(world, state.write(torch.tensor([1]), fresh), chunks[10:])[1]
    assert torch.equal(written[[0, 2]], undisturbed[[0, 2]])
    alone = dream(world, fresh, chunks[10:, 1:2])[1]
    assert (written[1] - alone[0]).abs().max() <= BATCH_TOLERANCE


def test_a_saved_dream_goes_on_as_if_nothing_had_happened(
    world: WorldModel, tmp_path: Path
) -> None:
    chunks = random_chunks(2, 3)
    state, _ = dream(world, start(world, make_clips(2, 3)), chunks[:1])
    state.save(tmp_path / "dream.safetensors")
    loaded = DreamState.load(tmp_path / "dream.safetensors")
    assert torch.equal(dream(world, loaded, chunks[1:])[1], dream(world, state, chunks[1:])[1])


def test_memory_does_not_grow(world: WorldModel) -> None:
    state = start(world, make_clips(1, 3))
    later, _ = dream(world, state, random_chunks(1, 12), denoise_steps=1)
    shapes = {name: value.shape for name, value in state.tensors().items()}
    assert {name: value.shape for name, value in later.tensors().items()} == shapes
    assert later.nbytes() == state.nbytes()


def test_a_step_leaves_the_given_state_as_it_was(world: WorldModel) -> None:
    state = start(world, make_clips(2, 3))
    before = state.clone().tensors()
    world.step(state, random_chunks(2, 1)[0])
    for name, value in state.tensors().items():
        assert torch.equal(value, before[name]), name


def test_a_rollout_is_the_truth_and_then_the_dream(pairs: WorldModel) -> None:
    clips = make_clips(2, 8, frames_per_chunk=2)
    latents, seeds = pairs.tokenizer.encode(clips["frames"]), torch.tensor([4, 5])
    rolled = pairs.rollout(latents, clips["actions"], real=4, seeds=seeds)
    assert rolled.shape == latents.shape
    assert torch.equal(rolled[:, :4], latents[:, :4])
    state = pairs.start_latents(latents[:, :4], clips["actions"][:, :3], seeds=seeds)
    chunks = clips["actions"][:, 3:].unflatten(1, (2, 2)).flatten(2, 3).transpose(0, 1)
    assert torch.equal(rolled[:, 4:], dream(pairs, state, chunks, denoise_steps=1)[1])


def test_global_random_state_is_untouched(world: WorldModel) -> None:
    clips = make_clips(2, 4)
    before = torch.get_rng_state()
    dream(world, start(world, clips), random_chunks(2, 2))
    world.loss(clips, draw(world, clips))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_does_not_fit_is_refused_by_name(world: WorldModel) -> None:
    clips = make_clips(2, 3)
    frames, actions, seeds = clips["frames"], clips["actions"], torch.arange(2)
    for wrong, message in (
        ((frames[:, :0], None, seeds), "at least one frame"),
        ((frames, actions, seeds[:1]), "2 histories need as many seeds"),
        ((frames, actions[:, :1], seeds), r"here \(2, 2, 4, 2\), got \(2, 1, 4, 2\)"),
        ((frames.float(), actions, seeds), "uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            world.start(wrong[0], wrong[1], seeds=wrong[2])
    with pytest.raises(ValueError, match="reads no text"):
        world.start(frames, actions, seeds=seeds, text=torch.zeros(2, 4, 8))
    state = world.start(frames, actions, seeds=seeds)
    for shape in ((2, K - 1, ACTIONS), (2, K, ACTIONS + 1), (1, K, ACTIONS), (2, K * ACTIONS)):
        with pytest.raises(ValueError, match=r"here \(2, 4, 2\), got"):
            world.step(state, torch.zeros(shape))


# ---------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("shape", [{}, {"recollect": True}, {"restore": True}])
@pytest.mark.parametrize("F", [1, 2])
def test_training_predicts_what_a_step_predicts(F: int, shape: dict[str, bool]) -> None:
    """With a clean history and a step's own noise, the loss measures the errors of single steps."""
    world = make_world(frames_per_chunk=F, second_look=0.0, **shape)
    clips, seeds = make_clips(2, 3 * F, frames_per_chunk=F), torch.tensor([4, 5])
    truth, actions = world.tokenizer.encode(clips["frames"]), clips["actions"]
    draws = draw(world, clips)
    eps, errors = torch.zeros_like(truth), []
    for t in (F, 2 * F):
        now = slice(t, t + F)
        state = world.start_latents(truth[:, :t], actions[:, : t - 1], seeds=seeds)
        eps[:, now] = counter_normal(seeds, state.frame, eps[:, now].shape[1:], stream=VIDEO_NOISE)
        chunk = actions[:, t - 1 : t - 1 + F].flatten(1, 2)
        dreamed = world.step(state, chunk, denoise_steps=1)[1].latents
        errors.append((dreamed - truth[:, now]).square().mean())
    draws = dataclasses.replace(
        draws,
        history_level=torch.zeros_like(draws.history_level),
        hidden=torch.zeros_like(draws.hidden),
        level=torch.ones_like(draws.level),
        noise=eps,
    )
    _, metrics = world.loss(clips, draws)
    torch.testing.assert_close(metrics["video_mse"], sum(errors) / 2, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("mode", MODES)
def test_the_losses_of_slices_add_up_to_the_loss_of_the_batch(world: WorldModel, mode: str) -> None:
    clips = make_clips(4, 5)
    clips["valid"][1, 3:] = False  # clips of unequal length must count alike
    draws = in_mode(draw(world, clips), mode)
    whole, _ = world.loss(clips, draws)
    halves = [
        world.loss({name: x[rows] for name, x in clips.items()}, draws.rows(rows))[0]
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert abs(sum(halves) / 2 - whole) <= 1e-5 * whole


def test_the_loss_is_a_function_of_its_draws(world: WorldModel) -> None:
    clips = make_clips(2, 4)
    losses = [world.loss(clips, draw(world, clips, seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_reads_frames_and_latents_alike(world: WorldModel, mode: str) -> None:
    clips = make_clips(2, 4)
    draws = in_mode(draw(world, clips), mode)
    encoded = {name: value for name, value in clips.items() if name != "frames"}
    encoded["latents"] = world.tokenizer.encode(clips["frames"]).detach()
    assert torch.equal(world.loss(clips, draws)[0], world.loss(encoded, draws)[0])


def test_frames_that_do_not_exist_do_not_count(world: WorldModel) -> None:
    clips = make_clips(2, 5)
    clips["valid"][:, 3:] = False
    draws = in_mode(draw(world, clips), "joint")
    other = {name: value.clone() for name, value in clips.items()}
    other["frames"][:, 3:] = 255
    for name in ("actions", "rewards"):  # number t leads to frame t + 1
        other[name][:, 2:] = 9.0
    other["state"][:, 3:] = 9.0
    assert torch.equal(world.loss(clips, draws)[0], world.loss(other, draws)[0])


@pytest.mark.parametrize("F", [1, 2])
def test_every_weight_of_the_dynamics_learns_and_the_tokenizer_rests(F: int) -> None:
    world = make_world(frames_per_chunk=F)
    clips = make_clips(3, 6, frames_per_chunk=F)
    for seed, mode in enumerate(MODES):
        draws = in_mode(draw(world, clips, seed), mode)
        draws = dataclasses.replace(draws, hidden=torch.tensor([[True], [False], [False]]))
        world.loss(clips, draws)[0].backward()
    silent = {
        name
        for name, parameter in world.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    tokenizer = {name for name, _ in world.named_parameters() if name.startswith("tokenizer.")}
    assert silent == tokenizer
    assert all(p.grad is None or p.grad.isfinite().all() for p in world.parameters())


def test_the_loss_falls_on_one_batch() -> None:
    world = make_world()
    clips = make_clips(2, 4)
    draws = in_mode(draw(world, clips), "policy")
    parts = (world.mixture, world.heads)
    optimizer = torch.optim.AdamW([p for m in parts for p in m.parameters()], lr=3e-3)
    losses = []
    for _ in range(8):
        loss, metrics = world.loss(clips, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    assert losses[-1] < 0.75 * losses[0]


def test_heads_read_true_frames_as_they_were(world: WorldModel) -> None:
    """Whatever noise and hidden actions the dynamics would learn to bear with the same draws."""
    clips = make_clips(3, 6)
    draws = draw(world, clips)
    noisy = dataclasses.replace(
        draws,
        history_level=torch.ones_like(draws.history_level),
        hidden=torch.ones_like(draws.hidden),
    )
    reading = read_truth(world, clips, noisy)
    latents = world.tokenizer.encode(clips["frames"]).float()
    torch.testing.assert_close(reading.after, latents[:, 1:], atol=0, rtol=0)
    torch.testing.assert_close(reading.before, latents[:, :-1], atol=0, rtol=0)
    plain = dataclasses.replace(
        draws,
        history_level=torch.zeros_like(draws.history_level),
        hidden=torch.zeros_like(draws.hidden),
    )
    assert torch.equal(reading.tokens, read_truth(world, clips, plain).tokens)


def test_a_dreamed_history_takes_the_place_of_the_truth(world: WorldModel) -> None:
    clips = make_clips(2, 4)
    latents = world.tokenizer.encode(clips["frames"]).detach()
    draws = draw(world, clips)
    loss = functools.partial(world.loss, draws=draws)
    assert torch.equal(loss(clips | {"history": latents})[0], loss(clips)[0])
    assert not torch.equal(loss(clips | {"history": latents + 0.3})[0], loss(clips)[0])


def test_losses_can_be_switched_off(world: WorldModel) -> None:
    clips = make_clips(2, 4)
    config = LossConfig(heads_weight=0.0, action_weight=0.0, video_levels=NoiseLevels())
    quiet = make_world()
    quiet.config = dataclasses.replace(quiet.config, loss=config)
    _, metrics = quiet.loss(clips, draw(quiet, clips))
    assert set(metrics) == {"loss", "video_loss", "video_mse", "copy_mse"}
    _, metrics = world.loss(clips, in_mode(draw(world, clips), "inverse"))
    assert {"inverse_loss", "reward_error", "end_loss", "state_error"} <= set(metrics)


def test_clips_must_be_whole_chunks(pairs: WorldModel) -> None:
    clips = make_clips(2, 5, frames_per_chunk=2)
    with pytest.raises(ValueError, match="clips of 5 frames cannot be cut into chunks of 2"):
        draw(pairs, clips)


def test_history_noise_is_the_dreams_own_and_enters_memory(world: WorldModel) -> None:
    noisy = WorldModel(dataclasses.replace(world.config, history_noise=0.3))
    noisy.load_state_dict(world.state_dict())
    clips = make_clips(2, 6)
    chunks = random_chunks(2, 1)
    first, _ = dream(noisy, start(noisy, clips), chunks)
    again, _ = dream(noisy, start(noisy, clips), chunks)
    clean, _ = dream(world, start(world, clips), chunks)
    assert torch.equal(first.previous, again.previous)
    assert not torch.allclose(first.previous[:, -1], clean.previous[:, -1], atol=0.05)
