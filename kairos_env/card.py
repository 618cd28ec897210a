"""The README.md of a world: a model card made from world.json alone."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from kairos_env.manifest import Manifest
from kairos_env.remake import runs_of

DEAF = (
    "The video of this world does not answer to actions: it was imported from a network that never "
    "saw one. Let it learn to answer with `kairos train DATA --from THIS_WORLD --stages robot`."
)


def card(manifest: Manifest) -> str:
    """A model card in Markdown, with the front matter that hubs read."""
    e = manifest.environment
    untrained = "" if manifest.trained else "\n**The weights are random: nothing was learned.**\n"
    if not manifest.answers:
        untrained += f"\n**{DEAF}**\n"
    return f"""---
library_name: kairos-env
license: apache-2.0
tags: [world-model, gymnasium, reinforcement-learning]
---

# {manifest.name}

{manifest.description}
{untrained}
A world for [kairos-env](https://pypi.org/project/kairos-env): a Gymnasium environment whose
physics is a network.

```python
import gymnasium as gym
import kairos_env

env = gym.make("Kairos-v0", world="{manifest.name}")  # or the path of this folder
```

## The environment that was learned

| | |
|---|---|
| source | `{e.id}` {_inline(e.kwargs)} |
| one step | {e.chunk} low-level actions, {e.frames_per_chunk} frame(s), {e.seconds_per_step:g} s |
| frames | {e.frame_size} x {e.frame_size}, {e.fps:g} a simulated second |
| actions | `{e.space}`, in chunks: `{e.chunk_space}` |
| horizon | {e.horizon} steps |
| reward | {e.reward} |
| termination | {e.termination} |
| state | {", ".join(e.state_names) or f"{manifest.model.heads.state_size} numbers"} |

## How it was made

{_made(manifest)}
## Measured against the truth

{_table(manifest.fidelity)}
"""


def _made(manifest: Manifest) -> str:
    """Every training run, the first one first."""
    runs = runs_of(manifest.provenance)
    text = ""
    for number, run in enumerate(runs, start=1):
        if len(runs) > 1:
            text += f"### Run {number} of {len(runs)}\n\n"
        text += f"{_table(run)}\n\n"
    if any("command" in run for run in runs):
        text += f"All of it again: `kairos worlds {manifest.name} --remake | sh`\n\n"
    return text


def _inline(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={value!r}`" for key, value in kwargs.items())


def _table(values: Mapping[str, Any]) -> str:
    """Nested numbers as rows of a table, or a sentence where there are none."""
    rows = [f"| {name} | {value} |" for name, value in flat(values)]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else "Not recorded."


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every leaf."""
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif key == "command" and isinstance(value, list | tuple):
            yield name, f"`{shlex.join(map(str, value))}`"
        elif key == "after":
            for number, change in enumerate(value, start=1):
                yield from flat(change, f"{name} {number}: ")
        else:
            yield name, _leaf(value)


def _leaf(value: Any) -> str:
    """Numbers short, lists without brackets, `stage: unroll, updates: 600` for small mappings."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_leaf(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        between = "; " if any(isinstance(item, Mapping) for item in value) else ", "
        return between.join(map(_leaf, value))
    return str(value)
