import dataclasses
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

from kairos_env import catalogue
from kairos_env.errors import WorldError, WorldNotFoundError
from kairos_env.manifest import (
    Manifest,
    manifest_from_text,
    manifest_to_text,
    space_from_json,
    space_to_json,
)
from kairos_env.starts import Starts, pack_snapshots, read_starts, unpack_snapshots, write_starts
from kairos_env.untrained import untrained_world
from kairos_env.worlds import find_world, load_world, save_world


@pytest.fixture(scope="module")
def world():
    return untrained_world()


@pytest.fixture
def folder(world, tmp_path):
    return save(world, tmp_path / "mine")


def save(world, folder, **kwargs):
    parts = {"manifest": world.manifest, "starts": world.starts}
    return save_world(folder, world.model, **{**parts, **kwargs})


def edit(folder, change):
    path = folder / "world.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_saved_world_comes_back_whole(world, folder):
    back = load_world(folder)
    assert back.manifest == world.manifest
    assert back.fingerprint == world.fingerprint
    assert np.array_equal(back.starts.frames, world.starts.frames)
    assert not back.model.training
    assert not any(p.requires_grad for p in back.model.parameters())
    assert sorted(os.listdir(folder)) == sorted(catalogue.FILES)


def test_loading_leaves_global_random_numbers_alone(folder):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load_world(folder)
    untrained_world()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_half_precision_files_load_as_float32(world, tmp_path):
    full, half = save(world, tmp_path / "a"), save(world, tmp_path / "b", dtype=torch.float16)
    size = (half / "model.safetensors").stat().st_size
    assert size < 0.7 * (full / "model.safetensors").stat().st_size
    model = load_world(half).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for mine, theirs in zip(model.parameters(), world.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_the_card_says_what_world_json_says(folder, world):
    text = (folder / "README.md").read_text()
    assert world.manifest.environment.id in text
    assert "weights are random" in text
    assert 'gym.make("Kairos-v0", world="untrained")' in text


def test_what_stands_is_replaced_only_on_request(world, folder):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(world, folder)
    renamed = dataclasses.replace(world.manifest, description="another")
    save(world, folder, manifest=renamed, overwrite=True)
    assert load_world(folder).manifest.description == "another"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_is_no_world_is_never_overwritten(world, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError):
        save(world, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_a_failing_save_leaves_the_old_world(world, folder, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kairos_env.worlds.write_starts", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(world, folder, overwrite=True)
    assert load_world(folder).fingerprint == world.fingerprint
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_weights_with_nan_are_not_saved(world, tmp_path):
    broken = untrained_world()
    broken.model.heads.end.bias.fill_(float("nan"))
    with pytest.raises(WorldError, match=r"heads.end.bias.*NaN"):
        save_world(tmp_path / "x", broken.model, manifest=world.manifest, starts=world.starts)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("file", [f for f in catalogue.FILES if f != "README.md"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    error = WorldNotFoundError if file == "world.json" else WorldError
    with pytest.raises(error, match=file.replace(".", r"\.")):
        load_world(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.safetensors", "starts.npz"])
@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.99])
def test_a_truncated_file_is_named(folder, file, kept):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: kept if kept >= 1 else int(kept * len(data))])
    with pytest.raises(WorldError, match=file.replace(".", r"\.")):
        load_world(folder)


def test_a_pickle_is_never_opened(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/sprung",))

    arrays = np.array([Trap()], object)
    np.savez(folder / "starts.npz", frames=arrays, actions=arrays, state=arrays)
    with pytest.raises(WorldError, match=r"starts\.npz"):
        load_world(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(WorldError):
        load_world(folder)
    assert not (tmp_path / "sprung").exists()


WRONG = {
    "another format": (lambda d: d.update(format=2), "format 2 is not 1"),
    "no format": (lambda d: d.pop("format"), "format None is not 1"),
    "unknown field": (lambda d: d.update(colour="red"), "no field colour"),
    "missing field": (lambda d: d.pop("environment"), "environment"),
    "wrong type": (lambda d: d.update(environment="push"), "environment"),
    "text for a number": (lambda d: d["environment"].update(chunk="four"), "chunk"),
    "negative horizon": (lambda d: d["environment"].update(horizon=-1), "horizon"),
    "two worlds": (lambda d: d["environment"].update(chunk=8), "two worlds"),
    "no bounds": (lambda d: d["environment"].update(action_space={"kind": "box"}), "action space"),
    "other sizes": (lambda d: d["model"]["heads"].update(hidden=64), "heads"),
    "impossible model": (lambda d: d["model"]["transformer"].update(head_dim=7), "head_dim"),
    "layers that do not exist": (
        lambda d: d["model"]["transformer"].update(layers=["SWA", "LSTM", "GLA"]),
        "LSTM",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_world_json_is_refused_by_name(folder, case):
    change, told = WRONG[case]
    edit(folder, change)
    with pytest.raises(WorldError, match=told):
        load_world(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"push"', "\x00\xff"])
def test_a_file_that_is_no_manifest_is_refused(folder, text):
    (folder / "world.json").write_text(text)
    with pytest.raises(WorldError, match=r"world\.json"):
        load_world(folder)


def test_starts_of_another_world_are_refused(folder, world):
    starts = world.starts
    small = Starts(starts.frames[:, :, :32, :32].copy(), starts.actions, starts.state)
    write_starts(folder / "starts.npz", small)
    with pytest.raises(WorldError, match=r"starts\.npz.*frames"):
        load_world(folder)


def test_starts_keep_snapshots_of_any_length(tmp_path, world):
    n = len(world.starts)
    snapshots = tuple(
        {
            "qpos": np.arange(3.0) + i,
            "json": np.frombuffer(b"x" * (i + 1), np.uint8),
            **({"sometimes": np.ones((2, 3))} if i % 2 else {}),
        }
        for i in range(n)
    )
    starts = dataclasses.replace(world.starts, snapshots=snapshots)
    write_starts(tmp_path / "starts.npz", starts)
    back = read_starts(tmp_path / "starts.npz").snapshots
    for mine, theirs in zip(snapshots, back, strict=True):
        assert mine.keys() == theirs.keys()
        for key, array in mine.items():
            assert array.dtype == theirs[key].dtype
            assert np.array_equal(array, theirs[key])
    assert unpack_snapshots(pack_snapshots(snapshots), n)[2].keys() == snapshots[2].keys()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2,), np.float32),
        spaces.Box(np.float32([-np.inf, 0]), np.float32([0, np.inf])),
        spaces.Discrete(5),
        spaces.Discrete(3, start=-1),
    ],
    ids=str,
)
def test_action_spaces_survive_json(space):
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


def test_manifests_survive_json(world):
    assert manifest_from_text(manifest_to_text(world.manifest)) == world.manifest
    assert isinstance(world.manifest, Manifest)


def test_names_are_suggested_and_places_told(tmp_path, monkeypatch):
    with pytest.raises(WorldNotFoundError, match="Did you mean 'untrained'"):
        find_world("untrainde")
    with pytest.raises(WorldNotFoundError, match=r"holds no world\.json"):
        find_world(tmp_path)
    with pytest.raises(WorldNotFoundError, match="text or path"):
        find_world(7)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "kairos-env\[hub\]"'):
        find_world("somebody/push")


def test_a_hub_id_is_fetched_without_anything_but_a_worlds_files(folder, monkeypatch):
    asked = {}

    class Hub:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            asked.update(name=name, files=allow_patterns)
            return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert find_world("somebody/push") == folder
    assert asked == {"name": "somebody/push", "files": list(catalogue.FILES)}


def test_bundled_worlds_are_found_by_name_and_the_best_opens(world, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path)
    assert catalogue.bundled_worlds() == ()
    assert load_world().name == "untrained"
    for name in ("reach", "push", "zebra"):
        save(world, tmp_path / name, manifest=dataclasses.replace(world.manifest, name=name))
    assert catalogue.bundled_worlds() == ("push", "reach", "zebra")
    assert load_world().name == "push"
    assert find_world("zebra") == tmp_path / "zebra"


def test_finding_worlds_loads_no_torch():
    code = (
        "import sys, kairos_env.catalogue as c; c.bundled_worlds(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
