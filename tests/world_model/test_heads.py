"""Promises of the heads: reward, end, state and how sure they are."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kairos_env.world_model.heads import (
    REWARD_WORTH,
    Heads,
    HeadsConfig,
    Places,
    Reading,
    worth,
)

B, T, C, h, w = 3, 4, 4, 6, 8
L, D, A, N, S = 5, 12, 2, 3, 2  # tokens, their width, actions of N numbers, state numbers


def make_heads(state_size: int = S, end_weight: float = 10.0) -> Heads:
    config = HeadsConfig(
        state_size=state_size, hidden=16, channels=8, end_weight=end_weight, end_threshold=0.5
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Heads(config, (C, h, w), (L, D), A * N)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def transitions() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        normal(B, T, C, h, w, seed=1),
        normal(B, T, C, h, w, seed=2),
        normal(B, T, A, N, seed=3),
        normal(B, T, L, D, seed=4),
    )


def targets(state_size: int = S) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reward, ended, state, valid."""
    ended = torch.zeros(B, T, dtype=torch.bool)
    ended[1, 2] = True
    valid = torch.ones(B, T, dtype=torch.bool)
    return normal(B, T, seed=5), ended, normal(B, T, state_size, seed=6), valid


def to_learn(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], goals: tuple[Tensor, Tensor, Tensor, Tensor]
) -> Reading:
    return Reading(*inputs, *goals)


@pytest.mark.parametrize("state_size", [0, 1, 5])
def test_every_transition_gets_its_numbers(state_size: int) -> None:
    readout = make_heads(state_size)(*transitions())
    assert readout.reward.shape == readout.end_logit.shape == (B, T)
    assert readout.state.shape == (B, T, state_size)
    assert readout.spread.shape == (B, T, 1 + state_size)
    assert (readout.spread > 0).all()


def test_a_latent_frame_of_odd_size_is_read_too() -> None:
    heads = Heads(HeadsConfig(state_size=1, hidden=8, channels=8), (C, 5, 3), (L, D), A * N)
    before, after = normal(2, B, T, C, 5, 3)
    assert heads(before, after, *transitions()[2:]).state.shape == (B, T, 1)


@pytest.mark.parametrize("changed", range(4), ids=["before", "after", "actions", "tokens"])
def test_all_that_is_read_counts_and_only_for_its_own_transition(changed: int) -> None:
    heads, inputs = make_heads(), list(transitions())
    first = heads(*inputs)
    inputs[changed] = inputs[changed].clone()
    inputs[changed][1, 2] += 1.0
    second = heads(*inputs)
    different = (second.state - first.state).abs().amax(-1) > 1e-6
    assert different.nonzero().tolist() == [[1, 2]]


def test_numbers_come_in_the_units_of_the_data() -> None:
    heads, inputs = make_heads(), transitions()
    plain = heads(*inputs)
    reward, state = 3.0 + 5.0 * normal(200, seed=7), normal(200, S, seed=8) * 7.0 - 2.0
    heads.fit_statistics(reward, state)
    scaled = heads(*inputs)
    torch.testing.assert_close(scaled.reward, plain.reward * reward.std() + reward.mean())
    torch.testing.assert_close(scaled.state, plain.state * state.std(0) + state.mean(0))
    torch.testing.assert_close(scaled.spread[..., 0], plain.spread[..., 0] * reward.std())
    assert torch.equal(scaled.end_logit, plain.end_logit)


def test_a_number_that_never_changes_is_learned_as_a_constant() -> None:
    heads = make_heads()
    state = torch.stack([torch.full((50,), 4.0), normal(50)], dim=1)
    heads.fit_statistics(torch.full((50,), 2.0), state)
    assert heads.state_scale[0] == 1.0
    assert heads.state_mean[0] == 4.0
    assert heads.reward_mean == 2.0
    assert heads.reward_scale > 0.0


def test_the_loss_is_the_mean_over_clips() -> None:
    heads, inputs, goals = make_heads(), transitions(), targets()
    whole, _ = heads.loss(to_learn(inputs, goals))
    alone = [
        heads.loss(to_learn(inputs, goals).each(lambda x, i=i: x[i : i + 1]))[0] for i in range(B)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_transitions_that_do_not_exist_do_not_count() -> None:
    heads, inputs = make_heads(), transitions()
    reward, ended, state, valid = targets()
    valid[:, 2:] = False
    reading = to_learn(inputs, (reward, ended, state, valid))
    first, _ = heads.loss(reading)
    reward[:, 2:], state[:, 2:], ended[:, 2:] = 99.0, -99.0, True
    second, _ = heads.loss(reading)
    short, _ = heads.loss(reading.each(lambda x: x[:, :2]))
    assert reading.existing().reward.shape == (2 * B, 1)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, short)


def test_a_terminal_transition_counts_more_than_an_ordinary_one() -> None:
    reward, _, state, valid = targets()
    for ended, ratio in ((True, 10.0), (False, 1.0)):
        every = torch.full((B, T), ended)
        plain, heavy = (
            make_heads(end_weight=weight).loss(
                to_learn(transitions(), (reward, every, state, valid))
            )[1]
            for weight in (1.0, 10.0)
        )
        torch.testing.assert_close(heavy["end_loss"], ratio * plain["end_loss"])


