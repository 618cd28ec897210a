"""A world's world.json suffices to make it again."""

import dataclasses
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import tiny_envs  # noqa: F401 (registers the environments)
import torch

from kairos_env import cli
from kairos_env.adjust import adjusted
from kairos_env.agents.data import open_dataset
from kairos_env.agents.policies import PolicySpec
from kairos_env.manifest import Manifest
from kairos_env.remake import RemakeError, remake_script, runs_of
from kairos_env.worlds import World, load_world

COMMON = ["--seed", "3", "--threads", "1", "--name", "ball", "--description", "A ball."]


def commands(script: str) -> list[list[str]]:
    """What a script runs, without the name of the program."""
    lines = [shlex.split(line) for line in script.splitlines() if line.startswith("kairos ")]
    return [line[1:] for line in lines]


def run(*arguments: object) -> None:
    """A command as from a shell: what stands on the command line is recorded."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["kairos", *map(str, arguments)])
        assert cli.main() == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of two runs, the second with one dataset more and a budget in minutes."""
    root = tmp_path_factory.mktemp("made")
    collect = ["collect", "TinyBall-v0", "--frame-size", 16, "--chunk", 2, "--horizon", 12]
    run(*collect, "--episodes", 14, "--policy", "smooth@0.2:0.5", "random", "--out", root / "a")
    run(*collect, "--episodes", 12, "--seed", 5, "--out", root / "b")
    stages = ["--stages", "tokenizer", "dynamics", "--steps", 4, 3]
    run("train", root / "a", "--out", root / "first", "--size", "tiny", *stages, *COMMON)
    more = ["--from", root / "first", "--stages", "dynamics", "--steps", 2]
    run("train", root / "a", root / "b", "--out", root / "second", *more, *COMMON)
    return root / "second"


def test_a_world_is_made_again_to_the_bit(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["worlds", str(made), "--remake"]) == 0
    steps = commands(capsys.readouterr().out)
    assert [step[0] for step in steps] == ["collect", "train", "collect", "train"]
    monkeypatch.chdir(tmp_path)
    for step in steps:
        run(*step)
    again, before = load_world("ball/world"), load_world(made)
    weights = before.model.state_dict()
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert again.manifest.environment == before.manifest.environment


def changed(world: Path, **provenance: object) -> Manifest:
    manifest = load_world(world).manifest
    return dataclasses.replace(manifest, provenance=manifest.provenance | provenance)


def test_minutes_become_the_updates_that_they_came_to(made: Path) -> None:
    command = ["kairos", "train", "a", "b", "--minutes", "5", "--out", "x", "--from", "y"]
    last = commands(remake_script(changed(made, command=command)))[-1]
    assert "--minutes" not in last
    assert last[last.index("--steps") + 1] == "2"
    assert last[last.index("--from") + 1] == "ball/run-1"


def test_policies_are_spelt_as_they_were_recorded(made: Path, tmp_path: Path) -> None:
    recipe = ["expert+2~0.5@0.0:0.25", "expert+1@0.3:0.5", "smooth@0.0:0.25"]
    out = tmp_path / "reach"
    run("collect", "KairosReach-v0", "--episodes", 4, "--policy", *recipe, "--out", out)
    recorded = open_dataset(out).spec.provenance["policies"]
    manifest = load_world(made.parent / "first").manifest
    data = manifest.provenance["data"]
    data = data | {"recipe": data["recipe"] | {"policies": recorded}}
    collect = commands(
        remake_script(
            dataclasses.replace(manifest, provenance=manifest.provenance | {"data": data})
        )
    )[0]
    told = collect[collect.index("--policy") + 1 :][: len(recipe)]
    assert [*map(PolicySpec.parse, told)] == [*map(PolicySpec.parse, recipe)]


def test_settings_are_changed_on_record_and_made_again(made: Path, tmp_path: Path) -> None:
    world = shutil.copytree(made, tmp_path / "w")
    run("worlds", world, "--set", "end_threshold=0.25", "--why", "ends come late")
    run("worlds", world, "--set", "stillness=0.125", "denoise_steps=2", "--why", "it's still")
    before, after = load_world(made), load_world(world)
    config = after.model.config
    assert config.heads.end_threshold == 0.25
    assert (config.transformer.stillness, config.denoise_steps) == (0.125, 2)
    assert after.fingerprint != before.fingerprint
    weights = before.model.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in after.model.state_dict().items())
    assert "ends come late" in (world / "README.md").read_text()
    *earlier, first, second = commands(remake_script(after.manifest))
    assert earlier == commands(remake_script(before.manifest))
    again = shutil.copytree(made, tmp_path / "again")
    for command in (first, second):
        assert command[:2] == ["worlds", "ball/world"]
        run("worlds", again, *command[2:])
    assert load_world(again).manifest == after.manifest


def require_a_quarter_of_the_way(before: World, other: World, after: World) -> None:
    ends, weights = other.model.state_dict(), after.model.state_dict()
    moved = 0
    for name, x in before.model.state_dict().items():
        torch.testing.assert_close(
            weights[name], x + 0.25 * (ends[name] - x), atol=2e-3, rtol=2e-3, msg=name
        )
        moved += not torch.equal(weights[name], x)
    assert moved > 10


