"""What is promised of dreams for any seed, batch, slot, partial reset and autoreset mode.

Dreams of one batch are the same bit for bit whenever the batch is of the same size: in another run,
and whatever happens to their neighbours. Between batches of different sizes sums may be taken in
another order: numbers agree to 1e-5, and a colour between two values may round to the other.
"""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as some
from small_worlds import ending, pairs, plain

from kairos_env.vector_env import DreamVectorEnv

COLOUR, NUMBER = 1, 1e-5
WORLDS = {"ending": ending, "pairs": pairs}
STEPS = 7


@dataclasses.dataclass(frozen=True)
class Story:
    """What happens to one dream."""

    seed: int
    again: tuple[int, int] | None
    """It is reset before this step, with this seed."""

    def actions(self, shape):
        generator = np.random.default_rng([self.seed, 5])
        return generator.uniform(-1, 1, (STEPS, *shape)).astype(np.float32)


stories = some.builds(
    Story,
    some.integers(0, 2**40),
    some.none() | some.tuples(some.integers(1, STEPS - 1), some.integers(0, 2**40)),
)


def told(envs, chapters):
    """Every dream's observations, rewards, ends and news, one list entry for each moment."""
    shape, mode = envs.single_action_space.shape, envs.autoreset_mode
    actions = np.stack([story.actions(shape) for story in chapters], axis=1)
    moments = [(envs.reset(seed=[story.seed for story in chapters])[0],)]
    for step in range(STEPS):
        mask = np.array([bool(s.again) and s.again[0] == step for s in chapters])
        seeds = [s.again[1] if hit else None for s, hit in zip(chapters, mask, strict=True)]
        over = envs.over if mode is AutoresetMode.DISABLED else np.zeros(len(chapters), bool)
        if (mask | over).any():
            envs.reset(seed=seeds, options={"reset_mask": mask | over})
        observed, rewards, terminated, truncated, infos = envs.step(actions[step])
        moments.append((observed, rewards, terminated, truncated, infos["start_index"]))
    return moments


def close(mine, theirs, dream):
    for a, b in zip(mine, theirs, strict=True):
        a, b = (x if isinstance(x, dict) else {"": x} for x in (a, b))
        for name in a:
            x, y = a[name][0], b[name][dream]
            limit = COLOUR if x.dtype == np.uint8 else NUMBER
            assert np.abs(x.astype(float) - y).max() <= limit, name


def same(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        a, b = (x if isinstance(x, dict) else {"": x} for x in (a, b))
        assert all(np.array_equal(a[name], b[name]) for name in a)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    chapters=some.lists(stories, min_size=2, max_size=6),
    mode=some.sampled_from(list(AutoresetMode)),
    horizon=some.integers(2, 9),
    world=some.sampled_from(sorted(WORLDS)),
    order=some.randoms(use_true_random=False),
)
def test_a_dream_is_a_function_of_world_start_seed_and_actions(
    chapters, mode, horizon, world, order
):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    kwargs = {"world": WORLDS[world](), "observation": "dict", "horizon": horizon}
    kwargs["autoreset_mode"] = mode
    batch = DreamVectorEnv(len(chapters), **kwargs)
    together = told(batch, chapters)
    for mine, again in zip(told(batch, chapters), together, strict=True):
        same(mine, again)
    dream = order.randrange(len(chapters))
    alone = told(DreamVectorEnv(1, **kwargs), [chapters[dream]])
    for mine, all_of_them in zip(alone, together, strict=True):
        close(mine, all_of_them, dream)
    places = order.sample(range(len(chapters)), len(chapters))
    moved = told(DreamVectorEnv(len(chapters), **kwargs), [chapters[i] for i in places])
    for mine, all_of_them in zip(moved, together, strict=True):
        for place, dream in enumerate(places):
            row = tuple(
                {k: v[[place]] for k, v in x.items()} if isinstance(x, dict) else x[[place]]
                for x in mine
            )
            close(row, all_of_them, dream)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("frames", [1, 3])
def test_a_neighbour_that_begins_anew_late_changes_no_bit(frames):
    """All memory rings are full by then, and the newcomer's are not."""
    calm, disturbed = (
        DreamVectorEnv(3, world=plain(), observation="latent", horizon=99) for _ in range(2)
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (24, 3, 4, 2)).astype(np.float32)
    for envs in (calm, disturbed):
        envs.reset(seed=0)
        for step in actions[:12]:
            envs.step(step)
    history = plain().starts.frames[5, -frames:]
    mask = np.array([False, True, False])
    disturbed.reset(seed=9, options={"reset_mask": mask, "frames": history})
    for step in actions[12:]:
        mine, theirs = disturbed.step(step), calm.step(step)
        assert np.array_equal(mine[0][~mask], theirs[0][~mask])
        assert np.array_equal(mine[1][~mask], theirs[1][~mask])


@pytest.mark.slow
def test_a_snapshot_continues_exactly_after_a_thousand_other_steps(tmp_path):
    envs = DreamVectorEnv(2, world=plain(), observation="latent", decode=False, horizon=5000)
    envs.reset(seed=0)
    actions = np.random.default_rng(1).uniform(-1, 1, (5, 2, 4, 2)).astype(np.float32)
    kept = envs.snapshot()
    kept.save(tmp_path / "dream.safetensors")
    expected = [envs.step(step)[:2] for step in actions]
    for n in range(1000):
        envs.step(actions[n % 5])
    for source in (kept, tmp_path / "dream.safetensors"):
        envs.restore(source)
        for step, want in zip(actions, expected, strict=True):
            same(envs.step(step)[:2], want)
