"""Self-evolution: what each round did is on record, and a kill in any phase changes nothing."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
from ball_world import make_data

pytest.importorskip("stable_baselines3")

from kairos_env.agents.collect import Recorder
from kairos_env.agents.data.files import write_json
from kairos_env.agents.evolve import loop
from kairos_env.agents.evolve.cli import main
from kairos_env.agents.evolve.config import EvolveConfig
from kairos_env.agents.imagine import run as runs
from kairos_env.agents.training import loop as training
from kairos_env.agents.training import validation
from kairos_env.benchmarks.agents import document
from kairos_env.benchmarks.tables import TABLES


class KilledError(BaseException):
    pass


def config_for(out: Path, **changes: object) -> EvolveConfig:
    base = EvolveConfig(
        env="TinyBall-v0",
        out=out,
        rounds=2,
        episodes=6,
        size="tiny",
        stages=("tokenizer", "dynamics"),
        updates=(2, 2),
        further=("dynamics",),
        further_updates=(2,),
        steps=12,
        envs=3,
        horizon=3,
        round_steps=6,
        exam_episodes=2,
        test_episodes=2,
        fidelity_episodes=2,
        control=True,
        chunk=2,
        frame_size=16,
        episode_steps=10,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def short_dreams():
    """Episodes of the ball are short; fifty steps of dreaming would show nothing more."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(validation, "HORIZONS", (1, 5))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evolve") / "run"
    loop.evolve(config_for(out))
    return out


def results_of(out: Path) -> dict:
    return json.loads((out / loop.EVOLVE).read_text())


def test_each_round_says_what_it_was_made_of(finished):
    results = results_of(finished)
    first, second = results["rounds"]
    assert [d["folder"] for d in second["data"]] == ["round-0/data", "round-1/data"]
    assert first["data"][0]["collectors"] == ["random", "smooth"]
    assert second["data"][1]["collectors"] == ["round-0/policy/policy.zip@0.3"]
    assert (first["world"]["start"], second["world"]["start"]) == (None, "round-0")
    assert second["policy"]["start"] == "round-0"
    assert first["world"]["weights"] != second["world"]["weights"]
    assert second["real_steps"]["data"] == sum(d["real_steps"] for d in second["data"])
    assert second["real_steps"]["examinations"] > first["real_steps"]["examinations"] > 0
    for row in (first, second):
        assert row["real"]["episodes"] == 2
        assert {"psnr@1", "copy@1"} <= row["fidelity"]["held-out"].keys()
        assert {"psnr@1", "copy@1"} <= row["fidelity"]["deployed"].keys()
    assert second["fidelity"]["last"] == second["fidelity"]["deployed"]
    assert first["fidelity"]["last"]["copy@1"] == second["fidelity"]["last"]["copy@1"]
    assert first["fidelity"]["last"] != second["fidelity"]["last"]
    assert {"psnr@1", "copy@1"} <= results["control"]["fidelity"]["last"].keys()


def test_the_control_has_as_many_real_steps_and_updates_and_no_feedback(finished):
    results = results_of(finished)
    control, last = results["control"], results["rounds"][-1]
    (data,) = control["data"]
    assert data["collectors"] == ["random", "smooth"]
    longest = 11 * 2  # frames of the longest episode, actions per frame
    assert 0 <= data["real_steps"] - last["real_steps"]["data"] < longest
    assert control["world"]["stages"] == [
        {"stage": "tokenizer", "updates": 2},
        {"stage": "dynamics", "updates": 4},
    ]
    assert control["policy"]["budget"] == sum(row["policy"]["budget"] for row in results["rounds"])


def test_a_run_is_kept_among_the_results_and_told_in_a_table(finished, tmp_path):
    content = document(finished)
    assert content["name"] == "evolve"
    assert content["commit"]
    assert content["machine"]["threads"] == 1
    write_json(tmp_path / "benchmarks/results/evolve-ball.json", content)
    told = TABLES["evolve"](tmp_path).splitlines()
    rows = [line.split(" | ") for line in told if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows] == [
        "", "---", "random", "round-0", "round-1", "control-2",
    ]  # fmt: skip
    real = content["rounds"][1]["real"]
    assert rows[4][1] == f"{real['return']:.2f} ± {real['error']:.2f}"
    write_json(tmp_path / "results.json", {})
    with pytest.raises(ValueError, match="no finished run"):
        document(tmp_path)


