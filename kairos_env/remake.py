"""The commands that make a world again, from what its world.json says of how it was made."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kairos_env.manifest import Manifest

Run = Mapping[str, Any]
Options = dict[str, list[str]]


class RemakeError(ValueError):
    """What is recorded of a world does not suffice to make it again."""


def runs_of(provenance: Mapping[str, Any]) -> list[Run]:
    """What is recorded of each training run that led to a world, the first run first."""
    start = start_of(provenance)
    earlier = [] if start is None else runs_of(start)
    return [*earlier, {key: value for key, value in provenance.items() if key != "start"}]


def start_of(provenance: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the world was made that a world's last run began with."""
    start = provenance.get("start")
    return start["provenance"] if isinstance(start, Mapping) else None


def remake_script(manifest: Manifest) -> str:
    """A shell script that records the data of a world and trains it, in a folder of its name.

    Raises:
        RemakeError: A run or its data cannot be had again by a command.
    """
    folder, runs = manifest.name, runs_of(manifest.provenance)
    script = _Script(folder, manifest.description)
    made = None
    for number, run in enumerate(runs, start=1):
        out = f"{folder}/world" if number == len(runs) else f"{folder}/run-{number}"
        script.make(run, made, out)
        made = out
    seconds = sum(run.get("training_seconds", 0.0) for run in script.runs)
    versions = sorted({f"{k} {v}" for run in runs for k, v in run.get("versions", {}).items()})
    return "\n".join(
        [
            "#!/bin/sh",
            f"# Makes the world '{folder}' again: {len(script.recorded)} datasets, "
            f"{len(script.runs)} training runs, {seconds / 60:.0f} minutes of training where it "
            "was made",
            f"# ({', '.join(versions)}). Stopped, it goes on where it stood.",
            "set -eu",
            *script.commands,
            "",
        ]
    )


class _Script:
    """The commands so far."""

    def __init__(self, folder: str, description: str) -> None:
        self.folder = folder
        self.called = ["--name", folder, "--description", description]
        self.commands: list[str] = []
        self.recorded: dict[str, str] = {}
        """What a dataset holds, and where it will be."""
        self.runs: list[Run] = []

    def make(self, run: Run, start: str | None, out: str) -> None:
        """Record what is missing of a run's data, train, and change what was changed after it."""
        datasets = list(_datasets(run))
        for key, part in datasets:
            if key not in self.recorded:
                self.recorded[key] = f"{self.folder}/data-{len(self.recorded) + 1}"
                self._add(_collect(part, self.recorded[key]))
        data = [self.recorded[key] for key, _ in datasets]
        self._add(_train(run, data, start, out) + self.called)
        self.runs.append(run)
        for number, change in enumerate(run.get("after", ()), start=1):
            sister = f"{out}-sister-{number}"
            if "blend" in change:
                self.make(change["sister"], start, sister)
            self._add(_changed(change, out, start, sister))

    def _add(self, command: Sequence[str]) -> None:
        self.commands.append(shlex.join(command))


def _datasets(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The recipes of a run's datasets, each with a text that is the same for the same data."""
    data = run.get("data")
    if not isinstance(data, Mapping) or "recipe" not in data:
        raise RemakeError("world.json does not say of which data this world was made")
    for part in data.get("joined") or [{"episodes": data["episodes"], **data["recipe"]}]:
        yield json.dumps(part, sort_keys=True), part


def _collect(part: Mapping[str, Any], out: str) -> list[str]:
    """The command that records a dataset."""
    environment, policies = part.get("environment"), part.get("policies")
    if not environment or not policies:
        raise RemakeError(
            "some of this world's data were not recorded by `kairos collect`: only who has them "
            "can make it again"
        )
    files = [policy["name"] for policy in policies if "sha256" in policy]
    if files:
        raise RemakeError(
            f"in this world's data {', '.join(files)} acted, a checkpoint that is not part of it"
        )
    command = ["kairos", "collect", environment["id"], "--episodes", str(part["episodes"])]
    command += ["--policy", *map(_spelled, policies)]
    command += ["--seed", str(part["seed"])]
    for name in ("chunk", "frames_per_chunk", "frame_size", "horizon"):
        if environment.get(name) is not None:
            command += [f"--{name.replace('_', '-')}", str(environment[name])]
    if environment.get("kwargs"):
        command += ["--env-kwargs", json.dumps(environment["kwargs"])]
    return [*command, "--out", out]


def _spelled(policy: Mapping[str, Any]) -> str:
    """A recorded policy as `kairos collect` takes it."""
    late = f"+{policy['late']:g}" if "late" in policy else ""
    slowly = f"~{policy['speed']}" if "speed" in policy else ""
    return f"{policy['name']}{late}{slowly}@{policy['noise']}:{policy['weight']}"


def _train(run: Run, data: Sequence[str], start: str | None, out: str) -> list[str]:
    """The command of a run, with the updates that it came to in place of its minutes."""
    command = list(map(str, run.get("command", ())))
    if command[:2] != ["kairos", "train"]:
        raise RemakeError(
            f"this world was made by {shlex.join(command) or 'a command that is not recorded'}; "
            "only worlds of `kairos train` can be made again this way"
        )
    options = _options(command[2:])
    for name in ("out", "from", "minutes", "steps", "stages", "name", "description"):
        options.pop(name, None)
    stages = run["stages"]
    options["stages"] = [stage["stage"] for stage in stages]
    options["steps"] = [str(stage["updates"]) for stage in stages]
    if start is not None:
        options["from"] = [start]
    rest = [part for name, values in options.items() for part in (f"--{name}", *values)]
    return ["kairos", "train", *data, "--out", out, *rest]


def _changed(change: Mapping[str, Any], out: str, start: str | None, sister: str) -> list[str]:
    """The command that changes a finished world (`adjust.py`)."""
    if "back" in change:
        how = ["--back", str(change["back"]), "--from", str(start)]
    elif "blend" in change:
        how = ["--blend", str(change["blend"]), "--with", sister]
    else:
        how = ["--set", *(f"{name}={value}" for name, value in change["set"].items())]
    return ["kairos", "worlds", out, *how, "--why", change["why"]]


def _options(arguments: Sequence[str]) -> Options:
    """The options of a command line with their values; what stands before them is left out."""
    options: Options = {}
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            values = options.setdefault(name, [value] if value else [])
        else:
            values.append(argument)
    return options