def test_the_spread_does_not_excuse_the_reward() -> None:
    """With a reward alone, the mean's gradient is that of the squared error."""
    heads, inputs, goals = make_heads(0), transitions(), targets(0)
    heads.loss(to_learn(inputs, goals))[0].backward()
    before = heads.mean.weight.grad.clone()
    heads.zero_grad()
    with torch.no_grad():
        heads.log_spread.bias.add_(2.0)
    heads.loss(to_learn(inputs, goals))[0].backward()
    torch.testing.assert_close(heads.mean.weight.grad, before)
    assert heads.log_spread.weight.grad.any()


def test_what_can_be_known_exactly_counts_more_than_what_cannot() -> None:
    log_spread = torch.log(torch.tensor([0.001, 1.0, 0.1, 0.05, 0.0001]))
    reward, vague, known, better, best = worth(log_spread).tolist()
    assert vague < known < better
    assert known / vague == pytest.approx(10.0)
    assert best == better  # within bounds
    assert reward == REWARD_WORTH


def test_the_spread_learns_the_size_of_the_error() -> None:
    heads = make_heads(0)
    inputs = transitions()
    noise = 0.2 * torch.randn((40, B, T), generator=torch.Generator().manual_seed(9))
    _, ended, _, valid = targets()
    optimizer = torch.optim.Adam([*heads.mean.parameters(), *heads.log_spread.parameters()], 0.05)
    for step in range(80):
        state = torch.zeros(B, T, 0)
        goals = (1.0 + noise[step % 40], ended, state, valid)
        loss, _ = heads.loss(to_learn(inputs, goals))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    readout = heads(*inputs)
    assert (readout.reward.mean() - 1.0).abs() < 0.1
    assert 0.1 < readout.spread.mean() < 0.4


def test_metrics_are_detached_and_name_the_state_only_where_there_is_one() -> None:
    for size, names in (
        (S, {"reward_error", "end_loss", "state_error"}),
        (0, {"reward_error", "end_loss"}),
    ):
        total, metrics = make_heads(size).loss(to_learn(transitions(), targets(size)))
        assert set(metrics) == names
        assert total.requires_grad
        assert not any(value.requires_grad for value in metrics.values())


