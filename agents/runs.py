"""A folder holds one run, and the same command goes on with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kairos_env.agents.data.files import read_json, write_json


def keep_config(path: Path, asked: dict[str, Any]) -> None:
    """Keep what a run is in its folder; refuse a folder that holds another one.

    Args:
        path: JSON file in the folder.
        asked: What makes it this run; fields that may change on the way are left out.
    """
    if path.exists():
        held = read_json(path)
        refuse_another(path.parent, [name for name in asked if asked[name] != held.get(name)])
    write_json(path, asked)


def refuse_another(folder: Path, changed: Sequence[str]) -> None:
    """Refuse to go on where fields of the run have changed."""
    if changed:
        raise ValueError(
            f"{folder} holds a run with another {', '.join(sorted(changed))}. Give the same "
            "options to go on with it, another --out, or delete the folder to start again"
        )
