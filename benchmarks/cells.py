"""Long suites are made of cells: each is measured once, kept, and read by the run that goes on.

A cell is a JSON file in a folder of its own suite and settings, so other settings start afresh and
a suite that was stopped begins with the first cell that is missing.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from kairos_env.agents.data.files import read_json, write_json
from kairos_env.benchmarks.progress import progress_bar

Json = dict[str, Any]


def cell_folder(suite: str, settings: Json, root: Path | None = None) -> Path:
    """Where the cells of these settings are kept; under ~/.cache/kairos-env by default."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return (root or cache_folder()) / suite / hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """What can be measured or recorded again lies here, ~/.cache/kairos-env by default."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "kairos-env"


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of one run, with a progress bar."""

    folder: Path
    bar: Progress = dataclasses.field(default_factory=progress_bar)

    def read_or_measure(
        self, name: str, measure: Callable[[Callable[[float], None]], Json]
    ) -> Json:
        """A cell's results: kept ones, or new ones.

        Args:
            name: Of the cell, unique in its suite.
            measure: Takes a function that is told what part of the work is done.
        """
        path = self.folder / f"{name.replace(' ', '-')}.json"
        task: TaskID = self.bar.add_task(name, total=1.0)
        if not path.exists():
            found = measure(lambda done: self.bar.update(task, completed=done))
            write_json(path, found)
        self.bar.update(task, completed=1.0)
        kept: Json = read_json(path)
        return kept
