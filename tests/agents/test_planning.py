"""Promises of planning in the dream, and of acting on it in the real twin."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from short_dreams import a_dream

from kairos_env.agents.planning.following import FollowingPolicy, MPCPolicy, PlanningDecider
from kairos_env.agents.planning.planner import Planner
from kairos_env.agents.planning.returns import Objective, dreamed_returns
from kairos_env.spaces import chunk_space, encode_actions
from kairos_env.untrained import untrained_world
from kairos_env.world_model.world_model import Prediction


def small_planner(world, **options):
    return Planner(world, **{"horizon": 3, "candidates": 8, "iterations": 2, **options})


def brightness(prediction):
    """A user's reward over latents: (N, F)."""
    return prediction.latents.mean((2, 3, 4))


# ------------------------------------------------------------------------------ returns


class Line:
    """A world of one number that actions add to; reward and end are what the test says."""

    device = torch.device("cpu")

    def __init__(self, *, F=1, end=0.0, uncertainty=0.0):
        self.F, self.end, self.uncertainty = F, end, uncertainty

    def step(self, x, chunk, *, denoise_steps, decode):
        x = x + chunk.sum((1, 2))
        seen = x[:, None].expand(-1, self.F)
        return x, Prediction(
            latents=seen,
            reward=seen,
            end_probability=torch.full_like(seen, self.end),
            state=seen[..., None],
            uncertainty=torch.full_like(x, self.uncertainty),
            frames=seen if decode else None,
        )


def returns_on_a_line(line, **objective):
    """Of two dreams that start from 0 and 10 and go up by 1 in each of three steps."""
    start, up = torch.tensor([0.0, 10.0]), torch.full((2, 1, 1), 1.0)
    told = Objective(discount=0.5, **objective)
    return dreamed_returns(line, start, lambda t, x: up, horizon=3, objective=told).tolist()


def test_rewards_are_discounted_by_the_step() -> None:
    assert returns_on_a_line(Line()) == [1 + 2 / 2 + 3 / 4, 11 + 12 / 2 + 13 / 4]


def test_what_follows_an_expected_end_counts_as_far_as_it_is_expected() -> None:
    assert returns_on_a_line(Line(end=1.0)) == [1.0, 11.0]
    assert returns_on_a_line(Line(end=0.5)) == [1 + 2 / 4 + 3 / 16, 11 + 12 / 4 + 13 / 16]
    # Two frames a step: the second is already doubted.
    assert returns_on_a_line(Line(F=2, end=0.5))[0] == 1.5 * (1 + 2 / 8 + 3 / 64)


def test_uncertainty_costs() -> None:
    plain, taxed = returns_on_a_line(Line()), returns_on_a_line(Line(uncertainty=2.0))
    assert taxed == plain
    taxed = returns_on_a_line(Line(uncertainty=2.0), uncertainty_penalty=3.0)
    assert taxed == [value - 6 * (1 + 1 / 2 + 1 / 4) for value in plain]


def test_a_users_reward_and_value_take_the_place_of_the_worlds() -> None:
    rewarded = returns_on_a_line(Line(), reward=lambda p: -p.state[..., 0])
    assert rewarded == [-value for value in returns_on_a_line(Line())]
    valued = returns_on_a_line(Line(end=0.5), value=lambda p: p.state[:, -1, 0])
    plain = returns_on_a_line(Line(end=0.5))
    assert valued == [plain[0] + 3 / 64, plain[1] + 13 / 64]


def test_frames_are_decoded_only_for_who_looks_at_them() -> None:
    with pytest.raises(TypeError):
        returns_on_a_line(Line(), reward=lambda p: p.frames * 1.0)
    seen = returns_on_a_line(Line(), reward=lambda p: p.frames * 1.0, needs_frames=True)
    assert seen == returns_on_a_line(Line())


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"reward": lambda p: p.state}, r"reward function .*here \(2, 1\), got \(2, 1, 1\)"),
        ({"reward": lambda p: 1.0}, "reward function .* got float"),
        ({"value": lambda p: p.reward}, r"value function .*here \(2,\), got \(2, 1\)"),
    ],
)
def test_a_function_of_the_wrong_shape_is_told_the_right_one(objective, message) -> None:
    with pytest.raises(ValueError, match=message):
        returns_on_a_line(Line(), **objective)


def test_an_objective_without_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="discount must lie in"):
        Objective(discount=1.5)
    with pytest.raises(ValueError, match="uncertainty_penalty must not be negative"):
        Objective(uncertainty_penalty=-1.0)


# ------------------------------------------------------------------------------ planner


@pytest.mark.parametrize("method", ["cem", "icem", "mppi"])
def test_a_plan_is_a_legal_step_and_a_function_of_its_seed(world, method) -> None:
    planner, dream = small_planner(world, method=method), a_dream(world)
    before = dream.clone().tensors()
    plan, again, other = (planner.plan(dream, np.random.default_rng(s)) for s in (0, 0, 1))
    config = world.model.config
    assert plan.chunk.shape == (config.chunk, config.action_size)
    assert plan.guesses.shape[1:] == (3, config.action_size)
    space = chunk_space(world.manifest.environment.space, config.chunk)
    told = encode_actions(space, np.asarray(decoded(world, plan.chunk)))
    assert np.allclose(told, plan.chunk, atol=1e-6)
    assert np.array_equal(plan.chunk, again.chunk)
    assert plan.value == again.value
    assert np.array_equal(plan.guesses, again.guesses)
    assert not np.array_equal(plan.guesses, other.guesses)
    for name, value in dream.tensors().items():
        assert torch.equal(value, before[name]), name


def decoded(world, encoded):
    from kairos_env.spaces import decode_actions

    return decode_actions(world.manifest.environment.space, encoded)


