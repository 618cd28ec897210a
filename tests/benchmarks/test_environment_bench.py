"""The benchmarks of the environment measure what they say and go on where they were stopped."""

import json

import pytest
import torch
from safetensors.torch import load_file

from kairos_env.benchmarks import environment
from kairos_env.benchmarks.endurance import YOUNG, Endurance
from kairos_env.untrained import untrained_world

QUICK = ["--batches", "1", "2", "--rounds", "2", "--seconds", "0.2"]
QUICK += ["--forks", "20", "--away", "5", "--cold-starts", "1"]


def test_every_figure_is_measured_and_written(tmp_path):
    out = tmp_path / "results"
    long = ["--long", "--steps", "130", "--long-batches", "2", "--folder", str(tmp_path / "long")]
    options = ["untrained", *QUICK, *long, "--out", str(out)]
    assert environment.main(options) == 0
    document = json.loads(next(out.glob("environment-untrained-*.json")).read_text())
    one, two = document["speed"]
    assert (one["dreams"], two["dreams"]) == (1, 2)
    assert one["step_ms"] > 0
    assert one["torch_operations"] > 500
    kept = document["snapshots"]
    assert kept["exact_after_steps"] == 5
    assert kept["forks_agree"]
    assert kept["fork_to_original"] < 1e-5
    assert document["cold_start"]["wall_seconds"] > document["cold_start"]["cpu_seconds"] * 0.5
    [row] = document["long"]
    assert row["steps"] >= 130
    assert row["in_space"]


def test_a_wrong_world_is_told(capsys):
    assert environment.main(["nosuchworld"]) == 2
    assert "no world" in capsys.readouterr().err


def run(folder, steps, world):
    course = Endurance(
        world=world, dreams=2, steps=steps, minutes=5, folder=folder, block=60, pairs=2
    )
    return course, course.run()


def test_a_stopped_run_goes_on_to_the_same_dream(tmp_path):
    world = untrained_world()
    whole, at_once = run(tmp_path / "once", 200, world)
    run(tmp_path / "twice", 100, world)
    parts, in_two = run(tmp_path / "twice", 200, world)
    assert at_once["steps"] == in_two["steps"] >= 200 > YOUNG
    assert at_once["predicted_ends"] == in_two["predicted_ends"]
    assert (at_once["processes"], in_two["processes"]) == (1, 2)
    once, twice = (
        load_file(next(c.folder.glob(f"*-{r['steps']}.safetensors")))
        for c, r in ((whole, at_once), (parts, in_two))
    )
    assert once.keys() == twice.keys()
    for name, tensor in once.items():
        assert torch.equal(tensor, twice[name]), name


def test_another_run_is_not_gone_on_with(tmp_path):
    world = untrained_world()
    run(tmp_path, 60, world)
    with pytest.raises(ValueError, match="another run"):
        Endurance(
            world=world, dreams=2, steps=60, minutes=5, folder=tmp_path, block=60, seed=4
        ).run()
