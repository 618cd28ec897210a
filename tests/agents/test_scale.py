"""Recording and dreaming by Ray actors: the numbers of one process, also when an actor dies."""

import gc
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from ball_world import make_data, make_world, short_run
from test_collect import ENV, SMALL, contents

from kairos_env.agents.collect import CollectError, collect
from kairos_env.agents.scale import cluster
from kairos_env.worlds import load_world

pytest.importorskip("stable_baselines3")
from kairos_env.agents.imagine.cli import main
from kairos_env.agents.imagine.config import StudyConfig
from kairos_env.agents.imagine.run import LEARNER
from kairos_env.agents.imagine.study import imagine

HERE = str(Path(__file__).parent)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs the extra "ray"'
)


@pytest.fixture(scope="module")
def ray():
    """Two cores for actors, whatever this machine has."""
    ray = cluster.import_ray()
    with pytest.MonkeyPatch.context() as environment:  # that actors begin with
        environment.setenv("PYTHONPATH", HERE)
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        ray.init(address="local", num_cpus=2, **options)  # not one that stood here before
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a dreamer has: sums depend on it
    yield ray
    torch.set_num_threads(threads)
    ray.shutdown()
    with warnings.catch_warnings():  # it does not wait for the processes that it ends
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("scale")
    return make_world(place, make_data(place))


