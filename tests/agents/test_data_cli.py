"""`kairos data`: what a person sees."""

import imageio.v3 as iio
import numpy as np
import pytest
from made_episodes import SIZE, make_episode, write_dataset

from kairos_env.agents.data import cli


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    episodes = [make_episode(length, seed=seed) for seed, length in enumerate((9, 4, 17))]
    return write_dataset(tmp_path_factory.mktemp("cli") / "data", episodes)


def test_info_tells_sizes_ends_and_policies(root, capsys):
    assert cli.main(["info", str(root)]) == 0
    shown = capsys.readouterr().out
    for text in ("episodes", "30, 16x24", "4 to 17", "2 x 3 numbers", "100.0 %", "task 0; task 1"):
        assert text in shown
    assert "made" in shown


def test_show_writes_a_sheet_with_first_and_last_frames(root, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert cli.main(["show", str(root), "--out", str(out), "--frames", "3", "--zoom", "1"]) == 0
    sheet = iio.imread(out)
    height, width = SIZE
    assert sheet.shape == (3 * (height + 2) + 2, 3 * (width + 2) + 2, 3)
    episode = make_episode(9, seed=0)
    np.testing.assert_array_equal(sheet[2 : 2 + height, 2 : 2 + width], episode.frames[0])
    left = 2 + 2 * (width + 2)
    np.testing.assert_array_equal(sheet[2 : 2 + height, left : left + width], episode.frames[-1])
    assert "terminated, solved" in capsys.readouterr().out


def test_check_passes_whole_data_and_names_broken_files(root, tmp_path, capsys):
    assert cli.main(["check", str(root)]) == 0
    assert "is whole" in capsys.readouterr().out
    broken = write_dataset(tmp_path / "broken", [make_episode(5, seed=s) for s in range(2)])
    video = next(broken.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:200])
    assert cli.main(["check", str(broken)]) == 1
    shown = capsys.readouterr().out
    assert "episode 1" in shown
    assert "file-000.mp4" in shown


def test_a_wrong_path_is_an_error_without_a_traceback(tmp_path, capsys):
    assert cli.main(["info", str(tmp_path / "nothing")]) == 1
    assert "there is no dataset at" in capsys.readouterr().err
