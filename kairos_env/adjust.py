"""Settings of a finished world that no weight depends on, changed and put on record."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kairos_env.catalogue import bundled_worlds, find_world
from kairos_env.manifest import Manifest
from kairos_env.worlds import read_manifest, rewrite_manifest

# name: the part of the world's config that has it, "" for the config itself
ADJUSTABLE = {
    "second_look": "transformer",
    "stillness": "transformer",
    "homing": "transformer",
    "end_threshold": "heads",
    "denoise_steps": "",
    "history_noise": "",
}
WHOLE = ("denoise_steps",)


def parse_settings(texts: tuple[str, ...]) -> dict[str, float]:
    """Read `NAME=NUMBER`, such as `second_look=0.7`.

    Raises:
        ValueError: There is no such setting, or no such number.
    """
    settings: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in ADJUSTABLE:
            raise ValueError(f"--set takes {', '.join(ADJUSTABLE)}, as NAME=NUMBER; got {text!r}")
        try:
            settings[name] = int(number) if name in WHOLE else float(number)
        except ValueError as error:
            kind = "a whole number" if name in WHOLE else "a number"
            raise ValueError(f"--set {name}= expects {kind}, got {number!r}") from error
    return settings


def adjusted(manifest: Manifest, settings: Mapping[str, float], why: str) -> Manifest:
    """What a world says of itself with other settings.

    What was measured of it before is left out: it was measured of another dream.

    Raises:
        ValueError: A setting is none, or its value cannot be.
    """
    config: Any = manifest.model
    for name, value in settings.items():
        part = ADJUSTABLE[name]
        where = getattr(config, part) if part else config
        changed = dataclasses.replace(where, **{name: value})
        config = dataclasses.replace(config, **{part: changed}) if part else changed
    change = {"set": dict(settings), "why": why}
    changes = [*manifest.provenance.get("after", ()), change]
    provenance = {**manifest.provenance, "after": changes}
    return dataclasses.replace(manifest, model=config, provenance=provenance, fidelity={})


def adjust_world(name: str, settings: Mapping[str, float], why: str) -> Path:
    """Change a world's settings where it stands; its weights stay as they are.

    Args:
        name: As `find_world` takes it, but no bundled world's name.
        settings: From `parse_settings`.
        why: What speaks for them: it stands in world.json and in the card.

    Returns:
        The world's folder.

    Raises:
        ValueError: A value cannot be, no reason is given, or the world is a bundled one.
    """
    if not why.strip():
        raise ValueError("--set wants to know --why: it stands in world.json and in the card")
    folder = find_world(name)
    if name in bundled_worlds():
        raise ValueError(
            f"{name} is part of the installation and stays as it is; copy {folder} and change that"
        )
    rewrite_manifest(folder, adjusted(read_manifest(folder), settings, why))
    return folder