def small(folder, **changes):
    return short_run(folder, **{"steps": 48, "round_steps": 24, **changes})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Seven episodes recorded by one process; a worker would die if there were a file `deadly`."""
    root = tmp_path_factory.mktemp("recorded")
    recipe = {**SMALL, "die_once": str(root / "deadly")}
    collect(ENV, episodes=7, out=root / "data", **recipe)
    return contents(root / "data"), recipe


@needs_ray
@pytest.mark.parametrize("collectors", [1, 2])
def test_collectors_record_what_one_process_records(ray, recorded, tmp_path, collectors):
    wanted, recipe = recorded
    told = []
    report = collect(
        ENV,
        episodes=7,
        out=tmp_path,
        workers=collectors,
        cluster="local",
        on_episode=lambda *progress: told.append(progress),
        **recipe,
    )
    assert contents(tmp_path) == wanted
    assert [done for done, _ in told] == list(range(1, 8))
    assert report.new_frames == report.frames


@needs_ray
def test_an_episode_whose_collector_died_is_recorded_again(ray, recorded, tmp_path):
    wanted, recipe = recorded
    deadly = Path(recipe["die_once"])
    deadly.touch()
    collect(ENV, episodes=7, out=tmp_path, cluster="local", **recipe)
    assert not deadly.exists()
    assert contents(tmp_path) == wanted


@needs_ray
def test_a_collector_that_keeps_dying_ends_the_recording(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "RESTARTS", 0)
    deadly = tmp_path / "deadly"
    deadly.touch()
    options = {**SMALL, "die_at": str(deadly), "cluster": "local"}
    with pytest.raises(CollectError, match=r"actor died 1 times(.|\n)*Earlier episodes are intact"):
        collect(ENV, episodes=2, out=tmp_path / "data", **options)
    deadly.unlink()
    assert collect(ENV, episodes=2, out=tmp_path / "data", **options).episodes == 2


@needs_ray
def test_an_error_of_an_actor_is_the_error_of_the_call(ray, tmp_path):
    failing = tmp_path / "failing"
    failing.touch()
    with pytest.raises(CollectError, match=r"episode 0 failed: FloatingPointError: .* unstable"):
        collect(ENV, episodes=1, out=tmp_path, cluster="local", fail_at=str(failing), **SMALL)


@needs_ray
def test_more_actors_than_the_cluster_has_room_for_are_refused(ray, tmp_path):
    with pytest.raises(CollectError, match="5 actors need 5 CPUs, the cluster has 2"):
        collect(ENV, episodes=9, out=tmp_path, workers=5, cluster="local", **SMALL)


def tensors(path):
    """Policy and optimizer as they were saved."""
    kept = torch.load(path, weights_only=True)["parameters"]
    moments = kept["policy.optimizer"]["state"]
    return {**kept["policy"], **{f"{i}.{k}": v for i in moments for k, v in moments[i].items()}}


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@needs_ray
def test_one_dreamer_ends_with_the_policy_of_a_run_without_any(ray, tmp_path, folder):
    plain = StudyConfig(run=small(folder), out=tmp_path / "plain")
    dreamt = StudyConfig(run=small(folder, dreamers=1), out=tmp_path / "dreamt")
    wanted, got = imagine(plain), imagine(dreamt)
    assert_same(*(tensors(run.out / "dream/seed-0" / LEARNER) for run in (dreamt, plain)))
    assert got["methods"] == wanted["methods"]
    assert imagine(dreamt) == got  # a finished run needs no dreamers


def dies_before(rollout):
    """Makes a dreamer die in the midst of a call."""

    def arm(dreamer):
        dream_on = dreamer._dream_on

        def dies():
            if len(dreamer._dreamed) == rollout:
                os._exit(9)
            dream_on()

        dreamer._dream_on = dies

    return arm


@needs_ray
def test_a_dreamer_that_dies_comes_back_and_changes_nothing(ray, folder, tmp_path):
    from kairos_env.agents.scale.learner import GatheringLearner

    config = small(folder, dreamers=2)  # 24 steps in each rollout of a dreamer
    learner = GatheringLearner(config, load_world(folder), address="local", threads=1, gpus=0.0)
    try:
        learner.save(tmp_path / "start")
        learner.practise(100)
        assert learner.steps == 3 * 2 * 24
        learner.save(tmp_path / "whole")
        learner.load(tmp_path / "start")
        second = learner.dreamers[1]
        before = ray.get(second.__ray_call__.remote(lambda _: os.getpid()))
        ray.get(second.__ray_call__.remote(dies_before(1)))
        learner.practise(100)
        learner.save(tmp_path / "killed")
        assert ray.get(second.__ray_call__.remote(lambda _: os.getpid())) != before
    finally:
        learner.close()
    assert_same(tensors(tmp_path / "killed"), tensors(tmp_path / "whole"))
    assert not torch.equal(*(tensors(tmp_path / n)["action_net.bias"] for n in ("start", "whole")))


def test_dreamers_stand_beside_each_other():
    from stable_baselines3.common.buffers import RolloutBuffer

    from kairos_env.agents.scale.dreamers import ARRAYS, fill

    box = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    one, other, both = (RolloutBuffer(3, box, box, n_envs=n) for n in (1, 1, 2))
    for value, buffer in ((1, one), (2, other)):
        for name in ARRAYS:
            getattr(buffer, name)[:] = value
    fill(both, [{name: getattr(buffer, name) for name in ARRAYS} for buffer in (one, other)])
    for name in ARRAYS:
        assert getattr(both, name).shape[:2] == (3, 2)
        assert (getattr(both, name)[:, 0] == 1).all()
        assert (getattr(both, name)[:, 1] == 2).all()
    assert sum(len(part.returns) for part in both.get(4)) == 6


def test_without_ray_the_extra_is_named(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([str(folder), "--out", str(tmp_path / "run"), "--dreamers", "2"]) == 1
    assert 'pip install "kairos-env[ray]"' in capsys.readouterr().err
    with pytest.raises(ImportError, match=r"kairos-env\[ray\]"):
        collect(ENV, episodes=1, out=tmp_path / "data", cluster="local", **SMALL)


@needs_ray
def test_a_cluster_that_is_not_there_is_named(ray, tmp_path, monkeypatch):
    def refuses(**options):
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuses)
    with pytest.raises(CollectError, match=r"'auto': Could not find any .* 'ray start --head'"):
        collect(ENV, episodes=1, out=tmp_path, cluster="auto", **SMALL)


@pytest.mark.parametrize("changes", [{"dreamers": 0}, {"dreamers": 2, "algo": "sac"}])
def test_dreamers_that_nothing_gathers_from_are_refused(changes):
    with pytest.raises(ValueError, match="--dreamers must be at least 1 and needs --algo ppo"):
        small("reach", **changes)


@needs_ray
@pytest.mark.slow
def test_the_commands_start_ray_where_there_is_none(recorded, tmp_path):
    wanted, recipe = recorded
    command = [sys.executable, "-m", "kairos_env.cli", "collect", ENV, "--out", str(tmp_path)]
    command += ["--episodes", "7", "--workers", "2", "--cluster", "local", "--policy"]
    command += [*SMALL["policies"], "--horizon", "9", "--frame-size", "16"]
    command += ["--episodes-per-file", "3"]
    command += ["--env-kwargs", json.dumps({"die_once": recipe["die_once"]})]
    environment = {**os.environ, "PYTHONPATH": HERE}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert contents(tmp_path) == wanted
