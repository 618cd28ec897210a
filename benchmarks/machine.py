"""What a measurement says about where it was made, and the one way to write it down.

A results file is JSON: what was measured, the machine, the commit, the command and the time. Tables
in the docs are made from these files.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kairos_env.version import __version__

ROOT = Path(__file__).resolve().parent.parent


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, memory, accelerator and the versions that decide how fast things are."""
    machine: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
    }
    if device == "cuda":
        machine["accelerator"] = torch.cuda.get_device_name()
        machine["cuda"] = torch.version.cuda
    return machine


def processor() -> str:
    """The processor's model as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def commit() -> str:
    """The commit that was measured, marked when files differ from it; the version without git."""
    head = _git("rev-parse", "HEAD")
    if not head:
        return f"version {__version__}"
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{head}{' with changes' if changed else ''}"


def results_folder() -> Path:
    """`benchmarks/results` of the checkout, or `results` here when there is no checkout."""
    return ROOT / "benchmarks" / "results" if (ROOT / "setup.cfg").exists() else Path("results")


def write_results(
    name: str, results: Mapping[str, Any], *, device: str = "cpu", folder: Path | None = None
) -> Path:
    """Write `NAME-MACHINE.json`, beside and renamed, so that it is whole or not there.

    Raises:
        ValueError: a number is not finite; what cannot be measured is None with a reason beside it.
    """
    folder = results_folder() if folder is None else folder
    document = {
        "name": name,
        "command": " ".join(["kairos", *sys.argv[1:]]),
        "commit": commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
        **results,
    }
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    path = folder / f"{name}-{_slug(device)}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as beside:
        beside.write(text)
    Path(beside.name).replace(path)
    return path


def _slug(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    return "-".join([*words, f"{os.cpu_count()}-cores"] if device == "cpu" else words)


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