def test_places_follow_what_they_look_for() -> None:
    places = Places(1, 8, 3)
    with torch.no_grad():
        for layer in places.look:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
                layer.weight[:, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 2.0
                layer.bias.zero_()
        places.look[-1].weight.fill_(20.0)
    seen = torch.zeros(2, 1, 5, 9)
    seen[0, 0, 1, 6] = seen[1, 0, 4, 0] = 1.0
    centres = places(seen).view(2, 3, 2)
    torch.testing.assert_close(
        centres[0], torch.tensor([-0.5, 0.5]).expand(3, 2), atol=0.05, rtol=0
    )
    torch.testing.assert_close(
        centres[1], torch.tensor([1.0, -1.0]).expand(3, 2), atol=0.05, rtol=0
    )


def test_worlds_made_before_places_keep_their_tensors() -> None:
    names = make_heads().state_dict().keys()
    assert not [name for name in names if name.startswith("places.")]
    found = Heads(
        HeadsConfig(state_size=S, hidden=16, channels=8, places=4), (C, h, w), (L, D), A * N
    )
    assert found(*transitions()).state.shape == (B, T, S)
    assert set(found.state_dict()) > set(names)


def learn(heads: Heads, batches: Sequence[tuple[Reading, torch.Tensor]], rate: float) -> None:
    """Teach heads one batch after the other, each with its sketches, as the trainer does."""
    optimizer = torch.optim.Adam(heads.parameters(), rate, betas=(0.9, 0.99))
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
    for reading, sketch in batches:
        loss, _ = heads.loss(reading, sketch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimizer.step()
        slower.step()


SKETCHED = HeadsConfig(state_size=S, hidden=16, channels=8, sketched=8)
STRAIGHT = dataclasses.replace(SKETCHED, straight=True)
MEASURED = dataclasses.replace(STRAIGHT, measured=4)


@pytest.mark.parametrize(("config", "off"), [(SKETCHED, 0.3), (STRAIGHT, 0.1), (MEASURED, 0.1)])
def test_heads_learn_from_the_sketch_where_a_thing_is_and_how_it_moves(
    config: HeadsConfig, off: float
) -> None:
    """From the sketch alone: the latents are the same in all transitions."""
    random = torch.Generator().manual_seed(1)
    at = torch.randint(2, 10, (B, T, 2), generator=random)  # column before and after
    sketch = torch.zeros(B, T, 2, 1, 12, 12)
    sketch[torch.arange(B)[:, None, None], torch.arange(T)[:, None], [0, 1], 0, 5, at] = 5.0
    state = torch.stack([at[..., 1], at[..., 1] - at[..., 0]], dim=-1).float()
    same = tuple(torch.zeros_like(x) for x in transitions())
    reward, ended, valid = torch.zeros(B, T), torch.zeros(B, T).bool(), torch.ones(B, T).bool()
    heads = sketching(config)
    heads.fit_statistics(reward.flatten(), state.flatten(0, 1))
    learn(heads, [(Reading(*same, reward, ended, state, valid), sketch)] * 1200, rate=3e-3)
    assert heads.sketched is not None
    places = heads.sketched.locate(sketch)
    torch.testing.assert_close(heads(*same, places).state, state, atol=off, rtol=0)


def test_straight_lines_are_read_off_the_sketch_alone() -> None:
    """New ones say nothing yet; without a sketch to read there are none."""
    sketch = torch.randn(B, T, 2, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    heads = sketching(STRAIGHT)
    assert heads.sketched is not None
    places = heads.sketched.locate(sketch)
    before = heads(*transitions(), places).state
    with torch.no_grad():
        heads.sketched.out.weight.zero_()
        unseen = heads(*transitions(), places).state
        heads.sketched.lines.weight[1:, : heads.config.sketched] = 1.0
    assert not torch.equal(before, unseen)
    moved = heads(*transitions(), places).state - unseen
    torch.testing.assert_close(moved[..., 0], moved[..., 1])
    assert moved.abs().min() > 0
    with pytest.raises(ValueError, match="sketched"):
        HeadsConfig(state_size=S, straight=True)


def sketching(config: HeadsConfig, channels: int = 1) -> Heads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Heads(config, (C, h, w), (L, D), A * N, sketch_channels=channels)


def test_heads_that_take_on_distances_begin_as_they_were() -> None:
    sketch = torch.randn(B, T, 2, 1, 12, 12, generator=torch.Generator().manual_seed(3))
    older, newer = sketching(STRAIGHT), sketching(MEASURED)
    missing = newer.load_state_dict(older.state_dict(), strict=False).missing_keys
    assert {name.split(".")[1] for name in missing} == {"measured", "places"}
    readouts = []
    for heads in (older, newer):
        assert heads.sketched is not None
        readouts.append(heads(*transitions(), heads.sketched.locate(sketch)))
    for before, after in zip(*readouts, strict=True):
        torch.testing.assert_close(after, before)
    with pytest.raises(ValueError, match=r"measured is about `sketched` kinds of things"):
        HeadsConfig(state_size=S, measured=4)


def test_distances_are_those_between_places() -> None:
    heads = sketching(MEASURED)
    assert heads.sketched is not None
    measured = heads.sketched.measured
    assert measured is not None
    with torch.no_grad():
        measured.difference.weight.zero_()
        measured.difference.weight[0, 2], measured.difference.weight[0, 5] = 1.0, -1.0
        measured.offset.zero_()
    centres = torch.zeros(3, 16)
    centres[:, 4:6] = torch.tensor([[0.3, 0.0], [-0.3, 0.4], [0.0, 0.0]])  # of the third kind
    centres[:, 10:12] = torch.tensor([[0.0, 0.4], [-0.3, 0.0], [0.0, 0.0]])  # of the sixth
    distances = measured.distances(centres)
    expected = torch.tensor([0.5, 0.4, 0.0])
    torch.testing.assert_close(distances[:, 0], expected, atol=0.021, rtol=0)
    assert torch.isfinite(distances.log()).all()


def two_discs(random: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (count, 2, 12, 12) of two things, one a channel, and how far they are apart."""
    at = 2.5 + 7.0 * torch.rand(count, 2, 2, generator=random)
    grid = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij"))
    away = (grid - at[..., None, None]).square().sum(2).sqrt()
    return (2.5 - away).clamp(0.0, 1.0), (at[:, 0] - at[:, 1]).norm(dim=-1)


def test_whether_two_things_touch_is_told_better_by_who_measures_their_distance() -> None:
    """A reward for being near, as most are: one where they are nearer than their width."""
    random = torch.Generator().manual_seed(4)
    seen, distance = two_discs(random, 1200)
    reward = (distance < 3.0).float()[:, None]
    sketch = (4.0 * seen)[:, None, None].expand(-1, 1, 2, -1, -1, -1)
    same = tuple(torch.zeros_like(x[:1, :1]).expand(1200, 1, *x.shape[2:]) for x in transitions())
    ended, valid = torch.zeros(1200, 1).bool(), torch.ones(1200, 1).bool()
    whole = Reading(*same, reward, ended, torch.zeros(1200, 1, 0), valid)
    asked = whole.each(lambda x: x[900:])
    errors = []
    for measured in (0, 8):
        config = dataclasses.replace(STRAIGHT, state_size=0, measured=measured)
        heads = sketching(config, channels=2)
        drawn = torch.randint(900, (300, 64), generator=random)
        learn(heads, [(whole.each(lambda x, i=i: x[i]), sketch[i]) for i in drawn], rate=1e-2)
        assert heads.sketched is not None
        places = heads.sketched.locate(sketch[900:])
        told = heads(*asked[:4], places).reward
        errors.append(float((told - asked.reward).square().mean().detach()))
    assert errors[1] < 0.75 * errors[0], errors
