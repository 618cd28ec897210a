"""Collection: the same data however it is run, and nothing lost when it is stopped."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from kairos_env.agents.collect import CollectError, Recipe, Recorder, collect
from kairos_env.agents.data import DiskFullError, files, open_dataset
from kairos_env.agents.data.writer import only_writer
from kairos_env.agents.policies import (
    DetourPolicy,
    PolicySpec,
    RandomPolicy,
    SmoothPolicy,
    choose_policy,
    execute,
    make_policy,
)
from kairos_env.real import make_real
from kairos_env.real.experts import Look, reach_expert
from kairos_env.spaces import decode_actions, encode_actions
from kairos_env.terminal import INTERRUPTED

ENV = "tiny_envs:TinyBall-v0"
HERE = Path(__file__).parent
MIXTURE = ("random", "smooth:2", "smooth@0.5")
SMALL = {"horizon": 9, "frame_size": 16, "episodes_per_file": 3, "policies": MIXTURE}


def contents(root):
    """Every file of a dataset that counts, by name."""
    paths = [p for p in root.rglob("*") if p.is_file()]
    return {str(p.relative_to(root)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Seven episodes recorded in one go by one process."""
    root = tmp_path_factory.mktemp("reference")
    collect(ENV, episodes=7, out=root, **SMALL)
    return root


@pytest.mark.parametrize("workers", [2, 4])
def test_content_does_not_depend_on_the_number_of_workers(reference, tmp_path, workers):
    collect(ENV, episodes=7, out=tmp_path, workers=workers, **SMALL)
    assert contents(tmp_path) == contents(reference)


