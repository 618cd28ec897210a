"""Promises of `kairos plan` and `kairos act`: fair, resumable, and honest about what was done."""

import dataclasses
import json

import pytest

from kairos_env.benchmarks import acting
from kairos_env.benchmarks.trials import Trials, proportion, summary
from kairos_env.terminal import INTERRUPTED
from kairos_env.untrained import untrained_world
from kairos_env.worlds import save_world

TIMES = ("wall_ms", "cpu_ms")

pytestmark = pytest.mark.render


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The untrained world, with episodes of five steps."""
    made = untrained_world()
    short = dataclasses.replace(made.manifest.environment, horizon=5)
    manifest = dataclasses.replace(made.manifest, environment=short)
    folder = tmp_path_factory.mktemp("worlds") / "short"
    return str(save_world(folder, made.model, manifest=manifest, starts=made.starts))


def arguments(world, path, *options):
    return [world, "--mode", "policy", "--denoise-steps", "1", "--json", str(path), *options]


def measured(world, path, *options):
    assert acting.act(arguments(world, path, *options)) == 0
    return json.loads(path.read_text())


def without_times(document):
    return [
        {key: value for key, value in trial.items() if key not in TIMES}
        for trial in document["trials"]
    ]


def test_stopped_and_continued_is_the_same_measurement(world, tmp_path, monkeypatch) -> None:
    once = measured(world, tmp_path / "once.json", "--episodes", "2")
    trial, path = Trials._trial, tmp_path / "twice.json"
    left = iter([True] * 4)

    def interrupted(self, env, episode, name):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return trial(self, env, episode, name)

    monkeypatch.setattr(Trials, "_trial", interrupted)
    status = acting.act(arguments(world, path, "--episodes", "2"))
    assert status == INTERRUPTED
    assert len(json.loads(path.read_text())["trials"]) == 4
    monkeypatch.setattr(Trials, "_trial", trial)
    twice = measured(world, path, "--episodes", "2")
    assert without_times(twice) == without_times(once)
    for name, row in once["results"].items():
        assert twice["results"][name]["return"] == row["return"]
    # Done already: nothing is tried again, more episodes are only added.
    again = measured(world, path, "--episodes", "2")
    assert again["trials"] == twice["trials"]


def test_all_policies_play_the_same_episodes_and_costs_are_told(world, tmp_path) -> None:
    document = measured(world, tmp_path / "a.json", "--episodes", "1")
    assert set(document["results"]) == {"random", "expert", "policy"}
    results = document["results"]
    assert (results["random"]["share"], results["expert"]["share"]) == (0.0, 1.0)
    assert results["policy"]["cpu_ms"] > 0
    assert results["random"]["cpu_ms"] is None
    assert document["costs"]["policy"]["gflop"] > 0
    assert "expert" not in document["costs"]
    assert document["machine"]["threads"] == 1


def test_the_file_of_another_measurement_is_left_alone(world, tmp_path, capsys) -> None:
    path = tmp_path / "a.json"
    measured(world, path, "--episodes", "1")
    before = path.read_text()
    assert acting.act(arguments(world, path, "--episodes", "1", "--seed", "3")) == 1
    assert "holds another measurement: its seed is 0, here it is 3" in capsys.readouterr().err
    measured(world, path, "--episodes", "2")
    before = path.read_text()
    assert acting.act(arguments(world, path, "--episodes", "1")) == 1
    assert "holds 2 episodes already: ask for as many or more" in capsys.readouterr().err
    assert path.read_text() == before


def test_planning_is_measured_for_every_method(world, tmp_path) -> None:
    path = tmp_path / "plan.json"
    options = ["--method", "cem", "mppi", "--candidates", "8", "--iterations", "1"]
    options += ["--horizon", "1", "--episodes", "1", "--json", str(path)]
    assert acting.plan([world, *options]) == 0
    document = json.loads(path.read_text())
    assert list(document["results"]) == ["random", "expert", "cem", "mppi"]
    assert document["policies"]["cem"]["elites"] == 2
    assert document["costs"]["cem"]["gflop"] == document["costs"]["mppi"]["gflop"]


def test_wrong_arguments_are_told(capsys) -> None:
    with pytest.raises(SystemExit):
        acting.plan(["untrained", "--episodes", "0"])
    assert "--episodes must be at least 1" in capsys.readouterr().err
    assert acting.plan(["no-such-world"]) == 1
    assert "no-such-world" in capsys.readouterr().err


def test_a_share_of_all_or_none_has_an_interval() -> None:
    assert proportion(10, 10) == {"value": 1.0, "low": pytest.approx(0.722, abs=1e-3)} | {
        "high": 1.0,
        "n": 10,
    }
    assert proportion(0, 10)["high"] == pytest.approx(0.278, abs=1e-3)


def test_a_summary_compares_what_all_have_played() -> None:
    trial = {"success": True, "steps": 3, "cpu_ms": None, "wall_ms": None}
    trials = [
        {"policy": name, "episode": episode, "return": value, **trial}
        for name, episode, value in (
            *(("random", 0, -4.0), ("expert", 0, 0.0), ("cem", 0, -1.0)),
            *(("random", 1, -9.0), ("expert", 1, -8.0)),
        )
    ]
    results = summary(trials, dict.fromkeys(["random", "expert", "cem"]))
    assert {row["episodes"] for row in results.values()} == {1}
    assert results["cem"]["share"] == 0.75
    assert summary(trials[:2], dict.fromkeys(["random", "expert", "cem"])) == {}
