import dataclasses
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from small_worlds import chosen, ending, pairs, plain

from kairos_env.env import DreamEnv
from kairos_env.errors import ActionError, OptionError
from kairos_env.real.snapshots import ForeignSnapshotError
from kairos_env.vector_env import DreamVectorEnv

# Sums over a batch may be taken in another order than those of one dream. Measured over 20 steps:
# latents 8e-7, rewards and states 1e-7; a colour that lies between two numbers may round otherwise.
COLOUR, NUMBER = 1, 1e-5


def make(num_envs=3, **kwargs):
    return DreamVectorEnv(num_envs, **{"world": plain(), "horizon": 5, **kwargs})


def chunks(count, dreams, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, dreams, 4, 2)).astype(np.float32)


def close(mine, theirs, path=""):
    """The same structure, types and, but for rounding, numbers."""
    assert type(mine) is type(theirs), path
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), path
        for key in mine:
            close(mine[key], theirs[key], f"{path}/{key}")
    elif isinstance(mine, np.ndarray):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), path
        if mine.dtype == object:
            for a, b in zip(mine, theirs, strict=True):
                close(a, b, path)
        else:
            limit = COLOUR if mine.dtype == np.uint8 else NUMBER
            assert np.abs(mine.astype(float) - theirs).max(initial=0) <= limit, path
    else:
        assert mine == theirs, path


def known(infos):
    """Infos without the entries that are news of nobody there: their content has no meaning."""
    kept = {}
    for key, value in infos.items():
        if not key.startswith("_"):
            mask = infos[f"_{key}"]
            kept[key] = known(value) if isinstance(value, dict) else value[mask]
            kept[f"_{key}"] = mask
    return kept


# ------------------------------------------------------------------------ the contract


@pytest.mark.parametrize(
    ("world", "mode"),
    [
        *((ending, mode) for mode in AutoresetMode),
        (chosen, AutoresetMode.NEXT_STEP),
        (pairs, AutoresetMode.SAME_STEP),
    ],
)
def test_a_batch_behaves_as_gymnasiums_vector_of_single_dreams(world, mode):
    kwargs = {"world": world(), "horizon": 4, "observation": "dict"}
    batch = DreamVectorEnv(3, autoreset_mode=mode, **kwargs)
    singles = SyncVectorEnv([lambda: DreamEnv(**kwargs)] * 3, autoreset_mode=mode)
    assert batch.observation_space == singles.observation_space
    assert batch.action_space == singles.action_space
    assert batch.metadata["autoreset_mode"] is mode
    observed, told = batch.reset(seed=5)
    expected = singles.reset(seed=5)
    close(observed, expected[0])
    close(known(told), known(expected[1]))
    batch.action_space.seed(0)
    ends = 0
    for _ in range(9):
        actions = batch.action_space.sample()
        mine, theirs = batch.step(actions), singles.step(actions)
        assert mine[0] in batch.observation_space
        for a, b in zip(mine[:4], theirs[:4], strict=True):
            close(a, b)
        close(known(mine[4]), known(theirs[4]))
        over = mine[2] | mine[3]
        ends += int(over.sum())
        if mode is AutoresetMode.DISABLED and over.any():
            options = {"reset_mask": over}
            mine, theirs = batch.reset(options=options), singles.reset(options=dict(options))
            close(mine[0], theirs[0])
            close(known(mine[1]), known(theirs[1]))
    assert ends >= 6
    batch.close()
    singles.close()


def test_make_vec_opens_it():
    envs = gym.make_vec("Kairos-v0", num_envs=3, max_episode_steps=2, observation="latent")
    assert isinstance(envs, DreamVectorEnv)
    envs.reset(seed=0)
    assert not envs.step(envs.action_space.sample())[3].any()
    assert envs.step(envs.action_space.sample())[3].all()
    envs.close()
    envs.close()
    with pytest.raises(ClosedEnvironmentError):
        envs.reset()


def test_gymnasiums_vector_wrappers_work():
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make(3, horizon=2))
    envs.reset(seed=0)
    rewards = [envs.step(envs.action_space.sample())[1] for _ in range(1)]
    *_, infos = envs.step(envs.action_space.sample())
    assert infos["episode"]["l"].tolist() == [2, 2, 2]
    assert len(rewards) == 1


