"""Learning in a dream: one interface for dream and truth, exact resume, baselines beside it."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ball_world import CHUNK, HORIZON, make_data, make_world, short_run

from kairos_env.agents.data.readers import open_dataset
from kairos_env.worlds import load_world

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO

from kairos_env.agents.imagine import run as runs
from kairos_env.agents.imagine.algorithms import Learner
from kairos_env.agents.imagine.cli import main
from kairos_env.agents.imagine.cloning import Cloned, imitate
from kairos_env.agents.imagine.config import StudyConfig
from kairos_env.agents.imagine.ensemble import (
    EnsembleConfig,
    EnsembleVecEnv,
    fit_ensemble,
)
from kairos_env.agents.imagine.envs import (
    RealAsDream,
    acting_on_chunks,
    dream_env,
    with_starts,
)
from kairos_env.agents.imagine.exam import Examiner
from kairos_env.agents.imagine.guard import Verdict
from kairos_env.agents.imagine.study import Study, imagine, row
from kairos_env.agents.imagine.transitions import Transitions, read_transitions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("imagine"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return make_world(tmp_path_factory.mktemp("imagine"), data)


@pytest.fixture(scope="module")
def world(folder):
    return load_world(folder)


def small(folder, **changes):
    return short_run(folder, **{"steps": 24, "round_steps": 12, **changes})


@pytest.mark.parametrize("seen", ["state", "latent", "pixels"])
def test_dream_and_truth_show_the_same_kind_of_thing(world, folder, seen):
    dreams = dream_env(small(folder, observation=seen), world)
    real = RealAsDream(world, seen)
    observation, info = real.reset(seed=3)
    assert real.observation_space == dreams.observation_space
    assert real.action_space == dreams.action_space
    assert observation in real.observation_space
    if seen == "state":
        np.testing.assert_array_equal(observation, info["state"])
    else:  # a dream that begins from this frame shows the same
        twin = world.make_twin()
        frame, info = twin.reset(seed=3)
        options = {"frames": frame[None], "state": info["state"]}
        shown, _ = dreams.dreams.reset(seed=0, options=options)
        np.testing.assert_allclose(shown[0], observation, atol=1e-5)


def test_a_held_action_is_the_chunk_of_it(world, folder):
    config = small(folder)
    held, plain = acting_on_chunks(config, dream_env(config, world)), dream_env(config, world)
    for env in (held, plain):
        env.seed(0)
        env.reset()
    assert held.action_space.shape == (2,)
    actions = np.random.default_rng(0).uniform(-2, 2, (3, 2)).astype(np.float32)
    got = held.step(actions)
    want = plain.step(np.repeat(actions[:, None], CHUNK, axis=1))
    for a, b in zip(got[:3], want[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_starts_are_true_moments_of_recorded_episodes(world, data):
    dataset = open_dataset(data)
    T = world.starts.frames.shape[1]
    starts = with_starts(world, dataset, 20, seed=0).starts
    episodes = list(dataset)
    times = []
    for frames, actions, state in zip(starts.frames, starts.actions, starts.state, strict=True):
        episode, t = next(
            (e, t)
            for e in episodes
            for t in range(T - 1, len(e))
            if np.array_equal(e.state[t], state)
            and np.array_equal(e.actions[t + 1 - T : t], actions)
        )
        np.testing.assert_array_equal(episode.frames[t + 1 - T : t + 1], frames)
        times.append(t)
    assert len(set(times)) > 2  # not the beginnings alone


def test_data_of_another_environment_are_refused(world, data):
    class Wider:
        spec = dataclasses.replace(open_dataset(data).spec, action_size=5)
        path = "elsewhere"

    with pytest.raises(ValueError, match=r"elsewhere has .*5"):
        with_starts(world, Wider(), 2, seed=0)


def test_an_examination_is_a_function_of_the_policy(world, folder):
    examiner = Examiner(small(folder), world)

    def right(seen):
        return np.tile(np.float32([2, 0]), (len(seen), CHUNK, 1))

    (first, real), (second, _) = examiner.read(right, 5), examiner.read(right, 5)
    np.testing.assert_array_equal(first.real, second.real)
    np.testing.assert_array_equal(first.dreamed, second.dreamed)
    assert real.success == 1.0
    assert 2 * 1 <= real.low_level_steps <= 2 * CHUNK * HORIZON
    assert first.real.mean() > examiner.in_reality(examiner.random(), examiner.seeds).returns.mean()
    examiner.close()


def parameters(folder: Path):
    kept = torch.load(folder / runs.LEARNER, weights_only=True)
    return kept["parameters"]["policy"]


class KilledError(BaseException):
    pass


@pytest.mark.parametrize(("algo", "where"), [("ppo", "write_log"), ("sac", "examine")])
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, folder, monkeypatch, algo, where):
    """Killed after a round: before its examination, or before that was written down."""
    config = small(folder, algo=algo, steps=36)
    whole, killed = (StudyConfig(run=config, out=tmp_path / name) for name in ("whole", "killed"))
    wanted = imagine(whole)
    true, calls = getattr(runs, where), []

    def dies(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KilledError
        return true(*args, **options)

    monkeypatch.setattr(runs, where, dies)
    with pytest.raises(KilledError):
        imagine(killed)
    monkeypatch.undo()
    got = imagine(killed)
    one, other = (parameters(c.out / "dream" / "seed-0") for c in (whole, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert got["methods"]["dream, kept"] == wanted["methods"]["dream, kept"]


def test_the_guard_slows_practice_down(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("kairos_env.agents.imagine.guard._earned", lambda *_: False)
    rates, practise = [], Learner.practise

    def watched(learner, steps):
        practise(learner, steps)
        rates.append(learner.model.policy.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Learner, "practise", watched)
    imagine(StudyConfig(run=small(folder), out=tmp_path))
    assert rates == pytest.approx([1e-3, 0.25e-3])


def test_practice_goes_back_to_the_best_policy_where_the_guard_says_so(
    tmp_path, folder, monkeypatch
):
    """Whether it was killed in between or not."""
    config = small(folder, steps=36)
    whole, killed = (StudyConfig(run=config, out=tmp_path / name) for name in ("whole", "killed"))

    def first_is_best(guard, reading):
        return Verdict(best=reading.steps == 12, back=reading.steps > 12)

    monkeypatch.setattr("kairos_env.agents.imagine.guard.Guard.judge", first_is_best)
    begun, practise = [], Learner.practise

    def watched(learner, steps):
        if len(begun) == deaths:
            raise KilledError
        begun.append({name: x.clone() for name, x in learner.model.policy.state_dict().items()})
        practise(learner, steps)

    monkeypatch.setattr(Learner, "practise", watched)
    deaths = None
    imagine(whole)
    best = torch.load(whole.out / "dream/seed-0" / runs.BEST, weights_only=True)
    best = best["parameters"]["policy"]
    assert [all(torch.equal(each[n], best[n]) for n in best) for each in begun] == [
        False,
        True,
        True,
    ]
    deaths = len(begun) + 2
    with pytest.raises(KilledError):
        imagine(killed)
    deaths = None
    imagine(killed)
    one, other = (parameters(c.out / "dream" / "seed-0") for c in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_practice_begins_with_what_was_imitated(tmp_path, folder, data, monkeypatch):
    """And the clone is examined first; killed after that, the run ends as one that was not."""
    config = small(folder, data=(data,), imitate=200, steps=12)
    whole, killed = (StudyConfig(run=config, out=tmp_path / name) for name in ("whole", "killed"))
    wanted = imagine(whole)
    entries = runs.read_log(tmp_path / "whole/dream/seed-0")
    assert [entry.reading.steps for entry in entries] == [0, 12]
    knows_nothing = imagine(StudyConfig(run=small(folder), out=tmp_path / "nothing"))
    clone = entries[0].reading.real.mean()
    assert clone > runs.read_log(tmp_path / "nothing/dream/seed-0")[0].reading.real.mean()
    assert wanted["runs"]["dream"][0]["kept_exam"] >= clone
    assert knows_nothing["config"]["imitate"] == 0

    def dies(*args, **options):
        raise KilledError

    monkeypatch.setattr(Learner, "practise", dies)
    with pytest.raises(KilledError):
        imagine(killed)
    monkeypatch.undo()
    assert imagine(killed)["methods"] == wanted["methods"]
    one, other = (parameters(c.out / "dream" / "seed-0") for c in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_says_what_the_policy_is_worth_and_leaves_it_for_others(tmp_path, folder, world):
    study = StudyConfig(run=small(folder), out=tmp_path / "run")
    told = []
    results = imagine(study, lambda *report: told.append(report))
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["baselines"] is None
    assert results["methods"]["dream, kept"]["normalised"] is None
    assert results["real_steps"]["dream"]["practice"] == 64
    assert results["real_steps"]["dream"]["examinations"] > 0
    lines = (tmp_path / "run/dream/seed-0/log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert [line["steps"] for line in log] == [12, 24]
    assert [spent for *_, spent in told] == [0.5, 1.0]
    policy = PPO.load(tmp_path / "run" / "policy.zip", device="cpu")
    real = RealAsDream(world)
    action, _ = policy.predict(real.reset(seed=0)[0], deterministic=True)
    real.step(np.tile(action, (CHUNK, 1)))
    assert imagine(study) == results  # nothing is done twice
    longer = imagine(dataclasses.replace(study, run=small(folder, steps=36)))
    assert longer["runs"]["dream"][0]["steps"] == 36  # more budget goes on
    other = dataclasses.replace(study, run=small(folder, gamma=0.9))
    with pytest.raises(ValueError, match="another gamma"):
        imagine(other)


def test_baselines_stand_beside_the_dream_on_one_scale(tmp_path, folder, data, monkeypatch):
    monkeypatch.setattr("kairos_env.agents.imagine.cloning.UPDATES", 20)
    quick = functools.partial(EnsembleConfig, updates=20)
    monkeypatch.setattr("kairos_env.agents.imagine.study.EnsembleConfig", quick)
    config = StudyConfig(
        run=small(folder, data=(data,)), out=tmp_path, seeds=2, baselines=True, longest=24
    )
    results = imagine(config)
    names = {name.split(",")[0] for name in results["methods"]}
    assert names == {"dream", "real", "converged", "cloning", "ensemble"} == set(results["runs"])
    assert all(len(r) == 2 for r in results["runs"].values())
    assert results["runs"]["real"][0]["steps"] >= 64 / CHUNK
    assert results["methods"]["real, kept"]["return"]["runs"] == 2


def test_scores_are_shares_of_what_the_real_algorithm_gains():
    tests = [{"return": value, "success": None, "episodes": 3} for value in (-4.0, -2.0)]
    assert row(tests, floor=-6.0, one=-2.0)["normalised"]["value"] == pytest.approx(0.75)
    assert row(tests, floor=-6.0, one=None)["normalised"] is None


def test_without_data_or_their_price_there_are_no_baselines(tmp_path, folder):
    config = StudyConfig(run=small(folder), out=tmp_path, baselines=True)
    with pytest.raises(ValueError, match="name them with --data"):
        imagine(config)
    assert not (tmp_path / "dream").exists()


def integrator(count=4000):
    random = np.random.default_rng(0)
    state = random.uniform(-1, 1, (count, 2)).astype(np.float32)
    actions = random.uniform(-1, 1, (count, CHUNK, 2)).astype(np.float32)
    after, alone = state + 0.2 * actions.sum(1), np.ones(count, bool)
    return Transitions(state, actions, after, -np.abs(after).sum(1), after[:, 0] > 0.9, alone)


@pytest.fixture(scope="module")
def imagined(world):
    data = integrator()
    ensemble = fit_ensemble(data, EnsembleConfig(updates=400, hidden=64), seed=0)
    space = world.manifest.environment.chunk_space
    box = type(space)(-5, 5, (2,), np.float32)
    return EnsembleVecEnv(
        ensemble, data.state, 64, observation_space=box, action_space=space, horizon=4
    )


def test_an_ensemble_learns_the_step_its_reward_and_its_end(imagined):
    imagined.seed(1)
    before = imagined.reset()
    actions = np.random.default_rng(2).uniform(-2, 2, (64, CHUNK, 2)).astype(np.float32)
    after, rewards, dones, infos = imagined.step(actions)
    truth = before + 0.2 * (actions / 2).sum(1)  # the network sees actions scaled to [-1, 1]
    shown = [i.get("terminal_observation", o) for i, o in zip(infos, after, strict=True)]
    np.testing.assert_allclose(shown, truth, atol=0.1)
    np.testing.assert_allclose(rewards, -np.abs(truth).sum(1), atol=0.4)
    assert (dones == (truth[:, 0] > 0.9)).mean() > 0.8


def test_an_imagined_episode_is_cut_off_at_the_horizon(imagined):
    imagined.seed(1)
    imagined.reset()
    still = np.zeros((64, CHUNK, 2), np.float32)
    for _ in range(3):
        _, _, dones, _ = imagined.step(still)
    lasting = ~dones
    observations, _, dones, infos = imagined.step(still)
    cut = np.array([info["TimeLimit.truncated"] for info in infos])
    assert cut.sum() > 10
    assert dones[cut].all()
    assert dones[lasting].sum() >= cut.sum()
    for i in np.flatnonzero(cut):
        assert not np.array_equal(infos[i]["terminal_observation"], observations[i])


def test_cloning_finds_what_was_done(world):
    space = world.manifest.environment.chunk_space
    box = type(space)(-1, 1, (2,), np.float32)
    seen = np.random.default_rng(0).uniform(-1, 1, (2000, 2)).astype(np.float32)
    cloned = Cloned(box, space)
    done = np.repeat(seen[:, None], CHUNK, axis=1)
    imitate(cloned.policy, seen, done, seen.sum(1), updates=900, seed=0)
    np.testing.assert_allclose(
        cloned.predict(seen[:50]), np.repeat(seen[:50, None], CHUNK, 1), atol=0.2
    )


def test_imitation_prefers_what_went_better(world):
    """Half of what was done led to nothing: with returns in sight it is left out."""
    space = world.manifest.environment.chunk_space
    box = type(space)(-1, 1, (2,), np.float32)
    random = np.random.default_rng(0)
    seen = random.uniform(-1, 1, (2000, 2)).astype(np.float32)
    worked = random.random(2000) < 0.5
    done = np.where(worked, 0.5, -0.5)[:, None, None] * np.ones((1, CHUNK, 2), np.float32)
    chosen = []
    for values in (None, worked.astype(np.float32)):
        policy = Cloned(box, space).policy
        imitate(policy, seen, done.astype(np.float32), values, updates=600, seed=0)
        chosen.append(policy.predict(seen[:50], deterministic=True)[0].mean())
    assert abs(chosen[0]) < 0.2
    assert chosen[1] > 0.35


def test_transitions_are_the_recorded_steps(data):
    dataset = open_dataset(data)
    everything = read_transitions(dataset, frames=True)
    assert len(everything) == sum(len(e) - 1 for e in dataset)
    first = dataset.episode(0)
    n = len(first) - 1
    np.testing.assert_array_equal(everything.next_state[:n], first.state[1:])
    np.testing.assert_array_equal(everything.frames[:n], first.frames[:-1])
    ends = [sum(len(e) - 1 for e in list(dataset)[: i + 1]) - 1 for i in range(len(dataset))]
    np.testing.assert_array_equal(np.flatnonzero(everything.last), ends)
    rewards, to_go = first.rewards[:n], everything.to_go(0.5)
    assert to_go[0] == pytest.approx(sum(0.5**t * r for t, r in enumerate(rewards)), rel=1e-5)
    assert to_go[n - 1] == pytest.approx(rewards[-1])
    solved = read_transitions(dataset, solved=True)
    assert len(solved) == sum(len(e) - 1 for e in dataset if e.success)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-world"], "no-such-world"),
        (["WORLD", "--baselines"], "name them with --data"),
        (["WORLD", "--minutes", "1", "--steps", "5"], "not both"),
        (["WORLD", "--steps", "-5"], "positive number"),
        (["WORLD", "--gamma", "1.5"], "between 0 and 1"),
        (["WORLD", "--imitate", "10"], "episodes to imitate"),
        (["WORLD", "--imitate", "-1"], "not be negative"),
    ],
)
def test_bad_input_is_answered_in_words(tmp_path, folder, capsys, arguments, said):
    arguments = [str(folder) if a == "WORLD" else a for a in arguments]
    try:
        status = main([*arguments, "--out", str(tmp_path / "run")])
    except SystemExit as stop:
        status = stop.code
    assert status not in (0, None)
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_command_writes_results_policy_and_curves(tmp_path, folder, capsys):
    out = tmp_path / "run"
    command = [str(folder), "--steps", "12", "--envs", "3", "--round-steps", "12", "--horizon", "3"]
    assert main([*command, "--exam-episodes", "2", "--test-episodes", "2", "--out", str(out)]) == 0
    assert "real return" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} >= {"results.json", "policy.zip", "curve.png"}


def test_a_world_costs_what_the_largest_of_its_runs_learned_from(folder, world, monkeypatch):
    study = Study(StudyConfig(run=small(folder), out=folder.parent / "price"), lambda *_: None)
    said = world.manifest.provenance
    more = {**said, "data": {**said["data"], "environment_steps": 10**6}}
    for provenance, steps in (
        (said, said["data"]["environment_steps"]),
        ({**said, "start": {"name": "w", "provenance": more}}, 10**6),
        ({"start": None}, None),
    ):
        manifest = dataclasses.replace(world.manifest, provenance=provenance)
        monkeypatch.setattr(study, "world", dataclasses.replace(world, manifest=manifest))
        assert study.data_steps == steps
    study.close()
