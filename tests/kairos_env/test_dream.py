import dataclasses

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small_worlds import chosen, ending, pairs, plain

from kairos_env import cli, dream
from kairos_env.dream import DreamOptions, begin_together, make_policy, open_twin, roll_out, run
from kairos_env.env import DreamEnv
from kairos_env.errors import OptionError
from kairos_env.pictures import enlarge, side_by_side, strip, write_picture, write_video
from kairos_env.real.render import RenderError
from kairos_env.starts import Starts
from kairos_env.worlds import World


@pytest.fixture
def no_renderer(monkeypatch):
    def make_twin(*_args, **_kwargs):
        raise RenderError("no OpenGL here: apt-get install libegl1")

    monkeypatch.setattr(World, "make_twin", make_twin)


def test_a_dream_needs_no_renderer(no_renderer, tmp_path, capsys):
    command = ["dream", "untrained", "--steps", "3", "--out", str(tmp_path), "--seed", "1"]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "apt-get install libegl1" in told
    assert "untrained" in told
    picture = np.asarray(Image.open(tmp_path / "untrained-smooth-1.png"))
    assert picture.shape[0] == 64 * 2 + 2 * 4
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "untrained-smooth-1.mp4"))
    assert frames == 4
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".mp4", ".png"]


def test_the_same_seed_shows_the_same_dream(no_renderer, tmp_path):
    pictures = []
    for _ in range(2):
        run(DreamOptions(world="untrained", steps=3, out=tmp_path), Console(quiet=True))
        pictures.append((tmp_path / "untrained-smooth-0.png").read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("world", [chosen, pairs])
@pytest.mark.parametrize("policy", ["smooth", "random", "still"])
def test_policies_give_chunks_of_every_world(world, policy):
    act = make_policy(policy, world(), None, seed=0)
    space = world().manifest.environment.chunk_space
    chunks = [act() for _ in range(5)]
    assert all(chunk in space for chunk in chunks)
    assert (np.stack(chunks) == chunks[0]).all() == (policy == "still")


def test_a_rollout_stops_where_the_dream_ends():
    env = DreamEnv(world=ending(), horizon=50)
    info = begin_together(env, None, seed=0)
    act = make_policy("random", ending(), None, seed=0)
    rollout = roll_out(env, None, act, steps=range(50), info=info)
    assert rollout.ended.startswith("terminated at")
    assert len(rollout.dream) == len(rollout.dream_rewards) + 1 < 51


@pytest.mark.render
def test_the_truth_runs_beside_from_the_same_state(tmp_path, capsys):
    assert cli.main(["dream", "untrained", "--steps", "4", "--out", str(tmp_path)]) == 0
    assert "truth" in capsys.readouterr().out
    picture = np.asarray(Image.open(tmp_path / "untrained-smooth-0.png"))
    assert picture.shape[0] == 2 * 64 * 2 + 3 * 4
    left = 56 + 4  # the first moment of both rows is the start they share
    first = [picture[top : top + 128, left : left + 128] for top in (4, 4 + 128 + 4)]
    assert np.array_equal(*first)


@pytest.mark.render
def test_bundled_snapshots_put_the_twin_into_the_dreams_start():
    twin, _ = open_twin(plain())
    rows = []
    for seed in range(3):
        frame, info = twin.reset(seed=seed)
        rows.append((frame, info["state"], twin.snapshot()))
    frames, states, snapshots = zip(*rows, strict=True)
    actions = np.zeros((3, 0, 4, 2), np.float32)
    starts = Starts(np.stack(frames)[:, None], actions, np.stack(states), snapshots)
    world = dataclasses.replace(plain(), starts=starts)
    env = DreamEnv(world=world)
    info = begin_together(env, twin, seed=0, start=1)
    assert np.array_equal(twin.render(), info["frames"][-1])
    assert np.allclose(info["state"], states[1])
    act = make_policy("expert", world, twin, seed=0)
    rollout = roll_out(env, twin, act, steps=range(3), info=info)
    assert rollout.error()[0] == 0
    assert len(rollout.true_rewards) == 3
    twin.close()


@pytest.mark.render
def test_a_dream_begins_where_a_twin_stands():
    twin, _ = open_twin(plain())
    twin.reset(seed=5)
    twin.step(np.ones((4, 2), np.float32))
    env = DreamEnv(world=plain(), observation="dict")
    observed, _ = env.reset(seed=0, options={"state": twin.snapshot()})
    assert np.array_equal(observed["pixels"], twin.render())
    twin.close()
    env.close()


def test_mistakes_are_told_in_one_line(capsys):
    for command, told in [
        (["dream", "nosuchworld"], "no world"),
        (["dream", "--no-truth", "--policy", "expert"], "choose another policy"),
        (["dream", "--no-truth", "--start", "99"], "starts 0 to"),
    ]:
        assert cli.main(command) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_a_wrong_number_is_refused_with_the_options_name(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["dream", "--steps", "0"])
    assert done.value.code == 2
    assert "--steps must be at least 1" in capsys.readouterr().err


def test_an_expert_is_asked_for_by_name_only_where_there_is_one():
    with pytest.raises(OptionError, match="look"):
        make_policy("expert", plain(), None, seed=0)
    assert dream.KEPT < 1


def test_pictures_show_first_and_last_and_videos_play(tmp_path):
    frames = np.arange(7, dtype=np.uint8)[:, None, None, None].repeat(6, 1).repeat(5, 2)
    frames = frames.repeat(3, 3) * 30
    picture = strip({"one": frames, "two": frames}, columns=3, scale=2)
    assert picture.shape == (2 * 12 + 3 * 4, 56 + 3 * (10 + 4) + 4, 3)
    assert picture[4, 60, 0] == 0
    assert picture[4, -5, 0] == 180
    assert (enlarge(frames, 3)[:, ::3, ::3] == frames).all()
    video = side_by_side({"one": frames, "two": frames}, scale=3)
    assert video.shape[1] % 2 == video.shape[2] % 2 == 0
    write_picture(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), picture)
    write_video(tmp_path / "a.mp4", video, fps=5)
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "a.mp4"))[0] == 7


def test_an_interrupted_picture_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_picture(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
