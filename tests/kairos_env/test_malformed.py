"""A thousand malformed inputs: each is used or refused by a documented error, and life goes on."""

import json
import random

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_worlds import chosen, pairs, plain

from kairos_env.catalogue import FILES
from kairos_env.env import DreamEnv
from kairos_env.errors import ActionError, OptionError, WorldError
from kairos_env.real.snapshots import ForeignSnapshotError
from kairos_env.vector_env import DreamVectorEnv
from kairos_env.worlds import load_world, save_world

DTYPES = (np.float32, np.float64, np.int64, np.uint8, np.int8, bool, object, np.complex64, "U3")
VALUES = (0, 1, -1, 0.5, 1.0000001, 2, 1e9, -1e30, float("nan"), float("inf"), 10**30)
ODDITIES = (None, "", "left", b"\0", {}, [], (), {"a": 1}, [[1, 2], [3]], object(), 1j, range(3))


def some_array(draw):
    shape = draw.choice(
        [(), (2,), (4,), (4, 2), (2, 4), (1, 4, 2), (0, 2), (4, 2, 1), (3, 64, 64, 3)]
    )
    array = np.zeros(shape, draw.choice(DTYPES))
    if array.size and array.dtype.kind in "fiu":
        limits = np.iinfo(array.dtype) if array.dtype.kind in "iu" else np.finfo(array.dtype)
        value = draw.choice(VALUES)
        fits = array.dtype.kind == "f" or (value == value and limits.min <= value <= limits.max)
        with np.errstate(over="ignore"):
            array[tuple(draw.randrange(n) for n in shape)] = value if fits else 1
    return array


def something(draw):
    return draw.choice([some_array(draw), draw.choice(ODDITIES), draw.choice(VALUES)])


@pytest.mark.parametrize("world", [plain, chosen, pairs])
def test_actions(world):
    draw = random.Random(0)
    env = DreamEnv(world=world(), observation="latent")
    env.reset(seed=0)
    refused = 0
    for _ in range(130):
        try:
            env.step(something(draw))
        except ActionError:
            refused += 1
    assert refused > 80
    env.reset(seed=0)
    clean = DreamEnv(world=world(), observation="latent")
    clean.reset(seed=0)
    action = env.action_space.sample()
    assert np.array_equal(env.step(action)[0], clean.step(action)[0])


def test_options():
    draw = random.Random(1)
    envs = DreamVectorEnv(2, world=plain(), observation="latent")
    envs.reset(seed=0)
    names = ("frames", "actions", "state", "start_index", "text", "snapshot", "reset_mask", "spin")
    refused = 0
    for _ in range(300):
        options = {name: something(draw) for name in draw.sample(names, draw.choice([1, 1, 2, 3]))}
        seed = draw.choice([None, None, 0, something(draw)])
        try:
            envs.reset(seed=seed, options=draw.choice([options, options, something(draw)]))
        except (OptionError, ForeignSnapshotError):
            refused += 1
    assert refused > 200
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())


def test_arguments():
    draw = random.Random(2)
    names = ("num_envs", "denoise_steps", "observation", "horizon", "start", "frames_per_chunk")
    names += ("max_uncertainty", "window", "precision", "render_mode", "autoreset_mode", "world")
    names += ("max_episode_steps", "device")
    refused = 0
    for _ in range(200):
        kwargs = {name: something(draw) for name in draw.sample(names, draw.choice([1, 2]))}
        if isinstance(kwargs.get("num_envs"), int) and kwargs["num_envs"] > 9:
            continue  # nobody has the memory
        try:
            DreamVectorEnv(**{"world": plain(), **kwargs})
        except (OptionError, WorldError):
            refused += 1
    assert refused > 150


def values_of(data, path=()):
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        if isinstance(value, dict | list) and value:
            yield from values_of(value, (*path, key))
        else:
            yield (*path, key)


def test_manifests(tmp_path):
    draw = random.Random(3)
    world = plain()
    folder = save_world(tmp_path / "w", world.model, manifest=world.manifest, starts=world.starts)
    whole = (folder / "world.json").read_text()
    paths = list(values_of(json.loads(whole)))[1:]
    told = []
    for _ in range(150):
        data = json.loads(whole)
        *path, last = draw.choice(paths)
        place = data
        for key in path:
            place = place[key]
        if draw.random() < 0.2:
            del place[last]
        else:
            place[last] = draw.choice([None, -1, 0, 3, 2.5, "x", [], {}, [1, "a"], True, 10**9])
        (folder / "world.json").write_text(json.dumps(data))
        try:
            load_world(folder)
        except WorldError as error:
            told.append(str(error))
    assert len(told) > 75
    assert all(any(file in text for file in FILES) for text in told), told
    (folder / "world.json").write_text(whole)
    assert load_world(folder).fingerprint == world.fingerprint


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.safetensors", "starts.npz"])
def test_damaged_files(tmp_path, file):
    draw = random.Random(4)
    world = plain()
    folder = save_world(tmp_path / "w", world.model, manifest=world.manifest, starts=world.starts)
    whole, told = (folder / file).read_bytes(), []
    for _ in range(30):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 10])):
            # the beginning holds names and shapes, where damage tells most
            data[draw.randrange(min(len(data), draw.choice([16, 2000, len(data)])))] = (
                draw.randrange(256)
            )
        (folder / file).write_bytes(
            bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        )
        try:
            DreamEnv(world=folder)
        except WorldError as error:
            told.append(str(error))
    assert all(file.split(".")[0] in text for text in told)
    (folder / file).write_bytes(whole)
    assert load_world(folder).fingerprint == world.fingerprint


def test_weights_that_are_not_numbers(tmp_path):
    world = plain()
    folder = save_world(tmp_path / "w", world.model, manifest=world.manifest, starts=world.starts)
    draw = random.Random(5)
    for file in ("model.safetensors", "tokenizer.safetensors"):
        whole = load_file(folder / file)
        names = [name for name, array in whole.items() if array.dtype.kind == "f" and array.size]
        for value in (np.nan, np.inf, -np.inf):
            name = draw.choice(names)
            poisoned = {**whole, name: np.full_like(whole[name], value)}
            save_file(poisoned, folder / file)
            with pytest.raises(WorldError, match=f"{name}.*NaN or infinity"):
                load_world(folder)
        save_file(whole, folder / file)
    assert load_world(folder).fingerprint == world.fingerprint
