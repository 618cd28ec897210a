import importlib
import os
import subprocess
import sys

import pytest

from kairos_env import catalogue, cli, doctor, list_worlds
from kairos_env.real.render import RenderError
from kairos_env.untrained import untrained_world
from kairos_env.worlds import save_world


def test_help_lists_every_command_and_loads_no_torch():
    code = "import sys, kairos_env.cli as c; c.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert done.stdout.endswith("False\n")


def test_every_command_has_a_home():
    for home, _ in cli.COMMANDS.values():
        module, function = home.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_mistyped_command_is_suggested(capsys):
    assert cli.main(["draem"]) == 2
    assert "Did you mean 'kairos dream'?" in capsys.readouterr().err


def test_doctor_says_what_runs_and_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"sb3": "no_such_module"})
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    for part in ("gated_delta", "renderer", 'pip install "kairos-env[sb3]"', "missing", "default"):
        assert part in told, part


def test_doctor_says_what_to_install_to_render(monkeypatch):
    def no_context(*_args, **_kwargs):
        raise RenderError("apt-get install libegl1")

    monkeypatch.setattr("kairos_env.real.render.FrameRenderer", no_context)
    assert "apt-get install libegl1" in doctor.renderer_obstacle()


def test_worlds_are_listed_with_what_was_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path)
    monkeypatch.setattr(list_worlds, "BUNDLED", tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    world = untrained_world()
    save_world(tmp_path / "push", world.model, manifest=world.manifest, starts=world.starts)
    assert cli.main(["worlds"]) == 0
    assert "push" in capsys.readouterr().out
    assert cli.main(["worlds", "push"]) == 0
    assert "made: trained" in capsys.readouterr().out
    assert cli.main(["worlds", "puhs"]) == 2
    assert "Did you mean 'push'" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["worlds", "[/red]"]) == 2
    assert "[/red]" in capsys.readouterr().err  # a name is no markup


@pytest.mark.parametrize("command", ["dream", "doctor", "worlds"])
def test_commands_explain_themselves(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert f"kairos {command}" in capsys.readouterr().out


def test_the_installed_command_runs():
    script = os.path.join(os.path.dirname(sys.executable), "kairos")
    done = subprocess.run([script], capture_output=True, text=True, check=True)
    assert "usage: kairos COMMAND" in done.stdout
