"""Promises of the noise schedule, the conversions and the sampler."""

import math

import pytest
import torch

from kairos_env.world_model.flow import (
    NoiseLevels,
    Schedule,
    ShapeShift,
    dmd_step,
    euler_step,
    noise,
    sample,
    sample_jointly,
    target,
    velocity_from_x0,
    x0_from_velocity,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_conversions_between_velocity_and_clean_data_are_inverse() -> None:
    z0, eps, s = normal(3, 4, 5), normal(3, 4, 5, seed=1), torch.tensor([0.1, 0.5, 1.0])
    z = noise(z0, eps, s)
    v = target(z0, eps)
    torch.testing.assert_close(x0_from_velocity(z, v, s), z0, atol=1e-6, rtol=0)
    torch.testing.assert_close(velocity_from_x0(z, z0, s), v, atol=1e-5, rtol=0)
    assert velocity_from_x0(z0, z0, torch.zeros(3)).isfinite().all()


def test_a_level_per_frame_is_broadcast_from_the_left() -> None:
    z0, eps = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    s = torch.rand(2, 3, generator=torch.Generator().manual_seed(2))
    z = noise(z0, eps, s)
    torch.testing.assert_close(z[1, 2], (1 - s[1, 2]) * z0[1, 2] + s[1, 2] * eps[1, 2])


@pytest.mark.parametrize(
    ("tokens", "frames", "shift"),
    # 480x832x81f, 704x1280x81f, 704x1280x241f
    [
        (1560, 21, 8.07),
        (3520, 21, 8.91),
        (3520, 61, 15.18),
        (256, 1, math.exp(0.5)),
        (8192, 1, math.exp(0.9)),
    ],
)
def test_shape_shift_has_the_published_values(tokens: int, frames: int, shift: float) -> None:
    assert ShapeShift(tokens=tokens, frames=frames).factor == pytest.approx(shift, abs=6e-3)


def test_few_step_schedule_has_the_published_times() -> None:
    expected = torch.tensor([1000.0, 952.38, 833.33, 357.14])
    torch.testing.assert_close(Schedule.few_step().timesteps, expected, atol=0.01, rtol=0)


def test_levels_are_those_of_the_published_arithmetic_to_the_bit() -> None:
    # computed by the published implementation; another order of operations moves the last bit,
    # and one unit there is visible in the timestep embedding
    video = Schedule.for_video(4, tokens=12, frames=9).sigmas
    expected = ("0x1.fffffep-1", "0x1.df4c98p-1", "0x1.a90276p-1", "0x1.3d379cp-1")
    assert video.tolist() == [float.fromhex(level) for level in expected]
    actions = Schedule.for_actions(4).sigmas
    expected = ("0x1.0p+0", "0x1.ep-1", "0x1.aaaaaap-1", "0x1.4p-1")
    assert actions.tolist() == [float.fromhex(level) for level in expected]


def test_levels_fall_strictly_and_end_at_zero() -> None:
    for schedule in (
        Schedule(steps=7),
        Schedule.for_actions(10),
        Schedule.for_video(20, tokens=1560, frames=21),
        Schedule(steps=5, terminal=0.02, shift=3.0),
    ):
        assert (schedule.path.diff() < 0).all()
        assert schedule.path[-1] == 0
        assert schedule.path.dtype == torch.float32
    assert Schedule(steps=5, terminal=0.02, shift=3.0).sigmas[-1] == pytest.approx(0.02, abs=1e-6)


def test_rising_orders_end_at_pure_noise() -> None:
    for order in ("rising", "mirrored"):
        path = Schedule(steps=6, lowest=0.01, extra_step=False, shift=5.0, order=order).path
        assert (path.diff() > 0).all() or path[-2] == 1
        assert path[-1] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"shift": 0.0},
        {"lowest": 0.5, "highest": 0.5},
        {"strength": 0.0},
        {"strength": 1.5},
    ],
)
def test_an_impossible_schedule_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Schedule(**wrong)


def test_euler_is_exact_on_the_straight_path() -> None:
    z0, eps = normal(2, 3), normal(2, 3, seed=1)
    out = sample(lambda z, s: target(z0, eps), eps, Schedule.for_actions(5))
    torch.testing.assert_close(out, z0, atol=1e-6, rtol=0)


