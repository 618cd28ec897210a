"""`kairos study` as a whole: from a world to a page, stopped in the middle, compared, refused."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from gymnasium import spaces

from kairos_env.benchmarks.study import grades, shards
from kairos_env.benchmarks.study.cli import main
from kairos_env.benchmarks.study.config import StudyConfig
from kairos_env.benchmarks.study.grades import Actor, Grade, Seen, Tape, ladder
from kairos_env.benchmarks.study.shards import Plan, Stage
from kairos_env.benchmarks.study.sides import in_dream
from kairos_env.untrained import untrained_world
from kairos_env.worlds import save_world

SHORT = ["--policies", "4", "--episodes", "3", "--steps", "4", "--resamples", "20", "--films", "1"]
SHORT += ["--drift-episodes", "3", "--drift-frames", "12"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = untrained_world()
    manifest = dataclasses.replace(made.manifest, name="small")
    folder = tmp_path_factory.mktemp("worlds") / "small"
    return str(save_world(folder, made.model, manifest=manifest, starts=made.starts))


@pytest.fixture(scope="module")
def study(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("studies") / "whole"
    assert main([world, "--out", str(out), *SHORT]) == 0
    return out


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    for changing in ("command", "commit", "measured_at", "machine"):
        del found[changing]
    del found["drift"]["cpu_seconds"]
    return found


@pytest.mark.render
def test_a_study_leaves_a_page_plots_and_every_number(study):
    content = json.loads((study / "results.json").read_text())
    assert set(content["agreement"]) == {"dream", "replay", "state"}
    assert len(content["policies"]) == 4
    assert content["commit"]
    assert content["machine"]["cores"]
    found = content["agreement"]["dream"]["return"]["pearson"]
    assert set(found["ceiling"]) == {"median", "low", "high"}
    assert {"floor", "copy", "dream"} <= set(content["drift"]["predictors"])
    page = (study / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=['\"]?http", page)
    assert page.count("<svg") == len(list(study.glob("*.png")))
    assert page.count("data:image/webp") == 2  # one that acts, one that is replayed


@pytest.mark.render
def test_killed_in_the_middle_it_goes_on_to_the_same_numbers(study, world, tmp_path, monkeypatch):
    killed, write, left = tmp_path / "killed", shards.write_outcomes, [5]

    def until_ctrl_c(folder, task, outcomes):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(folder, task, outcomes)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "write_outcomes", until_ctrl_c)
        assert main([world, "--out", str(killed), *SHORT]) == 130
    assert len(list((killed / "shards").glob("0*.npz"))) == 5
    assert not (killed / "results.json").exists()
    assert main([world, "--out", str(killed), *SHORT]) == 0
    assert results(killed) == results(study)


@pytest.mark.render
def test_a_study_does_not_differ_from_itself(study, tmp_path, capsys):
    again, out = shutil.copytree(study, tmp_path / "again"), tmp_path / "compared"
    assert main(["compare", str(study), str(again), "--out", str(out), "--resamples", "20"]) == 0
    content = json.loads((out / "compare.json").read_text())
    nothing = content["difference"]["return"]["pearson"]
    assert (nothing["value"], nothing["low"], nothing["high"]) == (0, 0, 0)
    assert "<svg" in (out / "compare.html").read_text()
    assert "second minus first" in capsys.readouterr().out


@pytest.mark.render
def test_studies_of_different_things_are_not_compared(study, tmp_path, capsys):
    other = shutil.copytree(study, tmp_path / "other")
    plan = json.loads((other / "plan.json").read_text())
    plan["config"]["seed"] = 1
    (other / "plan.json").write_text(json.dumps(plan))
    assert main(["compare", str(study), str(other)]) == 1
    assert "different things (config differ)" in capsys.readouterr().err
    assert main(["compare", str(study), str(tmp_path)]) == 1
    assert "plan.json is missing" in capsys.readouterr().err


@pytest.mark.render
def test_a_folder_holds_one_study(study, world, capsys):
    assert main([world, "--out", str(study), *SHORT, "--seed", "1"]) == 1
    assert "holds a run with another config" in capsys.readouterr().err


def test_what_cannot_be_studied_is_refused(world, tmp_path, capsys):
    out = ["--out", str(tmp_path / "none")]
    for options, told in (
        (["--policies", "2"], "policies must be at least 4"),
        (["--checkpoints", str(tmp_path)], "there are no .zip files"),
    ):
        assert main([world, *out, *options]) == 1
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([world, *out, "--sides", "replay"])
    assert "--sides needs 'dream'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_ladder_goes_from_a_whole_policy_to_noise():
    rungs = ladder(16, expert=True)
    assert len({grade.label for grade in rungs}) == 16
    assert rungs[0] == Grade(base="expert")
    assert [grade.base for grade in rungs[-2:]] == ["smooth", "random"]
    assert {grade.family for grade in rungs} == {
        *("as it is", "noise", "late", "slow", "noise only")
    }
    trained = ladder(8, expert=False, checkpoints=["a.zip", "b.zip"])
    assert [grade.base for grade in trained[:3]] == ["a.zip", "b.zip", "b.zip"]
    with pytest.raises(ValueError, match="no scripted expert: give trained policies"):
        ladder(8, expert=False)
    with pytest.raises(ValueError, match="ask for 5 or more"):
        ladder(4, expert=True, checkpoints=["a.zip", "b.zip"])


def test_noise_acts_for_the_share_of_time_asked_for_and_nests():
    tape = Tape(0, np.arange(200), 60, (4, 2))
    little, much = tape.astray(0.2), tape.astray(0.7)
    assert little.mean() == pytest.approx(0.2, abs=0.03)
    assert much.mean() == pytest.approx(0.7, abs=0.03)
    assert tape.astray(1.0).all()
    assert not tape.astray(0.0).any()
    assert (much[little]).mean() > 0.9  # who errs more errs where the other does, and then some


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    pair = Grade(base="expert", late=2), Grade(base="smooth")
    config = StudyConfig(policies=4, episodes=4, steps=5, batch=4)
    stage = Stage(Plan(untrained_world(), config, pair), tmp_path_factory.mktemp("stages") / "one")
    yield stage
    stage.close()


@pytest.mark.render
def test_pictures_change_nothing_in_truth(stage):
    film = []
    seen = stage.run((0, "truth"), film=film)
    unseen = stage.run((0, "truth"))
    np.testing.assert_allclose(seen.reward, unseen.reward, atol=1e-6)
    np.testing.assert_array_equal(seen.chunks, unseen.chunks)
    assert [len(frames) for frames in film] == list(seen.length + 1)


@pytest.mark.render
def test_noise_alone_does_the_same_in_truth_and_dream(stage):
    true, dream = stage.run((1, "truth")), stage.run((1, "dream"))
    steps = np.minimum(true.length, dream.length).min()
    np.testing.assert_array_equal(true.chunks[:, :steps], dream.chunks[:, :steps])


@pytest.mark.render
def test_the_batch_does_not_change_a_dream(stage):
    one, four = (
        in_dream(stage.plan.world, stage.actor(0), stage.openings, steps=5, batch=batch, late=2)
        for batch in (1, 4)
    )
    np.testing.assert_allclose(one.reward, four.reward, atol=1e-4)
    np.testing.assert_array_equal(one.ended, four.ended)


class Trained:
    """What Stable-Baselines3 would load: pushes right where it sees red, else left."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def predict(self, observation, deterministic):
        assert deterministic
        red = (observation[..., 0] > observation[..., 1]).any((1, 2))
        return np.where(red[:, None], 0.5, -0.5) * np.ones((1, 8)), None


def test_a_checkpoint_sees_pictures_and_its_action_is_a_chunk(monkeypatch):
    monkeypatch.setattr(grades, "load_checkpoint", lambda path: Trained())
    chunks = spaces.Box(-1, 1, (4, 2), np.float32)
    tape = Tape(0, np.arange(2), 3, (4, 2))
    actor = Actor(Grade(base="ppo.zip", speed=0.5), tape, chunks, {})
    assert actor.needs_frames
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[1, 5, 5, 0] = 200
    done = actor.act(np.arange(2), 0, Seen(np.zeros((2, 13), np.float32), frames))
    np.testing.assert_allclose(done, np.array([-0.25, 0.25])[:, None, None] * np.ones((2, 4, 2)))