def test_a_score_is_what_the_dream_itself_pays(plain) -> None:
    planner, dream = small_planner(plain, discount=0.9), a_dream(plain)
    plain.model.heads.end.bias.data.fill_(-30.0)  # it never ends
    candidates = np.random.default_rng(0).uniform(-1, 1, (4, 3, 2))
    for candidate, value in zip(candidates, planner.score(dream, candidates), strict=True):
        state, paid = dream, 0.0
        for t, action in enumerate(candidate):
            chunk = torch.tensor(action, dtype=torch.float32).expand(1, 4, 2)
            state, prediction = plain.model.step(state, chunk, decode=False)
            paid += 0.9**t * prediction.reward.sum().item()
        assert value == pytest.approx(paid, abs=1e-4)


def test_planning_beats_chance_on_a_users_reward(plain) -> None:
    planner = small_planner(plain, candidates=32, iterations=4, reward=brightness, horizon=2)
    dream, generator = a_dream(plain), np.random.default_rng(0)
    by_chance = planner.score(dream, generator.uniform(-1, 1, (32, 2, 2)))
    assert planner.plan(dream, generator).value > by_chance.max()


def test_a_plan_goes_on_where_the_last_one_stopped(plain) -> None:
    planner, dream = small_planner(plain), a_dream(plain)
    plan = planner.plan(dream, np.random.default_rng(0))
    assert np.array_equal(plan.guesses[0, -1], plan.guesses[0, -2])
    later = planner.plan(dream, np.random.default_rng(1), plan.guesses)
    assert later.value >= planner.score(dream, plan.guesses[:1])[0]


def test_actions_can_be_held_for_less_than_a_step(plain) -> None:
    dream = a_dream(plain)
    whole = small_planner(plain).plan(dream, np.random.default_rng(0)).chunk
    assert (whole == whole[0]).all()
    halves = small_planner(plain, hold=2).plan(dream, np.random.default_rng(0)).chunk
    assert np.array_equal(halves[0], halves[1])
    assert not np.array_equal(halves[1], halves[2])


def test_what_cannot_be_planned_is_refused(plain) -> None:
    for options, message in (
        ({"hold": 3}, "hold must divide the 4 actions"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"method": "sgd"}, "one of cem, icem, mppi"),
    ):
        with pytest.raises(ValueError, match=message):
            small_planner(plain, **options)
    with pytest.raises(ValueError, match="one dream at a time, got 2"):
        small_planner(plain).plan(a_dream(plain).index([0, 0]), np.random.default_rng(0))
    imported = SimpleNamespace(name="video", model=torch.nn.Identity())
    with pytest.raises(ValueError, match="predicts neither reward nor end"):
        Planner(imported)


# ------------------------------------------------------------------------------ following


class Pictures(gymnasium.Env):
    """A twin that shows pictures and nothing else."""

    def __init__(self, world):
        e = world.manifest.environment
        self.action_space, self.F = chunk_space(e.space, e.chunk), e.frames_per_chunk
        self.random, self.shown, self.told = np.random.default_rng(0), [], []

    def reset(self, **_):
        self.shown = [self._picture()]
        return self.shown[0], {}

    def step(self, action):
        assert action in self.action_space
        frames = [self._picture() for _ in range(self.F)]
        self.shown += frames
        self.told.append(action)
        return frames[-1], 0.0, False, False, {"frames": np.stack(frames)}

    def _picture(self):
        return self.random.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def played(world, steps=3, seed=0):
    """A policy after a few steps in pictures, and the pictures."""
    env, policy = Pictures(world), MPCPolicy(small_planner(world, iterations=1))
    frame, _ = env.reset()
    policy.begin(env, np.random.default_rng(seed))
    taken = []
    for _ in range(steps):
        taken.append(policy.step(env, frame))
        frame = taken[-1].frame
    return policy, env, taken


def test_the_dream_remembers_what_was_truly_seen(world) -> None:
    policy, env, taken = played(world)
    F, e = env.F, world.manifest.environment
    frames = np.stack([env.shown[0]] * (F - 1) + env.shown)  # one frame fills the first chunk
    told = np.concatenate([encode_actions(e.space, chunk) for chunk in env.told])
    actions = torch.from_numpy(told).unflatten(0, (len(env.told) * F, -1))
    dream = policy.dream
    assert dream.frame.tolist() == [F + 3 * F]
    start = world.model.start(torch.from_numpy(frames[None, :F]), seeds=dream.seed)
    once = world.model.observe(start, torch.from_numpy(frames[None, F:]), actions[None]).tensors()
    for name, value in dream.tensors().items():
        torch.testing.assert_close(value, once[name], atol=1e-4, rtol=1e-4, msg=name)
    assert all(step.info["decision_seconds"] > 0 for step in taken)
    assert all(step.info["decision_cpu_seconds"] >= 0 for step in taken)


def test_a_policy_is_a_function_of_seed_and_pictures(plain) -> None:
    one, again, other = ([s.chunk for s in played(plain, seed=s)[2]] for s in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_new_episode_forgets_the_last(plain) -> None:
    policy, _, first = played(plain)
    fresh = Pictures(plain)
    frame, _ = fresh.reset()
    policy.begin(fresh, np.random.default_rng(0))
    assert np.array_equal(policy.step(fresh, frame).chunk, first[0].chunk)


def test_another_environment_is_refused(plain) -> None:
    policy = FollowingPolicy(PlanningDecider(small_planner(plain)))
    env = Pictures(untrained_world(discrete=3))
    with pytest.raises(ValueError, match=r"world 'untrained' acts in Box.*make_twin"):
        policy.begin(env, np.random.default_rng(0))
