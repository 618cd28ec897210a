"""What the README shows and the examples do works as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
# What a reader runs for minutes, a test runs for seconds.
REDUCED = {"policy.learn(20_000)": "policy.learn(512)"}
EXAMPLES = {
    "1_dream.py": ["--steps", "3"],
    "2_dream_and_truth.py": ["--steps", "3"],
    "3_your_own_world.py": ["--tiny"],
    "4_train_in_the_dream.py": ["--steps", "512", "--episodes", "2"],
    "5_plan_in_the_dream.py": ["--steps", "2", "--candidates", "8"],
}


def run(code: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_a_python_block_of_the_readme_runs(block: str, tmp_path: Path) -> None:
    for whole, part in REDUCED.items():
        block = block.replace(whole, part)
    result = run(["-c", block], tmp_path)
    assert result.returncode == 0, result.stderr


def test_every_example_is_tested() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_says_what_came_out(name: str, tmp_path: Path) -> None:
    result = run([str(ROOT / "examples" / name), *EXAMPLES[name]], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "reward" in result.stdout


def test_the_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert targets
    assert all((ROOT / target).exists() for target in targets if "://" not in target)