def test_a_world_goes_back_on_record_and_again(made: Path, tmp_path: Path) -> None:
    world, first = shutil.copytree(made, tmp_path / "w"), made.parent / "first"
    run("worlds", world, "--back", 0.25, "--from", first, "--why", "it had learned too much")
    before, start, after = (load_world(path) for path in (made, first, world))
    require_a_quarter_of_the_way(before, start, after)
    assert after.manifest.model == before.manifest.model
    assert "it had learned too much" in (world / "README.md").read_text()
    *earlier, last = commands(remake_script(after.manifest))
    assert earlier == commands(remake_script(before.manifest))
    assert last[:6] == ["worlds", "ball/world", "--back", "0.25", "--from", "ball/run-1"]
    again = shutil.copytree(made, tmp_path / "again")
    run("worlds", again, *last[2:5], first, *last[6:])
    assert load_world(again).fingerprint == after.fingerprint


def test_sisters_are_blended_on_record_and_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, sister, root = shutil.copytree(made, tmp_path / "w"), tmp_path / "sister", made.parent
    other = ["--from", root / "first", "--stages", "dynamics", "--steps", 3, "--seed", 4]
    run("train", root / "b", "--out", sister, *other, *COMMON[2:])
    run("worlds", sister, "--set", "stillness=0.125", "--why", "it's still")
    run("worlds", world, "--blend", 0.25, "--with", sister, "--why", "what is chance is less")
    before, beside, after = (load_world(path) for path in (made, sister, world))
    require_a_quarter_of_the_way(before, beside, after)
    assert after.manifest.model == before.manifest.model  # settings stay the world's own
    assert "what is chance is less" in (world / "README.md").read_text()
    script = remake_script(after.manifest)
    assert "2 datasets, 3 training runs" in script
    monkeypatch.chdir(tmp_path)
    for command in commands(script):
        run(*command)
    assert load_world("ball/world").fingerprint == after.fingerprint
    # a run that goes on from there has the sister in its story
    more = ["--from", world, "--stages", "dynamics", "--steps", 1]
    run("train", root / "a", "--out", tmp_path / "more", *more, *COMMON)
    *earlier, _ = commands(remake_script(load_world(tmp_path / "more").manifest))
    assert [step[0] for step in earlier] == [step[0] for step in commands(script)]


def test_figures_of_another_dream_are_not_kept(made: Path) -> None:
    manifest = dataclasses.replace(load_world(made).manifest, fidelity={"psnr": {"1": 30.0}})
    assert adjusted(manifest, {"stillness": 0.25}, "why not").fidelity == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "colour=1", "--why", "w"], "--set takes second_look, stillness"),
        (["--set", "stillness", "--why", "w"], "expects a number, got ''"),
        (["--set", "denoise_steps=1.5", "--why", "w"], "expects a whole number, got '1.5'"),
        (["--set", "stillness=-1", "--why", "w"], "must not be negative, got -1"),
        (["--set", "end_threshold=0.5"], "wants to know --why"),
        (["--back", "0.5", "--from", "push", "--why", "w"], "was not trained from push as it is"),
        (["--back", "1", "--from", "push", "--why", "w"], "a share of the way, between 0 and 1"),
        (["--back", "0.5", "--why", "w"], "name it with --from"),
        (["--blend", "0.5", "--with", "push", "--why", "w"], "not trained from the same world"),
        (["--blend", "0", "--with", "push", "--why", "w"], "a share of the way, between 0 and 1"),
        (["--blend", "0.5", "--why", "w"], "name it with --with"),
        (
            ["--back", "0.5", "--from", "push", "--set", "stillness=0.2", "--why", "w"],
            "--set and --back are different changes",
        ),
    ],
)
def test_settings_that_cannot_be_change_nothing(
    made: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    assert cli.main(["worlds", str(made), *words]) == 2
    assert said in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_a_bundled_world_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["worlds", "push", "--set", "stillness=0.5", "--why", "w"]) == 2
    assert "part of the installation" in capsys.readouterr().err
    assert cli.main(["worlds", "--set", "stillness=0.5", "--why", "w"]) == 2
    assert "name its folder" in capsys.readouterr().err


def test_runs_stand_in_the_order_in_which_they_were_made(made: Path) -> None:
    first, second = runs_of(load_world(made).manifest.provenance)
    assert [stage["stage"] for stage in first["stages"]] == ["tokenizer", "dynamics"]
    assert [stage["stage"] for stage in second["stages"]] == ["dynamics"]
    card = (made / "README.md").read_text()
    assert card.index("### Run 1 of 2") < card.index("### Run 2 of 2")
    assert "`kairos worlds ball --remake | sh`" in card


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": None}, "of which data"),
        ({"command": ["kairos", "curriculum", "a"]}, "made by kairos curriculum a"),
        ({"data": {"episodes": 3, "recipe": {"policies": None}}}, "not recorded by"),
        (
            {
                "data": {
                    "episodes": 3,
                    "recipe": {
                        "policies": [{"name": "ppo.zip", "sha256": "0"}],
                        "environment": {"id": "E"},
                    },
                }
            },
            "ppo.zip acted",
        ),
    ],
)
def test_what_cannot_be_made_again_is_named(
    made: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(RemakeError, match=words):
        remake_script(changed(made, **changes))


def test_without_weights_there_is_nothing_to_make(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["worlds", "untrained", "--remake"]) == 2
    assert "random weights" in capsys.readouterr().err