# ------------------------------------------------------------------------ determinism


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_dream_is_the_same_in_any_batch_and_slot(size):
    slots = np.random.default_rng(size).permutation(9)[:size]
    actions = chunks(12, 9)
    whole, part = make(9), make(size)
    whole.reset(seed=list(range(9)))
    part.reset(seed=[int(slot) for slot in slots])
    for step in actions:  # the horizon is 5: two automatic resets are among them
        mine, theirs = part.step(step[slots]), whole.step(step)
        for a, b in zip(mine[:4], theirs[:4], strict=True):
            close(a, b[slots])
        for key, value in known(mine[4]).items():
            close(value, known(theirs[4])[key][slots])


def test_the_same_seed_gives_the_same_bits():
    runs = []
    for _ in range(2):
        envs = make(4)
        observed = [envs.reset(seed=3)[0]]
        observed += [envs.step(actions)[0] for actions in chunks(7, 4)]
        runs.append(np.stack(observed))
    assert np.array_equal(*runs)
    assert not np.array_equal(runs[0][:, 0], runs[0][:, 1])


def test_noise_actions_and_start_all_show():
    def after(seed=0, scale=1.0, start=0):
        envs = make(1, observation="latent", start=start)
        envs.reset(seed=seed)
        return [envs.step(scale * actions)[0] for actions in chunks(3, 1)][-1]

    base = after()
    assert np.array_equal(base, after())
    for other in (after(seed=1), after(scale=0.5), after(start=1)):
        assert np.abs(base - other).max() > 1e-4


def test_global_random_numbers_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    envs = make(2, world="untrained")
    envs.reset(seed=0)
    envs.reset()
    for actions in chunks(6, 2):
        envs.step(actions)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_unseeded_dreams_differ():
    envs = make(2, observation="latent")
    first, second = envs.reset()[0], make(2, observation="latent").reset()[0]
    seeds = {int(s) for s in envs.snapshot().memory.seed}
    assert len(seeds) == 2
    assert not np.array_equal(first, second) or len(plain().starts) == 1


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_partial_reset_leaves_the_neighbours_bit_for_bit(mode):
    undisturbed, disturbed = (make(3, horizon=99, autoreset_mode=mode) for _ in range(2))
    for envs in (undisturbed, disturbed):
        envs.reset(seed=0)
        envs.step(chunks(1, 3)[0])
    before = disturbed.snapshot([0, 2])
    mask = np.array([False, True, False])
    _, infos = disturbed.reset(seed=77, options={"reset_mask": mask, "start_index": 3})
    assert infos["_start_index"].tolist() == mask.tolist()
    assert infos["start_index"][1] == 3
    after = disturbed.snapshot([0, 2])
    for name, tensor in before.memory.tensors().items():
        assert torch.equal(tensor, after.memory.tensors()[name]), name
    for actions in chunks(4, 3, seed=1):
        mine, theirs = disturbed.step(actions), undisturbed.step(actions)
        assert np.array_equal(mine[0][[0, 2]], theirs[0][[0, 2]])
        assert np.array_equal(mine[1][[0, 2]], theirs[1][[0, 2]])


def test_a_dream_that_begins_anew_does_not_depend_on_when_its_neighbours_do():
    alone = make(1, world=ending())
    crowd = make(6, world=ending())
    alone.reset(seed=[2])
    crowd.reset(seed=list(range(6)))
    for actions in chunks(8, 6):
        mine, theirs = alone.step(actions[2:3]), crowd.step(actions)
        close(mine[0], theirs[0][2:3])
        assert mine[2][0] == theirs[2][2]


# ------------------------------------------------------------------------ episodes


def test_a_chunk_that_ends_early_shows_its_last_frame_and_earns_nothing_more():
    envs = make(32, world=ending(2), horizon=99)
    envs.reset(seed=0)
    early = 0
    for actions in chunks(6, 32):
        over = envs.snapshot().over
        _, rewards, terminated, _, infos = envs.step(actions)
        assert np.allclose(rewards, infos["rewards"].sum(1))
        for i in np.flatnonzero(terminated & ~over & (infos["rewards"][:, 1] == 0)):
            early += 1
            assert np.array_equal(infos["frames"][i, 0], infos["frames"][i, 1])
            assert infos["end_probability"][i] > 0.5
    assert early > 0


def test_time_and_truncation_follow_the_manifest():
    envs = DreamVectorEnv(2, world=plain())
    envs.reset(seed=0)
    horizon = plain().manifest.environment.horizon
    snapshot = dataclasses.replace(envs.snapshot(), elapsed=np.array([horizon - 3, 0]))
    envs.restore(snapshot)
    for step in (horizon - 2, horizon - 1, horizon):
        _, _, _, truncated, infos = envs.step(envs.action_space.sample())
        assert infos["time"][0] == pytest.approx(step * 0.16)
        assert truncated.tolist() == [step == horizon, False]