def test_a_policy_is_examined_before_it_practises_on(finished):
    """So a round cannot end with a worse policy than it began with, on the examined episodes."""
    folders = [next((finished / f"round-{n}/policy/dream").iterdir()) for n in (0, 1)]
    first, second = (runs.read_log(folder) for folder in folders)
    assert second[0].reading.steps == 0
    kept = json.loads((folders[0] / runs.RESULT).read_text())["kept_exam"]
    assert second[0].reading.real.mean() == pytest.approx(kept)
    assert first[0].reading.steps > 0


def test_it_begins_with_a_world_and_episodes_that_are_there(finished, tmp_path):
    """And with what the solved ones of them show."""
    world, data = finished / "round-1/world", make_data(tmp_path)
    config = config_for(
        tmp_path / "run", start=str(world), data=(data,), updates=None, imitate=5, rounds=1
    )
    results = loop.evolve(config)
    (first,) = results["rounds"]
    assert first["world"]["start"] == str(world)
    assert first["world"]["stages"][-1] == {"stage": "dynamics", "updates": 2}
    assert results["control"]["world"]["stages"] == first["world"]["stages"]
    own = loop.real_steps(config.out / "round-0/data")
    assert first["real_steps"]["data"] == own + loop.real_steps(data)
    [log] = (config.out / "round-0/policy/dream").iterdir()
    assert runs.read_log(log)[0].reading.steps == 0  # the clone


def test_every_round_imitates_what_was_solved_so_far(tmp_path, monkeypatch):
    """After what it was handed has been examined; a kill on the way changes nothing."""
    data = make_data(tmp_path)

    def config(name: str) -> EvolveConfig:
        return config_for(tmp_path / name, data=(data,), imitate=5, guard=False)

    through, killed = config("through"), config("killed")
    results = loop.evolve(through)
    steps = [[exam["steps"] for exam in row["policy"]["examined"]] for row in results["rounds"]]
    # The clone, then practice; what was handed on, what it imitated then, then practice.
    assert steps == [[0, 6, 12], [0, 0, 6, 12]]
    handed_on, clone, *_ = results["rounds"][1]["policy"]["examined"]
    assert handed_on["real"] == max(
        exam["real"] for exam in results["rounds"][0]["policy"]["examined"]
    )
    assert clone["dreamed"] != handed_on["dreamed"]
    for call in (5, 1):  # the second round's clone is examined; then its first round of practice
        with monkeypatch.context() as patched:
            killed_at(patched, runs, "write_log", call)
            with pytest.raises(KilledError):
                loop.evolve(killed)
    assert loop.evolve(killed)["rounds"] == results["rounds"]


def test_nothing_is_trained_where_nothing_can_be_imitated(tmp_path):
    config = config_for(tmp_path / "run", imitate=5, policy=("random",), episodes=1)
    with pytest.raises(ValueError, match="no solved episode"):
        loop.evolve(config)
    assert not (tmp_path / "run/round-0/world.training").exists()


# What dies in the second round and in the control, and at which call.
DEATHS = (
    (Recorder, "stage", 12),
    (training, "finish_stage", 1),
    (runs, "write_log", 2),
    (loop, "fidelity", 2),
    (Recorder, "stage", 3),
)


def killed_at(monkeypatch, home, name, call):
    true, calls = getattr(home, name), []

    @functools.wraps(true)
    def dies(*args, **options):
        calls.append(1)
        if len(calls) == call:
            raise KilledError
        return true(*args, **options)

    monkeypatch.setattr(home, name, dies)


def test_killed_in_every_phase_it_ends_with_the_same_figures(finished, tmp_path, monkeypatch):
    config = config_for(tmp_path / "run")
    for home, name, call in DEATHS:
        with monkeypatch.context() as patched:
            killed_at(patched, home, name, call)
            with pytest.raises(KilledError):
                loop.evolve(config)
    assert loop.evolve(config) == results_of(finished) == results_of(config.out)


def test_a_finished_run_does_nothing_twice_and_refuses_another(finished, monkeypatch):
    for name in ("train", "imagine", "evaluate"):
        monkeypatch.setattr(loop, name, None)
    assert loop.evolve(config_for(finished)) == results_of(finished)
    with pytest.raises(ValueError, match="another explore"):
        loop.evolve(config_for(finished, explore=0.5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "at least 1"),
        (["--gamma", "1"], "--gamma must lie between 0 and 1"),
        (["--updates", "1", "1", "1", "1"], "give both"),
        (["--further", "dream"], "must be among"),
        (["--size", "huge"], "no size"),
        (["--explore", "2"], "in [0, 1]"),
        (["--from", "push", "--updates", "1", "1", "1", "1"], "begins with another"),
    ],
)
def test_bad_input_is_answered_in_words(tmp_path, capsys, arguments, said):
    try:
        status = main(["TinyBall-v0", "--out", str(tmp_path / "run"), *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status not in (0, None)
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()
