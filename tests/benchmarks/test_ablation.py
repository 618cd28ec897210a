"""`kairos bench ablation`: variants alike but for their memory, cells that are measured once."""

import json

import pytest

from kairos_env.agents.collect import collect
from kairos_env.benchmarks import ablation, cli
from kairos_env.benchmarks.ablation import VARIANTS, AblationBench
from kairos_env.world_model.presets import world_config
from kairos_env.world_model.world_model import WorldModel

TINY = ["--size", "tiny", "--stages", "tokenizer", "dynamics", "--steps", "2", "2"]
TINY += ["--episodes", "2", "--horizon", "4", "--variants", "windows", "hybrid"]


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_variants_are_of_equal_size(size) -> None:
    counts = [
        sum(p.numel() for p in WorldModel(config).parameters())
        for layers in VARIANTS.values()
        for config in [world_config(size, action_size=2, state_size=6, layers=layers)]
    ]
    assert max(counts) < 1.01 * min(counts)


@pytest.mark.render
def test_each_cell_is_trained_compared_and_kept(tmp_path, capsys, monkeypatch) -> None:
    data = tmp_path / "scene"
    collect("KairosPush-v0", episodes=6, out=data, chunk=4, frame_size=64, horizon=12)
    command = ["ablation", str(data), *TINY, "--worlds", str(tmp_path / "worlds")]
    command += ["--out", str(tmp_path / "results")]
    assert cli.main(command) == 0
    assert "PSNR" in capsys.readouterr().out
    (file,) = (tmp_path / "results").iterdir()
    first = json.loads(file.read_text())
    assert [(row["scene"], row["variant"]) for row in first["rows"]] == [
        ("scene", "windows"),
        ("scene", "hybrid"),
    ]
    windows, hybrid = first["rows"]
    assert windows["layers"] == list(VARIANTS["windows"])
    assert [s["updates"] for s in windows["stages"]] == [2, 2]
    assert [s["updates"] for s in hybrid["stages"]] == [2, 2]
    assert windows["reach"] == 8
    assert {"machine", "commit", "command"} <= set(first)

    def refuse(*_: object) -> None:
        raise AssertionError("a finished cell was measured again")

    monkeypatch.setattr(ablation, "cell", refuse)
    assert cli.main(command) == 0
    (file,) = (tmp_path / "results").iterdir()
    assert json.loads(file.read_text())["rows"] == first["rows"]


def test_what_cannot_run_is_refused(tmp_path, capsys) -> None:
    with pytest.raises(ValueError, match="no variant attention; there are windows"):
        AblationBench(data=(tmp_path,), variants=("attention",))
    with pytest.raises(ValueError, match="different folder names, got push, push"):
        AblationBench(data=(tmp_path / "a" / "push", tmp_path / "b" / "push"))
    assert cli.main(["ablation", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err