def run_cli(out, *, episodes, workers=2, **env_kwargs):
    """`kairos collect` as a process of its own."""
    import json

    command = [sys.executable, "-m", "kairos_env.cli", "collect", ENV, "--out", str(out)]
    command += ["--episodes", str(episodes), "--workers", str(workers), "--policy", *MIXTURE]
    command += ["--horizon", "9", "--frame-size", "16", "--episodes-per-file", "3"]
    command += ["--env-kwargs", json.dumps(env_kwargs)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a script inherits an ignored ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, *, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def test_a_killed_collection_resumes_to_the_same_bytes(tmp_path):
    slow = {"delay": 0.012}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    collect(ENV, episodes=10, out=whole, **SMALL, **slow)
    process = run_cli(broken, episodes=10, **slow)
    # Killed with one file written and more episodes on their way.
    wait_for(lambda: (broken / "meta/info.json").exists() and staged(broken))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    survived = len(open_dataset(broken))
    assert 3 <= survived < 10
    (broken / ".unfinished" / "episode-000009.npz.1.partial").write_bytes(b"half")
    report = collect(ENV, episodes=10, out=broken, **SMALL, **slow)
    assert report.new_episodes <= 10 - survived
    assert contents(broken) == contents(whole)


def test_a_kill_before_the_last_staged_file_is_gone_leaves_nothing_over(reference, tmp_path):
    """Episodes 0 to 2 are in the dataset's files already, and two of them are still staged."""
    collect(ENV, episodes=3, out=tmp_path, **SMALL)
    (tmp_path / ".unfinished").mkdir()
    for index in (1, 2):
        (tmp_path / ".unfinished" / f"episode-{index:06d}.npz").write_bytes(b"in the files already")
    collect(ENV, episodes=7, out=tmp_path, **SMALL)
    assert contents(tmp_path) == contents(reference)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux for the workers")
def test_workers_that_outlive_their_collector_are_waited_for(reference, tmp_path):
    process = run_cli(tmp_path, episodes=7)
    wait_for(lambda: staged(tmp_path))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in map(int, children):
        os.kill(child, signal.SIGSTOP)  # as slow as a worker can be
    process.kill()
    process.wait()
    try:
        with (
            pytest.raises(RuntimeError, match="workers of a collection that was killed"),
            only_writer(tmp_path, patience=0.1),
        ):
            pass
    finally:
        for child in map(int, children):
            os.kill(child, signal.SIGCONT)
    process.communicate()
    collect(ENV, episodes=7, out=tmp_path, **SMALL)
    assert contents(tmp_path) == contents(reference)


def staged(root):
    return list(root.rglob("episode-*.npz"))


def test_ctrl_c_keeps_what_was_recorded_and_says_how_to_go_on(tmp_path):
    process = run_cli(tmp_path, episodes=500, delay=0.002)
    wait_for(lambda: (tmp_path / "meta/info.json").exists())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED
    assert "same command goes on" in errors
    assert "Traceback" not in errors
    dataset = open_dataset(tmp_path)
    assert len(dataset) >= 3
    assert all(len(episode) > 1 for episode in dataset)


def test_interrupting_in_this_process_loses_nothing(reference, tmp_path):
    def interrupt(done, frames):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(ENV, episodes=7, out=tmp_path, on_episode=interrupt, **SMALL)
    report = collect(ENV, episodes=7, out=tmp_path, **SMALL)
    assert report.new_episodes == 2
    assert contents(tmp_path) == contents(reference)


def test_a_finished_collection_is_left_alone(reference, tmp_path):
    before = contents(reference)
    report = collect(ENV, episodes=7, out=reference, **SMALL)
    assert (report.new_episodes, report.episodes) == (0, 7)
    assert contents(reference) == before


def test_more_episodes_later_are_the_same_episodes(reference, tmp_path):
    collect(ENV, episodes=4, out=tmp_path, **SMALL)
    collect(ENV, episodes=7, out=tmp_path, **SMALL)
    grown, whole = open_dataset(tmp_path), open_dataset(reference)
    assert grown.lengths.tolist() == whole.lengths.tolist()
    for a, b in zip(grown, whole, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.actions, b.actions)


def test_another_recipe_is_refused_before_and_after_the_first_file(reference, tmp_path):
    with pytest.raises(ValueError, match=r"seed was 0, now 1"):
        collect(ENV, episodes=8, out=reference, seed=1, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        collect(ENV, episodes=7, out=tmp_path, on_episode=_interrupt, **SMALL)
    with pytest.raises(ValueError, match=r"seed was 0, now 1"):
        collect(ENV, episodes=7, out=tmp_path, seed=1, **SMALL)


def _interrupt(done, frames):
    raise KeyboardInterrupt


def test_two_collectors_do_not_share_a_folder(tmp_path):
    with only_writer(tmp_path), pytest.raises(RuntimeError, match="another process"):
        collect(ENV, episodes=2, out=tmp_path, **SMALL)


@pytest.mark.parametrize("how", ["die_at", "fail_at"])
def test_a_failing_worker_is_named_and_earlier_episodes_stay(tmp_path, how):
    trigger, out = tmp_path / "trigger", tmp_path / "data"
    options = {**SMALL, how: str(trigger)}
    collect(ENV, episodes=3, out=out, **options)
    trigger.touch()
    expected = "died while recording episode" if how == "die_at" else "became unstable"
    with pytest.raises(CollectError, match=expected):
        collect(ENV, episodes=6, out=out, workers=2, **options)
    assert len(open_dataset(out)) == 3
    trigger.unlink()
    assert collect(ENV, episodes=6, out=out, **options).episodes == 6


class FullDisk:
    """A file on a disk with room for so many bytes."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        if self._file.tell() + len(data) > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *exception):
        return self._file.__exit__(*exception)


@pytest.mark.parametrize("kind", ["episode-000004", "file-001.mp4", "file-001.parquet", "info"])
def test_a_full_disk_is_named_and_leaves_the_earlier_episodes(
    reference, tmp_path, monkeypatch, kind
):
    collect(ENV, episodes=3, out=tmp_path, **SMALL)
    with monkeypatch.context() as patch:
        normal = Path.open

        def limited(self, *arguments, **options):
            file = normal(self, *arguments, **options)
            is_partial = self.name.endswith(files.PARTIAL)
            return FullDisk(file, 50) if is_partial and kind in self.name else file

        patch.setattr(Path, "open", limited)
        with pytest.raises(DiskFullError, match="disk is full"):
            collect(ENV, episodes=7, out=tmp_path, **SMALL)
    assert not list(tmp_path.rglob(f"*{files.PARTIAL}"))
    assert len(open_dataset(tmp_path)) == 3
    assert all(len(episode) > 1 for episode in open_dataset(tmp_path))
    collect(ENV, episodes=7, out=tmp_path, **SMALL)
    grown, whole = open_dataset(tmp_path), open_dataset(reference)
    assert [e.seed for e in grown] == [e.seed for e in whole]


def test_episodes_keep_their_last_frame_and_can_be_replayed_from_their_start(reference):
    dataset = open_dataset(reference)
    env = Recipe(env=ENV, env_kwargs={"horizon": 9, "frame_size": 16}).make_env()
    ended = 0
    for episode in dataset:
        frame, _ = env.restore(episode.start)
        np.testing.assert_array_equal(frame, episode.frames[0])
        for t in range(len(episode) - 1):
            chunk = decode_actions(env.action_space, episode.actions[t])
            frame, reward, terminated, truncated, info = env.step(chunk)
            np.testing.assert_array_equal(frame, episode.frames[t + 1])
            np.testing.assert_array_equal(info["state"], episode.state[t + 1])
            assert reward == pytest.approx(episode.rewards[t])
            assert (terminated, truncated) == (episode.terminated[t], episode.truncated[t])
        assert terminated or truncated
        ended += terminated
    assert 0 < ended < len(dataset)  # both kinds of end occur


def test_several_frames_a_chunk_become_several_rows(tmp_path):
    options = {"chunk": 4, "frames_per_chunk": 2, "horizon": 5, "frame_size": 16}
    collect(ENV, episodes=3, out=tmp_path, policies=["smooth"], **options)
    dataset = open_dataset(tmp_path)
    assert (dataset.spec.actions_per_frame, dataset.spec.fps) == (2, 10.0)
    env = Recipe(env=ENV, env_kwargs=options).make_env()
    episode = dataset.episode(0)
    env.restore(episode.start)
    chunk = decode_actions(env.action_space, episode.actions[:2].reshape(4, 2))
    _, reward, *_, info = env.step(chunk)
    np.testing.assert_array_equal(info["frames"], episode.frames[1:3])
    assert episode.rewards[:2].sum() == pytest.approx(reward)


def test_an_environment_without_snapshots_or_success_is_recorded_all_the_same(tmp_path):
    report = collect("tiny_envs:TinyOpaque-v0", episodes=2, out=tmp_path, horizon=3, frame_size=16)
    episode = open_dataset(tmp_path).episode(1)
    assert (episode.start, episode.success, report.success) == ({}, None, None)
    assert episode.truncated.tolist() == [False, False, True]


def test_discrete_actions_are_stored_as_one_hot_vectors(tmp_path):
    collect(ENV, episodes=2, out=tmp_path, policies=["smooth"], discrete=True, **{"horizon": 5})
    episode = open_dataset(tmp_path).episode(0)
    assert episode.actions.shape[1:] == (4, 4)
    np.testing.assert_array_equal(episode.actions.sum(axis=-1), 1)
    # Smooth noise holds a discrete choice for a while.
    choices = episode.actions.argmax(-1).reshape(-1)
    assert (choices[1:] == choices[:-1]).mean() > 0.5


def test_shares_of_a_mixture_hold_at_every_length():
    specs = [PolicySpec.parse(text) for text in ("a:0.35", "b:0.25", "c@0.3:0.25", "d:0.15")]
    for episodes in (20, 100, 1500):
        names = [choose_policy(specs, i, seed=3).label for i in range(episodes)]
        for spec in specs:
            assert names.count(spec.label) == pytest.approx(spec.weight * episodes, abs=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("expert", ("expert", 1.0, 0.0, 1.0)),
        ("expert@0.3:0.25", ("expert", 0.25, 0.3, 1.0)),
        ("expert~0.2", ("expert", 1.0, 0.0, 0.2)),
        ("visitor~0.5@0.3:2", ("visitor", 2.0, 0.3, 0.5)),
        ("runs/a+b.zip", ("runs/a+b.zip", 1.0, 0.0, 1.0)),
        ("smooth:2", ("smooth", 2.0, 0.0, 1.0)),
        ("runs/ppo:v2.zip", ("runs/ppo:v2.zip", 1.0, 0.0, 1.0)),
        ("C:\\ppo.zip:3", ("C:\\ppo.zip", 3.0, 0.0, 1.0)),
    ],
)
def test_policies_are_spelt_as_text(text, expected):
    spec = PolicySpec.parse(text)
    assert (spec.name, spec.weight, spec.noise, spec.speed, spec.late) == (*expected, 0)


def test_how_late_a_policy_is_is_spelt_after_its_name():
    spec = PolicySpec.parse("expert+2~0.5@0.1:3")
    assert spec == PolicySpec(name="expert", weight=3, noise=0.1, speed=0.5, late=2)
    assert spec.label == "expert+2~0.5@0.1"
    for text in ("expert+1.5", "expert+-1", "expert+nan"):
        with pytest.raises(ValueError, match="whole env steps"):
            PolicySpec.parse(text)


@pytest.mark.parametrize("text", ["a:0", "a:-1", "a@1.5", "a:nan", "a~0", "a~1.5"])
def test_impossible_weights_noise_and_speeds_are_refused(text):
    with pytest.raises(ValueError, match="of policy 'a' must be"):
        PolicySpec.parse(text)


@pytest.fixture
def env():
    environment = Recipe(env=ENV, env_kwargs={"frame_size": 16, "horizon": 5}).make_env()
    environment.reset(seed=0)
    yield environment
    environment.close()


class Treadmill(gymnasium.Env):
    """Has an action space, and goes nowhere."""

    def __init__(self, space):
        self.action_space = space

    def step(self, action):
        return None, 0.0, False, False, {}


def acts(policy, env, steps, frame=None):
    """The chunks of a policy that starts anew."""
    policy.begin(env, np.random.default_rng(0))
    treadmill = Treadmill(env.action_space)
    return [policy.step(treadmill, frame).chunk for _ in range(steps)]


def test_smooth_noise_travels_further_than_random(env):
    def distance(policy):
        chunks = [encode_actions(env.action_space, chunk) for chunk in acts(policy, env, 400)]
        path = np.concatenate(chunks).reshape(-1, 8, 2).sum(axis=1)
        return np.linalg.norm(path, axis=1).mean()

    assert distance(SmoothPolicy()) > 1.5 * distance(RandomPolicy())


def test_a_degraded_policy_spends_the_asked_share_of_time_astray(env):
    class Zeros:
        def begin(self, env, generator):
            pass

        def step(self, env, frame):
            return execute(env, np.zeros((4, 2), np.float32))

    astray = np.array([chunk.any() for chunk in acts(DetourPolicy(Zeros(), 0.3), env, 6000)])
    assert astray.mean() == pytest.approx(0.3, abs=0.03)
    bursts = np.flatnonzero(astray[1:] & ~astray[:-1])
    assert astray.sum() / len(bursts) == pytest.approx(4, abs=0.5)


def test_a_checkpoint_acts_and_leaves_the_global_generator_alone(env, tmp_path):
    import torch
    from stable_baselines3 import PPO

    path = tmp_path / "ppo.zip"
    small = {"normalize_images": False, "net_arch": [4]}
    PPO("MlpPolicy", env, n_steps=2, batch_size=2, policy_kwargs=small, device="cpu").save(path)
    policy = make_policy(PolicySpec(name=str(path)), env)
    frame, _ = env.reset(seed=1)
    before = torch.get_rng_state()
    first = acts(policy, env, 2, frame)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = acts(policy, env, 2, frame)
    torch.set_rng_state(before)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])

    other = Recipe(env=ENV, env_kwargs={"frame_size": 16, "chunk": 2}).make_env()
    with pytest.raises(ValueError, match="another chunk"):
        make_policy(PolicySpec(name=str(path)), other)


def test_a_missing_extra_is_named(env, tmp_path, monkeypatch):
    path = tmp_path / "model.zip"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ImportError, match=r"kairos-env\[sb3\]"):
        make_policy(PolicySpec(name=str(path)), env)


def test_unknown_policies_are_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "data"
    with pytest.raises(ValueError, match="no policy 'expret'"):
        collect(ENV, episodes=2, out=out, policies=["expret"])
    with pytest.raises(ValueError, match="no scripted expert for 'tiny_envs:TinyBall-v0'"):
        collect(ENV, episodes=2, out=out, policies=["expert"])
    assert not out.exists()


def test_the_command_line_says_what_is_wrong_without_a_traceback(tmp_path, capsys):
    from kairos_env.agents.collect import main

    out = ["--out", str(tmp_path / "data"), "--episodes", "1"]
    assert main(["KairosPusj-v0", *out]) == 1
    message = capsys.readouterr().err
    assert "KairosPush-v0" in message
    assert "Traceback" not in message
    assert main([ENV, *out, "--env-kwargs", "[1]"]) == 1
    assert "JSON object" in capsys.readouterr().err


@pytest.mark.render
def test_experts_solve_our_scene_through_chunks():
    recorder = Recorder(
        Recipe(
            env="KairosPush-v0",
            env_kwargs={"horizon": 60, "frame_size": 16},
            policies=(PolicySpec(name="expert"),),
        )
    )
    episodes = [recorder.record(index) for index in range(2)]
    recorder.close()
    assert all(episode.success for episode in episodes)
    # Closed loop: the four actions of a chunk are not one action held.
    assert all(np.ptp(episode.actions, axis=1).max() > 0.05 for episode in episodes)


def test_a_slower_expert_arrives_later_and_slower(tmp_path):
    arrived = {}
    for spelt in ("expert", "expert~0.3"):
        out = tmp_path / spelt
        collect("KairosReach-v0", episodes=2, out=out, policies=[spelt], workers=1, horizon=60)
        episodes = [open_dataset(out).episode(index) for index in range(2)]
        assert all(episode.success for episode in episodes)
        arrived[spelt] = np.array([len(episode) for episode in episodes])
        assert open_dataset(out).table(0).policy == spelt
        fastest = max(np.abs(episode.actions).max() for episode in episodes)
        assert fastest <= (0.3 if "~" in spelt else 1.0) + 1e-6
    assert (arrived["expert~0.3"] > 1.5 * arrived["expert"]).all()
    with pytest.raises(ValueError, match="only scripted policies"):
        collect(ENV, episodes=2, out=tmp_path / "no", policies=["smooth~0.3"])


def test_a_late_expert_acts_on_what_it_saw_before_and_holds_its_action():
    env = make_real("KairosReach-v0", horizon=60)
    frame, _ = env.reset(seed=3)
    policy = make_policy(PolicySpec(name="expert", late=2), env)
    policy.begin(env, np.random.default_rng(0))
    seen, chunks = [], []
    for _ in range(6):
        seen.append(env.state)
        chunks.append(policy.step(env, frame).chunk)
    env.close()
    unused = np.random.default_rng(0)
    for step, chunk in enumerate(chunks):
        then = reach_expert(Look(seen[max(step - 2, 0)]), unused)
        np.testing.assert_array_equal(chunk, np.broadcast_to(then, chunk.shape))
    with pytest.raises(ValueError, match="only a scripted expert"):
        make_policy(PolicySpec(name="smooth", late=1), env)


def shares_near(policy: str, things: tuple[str, str], pixels: float, episodes: int = 6) -> float:
    """Share of the frames in which two things of the push scene are that near to each other."""
    env = make_real("KairosPush-v0", horizon=60)
    names = [thing.name for thing in env.low_level.unwrapped.objects]
    one, other = (env.low_level.unwrapped.objects[names.index(name)] for name in things)
    actor, near = make_policy(PolicySpec.parse(policy), env), []
    for episode in range(episodes):
        frame, _ = env.reset(seed=episode)
        actor.begin(env, np.random.default_rng(episode))
        for _ in range(60):
            step = actor.step(env, frame)
            state = env.low_level.unwrapped.state()
            near.append(np.linalg.norm(one.pixel(state) - other.pixel(state)) < pixels)
            if step.terminated or step.truncated:
                break
    env.close()
    return float(np.mean(near))


def test_a_visitor_shows_overlaps_and_contacts_that_a_wanderer_hardly_shows():
    for things, pixels in ((("agent", "goal"), 8.0), (("agent", "block"), 9.5)):
        assert shares_near("visitor", things, pixels) > 2 * shares_near("smooth", things, pixels)


def test_a_loiterer_stays_where_the_task_is_nearly_done():
    things, pixels = ("block", "goal"), 10.0
    assert shares_near("loiterer", things, pixels) > 5 * shares_near("visitor", things, pixels)


def test_a_loiterer_needs_a_goal_to_loiter_about():
    env = make_real("KairosOcclude-v0")
    with pytest.raises(ValueError, match="policy loiterer nearly brings something to a goal"):
        make_policy(PolicySpec(name="loiterer"), env)
    env.close()


def test_a_visitor_needs_objects_to_visit(env):
    with pytest.raises(ValueError, match="policy visitor goes from object to object"):
        make_policy(PolicySpec(name="visitor"), env)


def test_an_episode_that_never_ends_asks_for_a_horizon(tmp_path, monkeypatch):
    monkeypatch.setattr("kairos_env.agents.collect.ENDLESS", 50)
    with pytest.raises(CollectError, match=r"episode 0 failed: .*give a horizon"):
        collect("tiny_envs:TinyOpaque-v0", episodes=1, out=tmp_path, frame_size=16)


def test_what_was_recorded_without_a_horizon_can_be_restored_with_the_one_it_tells(
    tmp_path: Path,
) -> None:
    collect("KairosReach-v0", episodes=1, out=tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    told = dataset.spec.provenance["environment"]
    assert told["horizon"] is not None
    real = make_real(told["id"], chunk=told["chunk"], horizon=told["horizon"])
    frame, _ = real.restore(dataset.episode(0).start)
    assert np.array_equal(frame, dataset.episode(0).frames[0])
