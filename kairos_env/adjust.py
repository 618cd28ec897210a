"""What is changed about a finished world without training, and put on record.

Settings that no weight depends on; and the way back, halfway say, to the weights that its last run
began with. Weights that one run has led to from others lie on a level path between them (both ends
are good, and so is what is between), so a run that has learned one thing and lost a little of
another need not be taken whole. So do weights of two runs from the same world, and what is chance
in one of them is less in what is between.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from kairos_env.catalogue import bundled_worlds, find_world
from kairos_env.manifest import Manifest
from kairos_env.remake import runs_of, start_of
from kairos_env.world_model.world_model import WorldConfig, WorldModel
from kairos_env.worlds import World, load_world, read_manifest, rewrite_manifest, save_world

# name: the part of the world's config that has it, "" for the config itself
ADJUSTABLE = {
    "second_look": "transformer",
    "stillness": "transformer",
    "homing": "transformer",
    "reserve": "transformer",
    "end_threshold": "heads",
    "denoise_steps": "",
    "history_noise": "",
    "backdrop": "",
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
    changed = dataclasses.replace(manifest, model=with_settings(manifest.model, settings))
    return on_record(changed, {"set": dict(settings), "why": why})


def with_settings(model: WorldConfig, settings: Mapping[str, float]) -> WorldConfig:
    """The config with other settings.

    Raises:
        ValueError: A value cannot be.
    """
    config: Any = model
    for name, value in settings.items():
        part = ADJUSTABLE[name]
        where = getattr(config, part) if part else config
        changed = dataclasses.replace(where, **{name: value})
        config = dataclasses.replace(config, **{part: changed}) if part else changed
    return cast(WorldConfig, config)


def settings_of(model: WorldConfig) -> dict[str, float]:
    """All that `with_settings` can change, as it is."""
    parts = {name: getattr(model, part) if part else model for name, part in ADJUSTABLE.items()}
    return {name: getattr(part, name) for name, part in parts.items()}


def on_record(manifest: Manifest, change: Mapping[str, Any]) -> Manifest:
    """What a changed world says of itself; what was measured before is left out."""
    changes = [*manifest.provenance.get("after", ()), dict(change)]
    provenance = {**manifest.provenance, "after": changes}
    return dataclasses.replace(manifest, provenance=provenance, fidelity={})


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
    folder = own_world(name, why)
    rewrite_manifest(folder, adjusted(read_manifest(folder), settings, why))
    return folder


def go_back(name: str, start: str, share: float, why: str) -> Path:
    """Bring a world's weights back towards those that its last run began with, where it stands.

    Args:
        name: As `find_world` takes it, but no bundled world's name.
        start: The world that the run began with, as `find_world` takes it.
        share: Of the way back.
        why: What speaks for it: it stands in world.json and in the card.

    Returns:
        The world's folder.

    Raises:
        ValueError: There is no such way, no reason is given, or the world is a bundled one.
    """
    _require_share("--back", share)
    folder = own_world(name, why)
    world, first = load_world(folder), load_world(start)
    began = start_of(world.manifest.provenance)
    if began is None or began != first.manifest.provenance:
        raise ValueError(
            f"{world.manifest.name} was not trained from {start} as it is now: there is no way "
            "back to it. Name the world that its last run began with (--from)"
        )
    _require_shape(world, first, start)
    return _move(folder, world, first, share, {"back": share, "why": why})


def blend(name: str, sister: str, share: float, why: str) -> Path:
    """Mix a world's weights with those of a sister, a run from the same world, where it stands.

    Args:
        name: As `find_world` takes it, but no bundled world's name.
        sister: The other run's world, as `find_world` takes it; it stays as it is.
        share: Of the sister.
        why: What speaks for it: it stands in world.json and in the card.

    Returns:
        The world's folder.

    Raises:
        ValueError: They are no sisters, no reason is given, or the world is a bundled one.
    """
    _require_share("--blend", share)
    folder = own_world(name, why)
    world, other = load_world(folder), load_world(sister)
    began = start_of(world.manifest.provenance)
    if began is None or began != start_of(other.manifest.provenance):
        raise ValueError(
            f"{world.manifest.name} and {sister} were not trained from the same world: what is "
            "between their weights need not dream. Name another run from where this one began"
        )
    _require_shape(world, other, sister)
    run = runs_of(other.manifest.provenance)[-1]
    return _move(folder, world, other, share, {"blend": share, "sister": run, "why": why})


def _move(
    folder: Path, world: World, other: World, share: float, change: Mapping[str, Any]
) -> Path:
    """Write a world with its weights moved a share of the way to another's."""
    theirs = other.model.state_dict()
    weights = {
        n: x.lerp(theirs[n], share) if x.is_floating_point() else x
        for n, x in world.model.state_dict().items()
    }
    world.model.load_state_dict(weights)
    return save_world(
        folder,
        world.model,
        manifest=on_record(world.manifest, change),
        starts=world.starts,
        overwrite=True,
        dtype=torch.float16,
    )


def own_world(name: str, why: str) -> Path:
    """The folder of a world that may be changed, for a reason."""
    if not why.strip():
        raise ValueError(
            "a change of a world wants to know --why: it stands in world.json and in the card"
        )
    folder = find_world(name)
    if name in bundled_worlds():
        raise ValueError(
            f"{name} is part of the installation and stays as it is; copy {folder} and change that"
        )
    return folder


def _require_share(option: str, share: float) -> None:
    """Refuse what is no part of a way."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"{option} is a share of the way, between 0 and 1, got {share}")


def _require_shape(world: World, other: World, name: str) -> None:
    """Refuse worlds with nothing between their weights."""
    if not isinstance(world.dreamer, WorldModel) or not isinstance(other.dreamer, WorldModel):
        raise ValueError("only weights of `kairos train` are mixed, those of imported networks not")
    mine, theirs = world.model.state_dict(), other.model.state_dict()
    if {n: x.shape for n, x in mine.items()} != {n: x.shape for n, x in theirs.items()}:
        raise ValueError(
            f"{world.manifest.name} has another shape than {name}: their weights cannot be mixed"
        )