def test_more_frames_per_step_are_the_same_dream():
    one, three = make(2, horizon=99), make(2, horizon=99, frames_per_chunk=3, all_frames=True)
    one.reset(seed=0)
    three.reset(seed=0)
    assert three.single_action_space.shape == (12, 2)
    actions = chunks(3, 2)
    frames = np.stack([one.step(step)[0] for step in actions], axis=1)
    observed, *_, infos = three.step(np.concatenate(list(actions), axis=1))
    assert np.array_equal(observed, frames)
    assert infos["rewards"].shape == (2, 3)
    assert infos["time"][0] == pytest.approx(0.48)


def test_frames_can_be_left_undecoded():
    envs, decoded = (make(2, observation="latent", decode=decode) for decode in (False, True))
    first, infos = envs.reset(seed=0)
    assert np.array_equal(first, decoded.reset(seed=0)[0])
    assert "frames" not in infos
    actions = chunks(1, 2)[0]
    assert np.array_equal(envs.step(actions)[0], decoded.step(actions)[0])


def test_what_was_returned_may_be_written_on():
    envs, clean = make(2, render_mode="rgb_array"), make(2)
    for either in (envs, clean):
        either.reset(seed=0)
    observed, *_, infos = envs.step(chunks(1, 2)[0])
    clean.step(chunks(1, 2)[0])
    shown = envs.render()[0].copy()
    observed[:] = 0
    for array in infos.values():
        array[:] = 0
    assert np.array_equal(envs.render()[0], shown)
    assert np.array_equal(envs.step(chunks(1, 2)[0])[0], clean.step(chunks(1, 2)[0])[0])


def test_every_predicted_frame_can_be_rendered():
    envs = make(2, render_mode="rgb_array_list", frames_per_chunk=2, horizon=99)
    assert envs.metadata["render_fps"] == pytest.approx(6.25)
    observed, _ = envs.reset(seed=0)
    assert np.array_equal(envs.render()[1], observed[1:2])
    infos = [envs.step(envs.action_space.sample())[4] for _ in range(2)]
    shown = envs.render()
    assert np.array_equal(shown[1], np.concatenate([info["frames"][1] for info in infos]))
    assert envs.render() == ([], [])


# ------------------------------------------------------------------------ beginnings


def test_options_begin_where_they_say():
    envs = make(2, observation="dict", horizon=99)
    starts = plain().starts
    observed, infos = envs.reset(seed=0, options={"start_index": [4, 1]})
    assert np.array_equal(observed["pixels"], starts.frames[[4, 1], -1])
    assert np.allclose(observed["state"], starts.state[[4, 1]])
    assert infos["start_index"].tolist() == [4, 1]
    after = envs.step(chunks(1, 2)[0])
    # the same history handed in from outside, once per dream and once for all
    actions = np.broadcast_to(starts.actions[[4, 1]], (2, 2, 4, 2))
    own = {"frames": starts.frames[[4, 1]], "actions": actions, "state": starts.state[[4, 1]]}
    _, infos = envs.reset(seed=0, options=own)
    assert infos["start_index"].tolist() == [-1, -1]
    close(envs.step(chunks(1, 2)[0])[0], after[0])
    one = {name: value[0] for name, value in own.items()}
    observed, _ = envs.reset(seed=0, options=one)
    assert np.array_equal(observed["pixels"][0], observed["pixels"][1])
    close(envs.step(chunks(1, 2)[0])[0]["latent"][:1], after[0]["latent"][:1])


def test_start_limits_where_resets_begin():
    envs = make(16, start=[2, 5])
    assert set(envs.reset(seed=0)[1]["start_index"].tolist()) == {2, 5}


def test_what_comes_after_does_not_depend_on_options():
    first, second = make(1), make(1)
    first.reset(seed=0)
    second.reset(seed=0, options={"start_index": 3})
    assert np.array_equal(first.reset()[0], second.reset()[0])


def test_discrete_histories_are_encoded():
    envs = DreamVectorEnv(1, world=chosen(), horizon=9)
    frames = chosen().starts.frames[0]
    envs.reset(seed=0, options={"frames": frames, "actions": np.array([[0, 1, 2, 0]] * 2)})
    for actions in ([[0, 1, 2, 3]] * 2, [[0.5] * 4] * 2, [[0, 1, 2]] * 2):
        with pytest.raises(OptionError, match="actions"):
            envs.reset(options={"frames": frames, "actions": np.array(actions)})


