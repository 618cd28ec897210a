"""Freed memory is kept: the same tensors again cost no page faults."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from kairos_env.agents.training.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit("no glibc")
def work():
    return [torch.ones(10_000_000) for _ in range(3)]  # beyond what glibc ever keeps by itself
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=False
    )
    if "no glibc" in run.stderr:
        pytest.skip("another C library manages memory here")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    assert faults("keep") < 0.05 * faults("plain")
