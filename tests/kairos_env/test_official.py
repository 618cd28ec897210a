"""Published checkpoints become worlds and come back; what cannot be read is refused in words."""

import dataclasses
import os
import pickle
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from kairos_env.errors import DeafWorldWarning, WorldError
from kairos_env.official import Export, Import, export_official, import_official, main_import
from kairos_env.world_model.normalizers import Statistics, read_statistics, write_statistics
from kairos_env.world_model.published.untrained import (
    AUTOENCODER_FILE,
    NETWORK_FILE,
    TINY,
    without_actions,
    write_checkpoint,
)
from kairos_env.world_model.tensor_files import TensorFiles, write_tensors
from kairos_env.worlds import load_world

PICTURES = torch.randint(
    0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
SMALL = {"frame_size": 32, "clip_frames": 4, "steps": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("official") / "ck", PICTURES)


@pytest.fixture(scope="module")
def world(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("worlds") / "imported"
    return import_official(Import(folder=checkpoint, out=out, **SMALL))


def open_world(world, **options):
    with pytest.warns(DeafWorldWarning, match="does not answer to actions"):
        return gymnasium.make("kairos_env:Kairos-v0", world=str(world), **options)


@pytest.mark.parametrize(
    ("actions", "prefix", "shards"),
    [
        (True, "", False),
        (True, "pipe.dit.", True),
        (False, "", True),
        (False, "dit.video_dit.", False),
    ],
)
def test_names_tensors_and_types_come_back_as_they_were(tmp_path, actions, prefix, shards):
    config = TINY if actions else without_actions(TINY)
    folder = tmp_path / "ck"
    write_checkpoint(folder, PICTURES, config=config, prefix=prefix, dtype=torch.bfloat16)
    theirs = dict(TensorFiles(folder / NETWORK_FILE))
    if shards:
        theirs = {name: tensor.clone() for name, tensor in theirs.items()}
        (folder / NETWORK_FILE).unlink()
        write_tensors(theirs, folder, shard_bytes=50_000)
    world = import_official(Import(folder=folder, out=tmp_path / "world", **SMALL))
    back = export_official(Export(world=str(world), out=tmp_path / "back"))
    for file in (NETWORK_FILE, AUTOENCODER_FILE):
        mine = TensorFiles(back / file)
        expected = theirs if file == NETWORK_FILE else TensorFiles(folder / file)
        assert set(mine) == set(expected)
        for name in mine:
            assert mine[name].dtype == expected[name].dtype
            assert torch.equal(mine[name], expected[name]), name


def test_types_are_kept_when_it_is_opened_but_for_rates(tmp_path):
    folder = write_checkpoint(tmp_path / "ck", PICTURES, dtype=torch.bfloat16)
    world = load_world(import_official(Import(folder=folder, out=tmp_path / "world", **SMALL)))
    types = {name: x.dtype for name, x in world.dreamer.network.state_dict().items()}
    assert {t for name, t in types.items() if not name.endswith(("log_rate", "decay_bias"))} == {
        torch.bfloat16
    }
    assert types["video.blocks.3.delta.log_rate"] == torch.float32


def test_an_imported_world_takes_no_backdrop(world):
    with pytest.raises(ValueError, match=r"leave it at 0, got 0\.3"):
        dataclasses.replace(load_world(world).manifest.model, backdrop=0.3)


def test_an_imported_world_dreams_and_says_that_it_does_not_answer(world):
    env = open_world(world)
    frames = []
    for action in (-1.0, 1.0):
        _, info = env.reset(seed=3)
        assert info["answers_to_actions"] is False
        assert np.isnan(info["imagined_actions"]).all()
        chunk = np.full(env.action_space.shape, action, np.float32)
        frame, reward, terminated, truncated, info = env.step(chunk)
        frames.append(info["frames"])
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert info["frames"].shape == (4, 32, 32, 3)
        assert info["imagined_actions"].shape == (4, 7)
        assert info["answers_to_actions"] is False
        assert frame.std() > 0
    np.testing.assert_array_equal(frames[0], frames[1])
    env.reset(seed=4)
    assert not np.array_equal(env.step(chunk)[4]["frames"], frames[0])
    assert "does not answer to actions" in str(env)
    assert "does not answer to actions" in (world / "README.md").read_text()


def test_a_snapshot_of_it_continues_the_same_dream(world):
    env = open_world(world).unwrapped
    env.reset(seed=1)
    chunk = env.action_space.sample()
    env.step(chunk)
    snapshot = env.snapshot()
    expected = env.step(chunk)[0]
    env.restore(snapshot)
    np.testing.assert_array_equal(env.step(chunk)[0], expected)


def test_a_network_without_actions_dreams_in_video_mode(tmp_path):
    folder = write_checkpoint(tmp_path / "ck", PICTURES, config=without_actions(TINY))
    world = import_official(Import(folder=folder, out=tmp_path / "world", **SMALL))
    env = open_world(world)
    env.reset(seed=0)
    info = env.step(env.action_space.sample())[4]
    assert "imagined_actions" not in info
    with pytest.raises(ValueError, match="has no action stream"):
        import_official(Import(folder=folder, out=tmp_path / "other", mode="joint", **SMALL))


def test_what_needs_answers_refuses_it(world):
    with pytest.raises(WorldError, match="kairos train DATA --from"):
        _ = load_world(world).model


def test_a_pickled_autoencoder_is_refused_and_read_only_on_demand(checkpoint, tmp_path):
    folder = tmp_path / "ck"
    folder.mkdir()
    os.link(checkpoint / NETWORK_FILE, folder / NETWORK_FILE)
    weights = {name: x.clone() for name, x in TensorFiles(checkpoint / AUTOENCODER_FILE).items()}
    torch.save({"model_state": weights}, folder / "Wan2.1_VAE.pth")
    options = Import(folder=folder, out=tmp_path / "world", **SMALL)
    with pytest.raises(ValueError, match=r"is a pickle.*--allow-pth"):
        import_official(options)
    assert not options.out.exists()
    world = import_official(dataclasses.replace(options, allow_pth=True))
    assert load_world(world).dreamer.options.mode == "joint"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_in_it_does_not_run(checkpoint, tmp_path):
    (tmp_path / "vae.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    options = Import(
        folder=checkpoint, out=tmp_path / "w", vae=tmp_path / "vae.pth", allow_pth=True, **SMALL
    )
    with pytest.raises(ValueError, match="holds more than weights, or is damaged"):
        import_official(options)
    assert not (tmp_path / "ran").exists()


def test_folders_that_hold_something_else_are_named(checkpoint, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    os.link(checkpoint / NETWORK_FILE, alone / NETWORK_FILE)
    with pytest.raises(FileNotFoundError, match=r"holds no autoencoder.*--vae"):
        import_official(Import(folder=alone, out=tmp_path / "w", **SMALL))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    write_tensors({"layer.weight": torch.zeros(2, 2)}, foreign / "a.safetensors")
    with pytest.raises(ValueError, match="this is no published video network"):
        import_official(
            Import(folder=foreign, out=tmp_path / "w", vae=checkpoint / AUTOENCODER_FILE, **SMALL)
        )
    with pytest.raises(ValueError, match="multiple of 16"):
        import_official(Import(folder=checkpoint, out=tmp_path / "w", frame_size=40))
    assert not (tmp_path / "w").exists()
    assert main_import([str(alone), "--out", str(tmp_path / "w")]) == 1
    assert "holds no autoencoder" in capsys.readouterr().err.replace("\n", "")


def test_only_what_was_imported_is_exported(world, tmp_path):
    with pytest.raises(WorldError, match="only a world that came from"):
        export_official(Export(world="push", out=tmp_path / "x"))
    with pytest.raises(FileExistsError, match="give another --out"):
        export_official(Export(world=str(world), out=tmp_path))


def test_statistics_go_into_the_world_and_come_back(checkpoint, tmp_path):
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "statistics.json"
    write_statistics(path, {"action": Statistics.of(rows)})
    options = Import(folder=checkpoint, out=tmp_path / "world", statistics=path, **SMALL)
    back = export_official(Export(world=str(import_official(options)), out=tmp_path / "back"))
    assert read_statistics(back / "statistics.json")["action"].mean.tolist() == pytest.approx(
        rows.double().mean(0).tolist()
    )
    path.write_text('{"action": {"default": {}}}')
    with pytest.raises(ValueError, match="missing"):
        import_official(dataclasses.replace(options, out=tmp_path / "other"))