def test_the_loop_equals_steps_written_out() -> None:
    schedule, eps = Schedule(steps=2, shift=3.0), normal(2, 3)

    def network(z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z) + s

    z = eps
    z = z + network(z, torch.tensor(1.0)) * (0.75 - 1.0)
    z = z + network(z, torch.tensor(0.75)) * (0.0 - 0.75)
    torch.testing.assert_close(sample(network, eps, schedule), z, atol=1e-6, rtol=0)


def test_few_step_sampling_noises_the_clean_estimate_again_and_returns_the_last_one() -> None:
    schedule, eps = Schedule.few_step((1000, 500)), normal(2, 3)
    fresh = [normal(2, 3, seed=1), normal(2, 3, seed=2)]
    levels = []

    def network(z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        levels.append(float(s))
        return torch.tanh(z) + s

    out = sample(network, eps, schedule, renoise=lambda i: fresh[i])
    first = eps - (torch.tanh(eps) + 1.0)
    s = levels[1]
    z = (1 - s) * first + s * fresh[0]
    torch.testing.assert_close(out, z - s * (torch.tanh(z) + s), atol=1e-6, rtol=0)


def test_pinned_data_is_seen_by_every_step_and_returned_by_euler_only() -> None:
    seen = []

    def pin(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(z[:1], 7.0), z[1:]])

    def network(z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        seen.append(float(z[0, 0]))
        return torch.ones_like(z)

    eps = normal(2, 3)
    assert (sample(network, eps, Schedule(steps=3), pin=pin)[0] == 7).all()
    assert (
        sample(network, eps, Schedule(steps=3), pin=pin, renoise=lambda i: eps)[0] == 6
    ).sum() == 0
    assert seen == [7.0] * 6


def test_streams_run_together_on_their_own_levels() -> None:
    schedules = (Schedule.for_video(3, tokens=12, frames=2), Schedule.for_actions(3))
    noises = (normal(2, 3), normal(4, seed=1))

    def alone(z: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z) + s

    together = sample_jointly(
        lambda zs, s: (alone(zs[0], s[0]), alone(zs[1], s[1])), noises, schedules
    )
    for out, z, schedule in zip(together, noises, schedules, strict=True):
        torch.testing.assert_close(out, sample(alone, z, schedule))
    with pytest.raises(ValueError, match="equally many steps"):
        sample_jointly(lambda zs, s: zs, noises, (Schedule(steps=2), Schedule(steps=3)))


def test_one_step_from_any_level_to_the_end_is_the_same_for_both_steps() -> None:
    z, v, eps = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)
    s, end = torch.tensor(0.6), torch.tensor(0.0)
    torch.testing.assert_close(euler_step(z, v, s, end), dmd_step(z, v, s, end, eps=eps))


def test_training_levels_have_the_fractions_and_moments_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    s = NoiseLevels(pure_noise=0.5, clean=0.1).sample((20_000,), generator=generator)
    assert float((s == 1).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((s == 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    inner = s[(s > 0) & (s < 1)]
    assert float(inner.mean()) == pytest.approx(0.5, abs=0.02)
    shifted = NoiseLevels(shift=3.0).sample((20_000,), generator=generator)
    assert float(shifted.median()) == pytest.approx(0.75, abs=0.02)
    logit = NoiseLevels(kind="logit_normal", mean=1.0, std=0.5).sample(
        (20_000,), generator=generator
    )
    assert float(torch.logit(logit).mean()) == pytest.approx(1.0, abs=0.02)
    assert float(torch.logit(logit).std()) == pytest.approx(0.5, abs=0.02)
    low = NoiseLevels(low=0.0, high=0.15).sample((1000,), generator=generator)
    assert float(low.max()) <= 0.15


def test_training_levels_come_from_their_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draws = [
        NoiseLevels().sample((5,), generator=torch.Generator().manual_seed(3)) for _ in range(2)
    ]
    assert torch.equal(*draws)
    assert torch.equal(before, torch.random.get_rng_state())


def test_impossible_fractions_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        NoiseLevels(pure_noise=0.7, clean=0.5)
    with pytest.raises(ValueError, match="low <= high"):
        NoiseLevels(low=0.7, high=0.5)
