"""Episodes made of noise and moving squares, and datasets written from them."""

import numpy as np

from kairos_env.agents.data.episode import Episode
from kairos_env.agents.data.format import Layout
from kairos_env.agents.data.staging import stage
from kairos_env.agents.data.writer import DatasetWriter, only_writer

SIZE = (16, 24)


def make_episode(length, *, seed=0, per_frame=2, action_size=3, state_size=4, **more):
    """An episode that terminates; everything in it differs between seeds."""
    generator = np.random.default_rng([seed, length])
    steps = length - 1
    frames = np.full((length, *SIZE, 3), generator.integers(40, 90, 3), np.uint8)
    for t in range(length):
        left = (seed + t) % (SIZE[1] - 5)
        frames[t, 4:10, left : left + 5] = (230, 120, (40 * t) % 256)
    details = {
        "text": f"task {seed % 2}",
        "seed": 1000 + seed,
        "policy": "made",
        "success": seed % 2 == 0,
        "start": {"qpos": generator.normal(size=3), "name": np.array("made")},
    }
    return Episode(
        frames=frames,
        actions=generator.uniform(-1, 1, (steps, per_frame, action_size)).astype(np.float32),
        rewards=generator.normal(size=steps).astype(np.float32),
        terminated=np.arange(steps) == steps - 1,
        truncated=np.zeros(steps, bool),
        state=generator.normal(size=(length, state_size)).astype(np.float32),
        **{**details, **more},
    )


def layout_of(episode, **more):
    sizes = {
        "frame_size": episode.frames.shape[1:3],
        "actions_per_frame": episode.actions.shape[1],
        "action_size": episode.actions.shape[2],
        "state_size": episode.state.shape[1],
        "fps": 12.5,
    }
    return Layout(**{**sizes, **more})


def write_dataset(root, episodes, *, per_file=3, **layout):
    """Write episodes as a collector does; in any order of arrival."""
    sizes = layout_of(episodes[0], **layout)
    provenance = {"actions_per_frame": sizes.actions_per_frame, "seed": 0}
    with only_writer(root):
        options = {"layout": sizes, "provenance": provenance, "episodes_per_file": per_file}
        writer = DatasetWriter(root, **options)
        for index in reversed(range(len(episodes))):
            stage(root, index, episodes[index], sizes)
        writer.write_ready(len(episodes))
    return root


def assert_same_episode(got, expected, *, frames=True):
    names = ("actions", "rewards", "terminated", "truncated", "state")
    for name in (*names, "frames") if frames else names:
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
        assert getattr(got, name).dtype == getattr(expected, name).dtype
