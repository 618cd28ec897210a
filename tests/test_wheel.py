"""What pip would install: one top-level name, and real files behind the links."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("kairos_env", "kernels", "world_model", "agents", "benchmarks", "setup.cfg")
PAPERS = ("pyproject.toml", "README.md", "LICENSE")
DATA = (".xml", ".cpp", ".html", ".safetensors", ".npz", ".json")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that no build folder is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in (*NEEDED, *PAPERS):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = out.glob("*.whl")
    return path


def test_its_only_top_level_name_is_kairos_env(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == {"kairos_env"}


def test_it_holds_every_module_and_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = [
        path
        for room in NEEDED[:-1]
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", *DATA) and path.is_file() and path.resolve() == path
    ]
    prefix = {"kairos_env": ""}
    wanted = {
        f"{prefix.get(path.relative_to(ROOT).parts[0], 'kairos_env/')}{path.relative_to(ROOT)}"
        for path in kept
        if "results" not in path.parts  # measurements are for the repository
    }
    assert wanted <= names, sorted(wanted - names)[:10]
    assert "kairos_env/py.typed" in names


def test_it_stays_small(wheel):
    assert wheel.stat().st_size < 30e6


def test_it_has_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert "kairos = kairos_env.cli:main" in archive.read(name).decode()
