import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from kairos_env import make_real
from kairos_env.errors import ActionError
from kairos_env.real import ForeignSnapshotError, RealEnv, SnapshotError
from kairos_env.real.experts import expert_for
from kairos_env.real.simulator import Simulator, shrink

SCENES = ["KairosReach-v0", "KairosPush-v0", "KairosOcclude-v0"]
# Ant's reward reads poses that lag the state by a physics step; Reacher keeps its goal in Python.
MUJOCO_TASKS = ["Ant-v5", "HalfCheetah-v5", "Reacher-v5", "InvertedPendulum-v5"]


class Countdown(gymnasium.Env):
    """Discrete, not MuJoCo: reward 1 for action 1; ends after `length` actions."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, *, length=6, documented=True, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 100, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.length = length
        if documented:
            self.state = None
        self._left = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = self.length
        self._set(int(self.np_random.integers(100)))
        return self._observation(), {}

    def step(self, action):
        self._left -= 1
        self._set(int(self.np_random.integers(100)))
        return self._observation(), float(action), self._left == 0, False, {"is_success": True}

    def render(self):
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[:, :, 0] = self._value
        picture[:, : 2 * self._left, 1] = 200
        return picture

    def _set(self, value):
        self._value = value
        if hasattr(self, "state"):
            self.state = (value,)

    def _observation(self):
        return np.array([self._value, self._left], np.float32)


def countdown(**kwargs):
    chunking = {k: kwargs.pop(k) for k in ("chunk", "frames_per_chunk", "horizon") if k in kwargs}
    env = Countdown(render_mode="rgb_array", **kwargs)
    return RealEnv(Simulator(env, frame_size=16), name="Countdown", **chunking)


def roll(env, chunks):
    """All that an episode shows, resets included."""
    seen = []
    for chunk in chunks:
        frame, reward, terminated, truncated, info = env.step(chunk)
        parts = [frame, np.array([reward, terminated, truncated, info["executed"]])]
        seen += [*parts, info["frames"], info["rewards"], info["state"]]
        if terminated or truncated:
            frame, info = env.reset()
            seen += [frame, info["state"]]
    return seen


def assert_identical(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def chunks_for(env, count, seed=0):
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


# -- the contract of Gymnasium --------------------------------------------------------------------


@pytest.mark.render
@pytest.mark.parametrize("name", [*SCENES, *MUJOCO_TASKS])
def test_gymnasium_finds_no_fault(name):
    env = make_real(name)
    check_env(env)
    env.close()


def test_gymnasium_finds_no_fault_in_other_environments():
    check_env(countdown(), skip_render_check=True, skip_close_check=True)


@pytest.mark.render
@pytest.mark.parametrize("name", ["KairosPush-v0", "Ant-v5"])
def test_the_same_seed_gives_the_same_episode_also_after_others(name):
    fresh, used = make_real(name), make_real(name)
    chunks = chunks_for(fresh, 10)
    used.reset(seed=1)
    roll(used, chunks)
    first = [fresh.reset(seed=7)[0], *roll(fresh, chunks)]
    second = [used.reset(seed=7)[0], *roll(used, chunks)]
    assert_identical(first, second)
    assert not np.array_equal(first[0], used.reset(seed=8)[0])


# -- chunks, rewards, frames ----------------------------------------------------------------------


@pytest.mark.render
def test_a_chunk_is_its_actions_one_after_the_other():
    whole, single = make_real("KairosPush-v0", chunk=4), gymnasium.make("KairosPush-v0")
    whole.reset(seed=3)
    single.reset(seed=3)
    for chunk in chunks_for(whole, 10):
        _, reward, _, _, info = whole.step(chunk)
        steps = [single.step(action) for action in chunk]
        np.testing.assert_allclose(info["rewards"], [s[1] for s in steps], atol=1e-6)
        assert reward == pytest.approx(sum(s[1] for s in steps), abs=1e-5)
        np.testing.assert_array_equal(info["state"], steps[-1][0])


def test_a_chunk_ends_early_and_sums_only_what_was_executed():
    env = countdown(length=6, chunk=4, frames_per_chunk=2)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(np.array([1, 1, 0, 1]))
    assert (reward, terminated, info["executed"]) == (3.0, False, 4)
    frame, reward, terminated, truncated, info = env.step(np.array([0, 1, 1, 1]))
    assert (reward, terminated, truncated, info["executed"]) == (1.0, True, False, 2)
    np.testing.assert_array_equal(info["rewards"], [0, 1, 0, 0])
    assert info["frames"].shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(info["frames"][0], info["frames"][1])
    np.testing.assert_array_equal(frame, info["frames"][-1])
    assert info["success"] is True


def test_frames_come_after_every_k_over_f_actions():
    fine, coarse = countdown(chunk=1), countdown(chunk=4, frames_per_chunk=4)
    fine.reset(seed=0)
    coarse.reset(seed=0)
    chunk = np.array([1, 0, 1, 0])
    info = coarse.step(chunk)[4]
    np.testing.assert_array_equal(info["frames"], [fine.step(action[None])[0] for action in chunk])
    assert coarse.fps == 10
    assert countdown(chunk=4).fps == 2.5


def test_an_early_end_between_frames_shows_the_end():
    env = countdown(length=3, chunk=4, frames_per_chunk=2)
    env.reset(seed=0)
    frame, _, terminated, _, info = env.step(np.array([1, 1, 1, 1]))
    assert terminated
    np.testing.assert_array_equal(info["frames"][1], frame)
    np.testing.assert_array_equal(frame, env.render())


def test_the_horizon_truncates_after_so_many_chunks():
    env = countdown(length=100, chunk=2, horizon=3)
    env.reset(seed=0)
    ends = [env.step(np.array([0, 0]))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


@pytest.mark.render
def test_a_horizon_replaces_the_time_limit_of_the_environment():
    env = make_real("KairosPush-v0", horizon=80)  # its own limit is 75 chunks
    env.reset(seed=0)
    ends = [env.step(np.zeros((4, 2), np.float32))[3] for _ in range(80)]
    assert ends == [False] * 79 + [True]


@pytest.mark.render
def test_following_an_expert_is_stepping_with_the_actions_it_took():
    led, replayed = make_real("KairosPush-v0"), make_real("KairosPush-v0")
    expert, rng = expert_for("KairosPush-v0"), np.random.default_rng(0)
    led.reset(seed=2)
    replayed.reset(seed=2)
    over = False
    while not over:
        planned = led.plan(expert, rng)
        *ends, info = led.follow(expert, rng)
        np.testing.assert_array_equal(planned, info["actions"])
        *same_ends, same_info = replayed.step(info["actions"])
        assert_identical([*ends, info["frames"]], [*same_ends, same_info["frames"]])
        over = ends[2] or ends[3]
    assert info["success"]


@pytest.mark.render
def test_a_policy_that_overshoots_is_clipped_when_followed():
    a, b = make_real("KairosReach-v0"), make_real("KairosReach-v0")
    a.reset(seed=0)
    b.reset(seed=0)
    *_, info = a.follow(lambda env, rng: np.array([9.0, -9.0]), np.random.default_rng(0))
    np.testing.assert_array_equal(info["actions"], np.array([[1, -1]] * 4))
    np.testing.assert_array_equal(b.step(info["actions"])[4]["state"], info["state"])
    with pytest.raises(ActionError, match="2 finite numbers"):
        a.follow(lambda env, rng: np.array([np.nan, 0]), np.random.default_rng(0))


@pytest.mark.render
def test_the_horizon_is_known_in_steps():
    assert make_real("KairosReach-v0", chunk=8).horizon == 25
    assert make_real("KairosReach-v0", chunk=3).horizon == 67
    assert make_real("KairosReach-v0", horizon=9).horizon == 9


# -- snapshots ------------------------------------------------------------------------------------


@pytest.mark.render
@pytest.mark.parametrize("name", [*SCENES, *MUJOCO_TASKS])
def test_a_snapshot_replays_200_actions_to_the_bit_also_elsewhere(name, tmp_path):
    env = make_real(name, chunk=2)
    env.reset(seed=4)
    chunks = chunks_for(env, 103)
    roll(env, chunks[:3])
    path = tmp_path / "start.npz"
    np.savez(path, **env.snapshot())
    truth = roll(env, chunks[3:])
    with np.load(path, allow_pickle=False) as loaded:
        snapshot = dict(loaded)
    frame, info = env.restore(snapshot)
    assert_identical(truth, roll(env, chunks[3:]))
    fresh = make_real(name, chunk=2)
    fresh_frame, fresh_info = fresh.restore(snapshot)
    np.testing.assert_array_equal(frame, fresh_frame)
    np.testing.assert_array_equal(info["state"], fresh_info["state"])
    assert_identical(truth, roll(fresh, chunks[3:]))
    env.close()
    fresh.close()


def test_a_documented_state_is_restored_with_counters_and_random_stream():
    env = countdown(length=6, chunk=2, horizon=5)
    env.reset(seed=0)
    chunks = chunks_for(env, 8)
    roll(env, chunks[:1])
    snapshot = env.snapshot()
    truth = roll(env, chunks[1:])
    env.restore(snapshot)
    assert_identical(truth, roll(env, chunks[1:]))
    fresh = countdown(length=6, chunk=2, horizon=5)
    fresh.restore(snapshot)
    assert_identical(truth, roll(fresh, chunks[1:]))


class Holder(gymnasium.Env):
    """Passes everything on to an environment that it holds, which draws from its own generator."""

    metadata = Countdown.metadata

    def __init__(self):
        self.held = Countdown(length=6, render_mode="rgb_array")
        self.observation_space = self.held.observation_space
        self.action_space = self.held.action_space
        self.state = ()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.held.reset(seed=seed)

    def step(self, action):
        return self.held.step(action)

    def render(self):
        return self.held.render()


def test_an_environment_inside_an_environment_is_restored_with_its_random_stream():
    env, fresh = (RealEnv(Simulator(Holder(), frame_size=16), name="Holder") for _ in range(2))
    env.reset(seed=0)
    chunks = chunks_for(env, 5)
    snapshot = env.snapshot()
    truth = roll(env, chunks)
    env.restore(snapshot)
    assert_identical(truth, roll(env, chunks))
    fresh.restore(snapshot)
    assert_identical(truth, roll(fresh, chunks))


def test_an_environment_that_hides_its_state_says_so():
    env = countdown(documented=False)
    env.reset(seed=0)
    with pytest.raises(SnapshotError, match="nor documents its state"):
        env.snapshot()
    assert issubclass(SnapshotError, NotImplementedError)


@pytest.mark.render
def test_a_changed_model_goes_into_the_snapshot_and_out_of_the_next_restore():
    changed, plain = make_real("KairosPush-v0"), make_real("KairosPush-v0")
    changed.reset(seed=0)
    plain.reset(seed=0)
    original = plain.snapshot()
    inner = changed.low_level.unwrapped
    block = inner.model.geom("block")
    block.size[:2] = 0.25
    block.rgba[:] = 1, 1, 0, 1
    inner.model.body("block").mass[:] = 3.0
    chunks = chunks_for(changed, 20)
    snapshot = changed.snapshot()
    truth = roll(changed, chunks)
    plain.restore(snapshot)
    assert_identical(truth, roll(plain, chunks))
    changed.restore(original)
    plain.restore(original)
    np.testing.assert_array_equal(block.size[:2], 0.156)
    assert_identical(roll(changed, chunks), roll(plain, chunks))


@pytest.mark.render
def test_the_time_limit_goes_into_the_snapshot():
    env = make_real("KairosReach-v0")
    env.reset(seed=0)
    still = np.zeros((4, 2), np.float32)
    for _ in range(48):
        env.step(still)
    other = make_real("KairosReach-v0")
    other.restore(env.snapshot())
    assert [other.step(still)[3] for _ in range(2)] == [False, True]
    ended = other.snapshot()
    env.restore(ended)
    with pytest.raises(ResetNeeded, match="over"):
        env.step(still)


@pytest.mark.render
def test_a_foreign_snapshot_is_refused():
    reach, push = make_real("KairosReach-v0"), make_real("KairosPush-v0")
    reach.reset(seed=0)
    push.reset(seed=0)
    with pytest.raises(ForeignSnapshotError, match=r"'KairosPush-v0'.*'KairosReach-v0'"):
        push.restore(reach.snapshot())
    with pytest.raises(ForeignSnapshotError, match="expected a snapshot"):
        push.restore({"qpos": np.zeros(3)})
    forged = {**reach.snapshot(), "name": np.array("KairosPush-v0")}
    with pytest.raises(ForeignSnapshotError, match="another model"):
        push.restore(forged)
    truncated = {k: v for k, v in push.snapshot().items() if not k.startswith("env/")}
    with pytest.raises(ForeignSnapshotError, match="not a snapshot"):
        push.restore(truncated)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((4, 3), np.float32), r"shape \(4, 2\), got \(4, 3\)"),
        (np.full((4, 2), 1.5, np.float32), "between -1.0 and 1.0"),
        (np.zeros(2, np.float32), r"one step takes 4 low-level actions"),
        (np.full((4, 2), np.nan, np.float32), "finite"),
        (np.full((4, 2), np.inf, np.float32), "finite"),
    ],
)
@pytest.mark.render
def test_a_bad_box_chunk_is_refused_before_anything_moves(chunk, message):
    env = make_real("KairosReach-v0")
    env.reset(seed=0)
    before = env.snapshot()
    with pytest.raises(ActionError, match=message):
        env.step(chunk)
    after = env.snapshot()
    np.testing.assert_array_equal(before["mujoco"], after["mujoco"])


@pytest.mark.parametrize("chunk", [np.array([0, 2]), np.array([0.5, 0.5]), np.array([-1, 0])])
def test_a_bad_discrete_chunk_is_refused(chunk):
    env = countdown(chunk=2)
    env.reset(seed=0)
    with pytest.raises(ActionError, match=r"whole numbers|choices from 0 to 1"):
        env.step(chunk)


def test_step_render_and_snapshot_need_a_reset():
    env = countdown(chunk=2)
    for call in (lambda: env.step(np.array([0, 0])), env.render, env.snapshot):
        with pytest.raises(ResetNeeded, match="call reset"):
            call()


def test_a_finished_episode_needs_a_reset():
    env = countdown(length=2, chunk=2)
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    with pytest.raises(ResetNeeded, match="over"):
        env.step(np.array([0, 0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 4, "frames_per_chunk": 3}, "must divide"),
        ({"chunk": 0}, "chunk=0"),
        ({"horizon": 0}, "at least 1"),
    ],
)
def test_impossible_chunking_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        countdown(**options)


# -- shrinking foreign pictures -------------------------------------------------------------------


def test_shrinking_by_a_whole_factor_is_the_mean_of_blocks():
    picture = np.random.default_rng(0).integers(0, 256, (24, 36, 3)).astype(np.uint8)
    slow = picture.reshape(12, 2, 12, 3, 3).astype(float).mean((1, 3))
    np.testing.assert_allclose(shrink(picture, 12), slow, atol=0.51)


def test_shrinking_by_any_factor_keeps_a_flat_colour_and_the_mean():
    flat = np.full((37, 53, 3), 123, np.uint8)
    assert (shrink(flat, 16) == 123).all()
    noisy = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    assert abs(shrink(noisy, 16).mean() - noisy.mean()) < 1


def test_a_snapshot_without_what_this_version_keeps_is_foreign():
    env = make_real("KairosReach-v0", render_mode=None)
    env.reset(seed=0)
    snapshot = env.snapshot()
    old = {name: value for name, value in snapshot.items() if not name.startswith("env/")}
    with pytest.raises(ForeignSnapshotError, match="not a snapshot of this kind"):
        env.restore(old)
    env.restore(snapshot)


def test_reachers_expert_brings_the_tip_to_the_target_and_holds_it_there():
    env = make_real("Reacher-v5", horizon=12, draw=False)  # 48 actions
    expert, rng = expert_for("Reacher-v5"), np.random.default_rng(0)
    for seed in range(20):
        env.reset(seed=seed)
        for _ in range(12):
            env.follow(expert, rng)
        data = env.low_level.unwrapped.data
        assert np.linalg.norm(data.body("fingertip").xpos[:2] - data.qpos[2:4]) < 0.01
        assert np.abs(data.qvel[:2]).max() < 0.5
    env.close()
