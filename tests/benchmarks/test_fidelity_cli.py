"""`kairos fidelity`: from a world's folder to tables, JSON, a picture and the card."""

import dataclasses
import json
import shutil

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from kairos_env.benchmarks.fidelity.cli import main
from kairos_env.benchmarks.fidelity.strips import strips
from kairos_env.untrained import untrained_world
from kairos_env.worlds import load_world, save_world

SHORT = ["--episodes", "4", "--horizon", "6", "--horizons", "1", "6", "--fork-steps", "2"]
SHORT += ["--resamples", "20", "--shown", "2", "--reward-frames", "4"]


@pytest.fixture
def world(tmp_path):
    made = untrained_world()
    manifest = dataclasses.replace(made.manifest, name="small")
    return save_world(tmp_path / "small", made.model, manifest=manifest, starts=made.starts)


@pytest.mark.render
def test_the_report_goes_where_it_is_asked_to_go(world, tmp_path, capsys):
    before = world / "model.safetensors"
    weights = before.read_bytes()
    out, picture = tmp_path / "fidelity.json", tmp_path / "strips.png"
    options = ["--baseline-updates", "0", "--json", str(out), "--strips", str(picture), "--write"]
    assert main([str(world), *SHORT, *options]) == 0
    document = json.loads(out.read_text())
    assert document["held_out"]["episodes"] == 4
    assert set(document["predictors"]) == {"dream", "copy", "mean"}
    assert len(document["predictors"]["dream"]["curve"]["psnr"]) == 6
    assert document["conv_baseline"] == {"left_out": "--baseline-updates 0"}
    assert document["commit"]
    assert document["machine"]["cores"]
    block = document["predictors"]["copy"]["horizons"]["6"]["objects"]["block"]
    assert block["present"]["value"] == 1
    # truth and dream of two episodes, frames 1, 2 and 5
    assert iio.imread(picture).shape[1] == 3 * (2 * 64 + 3)
    fidelity = load_world(world).manifest.fidelity
    assert fidelity["block_error_px"]["1"] > 3  # random weights show noise
    assert fidelity["episodes"] == 4
    assert "block_error_px.1" in (world / "README.md").read_text()
    assert before.read_bytes() == weights
    printed = capsys.readouterr().out
    for word in ("block, px", "present", "PSNR", "reward R²", "precision", "s'(a) - s'(b)"):
        assert word in printed


@pytest.mark.render
def test_the_baseline_is_recorded_trained_and_kept(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kairos_env.benchmarks.fidelity.cli.BASELINE_EPISODES", 3)
    out, cache = tmp_path / "fidelity.json", tmp_path / "cache"
    options = ["--baseline-updates", "2", "--cache", str(cache), "--json", str(out)]
    assert main([str(world), *SHORT, *options]) == 0
    first = json.loads(out.read_text())
    assert first["conv_baseline"]["updates"] == 2
    assert first["conv_baseline"]["episodes"] == 3
    assert set(first["predictors"]) == {"dream", "copy", "mean", "conv"}
    assert set(first["reward"]) == {"dream", "conv"}
    assert main([str(world), *SHORT, *options]) == 0
    again = json.loads(out.read_text())
    assert len(list(cache.glob("conv-*.safetensors"))) == 1
    for name in ("predictors", "reward", "termination", "counterfactual", "uncertainty"):
        assert again[name] == first[name]  # the same seed gives the same figures
    capsys.readouterr()


@pytest.mark.render
def test_worlds_beside_dream_the_same_episodes(world, tmp_path, capsys):
    twin = tmp_path / "twin"
    shutil.copytree(world, twin)
    other = untrained_world()
    with torch.no_grad():
        for weight in other.model.heads.parameters():
            weight.mul_(0.5)
        for weight in other.model.tokenizer.decoder.parameters():
            weight.mul_(0.7)
    save_world(tmp_path / "other", other.model, manifest=other.manifest, starts=other.starts)
    out = tmp_path / "fidelity.json"
    beside = ["--beside", str(twin), str(tmp_path / "other")]
    assert main([str(world), *beside, *SHORT, "--baseline-updates", "0", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    found = document["predictors"]
    assert found[str(twin)] == found["dream"]
    assert document["reward"][str(twin)] == document["reward"]["dream"]
    for row in document["paired"][str(twin)]["horizons"].values():
        assert all(row["squared_error"][end] == 0 for end in ("value", "low", "high"))
    parted = document["paired"][str(tmp_path / "other")]["horizons"]["6"]
    dreamed, its = (
        255**2 / 10 ** (found[name]["horizons"]["6"]["psnr"]["value"] / 10)
        for name in ("dream", str(tmp_path / "other"))
    )
    assert parted["squared_error"]["value"] == pytest.approx(dreamed - its, abs=dreamed * 1e-4)
    assert document["beside"][str(twin)]["name"] == "small"
    assert "errors less those of" in capsys.readouterr().out


@pytest.mark.render
def test_a_world_of_another_environment_is_no_match(world, tmp_path, capsys):
    options = [*SHORT, "--baseline-updates", "0"]
    assert main([str(world), "--beside", "reach", *options]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "reach was learned from another environment" in said
    assert "KairosPush-v0" in said
    with pytest.raises(SystemExit):
        main([str(world), "--beside", "push", "push", *options])
    assert "twice" in capsys.readouterr().err


def test_a_world_that_is_not_there_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_world_made_in_code_cannot_be_written_into():
    from kairos_env.benchmarks.fidelity.report import write_into_world

    with pytest.raises(ValueError, match="no folder"):
        write_into_world(untrained_world(), {})


def test_a_strip_shows_only_frames_that_exist():
    frames = np.zeros((2, 10, 8, 8, 3), np.uint8)
    picture = strips([frames, frames], np.array([10, 3]), zoom=1)
    assert picture.shape[1] == 4 * (8 + 3)  # frames 1, 2, 5 and 10
    rows = picture[18:]  # below the numbers
    first, second = rows[:8], rows[21:29]
    assert (first[:, 33:41] == 0).all()
    assert (second[:, 11:19] == 0).all()
    assert (second[:, 22:] == 255).all()