FRAMES = np.zeros((3, 64, 64, 3), np.uint8)
BAD_OPTIONS = {
    "unknown": {"frame": FRAMES},
    "not a dict": [1],
    "two ways": {"frames": FRAMES, "start_index": 0},
    "index too large": {"start_index": 99},
    "index negative": {"start_index": -1},
    "index of another kind": {"start_index": 0.5},
    "index as text": {"start_index": "first"},
    "index for too many": {"start_index": [0, 1, 2]},
    "frames too small": {"frames": FRAMES[:, :32]},
    "frames of another type": {"frames": FRAMES.astype(np.float32)},
    "no frames": {"frames": FRAMES[:0]},
    "frames for too many": {"frames": np.stack([FRAMES] * 3)},
    "frames ragged": {"frames": [[1], [1, 2]]},
    "frames as text": {"frames": "start.png"},
    "actions alone": {"actions": np.zeros((2, 4, 2))},
    "too few actions": {"frames": FRAMES, "actions": np.zeros((1, 4, 2))},
    "actions with NaN": {"frames": FRAMES, "actions": np.full((2, 4, 2), np.nan)},
    "actions out of bounds": {"frames": FRAMES, "actions": np.full((2, 4, 2), 1.5)},
    "state alone": {"state": np.zeros(13)},
    "state too short": {"frames": FRAMES, "state": np.zeros(3)},
    "state with NaN": {"frames": FRAMES, "state": np.full(13, np.nan)},
    "text": {"text": "push the block"},
    "snapshot of another kind": {"snapshot": {"qpos": 1}},
    "mask of another type": {"reset_mask": [1, 0]},
    "mask too long": {"reset_mask": np.ones(3, bool)},
    "mask of nobody": {"reset_mask": np.zeros(2, bool)},
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_wrong_option_is_refused_and_nothing_is_reset(case):
    envs, clean = make(2, horizon=99), make(2, horizon=99)
    for either in (envs, clean):
        either.reset(seed=0)
        either.step(chunks(1, 2)[0])
    with pytest.raises(OptionError):
        envs.reset(seed=5, options=BAD_OPTIONS[case])
    assert np.array_equal(envs.step(chunks(1, 2)[0])[0], clean.step(chunks(1, 2)[0])[0])
    assert np.array_equal(envs.reset()[0], clean.reset()[0])


@pytest.mark.parametrize("seed", [-1, 1.5, "a", [1], [1, 2, 3], [1, -2]])
def test_a_wrong_seed_is_refused(seed):
    with pytest.raises(OptionError, match="seed"):
        make(2).reset(seed=seed)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"observation": "pixel"}, "Did you mean 'pixels'"),
        ({"render_mode": "human"}, "render_mode"),
        ({"horizon": 0}, "horizon"),
        ({"denoise_steps": -1}, "denoise_steps"),
        ({"denoise_steps": 1.0}, "denoise_steps"),
        ({"start": 8}, "starts 0 to 7"),
        ({"start": []}, "start"),
        ({"start": "a"}, "start"),
        ({"window": 0}, "window"),
        ({"precision": "int3"}, "precision"),
        ({"autoreset_mode": "same"}, "autoreset_mode"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"world": pairs, "frames_per_chunk": 3}, "multiple of 2"),
        ({"device": "abacus", "world": None}, "device"),
    ],
)
def test_a_wrong_argument_is_refused(kwargs, told):
    if callable(kwargs.get("world")):
        kwargs = {**kwargs, "world": kwargs["world"]()}
    with pytest.raises(OptionError, match=told):
        make(**kwargs)


def test_a_world_without_state_says_so():
    manifest = plain().manifest
    model = dataclasses.replace(
        manifest.model, heads=dataclasses.replace(manifest.model.heads, state_size=0)
    )
    environment = dataclasses.replace(manifest.environment, state_names=())
    from kairos_env.starts import Starts
    from kairos_env.world_model.world_model import WorldModel
    from kairos_env.worlds import World

    with torch.random.fork_rng():
        world = World(
            None,
            dataclasses.replace(manifest, model=model, environment=environment),
            WorldModel(model),
            Starts(plain().starts.frames, plain().starts.actions, np.zeros((8, 0), np.float32)),
        )
    with pytest.raises(OptionError, match="without a state"):
        make(world=world, observation="state")
    envs = make(2, world=world, observation="dict")
    assert set(envs.reset(seed=0)[0]) == {"pixels", "latent"}
    envs.step(chunks(1, 2)[0])


