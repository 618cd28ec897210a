"""`kairos bench memory --pixels`: worlds asked where the ball is when it comes back."""

import dataclasses
import json

import imageio.v3 as iio
import pytest

from kairos_env.benchmarks import cli
from kairos_env.benchmarks.tables import TABLES
from kairos_env.untrained import untrained_config, untrained_world
from kairos_env.world_model.world_model import WorldModel
from kairos_env.worlds import save_world


def save_untrained(folder, environment, *, states):
    """Random weights behind the interface of a scene whose state has so many numbers."""
    made = untrained_world()
    config = untrained_config()
    config = dataclasses.replace(config, heads=dataclasses.replace(config.heads, state_size=states))
    spec = dataclasses.replace(
        made.manifest.environment,
        id=environment,
        state_names=tuple(f"number {i}" for i in range(states)),
    )
    manifest = dataclasses.replace(made.manifest, name=folder.name, environment=spec, model=config)
    starts = dataclasses.replace(made.starts, state=made.starts.state[:, :states])
    return save_world(folder, WorldModel(config), manifest=manifest, starts=starts)


@pytest.mark.render
def test_a_scene_where_nothing_hides_is_refused(tmp_path, capsys) -> None:
    world = save_untrained(tmp_path / "open", "KairosPush-v0", states=13)
    command = ["memory", "--quick", "--episodes", "2", "--horizon", "4", "--pixels", str(world)]
    assert cli.main(command) == 1
    assert "KairosOcclude-v0" in capsys.readouterr().err


@pytest.mark.render
def test_two_worlds_are_asked_about_the_same_gaps(tmp_path, capsys) -> None:
    worlds = [
        save_untrained(tmp_path / name, "KairosOcclude-v0", states=9) for name in ("one", "other")
    ]
    command = ["memory", "--episodes", "6", "--horizon", "30", "--out", str(tmp_path / "out")]
    command += ["--strips", str(tmp_path / "strips.png")]
    assert cli.main([*command, "--pixels", *map(str, worlds)]) == 0
    (file,) = (tmp_path / "out").iterdir()
    results = json.loads(file.read_text())
    assert set(results["back_in_sight"]) == {"one", "other", "copy"}
    counts = [[g["n"] for g in who["ball"]["gaps"]] for who in results["back_in_sight"].values()]
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0]) > 0
    height, width, _ = iio.imread(tmp_path / "strips.png").shape
    assert height > 4 * 4 * 64  # four episodes: the truth, two worlds and the copy
    assert width > 64
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    file.rename(folder / file.name)
    table = TABLES["pixel_memory"](tmp_path)
    assert "| one (all) | other (all) | copy |" in table
    assert "*shown again at all*" in table
    printed = capsys.readouterr().out
    assert "SWA" in printed
    assert "back in sight" in printed


@pytest.mark.render
def test_a_world_compared_before_stands_beside_a_new_one(tmp_path, capsys) -> None:
    """Only where it was asked about the same episodes."""
    one, other, new = (
        save_untrained(tmp_path / name, "KairosOcclude-v0", states=9)
        for name in ("one", "other", "new")
    )
    command = ["memory", "--episodes", "4", "--horizon", "20", "--pixels"]
    folder = tmp_path / "benchmarks" / "results"
    assert cli.main([*command, str(one), str(other), "--out", str(folder)]) == 0
    (file,) = folder.iterdir()
    before = json.loads(file.read_text())
    beside = ["--beside", str(file), "--out", str(folder)]
    assert cli.main([*command, str(new), str(other), *beside]) == 0
    after = json.loads(file.read_text())
    assert list(after["back_in_sight"]) == ["new", "other", "one", "copy"]
    assert after["back_in_sight"]["one"] == before["back_in_sight"]["one"]
    assert after["worlds"]["one"]["measured"]["measured_at"] == before["measured_at"]
    assert "measured" not in after["worlds"]["other"]
    table = TABLES["pixel_memory"](tmp_path)
    assert "| new (all) | other (all) | one (all) | copy |" in table
    assert "one: measured on the same episodes before" in table

    before["config"]["seed"] = 1
    file.write_text(json.dumps(before))
    assert cli.main([*command, str(new), *beside]) == 1
    assert "repeat its command with other worlds" in capsys.readouterr().err
    before["config"]["seed"] = 0
    before["back_in_sight"]["copy"]["ball"]["gaps"] = []
    file.write_text(json.dumps(before))
    assert cli.main([*command, str(new), *beside]) == 1
    assert "went another way" in capsys.readouterr().err


def test_worlds_of_different_environments_are_refused(tmp_path, capsys) -> None:
    worlds = [
        save_untrained(tmp_path / "a", "KairosOcclude-v0", states=9),
        save_untrained(tmp_path / "b", "KairosPush-v0", states=13),
    ]
    assert cli.main(["memory", "--quick", "--pixels", *map(str, worlds)]) == 1
    assert "compare worlds of one environment" in capsys.readouterr().err
