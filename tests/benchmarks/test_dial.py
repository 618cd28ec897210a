"""Each setting of a dream is timed and judged beside the world's own."""

import json

import pytest

from kairos_env.benchmarks import dial, tables

QUICK = ["--episodes", "4", "--horizon", "12", "--rounds", "2", "--seconds", "0.2"]
QUICK += ["--batches", "1", "--denoise-steps", "1", "2", "--windows", "2", "3"]


@pytest.mark.render
def test_every_setting_has_a_row(tmp_path):
    assert dial.main(["untrained", *QUICK, "--out", str(tmp_path / "benchmarks" / "results")]) == 0
    [path] = (tmp_path / "benchmarks" / "results").glob("dial-untrained-*.json")
    rows = json.loads(path.read_text())["rows"]
    # one step and a window of three are the world's own
    names = [dial.OWN, "denoise_steps=2", "window=2", 'precision="bfloat16"']
    assert [row["setting"] for row in rows] == names
    for row in rows:
        assert row["step_ms"]["1"] > 0
        assert row["at_10"]["psnr"] > 0
    assert len({row["at_12"]["psnr"] for row in rows}) == len(rows)
    table = tables.dial_table(tmp_path)
    assert "PSNR, frame 12" in table
    assert table.count("denoise_steps=2") == 1


def test_a_wrong_world_is_told(capsys):
    assert dial.main(["nosuchworld"]) == 2
    assert "no world" in capsys.readouterr().err