def test_a_state_that_is_not_known_is_not_made_up():
    envs = make(1, observation="pixels")
    _, infos = envs.reset(seed=0, options={"frames": FRAMES})
    assert np.isnan(infos["state"]).all()
    with pytest.raises(OptionError, match="give the option 'state'"):
        make(1, observation="state").reset(options={"frames": FRAMES})


# ------------------------------------------------------------------------ actions


GOOD = np.zeros((2, 4, 2), np.float32)
BAD_ACTIONS = {
    "shape of one": GOOD[0],
    "too many dreams": np.zeros((3, 4, 2), np.float32),
    "NaN": np.full_like(GOOD, np.nan),
    "infinity": np.full_like(GOOD, np.inf),
    "out of bounds": GOOD + 1.01,
    "text": "left",
    "none": None,
    "ragged": [[1, 2], [3]],
    "objects": np.full((2, 4, 2), None),
    "bools": GOOD.astype(bool),
    "complex": GOOD + 1j,
}


@pytest.mark.parametrize("case", BAD_ACTIONS)
def test_a_wrong_action_is_refused_and_nothing_is_stepped(case):
    envs, clean = make(2), make(2)
    for either in (envs, clean):
        either.reset(seed=0)
    with pytest.raises(ActionError) as caught:
        envs.step(BAD_ACTIONS[case])
    assert isinstance(caught.value, gym.error.InvalidAction)
    assert isinstance(caught.value, ValueError)
    assert np.array_equal(envs.step(GOOD)[0], clean.step(GOOD)[0])


def test_one_wrong_dream_names_itself_by_the_shape_or_value_and_rounding_is_forgiven():
    envs = make(2)
    envs.reset(seed=0)
    envs.step(GOOD + np.float32(1.0 + 1e-6))
    one_bad = GOOD.copy()
    one_bad[1, 2, 0] = np.nan
    with pytest.raises(ActionError, match="NaN"):
        envs.step(one_bad)


def test_choices_are_checked():
    envs = DreamVectorEnv(2, world=chosen())
    envs.reset(seed=0)
    envs.step(np.full((2, 4), 2))
    for actions in (np.full((2, 4), 3), np.full((2, 4), -1), np.full((2, 4), 1.0)):
        with pytest.raises(ActionError):
            envs.step(actions)


def test_the_action_of_a_dream_that_begins_anew_is_not_looked_at():
    envs = make(2, horizon=1)
    envs.reset(seed=0)
    envs.step(GOOD)
    _, rewards, _, truncated, infos = envs.step(np.full_like(GOOD, np.nan))
    assert rewards.tolist() == [0, 0]
    assert not truncated.any()
    assert infos["time"].tolist() == [0, 0]


def test_stepping_needs_a_reset():
    envs = make(2, autoreset_mode="Disabled", horizon=1)
    with pytest.raises(ResetNeeded):
        envs.step(GOOD)
    with pytest.raises(OptionError, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(seed=0)
    envs.step(GOOD)
    with pytest.raises(ResetNeeded, match=r"dreams \[0, 1\] are over"):
        envs.step(GOOD)


def test_a_dream_that_leaves_the_numbers_says_so():
    envs = make(2)
    envs.reset(seed=0)
    snapshot = envs.snapshot()
    previous = snapshot.memory.previous.clone()
    previous[1] = float("nan")
    memory = dataclasses.replace(snapshot.memory, previous=previous)
    envs.restore(dataclasses.replace(snapshot, memory=memory))
    with pytest.raises(FloatingPointError, match=r"dreams \[1\]"):
        envs.step(GOOD)
    envs.reset(options={"reset_mask": np.array([False, True])})
    envs.step(GOOD)


# ------------------------------------------------------------------------ snapshots


def test_a_snapshot_continues_exactly_after_other_steps(tmp_path):
    envs = make(3, horizon=4)
    envs.reset(seed=0)
    envs.step(chunks(1, 3)[0])
    snapshot = envs.snapshot()
    snapshot.save(tmp_path / "dream.safetensors")
    expected = [envs.step(actions) for actions in chunks(9, 3, seed=1)]  # two automatic resets
    for source in (snapshot, tmp_path / "dream.safetensors"):
        other = make(3, horizon=4)
        other.reset(seed=9)
        other.step(chunks(1, 3)[0])
        other.restore(source)
        for want, actions in zip(expected, chunks(9, 3, seed=1), strict=True):
            got = other.step(actions)
            for a, b in zip(got[:4], want[:4], strict=True):
                assert np.array_equal(a, b)
            for key, value in want[4].items():
                assert np.array_equal(got[4][key], value), key


def test_dreams_can_be_put_into_other_slots():
    envs = make(3, horizon=99)
    envs.reset(seed=0)
    snapshot = envs.snapshot([2])
    assert len(snapshot) == 1
    observed, infos = envs.restore(snapshot, [0])
    assert np.array_equal(observed[0], observed[2])
    assert infos["_time"].tolist() == [True, False, False]
    observed = envs.step(np.broadcast_to(GOOD[:1], (3, 4, 2)))[0]
    assert np.array_equal(observed[0], observed[2])
    assert not np.array_equal(observed[0], observed[1])


def test_forks_share_weights_and_the_future():
    envs = make(2, horizon=99)
    envs.reset(seed=0)
    forks = envs.fork(50, dream=1)
    assert forks.world.model is envs.world.model
    observed = forks.step(np.zeros((50, 4, 2), np.float32))[0]
    close(observed[:1], envs.step(GOOD)[0][1:])
    assert (observed == observed[0]).all()
    # new seeds give new futures from the same memory
    _, infos = forks.reset(seed=0, options={"snapshot": envs.snapshot([1])})
    assert np.allclose(infos["time"], 0.16)
    observed = forks.step(np.zeros((50, 4, 2), np.float32))
    assert len({tuple(state) for state in observed[4]["state"].round(7)}) > 1


def test_a_foreign_snapshot_is_refused(tmp_path):
    envs = make(2)
    envs.reset(seed=0)
    before = envs.snapshot()
    with pytest.raises(ForeignSnapshotError, match="other weights"):
        envs.restore(dataclasses.replace(before, world="other"))
    with pytest.raises(ForeignSnapshotError, match="frames_per_chunk"):
        make(2, frames_per_chunk=2).restore(before)
    with pytest.raises(OptionError, match="2 dreams to fill, the snapshot holds 3"):
        envs.restore(before.index([0, 1, 0]))
    path = tmp_path / "dream.safetensors"
    before.save(path)
    data = path.read_bytes()
    for broken in (b"", data[:100], data[: len(data) // 2], b"junk" * 100):
        path.write_bytes(broken)
        with pytest.raises(ForeignSnapshotError, match="dream"):
            envs.restore(path)
    plain().model.state_dict()
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ForeignSnapshotError, match="not a snapshot"):
        envs.restore(path)
    for dreams in ([0, 0], [5], [], [0.5], "ab"):
        with pytest.raises(OptionError):
            envs.restore(before, dreams)


# ------------------------------------------------------------------------ the dial


def after_steps(envs, steps=3):
    envs.reset(seed=0)
    return [envs.step(actions)[0] for actions in chunks(steps, 2)][-1]


def test_precision_changes_little_and_states_stay_float32():
    exact, rounded = (
        make(2, observation="latent", precision=precision) for precision in ("float32", "bfloat16")
    )
    difference = np.abs(after_steps(exact) - after_steps(rounded)).max()
    assert 0 < difference < 0.1
    assert after_steps(rounded).dtype == np.float32
    mask = np.array([True, False])
    rounded.reset(options={"reset_mask": mask})
    rounded.step(chunks(1, 2)[0])


def test_a_shorter_window_shares_the_weights_and_remembers_less():
    envs = make(2, observation="latent", window=2)
    model = envs.world.model
    assert model.config.transformer.window == 2
    for mine, theirs in zip(model.parameters(), plain().model.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
    assert not np.array_equal(after_steps(envs), after_steps(make(2, observation="latent")))
    whole = make(2)
    whole.reset(seed=0)
    assert envs.snapshot().memory.nbytes() < whole.snapshot().memory.nbytes()
    own = make(2, observation="latent", window=plain().manifest.model.transformer.window)
    assert own.world is plain()


def test_more_passes_are_another_dream_of_the_same_start():
    once, thrice = (make(2, observation="latent", denoise_steps=steps) for steps in (1, 3))
    difference = np.abs(after_steps(once) - after_steps(thrice)).max()
    assert 0 < difference < 5


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_dream():
    plainly, compiled = (make(2, observation="latent", compile=on) for on in (False, True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        assert np.abs(after_steps(plainly) - after_steps(compiled)).max() < 1e-4
